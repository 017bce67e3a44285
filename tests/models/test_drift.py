"""Our detector against river's, uninterrupted."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from river.drift.binary import HDDMA

from models.drift import DriftDetector

STREAM = st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])), max_size=6)


def hits(stream: list[tuple[int, float]]) -> list[bool]:
    """Stretches with a share of hits each, evenly spread."""
    return [int((i + 1) * share) > int(i * share) for length, share in stream for i in range(length)]


@settings(deadline=None, max_examples=30)
@given(STREAM, st.integers(1, 50))
def test_interrupted_after_every_batch_it_is_rivers_detector(stream: list[tuple[int, float]], size: int) -> None:
    ours = DriftDetector()
    theirs: Any = HDDMA()  # type: ignore[no-untyped-call]
    found = hits(stream)
    for start in range(0, len(found), size):
        alarms = []
        for hit in found[start : start + size]:
            theirs.update(int(not hit))
            alarms.append(theirs.drift_detected)
        restored = DriftDetector()
        restored.restore(json.loads(json.dumps(ours.state())))
        assert restored.update(found[start : start + size]) == any(alarms)
        means = {"best": theirs._x_min, "worst": theirs._x_max, "all": theirs._z}
        assert restored.state() == {
            "alarm": theirs.drift_detected,
            **{name: [mean.n, mean.get()] for name, mean in means.items()},
        }
        ours = restored
    straight = DriftDetector()
    straight.update(found)
    assert ours.state() == straight.state()


def test_a_rise_in_error_is_an_alarm_and_a_fall_is_none() -> None:
    good, bad = hits([(500, 0.9)]), hits([(500, 0.3)])
    detector = DriftDetector()
    assert not detector.update(good)
    assert detector.update(bad)
    detector = DriftDetector()
    assert not detector.update(bad)
    assert not detector.update(good)
