"""The same learner fed with decoded tensors from RAM, and through Kafka as PNG records: records/s and their ratio.

Both runs learn the same records in the same batches, on the same threads, and predict first. The broker runs on the
same cores as the worker.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from prometheus_client import CollectorRegistry
from redis import Redis

from consumers.registry import resolve_blueprint
from consumers.trainer import Worker
from models.learner import Batch, update_generator
from pipeline.config import Config, validate
from pipeline.local import Local
from pipeline.log import Publisher
from pipeline.metrics import WorkerMetrics
from pipeline.store import Store

BATCH = 64
SIZE = 28


@dataclass(frozen=True, slots=True)
class Throughput:
    """Records per second of one pair of runs."""

    ram_per_s: float
    kafka_per_s: float
    profile: str  # the 15 most expensive functions of the worker's own thread

    @property
    def ratio(self) -> float:
        return self.kafka_per_s / self.ram_per_s


def pictures(count: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Ten classes of noisy blobs: (N, 1, 28, 28) uint8, labels. What is drawn does not matter for speed."""
    centres = rng.normal(size=(10, 1, SIZE, SIZE)) * 60 + 120
    y = rng.integers(0, 10, count)
    x = np.clip(centres[y] + rng.normal(size=(count, 1, SIZE, SIZE)) * 30, 0, 255).astype(np.uint8)
    return x, [str(label) for label in y]


def from_ram(config: Config, x: np.ndarray, labels: list[str]) -> float:
    """Records/s of the bare learner."""
    settings = config.model("bench")
    blueprint = resolve_blueprint(settings.learner)
    torch.set_num_threads(settings.threads)
    learner = blueprint.learner(
        blueprint.options(**settings.options), settings.input.shape, settings.seed, torch.device("cpu")
    )
    tensor = torch.from_numpy(x)
    started = 0.0
    for update in range(len(x) // BATCH):
        if update == 10:  # the first updates allocate
            started = time.perf_counter()
        at = slice(update * BATCH, (update + 1) * BATCH)
        origins = torch.zeros(BATCH, 3, dtype=torch.int64)
        ids = torch.zeros(BATCH, 16, dtype=torch.uint8)
        learner.learn(Batch(tensor[at], labels[at], origins, ids), update_generator(settings.seed, update))
    return (len(x) // BATCH - 10) * BATCH / (time.perf_counter() - started)


def through_kafka(config: Config, x: np.ndarray, labels: list[str]) -> tuple[float, str]:
    """Records/s of the worker on a topic that already holds the records, and the profile of its thread."""
    with Publisher(config.kafka) as publisher:
        for picture, label in zip(x, labels, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(picture[0]).save(buffer, "PNG")
            publisher.publish("bench", buffer.getvalue(), headers=[("label", label.encode())])
        publisher.flush(60)
    rate, _ = _work(config, len(x), profiled=False)
    _, profile = _work(config, len(x), profiled=True)
    return rate, profile


def _work(config: Config, count: int, *, profiled: bool) -> tuple[float, str]:
    name = "bench"
    redis = Redis.from_url(config.redis.url)
    store = Store(redis, config.family(name), name)
    stop = threading.Event()
    seen: list[tuple[float, int]] = []
    learned = 0

    class Counting(WorkerMetrics):
        """Tells when records were learned, and ends the run after the last."""

        def updated(self, step_s: float, timestamps_ms: list[int], *rest: Any) -> None:
            nonlocal learned
            super().updated(step_s, timestamps_ms, *rest)
            learned += len(timestamps_ms)
            seen.append((time.perf_counter(), learned))
            if learned >= count:
                stop.set()

    settings = config.model(name)
    metrics = Counting(CollectorRegistry(), name)
    worker = Worker(
        name,
        config,
        resolve_blueprint(settings.learner),
        store,
        metrics,
        stop=stop,
        say=lambda _: None,
        owner="bench",
    )
    profiler = cProfile.Profile() if profiled else None
    if profiler:
        profiler.enable()
    worker.run()
    if profiler:
        profiler.disable()
    store.delete()
    (first_s, first), (last_s, last) = seen[10], seen[-1]
    text = io.StringIO()
    if profiler:
        pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(15)
    return (last - first) / (last_s - first_s), text.getvalue()


def run(folder: Path, count: int = 30_000, threads: int = 1) -> Throughput:
    """Both runs, with servers of their own."""
    x, labels = pictures(count, np.random.default_rng(0))
    with Local(folder) as servers:
        config = validate(
            {
                "kafka": {"bootstrap_servers": servers.bootstrap_servers, "partitions": 2},
                "redis": {"url": servers.redis_url},
                "models": {
                    "bench": {
                        "topics": ["bench"],
                        "learner": "image-classifier",
                        "batch_size": BATCH,
                        "threads": threads,
                        "input": {"kind": "image", "size": SIZE, "channels": 1},
                    }
                },
            },
            "benchmark",
        )
        ram = from_ram(config, x, labels)
        kafka, profile = through_kafka(config, x, labels)
    return Throughput(ram, kafka, profile)
