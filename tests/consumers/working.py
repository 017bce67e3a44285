"""A real worker for tests: on a thread, against the real Kafka and Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from consumers.cli.command import open_store
from consumers.loading import resolve_blueprint
from consumers.worker.fold import Recipe
from consumers.worker.replay import Replay
from consumers.worker.sources import Sources
from consumers.worker.verify import Verification, verify
from consumers.worker.worker import Worker
from pipeline.config import Config, validate
from pipeline.log.fetcher import Fetcher
from pipeline.log.publisher import Publisher
from pipeline.metrics import WorkerMetrics
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store
from tests.device import DETERMINISTIC, DEVICE

PATIENCE_S = 60.0  # a slow machine is no failure
COUNTING = {"learner": "tests.consumers.counting:blueprint", "input": {"kind": "text", "max_chars": 16}}


def configuration(kafka: str, redis_url: str, *topics: str, name: str | None = None, **model: Any) -> Config:
    """One model that counts numbers, named after its first topic; `model` are keys of its table."""
    where = {"device": DEVICE.type, "deterministic": DETERMINISTIC}
    often = {"batch_size": 8, "max_wait_ms": 20, "snapshot_every_s": 0.05}
    table = {**COUNTING, **where, **often, "topics": topics, **model}
    tree = {
        "kafka": {"bootstrap_servers": kafka, "partitions": 1},
        "redis": {"url": redis_url},
        "models": {name or topics[0]: table},
    }
    return validate(tree, "test")


class Crashed(Exception):
    """A worker was made to end where it stood."""


class Switch(threading.Event):
    """The stop signal of a worker; it can also end it hard, without a last version."""

    crashed = False

    def is_set(self) -> bool:
        if self.crashed:
            raise Crashed
        return super().is_set()


@dataclass(slots=True)
class Working:
    """A worker and what it leaves in the store."""

    name: str
    store: Store
    registry: CollectorRegistry
    worker: Worker
    stop: Switch
    said: list[str]
    error: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run, name="worker")
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:  # noqa: BLE001 - handed over: `join` raises it
            self.error = error

    def until(self, true_of: Callable[[Manifest], bool]) -> Manifest:
        """The first head of which it is true."""
        last, deadline = "0", time.monotonic() + PATIENCE_S
        while True:
            head = self.store.head()
            if head is not None and true_of(manifest := self.store.manifest(head)):
                return manifest
            events = self.store.events(last, 1000)
            last = events[-1].id if events else last
            if self.error is not None or time.monotonic() >= deadline:
                self.join()
                raise AssertionError(f"no such version came; the worker said {self.said}")

    def read(self, records: int) -> Manifest:
        """The first head that accounts for so many records, in whatever way."""
        return self.until(lambda manifest: sum(manifest.counts.values()) >= records)

    def waits(self, true: Callable[[], object]) -> None:
        """Returns once it is true; for what the store does not tell."""
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            if self.error is not None or time.monotonic() >= deadline:
                self.join()
                raise AssertionError(f"it did not become true; the worker said {self.said}")
            self.stop.wait(0.01)

    def learns(self, records: int) -> None:
        """Returns once so many records were learned, be they in a version or not."""
        self.waits(lambda: (self.metric("headrace_records_total", outcome="learned", reason="") or 0) >= records)

    def counts(self) -> list[int]:
        """What the counting learner has counted, up to the highest number."""
        counts = self.store.arrays(self.store.manifest(), "serving")["counts"].numpy()[:, 0]
        found: list[int] = np.trim_zeros(counts, "b").tolist()
        return found

    def join(self) -> None:
        """Waits for the end, and raises what ended it."""
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error

    def finish(self) -> Manifest:
        """Stops it; the head that it leaves."""
        self.stop.set()
        self.join()
        return self.store.manifest()

    def crash(self) -> Manifest:
        """Ends it as a failure would, between two steps and without a last version; the head that it leaves."""
        self.stop.crashed = True
        self.thread.join(PATIENCE_S)
        assert isinstance(self.error, Crashed), self.error
        return self.store.manifest()

    def changes(self, kind: str) -> list[Any]:
        """Such changes in the lineage, oldest first."""
        found: list[Any] = [change for entry in self.store.histories() for change in entry.lineage.changes]
        return [change[kind] for change in found if kind in change]

    def outcomes(self) -> dict[tuple[str, int, int], list[str]]:
        """What became of every record that the history names: (topic, partition, offset) → its outcomes, one each."""
        found: dict[tuple[str, int, int], list[str]] = {}
        for entry in self.store.histories():
            learned = [("learned", place) for update in entry.lineage.learned() for place in update]
            for name, place in [*learned, *entry.lineage.others()]:
                found.setdefault((*place.partition, place.offset), []).append(name)
        return found

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model": self.name, **labels})


def prepared(config: Config, jump: bool = False) -> Working:
    """A worker that does not run yet.

    Raises:
        ConfigError: as `Worker` does.
    """
    [name] = config.models
    store = open_store(config, name)
    registry, stop, said = CollectorRegistry(), Switch(), list[str]()
    worker = Worker(
        name,
        config,
        resolve_blueprint(config.model(name).learner),
        store,
        WorkerMetrics(registry, name),
        stop=stop,
        say=said.append,
        owner="test",
        jump=jump,
    )
    return Working(name, store, registry, worker, stop, said)


@contextmanager
def working(config: Config, jump: bool = False) -> Iterator[Working]:
    """A worker that runs, until the context ends."""
    run = prepared(config, jump)
    run.start()
    try:
        yield run
    finally:
        run.stop.set()
        run.thread.join(PATIENCE_S)


def publish(config: Config, topic: str, *records: bytes | tuple[bytes, str] | None) -> None:
    """Publishes values, or values with their labels, and waits until they are there."""
    with Publisher(config.kafka) as publisher:
        for record in records:
            value, label = record if isinstance(record, tuple) else (record, None)
            headers = [] if label is None else [("label", label.encode())]
            publisher.publish(topic, value, key=b"key", headers=headers)


def verified(
    run: Working,
    config: Config,
    version: int | str = "latest",
    start: int | None = None,
    device: torch.device = DEVICE,
) -> Verification:
    """What `headrace verify` finds; torch keeps its number of threads."""
    settings, threads = config.model(run.name), torch.get_num_threads()
    target = run.store.manifest(version)
    try:
        with Fetcher(config.kafka) as fetcher:
            return verify(
                run.store,
                Recipe(run.name, settings, resolve_blueprint(settings.learner), device),
                Replay(fetcher, target.topic_ids),
                Sources(run.store, config.family),
                target,
                run.store.manifest(start) if start is not None else None,
            )
    finally:
        torch.set_num_threads(threads)


def numbers(*ranges: Iterable[int]) -> list[bytes]:
    """Numbers as the texts that the counting learner reads."""
    return [str(number).encode() for range_ in ranges for number in range_]
