"""Weights averaged for serving: the average against its formula, what learns, and what is reported."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.images.vae import ImageVaeLearner
from models.learner import Learner, Rows, update_generator
from models.moving_average import MovingAverage, decay_of_records
from models.network import Head, pixels
from models.registry import BUILTIN
from models.texts.generator import MARKER, TextGeneratorLearner
from tests.models.contract import SEED, Case, cloned, digits, tensors, texts

REPLAY = {"replay_slots": 24, "replay_draws": 4}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "text-classifier": {"buckets": 512, "dim": 8, "words": True, "dropout": 0.3, **REPLAY},
    "text-gru": {"dim": 8, "hidden": 12, **REPLAY},
    "image-vae": {"width": 8, "latent": 4, "label_dim": 4, "kl_warmup_updates": 4, **REPLAY},
    "text-generator": {"hidden": 8, "embedding": 6, "slots": 0, "replay_windows": 2, "history": 512, "dropout": 0.0},
}


def case(name: str, **options: object) -> Case:
    blueprint = BUILTIN[name]
    made = blueprint.options.model_validate({**OPTIONS[name], **options})
    x, labels = texts() if blueprint.input == "text" else (digits()[0], list("abcd" * 450))
    x = x[:, :9] if blueprint.input == "text" else x  # short: every byte is a step
    return Case(blueprint, made, x, labels)


def weights(learner: Learner, prefix: str = "learning/") -> dict[str, Tensor]:
    """What learns, but for the rows of a table, which are averaged by rows: see the text classifier's own tests."""
    training = learner.capture().training
    whole = {name: value for name, value in training.items() if isinstance(value, Tensor)}
    return {name.removeprefix(prefix): value.clone() for name, value in whole.items() if name.startswith(prefix)}


def test_it_follows_rows_that_are_added() -> None:
    network = Head(2, 3)
    nn.init.ones_(network.weight)
    nn.init.zeros_(network.bias)
    average = MovingAverage(network)
    network.weight.data.fill_(5)
    average.move(0.75)
    assert average.model.weight.tolist() == [[2, 2]] * 3
    network.grow(1)
    network.weight.data[3] = 7
    average.follow()
    assert average.model.weight.tolist() == [[2, 2]] * 3 + [[7, 7]]
    assert len(average.model.bias) == 4
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    average.move(0.5)
    assert average.model.weight.tolist() == [[3.5, 3.5]] * 3 + [[7, 7]]
    other = MovingAverage(Head(2, 4))
    other.model.load_state_dict(average.model.state_dict())
    other.restore(average.capture())
    assert all(torch.equal(value, average.capture()[name]) for name, value in other.capture().items())


def test_a_half_life_is_the_records_after_which_half_is_left() -> None:
    assert decay_of_records(100, 100) == 0.5
    assert decay_of_records(50, 100) ** 2 == pytest.approx(0.5)
    assert decay_of_records(8, 0) == 0


@pytest.mark.parametrize("name", OPTIONS)
def test_the_served_weights_are_the_average_of_those_that_learn(name: str) -> None:
    one = case(name, average=0.3, **dict.fromkeys(OPTIONS[name].keys() & {"replay_slots"}, 0))  # an update is one step
    ours = one.learned(1)  # all classes came up
    served = tensors(ours.capture())
    key = "network." if name == "text-generator" else ""
    mean = {own: served[key + own] for own in weights(ours)}
    assert len(mean) >= 4
    for update in range(1, 9):
        one.learn(ours, range(update, update + 1))
        decay = min(0.3, (1 + update) / (10 + update))  # 0.3 from the fourth update on
        for own, learned in weights(ours).items():
            mean[own] = decay * mean[own] + (1 - decay) * learned
    served = tensors(ours.capture())
    for own, value in mean.items():
        torch.testing.assert_close(served[key + own], value, msg=own)
    assert not torch.equal(*(torch.cat([t[own].flatten() for own in mean]) for t in (mean, weights(ours))))


@pytest.mark.parametrize(
    "name", [name for name in OPTIONS if name != "text-generator"]
)  # whose lanes are the average's
def test_what_learns_is_as_it_would_be_without_an_average(name: str) -> None:
    ours, theirs = (tensors(case(name, average=average).learned(8).capture()) for average in (0.9, 0.0))
    learned = {own.removeprefix("learning/"): value for own, value in ours.items() if own.startswith("learning/")}
    for own, value in theirs.items():
        if not own.startswith("codes."):  # of the network that is served
            assert torch.equal(learned.get(own, ours[own]), value), own
    assert learned.keys() <= theirs.keys()


@pytest.mark.parametrize("name", ["text-classifier", "text-gru"])
def test_a_classifiers_loss_is_that_of_what_is_served(name: str) -> None:
    one = case(name, average=0.9, learning_rate=0.05)
    ours = one.learned(6)
    batch = one.batch(48)
    y = torch.tensor([ours.model.classes.index(str(label)) for label in batch.labels])
    p = ours.model.classify(batch.x)  # type: ignore[attr-defined]
    learned = copy.deepcopy(ours._learning)  # type: ignore[attr-defined]
    report = ours.learn(batch, update_generator(SEED, 6))
    assert report.loss == pytest.approx(F.nll_loss(p.log(), y).item(), rel=1e-4)
    assert report.loss != pytest.approx(F.nll_loss(learned.classify(batch.x).log(), y).item(), rel=1e-2)


def test_a_vaes_loss_and_codes_are_those_of_what_is_served() -> None:
    one = case("image-vae", average=0.9, label_dropout=0.0, replay_slots=0)
    ours = one.learned(6)
    assert isinstance(ours, ImageVaeLearner)
    before, batch, rng = copy.deepcopy(ours.model), one.batch(48), update_generator(SEED, 6)
    report = ours.learn(batch, update_generator(SEED, 6))
    torch.rand(8, generator=rng)  # which labels are dropped
    noise, y = torch.randn(8, 4, generator=rng), torch.tensor(before.numbers(batch.labels))
    with torch.no_grad():
        _, kl, z = before.reconstructed(pixels(batch.x), y, noise)
        surprise, _ = before.losses(pixels(batch.x), y, noise)
    assert report.loss == pytest.approx((surprise + kl).mean().item(), rel=1e-5)
    assert report.metrics["kl_nats"] == pytest.approx(kl.mean().item(), rel=1e-5)
    before.codes.add(z, y)
    assert not before.codes.means.equal(case("image-vae").learner().model.codes.means)  # type: ignore[attr-defined]
    for own, value in before.codes.state_dict().items():
        torch.testing.assert_close(ours.model.codes.state_dict()[own], value)


def test_a_vaes_new_class_starts_alike_in_both() -> None:
    one = case("image-vae", average=0.9, young_updates=0)
    ours = one.learned(4)
    assert isinstance(ours, ImageVaeLearner)
    ours.learn(one.batch(32, labels=[*"abcdabc", "new"]), update_generator(SEED, 4))
    started = torch.randn(1, 4, generator=update_generator(SEED, 4))[0]
    decay = 5 / 14
    served, learned = (network.conditions.weight[-1] for network in (ours.model, ours._learning))
    torch.testing.assert_close(served, decay * started + (1 - decay) * learned)
    assert not served.requires_grad
    assert len(ours.model.codes.counts) == 6


def test_a_text_generators_loss_is_that_of_what_is_served_with_states_of_its_own() -> None:
    one = case("text-generator", average=0.9, replay_windows=0, learning_rate=0.05)
    ours = one.learner()
    assert isinstance(ours, TextGeneratorLearner)
    state, last = ours.model.network.zeros(1), MARKER
    for update in range(6):
        batch, network = one.batch(4 * update, 4), copy.deepcopy(ours.model.network)  # fewer bytes than a step has
        if update == 3:  # the states and what learns outlast a restart
            stored = cloned(ours.capture())
            ours = one.learner(seed=SEED + 1)
            assert isinstance(ours, TextGeneratorLearner)
            ours.restore(stored)
        texts_ = ["".join(map(chr, row[row != 0].tolist())) for row in batch.x]
        data = b"".join(text.encode() + b"\0" for text in texts_)
        assert len(data) <= 128
        expected = 0.0
        with torch.no_grad():
            for byte in data:
                logits, state = network(torch.tensor([[last]]), state)
                expected -= F.log_softmax(logits[0, 0], 0)[byte].item()
                last = byte
        assert ours.learn(batch, update_generator(SEED, update)).loss == pytest.approx(expected / 4, rel=1e-4)
    assert math.isfinite(ours.model.evaluate(one.x[:4], [None] * 4))
    assert not isinstance(ours.capture().training["learning/out.weight"], Rows)
    assert not torch.equal(ours.model.network.out.weight, ours._learning.out.weight)
