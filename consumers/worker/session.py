"""A worker's time as the writer of its model: items in, updates, versions out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import InitVar, dataclass
from functools import partial
from itertools import zip_longest
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
from pipeline.log import publish_dead_letter
from pipeline.records import Example, Partition, Place, Record, labelled
from pipeline.store import MADE_AGAIN, Learned, Manifest
from pipeline.words import counted

TAKE_S = 0.1  # how long a step waits for an item before it looks at the clock and at the stop signal
LAST = 8  # records that a version shows
TRIPS = 3  # of the guard without an update that went well: then it is not the records
WATCH_S = 1.0  # how often is looked whether the log still reaches back to the keyframe


@dataclass(eq=False)
class Session:
    """Learns what the feed brings, and commits."""

    fold: Fold  # at the version `manifest`
    manifest: InitVar[Manifest | None]
    make_fold: Callable[[Manifest | None], Fold]  # makes the fold at a version, anew each time
    committer: Committer
    replay: Replay
    evaluator: Evaluator | None  # evaluates the model on held-out records; None where none is held out
    stalls: Stalls

    def __post_init__(self, manifest: Manifest | None) -> None:
        through = self.committer
        self.store, self.reader, self.letters = through.store, through.reader, through.dead_letters
        self.metrics, self.say = through.metrics, through.say
        self._settings = self.fold.settings
        self._examined: dict[str, float] = {}  # what was found last
        if self.evaluator is not None and manifest is not None:
            self.evaluator.retention.restore(manifest.probes)
        self._trips = 0
        self._dirty = self.fold.lineage.dirty  # something happened since the last capture
        # partitions whose first position is in a version
        self._started = set(manifest.positions()) if manifest else set()
        self._withheld: set[Partition] = set()  # partitions of which this was said
        self._ahead: dict[Partition, int] = {}
        self._captured_s = self._watched_s = time.monotonic()
        self._captured_updates = self.fold.updates
        self._recent = LastLabels()
        self._last: deque[Learned] = deque(maxlen=LAST)
        self._diagnoses = manifest.diagnoses if manifest else {}
        keyframe = self.store.keyframe(manifest) if manifest else None
        self._versions = manifest.version - keyframe.version if manifest and keyframe else 0  # since the keyframe
        self._keyframe = _read_from(keyframe.positions(), keyframe.pending) if keyframe else {}
        self._keyframe_due = keyframe is None or self.replay.gone > 0
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
                self.committer.check()
                self.metrics.log_up.set(self.reader.reachable)
                self.stalls.is_log_away = not self.reader.reachable
                item = feed.take(TAKE_S)
                if item is not None:
                    with self.stalls.at(partial(_records_text, item)):
                        self._step(item)
                with self.stalls.at(lambda: "what is held out"):
                    self._examine()
                self._watch(feed)
                # Where a partition starts is kept before it has a record: "latest" moves on meanwhile.
                self._dirty |= not feed.partitions <= self._started
                if self._due() and not self.committer.busy:
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
        found = {at: offsets for at, offsets in self.reader.doubtful.items() if positions.get(at, 0) > offsets.start}
        for at, offsets in found.items():
            self.fold.lineage.change(
                {"doubtful": {"topic": at.topic, "partition": at.number, "from": offsets.start, "to": offsets.stop}}
            )
        waits = set(pending)
        for at, again in self.reader.again.items():
            places = {Place(at, offset) for offset in again if offset < positions.get(at, 0)} - waits
            self.fold.already |= {(place, self.reader.ids_now[at.topic]) for place in places}
        return bool(found)

    def _leave(self, feed: Feed) -> None:
        """Commits the last version. The next worker can start from it at once."""
        self.committer.finish(self._settings.lease_s)
        if self._dirty or self._versions:
            self._keyframe_due = True
            self._commit(feed)
            self.committer.finish(self._settings.lease_s)

    # --- records ---

    def _step(self, item: Item) -> None:
        """Makes every change that one item brings, so that a capture between two steps is consistent."""
        if item.batch is not None and (refused := self.fold.learner.refuses(item.batch.labels)):
            item.refuse(refused)
        for dead in item.dead:
            self._bury(dead.error, dead.record, dead.label_record)
        if item.held_out:
            self.fold.hold_out(collate(item.held_out, self.fold.topics, Uplink(torch.device("cpu"))), item.held_out)
            for _ in item.held_out:
                self.metrics.outcome(HELD_OUT)
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
        started, examples, learned = time.perf_counter(), item.examples, list[Learned]()
        try:
            update = self.fold.learn(item.batch, examples)
        except Diverged as error:
            failed = [record.place for example in examples for record in example.records]
            culprits = self._recover(error, failed)
            examples = [example for example in examples if example.record.place not in culprits]
            if not examples:
                return
        else:
            self._trips = 0
            learned = _learned(examples[-LAST:], (update.predicted or ())[-LAST:])
            if "drift" in update.drift:
                self.say(f"{self.fold.name}: drift: the prequential error rose (update {self.fold.updates}).")
                self.metrics.drifts.inc()
            if "flush" in update.drift:
                self.say(f"{self.fold.name}: replay memory flushed by class: {update.drift['flush']['records']}.")
            if update.far_above:
                self.say(f"{self.fold.name}: the loss is far above its range (update {self.fold.updates}).")
                self.metrics.far_above.inc()
            for alarm in update.alarms:
                if alarm != CUT:  # which the next version says at length
                    self.say(f"{self.fold.name}: {alarm} (update {self.fold.updates}).")
                self.metrics.alarms.inc()
        if self.evaluator is not None:
            self.evaluator.learned(examples)
        self._recent.add(item.batch.x, item.batch.labels)
        self._last.extend(learned)
        self.metrics.updated(
            time.perf_counter() - started,
            [example.record.timestamp_ms for example in examples],
            loss=self.fold.prequential.loss or 0.0,
            accuracy=self.fold.prequential.accuracy,
            means=self.fold.prequential.own(),
            replay_records=self.fold.learner.replay_size,
        )
        self._joined(examples)

    def _correct(self, corrections: Sequence[Correction]) -> None:
        refused = self.fold.learner.refuses([correction.label.label for correction in corrections])
        for row, why in refused.items():
            self._bury(RecordError("label", why), corrections[row].label.record)
        for outcome in self.fold.correct([one for row, one in enumerate(corrections) if row not in refused]):
            self.metrics.outcome(outcome)

    def _joined(self, examples: Iterable[Example]) -> None:
        for _ in filter(lambda example: example.label_record is not None, examples):
            self.metrics.outcome(JOINED)

    def _bury(self, error: RecordError, record: Record, label_record: Record | None = None) -> None:
        """Publishes a dead letter. It has the label that came later, too: that label may not come again."""
        letter = labelled(record, label_record) if label_record else record
        publish_dead_letter(self.letters, letter, error, self.fold.name)
        if error.reason == "stalled":
            self.say(f"{self.fold.name}: {record.place} is dead-lettered: {error.detail} Mend the decoder.")
        self._outcome(f"dead-lettered/{error.reason}", record)
        if label_record is not None:
            self._outcome(JOINED, label_record)

    def _outcome(self, name: str, record: Record) -> None:
        self.fold.outcome(name, record.place)
        self.metrics.outcome(name)

    def _recover(self, error: Diverged, failed: Sequence[Place]) -> set[Place]:
        """Goes back to the head, and on without the records that break the state. Returns those records."""
        self._trips += 1
        if self._trips > TRIPS:
            raise Diverged(f"{error} Again and again: lower the learning rate, or look at what is published.")
        self.say(f"{error} Going back to the last version to find the records that did it.")
        self.committer.finish(self._settings.lease_s)
        self._last.clear()  # it may have some of those
        head = self.store.head()
        manifest = self.store.manifest(head) if head else None
        lineage = self.fold.lineage.build()
        updates = [*lineage.learned(), failed] if failed else list(lineage.learned())
        self.fold, culprits = recover(lambda: self.make_fold(manifest), updates, lineage, self.replay)
        self.replay.others(self.fold, lineage)
        for change in lineage.changes:
            if not MADE_AGAIN & change.keys():
                self.fold.lineage.change(change)
        why = RecordError("non-finite", "learning it gives numbers that are not finite.")
        for row in culprits:
            self._bury(why, *self.replay.records(row))
        self.fold.lineage.change({"guard": {"update": self.fold.updates, "records": len(culprits)}})
        self.metrics.guarded.inc()
        self.say(f"{self.fold.name}: dead-lettered {counted(len(culprits), 'record')}; going on.")
        places = {place for place, *_ in culprits}
        if self.evaluator is not None:
            self.evaluator.unlearned(places)
        return places

    def _examine(self) -> None:
        if self.evaluator is not None and self.evaluator.due(self.fold.updates):
            self._examined = self.evaluator.examine(self.fold)
            self.metrics.examined(self._examined, self.evaluator.retention.state())
            self._dirty |= bool(self._examined)  # a stream that pauses leaves a version that says it

    # --- versions ---

    def _due(self) -> bool:
        if not self._dirty:
            return False
        if self._keyframe_due and self._keyframe:  # before the log does not reach back to the last one any more
            return True
        every_updates, every_s = self._settings.snapshot_every_updates, self._settings.snapshot_every_s
        by_updates = every_updates is not None and self.fold.updates - self._captured_updates >= every_updates
        by_time = every_s is not None and time.monotonic() - self._captured_s >= every_s
        return by_updates or by_time

    def _commit(self, feed: Feed) -> None:
        with self.stalls.at(lambda: "what becomes the next version"):
            snapshot = self._captured(feed)
        self.committer.submit(snapshot)

    def _captured(self, feed: Feed) -> Snapshot:
        keyframe = self._keyframe_due or self._versions + 1 >= self._settings.keyframe_every
        try:
            return self._capture(feed, keyframe)
        except Diverged as error:
            self._recover(error, [])
            return self._capture(feed, keyframe)

    def _capture(self, feed: Feed, keyframe: bool) -> Snapshot:
        started = time.perf_counter()
        lag = self.reader.lag()
        self.metrics.lag(lag)
        positions, pending = feed.progress()
        former, self._diagnoses = self._diagnoses, self._diagnosed()
        for name in self._diagnoses.keys() - former.keys():
            self.say(f"{self.fold.name}: {self._diagnoses[name]} ({name})")
        self.metrics.diagnosed(self._diagnoses, former)
        draft = self.fold.draft(
            positions=positions,
            pending=pending,
            topic_ids=self.reader.topic_ids,
            lag_records=sum(lag.values()),
            examined=self._examined,
            probes=self.evaluator.retention.state() if self.evaluator is not None else {},
            diagnoses=self._diagnoses,
            last=tuple(self._last),
            keyframe=keyframe,
        )
        self._dirty, self._started = False, set(positions)
        self._last.clear()
        self._captured_s, self._captured_updates = time.monotonic(), self.fold.updates
        self._versions += 1
        if keyframe:
            self._versions, self._keyframe_due, self._keyframe = 0, False, _read_from(positions, pending)
        self.metrics.stalled(time.perf_counter() - started)
        return Snapshot(draft, positions, self._settings.keep_last, self._settings.keep_every, self._may_doubt)

    def _diagnosed(self) -> dict[str, str]:
        """Why the model does badly, as far as that is seen."""
        fold, recent = self.fold, self._recent
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
        firsts, (positions, pending) = self.reader.firsts(), feed.progress()
        self.metrics.pending.set(sum(count for *_, count in pending.runs))
        left = {at: offset - firsts[at] for at, offset in self._keyframe.items() if at in firsts}
        if left:
            self.metrics.headroom.set(min(left.values()))
        for at, records in left.items() if self._settings.keyframe_every > 1 else ():
            if firsts[at] > 0 and records < positions[at] - self._keyframe[at] and not self._keyframe_due:
                self._keyframe_due = self._dirty = True
                self.say(
                    f"{self.fold.name}: {at} is deleted up to {firsts[at]}, and the last "
                    f"keyframe needs it from {self._keyframe[at]} on: the next version is a keyframe. "
                    f"Lower keyframe_every, or keep the topic longer."
                )

    def _watch_log(self) -> None:
        """Says once what keeps records back, or their timestamps ahead, although this worker is all right."""
        lag, withheld, ahead = self.reader.lag(), self.reader.withheld(), self.reader.ahead()
        self.metrics.lag(lag)
        self.metrics.withheld({at: withheld.get(at, 0) for at in lag})
        for at in withheld.keys() - self._withheld:
            self.say(
                f"{self.fold.name}: {withheld[at]} records of {at} wait behind a "
                f"transaction that its producer left open. They are read when Kafka ends it."
            )
        self._withheld = set(withheld)
        for at in ahead.keys() - self._ahead.keys():
            self.say(
                f"{self.fold.name}: {at} has records with timestamps that are ahead of "
                f"this machine's clock, which counts instead. Look at the clocks of its producers."
            )
        self.metrics.ahead.inc(sum(ahead.values()) - sum(self._ahead.values()))
        self._ahead = ahead


def _learned(examples: Sequence[Example], predicted: Sequence[str | None]) -> list[Learned]:
    """As a version shows them."""
    return [
        Learned(record=str(example.record.place), label=example.label, predicted=answer)
        for example, answer in zip_longest(examples, predicted)
    ]


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
