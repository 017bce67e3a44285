"""Sums that are stored as they were some time before, with what came since: a version need not hold all of them anew.

The sums of many features are large, and one record changes all of them. So a version holds the sums of some time
before, and a log of what was added to them or taken out of them since then. They are sums of whole numbers (features
are multiples of 1/16), so that both together are the sums of now, to the last bit. Where the log has no room for more,
the sums of then become the ones to start from, and it begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.analytic import Sums
from models.learner import Rows, copy_into
from models.memory import Changed
from models.network import widened

PREFIX = "sums/recent/"
GRAMS = (torch.int16, torch.int32)  # of whole numbers, from narrow to wide, in which G is stored if it fits
UNITS = 16  # of 1: features are multiples of 1 / UNITS
PER_CLASS = ("sums/by_class", "sums/counts")
NO_ROWS = torch.empty(0, dtype=torch.int64)
PIECE = 256  # records of the log that are added together, and the least that it has room for


class KeptSums(Sums):
    """Stored as they were when `keep` was last called: what was added since then is for a subclass, or whoever adds
    it, to store. Products of features are whole multiples of 1 / `units`."""

    units = 1

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__(width, device)
        self.base: dict[str, Tensor] | None = None  # those of before, as they are stored; None: those of now are
        self._stored: set[str] = set()  # of these what a version has

    def grow(self, classes: int) -> None:
        super().grow(classes)
        if self.base is not None:
            self.base |= {name: widened(self.base[name], classes) for name in PER_CLASS}
            self._stored -= {*PER_CLASS}

    def keep(self) -> None:
        """Makes the present sums the stored ones."""
        self.base, self._stored = self._now(), set()

    def capture(self) -> dict[str, Tensor | Rows]:
        """As `Sums.capture`, with G units² in the narrowest type of `GRAMS` that holds it, or else G in float64."""
        if self.base is None:
            return {**self._now()}
        stored, self._stored = self._stored, {*self.base}
        return {name: Rows(each, NO_ROWS if name in stored else None) for name, each in self.base.items()}

    def restore(self, state: Mapping[str, Tensor | Rows]) -> None:
        base = {name: tensor(value).clone() for name, value in state.items()}
        read = {name: widened(each, max(0, len(self.counts) - len(each))) for name, each in base.items()}
        if "sums/gram" in base:
            gram = base["sums/gram"]
            read["sums/gram"] = gram.double() / self.units**2 if gram.dtype in GRAMS else gram
        super().restore(read)
        self.base = {**base, **{name: read[name] for name in PER_CLASS if name in read}}
        self._stored = {name for name, each in base.items() if len(each) == len(self.base[name])}

    def _now(self) -> dict[str, Tensor]:
        state = {name: tensor(value) for name, value in super().capture().items()}
        whole = state["sums/gram"] * self.units**2
        fitting = [dtype for dtype in GRAMS if torch.equal(whole.to(dtype).to(whole), whole)]
        return {**state, "sums/gram": whole.to(fitting[0])} if fitting else state


class LoggedSums(KeptSums):
    """With the features of the records that came since: so many as take half of what the sums do, or `PIECE`."""

    units = UNITS

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__(width, device)
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
        """As `KeptSums.capture`, and sums/recent/features (N, D) int16, sums/recent/classes (N,) int32 and
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


def tensor(value: Tensor | Rows) -> Tensor:
    return value.tensor if isinstance(value, Rows) else value
