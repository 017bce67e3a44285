"""The image restorer: the contract, its loss and scores by hand, that it learns, what it keeps, any size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from models.capabilities import Restorer
from models.images.degradations import KINDS, damaged
from models.images.restorer import BLUEPRINT, ImageRestorerLearner, ImageRestorerOptions, fill, psnr, ssim
from models.learner import State, structural_fields, update_generator
from models.network import pixels
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, cloned, digits

SMALL = {"width": 8, "depth": 1, "replay_slots": 24, "replay_draws": 4}


def case(**options: object) -> Case:
    return Case(BLUEPRINT, ImageRestorerOptions.model_validate({**SMALL, **options}), *digits(16), has_classes=False)


def made(one: Case) -> ImageRestorerLearner:
    ours = one.learner()
    assert isinstance(ours, ImageRestorerLearner)
    return ours


def random(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class TestContract(LearnerContract):
    @pytest.fixture(
        params=[{}, {"replay_slots": 0, "average_records": 0, "damages": ("fog", "holes")}], ids=["", "bare"]
    )
    def case(self, request: pytest.FixtureRequest) -> Case:
        return case(**request.param)


def test_the_report_is_of_the_damage_drawn_and_from_before_the_update() -> None:
    one = case()
    ours = made(one)
    one.learn(ours, range(5))
    network, batch, rng = copy.deepcopy(ours._learning), one.batch(40), update_generator(SEED, 5)
    report = ours.learn(batch, rng)

    rng = update_generator(SEED, 5)
    slots = torch.randint(24, (4,), generator=rng)
    x = pixels(torch.cat([batch.x, one.x[:0]]))
    assert len(slots) == 4
    # the replayed four are damaged in the same call: they are taken from a memory that learned the same
    other = made(one)
    one.learn(other, range(5))
    x = torch.cat([x, pixels(other._memory.columns()["x"][slots])])
    kinds = torch.randint(len(KINDS), (12,), generator=rng)
    y, holes = damaged(x, kinds, rng)
    with torch.no_grad():
        restored, found = network(y, kinds, holes), network.diagnose(y, holes).argmax(1)
    errors = (x - restored)[:8]
    assert report.loss == pytest.approx(((errors**2).mean((1, 2, 3)) + 1e-4).sqrt().mean().item())
    assert report.metrics["psnr_db"] == pytest.approx(psnr(x, restored.clamp(0, 1))[:8].mean().item(), rel=1e-5)
    assert report.metrics["ssim"] == pytest.approx(ssim(x, restored.clamp(0, 1))[:8].mean().item(), rel=1e-5)
    assert report.metrics["kind_accuracy"] == (found == kinds)[:8].float().mean().item()
    assert report.metrics["input_psnr_db"] == pytest.approx(psnr(x, y)[:8].mean().item(), rel=1e-5)


def test_it_learns_to_undo_damage_that_is_named_and_that_is_not() -> None:
    one = case(depth=2, damages=("holes", "fog"), replay_draws=16, average_records=500)
    ours = made(one)
    for update in range(50):
        ours.learn(one.batch(16 * update, 16), update_generator(SEED, update))
    x = pixels(one.x[1500:1530])
    for kind in ours.model.kinds:
        y, holes = damaged(x, torch.full((30,), KINDS.index(kind)), torch.Generator().manual_seed(1))
        taken = (255 * y).round().to(torch.uint8)
        told, blind = (pixels(ours.model.restore(taken, [name] * 30, holes)) for name in (kind, None))
        for found in (told, blind):
            assert psnr(x, found).mean() > psnr(x, y).mean() + 1, kind
            assert ssim(x, found).mean() > ssim(x, y).mean(), kind


def test_what_is_learned_of_one_kind_changes_no_other() -> None:
    one = case(damages=("noise", "fog"))
    ours = made(one)
    one.learn(ours, range(3))
    later = case(damages=("fog", "blur"))
    other = made(later)
    other.restore(cloned(ours.capture()))
    later.learn(other, range(3, 6))
    x, holes = pixels(one.x[:4]), torch.zeros(4, 1, 16, 16, dtype=torch.bool)
    for kind, same in (("noise", True), ("fog", False), ("blur", False)):
        number = torch.full((4,), KINDS.index(kind))
        with torch.no_grad():
            before, after = (each._learning(x, number, holes) for each in (ours, other))
        assert torch.equal(before, after) == same, kind


def test_blind_is_as_named_by_the_recogniser() -> None:
    one = case(damages=("holes", "fog"), average_records=0)
    ours = made(one)
    one.learn(ours, range(5))
    x, holes = one.x[:20], torch.zeros(20, 1, 16, 16, dtype=torch.bool)
    holes[::2, :, 3:9, 4:7] = True
    logits = ours.model.diagnose(pixels(x), holes)
    assert set(logits.argmax(1).tolist()) <= {KINDS.index("holes"), KINDS.index("fog")}
    assert torch.isneginf(logits[:, KINDS.index("noise")]).all()
    found: list[str | None] = [KINDS[number] for number in logits.argmax(1).tolist()]
    assert torch.equal(ours.model.restore(x, [None] * 20, holes), ours.model.restore(x, found, holes))


def test_it_starts_as_the_identity() -> None:
    for sides in ((16, 16), (21, 18)):
        x = random(3, 1, *sides)
        assert torch.equal(made(case(depth=4)).model.restore(x, ["noise", "fog", None]), x)


def test_only_what_is_missing_is_filled() -> None:
    one = case(damages=("holes", "noise"), learning_rate=0.05)
    ours = made(one)
    one.learn(ours, range(6))
    x, holes = random(2, 1, 21, 18), torch.zeros(2, 1, 21, 18, dtype=torch.bool)
    holes[0, :, 3:9, 4:7] = holes[1, :, :, 17] = True
    found = ours.model.restore(x, ["holes", "holes"], holes)
    assert torch.equal(found[~holes], x[~holes])
    assert not torch.equal(found[holes], x[holes])
    assert torch.equal(ours.model.restore(x.masked_fill(holes, 77), ["holes", "holes"], holes), found)
    assert torch.equal(ours.model.restore(x, ["holes", "holes"]), x)
    assert not torch.equal(ours.model.restore(x, ["noise", "noise"], holes)[~holes], x[~holes])


def test_holes_are_filled_by_what_lies_around_them() -> None:
    generator = torch.Generator().manual_seed(0)
    x, known = torch.rand(4, 3, 13, 16, generator=generator), torch.rand(4, 1, 13, 16, generator=generator) < 0.4
    known[3] = False
    filled = fill(x, known.float())
    kept = known.expand_as(x)
    assert torch.equal(filled[kept], x[kept])
    assert filled[:3].min() >= x[kept].min()
    assert filled[:3].max() <= x[kept].max()
    assert torch.equal(filled[3], torch.zeros(3, 13, 16))  # nothing is known
    flat = fill(torch.full_like(x, 0.3), known.float())[:3]
    torch.testing.assert_close(flat, torch.full_like(flat, 0.3))
    assert torch.equal(fill(x.masked_fill(~kept, 5.0), known.float()), filled)


def test_a_ramp_goes_on_through_a_hole() -> None:
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    known = torch.ones(1, 1, 16, 16)
    known[:, :, 4:9, 6:11] = 0
    torch.testing.assert_close(fill(ramp, known), ramp, atol=0.01, rtol=0)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 17, 40), (4, 33, 21)])
def test_any_size_and_number_of_channels_and_each_picture_by_itself(shape: tuple[int, ...]) -> None:
    options = ImageRestorerOptions.model_validate({**SMALL, "depth": 3, "learning_rate": 0.02})
    ours, x = ImageRestorerLearner(options, shape, SEED, CPU), random(4, *shape)
    for update in range(3):
        ours.learn(Case(BLUEPRINT, options, x, "abcd").batch(0, 4), update_generator(SEED, update))
    model = ours.model
    assert isinstance(model, Restorer)
    for size in (shape[1:], (16, 29)):
        x = random(3, shape[0], *size)
        kinds, holes = ["fog", None, "holes"], random(3, 1, *size) < 50
        together = model.restore(x, kinds, holes)
        assert (together.shape, together.dtype) == (x.shape, torch.uint8)
        assert not torch.equal(together, x)
        for row in range(3):
            alone = model.restore(x[row : row + 1], kinds[row : row + 1], holes[row : row + 1])
            assert torch.equal(alone[0], together[row])
    assert model.restore(x[:0], []).shape == (0, shape[0], 16, 29)


def test_what_was_not_taught_is_refused() -> None:
    ours = made(case(damages=("noise", "fog")))
    assert list(ours.model.kinds) == ["noise", "fog"]
    with pytest.raises(KeyError, match="blur"):
        ours.model.restore(random(2, 1, 16, 16), ["fog", "blur"])
    with pytest.raises(ValueError, match="16 pixels on each side, not 12 × 16"):
        ImageRestorerLearner(ImageRestorerOptions(), (1, 12, 16), SEED, CPU)


def test_another_damage_may_be_taught_later() -> None:
    assert "damages" not in structural_fields(ImageRestorerOptions)
    state = cloned(case(damages=("fog",)).learned().capture())
    one = case(damages=("fog", "blur"))
    ours = made(one)
    ours.restore(state)
    one.learn(ours, range(6, 8))
    ours.model.restore(random(1, 1, 16, 16), ["blur"])


def test_what_is_served_is_the_average_of_what_learns() -> None:
    one = case(average_records=1)
    ours = made(one)
    expected = {name: p.detach().clone() for name, p in ours._learning.named_parameters()}
    for update in range(30):
        ours.learn(one.batch(update, 1), update_generator(SEED, update))
        half_life = min(1, (update + 1) / 20)
        for name, p in ours._learning.named_parameters():
            expected[name] += (1 - 0.5 ** (1 / half_life)) * (p.detach() - expected[name])
    for name, p in ours.model.named_parameters():
        assert not p.requires_grad
        torch.testing.assert_close(p, expected[name])
    assert not torch.equal(*(each.recogniser(torch.ones(1, 2, 16, 16)) for each in (ours.model, ours._learning)))


def test_labels_are_ignored() -> None:
    one = case()
    ours = made(one)
    assert not ours.refuses(["a", None, "b"])
    losses = [
        made(one).learn(one.batch(0, 2, labels), update_generator(SEED, 0)).loss for labels in (["a", "b"], [None] * 2)
    ]
    assert losses[0] == losses[1]
    state = ours.capture()
    assert isinstance(state, State)
    assert state.meta["classes"] == []
