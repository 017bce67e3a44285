"""How sure a network may be: one number t, found on records that it does not learn (`evidence`).

Its answer is softmax(t z) with the logits z, a temperature of 1/t, where t explains the evidence best (`pooling`). Of a
stream that is sorted by class, too, the evidence is a sample of all that came; predictions of the last records would
say that the last class is always right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.evidence import AT_ONCE, FIRST, PREFIX, Evidence
from models.learner import Batch, Rows
from models.pooling import fitted, floored

FEW, EVERY = 64, 1000  # records after which t is found anew: a share of all, but not fewer nor more
AGAIN = 1 / 8  # the share
SLOTS, SHARE = 200, 1 / 20  # of the evidence: a single number needs little


class Calibration(Evidence):
    """The evidence of one learner; says when and how t is fitted to it.

    Where it is not `wanted`, all is learned, and there is nothing to fit or to capture.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, wanted: bool) -> None:
        super().__init__(shape, dtype, SLOTS if wanted else 0, SHARE)
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
