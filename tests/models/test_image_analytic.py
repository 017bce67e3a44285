"""The classifier in closed form: the contract, and its head beside scikit-learn's and beside other orders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from torch import Tensor

from models.analytic import HeadName, Sums, packed, unpacked
from models.analytic_learner import AnalyticLearner
from models.image_analytic import BLUEPRINT, ImageAnalyticOptions
from models.learner import Batch, update_generator
from tests.models.contract import CPU, SEED, Case, LearnerContract, digits, same

HEADS: tuple[HeadName, ...] = ("ridge", "lda", "means")


def a_case(size: int = 8, **options: object) -> Case:
    return Case(BLUEPRINT, ImageAnalyticOptions.model_validate({"width": 64, **options}), *digits(size))


class TestContract(LearnerContract):
    @pytest.fixture(params=HEADS)
    def case(self, request: pytest.FixtureRequest) -> Case:
        return a_case(head=request.param)

    def test_other_seed_other_bits(self, case: Case) -> None:
        """Nothing in it is random: what it learns is a function of the records."""
        assert same(case.learned().capture(), case.learned(seed=SEED + 1).capture())


def learner_of(case: Case) -> AnalyticLearner:
    learner = case.learner()
    assert isinstance(learner, AnalyticLearner)
    return learner


def learned(case: Case, rows: list[int], size: int = 16) -> AnalyticLearner:
    """After these records, in this order; the head of the end."""
    learner = learner_of(case)
    for update, start in enumerate(range(0, len(rows), size)):
        learner.learn(batch(case, rows[start : start + size]), update_generator(SEED, update))
    learner._solve()
    return learner


def batch(case: Case, rows: list[int]) -> Batch:
    made = case.batch(0, len(rows))
    return replace(made, x=case.x[rows], labels=[case.labels[row] for row in rows])


def gaussians() -> tuple[Tensor, Tensor]:
    """600 records of three overlapping classes, 12 features."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(3, (600,), generator=rng)
    mixing = torch.randn(12, 12, generator=rng)
    return torch.randn(600, 12, generator=rng) @ mixing + 3 * torch.randn(3, 12, generator=rng)[y], y


def sums_of(x: Tensor, y: Tensor) -> Sums:
    made = Sums(x.shape[1], CPU)
    made.grow(3)
    for start in range(0, len(x), 50):
        made.add(x[start : start + 50], y[start : start + 50])
    return made


def test_ridge_is_that_of_scikit_learn() -> None:
    x, y = gaussians()
    sums = sums_of(x, y)
    scatter = (x - x.mean(0)).double().square().sum(0).mean().item()
    oracle = Ridge(alpha=1e-3 * scatter).fit(x.double().numpy(), np.eye(3)[y])
    solved = sums.solve("ridge", 1e-3)
    np.testing.assert_allclose(solved.weight.numpy(), oracle.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(solved.bias.numpy(), oracle.intercept_, rtol=1e-3, atol=1e-4)


def test_lda_answers_as_scikit_learns_does() -> None:
    x, y = gaussians()
    solved = sums_of(x, y).solve("lda", 1e-9)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3).fit(x.double().numpy(), y.numpy())
    ours = (x @ solved.weight.T + solved.bias).softmax(1)
    np.testing.assert_allclose(ours.numpy(), oracle.predict_proba(x.double().numpy()), atol=1e-4)


def test_means_are_the_nearest() -> None:
    x, y = gaussians()
    solved = sums_of(x, y).solve("means", 1.0)
    means = torch.stack([x[y == k].mean(0) for k in range(3)])
    assert torch.equal((x @ solved.weight.T + solved.bias).argmax(1), torch.cdist(x, means).argmin(1))


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_half_of_a_symmetric_matrix_says_it_all(width: int) -> None:
    root = torch.randn(width, width, generator=torch.Generator().manual_seed(width))
    matrix = root @ root.T
    half = packed(matrix)
    assert half.shape == ((width + 1) // 2, width + 1)
    torch.testing.assert_close(unpacked(half), matrix)
    assert torch.equal(packed(unpacked(half)), half)


@pytest.mark.parametrize("head", HEADS)
def test_order_and_batches_do_not_matter(head: HeadName) -> None:
    case = a_case(head=head)
    rows = list(range(400))
    by_class = sorted(rows, key=lambda row: case.labels[row])
    one, other = learned(case, rows), learned(case, by_class, size=7)
    order = [other.model.classes.index(name) for name in one.model.classes]
    ours, theirs = (each.model.scores(each.model.features(case.x[400:500])) for each in (one, other))
    torch.testing.assert_close(ours, theirs[:, order], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_two_learners_merge_into_what_one_would_be(head: HeadName) -> None:
    case = a_case(head=head)
    rows = sorted(range(400), key=lambda row: case.labels[row])
    whole, first, second = (learned(case, some) for some in (rows, rows[:200], rows[200:]))
    first.merge(second)
    assert first.model.classes == whole.model.classes
    torch.testing.assert_close(first._sums.gram, whole._sums.gram, rtol=1e-5, atol=1e-4)
    assert torch.equal(first._sums.counts, whole._sums.counts)


@pytest.mark.parametrize("head", HEADS)
def test_a_record_is_taken_out_again(head: HeadName) -> None:
    case = a_case(head=head)
    without, ours = learned(case, list(range(100, 400))), learned(case, [*range(100, 400), *range(100)])
    ours.forget(batch(case, list(range(100))))
    assert torch.equal(ours._sums.counts.sort().values, without._sums.counts.sort().values)
    order = [ours.model.classes.index(name) for name in without.model.classes]
    gram = ours._sums.gram
    assert ((gram - without._sums.gram).norm() / gram.norm()).item() < 1e-5
    torch.testing.assert_close(ours._sums.by_class[order], without._sums.by_class, rtol=1e-9, atol=1e-9)


def test_forgetting_weighs_what_is_older_less_and_cannot_be_undone() -> None:
    case = a_case(forgetting=0.99)
    learner = learned(case, list(range(160)))
    left = sum(0.99 ** (160 - 16 * (update + 1)) * 16 for update in range(10))
    assert learner._sums.counts.sum().item() == pytest.approx(left)
    with pytest.raises(ValueError, match="forgetting"):
        learner.forget(batch(case, [0]))
    with pytest.raises(ValueError, match="'never'"):
        learned(a_case(), [0]).forget(replace(batch(case, [0]), labels=["never"]))


def test_one_sorted_pass_over_digits_is_as_good_as_a_shuffled_one() -> None:
    case = a_case(width=400)
    rows = sorted(range(1400), key=lambda row: case.labels[row])
    learner = learned(case, rows)
    found = [learner.model.classes[k] for k in learner.model.classify(case.x[1400:]).argmax(1).tolist()]
    hits = sum(a == b for a, b in zip(found, case.labels[1400:], strict=True))
    assert hits / len(found) > 0.93


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 20), (4, 32, 32), (1, 128, 96)])
def test_any_size_and_number_of_channels(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (6, *shape), dtype=torch.uint8, generator=rng)
    case = Case(BLUEPRINT, ImageAnalyticOptions(width=32), x, list("ababab"))
    learner = learned(case, list(range(6)))
    features = learner.model.features(x)
    assert features.shape == (6, 32)
    assert (features >= 0).all()
    assert learner.model.classify(x).shape == (6, 2)


def test_colours_that_nobody_sees_do_not_count() -> None:
    x = torch.randint(256, (2, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x[1] = x[0]
    x[:, 3, :8] = 0
    x[1, :3, :8] = 255 - x[1, :3, :8]
    model = Case(BLUEPRINT, ImageAnalyticOptions(width=16), x, "ab").learner().model
    assert torch.equal(*model.features(x))  # type: ignore[attr-defined]
