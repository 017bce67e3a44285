"""A worker is killed at random moments, also inside a commit: every record has exactly one outcome."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from benchmarks.soak import traffic, workers
from benchmarks.soak.checker import read_log, recount, weights
from benchmarks.soak.proxy import Proxy, Trap
from consumers.loading import resolve_blueprint
from consumers.worker.fold import Recipe
from consumers.worker.replay import Replay
from consumers.worker.sources import Sources
from consumers.worker.verify import verify
from pipeline.log.fetcher import Fetcher
from pipeline.log.publisher import Publisher
from pipeline.log.topics import ensure_topics
from pipeline.store.redis import connect
from pipeline.store.store import Store
from tests.consumers.working import PATIENCE_S, configuration
from tests.device import DEVICE
from tests.services import unique

KILLS = ("starting", "learning", "upload", "commit", "answer", "note", "starting", "commit")
RECORDS = 200  # before each kill, and after the last
PARTITIONS = 3
OFTEN: dict[str, Any] = {"snapshot_every_updates": 3, "snapshot_every_s": 0.05, "lease_s": 0.2, "keep_last": 1000}


@pytest.fixture
def store_proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        yield proxy


@pytest.fixture
def log_proxy(kafka: str) -> Iterator[Proxy]:
    with Proxy(int(kafka.rpartition(":")[2]), kafka=True) as proxy:
        yield proxy


def test_killed_at_random_moments_every_record_is_learned_exactly_once(
    kafka: str, redis_url: str, redis: Redis, store_proxy: Proxy, log_proxy: Proxy, tmp_path: Path
) -> None:
    topic, rng = unique("topic"), random.Random(3)
    decoder = "benchmarks.soak.traffic:numbered"
    configured = partial(configuration, name="counts", family=topic, batch_size=32, decoder=decoder, keyframe_every=3)
    direct = configured(kafka, redis_url, topic, **OFTEN)
    harmed = configured(log_proxy.address, f"redis://{store_proxy.address}/0", topic, **OFTEN)
    ensure_topics(direct.kafka.model_copy(update={"partitions": PARTITIONS}), [topic])
    store = Store(connect(redis_url), topic, "counts")

    def next_version(version: int) -> None:
        """Returns once there is a higher one."""
        last = "0"
        while (head := store.head()) is None or head.version <= version:
            assert process.is_alive(), (tmp_path / "log").read_text()
            for event in store.events(last, 1000):
                last = event.id

    def break_the_commit(kind: str) -> None:
        commit = b'{"format":1,"model":"counts"'
        trap = {
            "note": Trap(b"headrace-counts", rng.randrange(200)),
            "upload": Trap(b":tensor:", rng.randrange(5000), cut=rng.random() < 0.5),
            "commit": Trap(commit, rng.randrange(2000), cut=rng.random() < 0.5),
            "answer": Trap(commit, answer=True),
        }[kind]
        (log_proxy if kind == "note" else store_proxy).arm(trap)
        publish()
        assert trap.sprung.wait(PATIENCE_S), kind

    def publish() -> None:
        for number in range(len(receipts), len(receipts) + RECORDS):
            sent = traffic.text(number)
            receipts.append(publisher.publish(topic, sent.value, key=sent.key, headers=sent.headers))
        publisher.flush(30)

    receipts: list[Any] = []
    with Publisher(direct.kafka) as publisher:
        for kill in KILLS:
            process = workers.start(harmed, "counts", tmp_path / "log")
            head = store.head()
            publish()
            if kill == "starting":
                process.join(rng.uniform(0.0, 0.8))
            else:
                next_version(head.version if head else 0)
                if kill == "learning":
                    process.join(rng.uniform(0.0, 0.2))
                else:
                    break_the_commit(kill)
            process.kill()
            process.join()
            store_proxy.cut()
            log_proxy.cut()
        process = workers.start(harmed, "counts", tmp_path / "log")
        publish()
    version = 0
    while sum((manifest := store.manifest()).counts.values()) < len(receipts):
        version = manifest.version
        next_version(version)
    process.terminate()
    process.join()
    assert process.exitcode == 0

    log, letters = (read_log(kafka, [name]) for name in (topic, f"{topic}.dead-letters"))
    assert log.keys() == {receipt.result(10) for receipt in receipts}
    wanted = {place: traffic.COUNTED[seen.headers[traffic.KIND].decode()] for place, seen in log.items()}
    found = recount(redis, topic, "counts", wanted, letters)
    assert found.problems == []
    assert found.pending == 0
    assert found.kept == found.versions > found.keyframes
    counts = weights(redis, topic, "counts", "counts")[:, 0]
    learned = [int(seen.headers["id"]) for place, seen in log.items() if wanted[place] == "learned"]
    np.testing.assert_array_equal(counts, np.bincount(learned, minlength=len(counts)))

    settings, target = direct.model("counts"), store.manifest()
    with Fetcher(direct.kafka) as fetcher:
        replay = Replay(fetcher, target.topic_ids)
        recipe = Recipe("counts", settings, resolve_blueprint(settings.learner), DEVICE)
        again = verify(store, recipe, replay, Sources(store, direct.family), target)
    assert again.differs == {}
    assert again.records == len(learned)
