"""The image generator alone: its loss against torch.distributions, that it learns, sizes, conditions."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as D
from torch.nn import functional as F

from models.image_generator import ImageVae, ImageVaeLearner, ImageVaeOptions, learner
from models.learner import update_generator
from models.network import seeded
from models.registry import BUILTIN
from tests.models.contract import CPU, SEED, Case, digits

BLUEPRINT = BUILTIN["image-vae"]
SMALL = {"width": 8, "latent": 4, "label_dim": 4}


def case(**options: object) -> Case:
    return Case(BLUEPRINT, ImageVaeOptions.model_validate({**SMALL, **options}), *digits())


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


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20), (4, 16, 16), (1, 28, 28), (3, 128, 64)])
def test_any_multiple_of_four_and_number_of_channels(shape: tuple[int, ...]) -> None:
    options = ImageVaeOptions.model_validate({**SMALL, "replay_slots": 0})
    ours = learner(options, shape, SEED, CPU)
    x = torch.randint(256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    losses = [
        ours.learn(Case(BLUEPRINT, options, x, "ab").batch(0, 2), update_generator(SEED, u)).loss for u in range(6)
    ]
    assert losses[-1] < losses[0]
    assert ours.model.generate([1], ["a"]).shape == (1, *shape)
    assert max(ours.model.base[1:]) <= 8 or ours.model.base[1] % 2 or ours.model.base[2] % 2


def test_a_side_that_is_no_multiple_of_four_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4, not 30 × 28"):
        learner(ImageVaeOptions(), (1, 30, 28), SEED, CPU)


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
