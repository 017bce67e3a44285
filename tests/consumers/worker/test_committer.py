"""One writer a model: how a worker keeps its place, loses it, and hands it over; and one version a snapshot."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from redis import Redis

from consumers.worker.committer import Committer, Lease, Snapshot
from pipeline.config import KafkaConfig
from pipeline.errors import Fenced, StoreUnavailable
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Reader
from pipeline.metrics import WorkerMetrics
from pipeline.store.codec import from_numpy
from pipeline.store.rowlog import Delta
from pipeline.store.store import Store
from tests.consumers.working import PATIENCE_S, configuration, numbers, prepared, publish, working
from tests.pipeline.drafts import draft

ROOT = Path(__file__).resolve().parents[3]
LEASE_S = 0.3


def lease_key(store: Store) -> str:
    return f"headrace:{{{store.family}}}:model:{store.model}:lease"


def steal(redis: Redis, store: Store) -> None:
    """Takes the place of a worker that lives: what a long pause of it would end in."""
    while store.acquire("thief", 60) is None:
        redis.delete(lease_key(store))


def test_the_page_has_the_order_of_a_commit_as_the_code_has_it() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d)\. (.*?) \| .*? \| `(.*?)` \|$", page, re.M)
    steps = re.findall(r"^ *(\d)\. (.*)\.$", Committer._commit.__doc__ or "", re.M)
    assert [(number, step) for number, step, _ in rows] == steps
    assert [int(number) for number, _ in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert all((ROOT / shown_by).is_file() for *_, shown_by in rows)


def test_a_second_worker_stands_by_and_takes_over(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, lease_s=LEASE_S)
    publish(config, topic, *numbers(range(10)))
    with working(config) as first:
        first.read(10)
        with working(config) as second:
            second.waits(lambda: second.said)
            assert second.said == [f"test learns {topic}; standing by to take over."]
            before = first.finish()
            publish(config, topic, b"10")
            after = second.read(11)
            assert second.counts() == [1] * 11
    assert after.parent == before.ref


def test_a_worker_that_stands_by_can_be_stopped(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic)
    store = prepared(config).store
    fence = store.acquire("another", 60)
    assert fence is not None
    with working(config) as run:
        run.waits(lambda: run.said)
        run.stop.set()
        run.join()
    assert store.holder() == "another"


def test_a_worker_whose_lease_was_taken_stops(kafka: str, redis_url: str, redis: Redis, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, lease_s=LEASE_S)
    publish(config, topic, b"0")
    with working(config) as run:
        head = run.read(1)
        steal(redis, run.store)
        with pytest.raises(Fenced, match=f"{topic}"):
            run.join()
    assert run.store.holder() == "thief"  # the end of the first did not release the second's place
    assert run.store.head() == head.ref


def test_a_lease_is_prolonged_until_its_context_ends(redis: Redis, family: str) -> None:
    store, metrics = Store(redis, family, "m"), WorkerMetrics(CollectorRegistry(), "m")
    fence = store.acquire("test", 3)
    assert fence is not None
    with Lease(store, fence, 3, metrics) as lease:  # a learner that takes long to restore
        left = redis.pttl(lease_key(store))
        while (now := redis.pttl(lease_key(store))) <= left:
            assert now > 0
            left = now
        lease.check()
    assert store.holder() is None


class Interrupted(Store):
    """Redis goes away for one moment: after the commit, before the retention."""

    broke = False

    def retire(self, *args: object, **kwargs: object) -> list[int]:
        if not self.broke:
            self.broke = True
            raise StoreUnavailable("Redis cannot be reached. Check that it runs.")
        return super().retire(*args, **kwargs)  # type: ignore[arg-type]


def test_what_fails_behind_a_commit_is_repeated_without_a_second_version(
    kafka_config: KafkaConfig, redis: Redis, family: str, topic: str
) -> None:
    store, metrics, said = Interrupted(redis, family, "m"), WorkerMetrics(CollectorRegistry(), "m"), list[str]()
    fence = store.acquire("test", 60)
    assert fence is not None
    with (
        Reader(kafka_config, [topic], group="g") as reader,
        Publisher(kafka_config) as dead_letters,
        Committer(store, fence, 0, reader, dead_letters, metrics, said.append) as committer,
    ):
        committer.submit(Snapshot(draft(0, {}), {}, 2, None))
        assert committer.busy
        committer.finish(PATIENCE_S)
    assert [ref.version for ref in store.versions()] == [1]
    assert len(said) == 1


def test_a_mistake_in_a_snapshot_ends_the_worker(
    kafka_config: KafkaConfig, redis: Redis, family: str, topic: str
) -> None:
    store, metrics, said = Store(redis, family, "m"), WorkerMetrics(CollectorRegistry(), "m"), list[str]()
    fence = store.acquire("test", 60)
    assert fence is not None
    one_row = Delta(2, np.array([0]), from_numpy(np.zeros((1, 3))))  # of a tensor that was never sent whole
    with (
        Reader(kafka_config, [topic], group="g") as reader,
        Publisher(kafka_config) as dead_letters,
        Committer(store, fence, 0, reader, dead_letters, metrics, said.append) as committer,
    ):
        committer.submit(Snapshot(draft(0, {"rows": one_row}), {}, 2, None))
        with pytest.raises(ValueError, match="rows"):
            committer.finish(PATIENCE_S)
    assert store.head() is None
