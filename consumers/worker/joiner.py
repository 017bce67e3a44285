"""Labels that are known later than their records: each waits for the other, in bounded memory.

A record and a label of the same id are joined if their timestamps are at most `window_s` apart, whichever is read
first. What can find no partner any more *falls out*: the record unlearned, the label as a correction, in case the
replay memory remembers a record of its id. Time is the stream's own, so that a worker that catches up joins what a live
one would have: what waits falls out when everything up to `window_s` after it has been read, or when too much waits.

What comes late, such as pairs that a device has kept, waits as long as what it comes among: for so long after the
newest timestamp before it. A timestamp that is ahead of this machine's clock counts as now.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import TypeVar

from models.learner import id_digest
from pipeline.config import LabelsConfig
from pipeline.records import Example, Label, Partition, Place, Record, Skipped

LATE, ORPHANED = "skipped/label-late", "skipped/label-orphaned"  # outcomes of labels


@dataclass(frozen=True, slots=True)
class Correction:
    """A label for a record that went on without it."""

    label: Label
    otherwise: str = LATE  # its outcome if no such record is remembered


Left = Example | Skipped | Correction
T = TypeVar("T", Example, Label)


@dataclass(eq=False)
class Joiner:
    """Takes records and labels as they are read, in order, and returns those that wait no longer.

    Ids name one record each: of two that wait under the same one, records or labels, the later stays.

    Args:
        learned: digests of ids of records that went on already. Of the newest ids, as many as `max_records` are kept:
            a label for one of them is a correction at once, any other waits for its record first.
    """

    settings: LabelsConfig
    read_up_to_ms: Callable[[], float]  # tells the stream's time, in ms since the epoch: all up to it has been read
    learned: InitVar[Collection[bytes]] = ()
    _: KW_ONLY
    start_ms: InitVar[float] = -math.inf  # the stream's time so far; what waited before a restart waits on
    clock: Callable[[], float] = time.time

    def __post_init__(self, learned: Collection[bytes], start_ms: float) -> None:
        self._stream_ms = start_ms  # when what had left was last looked for
        self._newest_ms: dict[Partition, float] = {}
        self._since_ms: dict[Place, float] = {}  # of what waits, the time that it counts from
        self._window_ms = self.settings.window_s * 1000
        self._most = self.settings.max_records
        self._records: OrderedDict[str, Example] = OrderedDict()  # by id, in the order in which they were read
        self._labels: OrderedDict[str, Label] = OrderedDict()
        self._gone: OrderedDict[bytes, None] = OrderedDict.fromkeys(learned)

    def add(self, one: Example | Label) -> list[Left]:
        """What leaves now that this one has been read."""
        return self._record(one) if isinstance(one, Example) else self._label(one)

    def fallen(self) -> list[Left]:
        """What falls out by now."""
        self._stream_ms = max(self._stream_ms, self.read_up_to_ms())
        left: list[Left] = []
        while self._records and self._is_past(self._records):
            left.append(self._drop_record())
        while self._labels and self._is_past(self._labels):
            left.append(self._drop_label())
        return left

    def _is_past(self, waiting: Mapping[str, Example | Label]) -> bool:
        """Whether the oldest of these has waited for as long as it may."""
        oldest = next(iter(waiting.values())).record.place
        return self._since_ms[oldest] + self._window_ms < self._stream_ms

    def _wait(self, waiting: OrderedDict[str, T], one: T) -> T | None:
        """Has one wait; gives the one that waited under its id."""
        before = self._end(waiting, one.id)
        place = partition, _ = one.record.place
        bounded_ms = min(one.record.timestamp_ms, 1000 * self.clock())
        newest_ms = max(bounded_ms, self._newest_ms.get(partition, self._stream_ms), self._stream_ms)
        self._newest_ms[partition] = self._since_ms[place] = newest_ms
        waiting[one.id] = one
        return before

    def _end(self, waiting: OrderedDict[str, T], id_: str) -> T | None:
        one = waiting.pop(id_, None)
        if one is not None:
            del self._since_ms[one.record.place]
        return one

    def _record(self, example: Example) -> list[Left]:
        label = self._labels.get(example.id)
        if label is not None and (example.label is not None or self._are_near(example.record, label.record)):
            self._end(self._labels, label.id)
        if example.label is not None:
            return [self._go(example), *([Correction(label)] if label else [])]
        if label is not None and self._are_near(example.record, label.record):
            return [self._go(_joined(example, label))]
        before = self._wait(self._records, example)
        left: list[Left] = [Skipped(before.record, "unlabelled")] if before else []
        return [*left, self._drop_record()] if len(self._records) > self._most else left

    def _label(self, label: Label) -> list[Left]:
        example = self._records.get(label.id)
        if example is not None and self._are_near(example.record, label.record):
            self._end(self._records, label.id)
            return [self._go(_joined(example, label))]
        if example is not None or id_digest(label.id) in self._gone:
            return [Correction(label)]
        before = self._wait(self._labels, label)
        left: list[Left] = [Skipped(before.record, "label-replaced")] if before else []
        return [*left, self._drop_label()] if len(self._labels) > self._most else left

    def _are_near(self, one: Record, other: Record) -> bool:
        return abs(one.timestamp_ms - other.timestamp_ms) <= self._window_ms

    def _drop_record(self) -> Skipped:
        example = self._records[next(iter(self._records))]
        self._end(self._records, example.id)
        return Skipped(self._go(example).record, "unlabelled")

    def _drop_label(self) -> Correction:
        label = self._labels[next(iter(self._labels))]
        self._end(self._labels, label.id)
        return Correction(label, ORPHANED)

    def _go(self, example: Example) -> Example:
        id_ = id_digest(example.id)
        self._gone.pop(id_, None)
        self._gone[id_] = None
        while len(self._gone) > self._most:
            self._gone.popitem(last=False)
        return example


def _joined(example: Example, label: Label) -> Example:
    return replace(example, label=label.label, label_record=label.record)
