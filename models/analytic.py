"""A head in closed form: sums over everything learned, so that nothing is forgotten and order does not matter.

Of features φ (D) of records with labels, the sums

    G = Σ φ φᵀ,   S_c = Σ_{y=c} φ,   n_c

are all that ridge regression to one-hot targets, linear discriminant analysis and the nearest class mean need. With the
mean m = Σ_c S_c / n, the scatter G̃ = G - n m mᵀ and the classes' means μ_c = S_c / n_c:

    ridge:  w_c = (G̃ + λ g/n I)⁻¹ n_c (μ_c - m),   score_c = w_cᵀ(φ - m) + n_c / n
    lda:    w_c = (Σ + λ g/n I)⁻¹ μ_c,              score_c = w_cᵀφ - ½ w_cᵀμ_c
    means:  w_c = μ_c,                              score_c = w_cᵀφ - ½ w_cᵀμ_c

where Σ = (G - Σ_c n_c μ_c μ_cᵀ) / n is the scatter within classes, g the mean of the diagonal of what is inverted, and
every class as likely as the next for the last two. So λ counts records: as if λ more had come that say nothing about
anything (a prior whose weight does not grow with the stream: Bishop 2006, "Pattern recognition and machine learning",
eq. 3.54). Which λ is best depends on how noisy labels are; where none is given, it is the one of `RIDGES` for which the
sums promise the least error on other records (generalised cross-validation: Golub, Heath and Wahba 1979).

Ridge from such sums is analytic class-incremental learning (Zhuang et al. 2022, "ACIL: analytic class-incremental
learning with absolute memorization"), and LDA from them is streaming LDA (Hayes and Kanan 2020, "Lifelong machine
learning with deep streaming LDA").

Sums add up: two heads merge by adding theirs, and a record is taken out by subtracting its own. With a forgetting
factor γ < 1 what was there before a record counts γ times as much: then order matters, as it should under drift.

G is kept whole for whoever solves it, and stored as the half that says it all (`packed`). All sums are in double
precision: to a single-precision number that has grown to 2²⁴ nothing can be added that is below 1. Of features that are
multiples of 1/16 all sums are exact, so that neither order nor batches nor processor decide a bit. So their products
are added to G for `TOGETHER` records at once, or when somebody asks for it: each time all D² numbers pass through the
processor, whether for one record or for many.

The sums of many features are large, and one record changes all of them. So a version may hold the sums of some time
before (`Sums.keep`), and a log of what was added to them or taken out of them since then (`LoggedSums`,
`models.texts.recent`). Of whole numbers both together are the sums of now, to the last bit. Where the log has no room
for more, the sums of then become the ones to start from, and it begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal

import torch
from torch import Tensor

from models.familiarity import signs
from models.learner import Rows, copy_into, tensor
from models.memory import Changed
from models.network import widened

HeadName = Literal["ridge", "lda", "means"]
RIDGES = (20.0, 200.0)  # λ that are tried where none is given
PROBES = 8  # for the trace of an inverse (Hutchinson 1990)
GRAMS = (torch.int16, torch.int32)  # of whole numbers, from narrow to wide, in which G is stored if it fits
PER_CLASS = ("sums/by_class", "sums/counts")
NO_ROWS = torch.empty(0, dtype=torch.int64)
LOG = "sums/recent/"
UNITS = 16  # of 1: features in the log are multiples of 1 / UNITS
PIECE = 256  # records of the log that are added together, and the least that it has room for
TOGETHER = 256  # records whose products are added to G at once
BLOCK = 500  # of G's rows and columns
WHOLE = 2.0**23  # below twice as much single precision has every whole number


@dataclass(frozen=True, slots=True)
class Solved:
    """A linear head: scores are φ Wᵀ + b."""

    weight: Tensor  # (K, D) float32
    bias: Tensor  # (K,) float32
    ridge: float = 0.0  # λ, where it was chosen


class Sums:
    """The sums over records of up to now, of features of width D.

    G, to which D² numbers are added for every record, is on the device, if that has double precision (MPS has not).
    S, n and solving are on the CPU.

    Args:
        units: products of features are whole multiples of 1 / units²: so G is stored in the narrowest type of `GRAMS`
            that holds it; None: in float64.
        half: whether weights of a head are rounded to half precision.
    """

    def __init__(self, width: int, device: torch.device, units: int | None = None, *, half: bool = False) -> None:
        self.width, self.units, self.half = width, units, half
        gram_device = torch.device("cpu") if device.type == "mps" else device
        self._gram = torch.zeros(width, width, dtype=torch.float64, device=gram_device)
        self._waiting: list[tuple[Tensor, int]] = []  # features (B, D) that G lacks, and their sign
        self.by_class = torch.zeros(0, width, dtype=torch.float64)  # S
        self.counts = torch.zeros(0, dtype=torch.float64)  # n
        self.base: dict[str, Tensor] | None = None  # those of before, as they are stored; None: those of now are
        self._stored: set[str] = set()  # of these what a version has

    @property
    def gram(self) -> Tensor:
        """G (D, D) float64, of all records"""
        self._settle()
        return self._gram

    def grow(self, classes: int) -> None:
        """Adds so many classes, with sums of zero."""
        self.by_class = widened(self.by_class, classes)
        self.counts = widened(self.counts, classes)
        if self.base is not None:
            self.base |= {name: widened(self.base[name], classes) for name in PER_CLASS}
            self._stored -= {*PER_CLASS}

    def keep(self) -> None:
        """Makes the present sums the stored ones: what is added from now on is for a log to store."""
        self.base, self._stored = self._now(), set()

    def add(self, features: Tensor, y: Tensor, *, sign: int = 1, forgetting: float = 1.0) -> None:
        """Adds records, or takes them out with the sign -1.

        Args:
            features: (B, D) float32
            y: (B,) class numbers, on the CPU
            forgetting: γ; the records of a call are as old as each other.
        """
        kept = forgetting ** len(y)
        if self.units and kept == 1:
            self._waiting.append((features.to(self._gram.device), sign))
        else:
            wide = features.to(self._gram)
            self.gram.addmm_(wide.T, wide, beta=kept, alpha=sign)
        if sum(len(some) for some, _ in self._waiting) >= TOGETHER:
            self._settle()
        self.by_class *= kept
        self.counts *= kept
        self.by_class.index_add_(0, y, features.cpu().double(), alpha=sign)
        self.counts.index_add_(0, y, torch.ones(len(y), dtype=torch.float64), alpha=sign)

    def merge(self, other: Sums, numbers: Tensor) -> None:
        """Adds the sums of others; numbers (K',) say which of these classes each of theirs is."""
        self.gram.add_(other.gram.to(self._gram.device))
        self.by_class[numbers] += other.by_class
        self.counts[numbers] += other.counts

    def solve(self, head: HeadName, ridge: float | None) -> Solved:
        """The head of these sums, with λ = `ridge` in records, or the best of `RIDGES`, which is `RIDGES[0]` where the
        head is no ridge; a class without a record has no weights."""
        return self.copy().solve_once(head, ridge)

    def solve_once(self, head: HeadName, ridge: float | None) -> Solved:
        """As `solve`; G is not what it was afterwards."""
        solved, most = self._solved(head, ridge), torch.finfo(torch.half).max
        return replace(solved, weight=solved.weight.clamp(-most, most).half().float()) if self.half else solved

    def _solved(self, head: HeadName, ridge: float | None) -> Solved:
        n = self.counts.sum()
        means = self.by_class / self.counts.clamp_min(1)[:, None]  # (K, D)
        if head == "means" or n < 1:
            return Solved(means.float(), -0.5 * means.square().sum(1).float())
        mean = self.by_class.sum(0) / n
        gram = self.gram.cpu()
        if head == "ridge":
            gram.addr_(mean, mean, alpha=-n.item())
            targets = self.by_class - self.counts[:, None] * mean
            spread = (self.counts * (1 - self.counts / n)).sum()
            tried = (ridge,) if ridge else RIDGES
            found = [
                (*_ridge(gram if each == tried[-1] else gram.clone(), targets, each / n.item(), n, spread), each)
                for each in tried
            ]
            _, weight, chosen = min(found, key=itemgetter(0))
            return Solved(weight.float(), (self.counts / n - weight @ mean).float(), chosen)
        factor, _ = _factor(gram.addmm_(means.T, self.by_class, alpha=-1).div_(n), (ridge or RIDGES[0]) / n.item())
        weight = torch.cholesky_solve(means.T, factor).T
        return Solved(weight.float(), -0.5 * (weight * means).sum(1).float())

    def copy(self) -> Sums:
        """A copy of the present sums."""
        made = Sums(0, self._gram.device, self.units, half=self.half)
        made.width, made._gram = self.width, self.gram.clone()
        made.by_class, made.counts = self.by_class.clone(), self.counts.clone()
        return made

    def capture(self) -> dict[str, Tensor | Rows]:
        """sums/gram (⌈D/2⌉, D + 1) packed, sums/by_class (K, D) and sums/counts (K,), float64 but for `units`."""
        if self.base is None:
            return {**self._now()}
        stored, self._stored = self._stored, {*self.base}
        return {name: Rows(each, NO_ROWS if name in stored else None) for name, each in self.base.items()}

    def restore(self, state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        base = {name: tensor(value).clone() for name, value in state.items()}
        read = dict(base)
        for name in PER_CLASS:
            if name in base and base[name].dim():
                read[name] = widened(base[name], max(0, len(self.counts) - len(base[name])))
        if self.units and "sums/gram" in base and base["sums/gram"].dtype in GRAMS:
            read["sums/gram"] = base["sums/gram"].double() / self.units**2
        gram = self._gram.new_zeros((self.width + 1) // 2, self.width + 1)
        copy_into({"sums/gram": gram, "sums/by_class": self.by_class, "sums/counts": self.counts}, read)
        self._gram, self._waiting = unpacked(gram), []
        if self.units is not None:
            self.base = {**base, **{name: read[name] for name in PER_CLASS if name in read}}
            self._stored = {name for name, each in base.items() if len(each) == len(self.base[name])}

    def _settle(self) -> None:
        """Adds the products that wait to G."""
        if self._waiting:
            rows = torch.cat([features for features, _ in self._waiting])
            signed = torch.cat([features * sign for features, sign in self._waiting])
            add_products(self._gram, signed, rows, self.units or 1)
            self._waiting = []

    def _now(self) -> dict[str, Tensor]:
        state = {
            "sums/gram": packed(self.gram),
            "sums/by_class": self.by_class.clone(),
            "sums/counts": self.counts.clone(),
        }
        whole = state["sums/gram"] * (self.units or 1) ** 2
        fitting = [dtype for dtype in GRAMS if self.units and torch.equal(whole.to(dtype).to(whole), whole)]
        return {**state, "sums/gram": whole.to(fitting[0])} if fitting else state


def _ridge(gram: Tensor, targets: Tensor, share: float, n: Tensor, spread: Tensor) -> tuple[float, Tensor]:
    """Weights (K, D), and how well they would fare on other records: their mean squared error by generalised cross-
    validation, r / n / (1 - f / n)², of r the squared residuals and f the degrees of freedom.

    Args:
        gram: G̃ (D, D), which is changed
        targets: (K, D) n_c (μ_c - m)
        share: λ / n
        n: records
        spread: the squared targets, less their means
    """
    factor, added = _factor(gram, share)
    probes = signs(PROBES, len(gram)).to(gram).T  # (D, PROBES)
    solved = torch.cholesky_solve(torch.cat([targets.T, probes], 1), factor)
    weight = solved[:, : len(targets)].T
    freedom = len(gram) - added * (probes * solved[:, len(targets) :]).sum() / PROBES
    residual = spread - (weight * targets).sum() - added * weight.square().sum()
    return (residual / (n - freedom).clamp_min(1e-9).square()).item(), weight


def _factor(matrix: Tensor, share: float) -> tuple[Tensor, float]:
    """matrix (D, D) float64, with a share of its mean diagonal more on the diagonal → its lower Cholesky factor, and
    what was added.

    Where that is too little for what rounding has left of the sums, ten times as much, and so on. Changes the matrix.
    """
    diagonal = matrix.diagonal()
    added, wanted = 0.0, share * diagonal.mean().clamp_min(1e-12).item()
    while True:
        diagonal += wanted - added
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return factor, wanted
        added, wanted = wanted, 10 * wanted


def add_products(matrix: Tensor, left: Tensor, right: Tensor, units: int) -> None:
    """Adds leftᵀ right, which is symmetric, to a matrix (D, D) float64; left and right are (B, D) float32.

    Each block above the diagonal is computed once. Of multiples of 1 / units a product is exact in single precision,
    too, as long as it has no more digits than that.
    """
    if right.square().sum(0).max() * units**2 >= WHOLE:
        left, right = left.double(), right.double()
    for start in range(0, len(matrix), BLOCK):
        end = start + BLOCK
        for other in range(start, len(matrix), BLOCK):
            columns = slice(other, other + BLOCK)
            matrix[start:end, columns].add_(left[:, start:end].T @ right[:, columns])
        matrix[end:, start:end].copy_(matrix[start:end, end:].T)


def packed(matrix: Tensor) -> Tensor:
    """A symmetric (D, D) → (⌈D/2⌉, D + 1): the upper half of row i, and that of row D - 1 - i behind it."""
    width = len(matrix)
    rows = matrix.new_zeros((width + 1) // 2, width + 1)
    for i, row in enumerate(rows):
        row[: width - i] = matrix[i, i:]
        if width - 1 - i != i:
            row[width - i :] = matrix[width - 1 - i, width - 1 - i :]
    return rows


def unpacked(rows: Tensor) -> Tensor:
    """The symmetric matrix that was `packed`."""
    width = rows.shape[1] - 1
    upper = rows.new_zeros(width, width)
    for i, row in enumerate(rows):
        upper[i, i:] = row[: width - i]
        if width - 1 - i != i:
            upper[width - 1 - i, width - 1 - i :] = row[width - i :]
    return upper + upper.triu(1).T


class LoggedSums(Sums):
    """With the features of the records that came since: so many as take half of what the sums do, or `PIECE`."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__(width, device, UNITS)
        self._room = max(width, PIECE)
        self._features = torch.zeros(self._room, width, dtype=torch.int16)  # of each record, times `UNITS`
        self._classes = torch.zeros(self._room, dtype=torch.int32)  # of each; of one that was taken out -1 less it
        self._count = torch.zeros((), dtype=torch.int64)
        self._changed = Changed()
        self.keep()

    def add(self, features: Tensor, y: Tensor, *, sign: int = 1, forgetting: float = 1.0) -> None:
        rows = (features * UNITS).to("cpu", torch.int16)
        fits = len(y) <= self._room and torch.equal(rows.to(features) / UNITS, features)
        first, last = int(self._count), int(self._count) + len(y)
        if fits and forgetting == 1 and last > self._room:
            self.keep()
            first, last = 0, len(y)
        super().add(features, y, sign=sign, forgetting=forgetting)
        if forgetting < 1:  # every record changes all of them
            self.base = None
            self._count.zero_()
        elif not fits:
            self.keep()
        else:
            self._features[first:last] = rows
            self._classes[first:last] = y if sign > 0 else -1 - y
            self._changed.add(*range(first, last))
            self._count.fill_(last)

    def merge(self, other: Sums, numbers: Tensor) -> None:
        super().merge(other, numbers)
        self.keep()

    def keep(self) -> None:
        super().keep()
        self._count.zero_()

    def capture(self) -> dict[str, Tensor | Rows]:
        """As `Sums.capture`, and sums/recent/features (N, D) int16, sums/recent/classes (N,) int32 and
        sums/recent/known () int64."""
        changed = self._changed.take()
        log = {name: Rows(each, changed) for name, each in self._log().items()}
        return {**super().capture(), **log, LOG + "known": self._count}

    def restore(self, state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit, or the log names records or classes that there are not.
        """
        super().restore({name: value for name, value in state.items() if not name.startswith(LOG)})
        self._changed, self._count = Changed(), torch.zeros_like(self._count)
        log = {name: value for name, value in state.items() if name.startswith(LOG)}
        if not log:  # versions of before have none
            return
        copy_into({**self._log(), LOG + "known": self._count}, log)
        self._changed.take()
        count, classes = int(self._count), self._classes.long()
        y = torch.where(classes < 0, -1 - classes, classes)[: max(0, count)]
        if not 0 <= count <= self._room or (y >= len(self.counts)).any():
            raise ValueError(f"{LOG}known or {LOG}classes names records or classes that there are not.")
        for first in range(0, count, PIECE):
            for sign in (1, -1):
                rows = first + (classes[first : min(count, first + PIECE)] * sign >= (sign < 0)).nonzero()[:, 0]
                super().add(self._features[rows].float() / UNITS, y[rows], sign=sign)

    def _log(self) -> dict[str, Tensor]:
        return {LOG + "features": self._features, LOG + "classes": self._classes}
