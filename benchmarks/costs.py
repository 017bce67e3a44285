"""What exactly-once costs: lineage and seeding in each update; a restart with and without a keyframe at the head."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.data import PICTURE, digits, publish
from benchmarks.report import Figure, Findings
from benchmarks.stage import Stage, apart
from consumers.loading import resolve_blueprint
from models.learner import Batch, update_generator
from pipeline.config import ModelConfig
from pipeline.records import Partition, Place
from pipeline.store.lineage import LineageBuilder

TOPIC = "pictures"
CEILING = 0.02
BLOCK = 20  # updates; a version is about as many
MODELS = {"at-each": 1, "far-back": 1_000_000}  # keyframe_every


def settings(**more: Any) -> dict[str, Any]:
    """The model's table: defaults, but for the topic and what is learned."""
    return {"topics": [TOPIC], "learner": "image-classifier", "input": dict(PICTURE), **more}


def bookkeeping(blocks: int) -> list[float]:
    """For each block of updates: the time with lineage and seeding, of that without. Both learn the same, in turn."""
    config = ModelConfig.model_validate(settings())
    torch.set_num_threads(config.threads)
    blueprint, size = resolve_blueprint(config.learner), config.batch_size
    device = torch.device("cpu")
    shape = config.input.shape
    plain, kept = (blueprint.learner(blueprint.options(), shape, config.seed, device) for _ in range(2))
    pictures = digits(blocks * BLOCK * size)
    x = torch.from_numpy(pictures.x)  # (N, 1, 28, 28) uint8
    origins, ids = torch.zeros(size, 3, dtype=torch.int64), torch.zeros(size, 16, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    lineage, partitions = LineageBuilder(), [Partition(TOPIC, number) for number in range(3)]
    ratios = []
    for block in range(blocks):
        updates = range(block * BLOCK, (block + 1) * BLOCK)
        batches = []
        for update in updates:
            at = slice(update * size, (update + 1) * size)
            batches.append(Batch(x[at], pictures.labels[at], origins, ids))

        def without(batches: list[Batch] = batches) -> None:
            for batch in batches:
                plain.learn(batch, generator)

        def with_them(batches: list[Batch] = batches, updates: range = updates) -> None:
            for update, batch in zip(updates, batches, strict=True):
                kept.learn(batch, update_generator(config.seed, update))
                # A batch of three partitions, a third of it from each, as a reader brings it.
                lineage.learned([Place(partitions[3 * row // size], update * size + row) for row in range(size)])
            lineage.build().model_dump_json()

        # Who comes first changes: the second one finds warm caches.
        spans = {}
        for run in (without, with_them) if block % 2 else (with_them, without):
            started_s = time.perf_counter()
            run()
            spans[run] = time.perf_counter() - started_s
        ratios.append(spans[with_them] / spans[without])
    return ratios[len(ratios) // 10 :]


def restart(stage: Stage, model: str, updates: int) -> tuple[float, int]:
    """Kills a worker after so many updates: seconds until the next one goes on, and the updates that it repeats."""
    store = stage.store(model)
    with stage.headrace("train", model) as worker:
        worker.until(lambda: ((head := store.head()) and store.manifest(head).updates >= updates) or None)
        worker.popen.kill()
        worker.popen.wait()
    head = store.manifest()
    repeats = head.updates - store.keyframe(head).updates
    started_s = time.monotonic()
    with stage.headrace("train", model) as worker:
        worker.until(lambda: "going on from version" in worker.log.read_text() or None, every_s=0.02)
        return time.monotonic() - started_s, repeats


def measure(stage: Stage, *, blocks: int, updates: int) -> Findings:
    """Both figures; `blocks` of 20 updates each for the first, a restart after `updates` for the second."""
    ratios = apart(bookkeeping, blocks)
    cost = statistics.median(ratios) - 1
    spread = statistics.quantiles(ratios, n=4)
    told = f"median **{cost:+.1%}** (quartiles {spread[0] - 1:+.1%} to {spread[2] - 1:+.1%}; {len(ratios)} pairs)"
    figures = [Figure("lineage and seeding, of an update's time", told, f"≤ {CEILING:.0%}", cost <= CEILING)]
    tables = {
        name: settings(keyframe_every=every, snapshot_every_updates=BLOCK, snapshot_every_s=3600.0, lease_s=1.0)
        for name, every in MODELS.items()
    }
    stage.configure(tables, partitions=1)
    config = stage.config()
    publish(config.kafka, TOPIC, digits((updates + 10 * BLOCK) * config.model("at-each").batch_size).records())
    raw: dict[str, Any] = {"bookkeeping": ratios}
    for name in MODELS:
        seconds, repeats = restart(stage, name, updates)
        raw[name] = {"restart_s": seconds, "updates_repeated": repeats}
        where = "at the head" if name == "at-each" else f"{repeats} updates back"
        figures.append(Figure(f"a worker's start until it goes on, keyframe {where}", f"**{seconds:.1f} s**"))
    return Findings(figures, ["A start imports torch and river, and waits for the killed worker's lease of 1 s."], raw)
