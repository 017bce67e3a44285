"""The prequential window against river's and scikit-learn's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import metrics, utils
from sklearn.metrics import accuracy_score

from models.evaluation import Prequential

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
