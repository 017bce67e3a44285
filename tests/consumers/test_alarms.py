"""A learner's alarm is told when it begins, not with every update that it lasts, also across a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from consumers.worker.feed import Uplink, collate
from consumers.worker.fold import Fold
from models.learner import Report
from pipeline.config import ModelConfig
from pipeline.records import Example, Record
from pipeline.store.manifest import Manifest
from tests.consumers.counting import blueprint
from tests.consumers.working import COUNTING, configuration, publish, verified, working

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


def test_texts_that_are_cut_are_counted_and_reported(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, batch_size=4, input={"kind": "text", "max_chars": 4})
    with working(config) as run:
        publish(config, topic, *[b"1", b"2", b"3", b"1234"] * 2)
        run.learns(8)
        assert run.metric("headrace_prequential_mean", metric="cut_ratio") == 0
        assert not any("cut" in line for line in run.said)
        publish(config, topic, b"00001", b"00012345", "\ufeff0001".encode(), b"0003")  # a mark is no character
        run.read(12)
        head = run.finish()
        assert head.metrics["prequential_cut_ratio"] == pytest.approx(2 / 12)
        assert run.metric("headrace_prequential_mean", metric="cut_ratio") == pytest.approx(2 / 12)
        [told] = [line for line in run.said if "cut" in line]
        assert "17% of the texts are longer than input.max_chars = 4 and were cut" in told
        assert verified(run, config).same


def test_an_alarm_is_reported_once_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = begun([(), ("collapse",), ("collapse",), (), ("collapse",)], monkeypatch)
    assert [told(fold) for _ in range(5)] == [[], ["collapse"], [], [], ["collapse"]]
    noted = [change["alarm"]["update"] for change in fold.lineage.build().changes if "alarm" in change]
    assert noted == [2, 5]
    again = begun([("collapse",)], monkeypatch)
    fields = {
        "worker": fold.books(),
        "counts": dict(fold.counts),
        "updates": 5,
        "newest_timestamp_ms": 0,
        "created_ms": 0,
    }
    again.keep_books(cast(Manifest, SimpleNamespace(**fields)))
    assert told(again) == []
