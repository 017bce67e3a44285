"""Clear ends: a log or a store that is not what it was is told, and gone on from in one stated way, never silently."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from redis import Redis

from consumers.worker import committer, worker as trainer
from consumers.worker.feed import Feed
from pipeline.config import Config
from pipeline.errors import Corrupt, OffsetsGone, StoreUnavailable, TopicReplaced
from pipeline.local.servers import EmbeddedRedis
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Reader
from pipeline.records import Partition
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store
from pipeline.store.writer import Writer
from tests.consumers.worker.test_keyframes import forged
from tests.consumers.working import Crashed, Working, configuration, numbers, prepared, publish, working
from tests.pipeline.drafts import backup, restore
from tests.services import Topics

BY_SIZE: dict[str, Any] = {
    "snapshot_every_updates": 1,
    "snapshot_every_s": None,
    "max_wait_ms": 60_000,
    "keep_last": 100,
}


def lived(config: Config, topic: str, *ranges: range) -> Manifest:
    """The head that a worker leaves which learned these numbers and ended in peace."""
    publish(config, topic, *numbers(*ranges))
    with working(config) as run:
        head = run.store.head()
        before = sum(run.store.manifest(head).counts.values()) if head else 0
        run.read(before + sum(map(len, ranges)))
        return run.finish()


def replaced(topics: Topics, topic: str) -> None:
    """Deletes the topic, and makes another of its name."""
    topics.admin.delete_topics([topic])
    topics.admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
    topics.admin.wait_for_topics([topic])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of one test, to be harmed."""
    with EmbeddedRedis(tmp_path) as server:
        yield server


# --- the log ---


def test_records_that_retention_removed_before_they_were_read(kafka: str, redis_url: str, topics: Topics) -> None:
    topic = topics()
    config = configuration(kafka, redis_url, topic, keep_last=100)
    lived(config, topic, range(16))
    publish(config, topic, *numbers(range(16, 36)))
    topics.admin.delete_records({TopicPartition(topic, 0): 20})
    with working(config) as run, pytest.raises(OffsetsGone) as raised:
        run.join()
    for part in (
        f"{topic} partition 0 holds offsets 20 to 36, and 16 is to be read next",
        f"`headrace train {topic} --jump`",
        f"`headrace reset {topic}`",
    ):
        assert part in str(raised.value)
    assert raised.value.exit_status == 3
    with working(config, jump=True) as run:
        head = run.read(32)
        run.finish()
        assert run.counts() == [1] * 16 + [0] * 4 + [1] * 16
        [jump] = run.changes("jump")
        assert (jump["topic"], jump["partition"], jump["from"], jump["to"]) == (topic, 0, 16, 20)
        assert any(f"{topic} partition 0, from 16 to 20" in line for line in run.said)
        assert run.outcomes() == {(topic, 0, n): ["learned"] for n in [*range(16), *range(20, 36)]}
    assert head.watermark == {topic: {0: 36}}
    with working(config, jump=True) as run:  # allowed, and not needed
        run.waits(lambda: run.metric("headrace_log_up"))
        assert len(run.changes("jump")) == 1


def test_records_that_were_read_and_removed_before_they_were_learned(
    kafka: str, redis_url: str, topics: Topics
) -> None:
    topic = topics()
    config = configuration(kafka, redis_url, topic, **BY_SIZE)
    publish(config, topic, *numbers(range(11)))
    with working(config) as run:
        run.read(8)
        run.finish()
        publish(config, topic, *numbers(range(11, 19)))
    with working(config) as run:
        head = run.until(lambda manifest: manifest.counts["learned"] == 16)
        run.crash()
    assert [offset for _, offset in head.pending] == [16, 17, 18]
    topics.admin.delete_records({TopicPartition(topic, 0): 18})
    with working(config) as run, pytest.raises(OffsetsGone, match=f"offset 16 .*holds .*18 to 19.*{topic} --jump`"):
        run.join()
    publish(config, topic, *numbers(range(19, 26)))
    with working(config, jump=True) as run:
        run.read(26)
        run.finish()
        gone = {(topic, 0, n): ["skipped/gone" if n in (16, 17) else "learned"] for n in range(26)}
        assert run.outcomes() == gone
        assert run.counts() == [1] * 16 + [0, 0] + [1] * 8
        assert run.store.manifest().counts == {"learned": 24, "skipped/gone": 2}
        assert run.metric("headrace_records_total", outcome="skipped", reason="gone") == 2


@pytest.mark.parametrize("records", [3, 40])
def test_a_topic_that_was_made_again(
    kafka: str, redis_url: str, topics: Topics, records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer records than were read, and with more: then the offsets would fit."""
    begun = []

    def feed(*args: Any, **kwargs: Any) -> Feed:
        begun.append(kwargs["positions"])
        return Feed(*args, **kwargs)

    topic = topics()
    config = configuration(kafka, redis_url, topic, keep_last=100)
    before = lived(config, topic, range(16))
    replaced(topics, topic)
    publish(config, topic, *numbers(range(100, 100 + records)))
    with working(config) as run, pytest.raises(TopicReplaced) as raised:
        run.join()
    for part in (topic, "was deleted and made again", "0:16", f"0:0 to {records}", f"train {topic} --jump"):
        assert part in str(raised.value)
    assert raised.value.exit_status == 3
    assert run.store.head() == before.ref
    monkeypatch.setattr(trainer, "Feed", feed)
    with working(config, jump=True) as run:
        run.read(16 + records)
        assert begun == [{Partition(topic, 0): 0}]  # a version before the first chunk would have the old ones
        after = run.finish()
        assert run.counts() == [1] * 16 + [0] * 84 + [1] * records
        [jump] = run.changes("jump")
        assert (jump["from"], jump["to"], jump["ids"]) == (16, 0, [before.topic_ids[topic], after.topic_ids[topic]])
    publish(config, topic, b"300")
    with working(config) as run:  # the new topic is the model's now
        assert run.read(16 + records + 1).watermark == {topic: {0: records + 1}}


def test_a_topic_that_is_made_again_while_it_is_read(
    kafka: str, redis_url: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "Reader", partial(Reader, refresh_s=0.2))
    topic = topics()
    config = configuration(kafka, redis_url, topic)
    publish(config, topic, *numbers(range(8)))
    with working(config) as run:
        before = run.read(8)
        replaced(topics, topic)
        publish(config, topic, *numbers(range(100, 200)))
        with pytest.raises(TopicReplaced, match=f"{topic} was deleted and made again"):
            run.join()
        assert run.store.manifest().counts == before.counts


def test_partitions_that_are_added_while_it_is_read(
    kafka: str, redis_url: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "Reader", partial(Reader, refresh_s=0.2))
    topic = topics()
    config = configuration(kafka, redis_url, topic, start="latest")
    with working(config) as run:
        run.waits(lambda: run.metric("headrace_log_up"))
        publish(config, topic, b"0")
        run.read(1)
        topics.admin.create_partitions({topic: 4})
        topics.admin.wait_for_topics([topic])
        with Publisher(config.kafka) as publisher:
            for number in range(1, 41):
                publisher.publish(topic, b"%d" % number, partition=number % 4)
        head = run.read(41)
        run.finish()
        assert run.counts() == [1] * 41
    assert head.watermark == {topic: {0: 11, 1: 10, 2: 10, 3: 10}}


# --- the store ---


def exactly_once(run: Working, topic: str, records: int) -> None:
    """In the weights, and in the line that leads to the head."""
    assert run.counts() == [1] * records
    assert run.outcomes() == {(topic, 0, offset): ["learned"] for offset in range(records)}


@pytest.mark.parametrize("place", ["the same", "another"])
def test_redis_comes_back_older_while_a_worker_runs(
    kafka: str, redis_url: str, topic: str, redis: Redis, place: str
) -> None:
    """From after the worker took its place, and from before."""
    config = configuration(kafka, redis_url, topic, lease_s=0.6)
    before = lived(config, topic, range(8))
    older = backup(redis, topic)
    with working(config) as run:
        run.waits(lambda: run.metric("headrace_log_up"))
        if place == "the same":
            older = backup(redis, topic)
        publish(config, topic, *numbers(range(8, 16)))
        vanished = run.read(16)
        restore(redis, topic, older)
        publish(config, topic, *numbers(range(16, 24)))
        run.until(lambda manifest: manifest.counts["learned"] == 24)
        run.finish()
        exactly_once(run, topic, 24)
        versions = [entry.version for entry in run.store.histories()]
        assert max(versions[: versions.index(before.version) + 1]) == before.version
        assert min(versions[versions.index(before.version) + 1 :]) > vanished.version
        assert run.changes("lost")[0]["above"] == before.version
        assert any("came back older" in line for line in run.said)
        assert (run.metric("headrace_head_moves_total") or 0) >= 1


def test_redis_came_back_older_while_no_worker_ran(kafka: str, redis_url: str, topic: str, redis: Redis) -> None:
    config = configuration(kafka, redis_url, topic)
    before = lived(config, topic, range(8))
    older = backup(redis, topic)
    vanished = lived(config, topic, range(8, 16))
    restore(redis, topic, older)
    with working(config) as run:
        first = run.until(lambda manifest: manifest.version != before.version)
        run.read(16)
        run.finish()
        exactly_once(run, topic, 16)
        assert (first.version, first.parent) == (vanished.version + 1, before.ref)
        assert run.changes("lost") == [{"above": before.version, "up_to": vanished.version}]
        assert any(f"version {vanished.version} was announced" in line for line in run.said)
    with working(config) as run:  # told once
        run.waits(lambda: run.metric("headrace_log_up"))
        assert not any("was announced" in line for line in run.said)


def test_redis_was_emptied(kafka: str, redis_url: str, topic: str, redis: Redis) -> None:
    config = configuration(kafka, redis_url, topic)
    vanished = lived(config, topic, range(8))
    restore(redis, topic, {})
    with working(config) as run:
        head = run.read(8)
        assert head.version > vanished.version
        assert run.changes("lost") == [{"above": 0, "up_to": vanished.version}]
        restore(redis, topic, {})  # now while it runs
        publish(config, topic, b"8")
        assert run.read(9).version > head.version
        run.finish()
        exactly_once(run, topic, 9)


def test_redis_is_emptied_while_workers_run(kafka: str, topics: Topics, store: EmbeddedRedis) -> None:
    """Two of one family: the first that begins anew leaves its traces before the other one looks."""
    names = [topics(), topics()]
    configs = [configuration(kafka, store.url, name, family="both", lease_s=0.5) for name in names]
    for config, name in zip(configs, names, strict=True):
        publish(config, name, *numbers(range(8)))
    with working(configs[0]) as one, working(configs[1]) as other, Redis.from_url(store.url) as redis:
        before = [run.read(8).version for run in (one, other)]
        redis.flushall()
        for run, config, name, version in zip((one, other), configs, names, before, strict=True):
            head = run.until(lambda manifest, v=version: manifest.version > v and sum(manifest.counts.values()) == 8)  # type: ignore[misc]
            assert head.parent is None or head.parent.version > version  # numbers go on
            publish(config, name, b"8")
            run.read(9)
            run.finish()
            assert run.counts() == [1] * 9
            assert any("came back older than it was, or empty" in line for line in run.said)
            assert run.metric("headrace_head_moves_total") == 1


def test_a_full_redis_is_freed_by_a_worker_that_is_to_keep_less(
    kafka: str, topics: Topics, store: EmbeddedRedis
) -> None:
    topic = topics()
    config = configuration(kafka, store.url, topic, **BY_SIZE)
    with working(config) as run:
        for first in range(0, 32, 8):  # a version each
            publish(config, topic, *numbers(range(first, first + 8)))
            run.read(first + 8)
        run.finish()
        assert len(run.store.versions()) > 2
    with Redis.from_url(store.url) as redis:
        redis.config_set("maxmemory", 1)
        less = configuration(kafka, store.url, topic, **{**BY_SIZE, "keep_last": 2})
        publish(less, topic, *numbers(range(32, 40)))
        with working(less) as run:
            run.waits(lambda: len(run.store.versions()) == 2)
            run.waits(lambda: run.metric("headrace_store_up") == 0)
            redis.config_set("maxmemory", 0)
            run.read(40)
            run.waits(lambda: run.metric("headrace_store_up") == 1)  # it is told after the version is there
            run.finish()
            assert run.counts() == [1] * 40


def test_a_worker_that_ends_between_the_number_and_the_commit(
    kafka: str, redis_url: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(kafka, redis_url, topic)
    before = lived(config, topic, range(8))
    publish(config, topic, *numbers(range(8, 16)))

    def crash(*_: object) -> None:
        raise Crashed

    with monkeypatch.context() as patch, working(config) as run:
        patch.setattr(Writer, "commit", crash)
        with pytest.raises(Crashed):
            run.join()
        assert run.store.head() == before.ref
    with working(config) as run:
        head = run.read(16)
        run.finish()
        exactly_once(run, topic, 16)
        first = next(entry for entry in run.store.histories(above=before.version))
        assert first.version == before.version + 2
        assert run.changes("lost") == [{"above": before.version, "up_to": before.version + 1}]
    assert head.counts == {"learned": 16}


def test_a_head_of_a_newer_format_and_one_that_is_damaged(kafka: str, redis_url: str, topic: str, redis: Redis) -> None:
    config = configuration(kafka, redis_url, topic)
    head = lived(config, topic, range(8))
    store = prepared(config).store
    forged(redis, store, head.version, format=99)
    with working(config) as run, pytest.raises(Corrupt) as raised:
        run.join()
    for part in (f"version {head.version} of {topic}", "format 99", "Upgrade headrace", "headrace reset"):
        assert part in str(raised.value)
    assert raised.value.exit_status == 4

    redis.set(store._keys.key("head"), str(head.ref))
    redis.set(store._keys.key(f"manifest:{head.version}"), head.raw)
    redis.zadd(store._keys.key("versions"), {str(head.ref): head.version})
    redis.setrange(store._keys.family_key(f"tensor:{head.serving['counts'].parts[0].digest}"), 100, b"?")
    with working(config) as run, pytest.raises(Corrupt) as raised:
        run.join()
    assert f"Tensor counts of version {head.version} of {topic}" in str(raised.value)
    assert raised.value.exit_status == 4


def test_redis_that_goes_away_while_the_head_is_fetched(
    kafka: str, redis_url: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(kafka, redis_url, topic)
    lived(config, topic, range(8))
    publish(config, topic, b"8")
    arrays, failures = Store.arrays, [StoreUnavailable("Redis cannot be reached. Check that it runs.")]

    def away(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return arrays(*args, **kwargs)

    monkeypatch.setattr(Store, "arrays", away)
    with working(config) as run:
        run.read(9)
        run.finish()
        exactly_once(run, topic, 9)
        assert any("Starting again from the head" in line for line in run.said)


def test_a_guard_that_did_its_work_does_not_make_the_worker_impatient(
    kafka: str, tmp_path: Path, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "RETRY_S", 0.1)
    with EmbeddedRedis(tmp_path) as redis:
        fragile = "tests.consumers.fragile:blueprint"
        config = configuration(kafka, redis.url, topic, learner=fragile, lease_s=0.3)
        publish(config, topic, *numbers(range(8)), b"900")
        with working(config) as run:
            run.read(9)
            redis.stop()
            publish(config, topic, *numbers(range(9, 17)))
            run.waits(lambda: (run.metric("headrace_store_retries_total") or 0) >= 8)  # longer than a lease
            redis.start()
            head = run.read(17)
            run.finish()
    assert head.counts == {"learned": 16, "dead-lettered/non-finite": 1}
