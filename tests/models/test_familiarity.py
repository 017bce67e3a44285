"""Ranks, answers and the sample beside their definitions; what nobody has learned is answered by the prior."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from models.analytic_learner import AnalyticLearner
from models.familiarity import NEVER, SAMPLE, SHRINKAGE, Acquaintance, distances, ranks, tempered
from models.images import analytic as image_analytic
from models.images.analytic import ImageAnalyticOptions
from models.learner import Batch, update_generator
from models.texts import analytic as text_analytic
from models.texts.counts import TextAnalyticOptions
from tests.models.contract import SEED, Case, digits


def numbers(count: int, width: int = 5, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=rng, dtype=torch.float64)
    return ((torch.randn(count, width, generator=rng, dtype=torch.float64) @ mixing + 3) * 16).round() / 16


def acquaintance(v: Tensor, size: int = 7) -> Acquaintance:
    made = Acquaintance(v.shape[1])
    for start in range(0, len(v), size):
        made.add(v[start : min(start + size, len(v))])
    return made


@given(st.lists(st.floats(-5, 5, width=32), max_size=30), st.floats(-5, 5, width=32))
def test_a_rank_is_a_share_of_learned_scores(known: list[float], score: float) -> None:
    padded = torch.tensor([*known, *[NEVER] * 4])
    [rank] = ranks(torch.tensor([score]), padded).tolist()
    assert rank == pytest.approx((1 + sum(other >= score for other in known)) / (1 + len(known)))


def test_what_is_rare_is_answered_by_the_shares() -> None:
    p, shares = torch.tensor([[0.9, 0.1]] * 3), torch.tensor([0.25, 0.75])
    found = tempered(p, torch.tensor([1.0, 0.05, 0.0005]), shares)
    torch.testing.assert_close(found, torch.stack([p[0], p[0], 0.01 * p[0] + 0.99 * shares]))


def test_scores_of_the_sample_are_those_without_the_record_itself() -> None:
    v = numbers(400)
    _, _, scores = acquaintance(v).fit()
    wanted = []
    for row in range(400):
        others = torch.cat([v[:row], v[row + 1 :]]).numpy()
        away = v[row].numpy() - others.mean(0)
        covariance = np.cov(others.T, bias=True)
        wanted.append(away @ np.linalg.inv(covariance + SHRINKAGE * np.diag(np.diag(covariance))) @ away)
    np.testing.assert_allclose(np.sort(scores[scores < NEVER].numpy()), np.sort(wanted), rtol=0.01)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(60)), st.integers(1, 20), st.integers(1, 59))
def test_neither_order_nor_batches_nor_merging_matter(order: list[int], size: int, cut: int) -> None:
    v = numbers(60)
    one, other = acquaintance(v), acquaintance(v[order], size)
    halves = acquaintance(v[:cut])
    halves.merge(acquaintance(v[cut:]))
    for made in (other, halves):
        assert all(torch.equal(a, b) for a, b in zip(one.capture().values(), made.capture().values(), strict=True))


def test_the_sample_is_bounded_and_comes_back() -> None:
    v = numbers(SAMPLE + 200)
    made = acquaintance(v, 64)
    state = made.capture()
    assert int(state["familiar/known"]) == SAMPLE
    again = Acquaintance(5)
    again.restore(state)
    made.add(v[:1] + 1)
    again.add(v[:1] + 1)
    assert all(torch.equal(a, b) for a, b in zip(made.fit(), again.fit(), strict=True))


def test_a_record_is_taken_out_again() -> None:
    v = numbers(50)
    made = acquaintance(v)
    made.add(v[:10], sign=-1)
    left = acquaintance(v[10:])
    assert all(torch.equal(a, b) for a, b in zip(made.capture().values(), left.capture().values(), strict=True))


def test_a_first_record_is_no_stranger() -> None:
    mean, whitener, scores = acquaintance(numbers(1)).fit()
    assert (scores == NEVER).all()
    assert distances(numbers(3).float(), mean, whitener).isfinite().all()


def learned(case: Case, count: int) -> AnalyticLearner[Any]:
    learner = case.learner()
    assert isinstance(learner, AnalyticLearner)
    for update in range(count // 16):
        learner.learn(case.batch(16 * update, 16), update_generator(SEED, update))
    return learner


def test_pictures_that_resemble_none_are_answered_by_the_prior() -> None:
    x, labels = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # writers come one after the other
    case = Case(image_analytic.BLUEPRINT, ImageAnalyticOptions(width=400), x[order], [labels[row] for row in order])
    model = learned(case, 1200).model
    _, unknown = model.recognise(case.x[1200:])
    assert unknown.float().mean() < 0.1
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8, generator=rng)
    shades = torch.arange(0, 256, 5, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    for strange in (noise, shades):
        p, unknown = model.recognise(strange)
        assert unknown.float().mean() > 0.95
        assert p.max(1).values.mean() < 0.2
        torch.testing.assert_close(p.sum(1), torch.ones(len(p)))


def test_texts_that_resemble_none_are_answered_by_the_prior() -> None:
    words = {"a": "red green blue yellow purple orange", "b": "one two three four five six seven eight"}
    rng = np.random.default_rng(0)
    labels = list("ab" * 100)
    texts = [" ".join(rng.choice(words[label].split(), 4)) for label in labels]
    case = Case(text_analytic.BLUEPRINT, TextAnalyticOptions(width=64, buckets=4096), points(texts), labels)
    model = learned(case, 192).model
    p, unknown = model.recognise(points(["red blue green red", "three four one five"]))
    assert p.argmax(1).tolist() == [model.classes.index("a"), model.classes.index("b")]
    assert not unknown.any()
    p, unknown = model.recognise(points(["ὁ δὲ ἀνεξέταστος βίος", "qzx jkv wqp", " "]))
    assert unknown.all()
    assert p.max() < 0.6


def test_texts_that_resemble_none_of_many_classes_are_unknown() -> None:
    """What no class has speaks against none of them: of forty, one is always the least unlike."""
    rng = np.random.default_rng(1)
    invented = ["".join(rng.choice([*"abcdefghijklmno"], 5)) for _ in range(400)]
    labels = [str(number % 40) for number in range(800)]
    texts = [" ".join([*rng.choice(invented[:200], 3), invented[200 + int(label)]]) for label in labels]
    case = Case(text_analytic.BLUEPRINT, TextAnalyticOptions(width=64), points(texts), labels)
    model = learned(case, 720).model
    assert model.recognise(case.x[720:])[1].float().mean() < 0.2
    strangers = [" ".join("".join(rng.choice([*"pqrstuvwxyz"], 5)) for _ in range(4)) for _ in range(40)]
    p, unknown = model.recognise(points(strangers))
    assert unknown.float().mean() > 0.95
    assert p.max(1).values.mean() < 0.2


def points(texts: list[str]) -> Tensor:
    x = torch.zeros(len(texts), 48, dtype=torch.int32)
    for row, text in enumerate(texts):
        x[row, : len(text)] = torch.tensor([*map(ord, text)])
    return x


@pytest.mark.parametrize("blueprint", [image_analytic.BLUEPRINT, text_analytic.BLUEPRINT], ids=["image", "text"])
def test_a_version_from_before_answers_as_it_did(blueprint: object) -> None:
    """It knows nothing of how strange a record is: nothing is unknown to it."""
    images = blueprint is image_analytic.BLUEPRINT
    options = ImageAnalyticOptions(width=64) if images else TextAnalyticOptions(width=64, buckets=512, counts="records")
    x, labels = digits() if images else (points(["red", "one"] * 40), list("ab" * 40))
    case: Case = Case(image_analytic.BLUEPRINT if images else text_analytic.BLUEPRINT, options, x, labels)
    learner = learned(case, 64)
    state = learner.capture()
    younger = {"shares", "familiar", "mean", "whitener"}
    serving = {name: tensor for name, tensor in state.serving.items() if name not in younger}
    training = {n: t for n, t in state.training.items() if not n.startswith("familiar/") and n != "head/scored"}
    served = case.blueprint.model(case.options, x.shape[1:], state.meta)
    served.load_state_dict({name: getattr(value, "tensor", value) for name, value in serving.items()})
    assert isinstance(served, type(learner.model))
    p, unknown = served.recognise(x[:20])
    assert not unknown.any()
    torch.testing.assert_close(p.sum(1), torch.ones(20))
    again = case.learner()
    again.restore(type(state)(serving, training, state.meta))
    assert isinstance(again, AnalyticLearner)
    batch = Batch(x[:8], labels[:8], torch.zeros(8, 3, dtype=torch.int64), torch.zeros(8, 16, dtype=torch.uint8))
    again.learn(batch, update_generator(SEED, 0))
    assert torch.equal(again.model.recognise(x[:20])[0].argmax(1), again.model.classify(x[:20]).argmax(1))
