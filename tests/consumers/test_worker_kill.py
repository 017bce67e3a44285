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
from pipeline.config import Config
from pipeline.log import Partition, Publisher, ensure_topics
from pipeline.metrics import WorkerMetrics
from pipeline.store import Store, connect
from tests.consumers.working import configuration
from tests.services import unique

KILLS = 8
RECORDS = 450  # before each kill, and after the last
PARTITIONS = 3


def work(config: Mapping[str, Any]) -> None:
    """A worker process, until SIGTERM."""
    settings = Config.model_validate(config)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    store = Store(connect(settings.redis.url), settings.family("counts"), "counts")
    blueprint = resolve_blueprint(settings.model("counts").learner)
    metrics = WorkerMetrics(CollectorRegistry(), "counts")
    Worker("counts", settings, blueprint, store, metrics, stop=stop, say=print, owner="test").run()


def test_killed_at_random_moments_every_record_is_learned_exactly_once(kafka: str, redis_url: str) -> None:
    topic = unique("topic")
    rng = random.Random(3)
    often: dict[str, Any] = {"snapshot_every_updates": 3, "snapshot_every_s": 0.05, "lease_s": 0.2}
    config = configuration(kafka, redis_url, topic, name="counts", family=topic, batch_size=32, **often)
    # A warm parent: importing torch takes seconds, once, and a kill should not.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["consumers.trainer", "tests.consumers.counting"])

    def start() -> Any:
        process = context.Process(target=work, args=(config.model_dump(),), daemon=True)
        process.start()
        return process

    store = Store(connect(redis_url), topic, "counts")

    def next_version(version: int) -> None:
        """Returns once there is a higher one."""
        last = "0"
        while (head := store.head()) is None or head.version <= version:
            assert process.is_alive()
            for event in store.events(last, 1000):
                last = event.id

    ensure_topics(config.kafka.model_copy(update={"partitions": PARTITIONS}), [topic])
    process = start()
    published: dict[tuple[str, int, int], str] = {}
    futures = []
    with Publisher(config.kafka) as publisher:
        for kill in range(KILLS + 1):
            head = store.head()
            for number in range(kill * RECORDS, (kill + 1) * RECORDS):
                bad = number % 97 == 0
                value = b"\xff not a text" if bad else None if number % 89 == 0 else str(number).encode()
                futures.append((number, value, publisher.publish(topic, value, key=str(number).encode())))
            publisher.flush(30)
            if kill == KILLS:
                break
            if kill % 2:  # a kill while it starts; else while it learns and commits
                process.join(rng.uniform(0.0, 0.8))
            else:
                next_version(head.version if head else 0)
                process.join(rng.uniform(0.0, 0.2))
            process.kill()
            process.join()
            process = start()
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
    version = 0
    while not version or any(store.manifest().positions().get(p, 0) < end for p, end in ends.items()):
        next_version(version)
        head = store.head()
        assert head is not None
        version = head.version
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
