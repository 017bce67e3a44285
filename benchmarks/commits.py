"""What a commit costs: bytes moved for the bytes that changed, and how long the updates stand still for it.

The worker itself, with metrics that remember, on a topic that is full: for each built-in learner, with 10,000 replay
slots. A version every few updates, so that what is moved does not depend on the machine's speed.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from benchmarks.data import PICTURE, TEXT, digits, messages, publish
from benchmarks.report import Figure, Findings
from benchmarks.stage import Stage, apart
from consumers.loading import resolve_blueprint
from consumers.worker.worker import Worker
from pipeline.config import Config
from pipeline.metrics import WorkerMetrics
from pipeline.store.redis import connect
from pipeline.store.store import Store
from pipeline.store.writer import Committed

LEARNERS = {"image-classifier": PICTURE, "text-classifier": TEXT, "image-vae": PICTURE}
KEEP_LAST = 20
MAX_RATIO = 1.2
NEVER_S = 3600.0  # snapshots are due by updates here
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cost:
    """One commit."""

    full: bool  # whether the replay memory was full since the commit before
    changed_bytes: int
    moved_bytes: int
    stall_s: float  # of the updates
    step_s: float  # median of the updates since the commit before
    commit_s: float

    @property
    def ratio(self) -> float:
        return self.moved_bytes / self.changed_bytes

    @property
    def stall_steps(self) -> float:
        return self.stall_s / self.step_s


class Costs(WorkerMetrics):
    """Metrics that remember, and end the worker after enough commits with a full memory, or after all `records`."""

    def __init__(self, model: str, *, slots: int, commits: int, records: int, stop: threading.Event) -> None:
        super().__init__(CollectorRegistry(), model)
        self.found: list[Cost] = []
        self._slots, self._commits, self._left, self._stop = slots, commits, records, stop
        self._steps_s: list[float] = []
        self._replayable = 0  # records in the memory
        self._was_full = False
        self._captured = (False, 0.0, 0.0)  # full, stall, step

    def updated(self, step_s: float, timestamps_ms: Sequence[int], **values: Any) -> None:
        super().updated(step_s, timestamps_ms, **values)
        self._steps_s.append(step_s)
        self._replayable = values["replay_records"]
        self._left -= len(timestamps_ms)
        if self._left <= 0:
            self._stop.set()

    def stalled(self, seconds: float) -> None:
        super().stalled(seconds)
        self._captured = (self._was_full, seconds, statistics.median(self._steps_s))
        self._was_full = self._replayable == self._slots
        self._steps_s = []

    def committed(self, committed: Committed, seconds: float) -> None:
        super().committed(committed, seconds)
        full, stall_s, step_s = self._captured
        self.found.append(Cost(full, committed.bytes_changed, committed.bytes_moved, stall_s, step_s, seconds))
        if sum(cost.full for cost in self.found) == self._commits:
            self._stop.set()


def work(config: Config, model: str, slots: int, commits: int, records: int) -> list[Cost]:
    """A worker from its first record on; what its last snapshot costs, when it is stopped, counts only if regular."""
    stop = threading.Event()
    settings = config.model(model)
    store = Store(connect(config.redis.url), config.family(model), model)
    metrics = Costs(model, slots=slots, commits=commits, records=records, stop=stop)
    blueprint = resolve_blueprint(settings.learner)
    Worker(model, config, blueprint, store, metrics, stop=stop, say=lambda _: None, owner="benchmark").run()
    regular = [cost for cost in metrics.found if not cost.full]
    return regular + [cost for cost in metrics.found if cost.full][:commits]


def measure(stage: Stage, *, slots: int, commits: int, updates: int) -> Findings:
    """`commits` commits with a full memory for each learner, one every `updates` updates, after those that fill it."""
    table = {"options": {"replay_slots": slots}, "keep_last": KEEP_LAST}
    table |= {"snapshot_every_updates": updates, "snapshot_every_s": NEVER_S}
    stage.configure(
        {
            name: {**table, "topics": [input["kind"]], "learner": name, "input": input}
            for name, input in LEARNERS.items()
        }
    )
    config = stage.config()
    # A slow commit lets updates pass: half as many again is room enough.
    records = slots + int(1.5 * (commits + 2) * updates) * config.model("image-vae").batch_size
    stage.say(f"publishing {records} pictures and as many texts")
    publish(config.kafka, "image", digits(records).records())
    publish(config.kafka, "text", messages(records))
    figures, raw = [], {}
    for name in LEARNERS:
        costs = apart(work, config, name, slots, commits, records)
        stored = stored_bytes(config, name)
        found = _figures(name, costs, stored)
        for figure in found:
            stage.say(f"{figure.what}: {figure.found}")
        figures += found
        raw[name] = {"stored_bytes": stored, "commits": [asdict(cost) for cost in costs]}
    note = f"A version every {updates} updates of 64 records; {slots:,} replay slots."
    return Findings(figures, [note], raw)


def stored_bytes(config: Config, model: str) -> int:
    """What a model takes in Redis, with Redis's own overhead."""
    redis = connect(config.redis.url)
    keys = redis.scan_iter(match=f"*{{{config.family(model)}}}*", count=1000)
    return sum(redis.memory_usage(key, samples=0) or 0 for key in keys)


def _figures(name: str, costs: list[Cost], stored: int) -> list[Figure]:
    figures = []
    for phase, full in (("filling", False), ("full", True)):
        ratios = [cost.ratio for cost in costs if cost.full == full]
        changed = statistics.median(cost.changed_bytes for cost in costs if cost.full == full)
        largest = max(ratios)
        told = f"median {statistics.median(ratios):.2f}, max **{largest:.2f}** ({changed / MIB:.1f} MiB changed)"
        what = f"{name}: moved / changed bytes, memory {phase}, {len(ratios)} commits"
        figures.append(Figure(what, told, f"≤ {MAX_RATIO:g}", largest <= MAX_RATIO))
    steady = [cost for cost in costs if cost.full]
    steps = [cost.stall_steps for cost in steady]
    stall_ms = 1000 * statistics.median(cost.stall_s for cost in steady)
    told = f"median **{statistics.median(steps):.2f}** steps ({stall_ms:.1f} ms), max {max(steps):.2f} steps"
    figures.append(Figure(f"{name}: stall a snapshot", told))
    seconds = [cost.commit_s for cost in steady]
    told = f"median {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s; {stored / MIB:.0f} MiB in Redis"
    figures.append(Figure(f"{name}: a commit; all versions kept (the last {KEEP_LAST})", told))
    return figures
