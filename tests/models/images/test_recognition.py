"""The closed form of recognition against plain recounts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from models.images.recognition import NEVER, background, distances, fit, limit, shrunk


def gaussian(counts: list[int], dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Records around as many means as there are counts, their classes, and S₀."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    means = 3 * torch.randn(len(counts), dim, generator=generator, dtype=torch.float64)
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    u = means[y] + torch.randn(len(y), dim, generator=generator, dtype=torch.float64) @ root.T
    return u, y, torch.eye(dim, dtype=torch.float64) + 0.1 * root @ root.T


def plain(u: Tensor, y: Tensor, within: Tensor, prior: float, of: Tensor) -> tuple[np.ndarray[Any, Any], float]:
    """Squared Mahalanobis distances of records to the means of the classes, by definition, and the degrees of A."""
    a, means = prior * within.numpy(), []
    for c in torch.unique(y):
        mine = u[y == c].numpy()
        means.append(mine.mean(0))
        a = a + (mine - means[-1]).T @ (mine - means[-1])
    degrees = prior + len(y) - len(means)
    inverse = np.linalg.inv(a / degrees)
    away = of.numpy()[:, None] - np.stack(means)
    return np.einsum("nkd,de,nke->nk", away, inverse, away), degrees


def fitted(
    u: Tensor, y: Tensor, within: Tensor, kept: Tensor, share: float = 0.1, prior: float = 7.0, others: Any = None
) -> Any:
    counts, sums = torch.bincount(y), torch.stack([u[y == c].sum(0) for c in torch.unique(y)])
    nothing = torch.zeros(len(kept), dtype=torch.float64)
    apart = within[:0, None] if others is None else others
    folds = torch.arange(len(kept)) % 2
    return fit(
        counts,
        sums,
        u.T @ u,
        within,
        apart,
        u[kept].float(),
        folds,
        y[kept],
        nothing,
        prior_records=prior,
        false_rejection=share,
    )


def test_distances_are_those_of_the_definition() -> None:
    u, y, within = gaussian([5, 3, 6])
    found = fitted(u, y, within, torch.arange(len(y)))
    expected, _ = plain(u, y, within, 7.0, u)
    torch.testing.assert_close(
        distances(u.float(), found.whitener, found.means), torch.from_numpy(expected), rtol=1e-4, atol=1e-3
    )


def test_without_a_prior_it_is_linear_discriminant_analysis() -> None:
    u, y, within = gaussian([40, 40, 40])
    found = fitted(u, y, within, torch.arange(0, len(y), 9), prior=1e-9)
    theirs = LinearDiscriminantAnalysis("lsqr", priors=[1 / 3] * 3, store_covariance=True).fit(u.numpy(), y.numpy())
    # Theirs divides the scatter by n, ours by n - K.
    logits = -0.5 * distances(u.float(), found.whitener, found.means) * 120 / 117
    expected = torch.from_numpy(theirs.predict_proba(u.numpy()))
    torch.testing.assert_close(logits.softmax(1), expected, rtol=1e-3, atol=1e-5)


def test_leaving_one_out_is_what_learning_without_it_gives() -> None:
    u, y, within = gaussian([5, 3, 6, 1])
    kept = torch.tensor([0, 2, 5, 6, 9, 13, 14])  # the last is alone in its class: nothing is left without it
    found, own, others, fits = fitted(u, y, within, kept), [], [], []
    n = torch.bincount(y).double()
    for i in kept[:-1]:
        rest = torch.arange(len(y)) != i
        d, _ = plain(u[rest], y[rest], within, 7.0, u[i : i + 1])
        left = torch.bincount(y[rest]).double()
        own.append(d[0, y[i]] * float(left[y[i]] / (left[y[i]] + 1)))
        others.append(left.numpy())
        fits.append(d[0])
    w = float(np.mean(own))
    torch.testing.assert_close(found.surplus.double(), w / n, rtol=1e-4, atol=0)
    scores = [(d - w / left).min() for d, left in zip(fits, others, strict=True)]
    assert found.threshold.item() == pytest.approx(limit(scores, 0.1), rel=1e-4)
    likelihood = {
        tau: np.mean(
            [
                -np.log(np.exp(-0.5 * tau * (d - w / left - (d - w / left).min())).sum())
                - 0.5 * tau * ((d - w / left)[y[i]] - (d - w / left).min())
                for d, left, i in zip(fits, others, kept, strict=False)
            ]
        )
        for tau in [2.0**-k for k in range(12)]
    }
    assert found.sharpness.item() == max(likelihood, key=lambda tau: float(likelihood[tau]))


def test_the_surplus_makes_the_distance_to_a_mean_of_few_what_it_is_to_the_true_one() -> None:
    generator = torch.Generator().manual_seed(0)
    dim, n = 6, 2
    gaps = []
    for _ in range(200):
        u = torch.randn(n + 1, dim, generator=generator, dtype=torch.float64)
        found = fitted(u[:n], torch.zeros(n, dtype=torch.int64), torch.eye(dim).double(), torch.arange(n), prior=1e6)
        gaps.append((distances(u[n:].float(), found.whitener, found.means) - dim / n).item())
    assert np.mean(gaps) == pytest.approx(dim, rel=0.1)


def test_the_limit_is_a_prediction_bound_of_few_and_a_quantile_of_many() -> None:
    scores = np.random.default_rng(0).normal(size=25)
    bound = scores.mean() + stats.t.ppf(0.9, 24) * scores.std(ddof=1) * math.sqrt(1 + 1 / 25)
    assert limit(scores.tolist(), 0.1) == pytest.approx(bound, rel=1e-4)
    many = np.random.default_rng(0).exponential(size=999)
    assert limit(many.tolist(), 0.1) == np.sort(many)[899]
    assert limit([], 0.1) == limit([3.0], 0.1) == NEVER
    rng, misses = np.random.default_rng(1), []
    for n in (3, 25, 99, 100, 300):
        misses.append(np.mean([rng.normal() > limit(rng.normal(size=n).tolist(), 0.1) for _ in range(1500)]))
    assert misses == pytest.approx([0.1] * 5, abs=0.03)


def test_the_background_is_a_gaussian_around_all_of_it() -> None:
    u, y, _ = gaussian([30, 40])
    told = background(u.float(), y, 0.5)
    total = shrunk(torch.cov(u.T, correction=0), 0.5)
    expected = torch.distributions.MultivariateNormal(u.mean(0), total)
    d0 = distances(u, told.whitener, told.mean[None])[:, 0]
    constant = -0.5 * (torch.logdet(total) + 4 * math.log(2 * math.pi))
    torch.testing.assert_close(constant - 0.5 * d0, expected.log_prob(u), rtol=1e-4, atol=1e-4)  # type: ignore[no-untyped-call]
    away = torch.cat([u[y == c] - u[y == c].mean(0) for c in (0, 1)])
    scatter = away.T @ away
    torch.testing.assert_close(told.within, shrunk(scatter / 68, 0.5), rtol=1e-4, atol=1e-5)


def test_a_record_is_judged_by_what_its_own_fold_does_not_tell() -> None:
    u, y, within = gaussian([5, 3, 6])
    kept = torch.arange(len(y))
    other = 3 * within
    both, one, two = (
        fitted(u, y, within, kept, others=torch.stack(each)) for each in ([within, other], [within] * 2, [other] * 2)
    )
    assert same_answers(both, one)
    assert one.threshold > both.threshold > two.threshold
    assert torch.equal(one.threshold, fitted(u, y, within, kept).threshold)


def same_answers(one: Any, other: Any) -> bool:
    """Whether two fits measure distances alike."""
    return torch.equal(one.whitener, other.whitener) and torch.equal(one.means, other.means)
