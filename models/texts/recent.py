"""The texts that came last, as they were counted, so that sums are not stored again for every one of them.

Sums of many classes are large, and one text changes little of them. So a version holds the sums of some time before,
and this log: of each text since then its class, and the number of a bucket and the weight of each of its features, in
one number of 32 bits. Sums of integers are exact, so that both together are the sums of now, to the last bit. Where the
log has no room for more, the sums of then become the ones to start from, and it begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.learner import Rows, copy_into, tensor
from models.memory import Changed

TEXTS = 1 << 15  # that are in it at most
BLOCK = 256  # features that are stored together
BLOCKS = 1 << 14
SHIFT = 24  # bits of a bucket's number
PREFIX = "recent/"


class RecentTexts:
    """The log of the last texts: their features and classes."""

    def __init__(self) -> None:
        self._texts = torch.zeros(TEXTS, 2, dtype=torch.int32)  # the class of each, and how many features it has
        self._features = torch.zeros(BLOCKS, BLOCK, dtype=torch.int32)
        self._count = torch.zeros((), dtype=torch.int64)
        self._end = 0  # of the features
        self._changed = {name: Changed() for name in ("texts", "features")}

    def __len__(self) -> int:
        return int(self._count)

    def could_hold(self, rows: Tensor, y: Tensor) -> bool:
        """Whether an empty log would have room for these texts."""
        return len(y) <= TEXTS and len(rows) <= BLOCKS * BLOCK

    def has_room(self, rows: Tensor, y: Tensor) -> bool:
        return len(self) + len(y) <= TEXTS and self._end + len(rows) <= BLOCKS * BLOCK

    def add(self, rows: Tensor, y: Tensor) -> None:
        """Features (N, 3) of texts, their buckets and weights, in the order of the texts, whose classes are (B,)."""
        text, buckets, weights = rows.cpu().unbind(1)
        first, last = len(self), len(self) + len(y)
        self._texts[first:last] = torch.stack([y, torch.bincount(text, minlength=len(y))], 1).int()
        start, end = self._end, self._end + len(rows)
        self._features.view(-1)[start:end] = (buckets | weights << SHIFT).int()
        self._changed["texts"].add(*range(first, last))
        self._changed["features"].add(*range(start // BLOCK, -(-end // BLOCK)))
        self._count.fill_(last)
        self._end = end

    def clear(self) -> None:
        self._count.zero_()
        self._end = 0

    def read(self) -> tuple[Tensor, Tensor]:
        """Its features (N, 3) and its texts' classes (B,), as they were added."""
        classes, counts = self._texts[: len(self)].to(torch.int64).unbind(1)
        packed = self._features.view(-1)[: int(counts.sum())].to(torch.int64)
        text = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return torch.stack([text, packed & ((1 << SHIFT) - 1), (packed >> SHIFT) & 0xFF], 1), classes

    def capture(self) -> dict[str, Tensor | Rows]:
        """recent/texts (TEXTS, 2) and recent/features (BLOCKS, BLOCK), both int32, and recent/known () int64."""
        rows = {PREFIX + name: Rows(each, self._changed[name].take()) for name, each in self._tensors().items()}
        return {PREFIX + "known": self._count.clone(), **rows}

    def restore(self, state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        own, log = {PREFIX + "known": self._count}, logged(state)
        for name, rows in self._tensors().items():
            found = tensor(log.get(PREFIX + name, rows))
            own[PREFIX + name] = rows[: len(found)] if found.dim() else rows  # versions of before have fewer
            self._changed[name] = Changed()
            if found.shape == rows.shape:
                self._changed[name].take()
        copy_into(own, log)
        counts = self._texts[: max(0, len(self)), 1]
        self._end = int(counts.sum())
        if not 0 <= len(self) <= TEXTS or (counts < 0).any() or self._end > BLOCKS * BLOCK:
            raise ValueError(f"recent/known or recent/texts: {len(self)} texts with {self._end} features are too many.")

    def _tensors(self) -> dict[str, Tensor]:
        return {"texts": self._texts, "features": self._features}


def logged(state: Mapping[str, Tensor | Rows]) -> dict[str, Tensor | Rows]:
    """What a captured state has of a log."""
    return {name: value for name, value in state.items() if name.startswith(PREFIX)}


def of_state(state: Mapping[str, Tensor | Rows]) -> tuple[Tensor, Tensor]:
    """What is in the log of a captured state, as `RecentTexts.read` gives it.

    Raises:
        ValueError: a tensor is missing or does not fit.
    """
    log = RecentTexts()
    log.restore(state)
    return log.read()
