"""The image GAN: the contract, its two steps, its average, its alarm, transfer and frozen features."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from models.images import classifier as image_classifier
from models.images.gan import BLUEPRINT, ImageGanLearner, ImageGanOptions
from models.images.gan_losses import Spread
from models.learner import Rows, Source, Start, State, update_generator
from models.network import pixels
from tests.device import CPU, OTHER
from tests.models.contract import SEED, Case, LearnerContract, cloned, digits, same

SMALL = {
    "penalty_every": 1,
    "width": 4,
    "latent": 4,
    "label_dim": 4,
    "hidden": 8,
    "replay_slots": 24,
    "replay_draws": 4,
}
CLASSIFIER = image_classifier.ImageClassifierOptions(width=8, hidden=16, replay_slots=0)
FEATURES = {"source": "clothes@3", "layers": ["0", "1"]}


def options(**changed: Any) -> ImageGanOptions:
    return ImageGanOptions.model_validate({**SMALL, **changed})


@dataclass(frozen=True)
class GanCase(Case):
    """A case whose learner is known to be a GAN's."""

    def learner(
        self, seed: int = SEED, device: torch.device | None = None, start: Start | None = None
    ) -> ImageGanLearner:
        made = super().learner(seed, device, start)
        assert isinstance(made, ImageGanLearner)
        return made


def case(sources: dict[str, Source] | None = None, size: int = 8, **changed: Any) -> GanCase:
    return GanCase(BLUEPRINT, options(**changed), *digits(size), sources=sources or {})


def version(learned: GanCase, updates: int = 3) -> Source:
    """A version of an image-gan, as a store gives it."""
    ours = learned.learned(updates)
    state = cloned(ours.capture())
    whole: dict[str, Any] = {"tensors": state.serving, "training": state.training, "meta": state.meta}
    shape = tuple(learned.x.shape[1:])
    return Source("0" * 64, **whole, learner="image-gan", options=learned.options.model_dump(), shape=shape)


def classifier() -> Source:
    """A version of an image-classifier for 8 × 8 pictures."""
    model = image_classifier.learner(CLASSIFIER, (1, 8, 8), SEED, CPU).model
    tensors = model.state_dict()
    return Source("1" * 64, tensors, learner="image-classifier", options=CLASSIFIER.model_dump(), shape=(1, 8, 8))


CASES = {
    "relativistic": case(augmentation=("colour", "translation", "cutout"), replay_policy="balanced"),
    "hinge on features": case(
        {"features_source": classifier()}, features=FEATURES, loss="hinge", penalty_every=3, replay_slots=0
    ),
}


class TestContract(LearnerContract):
    @pytest.fixture(params=list(CASES.values()), ids=list(CASES))
    def case(self, request: pytest.FixtureRequest) -> Case:
        assert isinstance(request.param, Case)
        return request.param


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 12, 20), (4, 32, 32), (1, 28, 28), (3, 128, 64)])
def test_any_multiple_of_four_and_number_of_channels(shape: tuple[int, ...]) -> None:
    ours = ImageGanLearner(options(), shape, SEED, CPU)
    x = torch.randint(256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    report = ours.learn(Case(BLUEPRINT, options(), x, "ab").batch(0, 2), update_generator(SEED, 0))
    assert all(math.isfinite(value) for value in report.metrics.values())
    assert ours.model.generate([1], ["a"]).shape == (1, *shape)
    assert max(ours.model.base[1:]) <= 8 or ours.model.base[1] % 2 or ours.model.base[2] % 2


def test_a_side_that_is_no_multiple_of_four_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4, not 30 × 28"):
        ImageGanLearner(ImageGanOptions(), (1, 30, 28), SEED, CPU)


def test_it_learns_digits_and_draws_what_it_is_asked_for() -> None:
    one = case(width=8, latent=16, hidden=32, label_dim=16, replay_slots=500, replay_draws=48, learning_rate=2e-3)
    ours = one.learner()
    for update in range(120):
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


def first_update(ours: ImageGanLearner, one: GanCase) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of real and drawn pictures in the first update on eight records without labels, by another way."""
    rng = update_generator(SEED, 0)
    torch.rand(8, generator=rng)  # dropped labels
    z = torch.randn(8, ours.options.latent, generator=rng)
    none = torch.full((8,), -1)
    discriminator, generator = ours._networks["discriminator"], ours._networks["generator"]
    real = discriminator(ours._views(2 * pixels(one.batch(0).x) - 1), none)
    return real, discriminator(ours._views(generator(z, none)), none)


def test_the_reported_loss_is_the_discriminators_before_the_update() -> None:
    one = case()
    ours = one.learner()
    real, drawn = first_update(ours, one)
    report = ours.learn(one.batch(0, labels=[None] * 8), update_generator(SEED, 0))
    assert report.loss == pytest.approx(F.softplus(drawn - real).mean().item(), rel=1e-5)
    assert report.metrics["discriminator_loss"] == report.loss
    assert set(report.metrics) == {"discriminator_loss", "generator_loss", "gradient_penalty"}


def test_each_side_moves_by_its_own_gradient_alone() -> None:
    """With Adam's first step the sign of the gradient is all that counts: it is recomputed by plain autograd."""
    one = case(penalty=0.0, betas=(0.0, 0.99))
    ours = one.learner()
    discriminator, generator = ours._networks["discriminator"], ours._networks["generator"]
    before = {name: p.detach().clone() for name, p in ours._weights().items()}
    real, drawn = first_update(ours, one)
    named = dict(discriminator.named_parameters())
    gradients = torch.autograd.grad(F.softplus(drawn - real).mean(), list(named.values()))
    ours.learn(one.batch(0, labels=[None] * 8), update_generator(SEED, 0))
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        clear = gradient.abs() > 1e-4
        moved = parameter.detach() - before[f"discriminator/{name}"]
        assert torch.equal(moved[clear].sign(), -gradient[clear].sign())

    # the generator's step was taken against the discriminator that had moved already
    generator.load_state_dict(
        {n.removeprefix("generator/"): t for n, t in before.items() if n.startswith("generator/")}, assign=False
    )
    real, drawn = first_update(ours, one)
    gradients = torch.autograd.grad(F.softplus(real - drawn).mean(), list(generator.parameters()))
    after = dict(ours.model.named_parameters())  # the average has all of the first update
    for (name, _), gradient in zip(generator.named_parameters(), gradients, strict=True):
        clear = gradient.abs() > 1e-5
        moved = after[name] - before[f"generator/{name}"]
        assert torch.equal(moved[clear].sign(), -gradient[clear].sign())


def test_each_class_weighs_the_same_in_an_update() -> None:
    """However many records of it came: a folder that is sorted by class is 64 of one, and few replayed ones of each."""
    assert ImageGanOptions().replay_policy == "balanced"
    even, uneven = (case(replay_policy=policy).learner() for policy in ("balanced", "reservoir"))
    numbers = [0, 0, 0, 1]
    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    weights = [ours._rows(x, numbers, update_generator(SEED, 0))[2].tolist() for ours in (even, uneven)]
    assert weights == [pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2]), pytest.approx([0.25] * 4)]


def test_rows_take_turns_with_penalties_that_weigh_as_much() -> None:
    """What the penalties add to the loss: over a round of three, as much as where every row has them."""
    one = case(replay_slots=0)
    added: dict[int, float] = {}
    for every in (1, 3):
        ours = one.learner()
        ours.options = options(replay_slots=0, penalty_every=every)
        real, z = 2 * pixels(one.x[:9]) - 1, torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
        y, w = torch.full((9,), -1), torch.full((9,), 1 / 9)
        views = [each.detach() for each in ours._views(ours._networks["generator"](z, y))]
        totals: list[torch.Tensor] = []
        ours._step = lambda part, loss, totals=totals: totals.append(loss.detach())  # type: ignore[method-assign, misc]
        for turn in range(3):
            ours._updates = turn
            losses, slopes = ours._step_discriminator(ours._views(real), views, y, y, w)
            assert slopes is not None
            assert len(slopes) == 9 // every
            totals[-1] -= losses.mean().detach()
        added[every] = float(sum(totals))
    assert added[3] == pytest.approx(added[1], rel=1e-4)


def test_penalties_are_taken_at_real_and_at_drawn_pictures() -> None:
    """R1 and R2 of each row, against a backward pass for each picture alone."""
    ours = case(replay_slots=0).learner()
    real, drawn = 2 * pixels(case().x[:3]) - 1, 2 * pixels(case().x[3:6]) - 1
    none = torch.full((1,), -1)
    expected = []
    for pair in zip(real, drawn, strict=True):
        slopes = []
        for picture in pair:
            x = picture[None].clone().requires_grad_()
            (slope,) = torch.autograd.grad(ours._networks["discriminator"](ours._views(x), none).sum(), x)
            slopes.append(slope.square().sum().item())
        expected.append(sum(slopes))
    _, penalties = ours._step_discriminator(
        ours._views(real), ours._views(drawn), none.repeat(3), none.repeat(3), torch.full((3,), 1 / 3)
    )
    assert penalties is not None
    assert penalties.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_real_picture_under_another_label_counts_as_drawn() -> None:
    """What `matching` adds to the loss, from scores by another way; records without a label have no part in it."""
    ours = case(replay_slots=0, penalty=0.0, matching=0.5).learner()
    ours._grow(["a", "b", "c"], torch.Generator().manual_seed(1))
    real = 2 * pixels(case().x[:4]) - 1
    y, w = torch.tensor([0, 1, 2, -1]), torch.full((4,), 0.25)
    other = ours._others(y, torch.Generator().manual_seed(2))
    assert other[3] == -1
    assert all(there in {0, 1, 2} - {here} for here, there in zip(y[:3].tolist(), other[:3].tolist(), strict=True))
    discriminator = ours._networks["discriminator"]
    true, wrong = (discriminator(ours._views(real), numbers).detach() for numbers in (y, other))
    totals: list[torch.Tensor] = []
    ours._step = lambda part, loss: totals.append(loss.detach())  # type: ignore[method-assign]
    losses, _ = ours._step_discriminator(ours._views(real), ours._views(-real), y, other, w)
    added = 0.5 * F.softplus(wrong - true)[:3].sum() / 4
    assert (totals[0] - losses.mean().detach()).item() == pytest.approx(added.item(), rel=1e-4)


def test_few_records_have_penalties_in_some_updates() -> None:
    one = case(penalty_every=3, replay_slots=0)
    ours = one.learner()
    reports = [ours.learn(one.batch(u, 1), update_generator(SEED, u)) for u in range(7)]
    assert ["gradient_penalty" in report.metrics for report in reports] == [True, False, False] * 2 + [True]


def test_served_is_the_average_of_the_generator() -> None:
    one = case(average_records=2)
    ours = one.learner()
    expected = {name: t.clone() for name, t in ours.model.state_dict().items() if name != "conditions.weight"}
    seen = 0
    for update in range(12):
        ours.learn(one.batch(8 * update), update_generator(SEED, update))
        seen += 8
        kept = 0.5 ** (8 / min(2, seen / 10))
        for name, value in expected.items():
            raw = ours._weights()[f"generator/{name}"]
            expected[name] = kept * value + (1 - kept) * raw
    for name, value in expected.items():
        torch.testing.assert_close(ours.model.state_dict()[name], value)


def test_collapse_raises_an_alarm_and_outlasts_a_restart() -> None:
    one = case(collapse_share=0.5)
    ours = one.learner()
    ours.learn(one.batch(0, 16), update_generator(SEED, 0))
    ours._spread.restore([(0, Spread.HORIZON - 1, [0.3] * 5, [0.02] * 5), (1, Spread.HORIZON, [0.3] * 5, [0.3] * 5)])
    assert not ours._spread.collapsed(0.5)
    alarms = [ours.learn(one.batch(16 * update, 16), update_generator(SEED, update)).alarms for update in (1, 2)]
    assert alarms == [("collapse",), ("collapse",)]
    restored = one.learner()
    restored.restore(cloned(ours.capture()))
    assert restored.learn(one.batch(0, 16), update_generator(SEED, 3)).alarms == ("collapse",)


def test_what_never_changes_is_given_once() -> None:
    ours = CASES["hinge on features"].learner()
    first, second = cloned(ours.capture()), ours.capture()
    views = [name for name in first.training if name.startswith("views/")]
    assert any("backbone" in name for name in views)
    assert any("mixing" in name for name in views)
    for name in views:
        value = second.training[name]
        assert isinstance(value, Rows)
        assert value.changed is not None
        assert not len(value.changed)


def test_a_frozen_block_stays_and_another_one_learns() -> None:
    freeze = ("generator.dense", "discriminator.critics.0.stem")
    one = case({"source": version(case())}, source="digits", freeze=freeze)
    ours = one.learner()
    before = {name: t.clone() for name, t in ours._weights().items()}
    state = cloned(ours.capture())
    one.learn(ours, range(3))
    for name, tensor in ours._weights().items():
        if not name.endswith(("conditions.weight", "score.bias")):  # the score's offset cancels in the loss
            still = name.startswith(("generator/dense.", "discriminator/critics.0.stem."))
            assert torch.equal(tensor, before[name]) == still, name
    captured = ours.capture()
    for value in (captured.serving["dense.weight"], captured.training["generator/dense.weight"]):
        assert isinstance(value, Rows)
        assert value.changed is not None
        assert not len(value.changed)
    assert "generator/optimizer/dense.weight/exp_avg" not in state.training
    for block in ("generator.dens", "generator.conditions", "generator", "generator."):
        with pytest.raises(ValueError, match=rf"'{block}' is no block.*generator\.dense"):
            ImageGanLearner(options(source="digits", freeze=(block,)), (1, 8, 8), SEED, CPU)
    with pytest.raises(ValueError, match="freeze has no source"):
        options(freeze=freeze)


def relabelled(one: GanCase, names: dict[str, str]) -> GanCase:
    return GanCase(
        one.blueprint, one.options, one.x, [names.get(label, label) for label in one.labels], sources=one.sources
    )


def test_it_starts_as_its_source_and_old_classes_keep_their_vectors() -> None:
    source = version(case())
    ours = case({"source": source}, source="digits").learner()
    assert ours.model.classes == source.meta["classes"]
    theirs = BLUEPRINT.model(options(), (1, 8, 8), source.meta)
    theirs.load_state_dict(source.tensors)
    labels = [None, *ours.model.classes[:3]]
    assert torch.equal(ours.model.generate(range(4), labels), theirs.generate(range(4), labels))  # type: ignore[attr-defined]
    for name, tensor in ours._weights().items():
        kept = (
            source.tensors[name.removeprefix("generator/")] if name.startswith("generator/") else source.training[name]
        )
        assert torch.equal(tensor, kept)
    before = ours.model.conditions.weight.clone()
    one = relabelled(case(), {"1": "one"})
    ours.learn(one.batch(0), update_generator(SEED, 0))
    assert ours.model.classes == [*source.meta["classes"], "one"]
    assert (ours.model.conditions.weight[: len(before)] - before).abs().max() < 0.01
    assert ours.model.conditions.weight[-1].abs().max() > 0.1


def test_the_sources_drawings_are_drawn_once_and_kept_over_a_restart() -> None:
    changed: dict[str, Any] = {"source": "digits@3", "source_weight": 0.5, "source_samples": 12, "source_draws": 4}
    one = case({"source": version(case())}, **changed)
    ours = one.learner()
    names = list(ours.model.classes)
    one.learn(ours, range(3))
    state = cloned(ours.capture())
    drawn = one.learner().model.generate(range(12), [names[row % len(names)] for row in range(12)])
    assert torch.equal(state.training["source/x"], drawn)  # type: ignore[arg-type]
    restarted = one.restored(state)  # without the source
    assert same(restarted.capture(), state)
    assert one.learn(restarted, range(3, 9)) == one.learn(ours, range(3, 9))
    rows = ours.capture().training["source/x"]
    assert isinstance(rows, Rows)
    assert rows.changed is not None
    assert not len(rows.changed)


def test_lambda_keeps_the_source_in_the_loss() -> None:
    """L = L_target + λ L_source for both sides: with the same random numbers, a straight line over λ from L_target."""
    source = version(case())
    totals: dict[str, list[float]] = {"generator": [], "discriminator": []}
    for weight in (1.0, 2.0, 4.0):
        one = case({"source": source}, source="digits", source_weight=weight, replay_slots=0, penalty=0.0, matching=0.0)
        ours = one.learner()
        ours._step = lambda part, loss: totals[part].append(loss.item())  # type: ignore[method-assign]
        report = ours.learn(one.batch(0), update_generator(SEED, 0))
    for part, (one_times, twice, four_times) in totals.items():
        assert four_times - twice == pytest.approx(2 * (twice - one_times), rel=1e-3)
        assert 2 * one_times - twice == pytest.approx(report.metrics[f"{part}_loss"], rel=1e-3)
        assert twice > one_times


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learner": "image-vae"}, "image-vae, not by image-gan"),
        ({"shape": (3, 8, 8)}, r"\(3, 8, 8\)"),
        ({"options": options(latent=9).model_dump()}, "latent is 9"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    whole = version(case(), 1)
    fields: Sequence[str] = ("digest", "tensors", "training", "learner", "options", "shape", "meta")
    source = Source(**{**{name: getattr(whole, name) for name in fields}, **change})
    with pytest.raises(ValueError, match=message):
        case({"source": source}, source="digits").learner()


def test_another_discriminator_starts_anew() -> None:
    sources = {"source": version(case()), "features_source": classifier()}
    ours = case(sources, source="digits", features=FEATURES).learner()
    theirs = sources["source"].tensors["dense.weight"]
    assert torch.equal(ours._weights()["generator/dense.weight"], theirs)
    fresh = CASES["hinge on features"].learner()._weights()["discriminator/critics.0.stem.weight"]
    assert torch.equal(ours._weights()["discriminator/critics.0.stem.weight"], fresh)


def test_references_name_what_it_starts_with() -> None:
    named = BLUEPRINT.sources(options(source="digits@7", features=FEATURES))
    assert {name: (r.kind, r.name) for name, r in named.items()} == {
        "source": ("version", "digits@7"),
        "features_source": ("version", "clothes@3"),
    }
    assert BLUEPRINT.sources(options()) == {}
    with pytest.raises(ValueError, match="source_weight has no source"):
        options(source_weight=1.0)


def test_bits_do_not_depend_on_what_its_thread_did_before() -> None:
    """A device's own thread numbers what it differentiates: after a restart it would count from nothing."""
    one = case()
    states: list[State] = []

    def learn() -> None:
        ours = one.learner(device=OTHER)
        one.learn(ours, range(3))
        states.append(cloned(ours.capture()))

    learn()
    thread = threading.Thread(target=learn)
    thread.start()
    thread.join()
    assert same(*states)
