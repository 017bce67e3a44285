"""Our detectors against river's, uninterrupted; which classes fell."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from river.drift import PageHinkley
from river.drift.binary import DDM, HDDMA

from models.evaluation.drift import KINDS, ClassHits, DetectorName, DriftDetector

RIVERS: dict[DetectorName, Callable[[], Any]] = {
    "hddm": HDDMA,
    "ddm": DDM,
    "page-hinkley": lambda: PageHinkley(mode="up"),
}

STREAM = st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])), max_size=6)


def hits(stream: list[tuple[int, float]]) -> list[bool]:
    """Stretches with a share of hits each, evenly spread."""
    return [int((i + 1) * share) > int(i * share) for length, share in stream for i in range(length)]


def everything(detector: Any) -> dict[str, Any]:
    """What a detector of river's holds, its means as numbers."""
    held = {name: value for name, value in vars(detector).items() if not callable(value)}
    return {name: (value.n, value.get()) if hasattr(value, "get") else value for name, value in held.items()}


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(RIVERS)), STREAM, st.integers(1, 50))
def test_interrupted_after_every_batch_it_is_rivers_detector(
    name: DetectorName, stream: list[tuple[int, float]], size: int
) -> None:
    ours, theirs = DriftDetector(name), RIVERS[name]()
    found = hits(stream)
    for start in range(0, len(found), size):
        alarms = []
        for hit in found[start : start + size]:
            theirs.update(int(not hit))
            alarms.append(theirs.drift_detected)
        restored = DriftDetector(name)
        restored.restore(json.loads(json.dumps(ours.state(), allow_nan=False)))
        assert restored.update(found[start : start + size]) == any(alarms)
        ours = restored
    mine = everything(ours._detector)
    assert mine | {"_warning_detected": None} == everything(theirs) | {"_warning_detected": None}


def test_every_detector_is_held_to_rivers() -> None:
    assert RIVERS.keys() == KINDS.keys()


@pytest.mark.parametrize("name", RIVERS)
def test_a_rise_in_error_is_an_alarm_and_a_fall_is_none(name: DetectorName) -> None:
    good, bad = hits([(500, 0.9)]), hits([(500, 0.3)])
    detector = DriftDetector(name)
    assert not detector.update(good)
    assert detector.update(bad)
    detector = DriftDetector(name)
    assert not detector.update(bad)
    assert not detector.update(good)


GOOD = [True] * 15


@pytest.mark.parametrize(
    ("before", "after", "looked_at"),
    [
        ([*GOOD, *[False] * 5], [], 0),  # the alarm came late
        ([*GOOD, False], [False] * 4, 4),  # with the twentieth prediction
        ([True] * 20, [False, False, False, True, True], 3),  # 2/5 of now
        ([*[True] * 12, *[False] * 3, True, True, *[False] * 3], [], None),  # 2/5 of now is half of 12/15
        ([False] * 20, [False] * 5, None),  # never good
        ([*[True] * 9, False], [False] * 5, None),  # too few
        ([True] * 20, [*[True] * 5, *[False] * 5], None),  # later than its next five
    ],
)
def test_which_classes_fell(before: list[bool], after: list[bool], looked_at: int | None) -> None:
    ours = ClassHits()
    assert ours.update([None, *["one"] * len(before)], [True, *before], alarm=False) == []
    found = [ours.update(["other"], [True], alarm=True)]
    for hit in after:
        restored = ClassHits()
        restored.restore(json.loads(json.dumps(ours.state())))
        ours = restored
        found.append(ours.update(["one"], [hit], alarm=False))
    assert found == [["one"] if number == looked_at else [] for number in range(len(found))]
    assert all(len(kept) <= 20 for kept in ours.state()["hits"].values())
