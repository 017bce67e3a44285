"""A kind of record of one's own: rows of numbers as JSON, with the learner that reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.learner import Batch, Blueprint, Options, Report, State
from pipeline.errors import RecordError
from pipeline.inputs import Content, Input


class RowInput(Input):
    """How a JSON list of numbers becomes (F,) float32."""

    media = "application/json"
    dtype = "float32"

    kind: Literal["row"] = "row"
    fields: int
    max_bytes: int = 1 << 16

    @property
    def shape(self) -> tuple[int, ...]:
        """(F,)"""
        return (self.fields,)

    def array(self, content: Content, *, whole: bool = False) -> NDArray[np.float32]:
        assert isinstance(content, bytes)
        try:
            row = np.array(json.loads(content), np.float32)
        except ValueError as error:
            raise RecordError("undecodable", f"no JSON list of numbers: {error}.") from None
        if row.shape != self.shape:
            raise RecordError("undecodable", f"{row.shape} numbers, and the model reads {self.shape}.")
        return row


class SumModel(torch.nn.Module):
    """The sum of all rows."""

    total: Tensor

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(fields))
        self.classes: list[str] = []


class SumLearner:
    """Adds the rows up."""

    needs_label = False
    replay_capacity = 0
    replay_size = 0

    def __init__(self, options: Options, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
        self.model = SumModel(*shape).to(device)

    def refuses(self, labels: Sequence[str | None]) -> dict[int, str]:
        return {}

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        self.model.total += batch.x.sum(0)  # (B, F) float32
        return Report(loss=0.0)

    def capture(self) -> State:
        return State({"total": self.model.total}, {})

    def restore(self, state: State) -> None:
        total = state.serving["total"]
        assert isinstance(total, Tensor)
        self.model.total.copy_(total)


def _model(options: Options, shape: tuple[int, ...], meta: Mapping[str, Any]) -> SumModel:
    return SumModel(*shape)


blueprint = Blueprint(Options, SumLearner, _model, "row")
