"""Any classifier, with a sense of what resembles nothing that it learned (`familiarity`).

This wraps a learner and the model that it serves, and changes neither: predictions and updates have the bits that the
learner has alone. A record is answered by

    w p + (1 - w) q

as in `familiarity`, with the probabilities p of the classifier and the share q of each class in all that was learned.

Pictures are scored as `image-analytic` scores them: by their distance from all that were met, over fixed wavelet
features. Of each batch only the first `MET` are met, since features cost more than a small network's update.

Texts are scored by their 3-grams of code points. With c_f of n texts having f, a text with the 3-grams F has the score

    -1 / |F| · Σ_{f ∈ F} log((c_f + 1/2) / (n + 1))

and the scores that it is compared with are those of the last `SAMPLE` texts, each from before it was learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.capabilities import Classifier, Model, Recogniser
from models.familiarity import (
    FAMILIAR,
    NEVER,
    SAMPLE,
    Acquaintance,
    AcquaintedOptions,
    contrast,
    distances,
    projected,
    ranks,
    signs,
    tempered,
    whole,
)
from models.images.wavelets import Wavelets
from models.learner import NOTHING, Batch, Blueprint, Correcting, Learner, Report, Rows, Start, State, copy_into
from models.network import pixels, widened
from models.texts.hashing import edged, ngrams, trimmed
from models.wrapped import L, R, Wrapped, WrappedClassifier

PREFIX = "familiar/"  # of its names in a state
MET = 8  # pictures of a batch
BUCKETS = 1 << 15  # of 3-grams


class FamiliarPictures:
    """How strange pictures of one shape (C, H, W) are. Everything is on the CPU."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._wavelets = Wavelets(shape)
        self._signs = signs(FAMILIAR, self._wavelets.dim)
        self._acquaintance = Acquaintance(FAMILIAR + 1)
        self._mean, self._whitener = torch.zeros(FAMILIAR + 1), torch.zeros(FAMILIAR + 1, FAMILIAR + 1)
        self.scores = torch.full((SAMPLE,), NEVER)  # of learned records

    def meet(self, x: Tensor) -> None:
        """Takes note of records x (B, ...), which are learned next."""
        self._acquaintance.add(self._numbers(x[:MET]))

    def strange(self, x: Tensor) -> Tensor:
        """x (B, ...) → how little each resembles what was met: (B,) float32, larger is stranger."""
        return distances(self._numbers(x).float(), self._mean, self._whitener)

    def fit(self) -> None:
        """Updates `scores` and what `strange` reads from all records met. A version is made next."""
        for buffer, value in zip(self.serving().values(), self._acquaintance.fit(), strict=True):
            buffer.copy_(value)

    def serving(self) -> dict[str, Tensor]:
        """`scores` and what `strange` reads. Views."""
        return {"mean": self._mean, "whitener": self._whitener, "scores": self.scores}

    def training(self) -> dict[str, Tensor]:
        """Tensors that only `meet` and `fit` read."""
        return {name.removeprefix(PREFIX): tensor for name, tensor in self._acquaintance.capture().items()}

    def restore(self, training: Mapping[str, Tensor | Rows]) -> None:
        """Takes what `training` gave. What `serving` gave was copied before."""
        self._acquaintance.restore({PREFIX + name: value for name, value in training.items()})

    def _numbers(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) uint8 → v (B, d) float64"""
        pictures = pixels(x)
        return whole(torch.cat([projected(self._wavelets(pictures), self._signs), contrast(pictures)], 1))


class FamiliarTexts:
    """The same of texts (B, L) int32."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._counts = torch.zeros(BUCKETS, dtype=torch.int64)  # c
        self._records = torch.zeros((), dtype=torch.int64)  # n
        self.scores = torch.full((SAMPLE,), NEVER)

    def meet(self, x: Tensor) -> None:
        places = (self._records + torch.arange(len(x))) % SAMPLE
        self.scores[places] = self.strange(x)
        self._counts += torch.bincount(self._found(x)[1], minlength=BUCKETS)
        self._records += len(x)

    def strange(self, x: Tensor) -> Tensor:
        row, found = self._found(x)
        logs = torch.log((self._counts[found] + 0.5) / (self._records + 1)).float()  # (N,)
        total = torch.zeros(len(x)).index_add_(0, row, logs)
        return -total / torch.bincount(row, minlength=len(x)).clamp_min(1)

    def fit(self) -> None:
        """Nothing to do: scores are kept up to date by `meet`."""

    def serving(self) -> dict[str, Tensor]:
        return {"counts": self._counts, "records": self._records, "scores": self.scores}

    def training(self) -> dict[str, Tensor]:
        return {}

    def restore(self, training: Mapping[str, Tensor | Rows]) -> None:
        copy_into({}, training)

    @staticmethod
    def _found(x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L) → the 3-grams of all texts, as `Found.distinct` gives them."""
        return ngrams(edged(trimmed(x)), (3,)).distinct(BUCKETS)


Familiar = FamiliarPictures | FamiliarTexts
KINDS: dict[str, Callable[[tuple[int, ...]], Familiar]] = {"image": FamiliarPictures, "text": FamiliarTexts}


class AcquaintedModel(Recogniser):
    """What is served. Its answers are on the CPU."""

    def __init__(self, model: Classifier, familiar: Familiar, unknown: float) -> None:
        self.inner = model
        self._familiar = familiar
        self._unknown = unknown
        self.shares = torch.zeros(len(model.classes))

    @property
    def classes(self) -> list[str]:
        return self.inner.classes

    @classes.setter
    def classes(self, names: list[str]) -> None:
        self.inner.classes = names

    @torch.no_grad()
    def recognise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, ...) as in `Batch.x` → probabilities (B, K) float32, and (B,) bool: it resembles none of them."""
        p = self.inner.classify(x).cpu()
        rank = ranks(self._familiar.strange(x.cpu()), self._familiar.scores)
        shares = F.pad(self.shares, (0, p.shape[1] - len(self.shares)))  # classes that came after the last version
        return tempered(p, rank, shares), rank < self._unknown

    def features(self, x: Tensor) -> Tensor:
        """x (B, ...) → (B, D)"""
        inner: Any = self.inner
        return inner.features(x)  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Tensor]:
        return {PREFIX + name: tensor for name, tensor in self._own().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        own, others = parted(state_dict)
        copy_into(self._own(), own)
        self.inner.load_state_dict(others)  # type: ignore[attr-defined]

    def _own(self) -> dict[str, Tensor]:
        return {"shares": self.shares, **self._familiar.serving()}


class Acquainted(Wrapped[L]):
    """A classifier's learner, and how familiar records are to it."""

    def __init__(self, learner: L, familiar: Familiar, unknown: float) -> None:
        super().__init__(learner)
        self._familiar = familiar
        self._records = torch.zeros(0, dtype=torch.int64)  # of each class
        model: Any = learner.model
        self._model = AcquaintedModel(model, familiar, unknown)

    @property
    def model(self) -> AcquaintedModel:
        return self._model

    @torch.no_grad()
    def _meet(self, batch: Batch) -> None:
        classes = self.inner.model.classes
        numbers = torch.tensor([classes.index(str(label)) for label in batch.labels], dtype=torch.int64)
        self._records = widened(self._records, len(classes) - len(self._records))
        self._records += torch.bincount(numbers, minlength=len(classes))
        self._familiar.meet(batch.x.cpu())

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        report = self.inner.learn(batch, rng)
        self._meet(batch)
        return report

    @torch.no_grad()
    def capture(self) -> State:
        state, model = self.inner.capture(), self.model
        self._familiar.fit()
        self._records = widened(self._records, len(model.classes) - len(self._records))
        model.shares = (self._records / self._records.sum().clamp_min(1)).float()
        training = {PREFIX + name: tensor for name, tensor in self._training().items()}
        return State({**state.serving, **model.state_dict()}, {**state.training, **training}, state.meta)

    @torch.no_grad()
    def restore(self, state: State) -> None:
        serving, others = parted(state.serving)
        training, theirs = parted(state.training)
        self.inner.restore(State(others, theirs, state.meta))
        model, count = self.model, len(state.meta["classes"])
        model.shares, self._records = torch.zeros(count), torch.zeros(count, dtype=torch.int64)
        copy_into(model._own(), serving)
        copy_into({"classes": self._records}, {name: training.pop(name) for name in ("classes",) if name in training})
        self._familiar.restore(training)

    def _training(self) -> dict[str, Tensor]:
        return {"classes": self._records, **self._familiar.training()}


class AcquaintedNetwork(Acquainted[R], WrappedClassifier[R]):
    """An `Acquainted` learner with a replay memory, whose labels can be corrected."""


def parted(state: Mapping[str, Any], prefix: str = PREFIX) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a state by a prefix of its names → those with it, whose prefix is cut off, and the others."""
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return own, {name: value for name, value in state.items() if not name.startswith(prefix)}


def acquainted(blueprint: Blueprint) -> Blueprint:
    """A blueprint whose learners are `Acquainted` where the option `unknown` is above 0; else the blueprint itself."""
    kind = KINDS.get(blueprint.input)
    if kind is None or not issubclass(blueprint.options, AcquaintedOptions):
        return blueprint

    def learner(
        options: AcquaintedOptions, shape: tuple[int, ...], seed: int, device: torch.device, start: Start = NOTHING
    ) -> Learner:
        made = blueprint.build(options, shape, seed, device, start)
        if not options.unknown:
            return made
        around: Callable[..., Learner] = AcquaintedNetwork if isinstance(made, Correcting) else Acquainted
        return around(made, kind(shape), options.unknown)

    def model(options: AcquaintedOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> Model:
        made: Any = blueprint.model(options, shape, meta)
        return AcquaintedModel(made, kind(shape), options.unknown) if options.unknown else made

    return replace(blueprint, learner=learner, model=model, started=learner)
