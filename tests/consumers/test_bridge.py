"""Tensors to arrays and back, and what a capture copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from consumers.bridge import DTYPES, array, copied, tensor
from models.learner import Rows
from pipeline.store.codec import Array
from pipeline.store.rowlog import Delta


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (2, 3, 4)], ids=str)
def test_every_type_and_shape_comes_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    before = torch.randn(count, generator=torch.Generator().manual_seed(0)).mul(5).to(dtype).reshape(shape)
    after = tensor(array(before))
    assert (after.dtype, after.shape) == (before.dtype, before.shape)
    assert torch.equal(after, before)


def test_a_tensor_that_is_not_contiguous_comes_back_too() -> None:
    before = torch.arange(12, dtype=torch.float32).reshape(3, 4).t()
    assert torch.equal(tensor(array(before)), before)


def test_what_comes_from_read_only_bytes_can_be_written_to() -> None:
    made = tensor(Array("F32", (2,), np.frombuffer(bytes(8), np.uint8)))
    made += 1
    assert made.tolist() == [1, 1]


def test_a_capture_copies_only_the_rows_that_changed() -> None:
    live = torch.arange(12, dtype=torch.int32).reshape(6, 2)
    taken = copied({"a": live, "b": Rows(live, None), "c": Rows(live, torch.tensor([1, 4]))})
    live.zero_()  # the next update must not reach what was captured
    a, b, c = taken["a"], taken["b"], taken["c"]
    assert isinstance(a, Array)
    assert isinstance(b, Delta)
    assert isinstance(c, Delta)
    assert tensor(a).flatten().tolist() == list(range(12))
    assert b.is_whole
    assert c.rows == 6
    assert c.index.tolist() == [1, 4]
    assert tensor(c.values).tolist() == [[2, 3], [8, 9]]
