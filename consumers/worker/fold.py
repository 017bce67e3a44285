"""A model as a fold over its log: everything that a record changes, live or when it is learned again."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from consumers.bridge import copied
from consumers.worker.drift import Drift
from consumers.worker.environment import environment
from consumers.worker.fitting import mismatch, shape_of, validated_options
from consumers.worker.joiner import Correction
from models.diagnosis import MANY_CUT
from models.evaluation import PREFIX, HeldOut, LossRange, Prequential
from models.learner import (
    NOTHING,
    Batch,
    Blueprint,
    Correcting,
    Learner,
    Rows,
    Start,
    State,
    id_digest,
    update_generator,
)
from models.memory import PolicyName
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, Diverged
from pipeline.records import Example, Partition, Place
from pipeline.store import About, Change, Draft, Group, Learned, LineageBuilder, Manifest, Runs, watermark_of

HELD_OUT = "held-out"  # the outcome of records that are kept aside
JOINED = "joined"  # the outcome of a label that completed a record; what was learned has it right behind the record
CORRECTED = "corrected"  # of a label that replaced another one
CUT = "cut_ratio"  # of texts: the share that is longer than `max_chars`; as an alarm: it is above
NO_ROWS = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class Update:
    """What one update tells."""

    loss: float  # mean over its records, from before it
    predicted: Sequence[str | None] | None  # before it; None for learners that do not classify
    drift: Change  # "drift": the prequential error rose for good; "flush": what left the replay memory
    far_above: bool  # the loss left its recent range
    alarms: Sequence[str]  # the learner's own that were not there before


class Recipe(NamedTuple):
    """What a fold is made by."""

    name: str  # of the model
    settings: ModelConfig  # its table of the configuration
    blueprint: Blueprint  # how its learner is built
    device: torch.device


@dataclass(eq=False)
class Fold:
    """What a model is between two commits: its learner, what watches it, and the lineage since the last version.

    Raises:
        ConfigError: the learner cannot be built from these settings.
        ValueError: it cannot be built from this state.
    """

    name: str
    settings: ModelConfig
    blueprint: Blueprint
    device: torch.device
    clock: Callable[[], float] = time.time  # seconds since the epoch; a timestamp that is ahead of it counts as now
    shaped: Mapping[str, Any] | None = None  # the structural options of the version that it goes on from (`shape_of`)
    start: InitVar[Start] = NOTHING  # what the learner starts from

    def __post_init__(self, start: Start) -> None:
        self.options = validated_options(self.name, self.settings, self.blueprint, self.shaped)
        self.learner: Learner = self._built(start)
        if self.settings.labels is not None and not self.learner.needs_label:
            raise ConfigError(
                f"models.{self.name}.labels: {self.settings.learner} does not wait for labels. Remove the table."
            )
        self.lineage = LineageBuilder()
        if start and not isinstance(start, State):
            self.lineage.change({"sources": {named: source.digest for named, source in start.items()}})
        self.counts: Counter[str] = Counter()
        self.updates = 0
        self.newest_timestamp_ms: int | None = None
        self.prequential = Prequential()
        self.loss_range = LossRange()
        self.alarms: list[str] = []  # of the last update
        self.drift = Drift(self.name, self.settings, self.learner)
        self.held_out = self._make_held_out() if self.settings.hold_out.slots else None
        self.topics: dict[str, int] = {}  # numbers of the topics in the replay memory's origins: never reused
        self._number_topics()
        self.already: set[tuple[Place, str]] = set()  # read ahead of their turn, each with the id of its topic
        self._unsent: dict[tuple[Group, str], Tensor | None] = {}  # rows that changed and are in no version; None: all

    # --- from nothing, or from a version ---

    def _built(self, start: Start) -> Learner:
        settings = self.settings
        try:
            return self.blueprint.build(self.options, settings.input.shape, settings.seed, self.device, start)
        except ValueError as error:
            if isinstance(start, State):
                raise
            if start:  # what does not fit is named by the options
                raise ConfigError(f"models.{self.name}.options: {error}") from None
            raise ConfigError(f"models.{self.name}: {error} Change its input or its options.") from None

    @classmethod
    def of_keyframe(cls, recipe: Recipe, keyframe: Manifest, state: State) -> Fold:
        """The fold at a keyframe.

        Raises:
            StateMismatch: its state does not fit these settings.
        """
        try:
            fold = cls(*recipe, shaped=shape_of(keyframe, recipe.blueprint), start=state)
            fold._restore(state, keyframe.worker.get("held_out"))
        except ValueError as error:
            raise mismatch(keyframe, str(error)) from None
        fold.keep_books(keyframe)
        return fold

    def keep_books(self, manifest: Manifest) -> None:
        """Restores everything of a version but the learner's own state. Keyframes and other versions alike have it."""
        worker = manifest.worker
        self.counts = Counter(manifest.counts)
        self.updates = manifest.updates
        newest = manifest.newest_timestamp_ms
        self.newest_timestamp_ms = None if newest is None else min(newest, manifest.created_ms)
        self.topics = dict(worker["topics"])
        self._number_topics()
        self.prequential.restore(worker["prequential"])
        self.loss_range.restore(worker["loss_range"])
        self.alarms = list(worker.get("alarms", ()))
        self.drift.restore(worker["drift"])
        for id_, places in worker.get("already", {}).items():
            self.already |= {(place, id_) for place in Runs.model_validate(places)}

    def books(self) -> dict[str, Any]:
        """JSON that `keep_books` restores, beside the counters."""
        ids = {id_ for _, id_ in self.already}
        already = {id_: Runs.of(sorted(place for place, of in self.already if of == id_)) for id_ in ids}
        return {
            **({"already": {id_: places.model_dump(mode="json") for id_, places in already.items()}} if ids else {}),
            "topics": dict(self.topics),
            "prequential": self.prequential.state(),
            "loss_range": self.loss_range.state(),
            "alarms": list(self.alarms),
            "drift": self.drift.state(),
            "held_out": self.held_out.meta() if self.held_out is not None else None,
        }

    def configured(self, settings: ModelConfig) -> Fold:
        """The same state and lineage under other settings, as after a restart."""
        if settings == self.settings:
            return self
        fold = self._copy(settings)
        fold.lineage, fold.counts = self.lineage, self.counts
        fold.newest_timestamp_ms = self.newest_timestamp_ms
        fold.prequential, fold.loss_range, fold.alarms = self.prequential, self.loss_range, self.alarms
        fold.already = self.already
        fold.send_all()
        return fold

    def trial(self) -> Fold:
        """A copy to try an update on. Its own books are empty."""
        return self._copy(self.settings)

    def _copy(self, settings: ModelConfig) -> Fold:
        now = self._state()
        state = State(whole(now.serving), whole(now.training), now.meta)
        fold = Fold(self.name, settings, self.blueprint, self.device, self.clock, self.shaped, state)
        fold._restore(state, self.held_out.meta() if self.held_out is not None else None)
        fold.updates, fold.topics = self.updates, dict(self.topics)
        fold.drift.restore(self.drift.state())
        fold._number_topics()
        return fold

    def send_all(self) -> None:
        """Makes the next versions hold every row, for it is not known which rows changed."""
        state = self.capture()
        groups: dict[Group, Mapping[str, Tensor | Rows]] = {"serving": state.serving, "training": state.training}
        for group, tensors in groups.items():
            self._unsent |= {(group, name): None for name, value in tensors.items() if isinstance(value, Rows)}

    def _number_topics(self) -> None:
        for topic in self.settings.topics:
            self.topics.setdefault(topic, len(self.topics))

    # --- records ---

    def learn(self, batch: Batch, examples: Sequence[Example]) -> Update:
        """One update on the batch of these examples.

        Raises:
            Diverged: the loss is not finite. The learner cannot be used any more.
        """
        self.drift.before(self.updates)
        report = self.learner.learn(batch, update_generator(self.settings.seed, self.updates))
        if self.settings.guard and not math.isfinite(report.loss):
            raise Diverged(f"{self.name}: the loss of update {self.updates} is {report.loss}.")
        self.updates += 1
        self.lineage.learned([record.place for example in examples for record in example.records])
        self._count("learned", examples)
        newest = max(example.record.timestamp_ms for example in examples)
        newest = min(newest, int(self.clock() * 1000))  # a producer's clock that is ahead makes nothing fresh for good
        self.newest_timestamp_ms = max(newest, self.newest_timestamp_ms or newest)
        hits = None
        if report.predicted is not None:
            hits = [predicted == label for predicted, label in zip(report.predicted, batch.labels, strict=True)]
        means = dict(report.metrics)
        if self.settings.input.is_cut:
            means[CUT] = sum(example.is_cut for example in examples) / len(examples)
        self.prequential.update(report.loss, hits, records=len(examples), metrics=means)
        far_above = self.loss_range.update(report.loss)
        if far_above:
            self.lineage.change({"loss": {"update": self.updates, "loss": report.loss}})
        drift = Change() if hits is None else self.drift.after(self.updates, batch.labels, hits)
        self.lineage.change(drift)
        alarms = [*report.alarms, *([CUT] if self.prequential.own().get(CUT, 0.0) > MANY_CUT else [])]
        raised = [alarm for alarm in alarms if alarm not in self.alarms]
        self.alarms = alarms
        for alarm in raised:
            self.lineage.change({"alarm": {"update": self.updates, "name": alarm}})
        return Update(report.loss, report.predicted, drift, far_above, raised)

    def correct(self, corrections: Sequence[Correction]) -> list[str]:
        """Replaces labels of remembered and held-out records, in one update if there are any; gives their outcomes.

        The lineage has what a version held out beside its updates, so it says how much of that came before this one.
        """
        rng, before = update_generator(self.settings.seed, self.updates), self.lineage.count(HELD_OUT)
        outcomes, found, touched = list[str](), list[Place](), False
        for correction in corrections:
            label, place, id_ = correction.label, correction.label.record.place, id_digest(correction.label.id)
            aside = self.held_out is not None and self.held_out.correct(id_, label.label)
            touched |= aside
            if (isinstance(self.learner, Correcting) and self.learner.correct(id_, label.label, rng)) or aside:
                outcomes.append(CORRECTED)
                found.append(place)
            else:
                outcomes.append(correction.otherwise)
                self.outcome(correction.otherwise, place)
        if touched and before:
            self.lineage.change({"held_out": {"records": before, "before": [*found[0][0], found[0][1]]}})
        if found:
            self.updates += 1
            self.lineage.learned(found)
            self.counts[CORRECTED] += len(found)
        return outcomes

    def hold_out(self, batch: Batch, examples: Sequence[Example]) -> None:
        """Keeps a sample of these examples, and learns none; `batch` is on the CPU."""
        if self.held_out is not None:  # else they were held out under former settings
            self.held_out.add(batch)
        for example in examples:
            for record in example.records:
                self.lineage.outcome(HELD_OUT, record.place)
        self._count(HELD_OUT, examples)

    def _count(self, outcome: str, examples: Sequence[Example]) -> None:
        self.counts[outcome] += len(examples)
        if joined := sum(example.label_record is not None for example in examples):
            self.counts[JOINED] += joined

    def outcome(self, name: str, place: Place) -> None:
        """A record that was read and not learned; `name` is kind/reason."""
        self.lineage.outcome(name, place)
        self.counts[name] += 1

    def remembered(self) -> set[bytes]:
        """The digests of the ids of records whose labels can be corrected."""
        learned = self.learner.remembered() if isinstance(self.learner, Correcting) else ()
        return {*learned, *(self.held_out.remembered() if self.held_out is not None else ())}

    # --- versions ---

    def check_finite(self) -> None:
        """
        Raises:
            Diverged: something of the state is not a finite number; names the tensor.
        """
        self._captured()

    def draft(
        self,
        *,
        positions: Mapping[Partition, int],
        pending: Runs,
        topic_ids: Mapping[str, str],
        lag_records: int,
        examined: Mapping[str, float],
        probes: dict[str, dict[str, Any]],
        diagnoses: dict[str, str],
        last: tuple[Learned, ...],
        keyframe: bool,
    ) -> Draft:
        """What becomes the next version; copies what changed, and starts the lineage anew.

        Raises:
            Diverged: as `check_finite`; the lineage goes on.
        """
        state = self._captured()
        self._unsent = {} if keyframe else {key: rows for key, rows in self._unsent.items() if key[0] == "training"}
        settings, learner = self.settings, self.learner
        about = About(
            learner=settings.learner,
            input=settings.input.model_dump(mode="json"),
            options=self.options.model_dump(mode="json"),
            config=settings.model_dump(mode="json"),
            classes=list(learner.model.classes),
            seed=settings.seed,
            updates=self.updates,
            counts=dict(self.counts),
            watermark=watermark_of(positions),
            pending=pending,
            topic_ids=dict(topic_ids),
            newest_timestamp_ms=self.newest_timestamp_ms,
            metrics={
                **self.prequential.metrics(),
                **examined,
                **({"replay_fill": learner.replay_size / learner.replay_capacity} if learner.replay_capacity else {}),
                "lag_records": float(lag_records),
            },
            environment=environment(self.device),
            meta=dict(state.meta),
            worker=self.books(),
            probes=probes,
            diagnoses=diagnoses,
            last=last,
        )
        training = copied(state.training) if keyframe else None
        return Draft(about, self.lineage.build(), copied(state.serving), training)

    def capture(self) -> State:
        """The learner's state and what is held out."""
        state = self.learner.capture()
        if self.held_out is None:
            return state
        return State(state.serving, {**state.training, **self.held_out.capture()}, state.meta)

    def _restore(self, state: State, held_out: Mapping[str, Any] | None) -> None:
        """The state of a fold; `held_out` is the meta of what was held out, where something was."""
        aside = {name: value for name, value in state.training.items() if name.startswith(PREFIX)}
        training = {name: value for name, value in state.training.items() if name not in aside}
        self.learner.restore(State(state.serving, training, state.meta))
        if self.held_out is not None and held_out is not None:
            self.held_out.restore(held_out, aside)

    def _make_held_out(self) -> HeldOut:
        settings = self.settings
        dtype: torch.dtype = getattr(torch, settings.input.dtype)
        policy: PolicyName = "balanced" if self.learner.needs_label else "reservoir"
        return HeldOut(settings.hold_out.slots, settings.input.shape, dtype, policy, settings.seed)

    def _state(self) -> State:
        """The state with every row that is in no version yet."""
        state = self.capture()
        return State(self._rows("serving", state.serving), self._rows("training", state.training), state.meta)

    def _captured(self) -> State:
        """The same. Where there is a guard, it is checked for numbers that are not finite."""
        state = self._state()
        if self.settings.guard:
            for group in (state.serving, state.training):
                if name := not_finite(group):
                    raise Diverged(f"{self.name}: after update {self.updates - 1}, {name} holds a number not finite.")
        return state

    def _rows(self, group: Group, tensors: Mapping[str, Tensor | Rows]) -> dict[str, Tensor | Rows]:
        found: dict[str, Tensor | Rows] = dict(tensors)
        for name, value in tensors.items():
            if isinstance(value, Rows):
                changed, before = value.changed, self._unsent.get((group, name), NO_ROWS)
                if changed is not None and before is not None:
                    changed = torch.unique(torch.cat([before, changed.cpu()]))
                else:
                    changed = None
                self._unsent[group, name] = changed
                found[name] = Rows(value.tensor, changed)
        return found


def not_finite(tensors: Mapping[str, Tensor | Rows]) -> str | None:
    """The name of a tensor that holds NaN or an infinity, looking only at rows that changed."""
    finite: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        tensor = value if isinstance(value, Tensor) else _changed(value)
        if tensor.is_floating_point() and tensor.numel():
            found = torch.stack(tensor.detach().aminmax()).isfinite().all()  # NaN wins; one pass
            finite.setdefault(tensor.device, {})[name] = found
    for named in finite.values():
        good = torch.stack([*named.values()]).tolist()  # one look at a device for all that is there
        if not all(good):
            return next(name for name, is_finite in zip(named, good, strict=True) if not is_finite)
    return None


def _changed(rows: Rows) -> Tensor:
    return rows.tensor if rows.changed is None else rows.tensor[rows.changed.to(rows.tensor.device)]


def whole(values: Mapping[str, Tensor | Rows]) -> dict[str, Tensor]:
    """The live tensors of a state."""
    return {name: value.tensor if isinstance(value, Rows) else value for name, value in values.items()}
