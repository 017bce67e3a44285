"""How good drawings are: Fréchet distance, precision, density, coverage, and whether they are copies. Pure functions.

All but the last look at features (N, D): what a frozen network makes of real records that were held back, of records
that were learned, and of drawings. Sums are in float64, since each of these numbers is a small difference of large
ones; distances are taken in chunks, so that memory does not grow with the product of two sets. Every number depends on
how many records there are (the Fréchet distance falls with N: Chong and Forsyth 2020): compare like with like.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

NEIGHBOURS = 5  # k, as Naeem et al. 2020 take it
COPY_QUANTILE = 0.01  # of fresh records, so few are as near to a learned one as a copy
CHUNK = 1 << 22  # distances at one time: 32 MiB


def quality(real: Tensor, learned: Tensor, drawn: Tensor) -> dict[str, float]:
    """What features tell of drawings, by the names in metrics and manifests. `real` was never learned.

    Args:
        real, learned, drawn: (N, D), (L, D) and (M, D), any floating type.

    Raises:
        ValueError: there are at most `NEIGHBOURS` real records, no learned one, or fewer than two drawings.
    """
    if not len(learned):
        raise ValueError("there are no learned records that drawings could be copies of.")
    precision, density, coverage = neighbourhoods(real, drawn)
    memorised, nearness = memorisation(real, learned, drawn)
    return {
        "frechet_distance": frechet_distance(real, drawn),  # 0: the same mean and covariance
        "precision": precision,  # share of the drawings that look real
        "density": density,  # mean number of real neighbourhoods that a drawing is in, over k; 1 where all is well
        "coverage": coverage,  # share of the real records that have a drawing in their neighbourhood
        "memorised_share": memorised,  # share of the drawings that are copies; 0.01 where nothing is memorised
        "nearest_learned_ratio": nearness,  # median distance to the nearest learned record, over the one of fresh ones
    }


def frechet_distance(real: Tensor, drawn: Tensor) -> float:
    """Squared distance of the normal distributions with the means and covariances of both (Heusel et al. 2017, FID):

        |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁ Σ₂)^½

    With Σ = RᵀR from a QR decomposition of the centred features, the last trace is the sum of the singular values of
    R₁ R₂ᵀ, the roots of the eigenvalues of the symmetric R₁ Σ₂ R₁ᵀ, without ever taking the root of a rounding error:
    it holds for fewer records than features too. Covariances are unbiased (N - 1).

    Args:
        real, drawn: (N, D) and (M, D).

    Raises:
        ValueError: one of them has fewer than two rows.
    """
    if min(len(real), len(drawn)) < 2:
        raise ValueError(f"a covariance needs two records, not {len(real)} real ones and {len(drawn)} drawings.")
    (mean, root), (drawn_mean, drawn_root) = _moments(real), _moments(drawn)
    cross = torch.linalg.svdvals(root @ drawn_root.T).sum()
    apart = (mean - drawn_mean).square().sum()
    distance = apart + root.square().sum() + drawn_root.square().sum() - 2 * cross
    return max(0.0, float(distance))


def neighbourhoods(real: Tensor, drawn: Tensor, k: int = NEIGHBOURS) -> tuple[float, float, float]:
    """Precision, density and coverage. A real record's neighbourhood B reaches to its k-th nearest real one.

    precision = 1/M Σⱼ [drawing j is in some Bᵢ]     (Kynkäänniemi et al. 2019, eq. 1 and 2)
    density = 1/(kM) Σⱼ Σᵢ [drawing j is in Bᵢ]      (Naeem et al. 2020, eq. 4: one outlier's wide B counts little)
    coverage = 1/N Σᵢ [some drawing is in Bᵢ]        (Naeem et al. 2020, eq. 5)

    Args:
        real, drawn: (N, D) and (M, D).

    Raises:
        ValueError: there are at most k real records, or no drawings.
    """
    if len(real) <= k or not len(drawn):
        raise ValueError(f"neighbourhoods need more than {k} real records and a drawing.")
    radii = torch.cat([chunk.kthvalue(k + 1, 1).values for chunk in _distances(real, real)])  # k + 1: itself is one
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    precise = inside = 0
    for chunk in _distances(drawn, real):  # (m, N)
        within = chunk <= radii
        precise += int(within.any(1).sum())
        inside += int(within.sum())
        covered |= within.any(0)
    return precise / len(drawn), inside / (k * len(drawn)), covered.double().mean().item()


def memorisation(real: Tensor, learned: Tensor, drawn: Tensor) -> tuple[float, float]:
    """The share of drawings that are copies, and how near drawings are to what was learned.

    With d(x) the distance to the nearest learned record: the share of drawings whose d is below the 1 % quantile of d
    over real records that were never learned, and the median of d over drawings, divided by that over those records.

    Fresh records are the measure, as in the three-sample test of Meehan et al. 2020 ("A non-parametric test to detect
    data-copying in generative models"): a generator that draws from the distribution itself gets 0.01 and 1, whatever
    the network and the number of records. The authenticity of Alaa et al. 2022 compares with distances among learned
    records: it gives such a generator about a half, and a stream that repeats its records makes them all 0. Of Meehan
    et al. the sets are taken and not their rank test C_T, whose size grows with the number of drawings, and which
    calls a blurred generator, a little nearer everywhere, a copier: copies are told by the tail.

    Args:
        real, learned, drawn: (N, D), (L, D) and (M, D), no row count 0.
    """
    fresh, ours = nearest(real, learned), nearest(drawn, learned)
    limit = torch.quantile(fresh, COPY_QUANTILE, interpolation="lower")
    tiny = torch.finfo(torch.float64).tiny
    return (ours < limit).double().mean().item(), (ours.median() / fresh.median().clamp_min(tiny)).item()


def nearest(x: Tensor, others: Tensor) -> Tensor:
    """x (N, D), others (M, D) → (N,) float64 distances to the nearest of the others."""
    return torch.cat([chunk.amin(1) for chunk in _distances(x, others)])


def bits_per_dimension(nats: float, dimensions: int, levels: int = 1) -> float:
    """Nats per record → bits per dimension, such as a pixel's channel.

    Args:
        dimensions: of a record: C · H · W.
        levels: 1 for a probability. Of a density over [0, 1], how many values a dimension has, 256 for pixels: each
            value stands for a bin of 1 / levels, whose probability is nearly the density times its width (Theis et al.
            2016, "A note on the evaluation of generative models", section 3.1).
    """
    return nats / (dimensions * math.log(2)) + math.log2(levels)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) → μ (D,) and R (min(N, D), D) with RᵀR the covariance, float64."""
    rows = features.double()
    mean = rows.mean(0)
    return mean, torch.linalg.qr((rows - mean) / math.sqrt(len(rows) - 1), mode="r").R


def _distances(x: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Euclidean, (n, M) float64 for some rows of x after the other."""
    others = others.double()
    step = max(1, CHUNK // len(others))
    for start in range(0, len(x), step):
        yield torch.cdist(x[start : start + step].double(), others)
