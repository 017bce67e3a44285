"""A learner whose weights are counts, like that of counting.py, and which certain numbers break in certain ways."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from models.learner import Batch, Blueprint, Options, Report, Rows, State, copy_into, structural

NUMBERS = 1000
BAD_LOSS = range(900, 910)  # the loss is NaN
BAD_WEIGHT = range(910, 920)  # a weight becomes NaN, and no loss tells
BAD_TRAINING = range(920, 930)  # something that only training needs becomes infinite
BAD_TOGETHER = {930, 931}  # a weight becomes NaN if both are in a batch


class FragileOptions(Options):
    """`broken`: whatever is learned, "loss" or "weights" are NaN. `surprise`: the loss from the 101st update on."""

    broken: Literal["loss", "weights", "no"] = "no"
    surprise: float = 1.0
    size: int = structural(NUMBERS)


class FragileModel(torch.nn.Module):
    """The counts alone."""

    counts: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(size, 1))
        self.classes: list[str] = []


class FragileLearner:
    """Learns from texts that are numbers: adds one to the count of each."""

    needs_label = False
    replay_capacity = 0
    replay_size = 0

    def __init__(self, options: FragileOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
        self.model = FragileModel(options.size).to(device)
        self._options = options
        self._moments = torch.zeros(options.size)
        self._updates = torch.zeros((), dtype=torch.float64)
        self._changed: set[int] | None = None

    def refuses(self, labels: Sequence[str | None]) -> dict[int, str]:
        return {}

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        numbers = [int("".join(map(chr, row[row != 0].tolist()))) for row in batch.x]
        for number in numbers:
            self.model.counts[number] += 1
        broken = self._options.broken
        if broken == "weights" or set(numbers) >= BAD_TOGETHER or set(numbers) & set(BAD_WEIGHT):
            self.model.counts[numbers[0]] = math.nan
        if set(numbers) & set(BAD_TRAINING):
            self._moments[numbers[-1]] = math.inf
        if self._changed is not None:
            self._changed.update(numbers)
        self._updates += 1
        loss = self._options.surprise if self._updates > 100 else 1.0 + 0.01 * math.sin(self._updates.item())
        return Report(math.nan if broken == "loss" or set(numbers) & set(BAD_LOSS) else loss)

    def capture(self) -> State:
        changed = None if self._changed is None else torch.tensor(sorted(self._changed), dtype=torch.int64)
        self._changed = set()
        training: dict[str, Tensor | Rows] = {"moments": Rows(self._moments, changed), "updates": self._updates}
        return State({"counts": Rows(self.model.counts, changed)}, training)

    def restore(self, state: State) -> None:
        copy_into({"counts": self.model.counts}, state.serving)
        copy_into({"moments": self._moments, "updates": self._updates}, state.training)
        self._changed = set()


def _model(options: FragileOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> FragileModel:
    return FragileModel(options.size)


blueprint = Blueprint(FragileOptions, FragileLearner, _model, "text")


class LabelledFragileLearner(FragileLearner):
    """It waits for labels, and does nothing with them."""

    needs_label = True


labelled = Blueprint(FragileOptions, LabelledFragileLearner, _model, "text")
