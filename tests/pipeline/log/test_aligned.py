"""Two readers that keep step, on readers that are pretended: what they hold, and what the brokers tell of it."""

from __future__ import annotations

from statistics import median_low
from typing import Any, cast

from hypothesis import given, settings, strategies as st

from pipeline.log.aligned import PATIENCE_S, STEADY, AlignedReader
from pipeline.log.reader import Polled, Reader
from pipeline.records import Partition, Record

RECORDS, LABELS = Partition("records", 0), Partition("labels", 0)


class Pretended:
    """A reader of one partition that gives so many records at a time, as far as they are published."""

    reachable = True

    def __init__(self, at: Partition, times_ms: list[int], chunk: int = 1) -> None:
        self.at, self.times_ms, self.chunk = at, times_ms, chunk
        self.read = 0
        self.begins = [Polled(positions={at: 0})]
        self.held_back = False  # counted by the broker, and not given
        self.last_number: str | None = None
        self.topic_ids = {at.topic: f"id of {at.topic}"}
        self.jumps = [{"topic": at.topic}]
        self.done: list[Any] = []

    def poll(self, timeout_s: float) -> Polled | None:
        if self.begins:
            return self.begins.pop()
        if self.held_back or not self.lag()[self.at]:
            return None
        first, self.read = self.read, min(self.read + self.chunk, len(self.times_ms))
        records = [Record(*self.at, offset, self.times_ms[offset], None, b"") for offset in range(first, self.read)]
        return Polled(records, {self.at: self.read})

    def lag(self) -> dict[Partition, int]:
        return {self.at: len(self.times_ms) - self.read}

    def firsts(self) -> dict[Partition, int]:
        return {self.at: 0}

    def commit(self, positions: dict[Partition, int]) -> None:
        self.done.append(positions)

    def commit_number(self, text: str, positions: dict[Partition, int], timeout_s: float, *, may_doubt: bool) -> None:
        self.done.append((text, positions, timeout_s))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def aligned(records: Pretended, labels: Pretended, clock: Clock | None = None) -> AlignedReader:
    return AlignedReader(cast(Reader, records), cast(Reader, labels), clock or Clock())


TIMES = st.lists(st.integers(0, 50), max_size=20).map(sorted)


@settings(deadline=None)
@given(TIMES, TIMES, st.integers(1, 5), st.integers(1, 5))
def test_neither_runs_ahead_and_nothing_is_left(ours: list[int], theirs: list[int], many: int, more: int) -> None:
    records, labels = Pretended(RECORDS, ours, many), Pretended(LABELS, theirs, more)
    reader = aligned(records, labels)
    begins = reader.poll(0)
    assert begins is not None
    assert (begins.records, begins.positions) == ([], {RECORDS: 0, LABELS: 0})
    newest: dict[Partition, float] = {RECORDS: -1, LABELS: -1}
    given: dict[Partition, list[float]] = {RECORDS: [], LABELS: []}
    while any(reader.lag().values()):
        left = reader.lag()
        polled = reader.poll(0)
        assert polled is not None
        [at] = polled.positions
        other = LABELS if at == RECORDS else RECORDS
        middle = {at: median_low(times[-STEADY:]) if times else -1 for at, times in given.items()}
        assert not left[other] or middle[at] <= middle[other]
        given[at] += [record.timestamp_ms for record in polled.records]
        newest[at] = polled.records[-1].timestamp_ms
        to_come = [one.times_ms[one.read] for one in (records, labels) if one.read < len(one.times_ms)]
        assert reader.read_up_to_ms() <= min([*to_come, max(newest.values())])
    assert reader.poll(0) is None
    assert reader.read_up_to_ms() == max([*ours, *theirs], default=float("-inf"))


def test_one_that_gives_nothing_is_waited_for_and_not_for_ever() -> None:
    records, labels, clock = Pretended(RECORDS, [10, 20, 30]), Pretended(LABELS, [15, 25]), Clock()
    reader = aligned(records, labels, clock)
    reader.poll(0)
    labels.held_back = True
    first = [reader.poll(0), reader.poll(0)]
    assert first == [None, None]
    clock.now += PATIENCE_S
    polled = reader.poll(0)
    assert polled is not None
    assert [record.topic for record in polled.records] == ["records"]
    assert reader.read_up_to_ms() == float("-inf")
    labels.held_back = False
    polled = reader.poll(0)
    assert polled is not None
    assert [record.topic for record in polled.records] == ["labels"]


def test_it_is_one_reader_to_a_worker() -> None:
    records, labels = Pretended(RECORDS, []), Pretended(LABELS, [])
    reader = aligned(records, labels)
    assert reader.last_number is None
    records.last_number, labels.last_number = "9", "10"
    assert reader.last_number == "10"
    assert reader.reachable
    labels.reachable = False
    assert not reader.reachable
    assert reader.topic_ids == {"records": "id of records", "labels": "id of labels"}
    assert [jump["topic"] for jump in reader.jumps] == ["labels", "records"]
    assert reader.firsts() == {RECORDS: 0, LABELS: 0}
    reader.commit({RECORDS: 3})
    reader.commit_number("11", {LABELS: 4}, 2.0)
    assert records.done == labels.done == [{RECORDS: 3}, ("11", {LABELS: 4}, 2.0)]
