"""Records that a learner of two parts is judged by, to find out what each part knows.

Which ones these are depends on their ids alone. A share of all ids may be evidence; of the records that have them, the
`SLOTS` with the smallest numbers are, where a number is a function of the id (bottom-k, Cohen and Kaplan 2007): a
uniform sample of the stream, whatever its order. What is passed over is no evidence. It never becomes any when it comes
again, since the largest number that is kept only falls.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.evaluation.held_out import is_held_out
from models.learner import Batch, Rows, copy_into
from models.memory import Changed, ReplayMemory, records_of

SHARE = 1 / 10
SLOTS = 500
FIRST = 16  # records of a class that are learned before one can be evidence
AT_ONCE = 64  # records of the evidence that are answered together
PREFIX = "evidence/"


class Smallest:
    """A policy of a replay memory that keeps the records with the smallest chances."""

    def __init__(self, slots: int) -> None:
        self._chances = torch.ones(slots, dtype=torch.float64)
        self._used = 0
        self._changed = Changed()

    def slot(self, label: int, chance: float) -> int | None:
        if self._used < len(self._chances):
            slot, self._used = self._used, self._used + 1
        else:
            slot = int(self._chances.argmax())
            if chance >= self._chances[slot]:
                return None
        self._chances[slot] = chance
        self._changed.add(slot)
        return slot

    def relabel(self, slot: int, label: int) -> None:
        pass  # which class a record is of makes no difference

    def flush(self, label: int, moved: Mapping[int, int], size: int) -> None:
        self._chances[list(moved.values())] = self._chances[list(moved)]
        self._chances[size:] = 1.0
        self._used = size
        self._changed = Changed()  # all of them

    def meta(self) -> dict[str, Any]:
        return {}

    def capture(self) -> dict[str, Rows]:
        return {"chances": Rows(self._chances, self._changed.take())}

    def restore(self, meta: Mapping[str, Any], y: Tensor, tensors: Mapping[str, Tensor | Rows]) -> None:
        copy_into({"chances": self._chances}, tensors)
        self._used = len(y)
        self._changed.take()


class Evidence:
    """At most so many records of `shape`, of a share of all, on the CPU, with the numbers of their classes."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, slots: int = SLOTS, share: float = SHARE) -> None:
        self._share = share
        self._memory = ReplayMemory(slots, shape, dtype, torch.device("cpu"), Smallest(slots))

    def __len__(self) -> int:
        return self._memory.size

    def takes(self, one: Batch, y: int) -> bool:
        """Whether one record is evidence from now on."""
        id_ = bytes(one.ids[0].tolist())
        if id_ not in self.remembered() and is_held_out(id_.hex(), self._share):
            chance = torch.Generator("cpu").manual_seed(int.from_bytes(id_[:8], "big") >> 1)
            self._memory.add(one, [y], chance)
        return id_ in self.remembered()

    def records(self) -> tuple[Tensor, Tensor]:
        """x (N, ...) as in `Batch.x`, y (N,)"""
        columns = self._memory.columns()
        return columns["x"], columns["y"]

    def remembered(self) -> Collection[bytes]:
        """The ids, 16 bytes each. A view."""
        return self._memory.remembered()

    def kept(self, id_: bytes, classes: Sequence[str]) -> Batch:
        """The record of this id, one of `remembered`."""
        return records_of(id_, self._memory.columns(), classes)

    def relabel(self, id_: bytes, y: int) -> None:
        """The record of this id, one of `remembered`, is of class y."""
        self._memory.relabel(id_, y)

    def flush(self, y: int) -> None:
        """Drops the records of a class."""
        self._memory.flush(y)

    def capture(self) -> dict[str, Rows]:
        """evidence/x, y, origins, ids and chances"""
        return {PREFIX + name.removeprefix("memory/"): rows for name, rows in self._memory.capture().items()}

    def meta(self) -> dict[str, Any]:
        """JSON."""
        return self._memory.meta()

    def restore(self, meta: Mapping[str, Any], state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        self._memory.restore(meta, {f"memory/{name.removeprefix(PREFIX)}": value for name, value in state.items()})
