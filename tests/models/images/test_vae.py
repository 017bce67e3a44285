"""The image generator alone: its loss against torch.distributions, that it learns, sizes, conditions, transfer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, distributions as D
from torch.nn import functional as F

from models.capabilities import Autoencoder
from models.images.backbone import Backbone, BackboneOptions
from models.images.vae import ImageVae, ImageVaeLearner, ImageVaeOptions
from models.labels import NONE
from models.learner import Options, Reference, Rows, Source, update_generator
from models.network import pixels, seeded
from models.registry import BUILTIN
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, cloned, digits, same, tensors

BLUEPRINT = BUILTIN["image-vae"]
SMALL: Mapping[str, Any] = {"width": 8, "latent": 4, "label_dim": 4}
TRANSFER: Mapping[str, Any] = {"source": "before@3", "source_samples": 6, "source_draws": 3}


def case(**options: object) -> Case:
    return Case(BLUEPRINT, ImageVaeOptions.model_validate({**SMALL, **options}), *digits())


def as_asked(policy: str) -> float:
    """After digits a class at a time, batches of 64: the share of drawings that are nearest to the mean of what was
    asked for."""
    of_policy = replace(case(replay_policy=policy))
    labels, learner = of_policy.labels, of_policy.learner()
    rows = [row for _, row in sorted((label, row) for row, label in enumerate(labels) for _ in range(4))]
    for update, start in enumerate(range(0, len(rows), 64)):
        some = rows[start : start + 64]
        batch = of_policy.batch(0, len(some))
        learner.learn(
            replace(batch, x=of_policy.x[some], labels=[labels[row] for row in some]), update_generator(SEED, update)
        )
    names = sorted(set(labels))
    of = {name: [row for row, label in enumerate(labels) if label == name] for name in names}
    means = torch.stack([of_policy.x[of[name]].float().mean(0).flatten() for name in names])
    assert isinstance(learner, ImageVaeLearner)
    drawn = learner.model.generate(range(200), names * 20).float().flatten(1)
    return (torch.cdist(drawn, means).argmin(1) == torch.arange(200) % 10).float().mean().item()


def test_a_class_at_a_time_the_last_one_does_not_leak_into_all() -> None:
    assert as_asked("balanced") > as_asked("reservoir") + 0.05
    assert ImageVaeOptions().replay_policy == "balanced"


def version(name: str, options: Options, labelled: bool, updates: int) -> Source:
    """A version that has learned digits below five, and that is gone but for its state."""
    rows = [row for row, label in enumerate(digits()[1]) if label < "5"]
    one = Case(BUILTIN[name], options, digits()[0][rows], [digits()[1][row] for row in rows])
    learner = one.learner()
    for update in range(updates):
        batch = one.batch(16 * update, 16, None if labelled else [None] * 16)
        learner.learn(batch, update_generator(SEED, update))
    state = cloned(learner.capture())
    serving = {key: value for key, value in state.serving.items() if isinstance(value, Tensor)}
    settings = options.model_dump(mode="json")
    return Source("digest", serving, {}, {}, name, settings, (1, 8, 8), state.meta)


@cache
def vae(labelled: bool = True, updates: int = 40) -> Source:
    return version("image-vae", ImageVaeOptions.model_validate({**SMALL, "replay_draws": 16}), labelled, updates)


@cache
def classifier() -> Source:
    blueprint = BUILTIN["image-classifier"]
    options = blueprint.options.model_validate({"width": 8, "hidden": 8, "learning_rate": 4e-3})
    return version("image-classifier", options, True, 20)


def transferred(source: Source, **options: object) -> Case:
    made = ImageVaeOptions.model_validate({**SMALL, **TRANSFER, **options})
    return Case(BLUEPRINT, made, *digits(), sources={"source": source, "features_source": classifier()})


def started(source: Source, **options: object) -> ImageVaeLearner:
    ours = transferred(source, **options).learner()
    assert isinstance(ours, ImageVaeLearner)
    return ours


class TestContract(LearnerContract):
    """All of it at once; what needs no source is in the suite of the built-in learners."""

    @pytest.fixture(params=[0.0, 0.9], ids=["learning", "averaged"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        return transferred(
            vae(labelled=False, updates=2),
            freeze=("down.0", "up"),
            source_weight=0.5,
            kl_warmup_updates=12,
            average=request.param,
            features={"source": "clothes"},
            replay_slots=24,
            replay_draws=4,
        )


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_loss_is_the_one_of_torch_distributions(likelihood: str) -> None:
    options = ImageVaeOptions.model_validate({**SMALL, "likelihood": likelihood})
    model = seeded(lambda: ImageVae(options, (3, 8, 8), ("a",)), SEED, CPU)
    generator = torch.Generator("cpu").manual_seed(0)
    if model.log_scale is not None:
        model.log_scale.data = torch.tensor([-1.0, 0.2, 0.5])
    x = torch.rand(5, 3, 8, 8, generator=generator).round()  # 0 or 1: where both likelihoods are distributions
    y, noise = torch.tensor([-1, 0, 0, -1, 0]), torch.randn(5, 4, generator=generator)
    reconstruction, kl = model.losses(x, y, noise)

    condition = model.conditions(y)
    mean, log_variance = model.posterior_of(x, condition)
    posterior = D.Normal(mean, (log_variance / 2).exp())
    decoded = model.decode(mean + posterior.scale * noise, condition)
    pixel: D.Distribution = D.Bernoulli(logits=decoded)
    if model.log_scale is not None:
        pixel = D.Normal(decoded, model.log_scale.exp()[:, None, None])
    torch.testing.assert_close(reconstruction, -pixel.log_prob(x).sum((1, 2, 3)))
    torch.testing.assert_close(kl, D.kl_divergence(posterior, D.Normal(0.0, 1.0)).sum(1))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_it_learns_digits_and_draws_what_it_is_asked_for(likelihood: str) -> None:
    one = case(width=16, likelihood=likelihood, replay_draws=32)
    ours = one.learner()
    held_out, labels = one.x[1500:], one.labels[1500:]
    before = ours.model.evaluate(held_out, labels)  # type: ignore[attr-defined]
    for update in range(90):
        ours.learn(one.batch(16 * update, 16), update_generator(SEED, update))
    after = ours.model.evaluate(held_out, labels)  # type: ignore[attr-defined]
    assert after < before - 15  # nats per record
    means = {c: one.x[[row for row, y in enumerate(one.labels) if y == c]].float().mean(0) for c in "0123456789"}
    hits = 0
    for label in means:
        drawn = ours.model.generate(range(5), [label] * 5).float()  # type: ignore[attr-defined]
        nearest = [min(means, key=lambda c: F.mse_loss(picture, means[c]).item()) for picture in drawn]
        hits += nearest.count(label)
    assert hits >= 35  # of 50


def test_what_it_reconstructs_and_varies_is_the_picture_and_not_just_one_of_its_class() -> None:
    one = case(width=16, replay_draws=32, beta=0.3, kl_warmup_updates=100, learning_rate=1e-2)
    learner = one.learner()
    for update in range(90):
        learner.learn(one.batch(16 * update, 16), update_generator(SEED, update))
    model, x, labels = learner.model, one.x[1500:1540], list(one.labels[1500:1540])
    assert isinstance(model, Autoencoder)
    noise = torch.randn(len(x), 4, generator=torch.Generator().manual_seed(0))
    for known in (labels, [None] * len(x)):
        mean, std = model.encode(x, known)
        assert (mean.shape, std.shape, mean.dtype) == ((len(x), 4), (len(x), 4), torch.float32)
        assert mean.isfinite().all()
        assert (std > 0).all()
        for code in (mean, mean + 0.5 * std * noise):
            drawn = model.draw(code, known)
            assert (drawn.shape, drawn.dtype) == (x.shape, torch.uint8)
            distances = torch.cdist(drawn.flatten(1).float(), x.flatten(1).float())  # (N, N)
            assert distances.diagonal().mean() < 0.8 * distances.mean()
            assert (distances.argsort(1)[:, :4] == torch.arange(len(x))[:, None]).any(1).float().mean() > 0.5
    with pytest.raises(KeyError, match="never"):
        model.encode(x[:1], ["never"])


def test_the_codes_of_each_class_are_spread_as_n_0_i() -> None:
    one = case(
        replay_draws=64, label_dropout=0.5, young_updates=0, learning_rate=1e-9
    )  # the encoder stays, where it begins: not there
    ours = one.learner()
    assert isinstance(ours, ImageVaeLearner)
    for update in range(90):
        ours.learn(one.batch(16 * update, 16), update_generator(SEED, update))
    for label in (None, "0", "1", "7"):
        mine = one.x[[row for row, y in enumerate(one.labels[:1440]) if label in (None, y)]]
        mean, deviation = ours.model.encode(mine, [label] * len(mine))
        assert mean.mean(0).abs().max() < 0.3
        spread = mean.var(0) + deviation.square().mean(0)  # of what they are, and of what each may be
        assert 0.6 < spread.min() < spread.max() < 1.6
        numbers = torch.tensor(ours.model.numbers([label] * len(mine)))
        condition = ours.model.conditions(numbers)
        inside, _ = ours.model.posterior_of(pixels(mine), condition)
        decoded = ours.model.picture(ours.model.decode(inside, condition))
        assert (ours.model.shades(mean, numbers) - decoded).abs().max() < 1e-4


def test_an_untrained_model_encodes_and_draws_numbers() -> None:
    model = case().learner().model
    assert isinstance(model, Autoencoder)
    mean, std = model.encode(digits()[0][:3], [None] * 3)
    assert (mean.isfinite() & std.isfinite()).all()
    assert model.draw(mean, [None] * 3).shape == (3, 1, 8, 8)
    assert model.encode(digits()[0][:0], [])[0].shape == (0, 4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20), (4, 16, 16), (1, 28, 28), (3, 128, 64)])
def test_any_multiple_of_four_and_number_of_channels(shape: tuple[int, ...]) -> None:
    options = ImageVaeOptions.model_validate({**SMALL, "replay_slots": 0})
    ours = ImageVaeLearner(options, shape, SEED, CPU)
    x = torch.randint(256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    losses = [
        ours.learn(Case(BLUEPRINT, options, x, "ab").batch(0, 2), update_generator(SEED, u)).loss for u in range(6)
    ]
    assert losses[-1] < losses[0]
    assert ours.model.generate([1], ["a"]).shape == (1, *shape)
    assert max(ours.model.base[1:]) <= 8 or ours.model.base[1] % 2 or ours.model.base[2] % 2


def test_a_side_that_is_no_multiple_of_four_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4, not 30 × 28"):
        ImageVaeLearner(ImageVaeOptions(), (1, 30, 28), SEED, CPU)


def test_a_label_beyond_the_limit_is_refused() -> None:
    one = case(max_classes=1)
    ours = one.learner()
    assert list(ours.refuses(["a", None, "b", "a"])) == [2]
    with pytest.raises(ValueError, match="max_classes"):
        ours.learn(one.batch(0, 2, ["a", "b"]), update_generator(SEED, 0))


def test_the_reported_loss_has_no_beta_and_is_from_before_the_update() -> None:
    losses = set()
    for beta in (0.25, 4.0):
        one = case(beta=beta)
        ours = one.learner()
        assert isinstance(ours, ImageVaeLearner)
        losses.add(ours.learn(one.batch(0, labels=[None] * 8), update_generator(SEED, 0)).loss)
    assert len(losses) == 1
    assert losses.pop() == pytest.approx(64 * torch.tensor(2.0).log().item(), abs=15)  # near-even pixels


def test_the_kl_term_warms_up_from_nothing_and_linearly() -> None:
    one = case(beta=2.0, kl_warmup_updates=4, young_updates=0)
    ours, by_hand = one.learner(), case(beta=2.0, young_updates=0).learner()
    assert isinstance(by_hand, ImageVaeLearner)
    for update in range(7):
        by_hand.options = by_hand.options.model_copy(update={"beta": 2.0 * min(1.0, update / 4)})
        for each in (ours, by_hand):
            each.learn(one.batch(8 * update), update_generator(SEED, update))
        assert same(ours.capture(), by_hand.capture())


def test_a_restart_goes_on_with_the_warm_up_where_it_was() -> None:
    one = case(kl_warmup_updates=10)
    ours = one.learned(5)
    restored = one.learner()
    restored.restore(cloned(ours.capture()))
    elsewhere = case(kl_warmup_updates=1000).learner()
    elsewhere.restore(cloned(ours.capture()))
    for each in (ours, restored, elsewhere):
        one.learn(each, range(5, 6))
    assert same(restored.capture(), ours.capture())
    assert not same(elsewhere.capture(), ours.capture())


def test_kl_is_reported_in_nats() -> None:
    one = case(label_dropout=0.0)
    ours = one.learner()
    batch, noise = one.batch(0, labels=[None] * 8), update_generator(SEED, 0)
    torch.rand(8, generator=noise)  # the dropped labels
    _, kl = ours.model.losses(pixels(batch.x), torch.full((8,), NONE), torch.randn(8, 4, generator=noise))  # type: ignore[attr-defined]
    assert ours.learn(batch, update_generator(SEED, 0)).metrics == {"kl_nats": pytest.approx(kl.mean().item())}


def test_transfer_starts_with_the_sources_weights_and_classes() -> None:
    ours = started(vae(), young_updates=0)
    assert ours.model.classes == vae().meta["classes"] == ["0", "1", "2", "3", "4"]
    assert all(torch.equal(value, vae().tensors[name]) for name, value in ours.model.state_dict().items())
    seeds = range(6)
    assert torch.equal(ours.capture().training["source/x"].tensor, ours.model.generate(seeds, [*"01234", "0"]))  # type: ignore[union-attr]
    batch = case().batch(0, labels=["4", "new", "0", None] * 2)
    ours.learn(batch, update_generator(SEED, 0))
    assert ours.model.classes == [*"01234", "new"]
    before, after = vae().tensors["conditions.weight"], ours.model.conditions.weight.detach()
    assert (after[:6] - before).abs().max() <= 1.01 * ours.options.learning_rate  # one step of Adam
    assert after[6].abs().max() > 0.1  # begun at random


def test_frozen_blocks_neither_learn_nor_have_moments_nor_move() -> None:
    ours = started(vae(), freeze=("down", "posterior", "up.0"))
    first = cloned(ours.capture())
    one = transferred(vae())
    one.learn(ours, range(4))
    state = ours.capture()
    frozen = {name for name in first.serving if name.startswith(("down.", "posterior.", "up.0."))}
    assert frozen
    assert not any(name.split("/")[1] in frozen for name in state.training if name.startswith("optimizer/o"))
    for name, value in state.serving.items():
        assert torch.equal(tensors(state)[name], tensors(first)[name]) == (name in frozen), name
        assert isinstance(value, Rows) == (name in frozen)
        assert not isinstance(value, Rows) or not len(value.changed if value.changed is not None else [0])


def test_the_loss_is_that_of_the_target_the_source_and_the_features() -> None:
    """Gradients of one update, against the equation, picture by picture."""
    settings = {"source_weight": 0.7, "feature_weight": 0.3, "features": {"source": "clothes"}, "beta": 1.5}
    ours = started(vae(), **settings, label_dropout=0.0, replay_draws=4, young_updates=0)
    twin = started(vae(), **settings)
    one = transferred(vae())
    one.learn(ours, range(3))
    twin.restore(cloned(ours.capture()))
    rows = tensors(twin.capture())
    found: dict[str, Tensor] = {}
    step = ours._optimizer.step

    def watched(rate_factor: float = 1.0) -> None:
        found.update({n: p.grad.clone() for n, p in ours.model.named_parameters() if p.grad is not None})
        step(rate_factor)

    ours._optimizer.step = watched  # type: ignore[method-assign]
    report = ours.learn(one.batch(24, 5), update_generator(SEED, 3))

    rng = update_generator(SEED, 3)
    replayed = torch.randint(twin.replay_size, (4,), generator=rng)
    kept = torch.randint(6, (3,), generator=rng)
    torch.rand(12, generator=rng)
    noise = torch.randn(12, 4, generator=rng)
    batch = one.batch(24, 5)
    x = torch.cat([batch.x, rows["memory/x"][replayed], rows["source/x"][kept]])
    y = [twin.model.classes.index(label) if label in twin.model.classes else NONE for label in batch.labels]
    y += rows["memory/y"][replayed].tolist() + rows["source/y"][kept].tolist()
    backbone = Backbone.of_sources(BackboneOptions(source="clothes"), {"source": classifier()})
    total, distances = torch.zeros(()), []
    many = Counter(y[:9])  # each class of the target weighs the same
    for row, weight in enumerate([1 / (len(many) * many[number]) for number in y[:9]] + [0.7 / 3] * 3):
        picture = pixels(x[row : row + 1])
        number, noise_row = torch.tensor([y[row]]), noise[row : row + 1]
        reconstruction, kl = twin.model.losses(picture, number, noise_row)
        mean, log_variance = twin.model.posterior_of(picture, twin.model.conditions(number))
        z = mean + (log_variance / 2).exp() * noise_row
        drawn = twin.model.picture(twin.model.decode(z, twin.model.conditions(number)))
        pairs = zip(backbone.maps(picture), backbone.maps(drawn), strict=True)
        distance = torch.stack([((a - b) ** 2).sum() / 2 for a, b in pairs]).sum()
        total = total + weight * (reconstruction + 1.5 * kl + 0.3 * distance).squeeze()
        distances.append(distance.item())
    total.backward()  # type: ignore[no-untyped-call]
    assert report.metrics["feature_distance"] == pytest.approx(sum(distances[:5]) / 5, rel=1e-4)
    for name, parameter in twin.model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-4), name


def test_a_source_that_stays_in_the_loss_is_not_forgotten() -> None:
    rows = [row for row, label in enumerate(digits()[1]) if label >= "5"]
    old = [row for row, label in enumerate(digits()[1]) if label < "5"][-100:]
    x, labels = digits()[0][old], [digits()[1][row] for row in old]
    losses = []
    for weight in (0.0, 1.0):
        one = transferred(vae(), source_weight=weight, source_samples=40, source_draws=16, learning_rate=1e-2)
        one = replace(one, x=one.x[rows], labels=[one.labels[row] for row in rows])
        ours = one.learner()
        one.learn(ours, range(25))
        losses.append(ours.model.evaluate(x, labels))  # type: ignore[attr-defined]
    assert losses[1] < losses[0] - 2  # nats


def test_a_backbone_is_for_training_alone_and_stored_once() -> None:
    ours = started(vae(), features={"source": "clothes", "half": True})
    first = ours.capture()
    assert not any("feature" in name for name in first.serving)
    features = {name: value for name, value in first.training.items() if name.startswith("features/")}
    assert any(isinstance(value, Rows) and value.tensor.dtype == torch.bfloat16 for value in features.values())
    again = ours.capture().training
    assert all(isinstance(again[n], Rows) and not len(again[n].changed) for n in features)  # type: ignore[union-attr, arg-type]
    restored = transferred(vae(), features={"source": "clothes", "half": True}).learner()
    restored.restore(cloned(first))
    assert all(torch.equal(tensors(restored.capture())[name], tensors(first)[name]) for name in features)


def test_what_it_needs_is_named() -> None:
    options = ImageVaeOptions(source="a@2", features=BackboneOptions(source="b"))
    wanted = {"source": Reference("version", "a@2"), "features_source": Reference("version", "b")}
    assert BLUEPRINT.sources(options) == wanted
    assert BLUEPRINT.sources(ImageVaeOptions()) == {}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (replace(vae(), learner="image-gan"), "learned by image-gan"),
        (replace(vae(), shape=(3, 8, 8)), "draws"),
        (replace(vae(), options={**vae().options, "latent": 5}), "latent is 5 in source"),
        (replace(vae(), tensors={"out.bias": torch.zeros(4)}), "is in only one"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(source: Source, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        started(source)


def test_a_block_that_is_none_is_refused() -> None:
    for name in ("conditions", "dawn", ""):
        with pytest.raises(ValueError, match="no block that could be frozen"):
            started(vae(), freeze=(name,))


@pytest.mark.parametrize("options", [{"source_weight": 1.0}, {"freeze": ["up"]}, {"features": {}}])
def test_options_that_need_another_are_refused(options: Mapping[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"Name|backbone is needed"):
        ImageVaeOptions.model_validate(options)
