"""Records that a learner of two parts is judged by, to find out what each part knows.

Which ones these are depends on their ids alone. A share of all ids may be evidence; of the records that have them, the
`SLOTS` with the smallest numbers are, where a number is a function of the id (bottom-k, Cohen and Kaplan 2007): a
uniform sample of the stream, whatever its order. What is passed over is no evidence. It never becomes any when it comes
again, since the largest number that is kept only falls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.evaluation.held_out import is_held_out
from models.learner import Batch, Rows, copy_into
from models.memory import Changed, Policy, ReplayMemory
from models.pooling import fitted, floored

SHARE = 1 / 10
SLOTS = 500
FIRST = 16  # records of a class that are learned before one can be evidence
AT_ONCE = 64  # records of the evidence that are answered together
PREFIX = "evidence/"
FEW, EVERY = 64, 1000  # records after which t is found anew: a share of all, but not fewer nor more
AGAIN = 1 / 8  # the share
SLOTS_OF_T, SHARE_OF_T = 200, 1 / 20  # of the evidence: a single number needs little


class Smallest(Policy):
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

    def flush(self, label: int, moved: Mapping[int, int], size: int) -> None:
        self._chances[list(moved.values())] = self._chances[list(moved)]
        self._chances[size:] = 1.0
        self._used = size
        self._changed = Changed()  # all of them

    def capture(self) -> dict[str, Rows]:
        return {"chances": Rows(self._chances, self._changed.take())}

    def restore(self, meta: Mapping[str, Any], y: Tensor, tensors: Mapping[str, Tensor | Rows]) -> None:
        copy_into({"chances": self._chances}, tensors)
        self._used = len(y)
        self._changed.take()


class Evidence(ReplayMemory):
    """At most so many records of `shape`, of a share of all, on the CPU, with the numbers of their classes."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, slots: int = SLOTS, share: float = SHARE) -> None:
        super().__init__(slots, shape, dtype, torch.device("cpu"), Smallest(slots), prefix=PREFIX)
        self._share = share

    def __len__(self) -> int:
        return self.size

    def takes(self, one: Batch, y: int) -> bool:
        """Whether one record is evidence from now on."""
        id_ = bytes(one.ids[0].tolist())
        if id_ not in self.remembered() and is_held_out(id_.hex(), self._share):
            chance = torch.Generator("cpu").manual_seed(int.from_bytes(id_[:8], "big") >> 1)
            self.add(one, [y], chance)
        return id_ in self.remembered()

    def records(self) -> tuple[Tensor, Tensor]:
        """x (N, ...) as in `Batch.x`, y (N,)"""
        columns = self.columns()
        return columns["x"], columns["y"]


class Calibration(Evidence):
    """How sure a network may be: one number t, found on records that it does not learn.

    Its answer is softmax(t z) with the logits z, a temperature of 1/t, where t explains the evidence best (`pooling`).
    Of a stream that is sorted by class, too, the evidence is a sample of all that came; predictions of the last records
    would say that the last class is always right.

    Where it is not `wanted`, all is learned, and there is nothing to fit or to capture.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, wanted: bool) -> None:
        super().__init__(shape, dtype, SLOTS_OF_T if wanted else 0, SHARE_OF_T)
        self._fresh = 0  # records that came since t was found

    def rest(
        self, batch: Batch, y: Sequence[int], seen: Mapping[int, int], learned: Collection[bytes]
    ) -> Sequence[int]:
        """Takes some rows of a batch as evidence → the rows that are to be learned.

        Args:
            y: their classes' numbers.
            seen: records of each class before, by its number.
            learned: ids of such as are remembered, which cannot be evidence any more.
        """
        if not self.slots:
            return range(len(batch))
        self._fresh += len(batch)
        return [row for row, number in enumerate(y) if not self._takes(batch, row, number, seen[number], learned)]

    def _takes(self, batch: Batch, row: int, number: int, seen: int, learned: Collection[bytes]) -> bool:
        id_ = bytes(batch.ids[row].tolist())
        may_be = seen >= FIRST and id_ not in learned
        return id_ in self.remembered() or (may_be and self.takes(batch.rows([row]), number))

    def due(self, records: int) -> bool:
        """Whether it is time to fit t anew, after so many records in all."""
        return self.slots > 0 and self._fresh >= min(EVERY, max(FEW, AGAIN * records))

    def found(self, log_probabilities: Callable[[Tensor], Tensor]) -> Tensor:
        """Fits t (1,) to the evidence, by a function of records (B, ...) → log-probabilities (B, K)."""
        self._fresh = 0
        x, y = self.records()
        if not len(y):
            return torch.ones(1)
        return fitted(floored(torch.cat([log_probabilities(some) for some in torch.split(x, AT_ONCE)]))[:, None], y)

    def meta(self) -> dict[str, Any]:
        return {"memory": super().meta(), "fresh": self._fresh}

    def restore(self, meta: Mapping[str, Any], state: Mapping[str, Tensor | Rows]) -> None:
        super().restore(meta["memory"], {name: value for name, value in state.items() if name.startswith(PREFIX)})
        self._fresh = meta["fresh"]
