"""Drift in a fold: river's detector on its prequential errors, and the reaction that the configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.evaluation import ClassHits, DriftDetector
from models.learner import Flushing, Learner, Reacting
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError
from pipeline.store import Change


class Drift:
    """Watches one learner, and reacts right after the update whose errors raised the alarm.

    - boost: the learning rate is `boost_factor` times its own, and falls back geometrically over `boost_updates`.
    - flush: the replay memory drops the classes whose accuracy fell, each as soon as that is seen (`ClassHits`).

    All that it goes by is in its state and in the settings, so that a run from the log reacts as the live one did.

    Args:
        name: of the model.

    Raises:
        ConfigError: the learner cannot react like that.
    """

    def __init__(self, name: str, settings: ModelConfig, learner: Learner) -> None:
        self._settings = settings.drift
        self._learner = learner
        detector, reaction = self._settings.detector, self._settings.reaction
        self._detector = None if detector == "none" else DriftDetector(detector)
        self._hits = ClassHits()  # kept for a flush alone
        self._boosted: int | None = None  # the update after which the last boost began
        if reaction == "boost" and not isinstance(learner, Reacting):
            raise ConfigError(
                f'models.{name}.drift.reaction = "boost": {settings.learner} is no classifier with a learning rate. '
                f'Set it to "alarm".'
            )
        if reaction == "flush" and not (isinstance(learner, Flushing) and learner.replays):
            raise ConfigError(
                f'models.{name}.drift.reaction = "flush": {settings.learner} is no classifier with a replay memory '
                f'under these options. Set it to "alarm", or give it replay_slots.'
            )

    def before(self, update: int) -> None:
        """Sets the learning rate of an update."""
        if self._boosted is not None and isinstance(self._learner, Reacting):
            left = max(0, self._boosted + self._settings.boost_updates - update)
            self._learner.scale_learning_rate(self._settings.boost_factor ** (left / self._settings.boost_updates))
            self._boosted = self._boosted if left else None

    def after(self, update: int, labels: Sequence[str | None], hits: Sequence[bool]) -> Change:
        """Takes what the last of so many updates predicted. What followed, for the lineage: an alarm, a flush."""
        reaction, changes = self._settings.reaction, Change()
        alarm = self._detector is not None and self._detector.update(hits)
        if alarm:
            changes["drift"] = {"update": update, "reaction": reaction}
        if alarm and reaction == "boost":
            self._boosted = update
        if reaction == "flush" and isinstance(self._learner, Flushing):
            flushed = {label: self._learner.flush(label) for label in self._hits.update(labels, hits, alarm)}
            if flushed:
                changes["flush"] = {"update": update, "records": flushed}
        return changes

    def state(self) -> dict[str, Any]:
        return {
            "detector": self._settings.detector,
            "errors": self._detector.state() if self._detector is not None else None,
            "classes": self._hits.state(),
            "boosted": self._boosted,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`; what other settings left in it starts anew."""
        if self._detector is not None and state["detector"] == self._settings.detector:
            self._detector.restore(state["errors"])
        if self._settings.reaction == "flush":
            self._hits.restore(state["classes"])
        if self._settings.reaction == "boost":
            self._boosted = state["boosted"]
