"""Text classifier: hashed n-grams of code points → mean embedding → LayerNorm → dense → head.

No vocabulary, no tokeniser, no language: every n-gram of 1 to 4 Unicode code points is hashed into one of `buckets`
rows of a table (the hashing trick, Weinberger et al. 2009; subword embeddings, Bojanowski et al. 2017). Texts are read
as they are: case and width carry meaning in some scripts and are not folded.

An update touches only the rows of the n-grams that it saw, so a snapshot moves those alone; see `RowRms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.classifier import ClassifierLearner, ClassifierNetwork, ClassifierOptions
from models.learner import Blueprint, Rows, State, copy_into, module_on, structural
from models.memory import Changed, ReplayMemory
from models.network import seeded

BASE = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio as int64: the base of the rolling hash
MIX = 0xBF58476D1CE4E5B9 - (1 << 64)  # from the finaliser of SplitMix64 (Steele et al. 2014)


class TextClassifierOptions(ClassifierOptions):
    """`orders` is the longest n-gram; `dim` the width of the table, which is normalised and fed to `hidden` units."""

    learning_rate: float = Field(3e-3, gt=0)  # of the dense layers
    table_learning_rate: float = Field(1e-2, gt=0)
    orders: int = structural(4, ge=1, le=8)
    buckets: int = structural(1 << 16, ge=2)
    dim: int = structural(32, ge=1)
    hidden: int = structural(128, ge=1)


def ngrams(x: Tensor, orders: int, buckets: int) -> tuple[Tensor, Tensor]:
    """The bucket of every n-gram of every text, without a loop over texts.

    The hash of order n is the polynomial h_n(i) = h_{n-1}(i) · BASE + x(i + n - 1) + 1 modulo 2^64, begun at n, and
    its bits are mixed before the modulus.

    Args:
        x: (B, L) code points, zero-padded at the end.

    Returns:
        (N,) int64 the buckets of all texts, one text after the other; (B,) int64 where each text begins.
    """
    points = x.to(torch.int64)
    length = points.shape[1]
    hashes, valid = [], []
    rolling = torch.zeros_like(points)
    for n in range(1, min(orders, length) + 1):
        last = points[:, n - 1 :]  # (B, L - n + 1) the last code point of each n-gram
        rolling = rolling[:, : length - n + 1] * BASE + last + 1
        mixed = (rolling + n) * MIX
        mixed = (mixed ^ (mixed >> 29)) * BASE
        hashes.append((mixed >> 31) % buckets)  # % is never negative in torch
        valid.append(last != 0)
    found = torch.cat(valid, 1)  # (B, all n-grams)
    counts = found.sum(1)
    return torch.cat(hashes, 1)[found], counts.cumsum(0) - counts


class HashTable(nn.Module):
    """The mean of the rows that each bag names. In a gradient's pass the touched rows are a leaf of their own."""

    def __init__(self, buckets: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(buckets, dim), requires_grad=False)
        self.touched: Tensor | None = None  # (U,) int64, sorted: the rows of the last pass with a gradient
        self.values: Tensor | None = None  # (U, D) their values, the leaf that has the gradient

    def forward(self, rows: Tensor, starts: Tensor) -> Tensor:  # (N,), (B,) → (B, D)
        if not torch.is_grad_enabled():
            return F.embedding_bag(rows, self.weight, starts, mode="mean")
        seen = torch.zeros(len(self.weight), dtype=torch.bool, device=rows.device)
        seen[rows] = True
        self.touched = seen.nonzero().squeeze(1)
        self.values = self.weight[self.touched].requires_grad_()
        places = seen.cumsum(0) - 1  # bucket → its place among the touched ones
        return F.embedding_bag(places[rows], self.values, starts, mode="mean")


class RowRms:
    """Updates the touched rows of a `HashTable`: Adam without momentum, with one second moment a row.

        v_r ← β v_r + (1 - β) mean(g_r²),   w_r ← w_r - η g_r / (√(v_r / (1 - β^{t_r})) + ε)

    t_r counts the updates of row r alone, so that the first step of a rare n-gram is as long as that of a common one.
    A row's state is two numbers: a commit moves hardly more than the row itself.
    """

    BETA, EPSILON = 0.999, 1e-8

    def __init__(self, table: HashTable, learning_rate: float) -> None:
        self._table = table
        self._learning_rate = learning_rate
        self._state = torch.zeros(len(table.weight), 2, device=table.weight.device)  # v_r, t_r
        self._changed = Changed()

    @torch.no_grad()
    def step(self, rate_factor: float = 1.0) -> None:
        rows, values = self._table.touched, self._table.values
        if rows is None or values is None or values.grad is None:
            return
        moment, count = self._state[rows].unbind(1)  # (U,)
        moment = self.BETA * moment + (1 - self.BETA) * values.grad.square().mean(1)
        count = count + 1
        scale = (moment / (1 - self.BETA**count)).sqrt_().add_(self.EPSILON)
        self._table.weight[rows] = values - rate_factor * self._learning_rate * values.grad / scale[:, None]
        self._state[rows] = torch.stack([moment, count], 1)
        self._changed.add(*rows.tolist())
        self._table.touched = self._table.values = None

    def capture(self) -> tuple[Rows, Rows]:
        """The table and its state (buckets, 2), with the rows that changed."""
        changed = self._changed.take()
        return Rows(self._table.weight.detach(), changed), Rows(self._state, changed)

    def restore(self, state: Mapping[str, Tensor | Rows]) -> None:
        copy_into({"optimizer/table.rows": self._state}, state)
        self._changed.take()


class TextClassifier(ClassifierNetwork):
    """The network. Texts are (B, L) int32."""

    def __init__(self, options: TextClassifierOptions, classes: Sequence[str]) -> None:
        super().__init__(options.hidden, classes)
        self.orders = options.orders
        self.table = HashTable(options.buckets, options.dim)
        self.norm = nn.LayerNorm(options.dim)
        self.dense = nn.Linear(options.dim, options.hidden)

    def features(self, x: Tensor) -> Tensor:
        mean = self.table(*ngrams(x, self.orders, len(self.table.weight)))  # (B, dim)
        return torch.relu(self.dense(self.norm(mean)))  # (B, hidden)


class TextClassifierLearner(ClassifierLearner):
    """A `ClassifierLearner` whose table is updated by rows."""

    model: TextClassifier
    options: TextClassifierOptions

    def __init__(
        self, network: TextClassifier, options: TextClassifierOptions, memory: ReplayMemory, device: torch.device
    ) -> None:
        super().__init__(network, options, memory, device)
        self._table_optimizer = RowRms(network.table, options.table_learning_rate)

    def capture(self) -> State:
        state = super().capture()
        weight, rows = self._table_optimizer.capture()
        serving, training = {"table.weight": weight}, {"optimizer/table.rows": rows}
        return State({**state.serving, **serving}, {**state.training, **training}, state.meta)

    def restore(self, state: State) -> None:
        training = dict(state.training)
        table = {name: training.pop(name) for name in ("optimizer/table.rows",) if name in training}
        super().restore(State(state.serving, training, state.meta))
        self._table_optimizer.restore(table)

    def _step(self) -> None:
        super()._step()
        self._table_optimizer.step(self._rate_factor)


def learner(
    options: TextClassifierOptions, shape: tuple[int, ...], seed: int, device: torch.device
) -> TextClassifierLearner:
    network = seeded(lambda: TextClassifier(options, ()), seed, device)
    generator = torch.Generator("cpu").manual_seed(seed)
    network.table.weight.copy_(0.1 * torch.randn(network.table.weight.shape, generator=generator))
    memory = options.memory(shape, torch.int32, device)
    return TextClassifierLearner(network, options, memory, device)


def model(options: TextClassifierOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> TextClassifier:
    return module_on(lambda: TextClassifier(options, meta["classes"]), torch.device("cpu")).eval()


BLUEPRINT = Blueprint(TextClassifierOptions, learner, model, "text")
