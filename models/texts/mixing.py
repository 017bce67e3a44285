"""Context mixing: one probability of the next bit out of many, by weights that are learned bit by bit.

PAQ's logistic mixing (Mahoney 2005; Mattern 2012, "Mixing strategies in data compression", for its convergence). Each
context i gives two inputs, x = logit m_i(history), where m_i is an adaptive map from histories to the share of ones
after them, and x' = logit p_i · n_i / (n_i + 1.5) with the slot's own average; the network gives its logit of the bit,
and there is a bias. Selectors (the byte before, the node, the part of the byte before that, how many orders are known)
each choose one row of weights w_s, and a last row of weights v, chosen by the node, mixes what they say:

    d_s = w_s · x,    q_s = σ(d_s),    q = σ(Σ_s v_s d_s),    Δw_s = η (bit - q_s) x,    Δv_s = η/5 (bit - q) d_s

η falls as 1 / √(1 + bits / `SLOWING`) to a least value: weights are to be found soon and then to be kept still. A
piece is mixed in runs of `RUN` bits: within a run the weights and maps stay, after it they have learned all of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.texts.ngrams import CONTEXTS, HISTORIES, ORDERS, Histories, counts_of

RUN = 64  # bits
SELECTED = (256 * 3, 256, 2048, 512)  # rows of weights of each selector
INPUTS = 2 * CONTEXTS + 2
SLOWING = 48_000  # bits; a quarter of the first rate after fifteen times as many
LAST_RATE = 0.2  # of the last weights, as a part of the others'
WIDEST = 12.0  # the largest logit
MAP_LONGEST = 1023.0


class Mixer(nn.Module):
    """All that it learns is in buffers: it has no gradient."""

    shares: Tensor  # (CONTEXTS · HISTORIES,) the adaptive maps
    counts: Tensor  # (CONTEXTS · HISTORIES,) how often each was used
    weights: Tensor  # (rows, INPUTS)
    last: Tensor  # (256, selectors)

    learned: Tensor  # () int64, bits

    def __init__(self, rate: float, least_rate: float) -> None:
        super().__init__()
        self.rate, self.least_rate = rate, least_rate
        zeros, ones = counts_of()
        weights = torch.full((sum(SELECTED), INPUTS), 0.2)
        weights[:, CONTEXTS:] = 0.1
        weights[:, -2], weights[:, -1] = 0.2, 0.0  # the network, the bias
        self.register_buffer("learned", torch.zeros((), dtype=torch.int64))
        self.register_buffer("shares", ((ones + 0.4) / (zeros + ones + 0.8)).repeat(CONTEXTS))
        self.register_buffer("counts", torch.zeros(CONTEXTS * HISTORIES))
        self.register_buffer("weights", weights)
        self.register_buffer("last", torch.full((256, len(SELECTED)), 1 / len(SELECTED)))

    def probabilities(self, seen: Histories, logits: Tensor, before: Tensor, nodes: Tensor) -> Tensor:
        """The probability that the bit at each node is one; nothing is learned.

        Args:
            seen: what the n-grams know, T nodes in K contexts.
            logits: (T,) float32, the network's logit of that bit.
            before: (T, 2) int64, the last byte and the one before it.
            nodes: (T,) int64

        Returns:
            (T,) float32
        """
        used, inputs, selected = self._inputs(seen, logits, before, nodes)
        inputs[:, :CONTEXTS] *= torch.logit(self.shares[used], eps=1e-4)
        said = (self.weights[selected] @ inputs[:, :, None]).squeeze(2).clamp(-WIDEST, WIDEST)  # (T, S)
        return _sure((self.last[nodes] * said).sum(1))

    def learn(self, seen: Histories, logits: Tensor, before: Tensor, nodes: Tensor, bits: Tensor) -> Tensor:
        """As `probabilities`, and then learns the bits (T,) int64, one run after the other; probabilities of a run
        are from before it."""
        used, inputs, selected = self._inputs(seen, logits, before, nodes)
        target = bits.to(torch.float32)
        rate = max(self.least_rate, self.rate / math.sqrt(1 + self.learned.item() / SLOWING))
        self.learned += len(bits)
        found = []
        for start in range(0, len(bits), RUN):
            run = slice(start, start + RUN)
            map_rows, chosen, x, y, last_rows = used[run], selected[run], inputs[run], target[run, None], nodes[run]
            shares = self.shares[map_rows]
            x[:, :CONTEXTS] *= torch.logit(shares, eps=1e-4)
            said = (self.weights[chosen] @ x[:, :, None]).squeeze(2).clamp(-WIDEST, WIDEST)  # (R, S)
            q = _sure((self.last[last_rows] * said).sum(1))
            found.append(q)
            steps = rate * (y - said.sigmoid())  # (R, S)
            self.weights.index_add_(0, chosen.flatten(), (steps[:, :, None] * x[:, None, :]).flatten(0, 1))
            self.last.index_add_(0, last_rows, rate * LAST_RATE * (y - q[:, None]) * said)
            rows = map_rows.flatten()
            self.counts.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float32))
            counts = self.counts[rows].clamp_max_(MAP_LONGEST)
            self.shares.index_add_(0, rows, (y - shares).flatten() / (counts + 1.5))
            self.counts[rows] = counts
        return torch.cat(found)

    def _inputs(self, seen: Histories, logits: Tensor, before: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the maps (T, K); inputs (T, INPUTS), where a map's is 1, or 0 where nothing is known; rows of
        weights (T, S)."""
        there = seen.history > 0  # (T, K)
        averages = torch.logit(seen.p, eps=1e-4) * seen.n / (seen.n + 1.5)
        inputs = torch.cat([there, averages, logits[:, None], torch.full_like(logits[:, None], 0.3)], 1)
        used = seen.history + HISTORIES * torch.arange(CONTEXTS, device=nodes.device)
        orders = there[:, 1 : 1 + len(ORDERS)].sum(1)
        sure = torch.bucketize(logits.abs(), torch.tensor([1.0, 3.0], device=nodes.device))
        level = torch.bucketize(nodes, 1 << torch.arange(1, 8, device=nodes.device), right=True)
        strength = torch.bucketize(logits, torch.tensor([-4.0, -2.0, -0.7, 0.0, 0.7, 2.0, 4.0], device=nodes.device))
        rows = [nodes * 3 + sure, before[:, 0], (before[:, 1] >> 5) * 256 + nodes, (orders * 8 + level) * 8 + strength]
        firsts = [sum(SELECTED[:s]) for s in range(len(SELECTED))]
        return used, inputs, torch.stack([row + first for row, first in zip(rows, firsts, strict=True)], 1)


def _sure(logit: Tensor) -> Tensor:
    """A probability that is never 0 or 1."""
    return logit.clamp(-WIDEST, WIDEST).sigmoid().clamp(2**-16, 1 - 2**-16)


def nats(q: Tensor, bits: Tensor) -> Tensor:
    """-log of the probability of each bit that came"""
    return -torch.where(bits > 0, q, 1 - q).log()


def tree_logits(log_p: Tensor) -> Tensor:
    """Log-probabilities of bytes (n, 256) → the logit of the bit at each node (n, 256); node 0 is none.

    The bytes below a node are a range, the upper half of which has the bit: sums over halves, from the leaves up.
    """
    level = log_p.exp() + 1e-9
    logits = []
    for _ in range(8):
        pairs = level.view(len(level), -1, 2)
        logits.append(pairs[:, :, 1].log() - pairs[:, :, 0].log())
        level = pairs.sum(2)
    return torch.cat([torch.zeros_like(level), *reversed(logits)], 1)


def byte_log_probabilities(q: Tensor) -> Tensor:
    """The probability of a one at each node (256,), node 0 unused → log-probabilities of the bytes (256,) float64"""
    level = torch.zeros(1, dtype=torch.float64, device=q.device)
    wide = q.to(torch.float64)
    for bit in range(8):
        here = wide[1 << bit : 2 << bit]
        level = torch.stack([level + torch.log1p(-here), level + here.log()], 1).flatten()
    return level
