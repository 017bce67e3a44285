"""Texts beyond `max_chars` through Kafka, Redis and HTTP: what tells them apart is behind the cut."""

from __future__ import annotations

from typing import Any

import pytest

from tests.consumers.running import configuration as serving, running
from tests.consumers.working import configuration, publish, verified, working
from tests.services import unique

INPUT = {"kind": "text", "max_chars": 16}
SMALL: dict[str, dict[str, Any]] = {
    "text-analytic": {"width": 64, "buckets": 512},
    "text-auto": {
        "head": {"width": 64, "buckets": 512},
        "network": {"buckets": 512, "dim": 8, "words": False, "replay_slots": 24, "replay_draws": 4},
    },
    "text-generator": {"hidden": 8, "embedding": 4, "slots": 1 << 10, "history": 256, "replay_windows": 1},
}
TEXTS = {"fruit": ("apples", "pears", "plums"), "tools": ("hammers", "saws", "nails")}


def text(label: str, number: int) -> bytes:
    kinds = TEXTS[label]
    return f"once upon a time there were {number} {kinds[number % 3]} and {kinds[(number + 1) % 3]}".encode()


@pytest.mark.parametrize("learner", SMALL)
def test_a_long_text_is_learned_served_and_learned_again_whole(
    kafka: str, redis_url: str, topic: str, learner: str
) -> None:
    table: dict[str, Any] = {"learner": learner, "options": SMALL[learner], "input": INPUT, "name": unique("model")}
    config = configuration(kafka, redis_url, topic, **table, snapshot_every_updates=2, keyframe_every=4)
    records = [(text(label, number), label) for number in range(40) for label in TEXTS]
    with working(config) as run:
        publish(config, topic, *records[:40], b"short")
        run.read(33)
        run.crash()
    with working(config) as run:
        publish(config, topic, *records[40:])
        run.read(81)
        head = run.finish()
    assert head.metrics["prequential_cut_ratio"] == 0
    assert "cut-texts" not in head.diagnoses
    assert not run.changes("replayed")  # what the keyframe lacks came out as it was
    assert verified(run, config).same
    if learner == "text-generator":
        assert head.meta["seen"] == sum(len(value) + 1 for value, _ in [*records, (b"short", "")])
        return
    with running(serving(redis_url, {run.name: {"learner": learner, "input": INPUT}})) as sampler:
        assert sampler.serves(run.name, head.version)
        for label in TEXTS:  # whose texts have the same beginning
            answer = sampler.client.post(f"/models/{run.name}/classify", content=text(label, 100)).json()
            assert answer["label"] == label
