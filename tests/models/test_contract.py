"""The contract suite, on every built-in learner and on a user's own."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from models.images import classifier as image_classifier, vae
from models.images.classifier import ImageClassifierOptions
from models.images.vae import ImageVaeOptions
from models.images.warping import Warp
from models.learner import Blueprint
from models.registry import BUILTIN
from models.texts.classifier import TextClassifierOptions
from tests.models import class_means
from tests.models.contract import Case, LearnerContract, digits, texts

IMAGE = ImageClassifierOptions(width=8, hidden=16, replay_slots=24, replay_draws=4)
TEXT = TextClassifierOptions(buckets=512, dim=8, words=False, replay_slots=24, replay_draws=4)
VAE = ImageVaeOptions(width=8, latent=4, label_dim=4, replay_slots=24, replay_draws=4)


def image_case(options: ImageClassifierOptions) -> Case:
    return Case(BUILTIN["image-classifier"], options, *digits())


def text_case(options: TextClassifierOptions) -> Case:
    return Case(BUILTIN["text-classifier"], options, *texts())


def vae_case(options: ImageVaeOptions) -> Case:
    return Case(BUILTIN["image-vae"], options, *digits())


CASES = {
    "image-classifier": image_case(IMAGE),
    "image-classifier, reservoir": image_case(IMAGE.model_copy(update={"replay_policy": "reservoir"})),
    "image-classifier, er-ace with logits": image_case(
        IMAGE.model_copy(update={"strategy": "er-ace", "logits_weight": 0.3, "logits_classes": 3})
    ),
    "image-classifier, der++, average, warped": image_case(
        IMAGE.model_copy(
            update={"strategy": "der++", "logits_weight": 0.5, "average": 0.9, "augment": Warp(turn_degrees=15)}
        )
    ),
    "image-classifier, replayed ones warped": image_case(
        IMAGE.model_copy(update={"augment": Warp(shift_pixels=1), "augment_incoming": False})
    ),
    "image-classifier, dreams": image_case(IMAGE.model_copy(update={"strategy": "dreams", "dream_components": 2})),
    "image-classifier, records and dreams": image_case(
        IMAGE.model_copy(update={"dream_share": 0.5, "dream_components": 2, "logits_weight": 0.3, "steps": 2})
    ),
    "image-classifier, no memory": image_case(IMAGE.model_copy(update={"replay_slots": 0})),
    "text-classifier": text_case(TEXT),
    "text-classifier, words, dropout": text_case(TEXT.model_copy(update={"words": True, "dropout": 0.5})),
    "text-classifier, averaged": text_case(TEXT.model_copy(update={"average": 0.9, "dropout": 0.5})),
    "image-vae": vae_case(VAE),
    "image-vae, averaged": vae_case(VAE.model_copy(update={"average": 0.9})),
    "image-vae, gaussian": vae_case(VAE.model_copy(update={"likelihood": "gaussian", "replay_policy": "balanced"})),
    "a user's own": Case(class_means.blueprint, class_means.MeansOptions(), *digits()),
}


class TestContract(LearnerContract):
    @pytest.fixture(params=list(CASES.values()), ids=list(CASES))
    def case(self, request: pytest.FixtureRequest) -> Case:
        assert isinstance(request.param, Case)
        return request.param


@pytest.mark.parametrize("name", BUILTIN)
def test_every_built_in_learner_is_in_a_suite(name: str) -> None:
    """In this one, or in the one of its own file."""
    if any(case.blueprint is BUILTIN[name] for case in CASES.values()):
        return
    room, _, file = BUILTIN[name].options.__module__.rpartition(".")
    suite = importlib.import_module(f"tests.{room}.test_{file}")
    assert any(issubclass(one, LearnerContract) and one is not LearnerContract for one in classes(suite))


def classes(module: ModuleType) -> list[type]:
    return [value for value in vars(module).values() if isinstance(value, type)]


def test_a_wrong_factory_is_seen_by_mypy() -> None:
    """In strict mode it complains about an ignore that ignores nothing."""
    Blueprint(ImageVaeOptions, image_classifier.learner, vae.model, "image")  # type: ignore[arg-type]
    Blueprint(ImageVaeOptions, vae.ImageVaeLearner, image_classifier.model, "image")  # type: ignore[arg-type]
    Blueprint(ImageVaeOptions, vae.ImageVaeLearner, vae.ImageVaeLearner, "image")  # type: ignore[arg-type]
