"""A VAE that has seen a few hundred pictures: more updates than batches came."""

from __future__ import annotations

from models.images.vae import ImageVaeLearner
from models.learner import update_generator
from tests.models.contract import SEED
from tests.models.images.test_vae import case


def test_of_a_few_hundred_pictures_there_is_something_to_be_seen() -> None:
    """One pass over 320 digits in batches of 64: five updates of their own."""
    one = case()
    young, before = one.learner(), case(young_updates=0).learner()
    asked = one.x[1000:1400]
    for each in (young, before):
        for update in range(5):
            each.learn(one.batch(64 * update, 64), update_generator(SEED, update))
    assert isinstance(young, ImageVaeLearner)
    assert isinstance(before, ImageVaeLearner)
    labels = one.labels[1000:1400]
    assert young.model.evaluate(asked, labels) < 0.8 * before.model.evaluate(asked, labels)


def test_a_young_one_makes_as_many_updates_whatever_the_batches_and_then_no_more() -> None:
    one = case(young_updates=40)
    for size in (8, 16):
        ours = one.learner()
        assert isinstance(ours, ImageVaeLearner)
        for update in range(96 // size):
            ours.learn(one.batch(size * update, size), update_generator(SEED, update))
        made = ours._updates
        assert 40 <= made <= 40 + 64 / size
        ours.learn(one.batch(0, size), update_generator(SEED, 99))
        assert ours._updates == made + 1
