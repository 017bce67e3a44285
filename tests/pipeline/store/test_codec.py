"""Objects: what is written by hand is read by the safetensors library, and what is hostile is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as nps

from pipeline.errors import Corrupt
from pipeline.store.codec import NUMPY, Array, Encoded, decode, from_numpy

arrays = nps.arrays(
    st.sampled_from(sorted(NUMPY.values(), key=str)),
    nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


def framed(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with any header at all."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


@given(st.dictionaries(st.sampled_from(["rows", "index"]), arrays, min_size=1))
def test_the_library_reads_what_is_written(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    encoded = Encoded({name: from_numpy(values) for name, values in tensors.items()})
    raw = encoded.serialized()
    assert (encoded.digest, encoded.bytes) == (hashlib.sha256(raw).hexdigest(), len(raw))
    read = safetensors.numpy.load(raw)
    assert read.keys() == tensors.keys()
    for name, values in tensors.items():
        assert (read[name].dtype, read[name].shape) == (values.dtype, values.shape)
        assert read[name].tobytes() == values.tobytes()
        decoded = decode(raw)[name]
        assert decoded.shape == values.shape
        assert decoded.numpy().tobytes() == values.tobytes()


def test_a_dtype_that_numpy_does_not_know_goes_through() -> None:
    data = np.arange(12, dtype=np.uint8)
    decoded = decode(Encoded({"rows": Array("BF16", (3, 2), data)}).serialized())["rows"]
    assert (decoded.dtype, decoded.shape) == ("BF16", (3, 2))
    np.testing.assert_array_equal(decoded.data, data)


def test_a_view_that_is_not_in_order_is_copied() -> None:
    values = np.arange(12, dtype=np.int64).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(from_numpy(values).numpy(), values)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 7,
        (1 << 60).to_bytes(8, "little") + b"{}",
        framed(b"not json"),
        framed([]),
        framed({"rows": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}, b"short"),
        framed({"rows": {"dtype": "U8", "shape": [1 << 62, 8], "data_offsets": [0, 8]}}, b"8 bytes."),
        framed({"rows": {"dtype": "U8", "shape": [8], "data_offsets": [8, 0]}}, b"8 bytes."),
        framed({"rows": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}, b"more than 8 bytes"),
        framed({"rows": {"dtype": "OBJECT", "shape": [8], "data_offsets": [0, 8]}}, b"8 bytes."),
        framed({"rows": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, b"8 bytes."),
    ],
)
def test_hostile_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(raw)


@given(st.binary(max_size=64), st.integers(0, 80))
def test_a_damaged_object_is_refused_or_read(noise: bytes, at: int) -> None:
    raw = Encoded({"rows": from_numpy(np.arange(4, dtype=np.float32))}).serialized()
    try:
        decode(raw[:at] + noise + raw[at + len(noise) :])
    except Corrupt:
        return
