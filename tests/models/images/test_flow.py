"""The image flow: the contract, its loss, its steps, codes of pictures, its average, transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.capabilities import Autoencoder
from models.images.flow import BLUEPRINT, ImageFlowLearner, ImageFlowOptions, apart, joined
from models.labels import NONE
from models.learner import Rows, Source, Start, update_generator
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, cloned, digits, same

SMALL = {"width": 4, "code": 8, "steps": 2, "warmup_updates": 4, "replay_slots": 24, "replay_draws": 4}


def options(**changed: Any) -> ImageFlowOptions:
    return ImageFlowOptions.model_validate({**SMALL, **changed})


@dataclass(frozen=True)
class FlowCase(Case):
    """A case whose learner is known to be a flow's."""

    def learner(
        self, seed: int = SEED, device: torch.device | None = None, start: Start | None = None
    ) -> ImageFlowLearner:
        made = super().learner(seed, device, start)
        assert isinstance(made, ImageFlowLearner)
        return made


def case(sources: dict[str, Source] | None = None, size: int = 8, **changed: Any) -> FlowCase:
    return FlowCase(BLUEPRINT, options(**changed), *digits(size), sources=sources or {})


def version(learned: FlowCase, updates: int = 3) -> Source:
    """A version of an image-flow, as a store gives it."""
    state = cloned(learned.learned(updates).capture())
    whole: dict[str, Any] = {"tensors": state.serving, "training": state.training, "meta": state.meta}
    shape = tuple(learned.x.shape[1:])
    return Source("0" * 64, **whole, learner="image-flow", options=learned.options.model_dump(), shape=shape)


CASES = {"balanced": case(), "reservoir, two blocks": case(replay_policy="reservoir", depth=2)}


class TestContract(LearnerContract):
    @pytest.fixture(params=list(CASES.values()), ids=list(CASES))
    def case(self, request: pytest.FixtureRequest) -> Case:
        assert isinstance(request.param, Case)
        return request.param


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 12, 20), (4, 32, 32), (1, 28, 28), (3, 128, 64)])
def test_any_multiple_of_four_and_number_of_channels(shape: tuple[int, ...]) -> None:
    ours = ImageFlowLearner(options(), shape, SEED, CPU)
    x = torch.randint(256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    report = ours.learn(Case(BLUEPRINT, options(), x, "ab").batch(0, 2), update_generator(SEED, 0))
    assert math.isfinite(report.loss)
    assert ours.model.generate([1], ["a"]).shape == (1, *shape)


@pytest.mark.parametrize(("shape", "sides"), [((1, 30, 28), "4, not 30 × 28"), ((1, 100, 100), "8, not 100 × 100")])
def test_a_side_that_does_not_fit_is_refused(shape: tuple[int, ...], sides: str) -> None:
    with pytest.raises(ValueError, match=f"multiples of {sides}"):
        ImageFlowLearner(ImageFlowOptions(), shape, SEED, CPU)


def test_it_learns_digits_and_draws_what_it_is_asked_for() -> None:
    quick: dict[str, Any] = {"learning_rate": 6e-3, "average_records": 300, "warmup_updates": 20}
    one = case(width=16, code=32, steps=4, replay_slots=500, replay_draws=48, **quick)
    ours = one.learner()
    for update in range(240):
        ours.learn(one.batch(16 * update, 16), update_generator(SEED, update))
    means = {c: one.x[[row for row, y in enumerate(one.labels) if y == c]].float().mean(0) for c in "0123456789"}
    hits, spread = 0, []
    for label in means:
        drawn = ours.model.generate(range(5), [label] * 5).float()
        nearest = [min(means, key=lambda c: F.mse_loss(picture, means[c]).item()) for picture in drawn]
        hits += nearest.count(label)
        spread.append(drawn.std(0).mean().item())
    assert hits >= 20  # of 50; chance is 5
    assert min(spread) > 5  # of 255: not one picture a class


def test_the_loss_is_of_straight_lines_before_the_update() -> None:
    """At first nothing comes out of the network: the loss is the mean square of picture less noise."""
    one = case()
    rng = update_generator(SEED, 0)
    torch.rand(8, generator=rng)  # dropped labels
    torch.randn(8, generator=rng)  # times
    noise = torch.randn(8, 1, 8, 8, generator=rng)
    report = one.learner().learn(one.batch(0, labels=[None] * 8), update_generator(SEED, 0))
    assert report.loss == pytest.approx((joined(one.x[:8]) - noise).square().mean().item(), rel=1e-5)


class Straight(torch.nn.Module):
    """A network for one picture a class: (picture - x) / (1 - t), the direction of every line that leads there."""

    def __init__(self, pictures: Tensor) -> None:
        super().__init__()
        self.pictures = pictures  # (1 + K, C, H, W): of no label, then of each class

    def forward(self, x: Tensor, t: Tensor, numbers: Tensor) -> Tensor:
        return (self.pictures[numbers - NONE] - x) / (1 - t[:, None, None, None])


def test_steps_follow_what_the_network_says() -> None:
    """Where lines are straight any number of steps leads to their end; guidance goes beyond it, away from no label."""
    pictures = torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.2), torch.full((1, 8, 8), -0.4)])
    z, numbers = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([NONE, 0, 1])
    for steps in (1, 2, 5):
        for guidance in (1.0, 1.5):
            model = case(steps=steps, guidance=guidance).learner().model
            model.velocity = Straight(pictures)  # type: ignore[assignment]
            expected = apart(torch.tensor([0, 0.2, -0.4])[:, None, None, None] * guidance).expand(3, 1, 8, 8)
            torch.testing.assert_close(model.shades(z, numbers), expected)


def test_the_code_of_a_picture_is_drawn_as_that_picture() -> None:
    one = case(steps=4)
    model = one.learned(40).model
    assert isinstance(model, Autoencoder)
    x, labels = one.x[:3], [None, *model.classes[:2]]
    mean, deviation = model.encode(x, labels)
    assert mean.shape == deviation.shape == (3, 64)
    assert (model.draw(mean, labels).int() - x.int()).abs().max() <= 2
    assert torch.equal(model.encode(x[1:2], labels[1:2])[0], mean[1:2])


def test_what_is_transparent_has_no_colour_and_what_is_not_comes_back() -> None:
    x = torch.tensor([[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]], dtype=torch.uint8)[..., None, None]
    assert (joined(x)[1] == -1).all()
    back = (255 * apart(joined(x))).round()
    assert torch.equal(back[::2], x[::2].float())


def test_served_is_the_average() -> None:
    one = case(average_records=2)
    ours = one.learner()
    name, seen = "velocity.stem.weight", 0
    expected = ours.model.state_dict()[name].clone()
    for update in range(12):
        ours.learn(one.batch(8 * update), update_generator(SEED, update))
        seen += 8
        kept = 0.5 ** (8 / min(2, seen / 10))
        expected = kept * expected + (1 - kept) * ours._learning.get_parameter(name).detach()
    torch.testing.assert_close(ours.model.state_dict()[name], expected)


def test_each_class_weighs_the_same_in_an_update() -> None:
    even, uneven = (case(replay_policy=policy).learner() for policy in ("balanced", "reservoir"))
    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    weights = [ours._rows(x, [0, 0, 0, 1], update_generator(SEED, 0))[2].tolist() for ours in (even, uneven)]
    assert weights == [pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2]), pytest.approx([0.25] * 4)]


def test_it_starts_as_its_source_and_a_frozen_block_stays() -> None:
    source = version(case())
    one = case({"source": source}, source="digits@3", freeze=("stem", "downs.0"))
    ours = one.learner()
    theirs = BLUEPRINT.model(options(), (1, 8, 8), source.meta)
    theirs.load_state_dict(source.tensors)
    labels = [None, *ours.model.classes[:3]]
    assert torch.equal(ours.model.generate(range(4), labels), theirs.generate(range(4), labels))  # type: ignore[attr-defined]
    before = {name: p.detach().clone() for name, p in ours._learning.named_parameters()}
    one.learn(ours, range(3))
    for name, parameter in ours._learning.named_parameters():
        still = name.startswith(("velocity.stem.", "velocity.downs.0."))
        assert torch.equal(parameter, before[name]) == still, name
    ours.capture()
    rows = ours.capture().serving["velocity.stem.weight"]
    assert isinstance(rows, Rows)
    assert rows.changed is not None
    assert not len(rows.changed)
    with pytest.raises(ValueError, match="'conditions' is no block"):
        case(source="digits@3", freeze=("conditions",)).learner()


def test_the_sources_drawings_stay_over_a_restart() -> None:
    changed: dict[str, Any] = {"source": "digits@3", "source_weight": 0.5, "source_samples": 12, "source_draws": 4}
    one = case({"source": version(case())}, **changed)
    ours = one.learner()
    names = list(ours.model.classes)
    drawn = ours.model.generate(range(12), [names[row % len(names)] for row in range(12)])
    one.learn(ours, range(3))
    state = cloned(ours.capture())
    assert torch.equal(state.training["source/x"], drawn)  # type: ignore[arg-type]
    restarted = one.restored(state)  # without the source
    assert same(restarted.capture(), state)
    assert one.learn(restarted, range(3, 9)) == one.learn(ours, range(3, 9))
    _, y, w = ours._rows(one.x[:8], [0] * 8, update_generator(SEED, 9))
    assert (len(y), w[-4:].tolist()) == (16, [0.125] * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learner": "image-vae"}, "image-vae, not by image-flow"),
        ({"shape": (3, 8, 8)}, r"\(3, 8, 8\)"),
        ({"options": options(code=9).model_dump()}, "code is 9"),
        ({"tensors": {}}, "is in only one"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    whole = version(case(), 1)
    fields: Sequence[str] = ("digest", "tensors", "training", "learner", "options", "shape", "meta")
    source = Source(**{**{name: getattr(whole, name) for name in fields}, **change})
    with pytest.raises(ValueError, match=message):
        case({"source": source}, source="digits").learner()
