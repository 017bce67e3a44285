"""Learners around another learner: what they do not change, they hand on to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch

from models.learner import Correcting, Flushing, Learner, Reacting

L = TypeVar("L", bound=Learner)


class ReplayingClassifier(Learner, Correcting, Reacting, Flushing, Protocol):
    """A learner whose labels can be corrected and whose replay memory can be flushed."""


class Wrapped(Generic[L]):
    """What of a `Learner` is `inner`'s. A subclass has the rest."""

    def __init__(self, inner: L) -> None:
        self.inner = inner
        self.replay_capacity = inner.replay_capacity

    @property
    def needs_label(self) -> bool:
        return self.inner.needs_label

    @property
    def replay_size(self) -> int:
        return self.inner.replay_size

    def refuses(self, labels: Sequence[str | None]) -> Mapping[int, str]:
        return self.inner.refuses(labels)


R = TypeVar("R", bound=ReplayingClassifier)


class WrappedClassifier(Wrapped[R]):
    """A `Wrapped` classifier with a replay memory."""

    @property
    def replays(self) -> bool:
        return self.inner.replays

    def remembered(self) -> Collection[bytes]:
        return self.inner.remembered()

    def correct(self, id_: bytes, label: str, rng: torch.Generator) -> bool:
        return self.inner.correct(id_, label, rng)

    def scale_learning_rate(self, factor: float) -> None:
        self.inner.scale_learning_rate(factor)

    def flush(self, label: str) -> int:
        return self.inner.flush(label)
