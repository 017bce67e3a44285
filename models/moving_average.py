"""Moving averages of weights: what is served in place of what learns (Polyak and Juditsky 1992).

A stream has no end towards which a learning rate could fall; the average does what that fall would do. With the weights
w that learn and the average w̄ that is served, after an update

    w̄ ← d w̄ + (1 - d) w

with d of the updates so far (Tarvainen and Valpola 2017) or of the records, see the two functions below.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from models.learner import Rows, copy_into

N = TypeVar("N", bound=nn.Module)
PREFIX = "learning/"  # of the names of w in a state; w̄ has the names that a model without an average has


def decay_of_updates(average: float, update: int) -> float:
    """d_t = min(average, (1 + t) / (10 + t)) after update t, counted from 0: 0.99 is the last hundred updates."""
    return min(average, (1 + update) / (10 + update))


def decay_of_records(records: int, half_life: float) -> float:
    """d after an update of so many records."""
    return 0.5 ** (records / half_life) if half_life else 0.0


class MovingAverage(Generic[N]):
    """w̄ in `model`, a copy of a network that learns. What does not learn, and buffers, it leaves alone.

    Where nothing is `averaged`, `model` is the network itself, and each method does nothing.
    """

    def __init__(self, network: N, averaged: bool = True) -> None:
        self.model = copy.deepcopy(network).requires_grad_(False) if averaged else network
        self._network = network

    @torch.no_grad()
    def move(self, decay: float) -> None:
        """w̄ ← d w̄ + (1 - d) w"""
        if learned := self._learned():
            served: list[Tensor] = [self.model.get_parameter(name) for name in learned]
            torch._foreach_lerp_(served, list(learned.values()), 1 - decay)

    def follow(self) -> None:
        """Follows parameters that were replaced by ones with more rows. A new row's average starts at its value."""
        for name, learned in self._learned().items():
            served = self.model.get_parameter(name)
            if len(served) < len(learned):
                module, _, own = name.rpartition(".")
                rows = torch.cat([served, learned[len(served) :]])
                setattr(self.model.get_submodule(module), own, nn.Parameter(rows, requires_grad=False))

    def capture(self) -> dict[str, Tensor]:
        """learning/<parameter>: w"""
        return {PREFIX + name: learned for name, learned in self._learned().items()}

    def restore(self, training: Mapping[str, Tensor | Rows]) -> None:
        """After `model` was restored: w, from all that is stored for training."""
        if self.model is not self._network:
            copy_into(self._network.state_dict(), self.model.state_dict())  # what does not learn is the same in both
            copy_into(self.capture(), {name: value for name, value in training.items() if name.startswith(PREFIX)})

    def _learned(self) -> dict[str, Tensor]:
        named = self._network.named_parameters() if self.model is not self._network else ()
        return {name: p.detach() for name, p in named if p.requires_grad}
