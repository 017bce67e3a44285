"""A worker is killed at random moments and started again: every record has exactly one outcome."""

from __future__ import annotations

import multiprocessing
import random
import signal
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from consumers.registry import resolve_blueprint
from consumers.trainer import Worker
from pipeline.config import Config, validate
from pipeline.log import Partition, Publisher
from pipeline.metrics import WorkerMetrics
from pipeline.store import Store, connect

KILLS = 12
RECORDS = 6_000
PARTITIONS = 3


def configuration(kafka: str, redis_url: str, topics: list[str], **model: Any) -> Config:
    table = {
        "topics": topics,
        "learner": "tests.consumers.counting:blueprint",
        "input": {"kind": "text", "max_chars": 16},
        "batch_size": 32,
        "max_wait_ms": 20,
        "snapshot_every_updates": 3,
        "snapshot_every_s": 0.05,
        "lease_s": 0.5,
        **model,
    }
    tree = {
        "kafka": {"bootstrap_servers": kafka, "partitions": PARTITIONS},
        "redis": {"url": redis_url},
        "models": {"counts": table},
    }
    return validate(tree, "test")


def work(config: Mapping[str, Any]) -> None:
    """A worker process, until SIGTERM."""
    settings = Config.model_validate(config)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    store = Store(connect(settings.redis.url), settings.family("counts"), "counts")
    blueprint = resolve_blueprint(settings.model("counts").learner)
    metrics = WorkerMetrics(CollectorRegistry(), "counts")
    Worker("counts", settings, blueprint, store, metrics, stop=stop, say=print, owner="test").run()


def test_killed_at_random_moments_every_record_is_learned_exactly_once(kafka: str, redis_url: str, topic: str) -> None:
    rng = random.Random(3)
    config = configuration(kafka, redis_url, [topic], family=topic)
    # A warm parent: importing torch takes seconds, a kill should not.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["consumers.trainer", "tests.consumers.counting"])

    def start() -> Any:
        process = context.Process(target=work, args=(config.model_dump(),), daemon=True)
        process.start()
        return process

    store = Store(connect(redis_url), topic, "counts")
    process = start()
    published: dict[tuple[str, int, int], str] = {}
    with Publisher(config.kafka) as publisher:
        futures = []
        for number in range(RECORDS):
            bad = number % 97 == 0
            value = b"\xff not a text" if bad else None if number % 89 == 0 else str(number).encode()
            futures.append((number, value, publisher.publish(topic, value, key=str(number).encode())))
            if number and number % (RECORDS // KILLS) == 0:
                publisher.flush(30)
                process.join(rng.uniform(0.0, 0.6))
                process.kill()
                process.join()
                process = start()
        publisher.flush(30)
    for number, value, future in futures:
        place = future.result(10)
        kind = (
            "skipped/tombstone"
            if value is None
            else f"learned {number}"
            if value[:1] != b"\xff"
            else "dead-lettered/undecodable"
        )
        published[place] = kind

    ends: dict[Partition, int] = {}
    for topic_, partition, offset in published:
        at = Partition(topic_, partition)
        ends[at] = max(ends.get(at, 0), offset + 1)
    last = "0"
    while True:
        head = store.head()
        if head is not None and all(store.manifest(head).positions().get(p, 0) >= end for p, end in ends.items()):
            break
        for event in store.events(last, 1000):
            last = event.id
        assert process.is_alive()
    process.terminate()
    process.join()
    assert process.exitcode == 0

    head = store.head()
    assert head is not None
    manifest = store.manifest(head)
    counts = np.frombuffer(store.arrays(manifest, "serving")["counts"].data, dtype=np.int64)
    wanted = np.zeros_like(counts)
    for kind in published.values():
        if kind.startswith("learned "):
            wanted[int(kind.split()[1])] += 1
    np.testing.assert_array_equal(counts, wanted)

    # An independent recount from the lineage of every version that ever was.
    outcomes: Counter[tuple[str, int, int]] = Counter()
    for version in range(1, head.version + 1):
        lineage = store.lineage(version)
        for update in lineage.learned():
            for at, offset in update:
                outcomes[(*at, offset)] += 1
                assert published[(*at, offset)].startswith("learned")
        for name, at, offset in lineage.others():
            outcomes[(*at, offset)] += 1
            assert published[(*at, offset)] == name
    assert outcomes == Counter(dict.fromkeys(published, 1))
    assert manifest.counts["learned"] == int(wanted.sum())
