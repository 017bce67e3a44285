"""The hashes of texts in plain Python, one at a time."""

from __future__ import annotations

import re
from itertools import pairwise

import torch

from models.texts.hashing import BASE, MIX, WINDOW


def padded(some: list[str], length: int) -> torch.Tensor:
    return torch.tensor([[ord(c) for c in text] + [0] * (length - len(text)) for text in some], dtype=torch.int32)


def signed(value: int) -> int:
    """As 64 bits with a sign."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def mixed(value: int) -> int:
    value = signed(value * MIX)
    return signed((value ^ (value >> 29)) * BASE)


def ngrams_of(text: str, orders: range) -> list[int]:
    """The hash of every n-gram, one at a time, shorter ones first."""
    found = []
    for n in orders:
        for start in range(len(text) - n + 1):
            value = 0
            for c in text[start : start + n]:
                value = signed(value * BASE + ord(c) + 1)
            found.append(mixed(signed(value + n)))
    return found


def words_of(text: str) -> list[int]:
    """The hash of every word, then those of neighbours, then those of pairs."""
    found = re.findall(r"[^\x00-\x26\x28-\x2f\x3a-\x40\x5b-\x60\x7b-\xa0]+", text)
    each = [signed(sum(mixed(signed(ord(c) * BASE + place)) for place, c in enumerate(word))) for word in found]
    edges = [0, *each, 0]
    neighbours = [mixed(signed(a * MIX + b + 1)) for a, b in pairwise(edges)]
    pairs = [
        mixed(signed(each[i] * BASE + each[i + apart]))
        for apart in range(1, WINDOW + 1)
        for i in range(len(each) - apart)
    ]
    return [*map(mixed, each), *neighbours, *pairs]
