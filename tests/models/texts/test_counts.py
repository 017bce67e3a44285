"""`text-analytic` as it was: the contract, scipy and scikit-learn beside it, other orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import poisson
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.analytic_learner import AnalyticLearner
from models.learner import Batch, Rows, State, update_generator
from models.texts.analytic import BLUEPRINT
from models.texts.counts import (
    SCALE,
    SMOOTHING,
    TRUST,
    TextAnalyticOptions,
    TextCounts,
    hashes,
    narrowest,
)
from tests.models.contract import SEED, Case, LearnerContract, cloned, same, tensors, texts

ROWS = list(range(64))


def a_case(**options: object) -> Case:
    return Case(
        BLUEPRINT,
        TextAnalyticOptions.model_validate({"counts": "records", "width": 64, "buckets": 512, **options}),
        *texts(),
    )


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


def learned(case: Case, rows: list[int], size: int = 8) -> AnalyticLearner[TextCounts]:
    """After these records, in this order; the head of the end."""
    learner = case.learner()
    assert isinstance(learner, AnalyticLearner)
    for update, start in enumerate(range(0, len(rows), size)):
        learner.learn(batch(case, rows[start : start + size]), update_generator(SEED, update))
    learner._solve()
    return learner


def answering(learner: AnalyticLearner[TextCounts]) -> dict[str, torch.Tensor]:
    """What it is, by class names in their order, without what depends on the predictions on the way."""
    order = sorted(range(len(learner.model.classes)), key=learner.model.classes.__getitem__)
    found = tensors(learner.capture())
    by_class = {name: found[name][order] for name in ("weight", "bias", "records", "lengths", "sums/by_class")}
    return {**by_class, "counts": found["counts"][:, order], "sums/gram": found["sums/gram"]}


def equal(one: AnalyticLearner[TextCounts], other: AnalyticLearner[TextCounts]) -> bool:
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
    np.testing.assert_allclose(model.look(case.x[ROWS]).prior.numpy(), TRUST * oracle, rtol=1e-4, atol=1e-3)


def test_the_head_is_scikit_learns_ridge_on_whole_numbers() -> None:
    case = a_case()
    model = learned(case, ROWS).model
    features = model.look(case.x[ROWS]).features
    assert torch.equal(features, features.round())
    torch.testing.assert_close(features.norm(dim=1), torch.full((len(ROWS),), float(SCALE)), atol=4, rtol=0)
    y = np.array([model.classes.index(case.labels[row]) for row in ROWS])
    variance = features.var(0, correction=0).mean().item()
    oracle = Ridge(alpha=10 * variance).fit(features.double().numpy(), np.eye(4)[y])
    scores = features @ model.weight.T + model.bias
    np.testing.assert_allclose(scores.numpy(), oracle.predict(features.double().numpy()), atol=1e-4)


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


def test_counts_have_the_narrowest_type_that_holds_them_and_never_stand_still() -> None:
    case = a_case()
    text, labels = case.x[:1].repeat(300, 1), ["a"] * 300
    learner = case.learner()
    assert isinstance(learner, AnalyticLearner)
    found = set[int]()
    for size in (255, 1, 44):
        some = replace(case.batch(0, 64), x=text[:size], labels=labels[:size])
        learner.learn(some, update_generator(SEED, len(found)))
        found.add(int(learner._model.counts.max()))
        counts = learner.capture().serving["counts"]
        assert isinstance(counts, Rows)
        assert counts.tensor.dtype == (torch.uint8 if size == 255 else torch.int16)
        assert (counts.changed is None) == (size != 44)  # another type goes along whole
    assert found == {255, 256, 300}
    learner.forget(replace(case.batch(0, 64), x=text[:45], labels=labels[:45]))
    assert int(learner._model.counts.max()) == 255
    assert learner._model.records.tolist() == [255]


@pytest.mark.parametrize("before", [2**15 - 1, 2**24, 2**31 - 1, 2**40])
def test_a_text_counts_as_much_after_many_as_after_few(before: int) -> None:
    case = a_case()
    learner, few = learned(case, ROWS), learned(case, ROWS)
    for learned_before in (learner._model.records, learner._model.lengths, learner._sums.counts):
        learned_before *= before
    learner._model.counts = learner._model.counts.to(narrowest(16 * before)) * before
    then = {name: tensor.clone() for name, tensor in learner._model.named_buffers()}
    for start in range(0, 64, 8):
        learner.learn(batch(case, ROWS[start : start + 8]), update_generator(SEED, start))
    now = dict(learner._model.named_buffers())
    for name in ("counts", "records", "lengths"):
        added = dict(few._model.named_buffers())[name]
        assert torch.equal(now[name].to(torch.int64) - then[name].to(torch.int64), added.to(torch.int64)), name


@pytest.mark.parametrize(("before", "now"), [(1.0, 0.9), (0.9, 1.0), (0.9, 0.9)])
def test_a_forgetting_factor_may_change(before: float, now: float) -> None:
    ours = learned(a_case(forgetting=before), ROWS)
    state = cloned(ours.capture())
    other = a_case(forgetting=now).learner()
    other.restore(state)
    assert isinstance(other, AnalyticLearner)
    assert torch.equal(other._model.counts.double(), ours._model.counts.double())
    other.learn(batch(a_case(), ROWS[:8]), update_generator(SEED, 0))
    torch.testing.assert_close(other._model.records, other._sums.counts)


def test_a_version_from_before_goes_on() -> None:
    """Sums were in single precision, and counts, too, without a word of their type."""
    case = a_case()
    ours = learned(case, ROWS)
    state = cloned(ours.capture())
    old = ("counts", "records", "lengths")
    serving = {name: tensor.float() if name in old else tensor for name, tensor in tensors_of(state.serving).items()}
    training = {name: t.float() if name == "sums/gram" else t for name, t in tensors_of(state.training).items()}
    before = State(serving, training, {"classes": state.meta["classes"]})
    other = case.learner()
    other.restore(before)
    counts = other.capture().serving["counts"]
    assert isinstance(counts, Rows)
    assert counts.changed is None  # its rows do not fit beside those of before
    served = BLUEPRINT.model(case.options, case.x.shape[1:], before.meta)
    served.load_state_dict(serving)
    assert isinstance(served, TextCounts)
    assert torch.equal(served.classify(case.x), ours.model.classify(case.x))
    for learner in (ours, other):
        learner.learn(batch(case, ROWS[:8]), update_generator(SEED, 0))
    assert isinstance(other, AnalyticLearner)
    assert equal(ours, other)


def tensors_of(named: Mapping[str, torch.Tensor | Rows]) -> dict[str, torch.Tensor]:
    return {name: value.tensor if isinstance(value, Rows) else value for name, value in named.items()}


def rows_of(some: Sequence[str], width: int) -> Tensor:
    """(B, width) int32, zero-padded"""
    x = torch.zeros(len(some), width, dtype=torch.int32)
    for row, text in zip(x, some, strict=True):
        row[: len(text)] = torch.tensor([ord(c) for c in text])
    return x


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of the largest tensor that is made, views not counted."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {storage(each) for each in args if isinstance(each, Tensor)}
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, Tensor) and storage(each) not in given:
                self.found = max(self.found, each.nbytes)
        return made


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_memory_goes_with_what_texts_hold_and_not_with_the_longest_that_may_come() -> None:
    learner, x = learned(a_case(), ROWS), rows_of(["wo ist der Zug"] * 64, 1 << 14)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        learner.model.classify(x)
    assert largest.found < x.nbytes / 2


@pytest.mark.parametrize("at_once", [8, 200, 1 << 16])
def test_a_long_text_is_read_to_its_end_whatever_is_beside_it(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """In how many parts texts are looked at changes no bit of what is learned and answered."""
    some = ["far " * 300 + end for end in ("north", "south")] + ["short", "s", "shorter " * 9, "wide"]
    labels = ["n", "s", "a", "b", "a", "b"]
    whole, parted = a_case().learner(), a_case().learner()
    narrow, wide = rows_of(some, 1300), rows_of(some, 5000)
    for update, rows in enumerate(([0, 1, 2, 3, 4, 5], [1, 0], [5, 0, 2])):
        some_of = replace(a_case().batch(0, len(rows)), labels=[labels[row] for row in rows])
        monkeypatch.undo()
        whole.learn(replace(some_of, x=narrow[rows]), update_generator(SEED, update))
        monkeypatch.setattr("models.texts.counts.AT_ONCE", at_once)
        parted.learn(replace(some_of, x=wide[rows]), update_generator(SEED, update))
    assert same(whole.capture(), parted.capture())
    assert isinstance(parted, AnalyticLearner)
    answers = parted.model.classify(wide)
    assert [parted.model.classes[k] for k in answers[:2].argmax(1).tolist()] == ["n", "s"]
    for row in range(len(some)):
        torch.testing.assert_close(parted.model.classify(narrow[row : row + 1]), answers[row : row + 1])
    monkeypatch.undo()


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
