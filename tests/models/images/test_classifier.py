"""The image classifier alone: sizes, accuracy, growth, replay, limits."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from models.classifier import ClassifierLearner
from models.images.backbone import _built
from models.images.classifier import ImageClassifier, ImageClassifierOptions, learner
from models.learner import update_generator
from models.memory import Replayed
from models.registry import BUILTIN
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, digits

BLUEPRINT = BUILTIN["image-classifier"]


def case(**options: object) -> Case:
    return Case(
        BLUEPRINT,
        ImageClassifierOptions.model_validate({"width": 8, "hidden": 32, "learning_rate": 4e-3, **options}),
        *digits(),
    )


class TestContractAveraged(LearnerContract):
    @pytest.fixture
    def case(self) -> Case:
        return case(average=0.9, hidden=16, replay_slots=24, replay_draws=4)


@pytest.mark.parametrize(
    ("shape", "side"),
    [((1, 8, 8), 4), ((1, 16, 16), 8), ((1, 28, 28), 7), ((3, 32, 32), 8), ((4, 33, 47), 6), ((3, 128, 128), 8)],
)
def test_any_size_and_number_of_channels(shape: tuple[int, ...], side: int) -> None:
    options = ImageClassifierOptions(width=8, hidden=16, learning_rate=4e-3, replay_slots=0)
    ours = learner(options, shape, SEED, CPU)
    x = torch.randint(256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Case(BLUEPRINT, options, x, ["a", "b"]).batch(0, 2)
    losses = [ours.learn(batch, update_generator(SEED, update)).loss for update in range(12)]
    assert losses[0] == pytest.approx(torch.tensor(2.0).log().item())  # two new classes, a head of zeros
    assert losses[-1] < losses[0] / 2
    assert ours.model.get_submodule("blocks")(torch.zeros(1, *shape)).shape[3] == side


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_a_unit_that_has_fallen_silent_still_learns(slope: float) -> None:
    """Where it has a slope, as by default."""
    network = learner(ImageClassifierOptions(width=8, hidden=16, slope=slope), (1, 8, 8), SEED, CPU).model
    with torch.no_grad():
        network.get_parameter("dense.bias").fill_(-1e3)
    assert isinstance(network, ImageClassifier)
    (gradient,) = torch.autograd.grad(network.features(digits()[0][:8]).sum(), [network.dense.weight])
    assert bool(gradient.abs().sum(1).gt(0).all()) == (slope > 0)


def test_what_was_stored_before_units_had_a_slope_answers_as_it_did() -> None:
    stored = {"width": 8, "hidden": 16}
    options = ImageClassifierOptions.of_version(stored)
    assert options.slope == 0
    assert ImageClassifierOptions().slope > 0
    described = {"architecture": None, "learner": "image-classifier", "options": stored, "shape": [1, 8, 8]}
    network = _built(described)
    assert isinstance(network, ImageClassifier)
    assert network.slope == 0


def test_one_pass_over_the_digits_is_enough() -> None:
    one = case(width=16)
    ours = one.learner()
    hits = [
        predicted == label
        for update in range(50)
        for batch in [one.batch(32 * update, 32)]
        for predicted, label in zip(
            ours.learn(batch, update_generator(SEED, update)).predicted or (), batch.labels, strict=True
        )
    ]
    assert sum(hits[-800:]) / 800 > 0.88
    p = BLUEPRINT.model(one.options, (1, 8, 8), ours.capture().meta)
    p.load_state_dict(dict(ours.model.state_dict()))  # type: ignore[attr-defined]
    chosen = p.classify(one.x[1600:]).argmax(1).tolist()  # type: ignore[attr-defined]
    assert sum(p.classes[k] == y for k, y in zip(chosen, one.labels[1600:], strict=True)) / 197 > 0.88


def test_the_loss_is_the_cross_entropy_from_before_the_update() -> None:
    one = case()
    ours = one.learned(12)
    assert len(ours.model.classes) == 10
    batch = one.batch(200)
    p = ours.model.classify(batch.x)  # type: ignore[attr-defined]
    y = torch.tensor([ours.model.classes.index(str(label)) for label in batch.labels])
    assert ours.learn(batch, update_generator(SEED, 12)).loss == pytest.approx(F.nll_loss(p.log(), y).item(), rel=1e-4)


def test_a_label_that_the_batch_brings_cannot_have_been_predicted() -> None:
    one = case()
    ours = one.learner()
    ours.learn(one.batch(0, 4, ["a", "b", "a", "b"]), update_generator(SEED, 0))
    ours.model.get_parameter("head.bias").data.fill_(-9)  # type: ignore[attr-defined]
    report = ours.learn(one.batch(4, 4, ["new"] * 4), update_generator(SEED, 1))  # whose logit is 0
    assert set(report.predicted or ()) <= {"a", "b"}
    assert report.loss < 0.01


def test_replay_keeps_what_the_stream_has_left_behind() -> None:
    def accuracy_on_the_first_classes(replay_slots: int) -> float:
        one = case(replay_slots=replay_slots, replay_draws=16)
        order = sorted(range(800), key=lambda row: one.labels[row] >= "5")  # 0 to 4, then 5 to 9
        ordered = Case(BLUEPRINT, one.options, one.x[order], [one.labels[row] for row in order])
        ours = ordered.learner()
        for update in range(50):
            ours.learn(ordered.batch(16 * update, 16), update_generator(SEED, update))
        chosen = ours.model.classify(ordered.x[:400]).argmax(1).tolist()  # type: ignore[attr-defined]
        classes = ours.model.classes
        hits: int = sum(classes[k] == label for k, label in zip(chosen, ordered.labels[:400], strict=True))
        return hits / 400

    assert accuracy_on_the_first_classes(0) < 0.3
    assert accuracy_on_the_first_classes(200) > 0.75


def test_a_label_beyond_the_limit_is_refused_and_not_learned() -> None:
    one = case(max_classes=3)
    ours = one.learner()
    labels = ["a", "b", "x", "c", "y", "a", "x", "c"]
    assert list(ours.refuses(labels)) == [3, 4, 7]
    assert "'c'" in ours.refuses(labels)[3]
    before = ours.model.state_dict()["blocks.0.convolution.weight"].clone()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="max_classes"):
        ours.learn(one.batch(0, labels=labels), update_generator(SEED, 0))
    assert torch.equal(ours.model.state_dict()["blocks.0.convolution.weight"], before)  # type: ignore[attr-defined]
    assert ours.model.classes == []
    ours.learn(one.batch(0, 3, ["a", "b", "x"]), update_generator(SEED, 0))
    assert list(ours.refuses(["x", "b", "new"])) == [2]


def test_options_name_what_does_not_fit() -> None:
    with pytest.raises(ValidationError, match="multiple of 8"):
        ImageClassifierOptions(width=12)
    with pytest.raises(ValidationError, match="Extra inputs"):
        ImageClassifierOptions.model_validate({"widht": 16})


def test_the_served_weights_are_the_average_of_those_that_learn() -> None:
    one, plain = case(average=0.3, replay_slots=0), case(replay_slots=0)
    ours, theirs = one.learner(), plain.learner()
    labels = "0123456789ab"
    mean = {name: value.clone() for name, value in theirs.model.state_dict().items()}  # type: ignore[attr-defined]
    for update in range(8):
        batch = one.batch(12 * update, 12, list(labels))
        served = ours.model.classify(batch.x)  # type: ignore[attr-defined]
        report = ours.learn(batch, update_generator(SEED, update))
        if update:
            y = torch.arange(12)
            assert report.loss == pytest.approx(F.nll_loss(served.log(), y).item(), rel=1e-4)  # of what is served
            assert report.predicted == [labels[k] for k in served.argmax(1)]
        theirs.learn(batch, update_generator(SEED, update))
        decay = min(0.3, (1 + update) / (10 + update))  # 0.3 from the fourth update on
        for name, value in theirs.model.state_dict().items():  # type: ignore[attr-defined]
            before = mean[name] if mean[name].shape == value.shape else torch.zeros_like(value)  # new rows of the head
            mean[name] = decay * before + (1 - decay) * value
    raw = {k.removeprefix("learning/"): v for k, v in ours.capture().training.items() if k.startswith("learning/")}
    for name, value in raw.items():
        assert torch.equal(theirs.model.state_dict()[name], value)  # type: ignore[attr-defined, arg-type]
        torch.testing.assert_close(ours.model.state_dict()[name], mean[name])  # type: ignore[attr-defined]


def test_an_average_is_steadier_than_what_learns() -> None:
    one = case(average=0.9, learning_rate=2e-2, replay_slots=0)
    ours = one.learner()
    for update in range(60):
        ours.learn(one.batch(16 * update, 16), update_generator(SEED, update))
    served = BLUEPRINT.model(one.options, (1, 8, 8), ours.capture().meta)
    hits = []
    for weights in (ours.model.state_dict(), ours._learning.state_dict()):  # type: ignore[attr-defined]
        served.load_state_dict(weights)
        chosen = served.classify(one.x[1200:]).argmax(1).tolist()  # type: ignore[attr-defined]
        hits.append(sum(served.classes[k] == y for k, y in zip(chosen, one.labels[1200:], strict=True)) / 597)
    assert hits[0] > hits[1]


@pytest.mark.parametrize("average", [0.0, 0.3])
def test_several_steps_an_update_are_as_many_updates_of_one_that_predict_once(average: float) -> None:
    one, single = case(steps=3, replay_slots=0, average=average), case(replay_slots=0, average=average)
    ours, theirs = one.learner(), single.learner()
    for update in range(4):
        batch = one.batch(8 * update)
        report = ours.learn(batch, update_generator(SEED, update))
        expected = theirs.learn(batch, update_generator(SEED, update))
        for _ in range(2):
            theirs.learn(batch, update_generator(SEED, update))
        assert (report.loss, report.predicted) == (expected.loss, expected.predicted)
    for name, value in theirs.model.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(ours.model.state_dict()[name], value)  # type: ignore[attr-defined]


def test_every_step_replays_anew_and_a_record_is_offered_to_the_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = case(steps=3, replay_slots=16, replay_draws=4, replay_policy="reservoir").learner()
    assert isinstance(ours, ClassifierLearner)
    draw = ours._memory.draw
    drawn: list[Replayed] = []

    def noted(count: int, rng: torch.Generator) -> Replayed:
        drawn.append(draw(count, rng))
        return drawn[-1]

    monkeypatch.setattr(ours._memory, "draw", noted)
    one = case()
    for update in range(3):  # of two records, which are one part
        ours.learn(one.batch(2 * update, 2), update_generator(SEED, update))
    assert [len(each.slots) for each in drawn] == [0] * 3 + [2] * 3 + [4] * 3
    assert len({tuple(each.slots.tolist()) for each in drawn[6:]}) == 3
    assert ours.replay_size == 6
