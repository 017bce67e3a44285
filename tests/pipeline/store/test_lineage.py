"""Lineage: every offset comes back, in order, and a million updates stay small."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError
from typing_extensions import get_type_hints, is_typeddict

from pipeline.records import Partition, Place
from pipeline.store.changes import MADE_AGAIN, Change
from pipeline.store.lineage import Lineage, LineageBuilder, Runs

FORMATS = Path(__file__).resolve().parents[3] / "docs" / "formats.md"
PARTITIONS = [Partition("digits", 0), Partition("digits", 1), Partition("texts", 0)]
NAMES = ["skipped/tombstone", "dead-lettered/undecodable"]

# Mostly consecutive offsets, as in a log, with gaps and changes of partition.
steps = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2]), st.sampled_from([1, 1, 1, 1, 2, 1000])), max_size=40)


def origins(walk: list[tuple[int, int]], ends: list[int]) -> list[Place]:
    """Records in the order of a walk over the partitions; `ends` are the next offsets, and move on."""
    found = []
    for number, step in walk:
        ends[number] += step
        found.append(Place(PARTITIONS[number], ends[number]))
    return found


@given(st.lists(st.tuples(steps, st.sampled_from([None, *NAMES])), max_size=12))
def test_every_offset_comes_back_in_order(chunks: list[tuple[list[tuple[int, int]], str | None]]) -> None:
    builder, ends = LineageBuilder(), [0, 0, 0]
    updates: list[list[Place]] = []
    outcomes: dict[Place, str] = {}
    for walk, name in chunks:
        records = origins(walk, ends)
        if name is None:
            builder.learned(records)
            updates.append(records)
        else:
            for place in records:
                builder.outcome(name, place)
        outcomes.update(dict.fromkeys(records, name or "learned"))
    built = builder.build()
    lineage = Lineage.model_validate_json(built.model_dump_json())
    assert lineage == built
    assert list(lineage.learned()) == updates
    others = {place: name for name, place in lineage.others()}
    assert others == {record: name for record, name in outcomes.items() if name != "learned"}
    for place, name in outcomes.items():
        assert lineage.outcome_of(place) == name
    for number, end in enumerate(ends):
        assert lineage.outcome_of(Place(PARTITIONS[number], end + 1)) is None


def test_a_builder_starts_anew() -> None:
    builder = LineageBuilder()
    builder.learned([Place(PARTITIONS[0], 5)])
    builder.change({"drift": {"update": 1}})
    assert builder.build().changes == ({"drift": {"update": 1}},)
    assert builder.build() == Lineage()


def test_an_unknown_partition_has_no_outcome() -> None:
    builder = LineageBuilder()
    builder.learned([Place(PARTITIONS[0], 5)])
    assert builder.build().outcome_of(Place(PARTITIONS[1], 5)) is None


def test_the_public_format() -> None:
    builder = LineageBuilder()
    builder.learned([Place(PARTITIONS[n], offset) for n, offset in [(0, 7), (0, 8), (1, 3), (0, 10)]])
    builder.outcome("skipped/unlabelled", Place(PARTITIONS[0], 9))
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
            Place(Partition("digits", number), first + at) for number in range(partitions) for at in range(records)
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


# --- changes ---


def test_the_page_names_every_kind_of_change_and_its_fields() -> None:
    section = FORMATS.read_text("utf-8").split("| kind | value |")[1].split("\n\n")[0]
    named = dict(re.findall(r"^\| `(\w+)` \| `\{(.*?)\}` \|", section, re.M))
    kinds = get_type_hints(Change)
    assert named.keys() == kinds.keys()
    of_fields = {kind: shape for kind, shape in kinds.items() if is_typeddict(shape)}
    assert len(of_fields) == len(kinds) - len(["config", "environment", "sources"])
    for kind, shape in of_fields.items():
        assert sorted(named[kind].split(", ")) == sorted(get_type_hints(shape)), kind


def test_kinds_and_fields_of_a_later_headrace_are_read_and_kept() -> None:
    changes = [{"moved": {"to": "a bucket"}}, {"drift": {"update": 3, "reaction": "flush", "detector": "new"}}]
    read = Lineage.model_validate_json(json.dumps({"changes": changes}))
    assert list(read.changes) == changes
    assert json.loads(read.model_dump_json())["changes"] == changes
    builder = LineageBuilder()
    for change in read.changes:
        builder.change(change)
    assert builder.build().changes == read.changes


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"seed": 3}},
        {"environment": {"threads": [1]}},
        {"held_out": {"records": 3, "before": "digits"}},
        {"jump": {"from": 3, "to": 4}},
        {"jump": {"topic": "digits", "partition": 0, "from": 3, "to": 4, "ids": "one"}},
        {"sources": ["a"]},
        "drift",
    ],
    ids=str,
)
def test_a_damaged_change_is_refused(change: Any) -> None:
    with pytest.raises(ValidationError):
        Lineage.model_validate_json(json.dumps({"changes": [change]}))


def test_a_builder_leaves_out_what_has_no_content() -> None:
    builder = LineageBuilder()
    builder.change({"config": {}, "environment": {"threads": [1, 2]}, "drift": {"update": 1, "reaction": "alarm"}})
    builder.change({})
    assert builder.build().changes == (
        {"environment": {"threads": [1, 2]}},
        {"drift": {"update": 1, "reaction": "alarm"}},
    )


def test_learning_again_makes_kinds_that_there_are() -> None:
    assert get_type_hints(Change).keys() > MADE_AGAIN
