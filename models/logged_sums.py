"""Sums in closed form whose versions hold what came since some time before as a log of features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.analytic import Sums
from models.learner import Rows, copy_into
from models.memory import Changed

PREFIX = "sums/recent/"
UNITS = 16  # of 1: features are multiples of 1 / UNITS
PIECE = 256  # records of the log that are added together, and the least that it has room for


class LoggedSums(Sums):
    """With the features of the records that came since: so many as take half of what the sums do, or `PIECE`."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__(width, device, UNITS)
        self._room = max(width, PIECE)
        self._features = torch.zeros(self._room, width, dtype=torch.int16)  # of each record, times `UNITS`
        self._classes = torch.zeros(self._room, dtype=torch.int32)  # of each; of one that was taken out -1 less it
        self._count = torch.zeros((), dtype=torch.int64)
        self._changed = Changed()
        self.keep()

    def add(self, features: Tensor, y: Tensor, *, sign: int = 1, forgetting: float = 1.0) -> None:
        rows = (features * UNITS).to("cpu", torch.int16)
        fits = len(y) <= self._room and torch.equal(rows.to(features) / UNITS, features)
        first, last = int(self._count), int(self._count) + len(y)
        if fits and forgetting == 1 and last > self._room:
            self.keep()
            first, last = 0, len(y)
        super().add(features, y, sign=sign, forgetting=forgetting)
        if forgetting < 1:  # every record changes all of them
            self.base = None
            self._count.zero_()
        elif not fits:
            self.keep()
        else:
            self._features[first:last] = rows
            self._classes[first:last] = y if sign > 0 else -1 - y
            self._changed.add(*range(first, last))
            self._count.fill_(last)

    def merge(self, other: Sums, numbers: Tensor) -> None:
        super().merge(other, numbers)
        self.keep()

    def keep(self) -> None:
        super().keep()
        self._count.zero_()

    def capture(self) -> dict[str, Tensor | Rows]:
        """As `Sums.capture`, and sums/recent/features (N, D) int16, sums/recent/classes (N,) int32 and
        sums/recent/known () int64."""
        changed = self._changed.take()
        log = {name: Rows(each, changed) for name, each in self._log().items()}
        return {**super().capture(), **log, PREFIX + "known": self._count}

    def restore(self, state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit, or the log names records or classes that there are not.
        """
        super().restore({name: value for name, value in state.items() if not name.startswith(PREFIX)})
        self._changed, self._count = Changed(), torch.zeros_like(self._count)
        log = {name: value for name, value in state.items() if name.startswith(PREFIX)}
        if not log:  # versions of before have none
            return
        copy_into({**self._log(), PREFIX + "known": self._count}, log)
        self._changed.take()
        count, classes = int(self._count), self._classes.long()
        y = torch.where(classes < 0, -1 - classes, classes)[: max(0, count)]
        if not 0 <= count <= self._room or (y >= len(self.counts)).any():
            raise ValueError(f"{PREFIX}known or {PREFIX}classes names records or classes that there are not.")
        for first in range(0, count, PIECE):
            for sign in (1, -1):
                rows = first + (classes[first : min(count, first + PIECE)] * sign >= (sign < 0)).nonzero()[:, 0]
                super().add(self._features[rows].float() / UNITS, y[rows], sign=sign)

    def _log(self) -> dict[str, Tensor]:
        return {PREFIX + "features": self._features, PREFIX + "classes": self._classes}
