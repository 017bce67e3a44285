"""Warping: how far each change goes, what is exact, randomness, and a classifier that learns warped pictures."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from models.images.classifier import BLUEPRINT, ImageClassifierOptions
from models.images.warping import NONE, Warp, warped
from models.learner import update_generator
from tests.models.contract import SEED, Case, LearnerContract, digits

AUGMENT = {"turn_degrees": 15, "shift_pixels": 1, "scale_percent": 10, "mirror": True}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, *shape: int) -> Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=rng(1))


def blob(height: int, width: int, top: int, left: int) -> Tensor:
    """A dark picture with four bright pixels."""
    x = torch.zeros(1, 1, height, width, dtype=torch.uint8)
    x[..., top : top + 2, left : left + 2] = 200
    return x.repeat(300, 1, 1, 1)


def centres(x: Tensor) -> Tensor:
    """x (B, 1, H, W) → where the light is, from the centre of the picture: (B, 2), down and right."""
    weights = x[:, 0].double()
    total = weights.sum((1, 2))
    down, right = (torch.arange(side) - (side - 1) / 2 for side in x.shape[2:])
    return torch.stack([(weights.sum(2) @ down.double()) / total, (weights.sum(1) @ right.double()) / total], 1)


def test_without_a_warp_it_is_the_picture_itself_and_no_number_is_drawn() -> None:
    x, generator = noise(3, 1, 9, 7), rng()
    assert warped(x, NONE, generator) is x
    assert torch.equal(generator.get_state(), rng().get_state())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 47), (4, 1, 5)])
def test_a_mirrored_picture_is_exact(shape: tuple[int, ...]) -> None:
    x = noise(40, *shape)
    found = warped(x, Warp(mirror=True), rng())
    same = (found == x).flatten(1).all(1)
    turned = (found == x.flip(3)).flatten(1).all(1)
    assert bool((same | turned).all())
    assert 8 < int(turned.sum()) < 32


def test_pictures_move_as_far_as_they_may_in_every_direction() -> None:
    x = blob(20, 30, 9, 14)
    moved = centres(warped(x, Warp(shift_pixels=3), rng())) - centres(x)
    assert moved.abs().max() < 3.1
    assert (moved.min(0).values < -2.5).all()
    assert (moved.max(0).values > 2.5).all()


@pytest.mark.parametrize(("top", "left"), [(3, 14), (9, 24)])
def test_pictures_turn_around_their_centre_whatever_their_shape(top: int, left: int) -> None:
    x = blob(20, 30, top, left)
    before, after = centres(x), centres(warped(x, Warp(turn_degrees=20), rng()))
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), rtol=0.03, atol=0.05)
    angle = torch.rad2deg(torch.atan2(after[:, 0], after[:, 1]) - torch.atan2(before[:, 0], before[:, 1]))
    assert angle.abs().max() < 21
    assert angle.min() < -15
    assert angle.max() > 15


def test_pictures_grow_and_shrink_from_their_centre() -> None:
    x = blob(20, 30, 9, 4)
    times = centres(warped(x, Warp(scale_percent=20), rng()))[:, 1] / centres(x)[:, 1]
    assert 0.79 < times.min() < 0.85
    assert 1.15 < times.max() < 1.21


def test_what_is_uncovered_repeats_the_border() -> None:
    x = torch.full((50, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(warped(x, Warp(turn_degrees=45, shift_pixels=5, scale_percent=50), rng()), x)


def test_each_picture_has_numbers_of_its_own_and_they_are_those_of_the_generator() -> None:
    x, warp = noise(1, 1, 16, 16).repeat(5, 1, 1, 1), Warp.model_validate(AUGMENT)
    found = warped(x, warp, rng())
    assert torch.equal(found, warped(x, warp, rng()))
    assert not torch.equal(found, warped(x, warp, rng(7)))
    assert not torch.equal(found[0], found[1])


def test_bounds_that_make_no_sense_are_refused() -> None:
    for name, value in (("turn_degrees", -1), ("shift_pixels", -1), ("scale_percent", 100), ("flip", True)):
        with pytest.raises(ValidationError, match=name):
            Warp.model_validate({name: value})


def case(**options: object) -> Case:
    settings = {"width": 8, "hidden": 16, "replay_slots": 24, "replay_draws": 4, "augment": AUGMENT, **options}
    return Case(BLUEPRINT, ImageClassifierOptions.model_validate(settings), *digits())


class TestContract(LearnerContract):
    """What is predicted is the record as it is: the contract compares it with what the served model says."""

    @pytest.fixture(params=[0.0, 0.9], ids=["learning", "averaged"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        return case(average=request.param)


def test_what_is_learned_is_warped_and_what_is_kept_is_not() -> None:
    one, plain = case(), case(augment={})
    ours, theirs = one.learner(), plain.learner()
    batch = one.batch(0)
    assert ours.learn(batch, update_generator(SEED, 0)).loss == theirs.learn(batch, update_generator(SEED, 0)).loss
    for learner in (ours, theirs):
        learner.learn(one.batch(8), update_generator(SEED, 1))  # the head was of zeros before
    weights, others = ours.capture(), theirs.capture()
    assert not torch.equal(weights.serving["dense.weight"], others.serving["dense.weight"])  # type: ignore[arg-type]
    kept = ours.capture().training["memory/x"].tensor[:8]  # type: ignore[union-attr]
    assert sorted(kept.flatten(1).tolist()) == sorted(batch.x.flatten(1).tolist())
