"""The prequential window against river's and scikit-learn's."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from river import metrics, utils
from sklearn.metrics import accuracy_score

from models.evaluation.prequential import LossRange, Prequential

UPDATES = st.lists(
    st.tuples(st.floats(0, 10), st.lists(st.booleans(), min_size=1, max_size=12)), min_size=1, max_size=20
)


@settings(deadline=None, max_examples=60)
@given(UPDATES, st.integers(1, 40), st.integers(0, 19))
def test_it_is_the_last_records_alone_also_after_a_restart(
    updates: list[tuple[float, list[bool]]], window: int, restart: int
) -> None:
    ours = Prequential(window)
    theirs: Any = utils.Rolling(metrics.Accuracy, window_size=window)
    for number, (loss, hits) in enumerate(updates):
        ours.update(loss, hits)
        for hit in hits:
            theirs.update(True, hit)
        if number == restart:
            state = json.loads(json.dumps(ours.state()))
            ours = Prequential(window)
            ours.restore(state)
    flat = [hit for _, hits in updates for hit in hits][-window:]
    losses = [loss for loss, hits in updates for _ in hits][-window:]
    assert ours.accuracy == pytest.approx(theirs.get())
    assert ours.accuracy == pytest.approx(accuracy_score([True] * len(flat), flat))
    assert ours.loss == pytest.approx(np.mean(losses))
    assert ours.metrics() == {"prequential_accuracy": ours.accuracy, "prequential_loss": ours.loss}


def test_without_predictions_there_is_a_loss_but_no_accuracy() -> None:
    ours = Prequential(10)
    assert ours.metrics() == {}
    ours.update(4.0, records=8)
    ours.update(1.0, records=4)
    assert ours.metrics() == {"prequential_loss": pytest.approx((6 * 4.0 + 4 * 1.0) / 10)}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(1, 12)), min_size=1, max_size=20), st.integers(1, 40))
def test_a_learners_own_means_are_of_the_last_records_alone(updates: list[tuple[float, int]], window: int) -> None:
    ours = Prequential(window)
    for psnr_db, records in updates:
        ours.update(0.0, records=records, metrics={"psnr_db": psnr_db})
        again = Prequential(window)
        again.restore(json.loads(json.dumps(ours.state())))
        ours = again
    wanted = np.mean([psnr_db for psnr_db, records in updates for _ in range(records)][-window:])
    assert ours.own() == {"psnr_db": pytest.approx(wanted, abs=1e-9)}
    assert ours.metrics()["prequential_psnr_db"] == ours.own()["psnr_db"]


def test_a_loss_that_is_no_number_survives_json() -> None:
    ours, again = Prequential(10), Prequential(10)
    for loss in (1.0, math.nan, math.inf):
        ours.update(loss)
    again.restore(json.loads(json.dumps(ours.state(), allow_nan=False)))
    assert again.state() == ours.state()
    assert again.loss is not None
    assert math.isnan(again.loss)


def test_a_range_tells_once_that_a_loss_is_far_above_it() -> None:
    rng = random.Random(0)
    ours = LossRange()
    usual = [2.0 * 0.995**update + rng.gauss(0, 0.1) for update in range(1000)]
    assert not any(ours.update(loss) for loss in usual)
    assert ours.update(5.0)
    assert not ours.update(5.0)  # not again before it was back
    assert not any(ours.update(loss) for loss in usual[-200:])
    assert ours.update(5.0)


def test_a_range_that_is_a_point_has_room_above_it() -> None:
    ours = LossRange()
    assert not any(ours.update(loss) for loss in [1.0] * 100 + [1.0 + 1e-6, 1.05])
    assert ours.update(1.5)


def test_the_first_losses_never_alarm() -> None:
    ours = LossRange(warm_up=5)
    assert [ours.update(loss) for loss in (1.0, 100.0, 1.0, 1.0, 1.0, 1e6)] == [False] * 5 + [True]


def test_a_loss_that_is_no_number_alarms_and_stays_out_of_the_range() -> None:
    ours, again = LossRange(warm_up=5), LossRange(warm_up=5)
    for loss in (1.0, 1.1, 0.9, 1.0, 1.0):
        ours.update(loss)
    before = ours.state()
    assert ours.update(math.nan)
    assert not ours.update(math.inf)
    assert ours.state()[:3] == before[:3]
    again.restore(json.loads(json.dumps(ours.state())))
    assert [again.update(loss) for loss in (1.0, 50.0)] == [ours.update(loss) for loss in (1.0, 50.0)] == [False, True]
