"""Bounded byte n-grams: in each context, what followed, as a history of bits in a hashed table.

A byte is eight binary choices, from the highest bit down, and a *node* is the choices so far: 1, then 2 or 3, up to
255. For each of the contexts of `contexts` (the last 0 to 6 bytes, the word so far, that with the word before) the pair
(context, node) is hashed to one slot of a table of fixed size (PAQ, Mahoney 2005, "Adaptive weighing of context models
for lossless data compression"). A slot holds

- a check of 15 bits of its hash: another context that lands there begins anew and takes the slot;
- a history (n0, n1, last bit), the counts of zeros and ones up to `MOST`; where a bit comes, a count of the other one
  above 2 loses a part, so that the history is about what was seen lately;
- an average p of the bits, p ← p + (bit - p) / min(n + 1.5, `LONGEST`), and n.

Histories depend on nothing but the bits of their own slot. So a piece of many bytes is learned at once and still
exactly: all (context, node) pairs are sorted by slot, and the first bits of all slots are done together, then the
second ones, and so on. What comes back is what each slot held *before* each of its bits, as if bits came one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

TAIL = 64  # bytes before a piece that its contexts may look at
ORDERS = (1, 2, 3, 4, 5, 6)
CONTEXTS = len(ORDERS) + 3  # and no byte at all, the word so far, that with the word before
MOST = 24  # the largest count in a history
HISTORIES = 2 * (MOST + 1) ** 2
LONGEST = 127.0
HALVES = 32767.0  # p is kept as a number of 16 bits

MASK = (1 << 64) - 1
CHUNK = 1 << 13  # bytes that one call of `contexts` takes at most


def _signed(number: int) -> int:
    number &= MASK
    return number - (1 << 64) if number >> 63 else number


GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the base of the rolling hash
BASE, INVERSE = _signed(GOLDEN), pow(GOLDEN, -1, 1 << 64)
MIX1, MIX2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)  # SplitMix64 (Steele et al. 2014)
NODE = 0x5851F42D4C957F2D


def mixed(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * MIX1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * MIX2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def _powers(base: int) -> Tensor:
    powers = [1]
    for _ in range(CHUNK):
        powers.append(powers[-1] * base & MASK)
    return torch.tensor([_signed(power) for power in powers])


POWERS, INVERSES = _powers(GOLDEN), _powers(INVERSE)


def nodes_of(data: Tensor) -> tuple[Tensor, Tensor]:
    """data (n,) bytes → the nodes (n, 8) that lead to each byte, and the bit (n, 8) that each of them took, int64"""
    bit = torch.arange(8, device=data.device)
    wide = data.to(torch.int64)[:, None]
    return (1 << bit) | (wide >> (8 - bit)), (wide >> (7 - bit)) & 1


def contexts(data: Tensor) -> Tensor:
    """The contexts of every byte after the first `TAIL`, without looking at the byte itself.

    The hash of bytes i to j is Σ (x + 1) · BASE^(j - 1 - i) modulo 2^64, from sums over prefixes; words are runs of
    ASCII letters, apostrophes and bytes of other scripts, and their case is folded.

    Args:
        data: (TAIL + n,) uint8.

    Returns:
        (n, CONTEXTS) int64
    """
    device = data.device
    wide = data.to(torch.int64)
    length = len(wide)
    powers, inverses = POWERS[: length + 1].to(device), INVERSES[:length].to(device)
    zero = wide.new_zeros(1)
    ends = torch.arange(TAIL, length, device=device)
    after = torch.arange(1, length + 1, device=device)
    upper = (wide >= 65) & (wide <= 90)
    folded = wide + 32 * upper
    letter = ((folded >= 97) & (folded <= 122)) | (wide >= 128) | (wide == 39)
    plain, caseless = (torch.cat([zero, ((values + 1) * inverses).cumsum(0)]) for values in (wide, folded))

    def span(sums: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return (sums[end] - sums[start]) * powers[(end - 1).clamp_min(0)]

    found = [torch.full_like(ends, 77)]
    found += [span(plain, ends - order, ends) + 1000003 * order for order in ORDERS]
    word_start = torch.cat([zero, torch.where(letter, 0, after).cummax(0).values])  # of the word that ends here
    word_end = torch.cat([zero, torch.where(letter, after, 0).cummax(0).values])  # of the last word up to here
    word = mixed(3 * span(caseless, word_start[ends], ends) + 1001)
    before = word_end[word_start[ends]]
    found += [word, mixed(word + 1) + span(caseless, word_start[before], before)]
    return torch.stack(found, 1)


class Histories(NamedTuple):
    """What the slots of T nodes in K contexts hold."""

    history: Tensor  # (T, K) int64; 0: nothing
    p: Tensor  # (T, K) float32, the average bit
    n: Tensor  # (T, K) float32, of how many


class Ngrams(nn.Module):
    """The table. `slots` is a power of two; a slot has 8 bytes."""

    table: Tensor  # (slots, 4) int16: check, history, p, n
    following: Tensor  # (HISTORIES * 2,) int64: the history after this one and a bit

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(slots, 4, dtype=torch.int16))
        self.register_buffer("following", _following(), persistent=False)

    def look(self, found: Tensor, nodes: Tensor) -> Histories:
        """contexts (n, K) and nodes (n, m) → what is known of each, for T = n · m. Nothing is learned."""
        slot, check = self._hashed(found, nodes)
        return self._held(slot, check)

    def learn(self, found: Tensor, data: Tensor) -> tuple[Histories, Tensor]:
        """Learns a piece: contexts (n, K) and its bytes (n,) → what was known before each of its 8 n bits, and the
        slots (U,) int64 that were written."""
        nodes, bits = nodes_of(data)
        slot, check = self._hashed(found, nodes)
        shape = slot.shape  # (T, K)
        key, order = torch.sort(((slot << 15) | check).flatten(), stable=True)
        first = torch.ones_like(key, dtype=torch.bool)  # of its slot and check
        first[1:] = key[1:] != key[:-1]
        starts = first.nonzero().squeeze(1)  # (G,) one for each group of equal keys
        counts = torch.diff(starts, append=starts.new_tensor([len(key)]))
        counts, groups = torch.sort(counts, descending=True, stable=True)
        starts = starts[groups]
        most = int(counts[0])
        # The r-th bit of every group that has one lies in one run of memory: groups by falling count, r after r.
        sizes = len(counts) - torch.searchsorted(counts.flip(0), torch.arange(most, device=key.device), right=True)
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        rank = torch.repeat_interleave(torch.arange(most, device=key.device), sizes)
        group = torch.arange(len(key), device=key.device) - offsets[rank]
        at = order[starts[group] + rank]  # where each comes from, among the T · K
        bit = bits.reshape(-1, 1).expand(shape).reshape(-1)[at]
        group_key = key[starts]
        held = self._held(group_key >> 15, group_key & 0x7FFF)

        history = torch.empty(len(key), dtype=torch.int64, device=key.device)
        p = torch.empty(len(key), device=key.device)
        history[: len(starts)], p[: len(starts)] = held.history, held.p
        n = held.n[group] + rank
        rate = 1 / (n + 1.5).clamp_max(LONGEST)
        bit_float = bit.to(torch.float32)
        steps = [0, *offsets[1:].tolist()]
        for r in range(1, most):
            now, size = steps[r], steps[r + 1] - steps[r]
            last = steps[r - 1]
            torch.take(self.following, 2 * history[last : last + size] + bit[last : last + size],
                       out=history[now : now + size])  # fmt: skip
            torch.lerp(p[last : last + size], bit_float[last : last + size], rate[last : last + size],
                       out=p[now : now + size])  # fmt: skip

        ends = offsets[counts - 1] + torch.arange(len(counts), device=key.device)  # the last bit of each group
        after = torch.stack(
            [
                group_key & 0x7FFF,
                self.following[2 * history[ends] + bit[ends]],
                (torch.lerp(p[ends], bit_float[ends], rate[ends]) * 2 * HALVES - HALVES).round().to(torch.int64),
                (n[ends] + 1).clamp_max(LONGEST).to(torch.int64),
            ],
            1,
        ).to(torch.int16)
        # Two contexts may want one slot in the same piece: the one with the larger check has it.
        by_key = torch.argsort(groups)
        slots = group_key[by_key] >> 15
        wins = torch.ones_like(slots, dtype=torch.bool)
        wins[:-1] = slots[1:] != slots[:-1]
        written = slots[wins]
        self.table[written] = after[by_key[wins]]

        def back(values: Tensor) -> Tensor:
            placed = torch.empty_like(values)
            placed[at] = values
            return placed.view(shape)

        return Histories(back(history), back(p), back(n.clamp_max(LONGEST))), written

    def _hashed(self, found: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """(n, K), (n, m) → slots and checks, (n · m, K) each"""
        kinds = torch.arange(found.shape[1], device=found.device) * BASE
        z = mixed(found[:, None, :] + nodes[:, :, None] * NODE + kinds).flatten(0, 1)
        return (z >> 20) & (len(self.table) - 1), z & 0x7FFF

    def _held(self, slot: Tensor, check: Tensor) -> Histories:
        held = self.table[slot]
        there = (held[..., 0] == check) & (held[..., 3] > 0)
        history = torch.where(there, held[..., 1].to(torch.int64), 0)
        p = torch.where(there, (held[..., 2].to(torch.float32) + HALVES) / (2 * HALVES), 0.5)
        return Histories(history, p, torch.where(there, held[..., 3], 0).to(torch.float32))


def _following() -> Tensor:
    """The history after each history and bit. A count above 2 of the bit that did not come falls:
    3 → 2, 4 to 5 → 3, 6 to 8 → 4, 9 to 16 → 5, more → 6 (in the manner of PAQ's nonstationary states)."""
    count = torch.arange(MOST + 1)
    fallen = torch.where(count <= 2, count, 2 + torch.bucketize(count, torch.tensor([3, 5, 8, 16])))
    zeros, ones, _ = torch.meshgrid(count, count, torch.arange(2), indexing="ij")
    more_zeros, more_ones = (zeros + 1).clamp_max(MOST), (ones + 1).clamp_max(MOST)
    after_zero = (more_zeros * (MOST + 1) + fallen[ones]) * 2
    after_one = (fallen[zeros] * (MOST + 1) + more_ones) * 2 + 1
    return torch.stack([after_zero.flatten(), after_one.flatten()], 1).flatten()


def counts_of() -> tuple[Tensor, Tensor]:
    """n0 and n1 of every history, (HISTORIES,) each"""
    history = torch.arange(HISTORIES) // 2
    return history // (MOST + 1), history % (MOST + 1)
