"""The same learner fed with decoded tensors from RAM, and through Kafka as PNG records: records/s and their ratio.

Both runs learn the same records in the same batches, on the same threads, and predict first; each has a process of its
own. The RAM-fed one does nothing else. The Kafka-fed one is `headrace train` with its defaults (a snapshot every two
seconds) on a topic that already holds all records; broker and Redis run on the same cores. Its speed is read from the
versions that it leaves: records learned and time of each.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.data import PICTURE, digits, publish
from benchmarks.report import Figure, Findings
from benchmarks.stage import Stage, apart
from consumers.loading import resolve_blueprint
from consumers.worker.worker import pick_device
from models.learner import Batch, update_generator
from pipeline.config import ModelConfig
from pipeline.store.store import Store

TOPIC = "pictures"
FLOOR = 0.80
CAPTURE = ("Session._capture", "Fold.draft", "Fold._captured", "Fold._rows")  # where a snapshot is taken
WARM_UP = 0.1  # share of the records before the clock starts


def settings(threads: int, device: str) -> dict[str, Any]:
    """The model's table: defaults, but for the topic and what is learned."""
    table = {"topics": [TOPIC], "learner": "image-classifier", "input": dict(PICTURE)}
    return {**table, "threads": threads, "device": device}


def from_ram(table: dict[str, Any], records: int) -> float:
    """Records/s of the bare learner."""
    config = ModelConfig.model_validate(table)
    blueprint = resolve_blueprint(config.learner)
    torch.set_num_threads(config.threads)
    shape, size = config.input.shape, config.batch_size
    device = pick_device(config.device)
    learner = blueprint.learner(blueprint.options(), shape, config.seed, device)
    pictures = digits(records)
    x = torch.from_numpy(pictures.x)  # (N, 1, 28, 28) uint8
    origins = torch.zeros(size, 3, dtype=torch.int64)
    ids = torch.zeros(size, 16, dtype=torch.uint8)
    updates = records // size
    warm_up = int(WARM_UP * updates)
    started_s = time.perf_counter()
    for update in range(updates):
        if update == warm_up:
            started_s = time.perf_counter()
        at = slice(update * size, (update + 1) * size)
        learner.learn(Batch(x[at], pictures.labels[at], origins, ids), update_generator(config.seed, update))
    return (updates - warm_up) * size / (time.perf_counter() - started_s)


def through_kafka(stage: Stage, model: str, records: int, *through: str) -> float:
    """Records/s of a new model's worker."""
    store = stage.store(model)
    with stage.headrace("train", model, through=through or ("consumers.cli.app",)) as worker:
        worker.until(lambda: learned(store) >= (1 - WARM_UP) * records or None)
    return rate_per_s(store, records)


def learned(store: Store) -> int:
    """Records that the newest version has learned."""
    return store.manifest(head).counts.get("learned", 0) if (head := store.head()) else 0


def rate_per_s(store: Store, records: int) -> float:
    """Records/s between the first version and the last one that still had records of `records` before it."""
    points = [(entry.created_ms / 1000, entry.counts.get("learned", 0)) for entry in store.histories()]
    running = [point for point in points if 0 < point[1] < records]
    (first_s, first), (last_s, last) = running[0], running[-1]
    return (last - first) / (last_s - first_s)


def measure(stage: Stage, *, records: int, repeats: int, threads: Sequence[int], device: str) -> Findings:
    """RAM-fed and Kafka-fed in turn, `repeats` times for each number of threads, and a profile of the worker."""
    tables = {f"t{n}-{run}": settings(n, device) for n in threads for run in (*range(repeats), "profile")}
    stage.configure(tables, partitions=1)  # one partition: one order, and so the same batches
    stage.say(f"publishing {records} pictures")
    publish(stage.config().kafka, TOPIC, digits(records).records())
    figures, notes, raw = [], [], {}
    for n in threads:
        ram, kafka = [], []
        for run in range(repeats):
            ram.append(apart(from_ram, settings(n, device), records))
            kafka.append(through_kafka(stage, f"t{n}-{run}", records))
            stage.say(f"{n} threads, run {run + 1}: RAM {ram[-1]:.0f}, Kafka {kafka[-1]:.0f} records/s")
        ram_per_s, kafka_per_s = statistics.median(ram), statistics.median(kafka)
        ratio = kafka_per_s / ram_per_s
        name = f"{n} thread{'s' * (n > 1)}" + (f" and {device}" if device != "cpu" else "")
        found = f"{kafka_per_s:,.0f} of {ram_per_s:,.0f} records/s: **{ratio:.2f}**"
        figures.append(Figure(f"Kafka-fed of RAM-fed, {name}", found, f"≥ {FLOOR:.2f}", ratio >= FLOOR))
        out = stage.folder / f"profile-{n}.json"
        profiled_per_s = through_kafka(stage, f"t{n}-profile", records, "benchmarks.profiler", str(out))
        profile = json.loads(out.read_text("utf-8"))
        notes.append(f"With {name}: {_account(profile, ram_per_s, profiled_per_s, settings(n, device))}")
        raw[f"threads={n}"] = {"ram_per_s": ram, "kafka_per_s": kafka, "profile": profile}
    return Findings(figures, notes, raw)


def _account(profile: dict[str, Any], ram_per_s: float, kafka_per_s: float, table: dict[str, Any]) -> str:
    """Where an update's time goes, in one sentence."""
    size = ModelConfig.model_validate(table).batch_size
    ram_ms, kafka_ms = 1000 * size / ram_per_s, 1000 * size / kafka_per_s
    main = profile["threads"]["MainThread"]
    places: dict[str, float] = main["places"]
    learn = sum(
        share for where, share in places.items() if where.startswith("Fold.learn → ") and where.endswith(".learn")
    )
    waiting = sum(share for where, share in places.items() if where.startswith("Feed.take"))
    capture = sum(share for where, share in places.items() if where.startswith(CAPTURE))
    rest = 1 - learn - waiting - capture
    others = sorted(
        ((name, t["running"]) for name, t in profile["threads"].items() if name != "MainThread" and "running" in t),
        key=lambda pair: -pair[1],
    )[:4]
    return (
        f"an update of {size} records takes {ram_ms:.1f} ms from RAM and {kafka_ms:.1f} ms in the profiled worker, "
        f"of which the learner has {learn * kafka_ms:.1f}, waiting for a batch {waiting * kafka_ms:.1f}, "
        f"snapshots {capture * kafka_ms:.1f} and the accounts of the update {rest * kafka_ms:.1f}; the learner's "
        f"thread is on a core for {main['running']:.0%} of the time, without one for {main['without_core']:.0%}. "
        f"The worker's other threads take of a core: {', '.join(f'{name} {share:.0%}' for name, share in others)}."
    )
