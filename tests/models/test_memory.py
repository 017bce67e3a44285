"""The replay memory against plain Python: who sits where, what a draw gives, what an operation costs."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.learner import Batch
from models.memory import PolicyName, ReplayMemory

CPU = torch.device("cpu")
POLICY_NAMES = st.sampled_from(["reservoir", "balanced"])
STREAMS = st.lists(st.lists(st.integers(-1, 4), min_size=1, max_size=9), max_size=30)  # batches of class numbers


def memory(slots: int, policy: PolicyName) -> ReplayMemory:
    return ReplayMemory(slots, (2,), torch.int32, CPU, policy)


def batch(first: int, y: list[int]) -> Batch:
    """Records number `first` and on: the number is in x, in the origin and in the id."""
    numbers = torch.arange(first, first + len(y))
    origins = torch.stack([numbers * 0, numbers * 0 + 1, numbers], 1)
    ids = numbers[:, None].to(torch.uint8).repeat(1, 16)
    return Batch(torch.stack([numbers, -numbers], 1).to(torch.int32), [str(c) for c in y], origins, ids)


def fill(one: ReplayMemory, stream: list[list[int]], rng: torch.Generator, first: int = 0) -> int:
    for y in stream:
        one.add(batch(first, y), y, rng)
        first += len(y)
    return first


def kept(one: ReplayMemory) -> dict[str, Tensor]:
    return {name: rows.tensor[: one.size].clone() for name, rows in one.capture().items()}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@settings(deadline=None, max_examples=50)
@given(STREAMS, st.integers(1, 12))
def test_a_reservoir_is_algorithm_r_record_by_record(stream: list[list[int]], slots: int) -> None:
    ours = memory(slots, "reservoir")
    fill(ours, stream, seeded())

    theirs: list[tuple[int, int]] = []  # (number, class) by slot
    rng, number = seeded(), 0
    for y in stream:
        for label, chance in zip(y, torch.rand(len(y), generator=rng, dtype=torch.float64).tolist(), strict=True):
            place = len(theirs) if len(theirs) < slots else int(chance * (number + 1))
            if place == len(theirs) < slots:
                theirs.append((number, label))
            elif place < slots:
                theirs[place] = (number, label)
            number += 1
    rows = kept(ours)
    assert list(zip(rows["memory/x"][:, 0].tolist(), rows["memory/y"].tolist(), strict=True)) == theirs


@settings(deadline=None, max_examples=50)
@given(STREAMS, st.integers(1, 12), st.sampled_from(["reservoir", "balanced"]))
def test_a_slot_holds_one_record_whole(stream: list[list[int]], slots: int, policy: PolicyName) -> None:
    ours = memory(slots, policy)
    total = fill(ours, stream, seeded())
    labels = [label for y in stream for label in y]
    rows = kept(ours)
    numbers = rows["memory/x"][:, 0].tolist()
    assert ours.size == len(numbers) == min(slots, total)
    assert len(set(numbers)) == len(numbers)
    assert rows["memory/y"].tolist() == [labels[number] for number in numbers]
    assert rows["memory/x"][:, 1].tolist() == [-number for number in numbers]
    assert rows["memory/origins"].tolist() == [[0, 1, number] for number in numbers]
    assert rows["memory/ids"].tolist() == [[number % 256] * 16 for number in numbers]


@settings(deadline=None, max_examples=50)
@given(STREAMS, st.integers(1, 12))
def test_balanced_memory_takes_from_the_largest_class_alone(stream: list[list[int]], slots: int) -> None:
    ours = memory(slots, "balanced")
    rng, first = seeded(), 0
    for label in [label for y in stream for label in y]:
        before = Counter(kept(ours)["memory/y"].tolist())
        first = fill(ours, [[label]], rng, first)
        after = Counter(kept(ours)["memory/y"].tolist())
        if ours.size == sum(before.values()):  # it was full
            gone = before - after
            assert all(before[name] == max(before.values()) for name in gone)
            assert after - before <= Counter([label])


@settings(deadline=None, max_examples=50)
@given(STREAMS, STREAMS, st.integers(1, 12), st.sampled_from(["reservoir", "balanced"]))
def test_it_goes_on_after_a_restart_as_if_nothing_had_been(
    before: list[list[int]], after: list[list[int]], slots: int, policy: PolicyName
) -> None:
    ours = memory(slots, policy)
    first = fill(ours, before, seeded())
    restored = memory(slots, policy)
    state = {name: rows.tensor.clone() for name, rows in ours.capture().items()}
    restored.restore(json.loads(json.dumps(ours.meta())), state)
    fill(ours, after, seeded(1), first)
    fill(restored, after, seeded(1), first)
    assert restored.meta() == ours.meta()
    ours_rows, restored_rows = kept(ours), kept(restored)
    assert all(torch.equal(restored_rows[name], rows) for name, rows in ours_rows.items())


@settings(deadline=None, max_examples=100)
@given(STREAMS, st.integers(1, 12), st.sampled_from(["reservoir", "balanced"]))
def test_only_rows_that_are_named_change(stream: list[list[int]], slots: int, policy: PolicyName) -> None:
    ours, rng, first = memory(slots, policy), seeded(), 0
    before = {name: rows.tensor.clone() for name, rows in ours.capture().items()}
    for y in stream:
        first = fill(ours, [y], rng, first)
        for name, rows in ours.capture().items():
            assert rows.changed is not None
            before[name][rows.changed] = rows.tensor[rows.changed]
            assert torch.equal(before[name], rows.tensor)


def corrected(one: ReplayMemory, number: int, label: int) -> bool:
    """Gives record `number` another class, if it is there."""
    id_ = bytes([number]) * 16
    found = id_ in one.remembered()
    if found:
        one.relabel(id_, label)
    return found


#: a batch of class numbers, or the number of a record and its new class, or a class that is flushed
Step = list[int] | tuple[int, int] | int
STEPS = st.lists(
    st.lists(st.integers(-1, 4), min_size=1, max_size=6)
    | st.tuples(st.integers(0, 40), st.integers(0, 5))
    | st.integers(-1, 5)
)


def go(one: ReplayMemory, steps: list[Step], rng: torch.Generator, first: int = 0) -> int:
    for step in steps:
        if isinstance(step, list):
            first = fill(one, [step], rng, first)
        elif isinstance(step, int):
            one.flush(step)
        else:
            corrected(one, *step)
    return first


@settings(deadline=None, max_examples=100)
@given(STEPS, st.integers(1, 12), st.sampled_from(["reservoir", "balanced"]))
def test_a_correction_changes_the_class_of_that_record_alone(steps: list[Step], slots: int, policy: PolicyName) -> None:
    ours, rng, first, y = memory(slots, policy), seeded(), 0, dict[int, int]()
    for step in steps:
        if isinstance(step, list):
            y |= dict(enumerate(step, first))
            first = fill(ours, [step], rng, first)
        elif isinstance(step, int):
            ours.flush(step)
        else:
            there = step[0] in kept(ours)["memory/x"][:, 0].tolist()
            assert corrected(ours, *step) == there
            y |= dict([step]) if there else {}
        rows = kept(ours)
        numbers = rows["memory/x"][:, 0].tolist()
        assert {id_[0] for id_ in ours.remembered()} == set(numbers)
        assert rows["memory/y"].tolist() == [y[number] for number in numbers]
        assert rows["memory/ids"][:, 0].tolist() == numbers
    flushed = any(isinstance(step, int) for step in steps)
    if policy == "balanced" and not flushed:  # it counts what it would have, had the records come like that
        seen = dict(ours.meta()["seen_of_class"])
        assert {label: count for label, count in seen.items() if count} == Counter(y.values())


@settings(deadline=None, max_examples=100)
@given(STEPS, STEPS, st.integers(1, 12), st.sampled_from(["reservoir", "balanced"]))
def test_after_corrections_it_goes_on_after_a_restart_and_names_the_rows_that_changed(
    before: list[Step], after: list[Step], slots: int, policy: PolicyName
) -> None:
    ours, restored = memory(slots, policy), memory(slots, policy)
    first = go(ours, before, seeded())
    state = {name: rows.tensor.clone() for name, rows in ours.capture().items()}
    restored.restore(json.loads(json.dumps(ours.meta())), state)
    go(ours, after, seeded(1), first)
    go(restored, after, seeded(1), first)
    assert restored.meta() == ours.meta()
    assert set(restored.remembered()) == set(ours.remembered())
    captured = ours.capture()
    for name, rows in restored.capture().items():
        assert rows.changed is not None
        state[name][rows.changed] = rows.tensor[rows.changed]
        assert torch.equal(state[name], rows.tensor)
        assert torch.equal(captured[name].tensor, rows.tensor)


def test_a_record_that_is_kept_twice_is_corrected_twice_and_forgotten_once() -> None:
    ours = memory(3, "balanced")
    ours.add(batch(7, [0]), [0], seeded())
    ours.add(batch(7, [0]), [0], seeded())
    assert corrected(ours, 7, 1)
    assert kept(ours)["memory/y"].tolist() == [1, 1]
    fill(ours, [[2], [2]], seeded(), 20)  # one of them makes room
    assert corrected(ours, 7, 3)
    assert sorted(kept(ours)["memory/y"].tolist()) == [2, 2, 3]


def test_a_class_that_was_corrected_away_is_kept_again_when_it_comes_again() -> None:
    ours = memory(2, "balanced")
    fill(ours, [[0] * 10], seeded())
    for number in kept(ours)["memory/x"][:, 0].tolist():
        assert corrected(ours, number, 1)
    fill(ours, [[0]], seeded(), 20)
    assert Counter(kept(ours)["memory/y"].tolist()) == {0: 1, 1: 1}


def held(one: ReplayMemory) -> list[tuple[int, int]]:
    """(number, class) of what is kept."""
    rows = kept(one)
    return list(zip(rows["memory/x"][:, 0].tolist(), rows["memory/y"].tolist(), strict=True))


@settings(deadline=None, max_examples=100)
@given(STREAMS, st.lists(st.integers(-1, 4), min_size=1, max_size=3), STREAMS, st.integers(1, 12), POLICY_NAMES)
def test_a_flush_drops_one_class_and_free_slots_fill_first(
    before: list[list[int]], flushed: list[int], after: list[list[int]], slots: int, policy: PolicyName
) -> None:
    ours = memory(slots, policy)
    first = fill(ours, before, seeded())
    for label in flushed:
        stored = {name: rows.tensor.clone() for name, rows in ours.capture().items()}
        were = held(ours)
        left = [one for one in were if one[1] != label]
        assert ours.flush(label) == len(were) - len(left)
        for name, rows in ours.capture().items():
            assert rows.changed is not None
            assert len(rows.changed) <= len(were) - len(left)
            stored[name][rows.changed] = rows.tensor[rows.changed]
            assert torch.equal(stored[name], rows.tensor)
        assert sorted(held(ours)) == sorted(left)
    size = ours.size
    restored = memory(slots, policy)
    restored.restore(ours.meta(), {name: rows.tensor.clone() for name, rows in ours.capture().items()})
    for one in (ours, restored):
        fill(one, after, seeded(1), first)
    assert restored.meta() == ours.meta()
    found, again = kept(ours), kept(restored)
    assert all(torch.equal(again[name], value) for name, value in found.items())
    assert ours.size == min(slots, size + sum(map(len, after)))
    numbers = found["memory/x"][:, 0]
    assert torch.equal(found["memory/x"][:, 1], -numbers)
    assert torch.equal(found["memory/origins"][:, 2], numbers.long())
    labels = [label for y in [*before, *after] for label in y]
    assert found["memory/y"].tolist() == [labels[number] for number in numbers]


def test_a_flushed_reservoir_goes_on_as_if_the_class_had_never_come() -> None:
    stream, slots, counts = [[0, 1] * 20], 8, torch.zeros(80)
    for seed in range(2000):
        ours, rng = memory(slots, "reservoir"), seeded(seed)
        first = fill(ours, stream, rng)
        ours.flush(1)
        fill(ours, [[0] * 40], rng, first)
        counts[kept(ours)["memory/x"][:, 0].long()] += 1
    shares = counts / 2000
    # Of 60 records of class 0, 8 are kept: more of those right after the flush, which filled free slots.
    assert shares[1:40:2].sum() == 0
    assert shares[60:].mean() == pytest.approx(8 / 60, abs=0.02)


def test_a_class_that_was_flushed_from_a_balanced_memory_comes_like_a_new_one() -> None:
    counts = torch.zeros(40)
    for seed in range(2000):
        ours, rng = memory(8, "balanced"), seeded(seed)
        first = fill(ours, [[0] * 20, [1] * 20], rng)
        assert ours.flush(1) == 4
        fill(ours, [[1] * 40], rng, first)
        counts[[number - first for number, label in held(ours) if label == 1]] += 1
    assert counts.sum() == 4 * 2000
    assert (counts / 2000 - 4 / 40).abs().max() < 4.5 * (0.1 * 0.9 / 2000) ** 0.5
    ours.flush(1)
    fill(ours, [[0] * 4, [1] * 8], rng, first)  # others take its place, until it comes again
    assert Counter(label for _, label in held(ours)) == {0: 4, 1: 4}


def shares(policy: PolicyName, stream: list[list[int]], slots: int, runs: int) -> Tensor:
    """How often each record of the stream is in the memory at the end, over many seeds."""
    counts = torch.zeros(sum(map(len, stream)))
    for seed in range(runs):
        ours = memory(slots, policy)
        fill(ours, stream, seeded(seed))
        counts[kept(ours)["memory/x"][:, 0].long()] += 1
    return counts / runs


def test_a_reservoir_keeps_every_record_with_equal_probability() -> None:
    found = shares("reservoir", [[0] * 10] * 4, slots=10, runs=2000)
    assert (found - 10 / 40).abs().max() < 4 * (0.25 * 0.75 / 2000) ** 0.5  # four standard deviations


def test_balanced_memory_gives_classes_equal_room_and_each_a_uniform_sample() -> None:
    stream = [[0] * 24, [1] * 12, [0, 1] * 6]  # 30 of class 0 and 18 of class 1
    labels = torch.tensor([label for y in stream for label in y])
    found = shares("balanced", stream, slots=8, runs=2000)
    for label, total in ((0, 30), (1, 18)):
        assert found[labels == label].sum() == 4
        p = 4 / total
        assert (found[labels == label] - p).abs().max() < 4.5 * (p * (1 - p) / 2000) ** 0.5


def test_a_rare_class_keeps_all_its_records() -> None:
    ours = memory(20, "balanced")
    fill(ours, [[0] * 50, [0, 1] * 3, [0] * 200], seeded())
    assert Counter(kept(ours)["memory/y"].tolist()) == {0: 17, 1: 3}


def test_draws_are_uniform_and_never_more_than_there_are() -> None:
    ours = memory(8, "reservoir")
    assert len(ours.draw(5, seeded()).y) == 0
    fill(ours, [[3, 4, 5]], seeded())
    assert len(ours.draw(5, seeded()).y) == 3
    fill(ours, [[6] * 5], seeded(), 3)
    rng = seeded()
    slots = torch.cat([ours.draw(8, rng).slots for _ in range(500)])
    assert (torch.bincount(slots) / 4000 - 1 / 8).abs().max() < 4 * (1 / 8 * 7 / 8 / 4000) ** 0.5
    drawn = ours.draw(8, seeded())
    assert torch.equal(drawn.x[:, 0], drawn.slots.to(torch.int32))  # record n is in slot n here
    assert drawn.y.tolist() == [[3, 4, 5, 6, 6, 6, 6, 6][slot] for slot in drawn.slots]


def test_a_memory_of_no_slots_keeps_nothing_and_draws_no_random_number() -> None:
    ours, rng = memory(0, "reservoir"), seeded()
    fill(ours, [[1, 2]], rng)
    assert (ours.size, len(ours.draw(4, rng).y)) == (0, 0)
    assert torch.equal(rng.get_state(), seeded().get_state())


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements that operations make; what is written in place is not made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and all(out is not value for value in args):
            shared = any(isinstance(v, Tensor) and v.data_ptr() == out.data_ptr() for v in args)
            self.elements += 0 if shared else out.numel()
        return out


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_no_operation_makes_more_numbers_in_a_larger_memory(policy: PolicyName) -> None:
    def traffic(slots: int) -> int:
        ours = memory(slots, policy)
        fill(ours, [[0, 1, 2, 3]] * (slots // 4), seeded())
        kept(ours)
        with Traffic() as counted:  # type: ignore[no-untyped-call]
            ours.add(batch(0, [1, 2] * 4), [1, 2] * 4, seeded(3))
            ours.draw(8, seeded())
        return int(counted.elements)

    small, large = traffic(40), traffic(40_000)
    assert 0 < large < 2 * small  # a thousand times the slots


def test_what_does_not_fit_is_refused() -> None:
    ours = memory(4, "balanced")
    state: dict[str, Any] = {name: rows.tensor for name, rows in memory(5, "balanced").capture().items()}
    with pytest.raises(ValueError, match="x is"):
        ours.restore(ours.meta(), state)
