"""A dead letter's second life, whole: a record that could not be learned, a fix, and the record learned once."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.client.client import Client
from pipeline.log.publisher import Publisher
from pipeline.records import Partition
from pipeline.store.history import blame
from tests.consumers.working import configuration, publish, verified, working
from tests.services import Topics, unique


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


@pytest.mark.parametrize("id_", ["r1", None], ids=["with an id", "by its place"])
def test_a_record_is_learned_with_the_label_that_came_while_it_was_a_dead_letter(
    kafka: str, redis_url: str, topics: Topics, id_: str | None
) -> None:
    records, labels = topics(), topics()
    name = unique("model")
    table = {**texts(9), "labels": {"topic": labels, "window_s": 30}}
    wrong = configuration(kafka, redis_url, records, name=name, decoder="tests.consumers.odd:decode", **table)
    with Publisher(wrong.kafka) as publisher:
        headers = [("id", id_.encode())] if id_ else []
        publisher.publish(records, b"one", headers=headers, timestamp_ms=1_700_000_000_000)
        for label, at_s in ((b"too early", -31), (b"wrong", 0), (b"right", 2)):
            key = (id_ or f"{records}:0:0").encode()
            publisher.publish(labels, label, key=key, timestamp_ms=1_700_000_000_000 + 1000 * at_s)
    with working(wrong) as run:
        run.waits(lambda: run.metric("headrace_records_total", outcome="dead-lettered", reason="decoder") == 1)
        run.finish()
    config = configuration(kafka, redis_url, records, name=name, **table)  # the decoder was the mistake
    with Client(config) as client, working(config) as run:
        [letter] = client.dead_letters(records, name)
        assert client.requeue(letter)
        head = run.until(lambda manifest: manifest.counts.get("learned") == 1)
        assert head.classes == ["right"]
        run.finish()
        assert blame(run.store, Partition(records, 0), 1).outcome == "learned"
        assert verified(run, config).same
