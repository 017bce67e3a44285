"""`text-analytic` as it was: naive Bayes over how many records have a feature. What was learned so goes on so.

A text is the set of its hashed words, pairs of words and n-grams (`hashing`). Of these there are

- the counts C_fc, how many records of class c have f, of which naive Bayes answers: f comes λ_fc = C_fc / n_c + ε times
  in a text of class c with its n_c records, as a Poisson variable (Kim et al. 2006, "Some effective techniques for
  naive Bayes text classification"; McCallum and Nigam 1998 compare other models of events), so that

      log p(x | c) = Σ_{f ∈ x} log λ_fc - Σ_f λ_fc + constant;

- the sums of a head (`analytic`), over φ = round(64 v / |v|), where v adds up the signs of all f of a text in D places.

Both answer together: softmax(τ (W φ + b) + β log p(x | c)). β is below 1 because the features of a text say the same
thing many times over.

All sums are whole numbers, so that order, merging and taking a record out again are exact to the last bit. C has the
narrowest type that holds the most records of a class, and a wider one once there are more; the others are in double
precision, which holds whole numbers to 2^53. With a forgetting factor below 1 C is in double precision, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from models.analytic import Sums
from models.analytic_learner import NOTHING_ELSE, AnalyticModel, AnalyticOptions, Beside, Look, N
from models.familiarity import NEVER, SAMPLE
from models.learner import Rows, State, structural, tensor
from models.memory import Changed
from models.network import widened
from models.texts.hashing import Found, both, bucket, edged, mixed, ngrams, trimmed, words

ORDERS = (3, 4, 5)  # of n-grams
SCALE = 64  # the length of φ, before it is rounded
SMOOTHING = 2e-4  # ε
TRUST = 0.03  # β
AT_ONCE = 1 << 16  # code points that are hashed together, and features that are weighed together, but for a longer text
ENOUGH = 8  # records of a class from which on another one of it is no stranger
SAMPLED = 100  # records of a sample of the stream from which on it tells how strange records are, not the last ones
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)  # from narrow to wide
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in (*INTEGERS, torch.float64)}
TYPES = {name: dtype for dtype, name in NAMES.items()}


class TextAnalyticOptions(AnalyticOptions):
    """`width` is D, the head's features: 4 D² bytes; naive Bayes has 1 to 4 bytes for each class and bucket."""

    width: int = structural(2048, ge=8, le=16_384)
    buckets: int = structural(1 << 18, ge=2, le=1 << 24, before=1 << 16)
    counts: Literal["weights", "records"] = structural("weights", before="records")  # what naive Bayes adds up
    long_texts: Literal["whole", "beginning"] = structural("whole", before="beginning")  # beyond `max_chars`


class TextCounts(AnalyticModel):
    """Texts are (B, L) int32."""

    counts: Tensor  # (buckets, K) of `dtype`: C_fc
    records: Tensor  # (K,) float64: n_c
    lengths: Tensor  # (K,) float64: Σ_f C_fc

    def __init__(
        self, width: int, buckets: int, classes: Sequence[str], unknown: float = 0.05, dtype: torch.dtype = torch.uint8
    ) -> None:
        super().__init__(width, classes, unknown)
        self.reads = (width, buckets)
        self.register_buffer("counts", torch.zeros(buckets, len(self.classes), dtype=dtype))
        self.register_buffer("records", torch.zeros(len(self.classes), dtype=torch.float64))
        self.register_buffer("lengths", torch.zeros(len(self.classes), dtype=torch.float64))

    def look(self, x: Tensor, whole: Mapping[int, Tensor] = NOTHING_ELSE) -> Look:
        features, rows, first = [], [], 0
        for part in parts(x):
            found = hashes(part)
            row, buckets = found.distinct(len(self.counts))
            features.append(self.features(found))
            rows.append(torch.stack([row + first, buckets], 1))
            first += len(part)
        pairs = torch.cat(rows)
        row, buckets = pairs.unbind(1)
        logs = self.bayes(len(x), row, buckets)  # (B, K)
        features_each = torch.bincount(row, minlength=len(x)).clamp_min(1)
        best = logs.amax(1) if self.classes else logs.new_zeros(len(x))
        prior = TRUST * (logs - logs.mean(1, keepdim=True))
        return Look(torch.cat(features), prior, -best / features_each, torch.zeros(len(x), 0), pairs)

    def prior(self, look: Look) -> Tensor:
        logs = self.bayes(len(look.features), *look.rows.unbind(1))
        return TRUST * (logs - logs.mean(1, keepdim=True))

    def strangeness(self, look: Look) -> Tensor:
        row, buckets = look.rows.unbind(1)
        features_each = torch.bincount(row, minlength=len(look.features)).clamp_min(1)
        return -self.bayes(len(look.features), row, buckets).amax(1) / features_each

    def features(self, found: Found) -> Tensor:
        """The hashes of B texts → φ (B, D) float32"""
        signs = torch.where(found.there, (mixed(found.hashes) >> 63) * 2 + 1, 0).float()
        v = self.weight.new_zeros(len(signs), self.weight.shape[1])
        v.scatter_add_(1, bucket(found.hashes, v.shape[1]), signs)
        length: Tensor = v.norm(dim=1, keepdim=True)
        return (v * (SCALE / length.clamp_min(1))).round()

    def bayes(self, count: int, row: Tensor, buckets: Tensor) -> Tensor:
        """Features of so many texts, as `Found.distinct` gives them → log p(x | c) (B, K), but for a constant"""
        records = self.records.clamp_min(1)
        found = self.weight.new_zeros(count, len(records))
        for some, at in zip(torch.split(row, AT_ONCE), torch.split(buckets, AT_ONCE), strict=True):
            logs = torch.log(self.counts[at].float() / records.float() + SMOOTHING)  # (N, K)
            found.index_add_(0, some, logs)
        return found - (self.lengths / records).float()

    def grow(self, classes: int) -> None:
        super().grow(classes)
        self.counts = widened(self.counts.T, classes).T.contiguous()
        self.records, self.lengths = widened(self.records, classes), widened(self.lengths, classes)


def narrowest(records: float) -> torch.dtype:
    """The type of C where no class has more records."""
    return next(dtype for dtype in INTEGERS if records <= torch.iinfo(dtype).max)


def parts(x: Tensor) -> Iterator[Tensor]:
    """The texts of x (B, L) in their order, a few at a time, each part as wide as its longest text: time and memory go
    with what is there, not with `max_chars`."""
    wide = trimmed(x)
    return map(trimmed, torch.split(wide, max(1, AT_ONCE // wide.shape[1]))) if len(x) else iter(())


def hashes(x: Tensor) -> Found:
    """x (B, L) code points → what is in each text."""
    return both(words(x), ngrams(edged(x), ORDERS))


class BesideBayes(Beside[N]):
    """Naive Bayes, and how strange the last records were, each from before it was learned.

    Of a stream that is sorted by class these are of one class. Where there is a sample of all, it takes their place.
    """

    def __init__(self, model: N, options: TextAnalyticOptions, sums: Sums) -> None:
        super().__init__(model, options, sums)
        self._scored = torch.zeros((), dtype=torch.int64)

    def recall(self, looks: Sequence[Look]) -> None:
        scores = torch.cat([self.model.strangeness(look) for look in looks])[:SAMPLE]
        if len(scores) >= SAMPLED:
            self.model.familiar.fill_(NEVER)
            self.model.familiar[: len(scores)] = scores
            self._scored.fill_(-1)  # the last ones tell it no more

    def meet(self, look: Look, y: Tensor, sign: int) -> None:
        if sign > 0 and self._scored >= 0:
            familiar = self.model.familiar
            scores = look.strange[self.sums.counts[y] >= ENOUGH].to(familiar)
            familiar[(self._scored + torch.arange(len(scores))) % SAMPLE] = scores
            self._scored += len(scores)

    def state(self) -> dict[str, Tensor]:
        return {"head/scored": self._scored}


class BesideCounts(BesideBayes[TextCounts]):
    """Naive Bayes over counts of records.

    τ is not chosen: of a class that has just come the head knows little and naive Bayes enough, so that predictions of
    a stream that is sorted by class would fare best without the head, and all classes together would not.
    """

    sharpness = (6.0,)

    def __init__(self, model: TextCounts, options: TextAnalyticOptions, device: torch.device) -> None:
        super().__init__(model, options, Sums(options.width, device))
        self._changed = Changed()

    def capture(self, state: State) -> State:
        counts = self.model.counts
        meta = {**state.meta, "counts": NAMES[counts.dtype]}
        if self.options.forgetting < 1:  # every update changes all of it
            return State(state.serving, state.training, meta)
        return State({**state.serving, "counts": Rows(counts, self._changed.take())}, state.training, meta)

    def restore(self, state: State, rest: Callable[[State], None]) -> None:
        take_type(self.model, self.options, state)
        training = state.training if "familiar" in state.serving else {**state.training, **self.state()}
        rest(State(state.serving, training, state.meta))
        self._changed = Changed()  # of another type: all of it
        if tensor(state.serving["counts"]).dtype == self.model.counts.dtype:
            self._changed.take()

    def count(self, look: Look, y: Tensor, sign: int) -> None:
        model, kept = self.model, self.options.forgetting ** len(y)
        row, buckets = look.rows.unbind(1)
        y = y.to(row.device)
        self._widen(self.sums.counts.max().item())
        if kept < 1:
            for each in (model.counts, model.records, model.lengths):
                each *= kept
        one = torch.tensor(sign, dtype=torch.int64, device=row.device)
        model.counts.index_put_((buckets, y[row]), one.to(model.counts), accumulate=True)  # in bytes -1 is 255
        model.lengths.index_put_((y[row],), one.double(), accumulate=True)
        model.records.index_put_((y,), one.double(), accumulate=True)
        self._changed.add(*buckets.tolist())

    def join(self, other: Self, numbers: Tensor) -> None:
        model, theirs, numbers = self.model, other.model, numbers.to(self.model.counts.device)
        self._widen(self.sums.counts.max().item())
        model.counts[:, numbers] += theirs.counts.to(model.counts)
        model.records[numbers] += theirs.records.to(model.records)
        model.lengths[numbers] += theirs.lengths.to(model.lengths)
        self._changed = Changed()

    def _widen(self, records: float) -> None:
        if widen(self.model, records):
            self._changed = Changed()  # another type: all of it

    def grow(self, classes: int) -> None:
        self._changed = Changed()  # another shape: all of it


class Counting(Protocol):
    """A model with C in a type that may change."""

    counts: Tensor


def widen(model: Counting, most: float) -> bool:
    """Gives C a type that holds numbers up to this one → whether it is another one."""
    counts = model.counts
    is_wider = not counts.is_floating_point() and most > torch.iinfo(counts.dtype).max
    if is_wider:
        model.counts = counts.to(narrowest(most))
    return is_wider


def take_type(model: Counting, options: AnalyticOptions, state: State) -> None:
    """Gives C the type that it has in a captured state. Fractions that are left of a former forgetting factor stay."""
    model.counts = model.counts.to(torch.float64 if options.forgetting < 1 else counts_type(state.meta))


def counts_type(meta: Mapping[str, Any]) -> torch.dtype:
    """The type of C in a captured state. Former versions did not name it: single precision, now double."""
    return TYPES[meta.get("counts", "float64")]
