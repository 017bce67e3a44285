"""Image classifier that cannot forget: a head in closed form over fixed features. No gradient, no stored pictures.

Features are wavelet moduli behind a random projection (`wavelets`). The head is solved from sums over all records
(`analytic`): whatever the order of the stream, the same sums; so a stream that is sorted by class is learned like a
shuffled one, in one pass, at a constant cost a record.

Adding a record costs D², solving D³/3: the head is solved anew after an update when a fifth of all records are not in
it, D / 16 at least, or three quarters of those of any class (of a new one, all are not). That is on a thread of its
own, from a copy of the sums, while the next records arrive; whoever needs the head next, the next update or a version,
waits for it. So what a version holds is a function of the updates alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.analytic import HeadName, Solved, Sums
from models.labels import Labels
from models.learner import Batch, Blueprint, Options, Report, State, copy_into, module_on, structural
from models.network import pixels, widened
from models.wavelets import Wavelets

SHARE, SHARE_OF_CLASS = 0.2, 0.75  # of the records: when so many are not in the head, it is solved anew
FEWEST = 1 / 16  # of the width: with fewer new records, solving would cost more than all else
#: from which the sharpness of answers is chosen: probabilities are softmax(τ · scores)
SHARPNESS = tuple(2.0**k for k in range(-2, 10))
HORIZON = 2000  # records over which it is judged


class ImageAnalyticOptions(Options):
    """`width` is D, the number of random features: a state of 2 D² bytes."""

    head: HeadName = "ridge"
    ridge: float = Field(1e-5, gt=0)  # λ
    forgetting: float = Field(1.0, gt=0, le=1)  # γ: what counts of all before, at each record
    width: int = structural(2000, ge=8, le=16_384)
    max_classes: int = Field(1000, ge=1)  # a label beyond them is dead-lettered


class ImageAnalytic(nn.Module):
    """What is served. `shape` is (C, H, W)."""

    weight: Tensor
    bias: Tensor
    sharpness: Tensor

    def __init__(self, shape: tuple[int, ...], width: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = list(classes)
        self.wavelets = Wavelets(shape, width)
        self.register_buffer("weight", torch.zeros(len(self.classes), width))
        self.register_buffer("bias", torch.zeros(len(self.classes)))
        self.register_buffer("sharpness", torch.ones(()))

    def features(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) uint8 → φ (B, D) float32"""
        found: Tensor = self.wavelets(pixels(x.to(self.weight.device)))
        return found

    def scores(self, features: Tensor) -> Tensor:
        """φ (B, D) → (B, K)"""
        return features @ self.weight.T + self.bias

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) uint8 → probabilities (B, K) float32 in the order of `classes`."""
        return (self.sharpness * self.scores(self.features(x))).softmax(1)

    def grow(self, classes: int) -> None:
        """Adds as many classes, which score 0 until the head is solved."""
        self.weight, self.bias = widened(self.weight, classes), widened(self.bias, classes)

    def take(self, solved: Solved) -> None:
        """Another head; classes that came up since it was begun score 0."""
        self.weight[: len(solved.weight)] = solved.weight.to(self.weight.device)
        self.bias[: len(solved.bias)] = solved.bias.to(self.bias.device)


class ImageAnalyticLearner:
    """Adds what is incoming to the sums, and solves the head now and then."""

    needs_label = True
    replay_capacity = 0
    replay_size = 0

    def __init__(self, options: ImageAnalyticOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
        self.options = options
        self._model = module_on(lambda: ImageAnalytic(shape, options.width, ()), device)
        self._labels = Labels(self._model.classes, options.max_classes)
        self._sums = Sums(options.width, device)
        self._fresh = torch.zeros(0, dtype=torch.float64)  # of each class, records that the head was not solved from
        self._losses = torch.zeros(len(SHARPNESS), dtype=torch.float64)  # of each sharpness: sums that fade
        self._solver = ThreadPoolExecutor(1, "solve", torch.set_num_threads, (torch.get_num_threads(),))
        self._solving: Future[Solved] | None = None

    @property
    def model(self) -> ImageAnalytic:
        """Waits for the head that is being solved."""
        if self._solving is not None:
            self._model.take(self._solving.result())
            self._solving = None
        return self._model

    def refuses(self, labels: Sequence[str | None]) -> Mapping[int, str]:
        return self._labels.refuses(labels)

    @torch.no_grad()
    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        if None in batch.labels:
            raise ValueError("a classifier was given a record without a label. Drop it: `needs_label` is true.")
        model = self.model
        known = list(model.classes)
        features = model.features(batch.x)  # (B, D)
        scores = model.scores(features).cpu()  # (B, K) of before
        self._grow(self._labels.new(batch.labels))
        y = torch.tensor(self._labels.numbers(batch.labels))
        loss = self._judge(scores, y, model)
        self._sums.add(features, y, forgetting=self.options.forgetting)
        self._fresh += torch.bincount(y, minlength=len(self._fresh))
        if self._due():
            self._solve()
        predicted = [known[k] for k in scores.argmax(1).tolist()] if known else [None] * len(batch)
        return Report(loss, predicted)

    def forget(self, batch: Batch) -> None:
        """Takes out records that were learned: the head is that of the others, but for rounding.

        Raises:
            ValueError: with a forgetting factor it is not known how much of a record is left; or a label is unknown.
        """
        if self.options.forgetting < 1:
            raise ValueError("with forgetting below 1, what is left of a record is not known. Learn anew without it.")
        if unknown := [label for label in batch.labels if label not in self._model.classes]:
            raise ValueError(f"no record with the label {unknown[0]!r} was learned.")
        y = torch.tensor(self._labels.numbers(batch.labels))
        self._sums.add(self.model.features(batch.x), y, sign=-1)
        self._solve()

    def merge(self, other: ImageAnalyticLearner) -> None:
        """Adds all that another learner with the same options has learned.

        Raises:
            ValueError: its features are others.
        """
        if (self.options.width, self._model.wavelets.dim) != (other.options.width, other._model.wavelets.dim):
            raise ValueError("only learners with the same width and input can be merged.")
        self._grow(self._labels.new(other._model.classes))
        self._sums.merge(other._sums, torch.tensor(self._labels.numbers(other._model.classes)))
        self._solve()

    def capture(self) -> State:
        training = {**self._sums.capture(), **self._own()}
        return State(dict(self.model.state_dict()), training, {"classes": list(self._model.classes)})

    def restore(self, state: State) -> None:
        names, known = list(state.meta["classes"]), len(self._model.classes)
        if names[:known] != self._model.classes:
            raise ValueError("classes: this learner has learned others. Restore into an untrained one.")
        self._grow(names[known:])
        copy_into(self.model.state_dict(), state.serving)
        copy_into(self._own(), {name: value for name, value in state.training.items() if name.startswith("head/")})
        self._sums.restore({name: value for name, value in state.training.items() if name.startswith("sums/")})

    def _own(self) -> dict[str, Tensor]:
        return {"head/fresh": self._fresh, "head/losses": self._losses}

    def _grow(self, labels: Sequence[str]) -> None:
        if labels:
            self.model.grow(len(labels))
            self._sums.grow(len(labels))
            self._fresh = widened(self._fresh, len(labels))
            self._labels.add(labels)

    def _judge(self, scores: Tensor, y: Tensor, model: ImageAnalytic) -> float:
        """The loss, with the sharpness of before; a new class counts as one that scores 0."""
        scores = F.pad(scores, (0, len(self._sums.counts) - scores.shape[1]))
        loss = F.cross_entropy(model.sharpness.cpu() * scores, y).item()
        kept = 0.5 ** (len(y) / HORIZON)
        every = torch.stack([F.cross_entropy(sharpness * scores, y, reduction="sum") for sharpness in SHARPNESS])
        self._losses = kept * self._losses + every
        model.sharpness.fill_(SHARPNESS[int(self._losses.argmin())])
        return loss

    def _due(self) -> bool:
        counts, fresh = self._sums.counts, self._fresh
        if (fresh.gt(0) & (fresh >= SHARE_OF_CLASS * counts)).any():
            return True
        return fresh.sum().item() >= max(SHARE * counts.sum().item(), FEWEST * self.options.width)

    def _solve(self) -> None:
        sums = self._sums.copy()
        self._fresh = torch.zeros_like(self._fresh)
        self._solving = self._solver.submit(sums.solve, self.options.head, self.options.ridge)


def model(options: ImageAnalyticOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> ImageAnalytic:
    return module_on(lambda: ImageAnalytic(shape, options.width, meta["classes"]), torch.device("cpu")).eval()


BLUEPRINT = Blueprint(ImageAnalyticOptions, ImageAnalyticLearner, model, "image")
