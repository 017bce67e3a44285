"""A log that is not there any more: what was learned is kept, also where the head alone does not hold it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from kafka import TopicPartition

from consumers.worker import worker as trainer
from pipeline.config import Config
from pipeline.errors import OffsetsGone, TopicMissing, TopicReplaced
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Reader
from tests.consumers import gated
from tests.consumers.worker.test_ends import replaced
from tests.consumers.worker.test_keyframes import STEPWISE, at_a_version_without_training, stepwise
from tests.consumers.working import configuration, numbers, publish, verified, working
from tests.services import Topics

RARELY: dict[str, Any] = {**STEPWISE, "keyframe_every": 100}


def goes_on(config: Config, topic: str, counts: list[int]) -> None:
    """A worker that may jump has these counts, and what comes next; the next one needs not jump."""
    values = iter(numbers(range(len(counts), len(counts) + 16)))
    with working(config, jump=True) as run:
        head = stepwise(run, config, topic, values, 1)
        assert run.store.keyframe(head).version >= head.version - 1
        run.crash()
    with working(config) as run:
        stepwise(run, config, topic, values, 1)
        run.finish()
        assert run.counts() == [*counts, *[1] * 16]


def test_a_jump_goes_on_from_the_keyframe_and_what_is_left(kafka: str, redis_url: str, topics: Topics) -> None:
    topic = topics()
    config = configuration(kafka, redis_url, topic, **STEPWISE)
    with working(config) as run:
        stepwise(run, config, topic, iter(numbers(range(24))), 3)
        run.crash()
    topics.admin.delete_records({TopicPartition(topic, 0): 11})
    with working(config) as run, pytest.raises(OffsetsGone, match=f"`headrace train {topic} --jump` goes on from that"):
        run.join()
    goes_on(config, topic, [1] * 8 + [0] * 3 + [1] * 13)
    [replayed] = run.changes("replayed")
    assert (replayed["from"], replayed["gone"], replayed["environment"]) == (1, 3, {})
    assert verified(run, config, start=run.store.manifest().version - 1).same


def test_a_jump_where_nothing_is_left_goes_on_from_the_keyframe(kafka: str, redis_url: str, topics: Topics) -> None:
    topic = topics()
    config = configuration(kafka, redis_url, topic, **STEPWISE)
    with at_a_version_without_training(config, topic) as run:
        seen = run.store.manifest().counts["learned"]
    replaced(topics, topic)
    publish(config, topic, *numbers(range(8)))
    with working(config, jump=True) as run:
        head = run.read(seen + 8)
        assert head.is_keyframe
        run.finish()
        [replayed] = run.changes("replayed")
        assert (replayed["from"], replayed["gone"]) == (1, seen - 8)


def test_a_worker_that_retention_overtakes_leaves_what_it_learned(
    kafka: str, redis_url: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "Reader", partial(Reader, refresh_s=0.2, max_buffered_bytes=1))
    topic = topics()
    settings = {**RARELY, "decoder": "tests.consumers.gated:decode"}
    config = configuration(kafka, redis_url, topic, **settings)
    gated.waits.clear()
    gated.goes_on.clear()
    with working(config) as run:
        head = stepwise(run, config, topic, iter(numbers(range(16))), 2)
        assert not head.is_keyframe
        publish(config, topic, b"wait")
        assert gated.waits.wait(20)
        with Publisher(config.kafka, linger_ms=0) as publisher:
            for number in range(17, 60):
                publisher.publish(topic, b"%d" % number)
                publisher.flush(20)
        topics.admin.delete_records({TopicPartition(topic, 0): 58})
        gated.goes_on.set()
        with pytest.raises(OffsetsGone, match=f"{topic} partition 0 holds offsets 58 to 60"):
            run.join()
        assert run.store.manifest().is_keyframe
        assert run.store.manifest().version > head.version
    publish(config, topic, *numbers(range(60, 72)))
    soon = configuration(kafka, redis_url, topic, **{**settings, "max_wait_ms": 20})
    with working(soon, jump=True) as run:
        run.until(lambda manifest: manifest.watermark[topic][0] == 72 and not manifest.pending.runs)
        run.finish()
        counts = run.counts()
    assert (counts[:16], counts[58:]) == ([1] * 16, [1] * 14)
    [gone] = [change for change in run.changes("jump") if change["to"] == 58]
    assert run.store.manifest().counts.get("skipped/gone", 0) == gone["from"] - 16


def test_a_worker_whose_topic_goes_leaves_what_it_learned(
    kafka: str, redis_url: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "Reader", partial(Reader, refresh_s=0.5))
    topic, other = topics(), topics()
    config = configuration(kafka, redis_url, topic, other, **RARELY)
    with working(config) as run:
        assert not stepwise(run, config, topic, iter(numbers(range(16))), 2).is_keyframe
        topics.admin.delete_topics([topic])
        with pytest.raises(TopicMissing, match=f"{topic} was deleted while it was read"):
            run.join()
        assert run.store.manifest().is_keyframe
    topics.admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    goes_on(config, topic, [1] * 16)


@pytest.mark.parametrize("keyframe_every", [1, 100])
def test_a_worker_whose_topic_is_made_again_leaves_what_is_in_no_version_yet(
    kafka: str, redis_url: str, topics: Topics, keyframe_every: int
) -> None:
    topic = topics()
    settings = {**RARELY, "snapshot_every_updates": 2, "keyframe_every": keyframe_every}
    config = configuration(kafka, redis_url, topic, **settings)
    with working(config) as run:
        publish(config, topic, *numbers(range(16)))
        run.read(16)
        publish(config, topic, *numbers(range(16, 24)))
        run.learns(24)
        replaced(topics, topic)
        publish(config, topic, *numbers(range(24, 32)))
        with pytest.raises(TopicReplaced, match=f"{topic} was deleted and made again"):
            run.join()
        head = run.store.manifest()
        assert head.is_keyframe
        assert head.counts == {"learned": 24}
        assert run.counts() == [1] * 24
        assert run.changes("doubtful") == []
    with working(config, jump=True) as run:
        publish(config, topic, *numbers(range(32, 40)))
        run.read(40)
        run.finish()
        assert run.counts() == [1] * 40


def test_a_worker_that_read_on_in_a_topic_made_again_says_what_is_in_doubt(
    kafka: str, redis_url: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had as many records at once as the one before: a commit finds out, and what was learned is not lost."""
    monkeypatch.setattr(trainer, "Reader", partial(Reader, refresh_s=60, max_buffered_bytes=1))
    topic = topics()
    config = configuration(kafka, redis_url, topic, **{**RARELY, "decoder": "tests.consumers.gated:decode"})
    gated.waits.clear()
    gated.goes_on.clear()
    with working(config) as run:
        stepwise(run, config, topic, iter(numbers(range(16))), 2)
        publish(config, topic, b"wait")
        assert gated.waits.wait(20)
        with Publisher(config.kafka, linger_ms=0) as publisher:
            for number in range(17, 60):
                publisher.publish(topic, b"%d" % number)
                publisher.flush(20)
        replaced(topics, topic)
        publish(config, topic, *numbers(range(100, 200)))
        gated.goes_on.set()
        with pytest.raises(TopicReplaced, match=f"{topic} was deleted and made again"):
            run.join()
        head = run.store.manifest()
        assert head.is_keyframe
        assert sum(run.counts()) == head.counts["learned"]
        [doubtful] = run.changes("doubtful")
        assert (doubtful["topic"], doubtful["partition"], doubtful["from"]) == (topic, 0, 16)
        assert 24 <= doubtful["to"] <= 100
    soon = configuration(kafka, redis_url, topic, **{**RARELY, "max_wait_ms": 20})
    with working(soon, jump=True) as run:
        publish(config, topic, *numbers(range(200, 204)))
        run.until(lambda manifest: manifest.watermark[topic][0] == 104 and not manifest.pending.runs)
        run.finish()
        assert run.counts()[100:204] == [1] * 104  # also what was read before its turn, once


def test_a_worker_whose_topic_is_made_again_leaves_what_it_learned(
    kafka: str, redis_url: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "Reader", partial(Reader, refresh_s=0.5))
    topic = topics()
    config = configuration(kafka, redis_url, topic, **RARELY)
    with working(config) as run:
        assert not stepwise(run, config, topic, iter(numbers(range(16))), 2).is_keyframe
        replaced(topics, topic)
        with pytest.raises(TopicReplaced, match=f"{topic} was deleted and made again"):
            run.join()
        assert run.store.manifest().is_keyframe
    goes_on(config, topic, [1] * 16)
