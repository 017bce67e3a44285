"""Damage: what each kind does, against other ways of computing it, and that it is a function of its generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from models.images.degradations import DAMAGES, KINDS, Kind, damaged, depth, smaller

STEP = 1 / 255


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 6, channels: int = 4, height: int = 18, width: int = 23) -> Tensor:
    """Of 8 bits."""
    x = torch.rand(count, channels, 4, 4, generator=rng(9))
    return (255 * torch.nn.functional.interpolate(x, (height, width), mode="bilinear")).round() / 255


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_damage_is_a_function_of_the_pictures_and_the_generator(kind: Kind, channels: int) -> None:
    x = pictures(channels=channels)
    before, state = x.clone(), torch.get_rng_state()
    y, holes = DAMAGES[kind](x, rng())
    again, other = DAMAGES[kind](x, rng()), DAMAGES[kind](x, rng(1))
    assert torch.equal(y, again.x)
    assert torch.equal(holes, again.holes)
    assert not torch.equal(y, other.x)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (y.shape, y.dtype, holes.shape, holes.dtype) == (x.shape, x.dtype, (6, 1, 18, 23), torch.bool)
    assert all(not torch.equal(*pair) for pair in zip(x, y, strict=True))
    assert 0 <= y.min() <= y.max() <= 1
    torch.testing.assert_close(255 * y, (255 * y).round(), rtol=0, atol=1e-4)
    assert holes.any() == (kind == "holes")
    if channels == 4:
        assert torch.equal(x[:, 3], y[:, 3]) == (kind in ("fog", "dark", "faded"))


def test_each_record_gets_its_own_kind() -> None:
    x, kinds = pictures(8), torch.tensor([7, 3, 0, 3, 7, 1, 0, 7])
    y, holes = damaged(x, kinds, rng())
    generator = rng()
    for number in (0, 1, 3, 7):
        expected = DAMAGES[KINDS[number]](x[kinds == number], generator)
        assert torch.equal(y[kinds == number], expected.x)
        assert torch.equal(holes[kinds == number], expected.holes)


def test_noise_is_normal_and_shot_noise_is_poisson() -> None:
    x = torch.full((40, 1, 64, 64), 0.5)
    strengths = 0.2 * torch.rand(40, 1, 1, 1, generator=rng()).flatten()
    found = (DAMAGES["noise"](x, rng()).x - x).flatten(1)
    torch.testing.assert_close(found.std(1), strengths, rtol=0.06, atol=2 * STEP)
    assert found.mean().abs() < STEP
    photons = 10 ** (1 + 2 * torch.rand(40, 1, 1, 1, generator=rng()).flatten())
    found = (DAMAGES["shot"](x, rng()).x - x).flatten(1)
    bright = photons > 20  # elsewhere white is often exceeded, and cut
    torch.testing.assert_close(found.var(1)[bright], (0.5 / photons)[bright], rtol=0.1, atol=STEP**2)


def test_blur_is_that_of_scipy() -> None:
    x = pictures()
    widths = 0.5 + 1.5 * torch.rand(6, 1, 1, 1, generator=rng()).flatten()
    for picture, width, found in zip(x, widths.tolist(), DAMAGES["blur"](x, rng()).x, strict=True):
        expected = gaussian_filter(picture.double().numpy(), (0, width, width), mode="nearest", radius=6)
        np.testing.assert_allclose(found.numpy(), expected, atol=0.51 * STEP)


def test_fog_is_light_scattered_over_a_distance() -> None:
    black = DAMAGES["fog"](torch.zeros(50, 3, 20, 31), rng()).x  # A (1 - t)
    white = DAMAGES["fog"](torch.ones(50, 3, 20, 31), rng()).x  # t + A (1 - t)
    seen = white - black  # t
    assert (seen.amax((1, 2, 3)) > 1 - 2 * STEP).all()  # nothing is lost where the distance is 0
    farthest = -seen.amin((1, 2, 3)).log()  # β
    assert 0.5 < farthest.min() < 0.7 < 2.2 < farthest.max() < 2.6
    torch.testing.assert_close(seen[:, :1].expand_as(seen), seen, rtol=0, atol=2.1 * STEP)  # one for all colours
    light = (black / (1 - seen))[(1 - seen) > 0.5]
    assert 0.63 < light.min() < 0.75 < 0.95 < light.max() < 1.02


def test_distance_is_smooth_and_goes_from_near_to_far() -> None:
    found = depth(torch.zeros(20, 3, 40, 24), rng())
    assert found.amin((1, 2, 3)).tolist() == [0] * 20
    assert found.amax((1, 2, 3)).tolist() == pytest.approx([1] * 20)
    assert max(found.diff(dim=2).abs().max(), found.diff(dim=3).abs().max()) < 0.2


def test_dark_is_darker_and_faded_is_greyer_and_flatter() -> None:
    x = pictures(channels=3)
    assert (DAMAGES["dark"](x, rng()).x.mean((1, 2, 3)) < 0.65 * x.mean((1, 2, 3))).all()
    faded = DAMAGES["faded"](x, rng()).x
    chroma = [(of - of.mean(1, keepdim=True)).abs().mean((1, 2, 3)) for of in (faded, x)]
    assert (chroma[0] < 0.65 * chroma[1]).all()
    assert (faded.flatten(1).std(1) < 0.92 * x.flatten(1).std(1)).all()
    grey = DAMAGES["faded"](x[:, :1], rng()).x
    assert (grey.flatten(1).std(1) / x[:, :1].flatten(1).std(1)).max() < 0.92


def test_low_resolution_is_the_means_of_blocks() -> None:
    x = pictures(height=24, width=24)
    torch.testing.assert_close(smaller(x, 3), x.view(6, 4, 8, 3, 8, 3).mean((3, 5)))
    assert smaller(x[..., :23], 2).shape == (6, 4, 12, 12)
    y = DAMAGES["resolution"](x.repeat(8, 1, 1, 1), rng()).x
    generator = rng()
    factors, linear = torch.randint(2, 5, (48,), generator=generator), torch.rand(48, generator=generator) < 0.5
    for found, picture, factor, smooth in zip(y, x.repeat(8, 1, 1, 1), factors.tolist(), linear.tolist(), strict=True):
        small = smaller(picture[None], factor)
        expected = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        if smooth:
            expected = torch.nn.functional.interpolate(small, (24, 24), mode="bilinear")
        torch.testing.assert_close(found, expected[0], rtol=0, atol=0.51 * STEP)
    assert {2, 3, 4} == set(factors.tolist())
    assert 0 < sum(linear) < 48


def test_holes_are_missing_and_all_else_is_kept() -> None:
    x = pictures(200, height=32, width=32).clamp_min(STEP)
    y, holes = DAMAGES["holes"](x, rng())
    assert torch.equal(y, x.masked_fill(holes, 0))
    shares = holes.float().mean((1, 2, 3))
    assert 0 < shares.min() < 0.06 < 0.1 < shares.mean() < 0.3 < shares.max() < 0.8
