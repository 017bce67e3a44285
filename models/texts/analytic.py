"""Text classifier that cannot forget: naive Bayes and a head in closed form, from sums alone. No stored texts.

A text is the hashes of its words, each twice, and of its n-grams (`hashing`). Feature f comes t times, and weighs

    u_f = round(256 v_f / |v|),   v_f = round(16 log(1 + t))

so that a long text counts as much as a short one (Rennie et al. 2003, "Tackling the poor assumptions of naive Bayes
text classifiers"). Of these there are

- the sums C_fc of all u_f of class c and N_c = Σ_f C_fc, of which naive Bayes answers, by what is in a class and
  by what is in the others: with F buckets, C_f = Σ_c C_fc, N = Σ_c N_c, U the sum of the least u of each text, and
  idf_f = log(1 + U / (C_f + α)),

      s_c(x) = Σ_f q_f ((1 - γ) log((C_fc + α) / (N_c + α F)) - γ log((C_f - C_fc + α) / (N - N_c + α F))),

  q = u idf / |u idf|;

- the sums of a head (`analytic`), over φ = round(64 w / |w|), where w has ±u_f added for each f in D places.

Both answer together: softmax(τ (W φ + b) min(1, 100 / features of the text) + s(x)). In D places the many features of a
long text hide each other, so that the head has less to say about it.

All sums are whole numbers, so that order, merging and taking a record out again are exact to the last bit. C has the
narrowest type that holds its largest number; the others are in double precision, which holds whole numbers to 2^53.
A version holds the sums of some time before and what came since (`text_recent`). With a forgetting factor below 1 all
sums are in double precision, and stored whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from models.analytic import Sums
from models.analytic_learner import NOTHING_ELSE, PREFIX, AnalyticLearner, AnalyticModel, Look
from models.learner import Blueprint, Rows, State, copy_into, module_on, tensor
from models.network import widened
from models.texts.contributions import shared_out, spans
from models.texts.counts import (
    AT_ONCE,
    INTEGERS,
    NAMES,
    ORDERS,
    SCALE,
    BesideBayes,
    BesideCounts,
    TextAnalyticOptions as TextAnalyticOptions,
    TextCounts,
    counts_type,
    parts,
    take_type,
    widen,
)
from models.texts.hashing import (
    BASE,
    SPACE,
    Found,
    both,
    bucket,
    edged,
    folded,
    mixed,
    ngrams,
    ngrams_in_pieces,
    single,
    single_in_pieces,
)
from models.texts.recent import RecentTexts, logged, of_state

UNIT = 256  # the length of u, before it is rounded; and no weight is above 255
STEPS = 16  # of 1, to which v is rounded
SMOOTHING = 3.0  # α
AGAINST = 0.3  # γ
SHARPNESS = 8.0  # τ
LONG = 100  # features: of a text that has more the head says less
PIECE = 256  # texts of the log that are added together


class TextAnalytic(AnalyticModel):
    """Texts are (B, L) int32."""

    counts: Tensor  # (F, K) of `dtype`: C_fc
    lengths: Tensor  # (K,) float64: N_c
    units: Tensor  # () float64: U

    def __init__(
        self, width: int, buckets: int, classes: Sequence[str], unknown: float = 0.05, dtype: torch.dtype = torch.uint8
    ) -> None:
        super().__init__(width, classes, unknown)
        self.reads = (width, buckets)
        self.register_buffer("counts", torch.zeros(buckets, len(self.classes), dtype=dtype))
        self.register_buffer("lengths", torch.zeros(len(self.classes), dtype=torch.float64))
        self.register_buffer("units", torch.zeros((), dtype=torch.float64))

    def look(self, x: Tensor, whole: Mapping[int, Tensor] = NOTHING_ELSE) -> Look:
        """x (B, L), and of its rows whose texts are longer all of these."""
        found, first = [], 0
        for part in all_parts(x, whole):
            is_long, buckets = part.shape[1] > AT_ONCE, len(self.counts)
            rows = in_pieces(part[0], buckets) if is_long else weighed(hashes(part), buckets)
            found.append(rows + rows.new_tensor([first, 0, 0]))
            first += len(part)
        rows = torch.cat(found)
        logs, strange = self.bayes(len(x), rows)
        prior = logs - logs.mean(1, keepdim=True)
        features = placed(len(x), rows, self.weight.shape[1])
        return Look(features, prior, strange, torch.zeros(len(x), 0), rows, trust(rows, features))

    def prior(self, look: Look) -> Tensor:
        logs, _ = self.bayes(len(look.features), look.rows)
        return logs - logs.mean(1, keepdim=True)

    def strangeness(self, look: Look) -> Tensor:
        return self.bayes(len(look.features), look.rows)[1]

    def bayes(self, count: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features of so many texts, as `weighed` gives them → s (B, K); and how rare what is in each text is (B,).

        That is told by all classes together: what none of them has speaks neither for one nor against it.
        """
        classes = self.counts.shape[1]
        found = self.weight.new_zeros(count, classes + 3)  # and how rare; of q before it has length 1 squares and sum
        for some in torch.split(rows, AT_ONCE):
            text, at, u = some.unbind(1)
            speaks, idf, rare = self.said(at)
            q = u[:, None] * idf
            found.index_add_(0, text, torch.cat([q * speaks, q * rare, q * q, q], 1))
        logs, rare, squares, total = torch.split(found, [classes, 1, 1, 1], 1)
        return logs / squares.sqrt().clamp_min(1e-9), (rare / total.clamp_min(1e-9)).squeeze(1)

    def said(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N,) → the brackets of s (N, K), and idf and how rare each is, (N, 1) each"""
        smoothing = SMOOTHING * len(self.counts)
        lengths = (self.lengths + smoothing).log().float()
        others = (self.lengths.sum() - self.lengths + smoothing).log().float()
        every = (self.lengths.sum() + smoothing).log().float()
        within = self.counts[at].float()  # (N, K)
        total = within.sum(1, keepdim=True)
        logs = (within + SMOOTHING).log() - lengths
        against = (total - within + SMOOTHING).log() - others
        idf = torch.log1p(self.units.float() / (total + SMOOTHING))
        return (1 - AGAINST) * logs - AGAINST * against, idf, every - (total + SMOOTHING).log()

    @torch.no_grad()
    def contributions(self, x: Tensor) -> Tensor:
        """x (L,) a text → (n, K) what each of its n code points adds to τ (W φ + b) min(1, …) + s, but for b: less the
        mean of all classes, and as the lengths |w| and |u idf| and the min are.

        A feature adds the same wherever it is in the text, and there by each of its code points.
        """
        look = self.look(x[None])
        _, at, u = look.rows.unbind(1)
        speaks, idf, _ = self.said(at)
        q = u[:, None] * idf
        place, sign = hashed(at, self.weight.shape[1])
        w = torch.zeros(self.weight.shape[1], dtype=torch.float64).index_add_(0, place, (sign * u).double())
        share = look.features[0, place] * torch.where(w[place] == 0, 0, sign * u / w[place]).float()
        head = self.sharpness * share[:, None] * self.weight[:, place].T
        each = q / q.norm().clamp_min(1e-9) * speaks + (head if look.trust is None else head * look.trust)
        points = folded(x[x != 0])
        buckets, _ = hashes(points[None]).rows(len(self.counts))
        first, behind = spans(points.long(), ORDERS)
        centred = each - each.mean(1, keepdim=True)
        return shared_out(centred, torch.searchsorted(at.contiguous(), buckets), first, behind, len(points))

    def grow(self, classes: int) -> None:
        super().grow(classes)
        self.counts = F.pad(self.counts, (0, classes))
        self.lengths = widened(self.lengths, classes)

    def completed(self, serving: Mapping[str, Tensor | Rows]) -> dict[str, Tensor | Rows]:
        """Adds the log of the last texts to the stored sums C: the present sums."""
        found = {name: value for name, value in serving.items() if name not in logged(serving)}
        if "counts" not in serving:
            return found
        counts, before = torch.zeros_like(self.counts), tensor(serving["counts"])
        if before.numel():  # there is none of before the first text
            fitting = counts[:, : before.shape[-1]]
            copy_into({"counts": fitting}, {"counts": before})
        count(counts, *of_state(serving))
        return {**found, "counts": counts}


def hashes(x: Tensor) -> Found:
    """x (B, L) code points → what is in each text."""
    x = folded(x)
    word = single(x)
    return both(word, word, ngrams(edged(x), ORDERS))


def all_parts(x: Tensor, whole: Mapping[int, Tensor]) -> Iterator[Tensor]:
    """The `parts` of x (B, L). A text that `whole` has is a part of its own, all of it."""
    start = 0
    for row in sorted(whole):
        yield from parts(x[start:row])
        yield whole[row][None].to(x.device)
        start = row + 1
    yield from parts(x[start:])


def weighed(found: Found, buckets: int) -> Tensor:
    """The hashes of B texts → (N, 3) int64: a text, one of its features and its weight u, text by text."""
    text = torch.arange(len(found.hashes), device=found.hashes.device)[:, None]
    each, times = torch.unique((text * buckets + bucket(found.hashes, buckets))[found.there], return_counts=True)
    return weights(len(found.hashes), buckets, each, times)


def in_pieces(x: Tensor, buckets: int, size: int = AT_ONCE) -> Tensor:
    """As `weighed(hashes(x))` of one text (n,) without padding, of which so many code points are looked at at once."""
    x = torch.cat([folded(some) for some in torch.split(x, size)])
    each, times = x.new_zeros(0, dtype=torch.int64), x.new_zeros(0, dtype=torch.int64)
    words = chain(single_in_pieces(x, size), single_in_pieces(x, size))
    for some in chain(words, ngrams_in_pieces(F.pad(x, (1, 1), value=SPACE), ORDERS, size)):
        more, counts = torch.unique(bucket(some, buckets), return_counts=True)
        each, at = torch.unique(torch.cat([each, more]), return_inverse=True)
        times = torch.zeros_like(each).index_add_(0, at, torch.cat([times, counts]))
    return weights(1, buckets, each, times)


def weights(count: int, buckets: int, each: Tensor, times: Tensor) -> Tensor:
    """As `weighed`, by how often (N,) each feature comes; `each` (N,) is its text · buckets + its bucket."""
    row, v = each // buckets, (STEPS * times.double().log1p()).round()
    squares = v.new_zeros(count).index_add_(0, row, v * v)
    u = (UNIT * v / squares.sqrt()[row]).round().clamp_max(UNIT - 1)
    return torch.stack([row, each % buckets, u.long()], 1)


def placed(count: int, rows: Tensor, width: int) -> Tensor:
    """Features of so many texts, as `weighed` gives them → φ (B, D) float32"""
    text, at, u = rows.unbind(1)
    place, sign = hashed(at, width)
    w = torch.zeros(count * width, dtype=torch.float64, device=rows.device)
    w.index_add_(0, text * width + place, (u * sign).double())
    w = w.view(count, width)
    length = w.square().sum(1, keepdim=True).sqrt().clamp_min(1)
    return (w * (SCALE / length)).round().float()


def hashed(at: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Features (N,) → the place of each in the head's D, and its sign there"""
    spread = mixed(at * BASE + 1)
    return bucket(spread, width), (mixed(spread) >> 63) * 2 + 1


def trust(rows: Tensor, features: Tensor) -> Tensor:
    """Features of texts, as `weighed` gives them, and φ (B, D) → (B, 1): how much the head has to say"""
    counts = torch.bincount(rows[:, 0], minlength=len(features))[:, None]
    return (LONG / counts.clamp_min(LONG)).to(features)


def count(counts: Tensor, rows: Tensor, y: Tensor, sign: int = 1) -> None:
    """Adds weights of features (N, 3) of texts of the classes (B,) to C (F, K), which has to hold what comes out."""
    if len(rows) and (int(rows[:, 1].max()) >= len(counts) or int(y.max()) >= counts.shape[1] or int(y.min()) < 0):
        raise ValueError("the log of the last texts names buckets or classes that there are not.")
    text, at, u = rows.to(counts.device).unbind(1)
    counts.index_put_((at, y.to(counts.device)[text]), (sign * u).to(counts), accumulate=True)  # in bytes -1 is 255


class BesideWeights(BesideBayes[TextAnalytic]):
    """Naive Bayes over weights, which a version holds as they were some time before, and the log of the texts that came
    since. Weights of the head are in half precision: a version holds K D of them. τ is not chosen (`BesideCounts`)."""

    sharpness = (SHARPNESS,)

    def __init__(self, model: TextAnalytic, options: TextAnalyticOptions, device: torch.device) -> None:
        super().__init__(model, options, Sums(options.width, device, units=1, half=True))
        self._recent = RecentTexts()
        self._base = torch.zeros(0, 0, dtype=model.counts.dtype)  # C of before the texts in the log
        self._is_stored = False  # whether a version has what was before them
        self._fades = options.forgetting < 1
        if not self._fades:
            self.sums.keep()

    def capture(self, state: State) -> State:
        model, weight = self.model, PREFIX + "weight"
        serving = {**state.serving, "weight": model.weight.half(), **self._recent.capture()}
        training = {**state.training, weight: tensor(state.training[weight]).half()}
        meta = {**state.meta, "counts": NAMES[model.counts.dtype]}
        if self.sums.base is None:  # every update changes all of them
            return State(serving, training, meta)
        changed = torch.empty(0, dtype=torch.int64) if self._is_stored else None
        self._is_stored = True
        return State({**serving, "counts": Rows(self._base, changed)}, training, meta)

    def restore(self, state: State, rest: Callable[[State], None]) -> None:
        take_type(self.model, self.options, state)
        rest(state)
        self._base, self._is_stored = tensor(state.serving["counts"]).clone(), True
        self._recent.restore(logged(state.serving))
        rows, y = self._recent.read()
        for first in range(0, len(y), PIECE):
            some = rows[(rows[:, 0] >= first) & (rows[:, 0] < first + PIECE)]
            of_some = y[first : first + PIECE]
            self.sums.add(placed(len(of_some), some - some.new_tensor([first, 0, 0]), self.sums.width), of_some)

    def add(self, look: Look, y: Tensor, sign: int, rest: Callable[[], None]) -> None:
        is_logged = sign > 0 and not self._fades and self._recent.could_hold(look.rows, y)
        if is_logged and not self._recent.has_room(look.rows, y):
            self._keep()
        rest()
        if is_logged:
            self._recent.add(look.rows, y)
        elif self._fades:
            self._recent.clear()
            self.sums.base = None
        else:
            self._keep()

    def count(self, look: Look, y: Tensor, sign: int) -> None:
        model, kept = self.model, self.options.forgetting ** len(y)
        rows = look.rows
        text, at, u = rows.unbind(1)
        if kept < 1:
            for each in (model.counts, model.lengths, model.units):
                each *= kept
        of_class = y.to(rows.device)[text]
        cells, cell = torch.unique(at * model.counts.shape[1] + of_class, return_inverse=True)
        more = torch.zeros(len(cells), dtype=torch.int64, device=rows.device).index_add_(0, cell, sign * u)
        flat = model.counts.view(-1)
        sums = flat[cells] + more
        widen(model, sums.max().item() if len(sums) else 0)
        model.counts.view(-1)[cells] = sums.to(model.counts)
        model.lengths.index_add_(0, of_class, (sign * u).double())
        least = u.new_full((len(y),), UNIT).scatter_reduce_(0, text, u, "amin")
        model.units += sign * least.sum()

    def join(self, other: Self, numbers: Tensor) -> None:
        model, theirs, numbers = self.model, other.model, numbers.to(self.model.counts.device)
        sums = model.counts[:, numbers].to(torch.float64) + theirs.counts.to(model.counts.device)
        widen(model, sums.max().item() if sums.numel() else 0)
        model.counts[:, numbers] = sums.to(model.counts)
        model.lengths[numbers] += theirs.lengths.to(model.lengths)
        model.units += theirs.units.to(model.units)
        self._keep()

    def grow(self, classes: int) -> None:
        """The stored C gets the new classes, too, so that a version has one shape in memory and in the store."""
        if self.sums.base is not None:
            before = self._base if self._base.numel() else self._base.new_zeros(len(self.model.counts), 0)
            self._base, self._is_stored = F.pad(before, (0, classes)), False

    def _keep(self) -> None:
        """Makes the present sums the stored ones, and empties the log."""
        self._recent.clear()
        self.sums.keep()
        self._base, self._is_stored = self.model.counts.clone(), False


def learner(
    options: TextAnalyticOptions, shape: tuple[int, ...], seed: int, device: torch.device
) -> AnalyticLearner[Any]:
    dtype = torch.float64 if options.forgetting < 1 else INTEGERS[0]
    network = module_on(lambda: untrained(options, (), dtype), device)
    if isinstance(network, TextCounts):
        return AnalyticLearner(BesideCounts(network, options, device), device)
    return AnalyticLearner(BesideWeights(network, options, device), device)


def model(options: TextAnalyticOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> TextAnalytic | TextCounts:
    dtype = counts_type(meta)
    return module_on(lambda: untrained(options, meta["classes"], dtype), torch.device("cpu")).eval()


def untrained(options: TextAnalyticOptions, classes: Sequence[str], dtype: torch.dtype) -> TextAnalytic | TextCounts:
    family = TextAnalytic if options.counts == "weights" else TextCounts
    return family(options.width, options.buckets, classes, options.unknown, dtype)


def reads_whole(options: TextAnalyticOptions) -> bool:
    return options.counts == "weights" and options.long_texts == "whole"


BLUEPRINT = Blueprint(TextAnalyticOptions, learner, model, "text", reads_whole=reads_whole)
