"""The worker: one model, one writer. Poll → decode → batch → predict → learn → perhaps a snapshot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from functools import partial
from threading import Event

import torch

from consumers.worker.committer import RETRY_S, Committer, Lease
from consumers.worker.environment import environment, use_deterministic
from consumers.worker.evaluator import Evaluator, feature_extractor_of
from consumers.worker.feed import Feed, Uplink
from consumers.worker.fitting import config_changes, differences, settled, validated_options
from consumers.worker.fold import Fold, Recipe
from consumers.worker.joiner import Joiner
from consumers.worker.replay import Replay, at_version, decoder_of
from consumers.worker.session import Session
from consumers.worker.sources import Sources
from consumers.worker.stalls import Stalls
from models.learner import Blueprint
from pipeline.config import Config
from pipeline.errors import ConfigError, HeadMoved, LogUnavailable, OffsetsGone, StoreUnavailable
from pipeline.log import AlignedReader, Fetcher, Publisher, Reader, dead_letter_topic, ensure_topics
from pipeline.metrics import WorkerMetrics
from pipeline.records import Record
from pipeline.store import Fence, Manifest, Store


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


@dataclass(eq=False)
class Worker:
    """Learns one model from its topics until it is stopped.

    Args:
        jump: where the next records are gone, whether it may go on at the first ones that the topic still holds.
    """

    name: str  # of the model, a table of the configuration
    config: Config
    blueprint: Blueprint  # how its learner is built
    store: Store
    metrics: WorkerMetrics
    _: KW_ONLY
    stop: Event  # set by whoever wants the worker to end with a snapshot
    say: Callable[[str], None]  # where one-line messages go
    owner: str
    jump: bool = False

    def __post_init__(self) -> None:
        self._settings = self.config.model(self.name)
        validated_options(self.name, self._settings, self.blueprint)
        self._stalls = Stalls(self.name, self.metrics, self.say)
        self._device = pick_device(self._settings.device)
        pinned, units = self._settings.cpu_isa, torch.backends.cpu.get_cpu_capability()
        if pinned is not None and pinned.upper() != units:
            raise ConfigError(
                f'models.{self.name}.cpu_isa = "{pinned}", and torch was loaded with {units} kernels. They are chosen '
                f"when a process starts: use `headrace train {self.name}`."
            )
        if self._device.type == "cuda" and self._settings.keyframe_every > 1 and not self._settings.deterministic:
            raise ConfigError(
                f"models.{self.name}.keyframe_every = {self._settings.keyframe_every}: on CUDA, learning again gives "
                f"equal bits in the deterministic mode alone. Set deterministic = true, or keyframe_every = 1."
            )

    def run(self) -> None:
        """Takes the model's lease and goes on from its head. Once `stop` is set, it commits a last version and returns.

        Raises:
            HeadraceError: what an operator has to mend; `Fenced` when another worker took the lease.
        """
        torch.set_num_threads(self._settings.threads)
        use_deterministic(self._settings.deterministic)
        kafka, topics = self.config.kafka, self._settings.read_topics
        while (fence := self._take_lease()) is not None:
            try:
                with Lease(self.store, fence, self._settings.lease_s, self.metrics, self._stalls.problem) as lease:
                    ensure_topics(kafka, [*topics, *map(dead_letter_topic, topics)])
                    with Fetcher(kafka) as fetcher:
                        self._session(fence, lease, fetcher)
            except HeadMoved as error:
                self.say(str(error))
                self.metrics.head_moves.inc()
            except (LogUnavailable, StoreUnavailable) as error:  # while it starts: a commit is tried again by itself
                if self.stop.is_set():
                    raise
                self.say(f"{error} Starting again from the head when it is back.")
                if isinstance(error, StoreUnavailable):
                    self.metrics.store_up(False)
                else:
                    self.metrics.log_up.set(False)
                self.stop.wait(RETRY_S)
            else:
                return

    def _take_lease(self) -> Fence | None:
        """Returns the fence, or None if `stop` was set while this worker stood by."""
        said = ""
        while not self.stop.is_set():
            try:
                fence = self.store.acquire(self.owner, self._settings.lease_s)
                if fence is not None:
                    return fence
                line = f"{self.store.holder() or 'Another worker'} learns {self.name}; standing by to take over."
            except StoreUnavailable as error:
                line = f"{error} Standing by."
            if line != said:
                self.say(line)
                said = line
            self.stop.wait(self._settings.lease_s / 4)
        return None

    def _session(self, fence: Fence, lease: Lease, fetcher: Fetcher) -> None:
        """Learns from the head on, for as long as this worker holds the lease."""
        kafka, settings, name = self.config.kafka, self._settings, self.name
        head = self.store.head()
        manifest = self.store.manifest(head) if head else None
        if manifest is None:
            self.say(f"{name}: no version yet; beginning at {settings.start} on {self._device}.")
        else:
            config_changes(manifest, settings, self.blueprint)  # before anything is read or learned again
        with ExitStack() as opened:
            reader = self._reader(manifest, opened)
            announced = int(reader.last_number or 0)
            committed = self.store.writer(fence).next_version - 1  # the highest number that Redis knows of
            letters = opened.enter_context(Publisher(kafka, idempotent=False))
            committer = opened.enter_context(
                Committer(self.store, fence, announced, reader, letters, self.metrics, self.say)
            )
            replay = Replay(fetcher, manifest.topic_ids if manifest else {}, reader.firsts() if self.jump else None)
            make_fold = partial(self._at, replay=replay)
            fold = make_fold(manifest)
            if manifest is not None:
                self.say(
                    f"{name}: going on from version {manifest.version} ({manifest.digest[:12]}) on {self._device}."
                )
            self._tell_jumps(fold, reader, announced, committed)
            backlog = self._backlog(fold, manifest, replay)
            replay.topic_ids |= reader.topic_ids
            first = reader.poll(0)  # its first chunk has the first position of each partition
            session = Session(fold, manifest, make_fold, committer, replay, self._evaluator(), self._stalls)
            feed = Feed(
                reader,
                decoder_of(fold),
                Uplink(self._device),
                topics=fold.topics,
                batch_size=settings.batch_size,
                max_wait_ms=settings.max_wait_ms,
                decode_threads=settings.decode_threads,
                hold_out=settings.hold_out.share if settings.hold_out.slots else 0.0,
                positions=(manifest.positions() if manifest else {}) | (first.positions if first else {}),
                backlog=backlog,
                joiner=_joiner(fold, reader),
                already={place for place, id_ in fold.already if reader.topic_ids.get(place[0].topic) == id_},
            )
            session.run(self.stop, lease, feed)

    def _reader(self, manifest: Manifest | None, opened: ExitStack) -> Reader | AlignedReader:
        """A reader of the model's topics. Labels have a second one, so that they do not run ahead of their records."""

        def reading(topics: Sequence[str]) -> Reader:
            reader = Reader(
                self.config.kafka,
                topics,
                positions=manifest.positions() if manifest else {},
                topic_ids=manifest.topic_ids if manifest else {},
                start=self._settings.start,
                jump=self.jump,
                group=f"headrace-{self.name}",
            )
            return opened.enter_context(reader)

        records, labels = reading(self._settings.topics), self._settings.labels
        return records if labels is None else AlignedReader(records, reading([labels.topic]))

    def _tell_jumps(self, fold: Fold, reader: Reader | AlignedReader, announced: int, committed: int) -> None:
        for jump in reader.jumps:
            self.say(
                f"{self.name}: jumps over what is gone: {jump['topic']} partition {jump['partition']}, "
                f"from {jump['from']} to {jump['to']}."
            )
            fold.lineage.change({"jump": jump})
        if announced > committed:
            self.say(
                f"{self.name}: version {announced} was announced, but Redis knows of none above {committed}: it came "
                f"back older than it was, or a worker was killed right before its commit. The number is not used again."
            )
            fold.lineage.change({"lost": {"above": committed, "up_to": announced}})

    def _backlog(self, fold: Fold, manifest: Manifest | None, replay: Replay) -> list[Record]:
        """The records that the version had read and not learned, but those that are gone where the worker may jump."""
        pending = list(manifest.pending) if manifest else []
        try:
            return list(replay.records(pending))
        except OffsetsGone as error:
            if not self.jump:
                raise type(error)(
                    f"{error} `headrace train {self.name} --jump` goes on without what is gone."
                ) from None
        records: list[Record] = []
        for place in pending:
            try:
                records += replay.records([place])
            except OffsetsGone:
                fold.outcome("skipped/gone", place)
                self.metrics.outcome("skipped/gone")
        return records

    def _evaluator(self) -> Evaluator | None:
        settings = self._settings.hold_out
        if not settings.slots:
            return None
        sources = Sources(self.store, self.config.family)
        return Evaluator(settings, feature_extractor_of(self.name, settings, sources, self._device))

    def _at(self, manifest: Manifest | None, replay: Replay) -> Fold:
        """The fold at a version, under the present settings. Without a version: an untrained learner."""
        recipe = Recipe(self.name, self._settings, self.blueprint, self._device)
        if manifest is None:
            return Sources(self.store, self.config.family).fold(recipe)
        recipe = recipe._replace(settings=settled(self._settings, manifest))
        fold = at_version(recipe, self.store, manifest, replay, self.say)
        fold.lineage.change(
            {
                "config": config_changes(manifest, self._settings, self.blueprint),
                "environment": differences(manifest.environment, environment(self._device)),
            }
        )
        return fold


def _joiner(fold: Fold, reader: Reader | AlignedReader) -> Joiner | None:
    """A joiner of records and labels, where labels have a topic of their own."""
    labels = fold.settings.labels
    if labels is None or isinstance(reader, Reader):
        return None
    newest_ms = fold.newest_timestamp_ms
    start_ms = -math.inf if newest_ms is None else newest_ms
    return Joiner(labels, reader.read_up_to_ms, fold.remembered(), start_ms=start_ms)
