"""The deterministic mode, as far as it goes without a GPU: every learner runs under it, and a version says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from consumers.worker import worker as trainer
from consumers.worker.environment import use_deterministic
from pipeline.errors import ConfigError
from tests.consumers.families import FAMILIES, records
from tests.consumers.worker.test_keyframes import STEPWISE, stepwise
from tests.consumers.working import configuration, prepared, verified, working


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The mode is torch's, for the whole process."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    use_deterministic(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_learner_learns_and_is_verified_under_it(kafka: str, redis_url: str, topic: str, family: str) -> None:
    config = configuration(kafka, redis_url, topic, **FAMILIES[family], **STEPWISE, deterministic=True)
    with working(config) as run:
        stepwise(run, config, topic, records(family), 3)
        head = run.finish()
    assert head.environment["deterministic"] is True
    use_deterministic(False)
    found = verified(run, config)
    assert (found.same, found.environment) == (True, {})  # verify has turned it on by itself
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("keyframe_every", "deterministic", "refused"), [(2, False, True), (2, True, False), (1, False, False)]
)
def test_on_cuda_keyframes_that_are_apart_need_it(
    monkeypatch: pytest.MonkeyPatch, keyframe_every: int, deterministic: bool, refused: bool
) -> None:
    monkeypatch.setattr(trainer, "pick_device", lambda name: torch.device("cuda"))  # nothing is put there
    settings: dict[str, Any] = {"keyframe_every": keyframe_every, "deterministic": deterministic}
    config = configuration("127.0.0.1:1", "redis://127.0.0.1:1", "topic", **settings)
    if refused:
        with pytest.raises(ConfigError, match=r"keyframe_every = 2: on CUDA.* Set deterministic = true"):
            prepared(config)
    else:
        prepared(config)
