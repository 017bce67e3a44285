"""What learners do about a drift: a scaled learning rate is another learning rate; a class leaves the memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.learner import Flushing, Reacting, update_generator
from models.registry import BUILTIN
from tests.device import OTHER
from tests.models.contract import SEED, Case, digits, same, texts

REPLAY = {"replay_slots": 24, "replay_draws": 4}
RATES: dict[str, dict[str, Any]] = {  # every rate that the learner has, and what makes it small
    "image-classifier": {"learning_rate": 1e-3, "width": 8, "hidden": 16},
    "text-classifier": {"learning_rate": 1e-3, "table_learning_rate": 1e-2, "buckets": 64, "dim": 8},
}


def case(name: str, factor: float = 1.0) -> Case:
    options = {key: factor * value if key.endswith("rate") else value for key, value in RATES[name].items()}
    blueprint = BUILTIN[name]
    records = texts() if blueprint.input == "text" else digits()
    return Case(blueprint, blueprint.options.model_validate({**options, **REPLAY}), *records)


@pytest.mark.parametrize("name", RATES)
def test_a_scaled_learning_rate_is_that_learning_rate(name: str) -> None:
    scaled, slow = case(name).learner(), case(name)
    fast = case(name, 2.0).learned()
    assert isinstance(scaled, Reacting)
    scaled.scale_learning_rate(2.0)
    slow.learn(scaled, range(6))
    assert same(scaled.capture(), fast.capture())
    scaled.scale_learning_rate(1.0)
    restored = slow.learner()
    restored.restore(fast.capture())
    slow.learn(scaled, range(6, 9))
    slow.learn(restored, range(6, 9))
    assert same(scaled.capture(), restored.capture())


@pytest.mark.parametrize("name", RATES)
def test_a_flushed_class_is_replayed_no_more(name: str) -> None:
    one = case(name)
    for learner in (one.learned(), one.learner(device=OTHER)):
        if learner.replay_size == 0:
            one.learn(learner, range(6))
        assert isinstance(learner, Flushing)
        labels = learner.model.classes
        size = learner.replay_size
        flushed = {label: learner.flush(label) for label in labels[:2]}
        assert all(flushed.values())
        assert learner.replay_size == size - sum(flushed.values())
        assert not any(learner.flush(label) for label in labels[:2])
        learner.learn(one.batch(48), update_generator(SEED, 6))
        with pytest.raises(KeyError):
            learner.flush("never")


def test_a_head_in_closed_form_has_no_rate_and_is_solved_more_often() -> None:
    blueprint = BUILTIN["image-analytic"]
    one = Case(blueprint, blueprint.options.model_validate({"width": 256}), *digits())
    patient, hasty = one.learned(60), one.learned(60)
    assert isinstance(hasty, Reacting)
    assert not isinstance(hasty, Flushing)
    hasty.scale_learning_rate(16)
    before = patient.model.get_buffer("weight").clone()  # type: ignore[attr-defined]
    for learner in (patient, hasty):
        learner.learn(one.batch(480), update_generator(SEED, 60))
    assert torch.equal(patient.model.get_buffer("weight"), before)  # type: ignore[attr-defined]
    assert not torch.equal(hasty.model.get_buffer("weight"), before)  # type: ignore[attr-defined]
