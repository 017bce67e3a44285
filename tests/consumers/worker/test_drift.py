"""A stream that turns: what the model does about it is in the lineage, and a run from the log does it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from redis import Redis

from consumers.worker.drift import Drift
from consumers.worker.fold import Fold, Recipe
from consumers.worker.sources import Sources
from models.registry import BUILTIN
from pipeline.config import Config, ModelConfig, load
from pipeline.errors import ConfigError
from pipeline.log.topics import ensure_topics
from pipeline.store.store import Store
from tests.consumers.cli import test_cli as shared
from tests.consumers.cli.test_cli import Headrace
from tests.consumers.worker.test_every_learner import (
    FOLDER,
    JUDGE,
    given as given,  # a fixture
)
from tests.consumers.working import publish, verified, working

folder, headrace, model, topic = shared.folder, shared.headrace, shared.model, shared.topic
TEXTS = """
batch_size = 8
learner = "text-classifier"
options = { buckets = 64, replay_slots = 32, max_classes = 2 }
"""
AB, BA = [(b"aaaa", "a"), (b"bbbb", "b")], [(b"aaaa", "b"), (b"bbbb", "a")]


def turning(folder: Path, model: str, drift: str) -> Config:
    """The folder's model as a classifier of texts that reacts like this."""
    path = folder / "headrace.toml"
    counting = 'learner = "tests.consumers.counting:blueprint"\n'
    text = path.read_text("utf-8").replace(counting, TEXTS) + f"\n[models.{model}.drift]\n{drift}\n"
    path.write_text(text.replace("snapshot_every_s = 0.1", "snapshot_every_s = 0.02"), "utf-8")
    config = load(path, {})
    ensure_topics(config.kafka, config.model(model).topics)
    return config


def test_a_boost_goes_on_after_a_crash(folder: Path, headrace: Headrace, model: str, topic: str) -> None:
    config = turning(folder, model, 'reaction = "boost"\nboost_updates = 1000')
    publish(config, topic, *AB * 100, *BA * 50)
    with working(config) as run:
        run.until(lambda head: head.worker["drift"]["boosted"] is not None)
        before = run.crash()
    publish(config, topic, *BA * 50)
    with working(config) as run:
        run.read(400)
        head = run.finish()
    drift = run.changes("drift")[0]
    assert 25 < drift["update"] <= before.updates < head.updates  # not before the turn
    assert drift["reaction"] == "boost"
    assert head.worker["drift"]["boosted"] == run.changes("drift")[-1]["update"]
    assert verified(run, config).same
    assert f"drift      {drift}" in headrace("log", model).out


@pytest.mark.parametrize("detector", ["hddm", "ddm"])
def test_a_flush_drops_the_classes_that_turned(
    folder: Path, headrace: Headrace, model: str, topic: str, detector: str
) -> None:
    config = turning(folder, model, f'detector = "{detector}"\nreaction = "flush"')
    publish(config, topic, *AB * 100, *BA * 100)
    with working(config) as run:
        run.until(lambda head: head.worker["drift"]["errors"]["alarm"] or sum(head.counts.values()) == 400)
        run.crash()
    with working(config) as run:
        run.read(400)
        run.finish()
    flushes = run.changes("flush")
    assert {label for flush in flushes for label in flush["records"]} == {"a", "b"}
    assert all(flush["update"] > 25 and min(flush["records"].values()) > 0 for flush in flushes)
    assert run.changes("drift")[0]["reaction"] == "flush"
    assert verified(run, config).same
    assert f"flush      {flushes[0]}" in headrace("log", model).out


class Noting:
    """A learner that notes the factors of its learning rate."""

    replay_capacity = 1
    replays = True

    def __init__(self) -> None:
        self.factors: list[float] = []

    def scale_learning_rate(self, factor: float) -> None:
        self.factors.append(factor)

    def flush(self, label: str) -> int:
        raise AssertionError(label)


def settings(learner: str = "image-classifier", options: dict[str, Any] | None = None, **drift: Any) -> ModelConfig:
    table = {"topics": ["t"], "learner": learner, "options": options or {}, "drift": drift}
    kind = "text" if learner in ("river-classifier", "text-encoder") else "image"
    return ModelConfig.model_validate({**table, "input": {"kind": kind}})


def test_a_boost_falls_geometrically_and_an_alarm_starts_it_anew() -> None:
    boost: Any = settings(reaction="boost", boost_factor=16, boost_updates=4)
    learner: Any = Noting()
    drift = Drift("model", boost, learner)
    assert drift.after(1, ["a"] * 500, [True] * 500) == {}
    wrong = drift.after(2, ["a"] * 100, [False] * 100)
    assert wrong == {"drift": {"update": 2, "reaction": "boost"}}
    for update in range(2, 9):
        restored = Drift("model", boost, learner)
        restored.restore(json.loads(json.dumps(drift.state())))
        drift = restored
        drift.before(update)
        if update == 3:
            assert drift.after(update + 1, ["a"] * 1000, [True] * 1000) == {}
            assert "drift" in drift.after(update + 1, ["a"] * 100, [False] * 100)
    assert learner.factors == [16, 8, 16, 8, 4, 2, 1]


def test_an_alarm_alone_does_nothing() -> None:
    learner: Any = Noting()
    drift = Drift("model", settings(), learner)
    drift.after(1, ["a"] * 500, [True] * 500)
    assert drift.after(2, ["a"] * 100, [False] * 100) == {"drift": {"update": 2, "reaction": "alarm"}}
    drift.before(2)
    assert learner.factors == []


def test_what_another_detector_counted_starts_anew() -> None:
    learner: Any = Noting()
    one, other = (Drift("model", settings(detector=name, reaction="flush"), learner) for name in ("hddm", "ddm"))
    one.after(1, ["a"] * 500, [True] * 500)
    fresh = other.state()
    other.restore(one.state())
    assert other.state() == {**fresh, "classes": {"hits": {"a": "1" * 20}, "looks": {}}}


def test_other_settings_and_trials_go_on_with_a_boost() -> None:
    table = settings(reaction="boost")
    fold = Fold("model", table, BUILTIN[table.learner], torch.device("cpu"))
    fold.drift.after(1, ["a"] * 500, [True] * 500)
    fold.drift.after(2, ["a"] * 100, [False] * 100)
    assert fold.drift.state()["boosted"] == 2
    others = fold.trial(), fold.configured(table.model_copy(update={"guard": False}))
    assert [other.drift.state() for other in others] == [fold.drift.state()] * 2


@pytest.mark.parametrize(
    ("learner", "options", "reaction", "named"),
    [
        ("river-classifier", {}, "boost", "river-classifier is no classifier with a learning rate"),
        ("image-analytic", {}, "flush", "image-analytic is no classifier with a replay memory"),
        ("image-vae", {}, "boost", "image-vae is no classifier"),
        ("image-classifier", {"strategy": "naive"}, "flush", "with a replay memory under these options"),
    ],
)
def test_a_reaction_that_a_learner_cannot_make_is_refused(
    learner: str, options: dict[str, Any], reaction: str, named: str
) -> None:
    table = settings(learner, options, reaction=reaction)
    with pytest.raises(ConfigError, match=rf'models\.model\.drift\.reaction = "{reaction}": {named}|{named}'):
        Fold("model", table, BUILTIN[learner], torch.device("cpu"))


@pytest.mark.parametrize("learner", ["image-classifier", "image-transfer", "text-encoder"])
def test_every_classifier_with_a_network_can_react(learner: str, redis: Redis, given: Mapping[str, str]) -> None:
    options = {"image-transfer": {"source": given[JUDGE]}, "text-encoder": {"folder": given[FOLDER]}}.get(learner)
    sources = Sources(Store(redis, "model", "model"), lambda model: model)
    table = settings(learner, options, reaction="flush")
    assert sources.fold(Recipe("model", table, BUILTIN[learner], torch.device("cpu"))).drift.state()["boosted"] is None
