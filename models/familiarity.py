"""How much a record resembles what was learned, and what an answer is worth where it does not.

A learner scores how strange a record is. Among the scores s_i of n records that it has learned, each as if it had not
been, a record with the score s has the rank

    r = (1 + #{i: s_i ≥ s}) / (1 + n)

For a record like those, r is below α with probability α, whatever the distribution of scores (conformal prediction,
Vovk et al. 2005). So `recognise` calls unknown what has r < `unknown`, and an answer is

    w p + (1 - w) q,   w = min(1, r / RARE)

with the probabilities p and the share q of each class in all records: what tells nothing is answered by what was known
without it, and nearly all that resembles is answered by p.

Pictures are scored by their squared Mahalanobis distance from all of them, over a few fixed numbers v of each. Its sums
M = Σ [1, v][1, v]ᵀ are exact, and the sample of those whose v have the smallest digests is uniform (bottom-k, Cohen and
Kaplan 2007): neither depends on the order of the stream. For a record that M holds,

    d²₋ = n / (n - 1) · d² / (1 - d² / (n - 1))

is its distance from the n - 1 others (Sherman and Morrison 1950).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from models.learner import Options, Rows, copy_into, structural
from models.texts.ngrams import BASE, mixed

RARE = 0.05
SAMPLE = 500  # records whose scores are known
NEVER = 1e38  # a score that no record has, and a number that a snapshot may hold
SHRINKAGE = 0.02  # of each variance that is added to it
SAFE = 0.99  # the most of itself that a record may be to a distance
UNITS = 1 << 16  # of 1, to which z is rounded: ±z added up in units stay below 2²⁴, as floats are whole, for d < 60,000
STEPS = 16  # of 1, to which v is
FAMILIAR = 64  # numbers of P z that tell how strange a picture is; beside them, since |z| = 1, its contrast


class AcquaintedOptions(Options):
    """`unknown` is the share of records like the learned ones that may be called unknown; 0: nothing is."""

    unknown: float = structural(0.0, ge=0, lt=0.5)


def ranks(strange: Tensor, learned: Tensor) -> Tensor:
    """Scores (B,) among known ones (N,), `NEVER` where there is none → r (B,)"""
    there = learned < NEVER
    above = (there & (learned >= strange[:, None])).sum(1)  # (B,)
    return (1 + above) / (1 + there.sum())


def tempered(p: Tensor, rank: Tensor, shares: Tensor) -> Tensor:
    """Probabilities p (B, K), ranks (B,), shares q (K,) → w p + (1 - w) q"""
    w = (rank / RARE).clamp_max(1)[:, None]
    return w * p + (1 - w) * shares


class Acquaintance:
    """M and the sample, of records' numbers v (d,): whole multiples of 1/16, so that M is exact."""

    def __init__(self, width: int) -> None:
        self.moments = torch.zeros(width + 1, width + 1, dtype=torch.float64)  # M
        self._sample: dict[bytes, Tensor] = {}  # digest → v
        self._last = b""  # the largest digest of a full sample

    def add(self, v: Tensor, *, sign: int = 1, forgetting: float = 1.0) -> None:
        """v (B, d) float64 of records that are learned, or with the sign -1 taken out."""
        ones = torch.cat([v.new_ones(len(v), 1), v], 1)
        self.moments.addmm_(ones.T, ones, beta=forgetting ** len(v), alpha=sign)
        for row in v.float():
            if sign > 0:
                self._keep(row)
            else:
                self._sample.pop(_digest(row), None)

    def merge(self, other: Acquaintance) -> None:
        """Adds all that another one has met."""
        self.moments += other.moments
        for row in other._sample.values():
            self._keep(row)

    def fit(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean (d,), W (d, d) with |W (v - mean)|² the distance, and the sample's scores (SAMPLE,), all float32."""
        n, total, squares = self.moments[0, 0], self.moments[0, 1:], self.moments[1:, 1:]
        mean = total / n.clamp_min(1)
        covariance = squares / n.clamp_min(1) - torch.outer(mean, mean)
        covariance += torch.diag(SHRINKAGE * covariance.diagonal().clamp_min(1 / 256))
        root = torch.linalg.cholesky(covariance)
        whitener = torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=torch.float64), upper=False)
        scores = torch.full((SAMPLE,), NEVER, dtype=torch.float64)
        if self._sample and n > 2:
            v = torch.stack([row for _, row in sorted(self._sample.items())]).double()  # (N, d)
            d = distances(v, mean, whitener)
            scores[: len(d)] = n / (n - 1) * d / (1 - (d / (n - 1)).clamp_max(SAFE))
        return mean.float(), whitener.float(), scores.float()

    def capture(self) -> dict[str, Tensor]:
        """familiar/moments (d + 1, d + 1) float64, familiar/v (SAMPLE, d) float32, and how many rows of it are used:
        familiar/known () int64."""
        found = [row for _, row in sorted(self._sample.items())]
        v = torch.zeros(SAMPLE, len(self.moments) - 1)
        for target, row in zip(v, found, strict=False):
            target.copy_(row)
        rows = torch.tensor(len(found))
        return {"familiar/moments": self.moments.clone(), "familiar/v": v, "familiar/known": rows}

    def restore(self, state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        found = self.capture()
        copy_into(found, state)
        self.moments, self._sample = found["familiar/moments"], {}
        for row in found["familiar/v"][: int(found["familiar/known"])]:
            self._keep(row)

    def _keep(self, row: Tensor) -> None:
        digest = _digest(row)
        if len(self._sample) >= SAMPLE and digest >= self._last:
            return
        self._sample[digest] = row.clone()
        if len(self._sample) > SAMPLE:
            del self._sample[self._last]
        if len(self._sample) == SAMPLE:
            self._last = max(self._sample)


def _digest(row: Tensor) -> bytes:
    return hashlib.blake2b(row.contiguous().numpy().tobytes(), digest_size=16).digest()


def distances(v: Tensor, mean: Tensor, whitener: Tensor) -> Tensor:
    """v (B, d) → (B,) squared Mahalanobis distances"""
    return ((v - mean) @ whitener.T).square().sum(1)


def projected(u: Tensor, signed: Tensor) -> Tensor:
    """What is known of pictures, u (B, d), and signs P (D, d) → P z (B, D), exact, of z = u less its own mean, with
    length 1, in whole units."""
    u = u.cpu().double()  # not every device has double precision
    z = F.normalize(u - u.mean(1, keepdim=True))  # (B, d)
    return ((z * UNITS).round().to(signed) @ signed.T).div_(UNITS)


def contrast(pictures: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] → (B, 1) float64: how much pixels vary, as a logarithm; -20 where they do not at all"""
    variance = pictures.cpu().double().flatten(2).var(2, correction=0).mean(1, keepdim=True)
    return (variance + 2.0**-20).log2()


def whole(v: Tensor) -> Tensor:
    """v (B, d) → float64, whole multiples of 1 / `STEPS`, of which sums are exact"""
    return v.cpu().double().mul(STEPS).round_().div_(STEPS)


def signs(rows: int, columns: int) -> Tensor:
    """(rows, columns) float32 of -1 and 1: the highest bit of a hash of each place."""
    places = torch.arange(rows * columns, dtype=torch.int64)
    return torch.where(mixed(places * BASE) < 0, -1.0, 1.0).view(rows, columns)
