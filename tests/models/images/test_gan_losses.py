"""The GAN's losses, penalties and sign of collapse against their formulas; augmentations against a recount."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.images.augmentation import CHANGES, augmented, coloured, cut, translated
from models.images.gan_losses import LossName, Spread, discriminator_losses, generator_losses, gradient_penalties

REAL, DRAWN = torch.tensor([2.0, -0.5, 0.3]), torch.tensor([-1.0, 0.7, 0.3])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def test_relativistic_is_the_cross_entropy_of_telling_which_of_the_two_is_real() -> None:
    both = torch.stack([REAL, DRAWN], 1)  # (B, 2)
    first, second = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    ours = discriminator_losses("relativistic", REAL, DRAWN)
    torch.testing.assert_close(ours, F.cross_entropy(both, first, reduction="none"))
    ours = generator_losses("relativistic", REAL, DRAWN)
    torch.testing.assert_close(ours, F.cross_entropy(both, second, reduction="none"))


def test_minimax_is_the_cross_entropy_of_real_against_drawn() -> None:
    def cross_entropy(scores: torch.Tensor, truth: float) -> torch.Tensor:
        return F.binary_cross_entropy(scores.sigmoid(), torch.full((3,), truth), reduction="none")

    ours = discriminator_losses("minimax", REAL, DRAWN)
    torch.testing.assert_close(ours, cross_entropy(REAL, 1.0) + cross_entropy(DRAWN, 0.0))
    torch.testing.assert_close(generator_losses("minimax", REAL, DRAWN), cross_entropy(DRAWN, 1.0))


def test_hinge_stops_at_its_margin() -> None:
    assert discriminator_losses("hinge", REAL, DRAWN).tolist() == pytest.approx([0.0, 3.2, 2.0])
    assert generator_losses("hinge", REAL, DRAWN).tolist() == pytest.approx([1.0, -0.7, -0.3])


@pytest.mark.parametrize("name", ["relativistic", "minimax", "hinge"])
def test_both_sides_pull_the_scores_where_they_should(name: LossName) -> None:
    real, drawn = REAL.clone().requires_grad_(), DRAWN.clone().requires_grad_()
    slopes = torch.autograd.grad(discriminator_losses(name, real, drawn).sum(), [real, drawn])
    assert (slopes[0] <= 0).all()
    assert (slopes[1] >= 0).all()
    (slope,) = torch.autograd.grad(generator_losses(name, REAL, drawn).sum(), drawn)
    assert (slope < 0).all()


def test_penalties_are_the_squared_slopes_and_their_gradient_is_right() -> None:
    """Against one backward pass a record, and finite differences of the weights."""
    convolution = nn.Conv2d(2, 3, 3)
    network = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(12, 1)).double()
    for number, parameter in enumerate(network.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=rng(number), dtype=torch.float64)
    x = torch.randn(4, 2, 4, 4, generator=rng(9), dtype=torch.float64).requires_grad_()
    penalties = gradient_penalties(network(x).squeeze(1), [x])
    for row in range(4):
        (slope,) = torch.autograd.grad(network(x[row : row + 1]).sum(), x)
        torch.testing.assert_close(penalties[row], slope[row].square().sum())
    weight = convolution.weight
    (gradient,) = torch.autograd.grad(penalties.sum(), [weight])

    def total(step: float) -> float:
        with torch.no_grad():
            weight[1, 0, 2, 1] += step
        found = gradient_penalties(network(x).squeeze(1), [x]).sum().item()
        with torch.no_grad():
            weight[1, 0, 2, 1] -= step
        return found

    assert gradient[1, 0, 2, 1].item() == pytest.approx((total(1e-5) - total(-1e-5)) / 2e-5, rel=1e-6)


def test_penalties_of_several_views_add_up() -> None:
    one, other = torch.ones(2, 3, requires_grad=True), torch.ones(2, 1, 2, 2, requires_grad=True)
    scores = (one * torch.tensor([1.0, 2.0, 3.0])).sum(1) + 5 * other.sum((1, 2, 3))
    assert gradient_penalties(scores, [one, other]).tolist() == [14 + 100, 14 + 100]


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(count, 1, 4, 4, generator=rng(seed)) - 1


def test_spread_compares_pictures_of_one_label_alone() -> None:
    x, numbers = pictures(6), torch.tensor([1, 0, 1, -1, 0, 1])
    spread = Spread()
    spread.update(x, 0.5 * x, numbers)
    spread.update(x, x, torch.arange(6))  # no two of a label: nothing to see
    means = x.mean((1, 2, 3))  # of 4 × 4 pixels, one mean
    expected = {0: [abs(means[1] - means[4])], 1: [abs(means[0] - means[2]), abs(means[2] - means[5])]}
    found = {label: values for label, *values in spread.meta()}
    assert found.keys() == expected.keys()
    for label, apart in expected.items():
        real = torch.stack(apart).mean().item()
        pairs, real_traits, drawn_traits = found[label]
        assert [pairs, real_traits[0], drawn_traits[0]] == pytest.approx([len(apart), real, 0.5 * real])


def test_a_collapsed_label_among_others_is_noticed_after_a_horizon_and_a_recovered_one_too() -> None:
    spread, numbers = Spread(), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    same = pictures(1).expand(4, 1, 4, 4)
    for update in range(-(-Spread.HORIZON // 3)):
        assert spread.share is None
        assert not spread.collapsed(0.25)
        spread.update(pictures(8, update), torch.cat([same, pictures(4, -1 - update)]), numbers)
    assert spread.share == pytest.approx(0, abs=1e-6)
    assert spread.collapsed(0.25)
    assert not spread.collapsed(0.0)
    restored = Spread()
    restored.restore(spread.meta())
    assert restored.meta() == spread.meta()
    for update in range(Spread.HORIZON):
        restored.update(pictures(8, update), pictures(8, -1 - update), numbers)
    assert not restored.collapsed(0.25)


def strokes(count: int, seed: int, weight: float | None = None, slant: float | None = None) -> torch.Tensor:
    """(count, 1, 16, 16): a bar each, anywhere, of some weight and slant."""
    place, wide, tilt = torch.rand(3, count, 1, 1, generator=rng(seed))
    wide, tilt = (3 * wide + 1) if weight is None else weight, (tilt - 0.5) if slant is None else slant
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    away = (x - 4 - 8 * place - tilt * (y - 8)).abs()
    drawn: torch.Tensor = 2 * (wide - away).clamp(0, 1) - 1
    return drawn[:, None]


@pytest.mark.parametrize("same", [{"weight": 2.5}, {"weight": 2.5, "slant": 0.2}], ids=str)
def test_drawings_of_one_weight_and_slant_have_collapsed_wherever_they_are(same: dict[str, float]) -> None:
    """As a GAN of letters had: over pixels alone, they are as far apart as real ones."""
    healthy, narrow, numbers = Spread(), Spread(), torch.zeros(16, dtype=torch.int64)
    for update in range(20):
        healthy.update(strokes(16, update), strokes(16, -1 - update), numbers)
        narrow.update(strokes(16, update), strokes(16, -1 - update, **same), numbers)
    (_, _, real, drawn), *_ = narrow.meta()
    assert drawn[0] > 0.6 * real[0]
    assert narrow.collapsed(0.4)
    assert not healthy.collapsed(0.8)


def letters(count: int, seed: int, slant: float | None = None) -> torch.Tensor:
    """(count, 1, 16, 16): a bar each, anywhere, of some weight and slant, and another one across it."""
    place, wide = torch.rand(2, count, 1, 1, 1, generator=rng(seed + 1000))
    across = 2 * (1 + 3 * wide - (torch.arange(16.0)[:, None] - 4 - 8 * place).abs()).clamp(0, 1) - 1
    return torch.maximum(strokes(count, seed, slant=slant), across)


@pytest.mark.parametrize("slant", [0.0, 0.2])
def test_one_slant_in_all_drawings_is_a_collapse_though_they_differ_in_all_else(slant: float) -> None:
    healthy, upright, numbers = Spread(), Spread(), torch.zeros(16, dtype=torch.int64)
    for update in range(20):
        healthy.update(letters(16, update), letters(16, -1 - update), numbers)
        upright.update(letters(16, update), letters(16, -1 - update, slant), numbers)
    share = upright.share
    assert share is not None
    assert share > 0.5
    assert upright.collapsed(0.4)
    assert not healthy.collapsed(0.8)


def test_a_version_of_before_starts_anew() -> None:
    spread = Spread()
    spread.restore([[3, 500, 0.5, 0.1]])
    assert spread.share is None


def test_a_real_stream_of_one_picture_is_no_collapse() -> None:
    spread, same = Spread(), pictures(1).expand(8, 1, 4, 4)
    for _ in range(Spread.HORIZON):
        spread.update(same, same, torch.zeros(8, dtype=torch.int64))
    assert not spread.collapsed(0.25)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 24), (4, 32, 16)])
def test_augmentations_keep_the_shape_and_let_gradients_through(shape: tuple[int, ...]) -> None:
    x = torch.randn(5, *shape, generator=rng()).requires_grad_()
    changed = augmented(x, tuple(CHANGES), rng(1))
    assert changed.shape == x.shape
    assert torch.equal(changed, augmented(x, tuple(CHANGES), rng(1)))
    assert not torch.equal(changed, augmented(x, tuple(CHANGES), rng(2)))
    (gradient,) = torch.autograd.grad(changed.square().sum(), x)
    assert (gradient != 0).any((1, 2, 3)).all()
    assert augmented(x, (), rng()) is x


def test_translation_moves_whole_pictures_by_whole_pixels() -> None:
    x = pictures(40).repeat_interleave(4, 2).repeat_interleave(6, 3)  # (40, 1, 16, 24)
    moved = translated(x, rng())
    seen = set()
    for before, after in zip(x[:, 0], moved[:, 0], strict=True):
        found = []
        for down in range(-2, 3):
            for right in range(-3, 4):
                rolled = F.pad(before, (3, 3, 2, 2))[2 - down : 18 - down, 3 - right : 27 - right]
                found += [(down, right)] if torch.equal(rolled, after) else []
        assert len(found) == 1
        seen.add(found[0])
    assert {down for down, _ in seen} == set(range(-2, 3))
    assert {right for _, right in seen} == set(range(-3, 4))


def test_cutout_takes_half_of_each_side() -> None:
    gone = cut(torch.ones(300, 3, 16, 24), rng()) == 0
    assert (gone == gone[:, :1]).all()
    heights, widths = gone[:, 0].any(2).sum(1), gone[:, 0].any(1).sum(1)
    assert torch.equal(heights * widths, gone[:, 0].sum((1, 2)))
    assert [int(n) for n in (heights.min(), heights.max(), widths.min(), widths.max())] == [4, 8, 6, 12]


def test_colour_keeps_its_bounds_and_alpha() -> None:
    x = torch.rand(200, 4, 8, 8, generator=rng()) - 0.5
    changed = coloured(x, rng(1))
    assert torch.equal(changed[:, 3], x[:, 3])
    shift = (changed[:, :3] - x[:, :3]).mean((1, 2, 3))
    assert -0.5 <= shift.min() < -0.4 < 0.4 < shift.max() <= 0.5
    before, after = (each[:, :3].mean(1).flatten(1).std(1) for each in (x, changed))
    contrast = after / before
    assert 0.5 <= contrast.min() < 0.6 < 1.4 < contrast.max() <= 1.5001
    colourfulness = (changed[:, :3] - changed[:, :3].mean(1, keepdim=True)).std((1, 2, 3))
    saturation = colourfulness / (x[:, :3] - x[:, :3].mean(1, keepdim=True)).std((1, 2, 3)) / contrast
    assert 0 <= saturation.min() < 0.2 < 1.8 < saturation.max() <= 2.0001
