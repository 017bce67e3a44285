"""Labels that are known later than their records: each waits for the other, in bounded memory.

A record and a label of the same id are joined if their timestamps are at most `window_s` apart, whichever is read
first. What can find no partner any more *falls out*: the record unlearned, the label as a correction, in case the
replay memory remembers a record of its id. Time is the stream's own, so that a worker that catches up joins what a live
one would have: what waits falls out when everything up to `window_s` after it has been read, or when too much waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from models.learner import id_digest
from pipeline.config import LabelsConfig
from pipeline.records import Example, Label, Record, Skipped

LATE, ORPHANED = "skipped/label-late", "skipped/label-orphaned"  # outcomes of labels


@dataclass(frozen=True, slots=True)
class Correction:
    """A label for a record that went on without it."""

    label: Label
    otherwise: str = LATE  # its outcome if no such record is remembered


Left = Example | Skipped | Correction


class Joiner:
    """Takes records and labels in the order in which they are read, and gives what does not wait any more.

    Ids name one record each: of two that wait under the same one, records or labels, the later stays.

    Args:
        read_up_to_ms: tells the stream's time, in ms since the epoch: all up to it has been read.
        known: digests of ids of records that went on already. Of the newest ids, as many as `max_records` are known:
            a label for one of them is a correction at once, any other waits for its record first.
    """

    def __init__(
        self, settings: LabelsConfig, read_up_to_ms: Callable[[], float], known: Collection[bytes] = ()
    ) -> None:
        self._read_up_to_ms = read_up_to_ms
        self._window_ms = settings.window_s * 1000
        self._most = settings.max_records
        self._records: OrderedDict[str, Example] = OrderedDict()  # by id, in the order in which they were read
        self._labels: OrderedDict[str, Label] = OrderedDict()
        self._gone: OrderedDict[bytes, None] = OrderedDict.fromkeys(known)

    def add(self, one: Example | Label) -> list[Left]:
        """What leaves now that this one has been read."""
        return self._record(one) if isinstance(one, Example) else self._label(one)

    def fallen(self) -> list[Left]:
        """What falls out by now."""
        horizon_ms = self._read_up_to_ms() - self._window_ms
        left: list[Left] = []
        while self._records and _oldest_ms(self._records) < horizon_ms:
            left.append(self._drop_record())
        while self._labels and _oldest_ms(self._labels) < horizon_ms:
            left.append(self._drop_label())
        return left

    def _record(self, example: Example) -> list[Left]:
        label = self._labels.get(example.id)
        if example.label is not None:
            early = [Correction(self._labels.pop(example.id))] if label else []
            return [self._go(example), *early]
        if label is not None and self._are_near(example.record, label.record):
            return [self._go(_joined(example, self._labels.pop(example.id)))]
        before = self._records.pop(example.id, None)
        self._records[example.id] = example
        left: list[Left] = [Skipped(before.record, "unlabelled")] if before else []
        return [*left, self._drop_record()] if len(self._records) > self._most else left

    def _label(self, label: Label) -> list[Left]:
        example = self._records.get(label.id)
        if example is not None and self._are_near(example.record, label.record):
            return [self._go(_joined(self._records.pop(label.id), label))]
        if example is not None or id_digest(label.id) in self._gone:
            return [Correction(label)]
        before = self._labels.pop(label.id, None)
        self._labels[label.id] = label
        left: list[Left] = [Skipped(before.record, "label-replaced")] if before else []
        return [*left, self._drop_label()] if len(self._labels) > self._most else left

    def _are_near(self, one: Record, other: Record) -> bool:
        return abs(one.timestamp_ms - other.timestamp_ms) <= self._window_ms

    def _drop_record(self) -> Skipped:
        _, example = self._records.popitem(last=False)
        return Skipped(self._go(example).record, "unlabelled")

    def _drop_label(self) -> Correction:
        _, label = self._labels.popitem(last=False)
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


def _oldest_ms(waiting: Mapping[str, Example | Label]) -> int:
    return next(iter(waiting.values())).record.timestamp_ms
