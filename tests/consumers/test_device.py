"""A worker on another device than the CPU: what it holds lives there, what it commits comes from there, and back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.consumers.families import FAMILIES, records
from tests.consumers.working import configuration, publish, verified, working
from tests.device import CPU, OTHER

PICTURE = FAMILIES["picture"]
#: some of what these two hold is on the CPU wherever the learner is
ALSO_ON_THE_CPU: dict[str, dict[str, Any]] = {
    "analytic": {**PICTURE, "learner": "image-analytic", "options": {"width": 32}},
    "dreams": {**PICTURE, "options": {**PICTURE["options"], "dream_share": 0.5}},
}


@pytest.mark.parametrize("family", [*FAMILIES, *ALSO_ON_THE_CPU])
def test_it_learns_goes_on_and_is_proved_there(kafka: str, redis_url: str, topic: str, family: str) -> None:
    table = {
        **(FAMILIES | ALSO_ON_THE_CPU)[family],
        "device": OTHER.type,
        "hold_out": {"slots": 4, "share": 0.1, "every_s": 0.1},
    }
    config = configuration(kafka, redis_url, topic, snapshot_every_updates=2, **table)
    given = records(family if family in FAMILIES else "picture")
    with working(config) as run:
        publish(config, topic, *[next(given) for _ in range(20)])
        run.read(16)
        run.crash()
    with working(config) as run:
        publish(config, topic, *[next(given) for _ in range(20)])
        run.read(40)
        head = run.finish()
    assert head.environment["device"] == OTHER.type
    assert sorted(map(len, run.outcomes().values())) == [1] * 40
    assert verified(run, config, device=OTHER).same
    on_the_cpu = verified(run, config, device=CPU)
    assert set(on_the_cpu.environment) == {"device"}
    assert family != "counting" or on_the_cpu.same  # whole numbers are the same on every device
