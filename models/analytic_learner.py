"""What the classifiers in closed form share: a head solved from sums over all records (`analytic`), and when it is.

Whatever the order of the stream, the same sums; so a stream that is sorted by class is learned like a shuffled one, in
one pass, at a constant cost a record.

Adding a record costs D², solving D³/3: the head is solved anew after an update when D / 4 records are not in it and
an eighth of all, or D / 64 and with them most of what is known of a class, or as many as are in it: at 1, 2, 4, 8 …
records. So solving costs at most as much a record as adding does, and ever less in a long stream. Which λ is best is
asked whenever there are twice as many records, at powers of two. It is on a thread of its own, from a copy of the
sums, while the next records arrive; whoever needs the head next, the next update or a version, waits for it.

What is served has a head of all records, solved for the version with the λ of the last one, so that none waits for the
next ones. The head that predicts them stays as it was. So both are functions of the updates alone, whenever a version
is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.analytic import HeadName, Solved, Sums
from models.capabilities import Recogniser
from models.familiarity import NEVER, SAMPLE, ranks, tempered
from models.labels import Labels, likeliest
from models.learner import Batch, Options, Report, Rows, State, copy_into
from models.network import widened
from models.replaying import Labelled

FRESH, FEWEST = 1 / 4, 1 / 64  # of the width: when so many records are not in the head, it is solved anew
LATER = 1 / 8  # of all records: so many of them, too, where that is more
MOST = 0.75  # of a class's records: when so many are not in it, `FEWEST` are enough
PROMPT = 4096  # the widest head that is solved for every version: it takes a third of a second
HORIZON = 2000  # records over which it is judged
AT_ONCE = 64  # records that are looked at together
PREFIX = "learning/"  # of the head that predicts the next records
NOTHING_ELSE: Mapping[int, Tensor] = MappingProxyType({})


class AnalyticOptions(Options):
    """Options of every classifier in closed form."""

    head: HeadName = "ridge"
    ridge: float | None = Field(10.0, gt=0)  # λ, in records; none: what the sums tell
    forgetting: float = Field(1.0, gt=0, le=1)  # γ: what counts of all before, at each record
    max_classes: int = Field(1000, ge=1)  # a label beyond them is dead-lettered
    unknown: float = Field(0.05, gt=0, lt=0.5)  # share of records like the learned ones that may be called unknown


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of B records."""

    features: Tensor  # φ (B, D) float32
    prior: Tensor  # (B, K) or (), what else speaks for each class: a logarithm
    strange: Tensor  # (B,) float32: how little they resemble what was learned
    v: Tensor  # (B, d) float64 on the CPU, what `strange` is computed from; d may be 0
    rows: Tensor  # (N, 2) int64, what else is counted: the record and the bucket of each; N may be 0
    trust: Tensor | None = None  # (B, 1): how much the head has to say; None: 1

    def scores(self, weight: Tensor, bias: Tensor) -> Tensor:
        """(B, K) of a head"""
        scores = self.features @ weight.T + bias
        return scores if self.trust is None else scores * self.trust


class AnalyticModel(nn.Module, Recogniser):
    """What is served. Probabilities are softmax(τ (W φ + b) + prior), as far as a
    record resembles what was learned (`familiarity`)."""

    weight: Tensor
    bias: Tensor
    sharpness: Tensor
    shares: Tensor  # (K,) of each class in all records
    familiar: Tensor  # (SAMPLE,) scores of learned records

    def __init__(self, width: int, classes: Sequence[str], unknown: float) -> None:
        super().__init__()
        self.classes = list(classes)
        self.unknown = unknown
        self.reads: tuple[int, ...] = (width,)  # what decides its features
        self.register_buffer("weight", torch.zeros(len(self.classes), width))
        self.register_buffer("bias", torch.zeros(len(self.classes)))
        self.register_buffer("sharpness", torch.ones(()))
        self.register_buffer("shares", torch.zeros(len(self.classes)))
        self.register_buffer("familiar", torch.full((SAMPLE,), NEVER))

    def look(self, x: Tensor, whole: Mapping[int, Tensor] = NOTHING_ELSE) -> Look:
        """x (B, ...) as in `Batch.x`, and of its rows whose texts are longer all of these."""
        raise NotImplementedError

    def prior(self, look: Look) -> Tensor:
        """`look.prior` by the sums of now."""
        return look.prior

    def strangeness(self, look: Look) -> Tensor:
        """`look.strange` (B,) by the sums of now."""
        return look.strange

    def reads_as(self, other: Self) -> bool:
        """Whether both have the same features."""
        return self.reads == other.reads

    @torch.no_grad()
    def recognise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, ...) as in `Batch.x` → probabilities (B, K) float32, and (B,) bool: it resembles none of them."""
        look = self.look(x.to(self.weight.device))
        rank = ranks(look.strange, self.familiar)
        return tempered(self.probabilities(look), rank, self.shares), rank < self.unknown

    def probabilities(self, look: Look) -> Tensor:
        """Probabilities (B, K) of records that resemble what was learned."""
        return (self.sharpness * look.scores(self.weight, self.bias) + look.prior).softmax(1)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(self.completed(state_dict), *args, **kwargs)

    def completed(self, serving: Mapping[str, Tensor | Rows]) -> dict[str, Tensor | Rows]:
        """A stored serving state, with the tensors that older versions do not have."""
        younger = self.younger()
        return {**serving} if younger.keys() & serving.keys() else {**younger, **serving}

    def younger(self) -> dict[str, Tensor]:
        """Tensors that older versions do not have, with the values that they start with."""
        return {"shares": self.shares, "familiar": self.familiar}

    def grow(self, classes: int) -> None:
        """Adds as many classes, which score 0 until the head is solved."""
        self.weight, self.bias = widened(self.weight, classes), widened(self.bias, classes)
        self.shares = widened(self.shares, classes)

    def take(self, solved: Solved) -> None:
        """Replaces the head. Classes that came up after it was computed score 0."""
        self.weight[: len(solved.weight)] = solved.weight.to(self.weight.device)
        self.bias[: len(solved.bias)] = solved.bias.to(self.bias.device)


N = TypeVar("N", bound=AnalyticModel)


class Beside(Generic[N]):
    """What a learner keeps beside its head, of one kind of record: nothing. A subclass keeps something.

    Args:
        sums: of the head.
    """

    #: τ is what the predictions of late would have fared best with, between the neighbours of the best of these
    sharpness: Sequence[float] = tuple(2.0**k for k in range(-2, 10))

    def __init__(self, model: N, options: AnalyticOptions, sums: Sums) -> None:
        self.model, self.options, self.sums = model, options, sums

    def looks(self, x: Tensor) -> Sequence[Look]:
        """Looks at records (N, ...), `AT_ONCE` together. Most of them are those of the last time."""
        return [self.model.look(some) for some in torch.split(x, AT_ONCE)]

    def meet(self, look: Look, y: Tensor, sign: int) -> None:
        """Takes note of how strange records of the classes (B,) are, which are learned, or with sign -1 taken out."""

    def recall(self, looks: Sequence[Look]) -> None:
        """Takes note of how strange a sample of all learned records is, which are taken out for now."""

    def add(self, look: Look, y: Tensor, sign: int, rest: Callable[[], None]) -> None:
        """Has `rest` add these records to the head's sums, or take them out, and `count` them."""
        rest()

    def count(self, look: Look, y: Tensor, sign: int) -> None:
        """Adds records to the counts beside the head's sums; with sign -1 takes them out."""

    def join(self, other: Self, numbers: Tensor) -> None:
        """Adds what others have; numbers (K',) say which of these classes each of theirs is."""

    def grow(self, classes: int) -> None:
        """So many classes have come."""

    def fit(self) -> None:
        """Updates what is served beside the head. Predictions of the next records do not read it."""

    def state(self) -> dict[str, Tensor]:
        """head/…: tensors that are captured and restored beside the head's own."""
        return {}

    def capture(self, state: State) -> State:
        """The learner's state with what is kept here."""
        return state

    def restore(self, state: State, rest: Callable[[State], None]) -> None:
        """Has `rest` restore the learner, and takes what is kept here."""
        rest(state)


class AnalyticLearner(Labelled, Generic[N]):
    """Adds records to the sums, and solves the head from them now and then."""

    needs_label = True
    replay_capacity = replay_size = 0

    def __init__(self, beside: Beside[N], device: torch.device) -> None:
        self.options, self._model, self._sums = beside.options, beside.model, beside.sums
        self._beside, self._device = beside, device
        network, options = self._model, self.options
        self._labels = Labels(network.classes, options.max_classes)
        self._weight, self._bias = network.weight.clone(), network.bias.clone()  # of the head that predicts
        self._ridge = torch.zeros((), dtype=torch.float64)  # its λ
        self._fresh = torch.zeros(0, dtype=torch.float64)  # of each class, records that the head was not solved from
        self._losses = torch.zeros(len(beside.sharpness), dtype=torch.float64)  # of each sharpness: sums that fade
        self._solver = ThreadPoolExecutor(1, "solve", torch.set_num_threads, (torch.get_num_threads(),))
        self._solving: Future[Solved] | None = None
        self._haste = 1.0

    @property
    def model(self) -> N:
        """The live model, once the head that is being solved is there."""
        if self._solving is not None:
            solved, self._solving = self._solving.result(), None
            self._model.take(solved)
            self._weight[: len(solved.weight)] = solved.weight.to(self._device)
            self._bias[: len(solved.bias)] = solved.bias.to(self._device)
            self._ridge.fill_(solved.ridge)
        return self._model

    @property
    def classes(self) -> list[str]:
        return self._model.classes

    @property
    def counts(self) -> Tensor:
        """(K,) float64, on the CPU: records of each class."""
        return self._sums.counts

    @property
    def sharpness_now(self) -> Tensor:
        """τ, () on the CPU."""
        return self._model.sharpness.cpu()

    @torch.no_grad()
    def log_probabilities(self, x: Tensor) -> Tensor:
        """x (B, ...) as in `Batch.x` → logarithms (B, K) of its probabilities, by the head that predicts."""
        model = self.model
        look = model.look(x.to(self._device))
        return self._logs(look.scores(self._weight, self._bias).cpu(), look.prior.cpu())

    @torch.no_grad()
    def left_out(self, x: Tensor, y: Tensor, *, tells_familiar: bool = False) -> Tensor:
        """x (N, ...) as in `Batch.x`, y (N,) → logarithms (N, K) of the probabilities that it would give to these
        records, which it learned, had it not learned them.

        Args:
            tells_familiar: whether they are a sample of the stream, and tell from now on how strange learned ones are.
        """
        model = self.model
        looks = self._beside.looks(x.to(self._device))
        each = list(zip(looks, torch.split(y, AT_ONCE), strict=True))
        sums = self._sums.copy()
        sums.add(torch.cat([look.features for look in looks]), y, sign=-1)
        for look, of_some in each:
            self._beside.count(look, of_some, -1)
        solved = sums.solve_once(self.options.head, self._ridge_now())
        weight, bias = solved.weight.to(self._device), solved.bias.to(self._device)
        logs = [self._logs(look.scores(weight, bias).cpu(), model.prior(look).cpu()) for look in looks]
        if tells_familiar:
            self._beside.recall(looks)
        for look, of_some in each:
            self._beside.count(look, of_some, 1)
        return torch.cat(logs)

    def _ridge_now(self) -> float | None:
        """λ of the last head."""
        return self.options.ridge or self._ridge.item() or None

    def _logs(self, scores: Tensor, prior: Tensor) -> Tensor:
        return (self._model.sharpness.cpu() * scores + prior).log_softmax(1)

    @torch.no_grad()
    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        if None in batch.labels:
            raise ValueError("a classifier was given a record without a label. Drop it: `needs_label` is true.")
        model = self.model
        classes = list(model.classes)
        look = self._look(batch)
        scores, prior = look.scores(self._weight, self._bias).cpu(), look.prior.cpu()  # (B, K) of before
        predicted = likeliest(model.sharpness.cpu() * scores + prior, classes)
        self._grow(self._labels.new(batch.labels))
        y = torch.tensor(self._labels.numbers(batch.labels))
        logs = self._evaluate(scores, prior, y)
        self._add(look, y, 1)
        model.shares.copy_(self._sums.counts / self._sums.counts.sum())
        self._fresh += torch.bincount(y, minlength=len(self._fresh))
        if self._due():
            self._solve()
        loss = F.nll_loss(logs, y).item()
        return Report(loss, predicted, logs=logs)

    @torch.no_grad()
    def forget(self, batch: Batch) -> None:
        """Takes out records that were learned. The head becomes that of the other records, but for rounding.

        Raises:
            ValueError: with a forgetting factor it is not known how much of a record is left; or a label is unknown.
        """
        if self.options.forgetting < 1:
            raise ValueError("with forgetting below 1, what is left of a record is not known. Learn anew without it.")
        if unknown := [label for label in batch.labels if label not in self._model.classes]:
            raise ValueError(f"no record with the label {unknown[0]!r} was learned.")
        y = torch.tensor(self._labels.numbers(batch.labels))
        self._add(self._look(batch), y, -1)
        self._solve()

    def merge(self, other: Self) -> None:
        """Adds all that another learner with the same options and input has learned.

        Raises:
            ValueError: its features are others.
        """
        if not self._model.reads_as(other._model):
            raise ValueError("only learners with the same width, input, buckets and the same backbone can be merged.")
        classes = other._model.classes
        self._grow(self._labels.new(classes))
        numbers = torch.tensor(self._labels.numbers(classes), dtype=torch.int64)
        self._sums.merge(other._sums, numbers)
        self._beside.join(other._beside, numbers)
        self._solve()

    def capture(self) -> State:
        model = self.model
        if self._fresh.any() and self._sums.width <= PROMPT:
            self._beside.fit()
            model.take(self._sums.solve(self.options.head, self._ridge_now()))
        training = {**self._sums.capture(), **self._own(), **self._head()}
        return self._beside.capture(State(dict(model.state_dict()), training, {"classes": list(model.classes)}))

    def restore(self, state: State) -> None:
        self._beside.restore(state, self._restore)

    def _restore(self, state: State) -> None:
        self._grow(self._labels.beyond(state.meta["classes"]))
        copy_into(self.model.state_dict(), self.model.completed(state.serving))
        self._weight.copy_(self._model.weight)
        self._bias.copy_(self._model.bias)
        if PREFIX + "weight" in state.training:  # in versions of before it was what they served
            copy_into(self._head(), {name: t for name, t in state.training.items() if name.startswith(PREFIX)})
        own = {name: value for name, value in state.training.items() if name.startswith("head/")}
        copy_into(self._own(), {"head/ridge": self._ridge, **own})  # versions of before chose none
        self._sums.restore({name: value for name, value in state.training.items() if name.startswith("sums/")})

    def _look(self, batch: Batch) -> Look:
        return self.model.look(batch.x.to(self._device), batch.whole)

    def _add(self, look: Look, y: Tensor, sign: int) -> None:
        """Adds records to all sums, or takes them out; their classes (B,) on the CPU."""

        def rest() -> None:
            self._sums.add(look.features, y, sign=sign, forgetting=self.options.forgetting)
            self._beside.count(look, y, sign)

        self._beside.meet(look, y, sign)
        self._beside.add(look, y, sign, rest)

    def _head(self) -> dict[str, Tensor]:
        return {PREFIX + "weight": self._weight, PREFIX + "bias": self._bias}

    def _own(self) -> dict[str, Tensor]:
        own = {"head/fresh": self._fresh, "head/losses": self._losses, "head/ridge": self._ridge}
        return {**own, **self._beside.state()}

    def _grow(self, labels: Sequence[str]) -> None:
        if labels:
            self.model.grow(len(labels))
            self._weight, self._bias = widened(self._weight, len(labels)), widened(self._bias, len(labels))
            self._sums.grow(len(labels))
            self._fresh = widened(self._fresh, len(labels))
            self._labels.add(labels)
            self._beside.grow(len(labels))

    def _evaluate(self, scores: Tensor, prior: Tensor, y: Tensor) -> Tensor:
        """Scores (B, K'), prior, classes (B,) → log-probabilities (B, K) by the present τ; then τ is chosen anew.

        A class that is new scores 0.
        """
        places, new = self._beside.sharpness, len(self._sums.counts) - scores.shape[1]
        scores = F.pad(scores, (0, new))
        prior = F.pad(prior, (0, new)) if prior.dim() else prior
        telling = self._telling(y)
        kept = 0.5 ** (len(telling) / HORIZON)
        every = [F.cross_entropy((t * scores + prior)[telling], y[telling], reduction="sum") for t in places]
        logs = self._logs(scores, prior)
        self._losses = kept * self._losses + torch.stack(every)
        self._model.sharpness.fill_(lowest(places, self._losses.tolist()))
        return logs

    def _telling(self, y: Tensor) -> Tensor:
        """Of records of the classes (B,), the rows that tell how sure answers may be: (N,).

        Not those of a class that only what is served knows: the head that predicts them is wrong until it is solved.
        But the first record of a class, which takes any head by surprise.
        """
        predicted = self._weight[y].any(1).cpu()
        again = (self._sums.counts[y] > 0) | (y[:, None] == y).tril(-1).any(1)
        return (predicted | ~again).nonzero()[:, 0]

    def scale_learning_rate(self, factor: float) -> None:
        """Solves the head so many times as often. In closed form there is no other learning rate."""
        self._haste = factor

    def _due(self) -> bool:
        counts, fresh = self._sums.counts, self._fresh
        unknown = bool((fresh.gt(0) & (fresh >= MOST * counts)).any())
        width, n = self._sums.width, counts.sum().item()
        usual = 0.0 if unknown else max(FRESH * width, LATER * n) / self._haste
        return fresh.sum().item() >= min(max(FEWEST * width, usual), n / 2)

    def _solve(self) -> None:
        self._beside.fit()
        n = self._sums.counts.sum()
        has_doubled = int(n).bit_length() > int(n - self._fresh.sum()).bit_length()
        ridge = self.options.ridge if has_doubled else self._ridge_now()
        sums = self._sums.copy()
        self._fresh = torch.zeros_like(self._fresh)
        self._solving = self._solver.submit(sums.solve_once, self.options.head, ridge)


def lowest(places: Sequence[float], losses: Sequence[float]) -> float:
    """Where the parabola through the least loss and its neighbours is lowest. Each place is twice the one before."""
    at = min(range(len(losses)), key=losses.__getitem__)
    if not 0 < at < len(losses) - 1:
        return places[at]
    before, least, after = losses[at - 1 : at + 2]
    bend = before - 2 * least + after
    return places[at] * (2 ** (0.5 * (before - after) / bend) if bend > 0 else 1.0)
