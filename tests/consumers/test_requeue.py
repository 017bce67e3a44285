"""A dead letter's second life, whole: a record that could not be learned, a fix, and the record learned once."""

from __future__ import annotations

from typing import Any

from pipeline.client import Client
from pipeline.log import Partition
from pipeline.provenance import blame
from tests.consumers.working import configuration, publish, working
from tests.services import unique


def texts(max_classes: int) -> dict[str, Any]:
    return {
        "learner": "text-classifier",
        "input": {"kind": "text", "max_chars": 16},
        "options": {"buckets": 64, "replay_slots": 32, "max_classes": max_classes},
    }


def test_after_a_fix_its_own_model_learns_it_once_and_the_others_skip_it(
    kafka: str, redis_url: str, topic: str
) -> None:
    narrow, other = unique("narrow"), unique("other")
    config = configuration(kafka, redis_url, topic, name=narrow, **texts(max_classes=2))
    publish(config, topic, (b"first", "a"), (b"second", "b"), (b"third", "c"))
    with working(config) as run:
        assert run.read(3).counts == {"learned": 2, "dead-lettered/label": 1}
        run.finish()

    config = configuration(kafka, redis_url, topic, name=narrow, **texts(max_classes=3))  # the fix
    with Client(config) as client, working(config) as run:
        [letter] = client.dead_letters(topic, narrow)
        assert [done.resolution for done in client.requeue(letter)] == ["requeued"]
        assert client.requeue(letter) == []  # it is not open any more
        head = run.read(4)
        assert head.classes == ["a", "b", "c"]
        assert head.counts == {"learned": 3, "dead-lettered/label": 1}
        assert client.dead_letters(topic, narrow) == []
        run.finish()
        assert blame(run.store, Partition(topic, 0), 2).outcome == "dead-lettered/label"
        assert blame(run.store, Partition(topic, 0), 3).outcome == "learned"

    with working(configuration(kafka, redis_url, topic, name=other, **texts(max_classes=9))) as run:
        assert run.read(4).counts == {"learned": 3, "skipped/requeued": 1}
