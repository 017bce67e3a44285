"""Records that are kept from a learner: by their ids alone, a uniform sample, the same however often they come."""

from __future__ import annotations

import hashlib

import torch

from models.evidence import Evidence
from models.learner import Batch

SLOTS = 20


def one(number: int) -> Batch:
    id_ = hashlib.blake2b(str(number).encode(), digest_size=16).digest()
    ids = torch.frombuffer(bytearray(id_), dtype=torch.uint8)[None]
    return Batch(torch.tensor([[number]], dtype=torch.int32), ["a"], torch.zeros(1, 3, dtype=torch.int64), ids)


def taken(order: list[int]) -> tuple[Evidence, list[bool]]:
    made = Evidence((1,), torch.int32, SLOTS)
    return made, [made.takes(one(number), number % 7) for number in order]


def test_the_order_makes_no_difference() -> None:
    there, back = taken(list(range(1000)))[0], taken(list(range(999, -1, -1)))[0]
    assert len(there) == SLOTS
    assert sorted(there.records()[0].flatten().tolist()) == sorted(back.records()[0].flatten().tolist())
    x, y = there.records()
    assert torch.equal(x[:, 0] % 7, y)


def test_what_was_passed_over_is_so_for_good() -> None:
    made, first = taken(list(range(1000)))
    learned = {number for number, is_taken in enumerate(first) if not is_taken}
    before = set(made.records()[0].flatten().tolist())
    for _ in range(2):
        assert {number for number in range(1000) if made.takes(one(number), 0)} == before
    assert not learned & before


def test_little_is_lost_of_a_long_stream() -> None:
    _, first = taken(list(range(5000)))
    assert SLOTS <= sum(first) < 150  # of 500 that may be evidence


def test_it_goes_on_after_a_restart() -> None:
    made, _ = taken(list(range(400)))
    restored = Evidence((1,), torch.int32, SLOTS)
    restored.restore(made.meta(), made.capture())
    for each in (made, restored):
        for number in range(400, 900):
            each.takes(one(number), 1)
    for ours, theirs in zip(made.records(), restored.records(), strict=True):
        assert torch.equal(ours, theirs)
    assert sorted(made.remembered()) == sorted(restored.remembered())
