"""Classifiers that serve the moving average of their weights, see `moving_average`.

Predictions and the reported loss are those of the average, from before the update, in a pass of its own without
gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.classifier import ClassifierLearner, ClassifierNetwork, ClassifierOptions
from models.learner import State, structural
from models.memory import Memory
from models.moving_average import decay_of_updates


class AveragedOptions(ClassifierOptions):
    """What every classifier can be told, and whether weights are averaged."""

    average: float = structural(0.0, ge=0, lt=1)  # d: 0.99 is the last hundred updates; 0: what learns is served


class AveragedLearner(ClassifierLearner):
    """A `ClassifierLearner` that serves w̄, or w where `average` is 0."""

    def __init__(
        self, network: ClassifierNetwork, options: AveragedOptions, memory: Memory, device: torch.device
    ) -> None:
        super().__init__(network, options, memory, device, averaged=options.average > 0)
        self._decay = options.average
        self._updates = 0

    @torch.no_grad()
    def _answers(self, x: Tensor, logits: Tensor) -> Tensor:
        return logits if self._average is None else self.model(x)

    def _step(self) -> None:
        super()._step()
        if self._average is not None:
            self._average.move(decay_of_updates(self._decay, self._updates))
            self._updates += 1

    def capture(self) -> State:
        state = super().capture()
        if self._average is None:
            return state
        return State(state.serving, state.training, {**state.meta, "updates": self._updates})

    def restore(self, state: State) -> None:
        super().restore(state)
        if self._average is not None:
            self._updates = state.meta["updates"]
