"""Text classifier: hashed n-grams and words → mean embedding → LayerNorm → head.

No vocabulary, no tokeniser, no language: every n-gram of 1 to 4 Unicode code points, every word and pair of words is
hashed into one of `buckets` rows of a table (the hashing trick, Weinberger et al. 2009; subword embeddings, Bojanowski
et al. 2017). Texts are read as they are: case and width carry meaning in some scripts and are not folded.

The head is on the normalised mean itself (fastText, Joulin et al. 2017, but for the norm). A layer in between learns
nothing more, and forgets: figures in docs/learners/text-classifier.md.

An update touches only the rows of the n-grams that it saw, so a snapshot moves those alone; see `RowRms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.classifier import ClassifierLearner, ClassifierNetwork, ClassifierOptions, OwnUpdate, Shown
from models.learner import Blueprint, Rows, State, copy_into, structural
from models.memory import Changed
from models.moving_average import PREFIX
from models.network import root, seeded, served
from models.texts.hashing import Found, both, ngrams, trimmed, words

ROWS, OWN = "optimizer/table.rows", PREFIX + "table.weight"  # of the table, in the state


class TextClassifierOptions(ClassifierOptions):
    """`orders` is the longest n-gram; `dim` the width of the table."""

    learning_rate: float = Field(3e-3, gt=0)  # of the norm and the head
    table_learning_rate: float = Field(1e-2, gt=0)
    orders: int = structural(4, ge=1, le=8)
    words: bool = structural(True)  # words and pairs of words as well
    dropout: float = Field(0.0, ge=0, lt=1)  # of a replayed text's n-grams and words, the share that is left out
    buckets: int = structural(1 << 16, ge=2)
    dim: int = structural(64, ge=1)


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


class RowRms(OwnUpdate):
    """Updates the touched rows of a `HashTable`: Adam without momentum, with one second moment a row.

        v_r ← β v_r + (1 - β) mean(g_r²),   w_r ← w_r - η g_r / (√(v_r / (1 - β^{t_r})) + ε)

    t_r counts the updates of row r alone, so that the first step of a rare n-gram is as long as that of a common one.
    A row's state is two numbers: a commit moves hardly more than the row itself.

    What is served averages over the updates of a row alone, too, with t_r - 1 in place of t (`moving_average`): the
    average over all updates would move every row that was ever touched, in each update and in each commit.
    """

    BETA, EPSILON = 0.999, 1e-8

    def __init__(
        self, table: HashTable, learning_rate: float, served: HashTable | None = None, average: float = 0.0
    ) -> None:
        self._table = table
        self._learning_rate = learning_rate
        self._served = table if served is None else served  # the table itself where nothing is averaged
        self._average = average
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
        scale = root(moment / (1 - self.BETA**count)).add_(self.EPSILON)
        learned = values - rate_factor * self._learning_rate * values.grad / scale[:, None]
        self._table.weight[rows] = learned
        if self._served is not self._table:
            decay = (count / (9 + count)).clamp_max(self._average)  # (U,)
            before = self._served.weight.index_select(0, rows)  # (U, D)
            self._served.weight.index_copy_(0, rows, before.lerp_(learned, 1 - decay[:, None]))
        self._state[rows] = torch.stack([moment, count], 1)
        self._changed.add(*rows.tolist())
        self._table.touched = self._table.values = None

    def capture(self, state: State) -> State:
        """With the table that is served, and optimizer/table.rows (buckets, 2) and learning/table.weight where it
        differs, with the rows that changed."""
        changed = self._changed.take()
        training = {name: Rows(tensor, changed) for name, tensor in self._training().items()}
        table = {"table.weight": Rows(self._served.weight.detach(), changed)}
        return State({**state.serving, **table}, {**state.training, **training}, state.meta)

    def restore(self, state: State, rest: Callable[[State], None]) -> None:
        own, others = {}, dict(state.training)
        for name in (ROWS, OWN):
            if name in others:
                own[name] = others.pop(name)
        rest(State(state.serving, others, state.meta))
        copy_into(self._training(), own)  # after what is served, which was copied to what learns
        self._changed.take()

    def _training(self) -> dict[str, Tensor]:
        averaged = self._served is not self._table
        return {ROWS: self._state} | ({OWN: self._table.weight.detach()} if averaged else {})


class TextClassifier(ClassifierNetwork):
    """The network. Texts are (B, L) int32."""

    def __init__(self, options: TextClassifierOptions, _: tuple[int, ...], classes: Sequence[str]) -> None:
        super().__init__(options.dim, classes)
        self.orders = range(1, options.orders + 1)
        self.words = options.words
        self.table = HashTable(options.buckets, options.dim)
        self.norm = nn.LayerNorm(options.dim)

    def found(self, x: Tensor) -> Found:
        """x (B, L) code points → what is in each text."""
        x = trimmed(x)
        return both(ngrams(x, self.orders), words(x)) if self.words else ngrams(x, self.orders)

    def features(self, x: Tensor | Found) -> Tensor:
        found = self.found(x) if isinstance(x, Tensor) else x
        mean = self.table(*found.rows(len(self.table.weight)))  # (B, dim)
        normalised: Tensor = self.norm(mean)
        return normalised


class Thinned(Shown):
    """What is in texts. Of replayed ones a share is left out; incoming ones stay whole: the pass predicts them."""

    def __init__(self, network: TextClassifier, dropout: float) -> None:
        self._network, self._dropout = network, dropout

    def __call__(self, x: Tensor, incoming: int, rng: torch.Generator) -> Found:
        hashes, there = self._network.found(x)
        kept = torch.rand(there.shape, generator=rng).to(there.device) >= self._dropout
        kept[:incoming] = True
        return Found(hashes, there & kept)


def learner(
    options: TextClassifierOptions, shape: tuple[int, ...], seed: int, device: torch.device
) -> ClassifierLearner[TextClassifier]:
    network = seeded(lambda: TextClassifier(options, shape, ()), seed, device)
    generator = torch.Generator("cpu").manual_seed(seed)
    network.table.weight.copy_(0.1 * torch.randn(network.table.weight.shape, generator=generator))
    memory = options.memory(shape, torch.int32, device)
    return ClassifierLearner(
        network,
        options,
        memory,
        device,
        shown=Thinned(network, options.dropout) if options.dropout else None,
        part=lambda served: RowRms(network.table, options.table_learning_rate, served.table, options.average),
    )


model = served(TextClassifier)
BLUEPRINT = Blueprint(TextClassifierOptions, learner, model, "text")
