"""Streams whose classes come in turn, or whose pictures turn, without a word about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.learners.data import Set, tiles_apart
from benchmarks.learners.texts import news

#: what is tried out is judged on these, the last so many of the training set, at most a fifth: they are never learned
TUNING = 5000


@dataclass(frozen=True, slots=True)
class Stream:
    """Records in the order in which they come; `parts` are the classes of each stretch and where it ends."""

    records: Set
    parts: Sequence[tuple[Sequence[str], int]]


def split(records: Callable[..., Set], data: Path, tuning: bool, validation: str | None = None) -> tuple[Set, Set]:
    """What is learned, and what it is judged on; in tuning that is the part `validation`, where a set has one."""
    train = records(data)
    if tuning and validation:
        return train, records(data, validation)
    kept = range(max(len(train) - TUNING, 4 * len(train) // 5))
    return (train.take(kept), train.take(range(kept.stop, len(train)))) if tuning else (train, records(data, "test"))


def at_most(count: int, records: Callable[..., Set]) -> Callable[..., Set]:
    """The same sets, of which no more than so many records are learned."""

    def first(data: Path, part: str = "train") -> Set:
        found = records(data, part)
        return found.take(range(min(count, len(found)))) if part == "train" else found

    return first


def tiles_mixed(data: Path, part: str = "train") -> Set:
    """Tiles as `tiles_apart` splits them, in random order, so that the last ones are of all categories."""
    return tiles_apart(data, part).shuffled(0)


def news_mixed(data: Path, part: str = "train") -> Set:
    """News in random order: their file is sorted by class."""
    return news(data, part).shuffled(0)


def sorted_by_class(records: Set, groups: Sequence[Sequence[str]], seed: int) -> Stream:
    """The records of the first group's classes in random order, then those of the second, …"""
    group_of = {label: number for number, group in enumerate(groups) for label in group}
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [[row for row in order if group_of[records.labels[row]] == number] for number in range(len(groups))]
    ends = torch.tensor([len(each) for each in rows]).cumsum(0).tolist()
    return Stream(records.take([row for each in rows for row in each]), list(zip(groups, ends, strict=True)))


def pairs(labels: Sequence[str], size: int = 2) -> list[list[str]]:
    """The class names in order, so many in each group."""
    names = sorted(set(labels))
    return [names[start : start + size] for start in range(0, len(names), size)]


def turned(records: Set) -> Set:
    """The same pictures by 90° to the left, light for dark."""
    return Set(255 - records.x.rot90(1, (2, 3)), records.labels)


def turning(records: Set, seed: int) -> Set:
    """All records in random order, from the middle on turned."""
    stream, start = records.shuffled(seed), middle(len(records))
    then = turned(stream.take(range(start, len(stream))))
    return Set(torch.cat([stream.x[:start], then.x]), stream.labels)


def middle(count: int) -> int:
    """Of so many records, a multiple of 1,000."""
    return count // 2000 * 1000


def domains(data: Path) -> list[list[str]]:
    """CLINC150's intents, fifteen in each of ten domains, which come in turn."""
    found: dict[str, list[str]] = json.loads((data / "clinc150" / "domains.json").read_text("utf-8"))
    return list(found.values())
