"""What a worker says where a model does badly, wherever somebody looks: log, version, metrics, watch, sampler."""

from __future__ import annotations

from typing import Any

from consumers.cli.watch import Heads
from tests.consumers.families import FAMILIES, picture
from tests.consumers.running import configuration as serving, running
from tests.consumers.working import configuration, publish, verified, working

EACH = 40


def test_one_class_at_a_time_is_reported_to_whoever_looks(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **FAMILIES["picture"], max_wait_ms=1000)
    with working(config) as run:
        for number, label in enumerate(("ape", "bee", "cat")):
            publish(config, topic, *[(picture(60 * number + shade), label) for shade in range(EACH)])
        run.read(3 * EACH)
        head = run.finish()
        told = head.diagnoses["in-order"]
        assert told.startswith("One class at a time: 2 of the last 120 records are of another class ")
        assert told.endswith("Publish shuffled, as `headrace publish FOLDER` does, or raise options.replay_draws = 16.")
        assert head.diagnoses["few-records"].startswith("120 records of 3 classes, 40 of each: expect about ")
        assert any("One class at a time: " in line and line.endswith("(in-order)") for line in run.said)
        assert run.metric("headrace_diagnosis_alarms", kind="in-order") == 1
        assert run.metric("headrace_diagnosis_alarms", kind="one-class") in (0, None)  # as long as there was no other
        [row] = Heads().look({topic: run.store})
        assert row.json()["diagnoses"] == head.diagnoses
        assert f"{topic}: {told}" in row.warnings()
        assert verified(run, config).same
    with running(serving(redis_url, {topic: {**FAMILIES["picture"], "topics": [topic]}})) as sampler:
        assert sampler.serves(topic, head.version)
        assert sampler.client.get(f"/models/{topic}").json()["diagnoses"] == head.diagnoses
    with working(config) as run:  # told once, also to whoever starts a worker again
        run.waits(lambda: run.metric("headrace_log_up"))
        publish(config, topic, (picture(1), "cat"))
        run.read(3 * EACH + 1)
        assert not any("(few-records)" in line for line in run.said)


def test_what_nobody_learns_is_reported(kafka: str, redis_url: str, topic: str) -> None:
    texts: dict[str, Any] = {**FAMILIES["text"], "input": {"kind": "text", "max_chars": 4}}
    config = configuration(kafka, redis_url, topic, **texts)
    with working(config) as run:
        publish(config, topic, *[b"no label"] * 70, *[(b"a longer text", "a"), (b"text", "b")] * 4)
        run.read(78)
        head = run.finish()
    assert head.diagnoses["unlearned"].startswith("70 of 78 records are not learned: skipped/unlabelled. Publish with ")
    assert head.diagnoses["cut-texts"].startswith("50% of the texts are longer than input.max_chars = 4 and were cut. ")
