"""Moments of codes: against numpy, over any batches, and there and back between codes and N(0, I)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from models.images.code_moments import HORIZON, CodeMoments
from models.labels import NONE

LATENT = 3


def codes(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """z of no class and two, each with a mean and a covariance of its own."""
    rng = torch.Generator().manual_seed(seed)
    numbers = torch.randint(NONE, 2, (count,), generator=rng)
    mix = torch.randn(3, LATENT, LATENT, generator=rng)[numbers]
    z = (mix @ torch.randn(count, LATENT, 1, generator=rng))[:, :, 0] + numbers[:, None] + 0.5
    return z, numbers


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 200), cuts=st.lists(st.integers(0, 200), max_size=4))
def test_until_the_horizon_they_are_numpys_whatever_the_batches(count: int, cuts: list[int]) -> None:
    z, numbers = codes(count)
    ours = CodeMoments(2, LATENT)
    bounds = sorted({0, count, *(cut for cut in cuts if cut < count)})
    for start, end in pairwise(bounds):
        ours.add(z[start:end], numbers[start:end])
    for row, number in enumerate((NONE, 0, 1)):
        mine = z[numbers == number].double().numpy()
        total = LATENT + len(mine)
        squares = (mine.T @ mine + LATENT * np.eye(LATENT)) / total  # begun as so many codes of N(0, I)
        mean = mine.sum(0) / total
        np.testing.assert_allclose(ours.counts[row], total)
        np.testing.assert_allclose(ours.means[row], mean, atol=1e-5)
        np.testing.assert_allclose(ours.covariances[row], squares - np.outer(mean, mean), atol=1e-4)


@pytest.mark.parametrize("batch_size", [50, 4 * int(HORIZON)])
def test_what_is_long_past_is_forgotten_and_other_classes_are_not(batch_size: int) -> None:
    ours = CodeMoments(2, LATENT)
    ours.add(torch.full((400, LATENT), 9.0), torch.zeros(400, dtype=torch.int64))
    before = ours.means[2].clone()
    z = torch.randn(8 * int(HORIZON), LATENT, generator=torch.Generator().manual_seed(0)) - 2
    for part in torch.split(z, batch_size):
        ours.add(part, torch.zeros(len(part), dtype=torch.int64))
    assert (ours.means[1] + 2).abs().max() < 0.2
    assert torch.equal(ours.means[2], before)


def test_drawn_codes_have_the_moments_of_the_class_and_go_back_to_where_they_came_from() -> None:
    ours = CodeMoments(2, LATENT)
    z, numbers = codes(900)
    ours.add(z, numbers)
    noise = torch.randn(20000, LATENT, generator=torch.Generator().manual_seed(1))
    one = torch.ones(len(noise), dtype=torch.int64)
    drawn = ours.placed(noise, one)
    wanted = ours.covariances[2].double()
    assert (drawn.mean(0) - ours.means[2]).abs().max() < 0.1
    assert (torch.cov(drawn.T).double() - wanted).abs().max() < 0.05 * wanted.abs().max()
    back, spread = ours.standardised(drawn, torch.ones_like(drawn), one)
    torch.testing.assert_close(back, noise, rtol=1e-4, atol=1e-4)
    # Independent numbers of deviation 1 have the covariance (L Lᵀ)⁻¹ there.
    inverse = torch.linalg.cholesky(wanted).inverse()
    torch.testing.assert_close(spread[0].double().square(), (inverse @ inverse.T).diagonal(), rtol=1e-4, atol=1e-6)


def test_a_class_without_records_has_codes_of_n_0_i() -> None:
    ours = CodeMoments(0, LATENT)
    ours.add(*(part[:0] for part in codes(3)))
    ours.grow(2)
    noise, numbers = codes(4)[0], torch.tensor([NONE, 0, 1, 1])
    torch.testing.assert_close(ours.placed(noise, numbers), noise)
    back, spread = ours.standardised(noise, noise.exp(), numbers)
    torch.testing.assert_close(back, noise)
    torch.testing.assert_close(spread, noise.exp())
