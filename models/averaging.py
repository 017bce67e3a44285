"""Image classifiers that serve the moving average of their weights, and learn pictures warped a little.

The average (Polyak and Juditsky 1992; Tarvainen and Valpola 2017):

After update t, counted from 0, with the weights w that learn and the average w̄ that is served:

    w̄ ← d_t w̄ + (1 - d_t) w,   d_t = min(average, (1 + t) / (10 + t))

A stream has no end towards which a learning rate could fall; the average does what that fall would do. Predictions
and the reported loss are those of w̄, from before the update, in a pass of its own without gradients. So they are where
pictures are warped: what is predicted is the record as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from models.classifier import ClassifierLearner, ClassifierNetwork, ClassifierOptions
from models.learner import State, copy_into, structural
from models.memory import Memory
from models.warping import NONE, Warp, warped


class AveragedOptions(ClassifierOptions):
    """What every classifier can be told, whether weights are averaged and how far pictures are warped."""

    average: float = structural(0.0, ge=0, lt=1)  # d: 0.99 is the last hundred updates; 0: what learns is served
    augment: Warp = Warp()  # of pictures, anew in every update
    augment_incoming: bool = True  # or of replayed ones alone


class AveragedLearner(ClassifierLearner):
    """A `ClassifierLearner` that serves w̄, or w where `average` is 0."""

    def __init__(
        self, network: ClassifierNetwork, options: AveragedOptions, memory: Memory, device: torch.device
    ) -> None:
        super().__init__(network, options, memory, device)
        self._average = options.average
        self._warp, self._warp_incoming = options.augment, options.augment_incoming
        self._updates = 0
        if self._average:
            self.model = copy.deepcopy(network).requires_grad_(False)
            self.model.classes = network.classes  # one list, which grows

    def _shown(self, x: Tensor, incoming: int, rng: torch.Generator) -> Tensor:
        plain = 0 if self._warp_incoming else incoming
        return torch.cat([x[:plain], warped(x[plain:], self._warp, rng)]) if plain else warped(x, self._warp, rng)

    @torch.no_grad()
    def _answers(self, x: Tensor, logits: Tensor) -> Tensor:
        return self.model(x) if self._average or (self._warp_incoming and self._warp != NONE) else logits

    @torch.no_grad()
    def _step(self) -> None:
        super()._step()
        if self._average:
            decay = min(self._average, (1 + self._updates) / (10 + self._updates))
            learned = [parameter.detach() for parameter in self._learning.parameters()]
            torch._foreach_lerp_(list(self.model.parameters()), learned, 1 - decay)
            self._updates += 1

    def _widen(self, classes: int, rng: torch.Generator | None) -> None:
        super()._widen(classes, rng)
        if self._average:
            self._learning.head.grow(classes)
            self.model.head.requires_grad_(False)

    def capture(self) -> State:
        state = super().capture()
        if not self._average:
            return state
        return State(state.serving, {**state.training, **self._raw()}, {**state.meta, "updates": self._updates})

    def restore(self, state: State) -> None:
        super().restore(state)
        if self._average:
            copy_into(self._raw(), {k: v for k, v in state.training.items() if k.startswith("learning/")})
            self._updates = state.meta["updates"]

    def _raw(self) -> Mapping[str, Tensor]:
        """learning/<parameter>: w"""
        return {f"learning/{name}": tensor for name, tensor in self._learning.state_dict().items()}
