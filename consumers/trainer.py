"""The worker: one model, one writer. Poll → decode → batch → predict → learn → perhaps a snapshot.

The order of a commit, and what a crash leaves between each two steps:

1. What changed is copied to host memory, together with the watermark and the lineage (a crash: the head is as before).
2. Dead letters are flushed to Kafka (a crash: the next worker sends them once more, under the same key).
3. Objects that the parent does not name are uploaded (a crash: they expire by themselves).
4. One script moves the head: weights, training state, lineage and watermark together (a crash after it: the new head
   is the truth, and the next worker seeks to its watermark).
5. Offsets are committed to Kafka, for lag monitors alone (a crash: a monitor shows an old lag).
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any

import torch
from pydantic import ValidationError

from consumers.bridge import copied, tensors
from consumers.committer import Committer, Lease, Snapshot
from consumers.feed import Feed, Item, Uplink
from models.drift import DriftDetector
from models.evaluation import Prequential
from models.learner import Blueprint, Learner, State, structural_fields, update_generator
from pipeline import __version__
from pipeline.config import Config, ModelConfig
from pipeline.dead_letters import dead_letter_topic, publish_dead_letter
from pipeline.errors import ConfigError, StateMismatch
from pipeline.lineage import LineageBuilder
from pipeline.log import Partition, Publisher, Reader, ensure_topics
from pipeline.manifest import Manifest
from pipeline.metrics import WorkerMetrics
from pipeline.records import RecordDecoder, load_decoder
from pipeline.store import Draft, Fence, Store

BOUNDS = {"input.max_bytes", "input.max_pixels"}  # of what is let in; all else of `input` is what has been learned
TAKE_S = 0.1  # how long a step waits for an item before it looks at the clock and at the stop signal


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: torch does not know the device, or this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f'device = "{name}" cannot be used here: {error}. Use "auto" or "cpu".') from None
    return device


class Worker:
    """Learns one model from its topics until it is stopped.

    Args:
        name: of the model, a table of the configuration.
        blueprint: how its learner is built.
        stop: set by whoever wants the worker to end with a snapshot.
        say: where one-line messages go.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        blueprint: Blueprint,
        store: Store,
        metrics: WorkerMetrics,
        *,
        stop: Event,
        say: Callable[[str], None],
        owner: str,
    ) -> None:
        self._name = name
        self._config = config
        self._settings = config.model(name)
        self._blueprint = blueprint
        self._store = store
        self._metrics = metrics
        self._stop = stop
        self._say = say
        self._owner = owner
        self._options = validated_options(name, self._settings, blueprint)
        self._device = pick_device(self._settings.device)
        self._lineage = LineageBuilder()
        self._watermark: dict[Partition, int] = {}
        self._topics: dict[str, int] = {}  # numbers of the topics in the replay memory's origins: never reused
        self._counts: Counter[str] = Counter()
        self._updates = 0
        self._newest_timestamp_ms: int | None = None
        self._prequential = Prequential()
        self._drift = DriftDetector() if self._settings.drift_detector == "hddm" else None
        self._dirty = False  # something happened since the last capture
        self._captured_s = time.monotonic()
        self._captured_updates = 0

    def run(self) -> None:
        """Takes the model's place, goes on from its head, and returns after the last snapshot once `stop` is set.

        Raises:
            HeadraceError: what an operator has to mend; `Fenced` when another worker took the place.
        """
        torch.set_num_threads(self._settings.threads)
        fence = self._take_place()
        if fence is None:
            return
        kafka, settings = self._config.kafka, self._settings
        with Lease(self._store, fence, settings.lease_s, self._metrics) as lease:
            learner = self._build()
            ensure_topics(kafka, [*settings.topics, *map(dead_letter_topic, settings.topics)])
            group = f"headrace-{self._name}"
            reader = Reader(kafka, settings.topics, positions=self._watermark, start=settings.start, group=group)
            with (
                reader,
                Publisher(kafka) as dead_letters,
                Committer(self._store, fence, reader, dead_letters, self._metrics, self._say) as committer,
            ):
                self._learn(learner, lease, committer, reader, dead_letters)

    def _take_place(self) -> Fence | None:
        """The fence, or None if `stop` came while standing by."""
        told = False
        while not self._stop.is_set():
            fence = self._store.acquire(self._owner, self._settings.lease_s)
            if fence is not None:
                return fence
            if not told:
                self._say(f"{self._store.holder() or 'Another worker'} learns {self._name}; standing by to take over.")
                told = True
            self._stop.wait(self._settings.lease_s / 4)
        return None

    # --- from the head ---

    def _build(self) -> Learner:
        shape, seed = self._settings.input.shape, self._settings.seed
        try:
            learner: Learner = self._blueprint.learner(self._options, shape, seed, self._device)
        except ValueError as error:  # a learner that cannot take records of this shape
            raise ConfigError(f"models.{self._name}: {error} Change its input or its options.") from None
        head = self._store.head()
        if head is None:
            self._say(f"{self._name}: no version yet; beginning at {self._settings.start} on {self._device}.")
        else:
            self._restore(learner, self._store.manifest(head))
        for topic in self._settings.topics:
            self._topics.setdefault(topic, len(self._topics))
        return learner

    def _restore(self, learner: Learner, manifest: Manifest) -> None:
        changes = config_changes(manifest, self._settings, self._blueprint)
        serving = tensors(self._store.arrays(manifest, "serving"))
        training = tensors(self._store.arrays(manifest, "training"))
        try:
            learner.restore(State(serving, training, manifest.meta))
        except ValueError as error:
            raise mismatch(manifest, str(error)) from None
        self._watermark = manifest.positions()
        self._counts = Counter(manifest.counts)
        self._updates = self._captured_updates = manifest.updates
        self._newest_timestamp_ms = manifest.newest_timestamp_ms
        self._topics = dict(manifest.worker["topics"])
        self._prequential.restore(manifest.worker["prequential"])
        if self._drift is not None and manifest.worker["drift"] is not None:
            self._drift.restore(manifest.worker["drift"])
        if changes:
            self._lineage.change({"config": changes})
            self._dirty = True
        self._say(f"{self._name}: going on from version {manifest.version} ({manifest.digest[:12]}) on {self._device}.")

    # --- the loop ---

    def _learn(
        self, learner: Learner, lease: Lease, committer: Committer, reader: Reader, dead_letters: Publisher
    ) -> None:
        settings = self._settings
        decoder = RecordDecoder(
            settings.input,
            needs_label=learner.needs_label,
            decode=load_decoder(settings.decoder) if settings.decoder else None,
        )
        feed = Feed(
            reader,
            decoder,
            Uplink(self._device),
            topics=self._topics,
            batch_size=settings.batch_size,
            max_wait_ms=settings.max_wait_ms,
            decode_threads=settings.decode_threads,
        )
        try:
            while not self._stop.is_set():
                lease.check()
                committer.check()
                self._metrics.log_up(reader.reachable)
                item = feed.take(TAKE_S)
                if item is not None:
                    self._step(item, learner, dead_letters)
                if self._due() and not committer.busy:
                    committer.submit(self._capture(learner, reader))
            committer.finish(settings.lease_s)
            if self._dirty:
                committer.submit(self._capture(learner, reader))
                committer.finish(settings.lease_s)
        finally:
            feed.close()

    def _step(self, item: Item, learner: Learner, dead_letters: Publisher) -> None:
        """Everything that one item changes, so that a capture between two steps is consistent."""
        if item.batch is not None and (refused := learner.refuses(item.batch.labels)):
            item.refuse(refused)
        for dead in item.dead:
            publish_dead_letter(dead_letters, dead.record, dead.error, self._name)
            self._outcome(f"dead-lettered/{dead.error.reason}", dead.record)
        for skipped in item.skipped:
            self._outcome(f"skipped/{skipped.reason}", skipped.record)
        if item.batch is not None:
            started = time.perf_counter()
            report = learner.learn(item.batch, update_generator(self._settings.seed, self._updates))
            self._updates += 1
            records = [example.record for example in item.examples]
            self._lineage.learned([(Partition(r.topic, r.partition), r.offset) for r in records])
            self._counts["learned"] += len(records)
            newest = max(record.timestamp_ms for record in records)
            self._newest_timestamp_ms = max(newest, self._newest_timestamp_ms or newest)
            hits = None
            if report.predicted is not None:
                pairs = zip(report.predicted, item.batch.labels, strict=True)
                hits = [predicted == label for predicted, label in pairs]
            self._prequential.update(report.loss, hits, records=len(records))
            if self._drift is not None and hits is not None and self._drift.update(hits):
                self._say(f"{self._name}: drift: the prequential error rose (update {self._updates}).")
                self._lineage.change({"drift": {"update": self._updates}})
                self._metrics.drifted()
            step_s = time.perf_counter() - started
            self._metrics.updated(
                step_s,
                [record.timestamp_ms for record in records],
                loss=self._prequential.loss or 0.0,
                accuracy=self._prequential.accuracy,
                replay_records=learner.replay_size,
            )
        for partition, position in item.positions.items():
            if self._watermark.get(partition) != position:
                self._watermark[partition] = position
                self._dirty = True

    def _outcome(self, name: str, record: Any) -> None:
        self._lineage.outcome(name, Partition(record.topic, record.partition), record.offset)
        self._counts[name] += 1
        self._metrics.outcome(name)

    # --- snapshots ---

    def _due(self) -> bool:
        if not self._dirty:
            return False
        every_updates, every_s = self._settings.snapshot_every_updates, self._settings.snapshot_every_s
        by_updates = every_updates is not None and self._updates - self._captured_updates >= every_updates
        by_time = every_s is not None and time.monotonic() - self._captured_s >= every_s
        return by_updates or by_time

    def _capture(self, learner: Learner, reader: Reader) -> Snapshot:
        started = time.perf_counter()
        settings, state = self._settings, learner.capture()
        lag = reader.lag()
        self._metrics.lag(lag)
        draft = Draft(
            learner=settings.learner,
            input=settings.input.model_dump(mode="json"),
            options=self._options.model_dump(mode="json"),
            config=settings.model_dump(mode="json"),
            classes=list(learner.model.classes),
            seed=settings.seed,
            updates=self._updates,
            counts=dict(self._counts),
            positions=dict(self._watermark),
            newest_timestamp_ms=self._newest_timestamp_ms,
            metrics={**self._prequential.metrics(), "lag_records": float(sum(lag.values()))},
            environment=self._environment(),
            meta=dict(state.meta),
            worker={
                "topics": dict(self._topics),
                "prequential": self._prequential.state(),
                "drift": self._drift.state() if self._drift is not None else None,
            },
            lineage=self._lineage.build(),
            serving=copied(state.serving),
            training=copied(state.training),
        )
        self._dirty = False
        self._captured_s, self._captured_updates = time.monotonic(), self._updates
        self._metrics.stalled(time.perf_counter() - started)
        return Snapshot(draft, dict(self._watermark), settings.keep_last, settings.keep_every)

    def _environment(self) -> dict[str, Any]:
        return {
            "headrace": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "device": self._device.type,
            "threads": torch.get_num_threads(),
        }


def validated_options(name: str, settings: ModelConfig, blueprint: Blueprint) -> Any:
    """The learner's own options.

    Raises:
        ConfigError: a line for each that does not fit.
    """
    if settings.input.kind != blueprint.input:
        raise ConfigError(
            f'models.{name}.input.kind = "{settings.input.kind}": {settings.learner} learns from {blueprint.input}s. '
            f'Set it to "{blueprint.input}", or choose another learner.'
        )
    try:
        return blueprint.options(**settings.options)
    except ValidationError as error:
        lines = [
            f"models.{name}.options.{'.'.join(map(str, item['loc']))} = {item['input']!r}: {item['msg']}."
            for item in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None


def config_changes(manifest: Manifest, settings: ModelConfig, blueprint: Blueprint) -> dict[str, list[Any]]:
    """What the file says differently from the head: key → [before, now]. The file wins.

    Raises:
        StateMismatch: a change that the learned state cannot follow.
    """
    now = settings.model_dump(mode="json")
    before: Mapping[str, Any] = manifest.config
    changes = {key: [before.get(key), now[key]] for key in now if before.get(key) != now[key]}
    options_before = manifest.options
    options_now = blueprint.options(**settings.options).model_dump(mode="json")
    fixed = {
        f"options.{key}" for key in structural_fields(blueprint.options) if options_before.get(key) != options_now[key]
    }
    if "learner" in changes:
        fixed.add("learner")
    if "input" in changes:
        was, shall = changes["input"]
        fixed |= {f"input.{key}" for key in was.keys() | shall.keys() if was.get(key) != shall.get(key)} - BOUNDS
    if fixed:
        raise mismatch(manifest, f"{', '.join(sorted(fixed))} changed.")
    return changes


def mismatch(manifest: Manifest, why: str) -> StateMismatch:
    """The error for a version that the configuration does not fit, with the choices."""
    return StateMismatch(
        f"models.{manifest.model}: {why} Version {manifest.version} cannot follow. Put the old value back, "
        f"start anew with `headrace reset {manifest.model}`, or give the model another name."
    )
