"""What is held out: which records, how many, and that a sample goes on after a restart, however it was batched."""

from __future__ import annotations

import json

import pytest
import torch

from models.evaluation.held_out import SPARE_CLASSES, HeldOut, is_held_out
from models.learner import Batch
from models.memory import PolicyName


def batch(*numbers: int, labels: list[str | None] | None = None) -> Batch:
    x = torch.tensor(numbers, dtype=torch.int32)[:, None]
    origins = torch.tensor([(0, 0, number) for number in numbers])
    ids = torch.tensor([[number % 256] * 16 for number in numbers], dtype=torch.uint8)
    return Batch(x, labels or [f"class {number % 3}" for number in numbers], origins, ids)


def empty(slots: int = 8) -> HeldOut:
    return HeldOut(slots, (1,), torch.int32, "reservoir", 7)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_share_is_kept_and_an_id_decides(share: float) -> None:
    held = [is_held_out(f"record {number}", share) for number in range(20_000)]
    assert held == [is_held_out(f"record {number}", share) for number in range(20_000)]
    assert sum(held) / len(held) == pytest.approx(share, rel=0.15)
    assert all(is_held_out(f"record {number}", 2 * share) for number, is_held in enumerate(held) if is_held)


def test_it_is_a_uniform_sample_of_bounded_size() -> None:
    hits = torch.zeros(60)
    for seed in range(200):
        one = HeldOut(8, (1,), torch.int32, "reservoir", seed)
        one.add(batch(*range(60)))
        x, labels = one.records()
        assert len(one) == len(x) == 8
        assert labels == [f"class {number % 3}" for number in x[:, 0].tolist()]
        hits[x[:, 0].long()] += 1
    # 60 counts with mean 26.7 and standard deviation 4.8
    assert hits.min() > 8
    assert hits.max() < 46


def test_how_it_was_batched_does_not_matter_and_a_restart_neither() -> None:
    whole, parts = empty(), empty()
    whole.add(batch(*range(40)))
    for start in range(0, 40, 5):
        state, meta = parts.capture(), json.loads(json.dumps(parts.meta()))
        parts = empty()
        parts.restore(meta, {name: rows.tensor.clone() for name, rows in state.items()})
        parts.add(batch(*range(start, start + 5)))
    assert parts.meta() == whole.meta()
    ours, theirs = parts.capture(), whole.capture()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].tensor, theirs[name].tensor) for name in ours)
    assert all(name.startswith("held_out/") for name in ours)


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_every_record_has_its_label_however_many_classes_come(policy: PolicyName) -> None:
    """Also after a restart in between, and after a correction to a label that is new too."""
    one = HeldOut(8, (1,), torch.int32, policy, 7)
    for start in range(0, 3000, 500):
        numbers = range(start, start + 500)
        one.add(batch(*numbers, labels=[f"class {number // 2}" for number in numbers]))
        state, meta = one.capture(), json.loads(json.dumps(one.meta()))
        one = HeldOut(8, (1,), torch.int32, policy, 7)
        one.restore(meta, {name: rows.tensor.clone() for name, rows in state.items()})
    x, labels = one.records()
    assert labels == [f"class {number // 2}" for number in x[:, 0].tolist()]
    assert len(one.classes) == len(set(one.classes)) <= 8 + SPARE_CLASSES
    assert one.correct(bytes([int(x[0]) % 256] * 16), "another")
    assert one.records()[1][0] == "another"


def test_a_sample_of_more_classes_than_a_learner_has_by_default_keeps_them_all() -> None:
    one = HeldOut(2000, (1,), torch.int32, "reservoir", 7)
    one.add(batch(*range(1500), labels=[f"class {number}" for number in range(1500)]))
    assert one.records()[1] == [f"class {number}" for number in range(1500)]


def test_without_labels_it_keeps_none() -> None:
    one = empty()
    one.add(batch(1, 2, labels=[None, "a"]))
    assert one.records()[1] == [None, "a"]


def test_a_label_is_corrected() -> None:
    one = HeldOut(8, (1,), torch.int32, "balanced", 7)
    one.add(batch(*range(6)))
    assert one.correct(bytes([4] * 16), "another")
    assert not one.correct(bytes([9] * 16), "another")
    x, labels = one.records()
    assert labels == ["another" if number == 4 else f"class {number % 3}" for number in x[:, 0].tolist()]
    assert set(one.remembered()) == {bytes([number] * 16) for number in range(6)}
