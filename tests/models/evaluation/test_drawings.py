"""The quality of drawings, against SciPy, naive loops, and cases whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.evaluation import drawings as module
from models.evaluation.drawings import (
    bits_per_dimension,
    frechet_distance,
    memorisation,
    nearest,
    neighbourhoods,
    quality,
)


def normal(count: int, dim: int, seed: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def scipy_frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """As the reference code of Heusel et al. has it."""
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(one @ other)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * root.real))


@pytest.mark.parametrize(("dim", "scale"), [(1, 1.0), (5, 1e-3), (12, 1e3)])
def test_the_frechet_distance_is_scipys(dim: int, scale: float) -> None:
    mix = normal(dim, dim, 9)
    a, b = scale * normal(60, dim, 0), scale * (normal(80, dim, 1) @ mix + 0.5)
    if dim == 1:  # of one dimension there is a formula
        wanted = (a.double().mean() - b.double().mean()) ** 2 + (a.double().std() - b.double().std()) ** 2
        assert frechet_distance(a, b) == pytest.approx(wanted.item(), rel=1e-9)
    else:
        assert frechet_distance(a, b) == pytest.approx(scipy_frechet(a.double().numpy(), b.double().numpy()), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_the_frechet_distance_of_fewer_records_than_features_is_sound() -> None:
    a = normal(20, 64, 0)
    assert frechet_distance(a, a) < 1e-10
    assert frechet_distance(a, a + 0.25) == pytest.approx(64 * 0.25**2, rel=1e-5)
    assert frechet_distance(a, a.flip(0)) < 1e-10
    assert frechet_distance(1e4 + a.double(), 1e4 + 2 * a.double()) == pytest.approx(
        frechet_distance(a.double(), 2 * a.double()), rel=1e-6
    )


def test_half_precision_is_summed_in_full() -> None:
    a, b = normal(50, 8, 0).to(torch.bfloat16), normal(50, 8, 1).to(torch.bfloat16)
    assert frechet_distance(a, b) == frechet_distance(a.double(), b.double())


def distance(a: Tensor, b: Tensor) -> float:
    return math.dist(a.tolist(), b.tolist())


def naive_neighbourhoods(real: Tensor, drawn: Tensor, k: int) -> tuple[float, float, float]:
    radii = [
        sorted(distance(one, other) for j, other in enumerate(real) if j != i)[k - 1] for i, one in enumerate(real)
    ]
    inside = [[distance(d, r) <= radius for r, radius in zip(real, radii, strict=True)] for d in drawn]
    precision = sum(any(row) for row in inside) / len(drawn)
    density = sum(sum(row) for row in inside) / (k * len(drawn))
    coverage = sum(any(column) for column in zip(*inside, strict=True)) / len(real)
    return precision, density, coverage


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_neighbourhoods_are_those_of_a_naive_loop(k: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    real, drawn = normal(30, 3, 0), normal(25, 3, 1) + 0.4
    found = neighbourhoods(real, drawn, k)
    assert found == pytest.approx(naive_neighbourhoods(real, drawn, k))
    assert all(number > 0 for number in found)


def test_neighbourhoods_tell_a_dropped_mode_from_bad_drawings() -> None:
    one, other = normal(100, 4, 0), normal(100, 4, 1) + 20
    real = torch.cat([one, other])
    precision, density, coverage = neighbourhoods(real, normal(200, 4, 2))  # one mode of two
    assert precision > 0.9
    assert density > 0.5
    assert 0.4 < coverage <= 0.5
    precision, density, coverage = neighbourhoods(real, 100 + normal(200, 4, 3))  # nothing of either
    assert (precision, density, coverage) == (0, 0, 0)


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_the_nearest_is_that_of_a_naive_loop(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    x, others = normal(7, 5, 0), normal(40, 5, 1)
    assert nearest(x, others).tolist() == pytest.approx([min(distance(a, b) for b in others) for a in x], abs=1e-7)


def test_copies_are_distinguished_from_new_records() -> None:
    learned, real = normal(1000, 6, 0), normal(1000, 6, 1)
    share, ratio = memorisation(real, learned, normal(1000, 6, 2))
    assert share < 0.03  # 0.01 but for chance
    assert ratio == pytest.approx(1, abs=0.1)
    half = torch.cat([learned[:500] + 1e-3 * normal(500, 6, 3), normal(500, 6, 4)])
    share, _ = memorisation(real, learned, half)
    assert share == pytest.approx(0.5, abs=0.02)
    share, ratio = memorisation(real, learned, learned[:100])
    assert share == 1
    assert ratio < 1e-6


def test_a_stream_that_repeats_its_records_hides_no_copies() -> None:
    learned, real = normal(300, 6, 0), normal(300, 6, 1)
    assert memorisation(real, learned.repeat(2, 1), learned) == memorisation(real, learned, learned)


def test_memorisation_is_a_recount() -> None:
    real, learned, drawn = normal(200, 3, 0), normal(150, 3, 1), normal(120, 3, 2)
    fresh = sorted(min(distance(a, b) for b in learned) for a in real)
    ours = sorted(min(distance(a, b) for b in learned) for a in drawn)
    limit = fresh[1]  # numbers 0 to 199: 0.01 · 199 = 1.99
    share, ratio = memorisation(real, learned, drawn)
    assert share == sum(d < limit for d in ours) / 120
    assert ratio == pytest.approx(ours[59] / fresh[99], rel=1e-6)


def test_all_at_once() -> None:
    real, learned, drawn = normal(40, 4, 0), normal(50, 4, 1), normal(30, 4, 2)
    found = quality(real, learned, drawn)
    expected = (frechet_distance(real, drawn), *neighbourhoods(real, drawn), *memorisation(real, learned, drawn))
    assert tuple(found.values()) == expected
    assert all(math.isfinite(number) for number in found.values())


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: quality(normal(5, 2, 0), normal(9, 2, 1), normal(9, 2, 2)), "more than 5 real"),
        (lambda: quality(normal(9, 2, 0), normal(0, 2, 1), normal(9, 2, 2)), "no learned"),
        (lambda: frechet_distance(normal(9, 2, 0), normal(1, 2, 1)), "two records"),
        (lambda: neighbourhoods(normal(9, 2, 0), normal(0, 2, 1)), "a drawing"),
    ],
)
def test_too_little_is_refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()


def test_bits_of_simple_distributions() -> None:
    fair = 10 * math.log(2)  # ten fair bits
    assert bits_per_dimension(fair, 10) == pytest.approx(1)
    assert bits_per_dimension(0.0, 12, 256) == 8  # a uniform density over [0, 1], in 256 steps
    # A Gaussian much wider than a step: its bins' entropy, summed, is what its density tells.
    sigma, levels = 0.1, 256
    step = torch.arange(-400, 400, dtype=torch.float64) / levels
    mass = torch.special.ndtr((step + 0.5 / levels) / sigma) - torch.special.ndtr((step - 0.5 / levels) / sigma)
    nats = 0.5 * math.log(2 * math.pi * math.e * sigma**2)
    wanted = -torch.special.xlogy(mass, mass).sum().item() / math.log(2)
    assert bits_per_dimension(nats, 1, levels) == pytest.approx(wanted, abs=1e-3)
