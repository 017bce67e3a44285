"""Drawing a text byte by byte: which bytes keep it UTF-8, which of them is drawn, where a stop text may begin."""

from __future__ import annotations

import torch
from torch import Tensor

from models.capabilities import Sampling


class Utf8:
    """The bytes that may come next (Unicode 16, table 3-7, "Well-formed UTF-8 byte sequences")."""

    def __init__(self) -> None:
        self._left = 0  # bytes that the character still needs
        self._low, self._high = 0x80, 0xBF  # of its next byte

    @property
    def whole(self) -> bool:
        """Whether no character is half done."""
        return not self._left

    def allowed(self, room: int) -> Tensor:
        """(256,) bool, of bytes that can come where so many still fit; byte 0, the marker, only after a character."""
        mask = torch.zeros(256, dtype=torch.bool)
        if self._left:
            mask[self._low : self._high + 1] = True
            return mask
        mask[:0x80] = True
        for length, first, last in ((2, 0xC2, 0xDF), (3, 0xE0, 0xEF), (4, 0xF0, 0xF4)):
            mask[first : last + 1] = room >= length
        return mask

    def take(self, byte: int) -> None:
        """Goes on by a byte that was allowed."""
        if self._left:
            self._left -= 1
            self._low, self._high = 0x80, 0xBF
        else:
            self._left = (byte >= 0xC2) + (byte >= 0xE0) + (byte >= 0xF0)
            self._low = {0xE0: 0xA0, 0xF0: 0x90}.get(byte, 0x80)  # no overlong forms
            self._high = {0xED: 0x9F, 0xF4: 0x8F}.get(byte, 0xBF)  # no surrogates, nothing above U+10FFFF


def drawn(log_p: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A byte of the distribution (256,) float64, which need not sum to one: temperature, then top-k, then top-p.

    The inverse of the cumulative sum over bytes by falling probability, at one uniform number; equal ones by number.
    """
    if sampling.temperature == 0:
        return int(log_p.argmax())
    sharp = (log_p - log_p.max()) / sampling.temperature  # of any temperature above 0 the best one is a number
    p, order = torch.softmax(sharp, 0).sort(descending=True, stable=True)
    if sampling.top_k:
        p = p[: sampling.top_k]
    sums = (p / p.sum()).cumsum(0)
    if sampling.top_p < 1:
        sums = sums[: int((sums < sampling.top_p).sum()) + 1]
    chance = torch.rand((), generator=generator, dtype=torch.float64) * sums[-1]
    return int(order[int(torch.searchsorted(sums, chance, right=True).clamp_max(len(sums) - 1))])


def held_back(text: str, stop: str | None) -> int:
    """How many characters at the end of the text may be the beginning of the stop text"""
    return next((n for n in range(min(len(text), len(stop or "") - 1), 0, -1) if text.endswith(str(stop)[:n])), 0)
