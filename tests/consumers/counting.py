"""A learner whose weights are the counts of the records that it learned: every count must end at exactly one.

It is a user's own learner too: the tests load it by its import path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.learner import Batch, Blueprint, Options, Report, Rows, State, structural
from pipeline.records import Payload, Record


class CountOptions(Options):
    """How many numbers can be counted."""

    numbers: int = structural(10_000, ge=1)


class CountModel(torch.nn.Module):
    """The counts alone."""

    counts: Tensor

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(numbers, 1, dtype=torch.int64))
        self.classes: list[str] = []


class CountLearner:
    """Learns from texts that are numbers: adds one to the count of each."""

    needs_label = False
    replay_capacity = 0
    replay_size = 0

    def __init__(self, options: CountOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
        self.model = CountModel(options.numbers).to(device)
        self._changed: set[int] | None = None

    def refuses(self, labels: Sequence[str | None]) -> dict[int, str]:
        return {}

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        numbers = [int("".join(map(chr, row[row != 0].tolist()))) for row in batch.x]
        for number in numbers:
            self.model.counts[number] += 1
        if self._changed is not None:
            self._changed.update(numbers)
        return Report(loss=0.0)

    def capture(self) -> State:
        changed = None if self._changed is None else torch.tensor(sorted(self._changed), dtype=torch.int64)
        self._changed = set()
        return State({"counts": Rows(self.model.counts, changed)}, {})

    def restore(self, state: State) -> None:
        counts = state.serving["counts"]
        assert isinstance(counts, Tensor)
        self.model.counts.copy_(counts)
        self._changed = set()


def _model(options: CountOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> CountModel:
    return CountModel(options.numbers)


blueprint = Blueprint(CountOptions, CountLearner, _model, "text")


def from_words(record: Record) -> Payload:
    """A user's own decoder, for records such as b"number 7"."""
    assert record.value is not None
    word, number = record.value.decode().split()
    return Payload(number, id=word)
