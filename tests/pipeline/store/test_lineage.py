"""Lineage: every offset comes back, in order, and a million updates stay small."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from pipeline.log.offsets import Partition
from pipeline.store.lineage import Lineage, LineageBuilder, Runs

PARTITIONS = [Partition("digits", 0), Partition("digits", 1), Partition("texts", 0)]
NAMES = ["skipped/tombstone", "dead-lettered/undecodable"]

# Mostly consecutive offsets, as in a log, with gaps and changes of partition.
steps = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2]), st.sampled_from([1, 1, 1, 1, 2, 1000])), max_size=40)


def origins(walk: list[tuple[int, int]], ends: list[int]) -> list[tuple[Partition, int]]:
    """Records in the order of a walk over the partitions; `ends` are the next offsets, and move on."""
    found = []
    for number, step in walk:
        ends[number] += step
        found.append((PARTITIONS[number], ends[number]))
    return found


@given(st.lists(st.tuples(steps, st.sampled_from([None, *NAMES])), max_size=12))
def test_every_offset_comes_back_in_order(chunks: list[tuple[list[tuple[int, int]], str | None]]) -> None:
    builder, ends = LineageBuilder(), [0, 0, 0]
    updates: list[list[tuple[Partition, int]]] = []
    outcomes: dict[tuple[Partition, int], str] = {}
    for walk, name in chunks:
        records = origins(walk, ends)
        if name is None:
            builder.learned(records)
            updates.append(records)
        else:
            for partition, offset in records:
                builder.outcome(name, partition, offset)
        outcomes.update(dict.fromkeys(records, name or "learned"))
    built = builder.build()
    lineage = Lineage.model_validate_json(built.model_dump_json())
    assert lineage == built
    assert list(lineage.learned()) == updates
    others = {(partition, offset): name for name, partition, offset in lineage.others()}
    assert others == {record: name for record, name in outcomes.items() if name != "learned"}
    for (partition, offset), name in outcomes.items():
        assert lineage.outcome_of(partition, offset) == name
    for number, end in enumerate(ends):
        assert lineage.outcome_of(PARTITIONS[number], end + 1) is None


def test_a_builder_starts_anew() -> None:
    builder = LineageBuilder()
    builder.learned([(PARTITIONS[0], 5)])
    builder.change({"drift": {"update": 1}})
    assert builder.build().changes == ({"drift": {"update": 1}},)
    assert builder.build() == Lineage()


def test_an_unknown_partition_has_no_outcome() -> None:
    builder = LineageBuilder()
    builder.learned([(PARTITIONS[0], 5)])
    assert builder.build().outcome_of(PARTITIONS[1], 5) is None


def test_the_public_format() -> None:
    builder = LineageBuilder()
    builder.learned([(PARTITIONS[0], 7), (PARTITIONS[0], 8), (PARTITIONS[1], 3), (PARTITIONS[0], 10)])
    builder.outcome("skipped/unlabelled", PARTITIONS[0], 9)
    builder.change({"config": {"seed": [0, 1]}})
    assert builder.build().model_dump_json() == (
        '{"partitions":[["digits",0],["digits",1]],"updates":[[[0,7,2],[1,3,1],[0,1,1]]],'
        '"outcomes":{"skipped/unlabelled":[[0,9,1]]},"changes":[{"config":{"seed":[0,1]}}]}'
    )


@pytest.mark.parametrize(("partitions", "records"), [(1, 64), (2, 32), (6, 10)])
def test_a_million_updates_stay_below_100_mb(partitions: int, records: int) -> None:
    builder = LineageBuilder()
    for update in range(1000):
        first = 10**12 + update * (records + 1)  # a marker of a transaction between two batches
        builder.learned(
            (Partition("digits", number), first + at) for number in range(partitions) for at in range(records)
        )
    assert len(builder.build().model_dump_json()) * 1000 < 100e6


HOSTILE = {
    "more records than any batch": {"updates": [[[0, 0, 10**12]]]},
    "many batches": {"updates": [[[0, 0, 1 << 20]]] * 200},
    "more that was not learned": {"outcomes": {"skipped/tombstone": [[0, 0, 10**12]]}},
    "a number beyond all": {"outcomes": {"skipped/tombstone": [[0, 10**30, 1]]}},
    "less than nothing": {"updates": [[[0, 5, -5]]]},
    "nothing": {"updates": [[[0, 5, 0]]]},
    "a partition that is not there": {"updates": [[[1, 0, 1]]]},
    "a partition before the first": {"updates": [[[-1, 0, 1]]]},
}


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE)
def test_a_stored_lineage_names_no_more_than_a_version_can_have(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Lineage.model_validate_json(json.dumps({"partitions": [["digits", 0]], **fields}))


def test_what_waits_is_bounded_too() -> None:
    with pytest.raises(ValidationError):
        Runs.model_validate_json('{"partitions": [["digits", 0]], "runs": [[0, 0, 1000000000000]]}')
