"""What is in a text, as hashes: n-grams of code points, words, pairs of words. No vocabulary, no language, no loop.

A hash has 64 bits; whoever uses it reduces it to as many buckets as there are (Weinberger et al. 2009,
"Feature hashing for large scale multitask learning"). Texts are read as they are, unless they are `folded` first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BASE = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio as int64: the base of the rolling hash
MIX = 0xBF58476D1CE4E5B9 - (1 << 64)  # from the finaliser of SplitMix64 (Steele et al. 2014)
WINDOW = 10  # the words of a pair are so many apart at most
SPACE = 0x20
CAPITALS = ((0x41, 0x5A, 32), (0xC0, 0xDE, 32), (0x391, 0x3AB, 32), (0x400, 0x40F, 80), (0x410, 0x42F, 32))


class Found(NamedTuple):
    """The hashes of B texts, at most M of each."""

    hashes: Tensor  # (B, M) int64
    there: Tensor  # (B, M) bool: the others are padding

    def rows(self, buckets: int) -> tuple[Tensor, Tensor]:
        """(N,) int64 the buckets of all texts, one text after the other; (B,) int64 where each text begins."""
        counts = self.there.sum(1)
        return bucket(self.hashes, buckets)[self.there], counts.cumsum(0) - counts

    def distinct(self, buckets: int) -> tuple[Tensor, Tensor]:
        """N features of all texts, none twice in a text: (N,) the text and (N,) the bucket of each."""
        text = torch.arange(len(self.hashes), device=self.hashes.device)[:, None]
        pairs: Tensor = torch.unique((text * buckets + bucket(self.hashes, buckets))[self.there])
        return pairs // buckets, pairs % buckets


def mixed(hashes: Tensor) -> Tensor:
    """Bits in which every bit of the hash has a part; the upper ones are best."""
    hashes = hashes * MIX
    return (hashes ^ (hashes >> 29)) * BASE


def bucket(hashes: Tensor, buckets: int) -> Tensor:
    return (hashes >> 31) % buckets  # % is never negative in torch


def both(*found: Found) -> Found:
    """All hashes of the same texts."""
    return Found(torch.cat([each.hashes for each in found], 1), torch.cat([each.there for each in found], 1))


def trimmed(x: Tensor) -> Tensor:
    """Texts (B, L), zero-padded at the end → as wide as the longest of them, and at least 1."""
    longest = int((x != 0).sum(1).max()) if len(x) else 0
    return x[:, : max(1, longest)]


def ngrams(x: Tensor, orders: Iterable[int]) -> Found:
    """Every n-gram of code points.

    The hash of order n is the polynomial h_n(i) = h_{n-1}(i) · BASE + x(i + n - 1) + 1 modulo 2^64, begun at n, and its
    bits are mixed.

    Args:
        x: (B, L) code points, zero-padded at the end.
        orders: of how many code points.
    """
    points = x.to(torch.int64)
    length = points.shape[1]
    wanted = set(orders)
    found = []
    rolling = torch.zeros_like(points)
    for n in range(1, min(max(wanted), length) + 1):
        last = points[:, n - 1 :]  # (B, L - n + 1) the last code point of each n-gram
        rolling = rolling[:, : length - n + 1] * BASE + last + 1
        if n in wanted:
            found.append(Found(mixed(rolling + n), last != 0))
    return both(*found)


def words(x: Tensor) -> Found:
    """Every word, every pair of words in their order, up to `WINDOW` apart, and every pair of neighbours once more.

    A word ends where white space or ASCII punctuation is; the beginning and the end of a text are neighbours, too.

    Args:
        x: (B, L) code points, zero-padded at the end.
    """
    word, there = _words(x)
    neighbours = mixed(word[:, :-1] * MIX + word[:, 1:] + 1)
    either = there[:, 1:] | there[:, :-1]
    either[:, 0] = True  # of a text without a word, too
    found = [Found(mixed(word), there), Found(neighbours, either)]
    for apart in range(1, min(WINDOW, word.shape[1] - 1) + 1):
        pairs = mixed(word[:, :-apart] * BASE + word[:, apart:])
        found.append(Found(pairs, there[:, :-apart] & there[:, apart:]))
    return both(*found)


def single(x: Tensor) -> Found:
    """Every word, as in `words`, and no pairs."""
    word, there = _words(x)
    return Found(mixed(word), there)


def ngrams_in_pieces(x: Tensor, orders: Iterable[int], size: int) -> Iterator[Tensor]:
    """The hashes of `ngrams` of one text (n,) without padding, at most `size` at a time."""
    for order in orders:
        for start in range(0, len(x) - order + 1, size):
            yield ngrams(x[None, start : start + size + order - 1], [order]).hashes[0]


def single_in_pieces(x: Tensor, size: int) -> Iterator[Tensor]:
    """The hashes of `single` of one text (n,) without padding, some at a time."""
    unfinished, length = x.new_zeros((), dtype=torch.int64), 0  # the word that the piece before ended in, so far
    for piece in torch.split(F.pad(x, (0, 1)), size):  # what is behind the text ends its last word
        points = piece.to(torch.int64)
        letter = letters(points)
        before = F.pad(letter, (1, 0))[:-1]
        before[0] = length > 0
        first = letter & ~before
        number = first.cumsum(0)  # the word that a letter is of; 0: the one that was begun
        indices = torch.arange(len(piece), device=x.device)
        index = indices - torch.where(first, indices, -length).cummax(0).values
        word = unfinished.new_zeros(int(number[-1]) + 1)
        word[0] = unfinished
        word.scatter_add_(0, number, torch.where(letter, mixed(points * BASE + index), 0))
        ended = word[0 if length else 1 :]
        unfinished, length = unfinished.new_zeros(()), 0
        if letter[-1]:
            ended, unfinished, length = ended[:-1], ended[-1], int(index[-1]) + 1
        yield mixed(ended)


def _words(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, L) → numbers (B, W + 2) int64 of the words of each text between two zeros, and which of them are words"""
    points = x.to(torch.int64)
    letter = letters(points)
    first = letter & ~F.pad(letter, (1, 0))[:, :-1]
    number = first.cumsum(1)  # (B, L) the word that a letter is of, from 1 on
    count = number[:, -1]  # (B,)
    indices = torch.arange(points.shape[1], device=x.device).expand_as(points)
    index = indices - torch.where(first, indices, 0).cummax(1).values  # of a letter in its word
    summands = torch.where(letter, mixed(points * BASE + index), 0)
    column = torch.arange(int(count.max()) + 2, device=x.device)
    word = torch.zeros(len(x), len(column), dtype=torch.int64, device=x.device)  # 0 at both edges
    word.scatter_add_(1, torch.where(letter, number, 0), summands)
    return word, (column >= 1) & (column <= count[:, None])


def letters(points: Tensor) -> Tensor:
    """Which code points are of words: digits and the apostrophe, too."""
    letter = (points > 0x40) & ~((points > 0x5A) & (points < 0x61)) & ~((points > 0x7A) & (points < 0xA1))
    return letter | ((points >= 0x30) & (points < 0x3A)) | (points == 0x27)


def folded(x: Tensor) -> Tensor:
    """Code points with lower case for upper case of ASCII, Latin-1, Greek and Cyrillic; others as they are."""
    lower = x.clone()
    for first, last, apart in CAPITALS:
        lower += apart * ((x >= first) & (x <= last))
    return lower


def edged(x: Tensor) -> Tensor:
    """x (B, L) code points → (B, L + 2) int64 with a space before and behind each text."""
    padded = F.pad(x.to(torch.int64), (1, 1))
    padded[:, 0] = SPACE
    return padded.scatter_(1, ((x != 0).sum(1) + 1)[:, None], SPACE)
