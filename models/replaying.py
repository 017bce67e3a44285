"""What learners with a network, class labels and a replay memory share: their state, and classes that come up later."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dreams import Memory
from models.labels import Labels
from models.learner import Batch, Rows, State, copy_into
from models.memory import records_of
from models.moving_average import MovingAverage
from models.optimizer import BETAS, AdamW


class LabelledNetwork(nn.Module):
    """A network that knows its class names."""

    classes: list[str]

    def grow(self, classes: int, rng: torch.Generator | None) -> None:
        """Adds so many classes, if it has any; without `rng` their values are about to be replaced."""


N = TypeVar("N", bound=LabelledNetwork)


class Rates(Protocol):
    """Options of what AdamW does."""

    @property
    def learning_rate(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...


class Labelled:
    """What of a `Learner` its classes tell."""

    _labels: Labels

    def refuses(self, labels: Sequence[str | None]) -> Mapping[int, str]:
        return self._labels.refuses(labels)


class Replaying(Labelled):
    """What its replay memory tells, too."""

    _memory: Memory

    @property
    def replay_capacity(self) -> int:
        return self._memory.slots

    @property
    def replay_size(self) -> int:
        return self._memory.size


class ReplayingLearner(Replaying, Generic[N]):
    """What is learned of a network, and what is replayed: the part of a `Learner` that is not the update.

    Args:
        classes: the most that there may be; 0: labels are of no interest.
        averaged: whether what is served is a moving average, which the update moves.
    """

    def __init__(
        self,
        network: N,
        options: Rates,
        memory: Memory,
        device: torch.device,
        *,
        classes: int,
        averaged: bool,
        betas: tuple[float, float] = BETAS,
    ) -> None:
        self._learning = network
        self._average = MovingAverage(network, averaged)
        self.model = self._average.model
        self.model.classes = network.classes  # one list, which grows
        self._device = device
        self._memory = memory
        self._labels = Labels(network.classes, classes)
        rate, decay = options.learning_rate, options.weight_decay
        self._optimizer = AdamW(network, learning_rate=rate, weight_decay=decay, betas=betas)

    def remembered(self) -> Collection[bytes]:
        return self._memory.remembered()

    def kept(self, id_: bytes) -> Batch:
        """The records of this id (16 bytes) in the replay memory."""
        return records_of(id_, self._memory.columns(), self.model.classes)

    def correct(self, id_: bytes, label: str, rng: torch.Generator) -> bool:
        found = id_ in self._memory.remembered()
        if found:
            self._grow(self._labels.new([label]), rng)
            self._memory.relabel(id_, *self._labels.numbers([label]))
        return found

    def capture(self) -> State:
        training: dict[str, Tensor | Rows] = {**self._optimizer.capture(), **self._memory.capture()}
        training |= self._average.capture()
        meta = {"classes": list(self.model.classes), "memory": self._memory.meta()}
        return State(dict(self.model.state_dict()), training, meta)

    def restore(self, state: State) -> None:
        self._grow(self._labels.beyond(state.meta["classes"]), None)
        copy_into(self.model.state_dict(), state.serving)
        self._average.restore(state.training)
        memory = {name: value for name, value in state.training.items() if name.startswith("memory/")}
        self._optimizer.restore({name: v for name, v in state.training.items() if name.startswith("optimizer/")})
        self._memory.restore(state.meta["memory"], memory)

    def _grow(self, labels: Sequence[str], rng: torch.Generator | None) -> None:
        if labels:
            self._learning.grow(len(labels), rng)
            self._optimizer.follow()
            self._average.follow()
            self._labels.add(labels)


def weighed(numbers: Tensor, *, even: bool) -> Tensor:
    """Classes (B,) → what each record counts in an update, 1 in all; where it is `even`, so does each class."""
    counts = (numbers[:, None] == numbers).sum(1) if even else torch.ones_like(numbers)
    share: Tensor = F.normalize(1 / counts, p=1, dim=0)
    return share
