"""What image and text classifiers share: the head that grows, the update with experience replay, the state.

What an update minimises is a strategy's business (`strategies`). Incoming and replayed records go through the network
in one pass. Nothing in it depends on the other rows of the pass or on chance, so that its logits of the incoming
records, from before the update, are the prequential prediction as well: evaluation costs nothing, unless a batch is
learned in parts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.dreams import Dreams, Memory, RecordsAndDreams
from models.evidence import Calibration
from models.familiarity import AcquaintedOptions
from models.labels import likeliest
from models.learner import Batch, Report, State, structural
from models.memory import PolicyName, ReplayMemory
from models.moving_average import decay_of_updates
from models.network import Head
from models.replaying import LabelledNetwork, ReplayingLearner
from models.strategies import KEEPING_LOGITS, STRATEGIES, Rehearsal, StrategyName

SEEN_A_PART = 32
SETTLED = 1 << 16  # records of a class whose version does not say how many there were


class ClassifierOptions(AcquaintedOptions):
    """What every classifier can be told."""

    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    max_classes: int = Field(1000, ge=1)  # a label beyond them is dead-lettered
    replay_slots: int = structural(2000, ge=0)
    replay_policy: PolicyName = structural("balanced")
    replay_draws: int = Field(16, ge=0)  # records replayed in each step
    steps: int = Field(1, ge=1)  # of the optimiser in each update, every one with draws of its own
    calibrate: bool = structural(True, before=False)  # whether a few records are not learned, but tell how sure it is
    strategy: StrategyName = structural("er-ace")
    logits_weight: float = structural(0.1, ge=0)  # α, of er-ace and der++: how much replayed records keep their logits
    logits_classes: int = structural(100, ge=1)  # of how many classes, the first ones, they are kept
    dream_share: float = structural(0.0, ge=0, lt=1)  # of the draws, that are dreamed and no records
    dream_components: int = structural(20, ge=1)  # of the distribution of each class that dreams are drawn from
    dream_axes: int = structural(24, ge=1)  # of each component
    average: float = structural(0.0, ge=0, lt=1)  # d: 0.99 is the last hundred updates; 0: what learns is served

    @property
    def replay_capacity(self) -> int:
        """Slots of the replay memory: a naive learner has none, and one that dreams keeps no record."""
        return 0 if self.strategy in ("naive", "dreams") else self.replay_slots

    @property
    def dreamed(self) -> float:
        """The share of the draws that are no records."""
        return {"naive": 0.0, "dreams": 1.0}.get(self.strategy, self.dream_share)

    @property
    def replays(self) -> bool:
        """Whether anything of the past is learned again."""
        return self.dreamed > 0 or self.replay_capacity > 0

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Memory:
        """An empty memory for records of this shape.

        Raises:
            ValueError: the records are no pictures, and only pictures can be dreamed.
        """
        if self.dreamed and dtype != torch.uint8:
            raise ValueError("only pictures can be dreamed. Take another strategy than 'dreams', and no dream_share.")
        logits = self.logits_classes if self.logits_weight and self.strategy in KEEPING_LOGITS else 0
        records = ReplayMemory(self.replay_capacity, shape, dtype, device, self.replay_policy, logits)
        if not self.dreamed:
            return records
        dreams = Dreams(shape, device, self.dream_components, self.dream_axes)
        return RecordsAndDreams(records, dreams, self.dreamed) if records.slots else dreams


class ClassifierNetwork(LabelledNetwork):
    """Features, and a head with one row a class."""

    sharpness: Tensor  # (1,): t (`evidence`)

    def __init__(self, width: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = list(classes)
        self.head = Head(width, len(self.classes))
        self.register_buffer("sharpness", torch.ones(1))

    def features(self, x: Tensor) -> Tensor:
        """x (B, ...) as in `Batch.x` → (B, D) float32"""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) → logits (B, K)"""
        logits: Tensor = self.head(self.features(x))
        return logits

    def grow(self, classes: int, rng: torch.Generator | None) -> None:
        self.head.grow(classes)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """x (B, ...) as in `Batch.x` → probabilities (B, K) float32 in the order of `classes`."""
        logits: Tensor = self(x.to(self.head.weight.device))
        return (self.sharpness * logits).softmax(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Versions of before have no sharpness: it is 1. A backbone has none, as it has no head."""
        if "sharpness" in self._buffers:
            state_dict.setdefault(f"{prefix}sharpness", torch.ones(1))
        super()._load_from_state_dict(state_dict, prefix, *others)


class Shown:
    """What a network learns in place of the records: these themselves. A subclass changes them."""

    #: whether incoming records are changed too, so that the pass that learns does not predict them
    changes_incoming = False

    def __call__(self, x: Tensor, incoming: int, rng: torch.Generator) -> Any:
        """x (N, ...) of which so many are incoming, the others replayed → what `features` is given"""
        return x


class OwnUpdate:
    """Weights of the network that the learner's AdamW does not update: none. A subclass updates some in its own way."""

    def loss(self, loss: Tensor, rng: torch.Generator) -> Tensor:
        """What is minimised, from the loss of the incoming and replayed records."""
        return loss

    def step(self, rate_factor: float) -> None:
        """One step on the gradients, right before that of AdamW."""

    def learned(self) -> None:
        """An update has ended."""

    def capture(self, state: State) -> State:
        """The learner's state with what is the part's own."""
        return state

    def restore(self, state: State, rest: Callable[[State], None]) -> None:
        """Takes what is its own out of a state, and has `rest` restore the learner from what is left."""
        rest(state)


C = TypeVar("C", bound=ClassifierNetwork)


class ClassifierLearner(ReplayingLearner[C]):
    """Learns a `ClassifierNetwork` with cross-entropy, AdamW and experience replay.

    It serves the moving average of the weights where `options.average` is above 0 (`moving_average`). Predictions are
    then those of the average, in a pass of its own.

    Args:
        shown: what is learned in place of the records.
        part: the served network → what updates some of the weights in its own way.
    """

    needs_label = True

    def __init__(
        self,
        network: C,
        options: ClassifierOptions,
        memory: Memory,
        device: torch.device,
        *,
        shown: Shown | None = None,
        part: Callable[[C], OwnUpdate] | None = None,
    ) -> None:
        super().__init__(network, options, memory, device, classes=options.max_classes, averaged=options.average > 0)
        self.options = options
        self._shown = shown or Shown()
        self._part = part(self.model) if part else OwnUpdate()
        self._rate_factor = 1.0
        self._updates = 0  # of the average
        self._seen: Counter[int] = Counter()  # records of each class
        x = memory.columns().get("x", torch.zeros(0))  # none, where only dreams are replayed
        wanted = options.calibrate and options.replay_capacity > 0
        self._calibration = Calibration(tuple(x.shape[1:]), x.dtype, wanted)

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        if None in batch.labels:
            raise ValueError("a classifier was given a record without a label. Drop it: `needs_label` is true.")
        classes = list(self.model.classes)
        self._grow(self._labels.new(batch.labels), rng)
        numbers = self._labels.numbers(batch.labels)
        rest = self._calibration.rest(batch, numbers, self._seen, self._memory.remembered())
        answers = self._logits(batch.x.to(self._device)) if len(rest) < len(batch) else batch.x.new_empty(0)
        if rest:
            learned = self._update(batch.rows(rest), [numbers[row] for row in rest], rng)
            answers = learned if len(rest) == len(batch) else answers
        self._seen.update(numbers)
        answers = self.model.sharpness * answers
        logs = answers.log_softmax(1)
        loss = F.nll_loss(logs, torch.tensor(numbers, device=logs.device)).item()
        report = Report(loss, likeliest(answers, classes), logs=logs)
        if self._calibration.due(self._seen.total()):
            self.model.sharpness.copy_(self._calibration.found(self.log_probabilities))
        self._part.learned()
        return report

    def _update(self, batch: Batch, numbers: Sequence[int], rng: torch.Generator) -> Tensor:
        """Learns records of these classes (B,) → the served model's logits (B, K) from before the update."""
        x, y = batch.x.to(self._device), torch.tensor(numbers, device=self._device)  # (B, ...), (B,)
        parts = self._parts(numbers)
        answers = self._logits(x) if parts > 1 else x.new_empty(0)
        for start in range(parts):
            rows = slice(start, None, parts)  # from all over the batch, so that a sorted one is mixed
            came_with = self._backward(x[rows], y[rows], rng)  # (B / parts, K)
            if parts == 1:
                is_predicted = self.model is self._learning and not self._shown.changes_incoming  # at no cost
                answers = came_with if is_predicted else self._logits(x)
            self._step()
            for _ in range(1, self.options.steps):
                self._backward(x[rows], y[rows], rng)
                self._step()
            self._memory.add(batch.take(rows), numbers[rows], rng, came_with)
        return answers

    def _parts(self, numbers: Sequence[int]) -> int:
        """In how many parts a batch is learned, each as if it had come by itself.

        A part has at most one record in `SEEN_A_PART` of those seen before it, since a young network needs steps. Where
        a batch has less than half of the classes that as many records drawn from all classes alike would have, what
        counts is those seen of its classes, on average: a class that comes once and alone needs steps of its own. Then
        a part has no more records than are replayed beside them, too.
        """
        count, classes, beside = len(numbers), len(self.model.classes), self.options.replay_draws
        if not self.replays or not beside:
            return 1
        alike = classes * (1 - (1 - 1 / classes) ** count)
        if 2 * len(set(numbers)) > alike:
            seen, most = self._seen.total(), count
        else:
            seen, most = sum(self._seen[number] for number in numbers) // count, beside
        return math.ceil(count / min(max(2, seen // SEEN_A_PART), most))

    def log_probabilities(self, x: Tensor) -> Tensor:
        """x (B, ...) as in `Batch.x` → logarithms (B, K) of the served model's probabilities, were its sharpness 1."""
        return self._logits(x.to(self._device)).log_softmax(1)

    @torch.no_grad()
    def _logits(self, x: Tensor) -> Tensor:
        """The served model's logits (B, K)."""
        logits: Tensor = self.model(x)
        return logits

    def _backward(self, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        """Draws records to replay, and computes gradients of the loss of all → logits (B, K) of incoming ones."""
        replayed = self._memory.draw(self.options.replay_draws, rng)
        count = len(x)
        logits: Tensor = self._learning(self._shown(torch.cat([x, replayed.x]), count, rng))  # (B + R, K)
        kept, compared = self._memory.logits(replayed.slots) or (None, None)
        seen = Rehearsal(logits[:count], y, logits[count:], replayed.y, kept, compared, self.options.logits_weight)
        self._part.loss(STRATEGIES[self.options.strategy](seen), rng).backward()  # type: ignore[no-untyped-call]
        return logits[:count].detach()

    @property
    def replays(self) -> bool:
        return self.options.replays

    def scale_learning_rate(self, factor: float) -> None:
        self._rate_factor = factor

    def remembered(self) -> Collection[bytes]:
        return {*super().remembered(), *self._calibration.remembered()}

    def correct(self, id_: bytes, label: str, rng: torch.Generator) -> bool:
        if id_ not in self._calibration.remembered():
            return super().correct(id_, label, rng)
        self._grow(self._labels.new([label]), rng)
        self._calibration.relabel(id_, *self._labels.numbers([label]))
        return True

    def capture(self) -> State:
        state = super().capture()
        seen = [self._seen[number] for number in range(len(self.model.classes))]
        meta, training = {**state.meta, "seen": seen}, dict(state.training)
        if self._calibration.slots and self._seen:
            training |= self._calibration.capture()
            meta["calibration"] = self._calibration.meta()
        if self.options.average:
            meta["updates"] = self._updates
        return self._part.capture(State(state.serving, training, meta))

    def restore(self, state: State) -> None:
        self._part.restore(state, self._restore)

    def _restore(self, state: State) -> None:
        before = {} if self.options.calibrate else {"sharpness": torch.ones(1)}  # which versions of before do not have
        super().restore(State({**before, **state.serving}, state.training, state.meta))
        self._seen = Counter(dict(enumerate(state.meta.get("seen", [SETTLED] * len(self.model.classes)))))
        self._updates = state.meta.get("updates", 0)
        if self._calibration.slots and "calibration" in state.meta:
            self._calibration.restore(state.meta["calibration"], state.training)

    def flush(self, label: str) -> int:
        [number] = self._labels.numbers([label])
        self._seen[number] = 0
        self._calibration.flush(number)
        return self._memory.flush(number)

    def _step(self) -> None:
        self._part.step(self._rate_factor)
        self._optimizer.step(self._rate_factor)
        self._average.move(decay_of_updates(self.options.average, self._updates))
        self._updates += 1
