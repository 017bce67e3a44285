"""Naive Bayes and a head in closed form for texts: the contract, scipy and scikit-learn beside it, other orders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson
from sklearn.linear_model import Ridge

from models.learner import Batch, Rows, update_generator
from models.text_analytic import BLUEPRINT, SCALE, SMOOTHING, TRUST, TextAnalyticLearner, TextAnalyticOptions, hashes
from tests.models.contract import SEED, Case, LearnerContract, same, tensors, texts

ROWS = list(range(64))


def a_case(**options: object) -> Case:
    return Case(BLUEPRINT, TextAnalyticOptions.model_validate({"width": 64, "buckets": 512, **options}), *texts())


class TestContract(LearnerContract):
    @pytest.fixture(params=["ridge", "lda", "means"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        return a_case(head=request.param)

    def test_other_seed_other_bits(self, case: Case) -> None:
        """Nothing in it is random: what it learns is a function of the records."""
        assert same(case.learned().capture(), case.learned(seed=SEED + 1).capture())


class TestForgettingContract(TestContract):
    @pytest.fixture
    def case(self) -> Case:
        return a_case(forgetting=0.99)


def batch(case: Case, rows: list[int]) -> Batch:
    made = case.batch(0, len(rows))
    return replace(made, x=case.x[rows], labels=[case.labels[row] for row in rows])


def learned(case: Case, rows: list[int], size: int = 8) -> TextAnalyticLearner:
    """After these records, in this order; the head of the end."""
    learner = case.learner()
    assert isinstance(learner, TextAnalyticLearner)
    for update, start in enumerate(range(0, len(rows), size)):
        learner.learn(batch(case, rows[start : start + size]), update_generator(SEED, update))
    learner._solve()
    return learner


def answering(learner: TextAnalyticLearner) -> dict[str, torch.Tensor]:
    """What it is, by class names in their order, without what depends on the predictions on the way."""
    order = sorted(range(len(learner.model.classes)), key=learner.model.classes.__getitem__)
    found = tensors(learner.capture())
    by_class = {name: found[name][order] for name in ("weight", "bias", "records", "lengths", "sums/by_class")}
    return {**by_class, "counts": found["counts"][:, order], "sums/gram": found["sums/gram"]}


def equal(one: TextAnalyticLearner, other: TextAnalyticLearner) -> bool:
    """Sums agree to the last bit; so does the head, but for the order in which classes are solved."""
    a, b = answering(one), answering(other)
    solved = all(torch.allclose(a.pop(name), b.pop(name), atol=1e-6) for name in ("weight", "bias"))
    return solved and all(torch.equal(a[name], b[name]) for name in a)


def test_naive_bayes_is_the_poisson_of_scipy() -> None:
    case = a_case()
    model = learned(case, ROWS)._model
    y = np.array([model.classes.index(case.labels[row]) for row in ROWS])
    x = np.zeros((len(ROWS), 512))
    for row in ROWS:
        found = hashes(case.x[row : row + 1])
        x[row, ((found.hashes >> 31) % 512)[found.there].numpy()] = 1
    rates = np.stack([x[y == c].mean(0) + SMOOTHING for c in range(4)])
    oracle = np.stack([poisson.logpmf(x, rate).sum(1) for rate in rates], 1)
    oracle -= oracle.mean(1, keepdims=True)
    np.testing.assert_allclose(model.prior(case.x[ROWS]).numpy(), TRUST * oracle, rtol=1e-4, atol=1e-3)


def test_the_head_is_scikit_learns_ridge_on_whole_numbers() -> None:
    case = a_case()
    model = learned(case, ROWS).model
    features = model.features(case.x[ROWS])
    assert torch.equal(features, features.round())
    torch.testing.assert_close(features.norm(dim=1), torch.full((len(ROWS),), float(SCALE)), atol=4, rtol=0)
    y = np.array([model.classes.index(case.labels[row]) for row in ROWS])
    variance = features.var(0, correction=0).mean().item()
    oracle = Ridge(alpha=10 * variance).fit(features.double().numpy(), np.eye(4)[y])
    np.testing.assert_allclose(model.scores(features).numpy(), oracle.predict(features.double().numpy()), atol=1e-4)


@settings(deadline=None, max_examples=15)
@given(st.permutations(ROWS), st.integers(1, 16))
def test_order_and_batches_do_not_matter(order: list[int], size: int) -> None:
    case = a_case()
    assert equal(learned(case, order, size), learned(case, ROWS))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from(ROWS), max_size=20, unique=True))
def test_a_record_is_taken_out_again(gone: list[int]) -> None:
    case = a_case()
    ours = learned(case, ROWS)
    left = [row for row in ROWS if row not in gone]
    if gone:
        ours.forget(batch(case, gone))
    assert equal(ours, learned(case, left))


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 63))
def test_two_learners_merge_into_what_one_would_be(cut: int) -> None:
    case = a_case()
    rows = sorted(ROWS, key=lambda row: case.labels[row])
    first, second = learned(case, rows[:cut]), learned(case, rows[cut:])
    first.merge(second)
    assert equal(first, learned(case, rows))
    with pytest.raises(ValueError, match="buckets"):
        first.merge(learned(a_case(buckets=256), rows[:8]))


def test_a_commit_names_the_buckets_that_were_seen() -> None:
    case = a_case(buckets=1 << 14)
    learner = learned(case, ROWS)
    learner.capture()
    learner.learn(batch(case, [0]), update_generator(SEED, 99))
    counts = learner.capture().serving["counts"]
    assert isinstance(counts, Rows)
    assert counts.changed is not None
    found = hashes(case.x[:1])
    assert counts.changed.tolist() == sorted(set(((found.hashes >> 31) % (1 << 14))[found.there].tolist()))


def test_a_forgetting_factor_fades_all_sums_alike_and_cannot_be_undone() -> None:
    case = a_case(forgetting=0.9)
    learner = learned(case, [0, 1, 2, 3], size=1)
    model = learner._model
    torch.testing.assert_close(model.records.double(), learner._sums.counts)
    assert model.records.sum().item() == pytest.approx(1 + 0.9 + 0.81 + 0.729)
    torch.testing.assert_close(model.counts.sum(0), model.lengths)
    with pytest.raises(ValueError, match="forgetting"):
        learner.forget(batch(case, [0]))
