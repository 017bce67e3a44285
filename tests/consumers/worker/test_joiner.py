"""Records and labels that wait for each other, against an oracle that sees all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from consumers.worker.joiner import LATE, ORPHANED, Correction, Joiner, Left
from models.learner import id_digest
from pipeline.config import LabelsConfig
from pipeline.records import Example, Label, Record

WINDOW_S = 5.0
NOTHING = np.zeros(1, np.int32)
offsets = count()


def example(id_: str, at_s: float = 0.0, label: str | None = None, partition: int = 0) -> Example:
    record = Record("records", partition, next(offsets), round(1000 * at_s), None, b"x")
    return Example(record, NOTHING, label, id_)


def answer(id_: str, label: str = "cat", at_s: float = 0.0, partition: int = 0) -> Label:
    return Label(Record("answers", partition, next(offsets), round(1000 * at_s), None, b"x"), label, id_)


class Time:
    """The stream's."""

    read_up_to_ms = float("-inf")

    def __call__(self) -> float:
        return self.read_up_to_ms


def joiner(most: int = 100, known: Iterable[str] = (), time: Time | None = None) -> Joiner:
    table = LabelsConfig(topic="answers", window_s=WINDOW_S, max_records=most)
    return Joiner(table, time or Time(), [id_digest(name) for name in known])


def told(left: Iterable[Left]) -> list[tuple[str, str]]:
    """Of each that left: what it is, and its id or reason."""
    found = []
    for one in left:
        if isinstance(one, Example):
            found.append((f"{one.id}={one.label}", "joined" if one.label_record else "had its own"))
        else:
            found.append((one.label.id, one.otherwise) if isinstance(one, Correction) else ("skipped", one.reason))
    return found


def places(left: Iterable[Left]) -> list[int]:
    """Offsets of all records that left."""
    found = []
    for one in left:
        if isinstance(one, Example):
            found += [record.offset for record in one.records]
        else:
            found.append((one.label.record if isinstance(one, Correction) else one.record).offset)
    return found


@pytest.mark.parametrize("record_first", [True, False])
@pytest.mark.parametrize("apart_s", [-5.001, -5.0, 0.0, 5.0, 5.001])
def test_a_record_and_its_label_are_joined_within_the_window(record_first: bool, apart_s: float) -> None:
    both: list[Example | Label] = [example("a", 10.0), answer("a", at_s=10.0 + apart_s)]
    ours = joiner()
    left = [found for one in (both if record_first else both[::-1]) for found in ours.add(one)]
    assert ([name for name in told(left) if name[1] == "joined"] == [("a=cat", "joined")]) == (abs(apart_s) <= 5)


def test_a_record_with_a_label_does_not_wait_and_a_label_that_came_before_it_corrects_it() -> None:
    ours = joiner()
    assert told(ours.add(example("a", label="dog"))) == [("a=dog", "had its own")]
    assert told(ours.add(answer("b"))) == []
    assert told(ours.add(example("b", label="dog"))) == [("b=dog", "had its own"), ("b", LATE)]


def test_a_label_for_what_went_on_is_a_correction_at_once() -> None:
    ours = joiner(known=["before"])
    ours.add(example("a"))
    assert told(ours.add(answer("a"))) == [("a=cat", "joined")]
    assert told([*ours.add(answer("a", "dog")), *ours.add(answer("before"))]) == [("a", LATE), ("before", LATE)]


def test_what_waits_falls_out_when_the_stream_has_gone_past_it() -> None:
    time = Time()
    ours = joiner(time=time)
    ours.add(example("a", 1.0))
    ours.add(answer("b", at_s=2.0))
    ours.add(example("c", 2.0))
    assert told(ours.fallen()) == []
    time.read_up_to_ms = 6000
    assert told(ours.fallen()) == []
    time.read_up_to_ms = 6001
    assert told(ours.fallen()) == [("skipped", "unlabelled")]
    assert told(ours.add(answer("a", at_s=5.0))) == [("a", LATE)]
    time.read_up_to_ms = 7001
    assert told(ours.fallen()) == [("skipped", "unlabelled"), ("b", ORPHANED)]


def test_of_two_under_one_id_the_later_stays() -> None:
    ours = joiner()
    ours.add(example("a"))
    assert told(ours.add(example("a"))) == [("skipped", "unlabelled")]
    ours.add(answer("b", "cat"))
    assert told(ours.add(answer("b", "dog"))) == [("skipped", "label-replaced")]
    assert told([*ours.add(answer("a")), *ours.add(example("b"))]) == [("a=cat", "joined"), ("b=dog", "joined")]


def test_the_oldest_falls_out_where_too_much_waits() -> None:
    ours = joiner(most=2)
    assert told(ours.add(example("a")) + ours.add(example("b")) + ours.add(answer("x")) + ours.add(answer("y"))) == []
    assert told(ours.add(example("c"))) == [("skipped", "unlabelled")]
    assert told(ours.add(answer("z"))) == [("x", ORPHANED)]
    assert told(ours.add(answer("a"))) == [("a", LATE)]


Stream = list[list[Example | Label]]  # partitions, each in its order
TIMES = st.lists(st.integers(0, 40), max_size=12).map(sorted)


@st.composite
def streams(draw: st.DrawFn, unique: bool) -> Stream:
    """Two partitions of records and two of labels, their timestamps rising."""
    ids = iter([str(n) for n in range(24)])
    found: Stream = []
    for partition in (0, 1):
        times = draw(TIMES)
        names = [next(ids) if unique else draw(st.sampled_from("abcd")) for _ in times]
        own = [None if unique else draw(st.sampled_from([None, "own"])) for _ in times]
        found.append([example(*row, partition) for row in zip(names, times, own, strict=True)])
    labelled = draw(st.permutations([str(n) for n in range(24)]))
    for partition in (0, 1):
        times = draw(TIMES)
        names = [labelled.pop() if unique else draw(st.sampled_from("abcde")) for _ in times]
        found.append([answer(name, "cat", at, partition) for name, at in zip(names, times, strict=True)])
    return found


def read(ours: Joiner, time: Time, stream: Stream, data: st.DataObject) -> list[Left]:
    """Everything that leaves when the stream is read in chunks of one partition after the other, in whatever order."""
    left: list[Left] = []
    ahead = [list(partition) for partition in stream]
    while any(ahead):
        number = data.draw(st.sampled_from([n for n, partition in enumerate(ahead) if partition]))
        size = data.draw(st.integers(1, len(ahead[number])))
        chunk, ahead[number] = ahead[number][:size], ahead[number][size:]
        for one in chunk:
            left += ours.add(one)
        # All up to the least timestamp that is still to come has been read, and how would a reader know more?
        time.read_up_to_ms = min((one[0].record.timestamp_ms for one in ahead if one), default=40_000)
        left += ours.fallen()
    return left


@settings(deadline=None, max_examples=200)
@given(streams(unique=True), st.data())
def test_in_whatever_order_it_is_read_the_same_are_joined(stream: Stream, data: st.DataObject) -> None:
    every = [one for partition in stream for one in partition]
    records = {one.id: one for one in every if isinstance(one, Example)}
    labels = {one.id: one for one in every if isinstance(one, Label)}
    shall = {
        name
        for name in records.keys() & labels.keys()
        if abs(records[name].record.timestamp_ms - labels[name].record.timestamp_ms) <= 1000 * WINDOW_S
    }
    time = Time()
    left = read(joiner(time=time), time, stream, data)
    assert {one.id for one in left if isinstance(one, Example)} == shall
    late = {one.label.id for one in left if isinstance(one, Correction) and one.otherwise == LATE}
    assert late <= records.keys() - shall


@settings(deadline=None, max_examples=200)
@given(streams(unique=False), st.integers(1, 4), st.data())
def test_each_leaves_once_and_what_waits_is_bounded(stream: Stream, most: int, data: st.DataObject) -> None:
    time = Time()
    ours = joiner(most, time=time)
    left = places(read(ours, time, stream, data))
    waiting = [one.record.offset for kept in (ours._records, ours._labels) for one in kept.values()]
    assert sorted(left + waiting) == sorted(one.record.offset for partition in stream for one in partition)
    assert len(ours._records) <= most
    assert len(ours._labels) <= most
    assert len(ours._gone) <= most
