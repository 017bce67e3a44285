"""A learner's alarm is told when it begins, not with every update that it lasts, also across a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from consumers.feed import Uplink, collate
from consumers.fold import Fold
from models.learner import Report
from pipeline.config import ModelConfig
from pipeline.manifest import Manifest
from pipeline.records import Example, Record
from tests.consumers.counting import blueprint
from tests.consumers.working import COUNTING

SETTINGS = ModelConfig.model_validate({**COUNTING, "topics": ["numbers"]})


def begun(alarms: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch) -> Fold:
    """A fold whose learner reports these alarms, an update each."""
    fold = Fold("numbers", SETTINGS, blueprint, torch.device("cpu"))
    learn = fold.learner.learn

    def alarming(*args: Any) -> Report:
        return dataclasses.replace(learn(*args), alarms=alarms.pop(0))

    monkeypatch.setattr(fold.learner, "learn", alarming)
    return fold


def told(fold: Fold) -> list[str]:
    """What one update tells."""
    record = Record("numbers", 0, fold.updates, 0, None, b"1")
    x = torch.zeros(16, dtype=torch.int32).numpy()
    x[0] = ord("1")
    example = Example(record, x, None, "1")
    batch = collate([example], fold.topics, Uplink(torch.device("cpu")))
    return list(fold.learn(batch, [example]).alarms)


def test_an_alarm_is_told_once_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = begun([(), ("collapse",), ("collapse",), (), ("collapse",)], monkeypatch)
    assert [told(fold) for _ in range(5)] == [[], ["collapse"], [], [], ["collapse"]]
    noted = [change["alarm"]["update"] for change in fold.lineage.build().changes if "alarm" in change]
    assert noted == [2, 5]
    again = begun([("collapse",)], monkeypatch)
    fields = {"worker": fold.books(), "counts": dict(fold.counts), "updates": 5, "newest_timestamp_ms": 0}
    again.keep_books(cast(Manifest, SimpleNamespace(**fields)))
    assert told(again) == []
