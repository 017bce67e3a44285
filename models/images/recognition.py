"""Recognition with few examples, in closed form: what is known of each class, and when a record resembles none.

Features u (D) of class c are taken as Gaussian around μ_c with one covariance for all classes (linear discriminant
analysis, streaming as in Hayes and Kanan 2020, "Lifelong machine learning with deep streaming LDA"):

    Σ = A / (ν + m),   A = ν S₀ + Σ_i (u_i - μ_{y_i})(u_i - μ_{y_i})ᵀ,   m = Σ_c (n_c - 1)
    d_c(u) = (u - μ_c)ᵀ Σ⁻¹ (u - μ_c) - w / n_c

S₀ is what is known beforehand, as if from ν records (the mean of an inverse Wishart posterior). What an uncertain μ_c
adds to the distance is taken away again: w is the mean squared distance of a record to the true mean of its class.
p(c | u) = softmax(-½ τ d_c). A record resembles none of the classes where

    s(u) = min_c d_c(u) - ½ d_0(u) > t

d_0 is the distance to one Gaussian around everything that the backbone was taught (relative Mahalanobis distance, Ren
et al. 2021, "A simple fix to Mahalanobis distance for improving near-OOD detection", where it counts in full): what is
far from all that there is, in directions that tell no class from another, says little about the class. But not nothing:
what is strange is far from everything. Without such knowledge d_0 = 0.

w, τ and t come from a few kept records, each judged as if it had never been learned (leave-one-out). For that nothing
is learned again: with a = n_c / (n_c - 1) and r = u_i - μ_c, leaving i out makes its residual a·r, and A into
A - a r rᵀ, so that (Sherman and Morrison 1950)

    vᵀ(A - a r rᵀ)⁻¹v = vᵀA⁻¹v + a (vᵀA⁻¹r)² / (1 - a rᵀA⁻¹r)

While no class has two records, nothing tells how alike those of one class are. Then each record is judged by the
distance from the nearest other class: another one of its own is about as far away (by what was measured: 1.0 to 1.5
times), since it is not one of few but a matter of luck how near it comes. τ is `SURE` over the mean of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

NEVER = 1e38  # a threshold that nothing exceeds, and a number that a snapshot may hold
FAMILIARITY = 0.5  # what d_0 counts
SHARPNESS = tuple(2.0**-k for k in range(12))  # what τ is chosen from
SURE = 4.0


@dataclass(frozen=True, slots=True)
class SourceMoments:
    """What a source tells of its features: the scatter within its classes, and all of them as one Gaussian."""

    within: Tensor  # (D, D) float64: S₀
    mean: Tensor  # (D,) float32, whitened
    whitener: Tensor  # (D, D) float32


@dataclass(frozen=True, slots=True)
class Fit:
    """What `fit` finds: all that answers are computed from."""

    whitener: Tensor  # (D, D) float32, with which Mahalanobis distances are Euclidean ones
    means: Tensor  # (K, D) float32, whitened
    surplus: Tensor  # (K,) float32: w / n_c
    sharpness: Tensor  # () float32: τ
    threshold: Tensor  # () float32: t; `NEVER` while nothing tells it


def background(features: Tensor, y: Tensor, shrinkage: float) -> SourceMoments:
    """Of a source's records.

    Args:
        features: (N, D)
        y: (N,) class numbers
        shrinkage: λ: both covariances C become (C + λ c I) / (1 + λ), where c is the mean of C's diagonal.
    """
    u = features.double()
    within = shrunk(_scatter(u, y) / max(1, len(u) - len(torch.unique(y))), shrinkage)
    mean = u.mean(0)
    total = shrunk((u - mean).T @ (u - mean) / len(u), shrinkage)
    whitener = _whitener(total)
    return SourceMoments(within, (whitener @ mean).float(), whitener.float())


def shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """A covariance (D, D) pulled to a sphere of the same trace."""
    sphere = covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(len(covariance)).to(covariance)
    return (covariance + shrinkage * sphere) / (1 + shrinkage)


def fit(
    counts: Tensor,
    sums: Tensor,
    moments: Tensor,
    within: Tensor,
    others: Tensor,
    kept: Tensor,
    kept_fold: Tensor,
    kept_y: Tensor,
    kept_distances: Tensor,
    *,
    prior_records: float,
    false_rejection: float,
) -> Fit:
    """The closed form.

    Args:
        counts: (K,) int64 records of each class, K ≥ 1
        sums: (K, D) float64 of their features
        moments: (D, D) float64, Σ u uᵀ of all of them
        within: (D, D) float64: S₀
        others: (F, D, D) float64: what S₀ is without the records of each fold; F = 0: it is the same
        kept: (N, D) features of some of them
        kept_fold: (N,) which fold they are of
        kept_y: (N,) their classes
        kept_distances: (N,) float64 d_0 of them
    """
    n = counts.double()
    means = sums / n[:, None]
    own = moments - sums.T @ means  # (D, D)
    records = prior_records + float((n - 1).sum())
    own = 0.5 * (own + own.T)
    whitener = _whitener(prior_records * within + own)  # of A
    whitened = means @ whitener.T

    several = counts[kept_y] > 1
    if several.any():
        whiteners = [_whitener(prior_records * other + own) for other in others] or [whitener]
        u, y, fold = kept[several].double(), kept_y[several], kept_fold[several] % len(whiteners)
        rows = torch.arange(len(y)).to(y)
        d, made_of = u.new_empty(len(y), len(n)), u.new_empty(len(y), len(n))
        for number, each in enumerate(whiteners):
            some = rows[fold == number]
            d[some], made_of[some] = _left_out(u[some] @ each.T, y[some], means @ each.T, n)
        d *= records - 1
        # What leaving one out expects of its own class is w (1 + 1 / (n - 1)).
        spread = (d[rows, y] * (n[y] - 1) / n[y]).mean()
        d -= spread / made_of
        sharpness = _sharpness(d, y)
        scores = d.min(1).values - FAMILIARITY * kept_distances[several]
    else:  # then n = 1
        spread, alone = n.new_tensor(float(len(within))), kept_y if len(n) > 1 else kept_y[:0]
        apart = torch.cdist(whitened, whitened).square().fill_diagonal_(math.inf)  # infinite where there is no other
        nearest = records * apart.min(1).values[alone]
        sharpness = SURE / nearest.mean().clamp_min(1e-9).item() if len(alone) else 1.0
        scores = nearest - spread - FAMILIARITY * kept_distances[: len(alone)]
    threshold = limit(scores.tolist(), false_rejection)
    scale = math.sqrt(records)
    return Fit(
        (scale * whitener).float(),
        (scale * whitened).float(),
        (spread / n).float(),
        sums.new_tensor(sharpness).float(),
        sums.new_tensor(threshold).float(),
    )


def distances(u: Tensor, whitener: Tensor, means: Tensor) -> Tensor:
    """u (B, D), whitener (D, D), whitened means (K, D) → squared distances (B, K) float64"""
    away, means = u.double() @ whitener.double().T, means.double()
    return (away.square().sum(1, keepdim=True) - 2 * away @ means.T + means.square().sum(1)).clamp_min(0)


def limit(scores: list[float], share: float) -> float:
    """What another score of the same kind exceeds with probability `share`; `NEVER` where fewer than two are known.

    From n = 10 / share scores on it is the ⌈(n + 1)(1 - share)⌉-th smallest, which holds whatever their distribution
    (conformal prediction, Vovk et al. 2005). Of fewer, that one would be nearly the largest, and as uncertain as
    extremes are: then mean + t s √(1 + 1/n), the bound of a further draw from a normal distribution, with t of
    Student's distribution by the expansion 26.7.5 of Abramowitz and Stegun 1964.
    """
    n = len(scores)
    if n < 2:
        return NEVER
    if n * share >= 10:
        return sorted(scores)[min(n, math.ceil((n + 1) * (1 - share))) - 1]
    mean = math.fsum(scores) / n
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (n - 1))
    z, free = NormalDist().inv_cdf(1 - share), n - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return mean + t * deviation * math.sqrt(1 + 1 / n)


def _left_out(u: Tensor, y: Tensor, means: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Whitened records (N, D) and means (K, D) → squared distances (N, K) by A without the record itself, and how
    many records the mean was made of, (N, K)."""
    counts = n.expand(len(y), -1).clone()
    a = n[y] / (n[y] - 1)  # (N,)
    r = u - means[y]
    h = r.square().sum(1)
    raised = a / (1 - a * h)
    along = (u * r).sum(1, keepdim=True) - r @ means.T  # (N, K)
    d = torch.cdist(u, means).square() + raised[:, None] * along.square()
    rows = torch.arange(len(y)).to(y)
    d[rows, y] = a.square() * (h + raised * h.square())
    counts[rows, y] -= 1
    return d, counts


def _sharpness(d: Tensor, y: Tensor) -> float:
    """The τ that makes the left-out records (N, K) of classes y most likely."""
    surprise = [torch.nn.functional.cross_entropy(-0.5 * tau * d, y) for tau in SHARPNESS]
    return SHARPNESS[int(torch.stack(surprise).argmin())]


def _scatter(u: Tensor, y: Tensor) -> Tensor:
    total = u.new_zeros(u.shape[1], u.shape[1])
    for number in torch.unique(y):
        away = u[y == number]
        away = away - away.mean(0)
        total += away.T @ away
    return total


def _whitener(covariance: Tensor) -> Tensor:
    """W with WᵀW = the inverse."""
    root = torch.linalg.cholesky(covariance)
    inverse: Tensor = torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=False)
    return inverse
