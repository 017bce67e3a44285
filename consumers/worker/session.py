"""A worker's time as the writer of its model: items in, updates, versions out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Event
from typing import Any

import torch

from consumers.worker.committer import Committer, Lease, Snapshot
from consumers.worker.evaluator import Evaluator
from consumers.worker.feed import Feed, Item, Uplink, collate
from consumers.worker.fold import CUT, HELD_OUT, JOINED, Fold
from consumers.worker.guard import recover
from consumers.worker.joiner import Correction
from consumers.worker.replay import Replay
from consumers.worker.stalls import Stalls
from models.diagnosis import LastLabels, Measured, diagnose
from pipeline.errors import Diverged, Exhausted, OffsetsGone, RecordError, TopicMissing
from pipeline.log import AlignedReader, Publisher, Reader, publish_dead_letter
from pipeline.metrics import WorkerMetrics
from pipeline.records import Example, Partition, Place, Record, labelled
from pipeline.store import MADE_AGAIN, Manifest, Store
from pipeline.words import counted

TAKE_S = 0.1  # how long a step waits for an item before it looks at the clock and at the stop signal
TRIPS = 3  # of the guard without an update that went well: then it is not the records
WATCH_S = 1.0  # how often is looked whether the log still reaches back to the keyframe


class Session:
    """Learns what the feed brings, and commits.

    Args:
        fold: at the version `manifest`.
        make_fold: makes the fold at a version, anew each time.
        evaluator: evaluates the model on held-out records; None where none is held out.
    """

    def __init__(
        self,
        fold: Fold,
        manifest: Manifest | None,
        make_fold: Callable[[Manifest | None], Fold],
        store: Store,
        committer: Committer,
        reader: Reader | AlignedReader,
        letters: Publisher,
        replay: Replay,
        evaluator: Evaluator | None,
        stalls: Stalls,
        metrics: WorkerMetrics,
        say: Callable[[str], None],
    ) -> None:
        self._fold = fold
        self._make_fold = make_fold
        self._settings = fold.settings
        self._store = store
        self._committer = committer
        self._reader = reader
        self._letters = letters
        self._replay = replay
        self._evaluator = evaluator
        self._examined: dict[str, float] = {}  # what was found last
        if evaluator is not None and manifest is not None:
            evaluator.retention.restore(manifest.probes)
        self._stalls = stalls
        self._metrics = metrics
        self._say = say
        self._trips = 0
        self._dirty = fold.lineage.dirty  # something happened since the last capture
        self._started = (
            set(manifest.positions()) if manifest else set()
        )  # partitions whose first position is in a version
        self._withheld: set[Partition] = set()  # partitions of which this was said
        self._ahead: dict[Partition, int] = {}
        self._captured_s = self._watched_s = time.monotonic()
        self._captured_updates = fold.updates
        self._recent = LastLabels()
        self._diagnoses = manifest.diagnoses if manifest else {}
        keyframe = store.keyframe(manifest) if manifest else None
        self._versions = manifest.version - keyframe.version if manifest and keyframe else 0  # since the keyframe
        self._keyframe = _read_from(keyframe.positions(), keyframe.pending) if keyframe else {}
        self._keyframe_due = keyframe is None or replay.gone > 0
        # Else the last version is a keyframe, and nothing is lost but what is in doubt.
        self._may_doubt = self._settings.keyframe_every > 1

    def run(self, stop: Event, lease: Lease, feed: Feed) -> None:
        """Until `stop`, and then to the last version.

        Raises:
            HeadraceError: what ended it.
        """
        try:
            while not stop.is_set():
                lease.check()
                self._committer.check()
                self._metrics.log_up(self._reader.reachable)
                item = feed.take(TAKE_S)
                if item is not None:
                    with self._stalls.at(partial(_records_text, item)):
                        self._step(item)
                with self._stalls.at(lambda: "what is held out"):
                    self._examine()
                self._watch(feed)
                # Where a partition starts is kept before it has a record: "latest" moves on meanwhile.
                self._dirty |= not feed.partitions <= self._started
                if self._due() and not self._committer.busy:
                    self._commit(feed)
            self._leave(feed)
        except (OffsetsGone, TopicMissing):  # what was learned is not lost for that: `--jump` goes on from it
            if not self._doubt(feed) or self._may_doubt:
                self._leave(feed)
            raise
        except Exhausted:  # the next worker goes on behind what this one has read
            self._leave(feed)
            raise
        finally:
            feed.close()

    def _doubt(self, feed: Feed) -> bool:
        """Returns whether records were read that may be of a topic that was made again. The lineage says which."""
        positions, pending = feed.progress()
        found = {at: offsets for at, offsets in self._reader.doubtful.items() if positions.get(at, 0) > offsets.start}
        for at, offsets in found.items():
            self._fold.lineage.change(
                {"doubtful": {"topic": at.topic, "partition": at.number, "from": offsets.start, "to": offsets.stop}}
            )
        waits = set(pending)
        for at, again in self._reader.again.items():
            places = {Place(at, offset) for offset in again if offset < positions.get(at, 0)} - waits
            self._fold.already |= {(place, self._reader.ids_now[at.topic]) for place in places}
        return bool(found)

    def _leave(self, feed: Feed) -> None:
        """Commits the last version. The next worker can start from it at once."""
        self._committer.finish(self._settings.lease_s)
        if self._dirty or self._versions:
            self._keyframe_due = True
            self._commit(feed)
            self._committer.finish(self._settings.lease_s)

    # --- records ---

    def _step(self, item: Item) -> None:
        """Makes every change that one item brings, so that a capture between two steps is consistent."""
        if item.batch is not None and (refused := self._fold.learner.refuses(item.batch.labels)):
            item.refuse(refused)
        for dead in item.dead:
            self._bury(dead.error, dead.record, dead.label_record)
        if item.held_out:
            self._fold.hold_out(collate(item.held_out, self._fold.topics, Uplink(torch.device("cpu"))), item.held_out)
            for _ in item.held_out:
                self._metrics.outcome(HELD_OUT)
            self._joined(item.held_out)
        for skipped in item.skipped:
            self._outcome(f"skipped/{skipped.reason}", skipped.record)
        if item.batch is not None:
            self._learn(item)
        if item.corrections:
            self._correct(item.corrections)
        self._dirty = True

    def _learn(self, item: Item) -> None:
        assert item.batch is not None  # noqa: S101 - the caller looked
        started, examples = time.perf_counter(), item.examples
        try:
            update = self._fold.learn(item.batch, examples)
        except Diverged as error:
            failed = [record.place for example in examples for record in example.records]
            culprits = self._recover(error, failed)
            examples = [example for example in examples if example.record.place not in culprits]
            if not examples:
                return
        else:
            self._trips = 0
            if "drift" in update.drift:
                self._say(f"{self._fold.name}: drift: the prequential error rose (update {self._fold.updates}).")
                self._metrics.drifted()
            if "flush" in update.drift:
                self._say(f"{self._fold.name}: replay memory flushed by class: {update.drift['flush']['records']}.")
            if update.far_above:
                self._say(f"{self._fold.name}: the loss is far above its range (update {self._fold.updates}).")
                self._metrics.far_above()
            for alarm in update.alarms:
                if alarm != CUT:  # which the next version says at length
                    self._say(f"{self._fold.name}: {alarm} (update {self._fold.updates}).")
                self._metrics.alarmed()
        if self._evaluator is not None:
            self._evaluator.learned(examples)
        self._recent.add(item.batch.x, item.batch.labels)
        self._metrics.updated(
            time.perf_counter() - started,
            [example.record.timestamp_ms for example in examples],
            loss=self._fold.prequential.loss or 0.0,
            accuracy=self._fold.prequential.accuracy,
            means=self._fold.prequential.own(),
            replay_records=self._fold.learner.replay_size,
        )
        self._joined(examples)

    def _correct(self, corrections: Sequence[Correction]) -> None:
        refused = self._fold.learner.refuses([correction.label.label for correction in corrections])
        for row, why in refused.items():
            self._bury(RecordError("label", why), corrections[row].label.record)
        for outcome in self._fold.correct([one for row, one in enumerate(corrections) if row not in refused]):
            self._metrics.outcome(outcome)

    def _joined(self, examples: Iterable[Example]) -> None:
        for _ in filter(lambda example: example.label_record is not None, examples):
            self._metrics.outcome(JOINED)

    def _bury(self, error: RecordError, record: Record, label_record: Record | None = None) -> None:
        """Publishes a dead letter. It has the label that came later, too: that label may not come again."""
        letter = labelled(record, label_record) if label_record else record
        publish_dead_letter(self._letters, letter, error, self._fold.name)
        if error.reason == "stalled":
            self._say(f"{self._fold.name}: {record.place} is dead-lettered: {error.detail} Mend the decoder.")
        self._outcome(f"dead-lettered/{error.reason}", record)
        if label_record is not None:
            self._outcome(JOINED, label_record)

    def _outcome(self, name: str, record: Record) -> None:
        self._fold.outcome(name, record.place)
        self._metrics.outcome(name)

    def _recover(self, error: Diverged, failed: Sequence[Place]) -> set[Place]:
        """Goes back to the head, and on without the records that break the state. Returns those records."""
        self._trips += 1
        if self._trips > TRIPS:
            raise Diverged(f"{error} Again and again: lower the learning rate, or look at what is published.")
        self._say(f"{error} Going back to the last version to find the records that did it.")
        self._committer.finish(self._settings.lease_s)
        head = self._store.head()
        manifest = self._store.manifest(head) if head else None
        lineage = self._fold.lineage.build()
        updates = [*lineage.learned(), failed] if failed else list(lineage.learned())
        self._fold, culprits = recover(lambda: self._make_fold(manifest), updates, lineage, self._replay)
        self._replay.others(self._fold, lineage)
        for change in lineage.changes:
            if not MADE_AGAIN & change.keys():
                self._fold.lineage.change(change)
        why = RecordError("non-finite", "learning it gives numbers that are not finite.")
        for row in culprits:
            self._bury(why, *self._replay.records(row))
        self._fold.lineage.change({"guard": {"update": self._fold.updates, "records": len(culprits)}})
        self._metrics.guarded()
        self._say(f"{self._fold.name}: dead-lettered {counted(len(culprits), 'record')}; going on.")
        places = {place for place, *_ in culprits}
        if self._evaluator is not None:
            self._evaluator.unlearned(places)
        return places

    def _examine(self) -> None:
        if self._evaluator is not None and self._evaluator.due(self._fold.updates):
            self._examined = self._evaluator.examine(self._fold)
            self._metrics.examined(self._examined, self._evaluator.retention.state())
            self._dirty |= bool(self._examined)  # a stream that pauses leaves a version that says it

    # --- versions ---

    def _due(self) -> bool:
        if not self._dirty:
            return False
        if self._keyframe_due and self._keyframe:  # before the log does not reach back to the last one any more
            return True
        every_updates, every_s = self._settings.snapshot_every_updates, self._settings.snapshot_every_s
        by_updates = every_updates is not None and self._fold.updates - self._captured_updates >= every_updates
        by_time = every_s is not None and time.monotonic() - self._captured_s >= every_s
        return by_updates or by_time

    def _commit(self, feed: Feed) -> None:
        with self._stalls.at(lambda: "what becomes the next version"):
            snapshot = self._captured(feed)
        self._committer.submit(snapshot)

    def _captured(self, feed: Feed) -> Snapshot:
        keyframe = self._keyframe_due or self._versions + 1 >= self._settings.keyframe_every
        try:
            return self._capture(feed, keyframe)
        except Diverged as error:
            self._recover(error, [])
            return self._capture(feed, keyframe)

    def _capture(self, feed: Feed, keyframe: bool) -> Snapshot:
        started = time.perf_counter()
        lag = self._reader.lag()
        self._metrics.lag(lag)
        positions, pending = feed.progress()
        former, self._diagnoses = self._diagnoses, self._diagnosed()
        for name in self._diagnoses.keys() - former.keys():
            self._say(f"{self._fold.name}: {self._diagnoses[name]} ({name})")
        self._metrics.diagnosed(self._diagnoses, former)
        draft = self._fold.draft(
            positions=positions,
            pending=pending,
            topic_ids=self._reader.topic_ids,
            lag_records=sum(lag.values()),
            examined=self._examined,
            probes=self._evaluator.retention.state() if self._evaluator is not None else {},
            diagnoses=self._diagnoses,
            keyframe=keyframe,
        )
        self._dirty, self._started = False, set(positions)
        self._captured_s, self._captured_updates = time.monotonic(), self._fold.updates
        self._versions += 1
        if keyframe:
            self._versions, self._keyframe_due, self._keyframe = 0, False, _read_from(positions, pending)
        self._metrics.stalled(time.perf_counter() - started)
        return Snapshot(draft, positions, self._settings.keep_last, self._settings.keep_every, self._may_doubt)

    def _diagnosed(self) -> dict[str, str]:
        """Why the model does badly, as far as that is seen."""
        fold, recent = self._fold, self._recent
        model: Any = fold.learner.model
        seen = Measured(
            records=fold.counts["learned"],
            classes=len(model.classes) if fold.learner.needs_label else 0,
            kind=self._settings.input.kind,
            last=len(recent),
            changes=recent.changes,
            random=recent.random,
            largest=recent.largest,
            accuracy=fold.prequential.accuracy,
            replay_draws=getattr(fold.options, "replay_draws", None),
            cut=fold.prequential.own().get(CUT, 0.0),
            most=self._settings.input.shape[0],
            layers=recent.layers(model),
            counts=fold.counts,
        )
        return diagnose(seen)

    def _watch(self, feed: Feed) -> None:
        """Makes the next version a keyframe, before the log no longer reaches back to the last keyframe."""
        now = time.monotonic()
        if now - self._watched_s < WATCH_S:
            return
        self._watched_s = now
        self._watch_log()
        firsts, (positions, pending) = self._reader.firsts(), feed.progress()
        self._metrics.pending(sum(count for *_, count in pending.runs))
        left = {at: offset - firsts[at] for at, offset in self._keyframe.items() if at in firsts}
        if left:
            self._metrics.headroom(min(left.values()))
        for at, records in left.items() if self._settings.keyframe_every > 1 else ():
            if firsts[at] > 0 and records < positions[at] - self._keyframe[at] and not self._keyframe_due:
                self._keyframe_due = self._dirty = True
                self._say(
                    f"{self._fold.name}: {at} is deleted up to {firsts[at]}, and the last "
                    f"keyframe needs it from {self._keyframe[at]} on: the next version is a keyframe. "
                    f"Lower keyframe_every, or keep the topic longer."
                )

    def _watch_log(self) -> None:
        """Says once what keeps records back, or their timestamps ahead, although this worker is all right."""
        lag, withheld, ahead = self._reader.lag(), self._reader.withheld(), self._reader.ahead()
        self._metrics.lag(lag)
        self._metrics.withheld({at: withheld.get(at, 0) for at in lag})
        for at in withheld.keys() - self._withheld:
            self._say(
                f"{self._fold.name}: {withheld[at]} records of {at} wait behind a "
                f"transaction that its producer left open. They are read when Kafka ends it."
            )
        self._withheld = set(withheld)
        for at in ahead.keys() - self._ahead.keys():
            self._say(
                f"{self._fold.name}: {at} has records with timestamps that are ahead of "
                f"this machine's clock, which counts instead. Look at the clocks of its producers."
            )
        self._metrics.ahead(sum(ahead.values()) - sum(self._ahead.values()))
        self._ahead = ahead


def _records_text(item: Item) -> str:
    """The records of a batch, for people: partition by partition, from the first to the last."""
    offsets: dict[Partition, list[int]] = {}
    for record in item.records:
        at, offset = record.place
        offsets.setdefault(at, []).append(offset)
    places = (f"{at.topic}:{at.number}:{min(some)}..{max(some)}" for at, some in offsets.items())
    return f"{counted(len(item.records), 'record')} ({'  '.join(places)})"


def _read_from(positions: dict[Partition, int], pending: Iterable[Place]) -> dict[Partition, int]:
    """The offset in each partition from which a worker reads that starts from a version."""
    offsets = dict(positions)
    for partition, offset in pending:
        offsets[partition] = min(offset, offsets.get(partition, offset))
    return offsets
