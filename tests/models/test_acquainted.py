"""Classifiers that know what resembles nothing: they keep the contract, and the learner inside keeps its bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from models.acquainted import PREFIX, AcquaintedModel, FamiliarTexts, acquainted
from models.familiarity import NEVER, SAMPLE
from models.images import classifier as image_classifier
from models.learner import Blueprint, Correcting, Flushing, Reacting, State
from models.registry import BUILTIN
from models.texts import classifier as text_classifier, river as river_classifier
from tests.device import CPU
from tests.models.contract import Case, LearnerContract, digits, same, texts


def case(name: str, **options: Any) -> Case:
    blueprints: dict[str, Blueprint] = {
        "picture": image_classifier.BLUEPRINT,
        "text": text_classifier.BLUEPRINT,
        "river": river_classifier.BLUEPRINT,
    }
    sizes: dict[str, dict[str, Any]] = {
        "picture": {"width": 8, "hidden": 16, "replay_slots": 24, "learning_rate": 4e-3},
        "text": {"buckets": 512, "dim": 8, "replay_slots": 16},
        "river": {},
    }
    return Case(
        acquainted(blueprints[name]),
        blueprints[name].options.model_validate({**sizes[name], **options}),
        *(digits() if name == "picture" else texts()),
    )


class TestContract(LearnerContract):
    @pytest.fixture(params=["picture", "text", "river", "averaged"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        if request.param == "averaged":
            return case("picture", unknown=0.05, average=0.9)
        return case(request.param, unknown=0.05)

    def test_other_seed_other_bits(self, case: Case) -> None:
        """River draws nothing."""
        if case.blueprint.options is not river_classifier.RiverClassifierOptions:
            case.other_seed_other_bits()


@pytest.mark.parametrize("name", ["picture", "text", "river"])
def test_the_learner_inside_keeps_its_bits(name: str) -> None:
    plain, around = case(name).learned(), case(name, unknown=0.1).learned()
    state = around.capture()
    inner = State(
        {key: value for key, value in state.serving.items() if not key.startswith(PREFIX)},
        {key: value for key, value in state.training.items() if not key.startswith(PREFIX)},
        state.meta,
    )
    assert same(plain.capture(), inner)


@pytest.mark.parametrize("protocol", [Correcting, Flushing, Reacting])
def test_it_does_what_the_learner_inside_does(protocol: type) -> None:
    assert isinstance(case("picture", unknown=0.05).learner(), protocol)
    assert not isinstance(case("river", unknown=0.05).learner(), protocol)


def test_every_classifier_takes_the_option() -> None:
    """A recogniser and learners in closed form have it by means of their own."""
    own = {"image-analytic", "image-auto", "text-analytic", "text-auto", "image-recogniser"}
    generators = {"image-flow", "image-gan", "image-restorer", "image-restyler", "image-vae", "text-generator"}
    assert {name for name, blueprint in BUILTIN.items() if "unknown" in blueprint.options.model_fields} >= (
        BUILTIN.keys() - own - generators
    )


def test_pictures_that_resemble_none_are_answered_by_the_prior() -> None:
    x, labels = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).tolist()  # writers come one by one
    shuffled = dataclasses.replace(
        case("picture", unknown=0.05, width=16), x=x[order], labels=[labels[row] for row in order]
    )
    learner = shuffled.learner()
    shuffled.learn(learner, range(150))
    learner.capture()
    model = learner.model
    assert isinstance(model, AcquaintedModel)
    p, unknown = model.recognise(shuffled.x[1200:])
    assert unknown.float().mean() < 0.12
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8, generator=rng)
    blank = torch.arange(0, 256, 5, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    for strange in (noise, blank):
        p, unknown = model.recognise(strange)
        assert unknown.float().mean() > 0.95
        assert p.max(1).values.mean() < 0.2


@pytest.mark.parametrize("name", ["text", "river"])
def test_texts_that_resemble_none_are_answered_by_the_prior(name: str) -> None:
    made = case(name, unknown=0.05)
    learner = made.learned(60)
    learner.capture()
    model = learner.model
    assert isinstance(model, AcquaintedModel)
    assert model.recognise(made.some(16))[1].float().mean() < 0.1
    p, unknown = model.recognise(points(["qzx jkv wqp", "ὁ δὲ ἀνεξέταστος", "1234 5678"]))
    assert unknown.all()
    assert p.max() < 0.5


def test_before_anything_is_learned_nothing_is_unknown() -> None:
    made = case("picture", unknown=0.05)
    learner = made.learned(1)
    learner.capture()
    model = learner.model
    assert isinstance(model, AcquaintedModel)
    assert not FamiliarTexts((32,)).scores.lt(NEVER).any()
    assert not model.recognise(made.some(8))[1].any()


def test_a_score_of_a_text_is_how_rare_its_grams_are() -> None:
    familiar = FamiliarTexts((32,))
    familiar.meet(points(["ab"]))
    familiar.meet(points(["ab", "cd"]))
    once, never = -torch.log(torch.tensor([1.5 / 4, 0.5 / 4]))
    twice = -torch.log(torch.tensor(2.5 / 4))
    found = familiar.strange(points(["ab", "cd", "xy"]))  # " ab", "ab " and so on, two grams each
    torch.testing.assert_close(found, torch.stack([twice, once, never]))
    assert int(familiar.scores.lt(NEVER).sum()) == 3
    for _ in range(SAMPLE):
        familiar.meet(points(["ab"]))
    assert familiar.scores.lt(once).all()


def test_a_state_without_it_is_refused_by_name() -> None:
    made = case("picture", unknown=0.05)
    plain = case("picture").learned().capture()
    with pytest.raises(ValueError, match=r"(counts|mean|shares)"):
        made.learner(device=CPU).restore(plain)


def points(found: list[str]) -> Tensor:
    x = torch.zeros(len(found), 32, dtype=torch.int32)
    for row, text in enumerate(found):
        x[row, : len(text)] = torch.tensor([*map(ord, text)])
    return x
