"""Forgetting and backward transfer beside their definitions, over histories of any shape."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from models.evaluation.retention import Retention

PROBINGS = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 4), st.just(4)), min_size=1),
    min_size=1,
    max_size=6,
)


@given(PROBINGS)
def test_they_are_what_the_history_says(probings: list[dict[str, tuple[int, int]]]) -> None:
    retention = Retention()
    history: dict[str, list[float]] = {}
    for hits in probings:
        said = retention.probed(hits)
        before = [label for label in hits if label in history]
        if before:
            forgotten = sum(max(history[label]) - hits[label][0] / 4 for label in before) / len(before)
            gained = sum(hits[label][0] / 4 - history[label][0] for label in before) / len(before)
            assert said["held_out_forgetting"] == pytest.approx(forgotten)
            assert said["held_out_backward_transfer"] == pytest.approx(gained)
        else:
            assert said == {}
        for label, (right, _) in hits.items():
            history.setdefault(label, []).append(right / 4)
    for label, kept in retention.classes().items():
        ours = history[label]
        assert (kept.now, kept.best, kept.first, kept.records) == (ours[-1], max(ours), ours[0], 4)


@given(PROBINGS, PROBINGS)
def test_it_goes_on_from_its_state(
    before: list[dict[str, tuple[int, int]]], after: list[dict[str, tuple[int, int]]]
) -> None:
    one, other = Retention(), Retention()
    for hits in before:
        one.probed(hits)
    other.restore(json.loads(json.dumps(one.state())))
    assert [one.probed(hits) for hits in after] == [other.probed(hits) for hits in after]
    assert one.state() == other.state()
