"""Which records made a version: what it learned since its parent, in order, and what became of the rest.

Offsets are kept as runs `[p, skip, count]`: `count` consecutive offsets of partition `partitions[p]`, which
begin `skip` after the end of the partition's run before, in the same list, or after 0 where there is none. So
`[[0, 700, 2], [1, 30, 1], [0, 1, 1]]` is 0:700, 0:701, 1:30, 0:703. An update that took its records from two
partitions is two runs, whatever the batch size, and numbers stay small, however long the log is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.records import Partition, Place
from pipeline.store.changes import Change

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what is stored is no larger: JSON has numbers of any size
Count = Annotated[int, Field(ge=1, lt=2**63)]
Run = tuple[int, Int64, Count]  # index into `partitions`, skip, count

LEARNED = "learned"
MAX_RECORDS = 1 << 27  # of one version: a run of a few bytes can name any number of them
MAX_WAITING = 1 << 23  # that were read and not learned: all are in memory at one time
MAX_BATCH = 1 << 23  # of one update


class Runs(BaseModel):
    """Records in order, as runs."""

    model_config = ConfigDict(frozen=True)

    partitions: tuple[Partition, ...] = ()
    runs: tuple[Run, ...] = ()

    @model_validator(mode="after")
    def _bounded(self) -> Runs:
        _check(self.runs, len(self.partitions), MAX_WAITING)
        return self

    @classmethod
    def of(cls, records: Iterable[Place]) -> Runs:
        """These records, in this order."""
        numbers: dict[Partition, int] = {}
        ends: dict[int, int] = {}
        runs: list[Run] = []
        for partition, offset in records:
            _append(runs, ends, numbers.setdefault(partition, len(numbers)), offset)
        return cls.model_construct(partitions=tuple(numbers), runs=tuple(runs))

    def __iter__(self) -> Iterator[Place]:  # type: ignore[override]  # not its fields
        return (Place(at, offset) for at, offsets in _ranges(self.partitions, self.runs, {}) for offset in offsets)

    def __contains__(self, place: Place) -> bool:
        partition, offset = place
        return any(at == partition and offset in offsets for at, offsets in _ranges(self.partitions, self.runs, {}))


class Lineage(BaseModel):
    """One version's changes since its parent. As JSON it is part of the public format."""

    model_config = ConfigDict(frozen=True)

    partitions: tuple[Partition, ...] = ()
    updates: tuple[tuple[Run, ...], ...] = ()  # one entry an update, in the order in which they were made
    outcomes: dict[str, tuple[Run, ...]] = {}  # what was not learned: "skipped/tombstone", "dead-lettered/label", …
    changes: tuple[Change, ...] = ()  # what else happened, in order

    @model_validator(mode="after")
    def _bounded(self) -> Lineage:
        for runs in self.updates:
            _check(runs, len(self.partitions), MAX_BATCH)
        _check([run for runs in (*self.updates, *self.outcomes.values()) for run in runs], len(self.partitions))
        return self

    def learned(self) -> Iterator[list[Place]]:
        """The updates in order, each as its records in order."""
        ends: dict[int, int] = {}
        for runs in self.updates:
            yield list(self._records(runs, ends))

    def others(self) -> Iterator[tuple[str, Place]]:
        """Every record that was read and not learned, with its outcome."""
        for name, runs in self.outcomes.items():
            for place in self._records(runs, {}):
                yield name, place

    def outcome_of(self, place: Place) -> str | None:
        """What became of a record: "learned", another outcome, or None where this version did not read it."""
        partition, offset = place
        everything = [(LEARNED, chain.from_iterable(self.updates)), *self.outcomes.items()]
        for name, runs in everything:
            if any(at == partition and offset in offsets for at, offsets in _ranges(self.partitions, runs, {})):
                return name
        return None

    def _records(self, runs: Iterable[Run], ends: dict[int, int]) -> Iterator[Place]:
        for partition, offsets in _ranges(self.partitions, runs, ends):
            for offset in offsets:
                yield Place(partition, offset)


class LineageBuilder:
    """Collects what happens between two commits; `learned` costs about 10 µs for a batch of 64."""

    def __init__(self) -> None:
        self._clear()

    def learned(self, origins: Iterable[Place]) -> None:
        """One update on these records, in order."""
        runs: list[Run] = []
        for partition, offset in origins:
            _append(runs, self._ends[LEARNED], self._number(partition), offset)
        self._updates.append(tuple(runs))

    def outcome(self, name: str, place: Place) -> None:
        """A record that was read and not learned; `name` is kind/reason."""
        _append(self._outcomes[name], self._ends[name], self._number(place.partition), place.offset)

    def count(self, name: str) -> int:
        """Records with this outcome."""
        return sum(count for *_, count in self._outcomes.get(name, ()))

    def change(self, change: Change) -> None:
        """Something else that happened: an entry for each kind that has content."""
        self._changes += [cast("Change", {kind: what}) for kind, what in change.items() if what]

    @property
    def dirty(self) -> bool:
        """Whether there is anything to build."""
        return bool(self._updates or self._outcomes or self._changes)

    def build(self) -> Lineage:
        """Returns what was collected, and starts anew."""
        lineage = Lineage.model_construct(
            partitions=tuple(self._numbers),
            updates=tuple(self._updates),
            outcomes={name: tuple(runs) for name, runs in self._outcomes.items()},
            changes=tuple(self._changes),
        )
        self._clear()
        return lineage

    def _clear(self) -> None:
        self._numbers: dict[Partition, int] = {}
        self._updates: list[tuple[Run, ...]] = []
        self._outcomes: defaultdict[str, list[Run]] = defaultdict(list)
        self._ends: defaultdict[str, dict[int, int]] = defaultdict(dict)  # of the last runs, by outcome
        self._changes: list[Change] = []

    def _number(self, partition: Partition) -> int:
        return self._numbers.setdefault(partition, len(self._numbers))


def _check(runs: Sequence[Run], partitions: int, most: int = MAX_RECORDS) -> None:
    """
    Raises:
        ValueError: they name a partition that is not there, or more records than any version has.
    """
    if any(not 0 <= p < partitions for p, _, _ in runs):
        raise ValueError("a run is of a partition that is not listed")
    if (records := sum(count for _, _, count in runs)) > most:
        raise ValueError(f"{records} records are more than {most}")


def _append(runs: list[Run], ends: dict[int, int], number: int, offset: int) -> None:
    """Lengthens the last run by one record of partition `number` where it goes on, else begins a new one."""
    skip = offset - ends.get(number, 0)
    ends[number] = offset + 1
    if skip == 0 and runs and runs[-1][0] == number:
        _, skip, count = runs[-1]
        runs[-1] = (number, skip, count + 1)
    else:
        runs.append((number, skip, 1))


def _ranges(
    partitions: tuple[Partition, ...], runs: Iterable[Run], ends: dict[int, int]
) -> Iterator[tuple[Partition, range]]:
    """The runs as offsets; `ends` is where each partition's last run ended, and moves on."""
    for p, skip, count in runs:
        first = ends.get(p, 0) + skip
        ends[p] = first + count
        yield partitions[p], range(first, first + count)
