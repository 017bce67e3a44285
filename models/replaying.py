"""What learners with a network, class labels and a replay memory share: their state, and classes that come up later."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.labels import Labels
from models.learner import Batch, Rows, State, copy_into
from models.memory import Memory, records_of
from models.moving_average import MovingAverage
from models.optimizer import AdamW


class LabelledNetwork(nn.Module):
    """A network that knows its class names."""

    classes: list[str]


class ReplayingLearner:
    """The part of a `Learner` that is not the loss: a subclass adds `needs_label`, `learn` and `_widen`."""

    def __init__(
        self,
        network: LabelledNetwork,
        memory: Memory,
        device: torch.device,
        *,
        max_classes: int,
        learning_rate: float,
        weight_decay: float,
        averaged: bool = False,
    ) -> None:
        self._learning = network
        self._average = MovingAverage(network) if averaged else None  # a subclass moves it
        self.model = network if self._average is None else self._average.model
        self.model.classes = network.classes  # one list, which grows
        self._device = device
        self._memory = memory
        self._labels = Labels(network.classes, max_classes)
        self._optimizer = AdamW(network, learning_rate=learning_rate, weight_decay=weight_decay)

    @property
    def replay_capacity(self) -> int:
        return self._memory.slots

    @property
    def replay_size(self) -> int:
        return self._memory.size

    def refuses(self, labels: Sequence[str | None]) -> Mapping[int, str]:
        return self._labels.refuses(labels)

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
        if self._average is not None:
            training |= self._average.capture()
        meta = {"classes": list(self.model.classes), "memory": self._memory.meta()}
        return State(dict(self.model.state_dict()), training, meta)

    def restore(self, state: State) -> None:
        classes = list(state.meta["classes"])
        known = len(self.model.classes)
        if classes[:known] != self.model.classes:
            raise ValueError("classes: this learner has learned others. Restore into an untrained one.")
        self._grow(classes[known:], None)
        copy_into(self.model.state_dict(), state.serving)
        if self._average is not None:
            self._average.restore(state.training)
        memory = {name: value for name, value in state.training.items() if name.startswith("memory/")}
        self._optimizer.restore({name: v for name, v in state.training.items() if name.startswith("optimizer/")})
        self._memory.restore(state.meta["memory"], memory)

    def _grow(self, labels: Sequence[str], rng: torch.Generator | None) -> None:
        if labels:
            self._widen(len(labels), rng)
            self._optimizer.follow()
            if self._average is not None:
                self._average.follow()
            self._labels.add(labels)

    def _widen(self, classes: int, rng: torch.Generator | None) -> None:
        """Makes room for so many more classes in what learns; without `rng` the values are about to be replaced."""
        raise NotImplementedError


def weighed(numbers: Tensor, *, even: bool) -> Tensor:
    """Classes (B,) → what each record counts in an update, 1 in all; where it is `even`, so does each class."""
    counts = (numbers[:, None] == numbers).sum(1) if even else torch.ones_like(numbers)
    share: Tensor = F.normalize(1 / counts, p=1, dim=0)
    return share
