"""Naive Bayes and a head in closed form for texts: the contract, scipy and scikit-learn beside it, other orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import ComplementNB, MultinomialNB
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from consumers.loading import Metered
from models.analytic_learner import AnalyticLearner
from models.learner import Batch, Rows, update_generator
from models.registry import BUILTIN
from models.texts.analytic import (
    AGAINST,
    BLUEPRINT,
    SMOOTHING,
    UNIT,
    TextAnalytic,
    hashes,
    weighed,
)
from models.texts.counts import SCALE, TextAnalyticOptions, TextCounts
from tests.models.contract import SEED, Case, LearnerContract, cloned, same, texts

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


def learned(case: Case, rows: list[int], size: int = 8) -> AnalyticLearner[TextAnalytic]:
    """After these records, in this order; the head of the end."""
    learner = case.learner()
    assert isinstance(learner, AnalyticLearner)
    for update, start in enumerate(range(0, len(rows), size)):
        learner.learn(batch(case, rows[start : start + size]), update_generator(SEED, update))
    learner._solve()
    return learner


def answering(learner: AnalyticLearner[TextAnalytic]) -> dict[str, torch.Tensor]:
    """What it is, by class names in their order, without what depends on the predictions on the way."""
    model, sums = learner.model, learner._sums
    assert isinstance(model, TextAnalytic)
    order = sorted(range(len(model.classes)), key=model.classes.__getitem__)
    by_class = {"weight": model.weight, "bias": model.bias, "lengths": model.lengths, "sums": sums.by_class}
    found = {name: tensor[order] for name, tensor in by_class.items()}
    return {**found, "counts": model.counts[:, order], "units": model.units, "gram": sums.gram}


def equal(one: AnalyticLearner[TextAnalytic], other: AnalyticLearner[TextAnalytic]) -> bool:
    """Sums agree to the last bit; so does the head, but for the order in which classes are solved."""
    a, b = answering(one), answering(other)
    solved = all(torch.allclose(a.pop(name), b.pop(name), atol=1e-6) for name in ("weight", "bias"))
    return solved and all(torch.equal(a[name], b[name]) for name in a)


def test_naive_bayes_is_the_one_of_scikit_learn_over_weights() -> None:
    case = a_case()
    learner = learned(case, ROWS)
    model = learner.model
    y = np.array([model.classes.index(case.labels[row]) for row in ROWS])
    rows = weighed(hashes(case.x[ROWS]), 512).numpy()
    u = np.zeros((64, 512))
    u[rows[:, 0], rows[:, 1]] = rows[:, 2]
    least = np.where(u > 0, u, np.inf).min(1).sum()
    idf = np.log1p(least / (u.sum(0) + SMOOTHING))
    q = u * idf / np.linalg.norm(u * idf, axis=1, keepdims=True)
    parts = ((1 - AGAINST, MultinomialNB), (AGAINST, ComplementNB))
    oracle = sum(part * (q @ family(alpha=SMOOTHING).fit(u, y).feature_log_prob_.T) for part, family in parts)
    oracle -= oracle.mean(1, keepdims=True)
    np.testing.assert_allclose(model.look(case.x[ROWS]).prior.numpy(), oracle, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("longer", [1, 10, 100])
def test_a_long_text_counts_as_much_as_a_short_one(longer: int) -> None:
    some = ["".join(chr(0x4E00 + 31 * k % 997) for k in range(20 * n)) for n in (1, longer)]
    rows = weighed(hashes(rows_of(some, 2000)), 1 << 20)
    for text in (0, 1):
        assert rows[rows[:, 0] == text, 2].double().norm().item() == pytest.approx(UNIT, rel=0.1)


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
    np.testing.assert_allclose(scores.numpy(), oracle.predict(features.double().numpy()), atol=5e-4)


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
    text, learner, types = case.x[:1].repeat(1000, 1), case.learner(), []
    assert isinstance(learner, AnalyticLearner)
    weights = weighed(hashes(text[:1]), 512)[:, 1:]
    for update, size in enumerate((1, 20, 1000, 1000)):
        some = replace(case.batch(0, 64), x=text[:size], labels=["a"] * size)
        learner.learn(some, update_generator(SEED, update))
        types.append(learner._model.counts.dtype)
    assert types == [torch.uint8, torch.int16, torch.int32, torch.int32]
    assert torch.equal(learner._model.counts[weights[:, 0], 0].long(), 2021 * weights[:, 1])
    learner.forget(replace(case.batch(0, 64), x=text, labels=["a"] * 1000))
    assert torch.equal(learner._model.counts[weights[:, 0], 0].long(), 1021 * weights[:, 1])


@pytest.mark.parametrize("before", [2**15 - 1, 2**24, 2**31 - 1, 2**36])
def test_a_text_counts_as_much_after_many_as_after_few(before: int) -> None:
    case = a_case()
    learner, few = learned(case, ROWS), learned(case, ROWS)
    for learned_before in (learner._model.lengths, learner._model.units, learner._sums.counts):
        learned_before *= before
    learner._model.counts = learner._model.counts.to(torch.int64) * before
    then = {name: tensor.clone() for name, tensor in learner._model.named_buffers()}
    for start in range(0, 64, 8):
        learner.learn(batch(case, ROWS[start : start + 8]), update_generator(SEED, start))
    now = dict(learner._model.named_buffers())
    for name in ("counts", "lengths", "units"):
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
    torch.testing.assert_close(other._model.counts.double().sum(0), other._model.lengths)


def test_a_version_from_before_counts_records_as_it_did() -> None:
    options = TextAnalyticOptions.of_version({"width": 2048, "buckets": 1 << 16})
    assert options.counts == "records"
    assert TextAnalyticOptions.of_version({}).buckets == 1 << 16
    made = BLUEPRINT.learner(options, (16,), 0, torch.device("cpu"))
    assert isinstance(made, AnalyticLearner)
    assert isinstance(BLUEPRINT.model(options, (16,), made.capture().meta), TextCounts)


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


LEARNERS = {
    "text-analytic": {"width": 64, "buckets": 512},
    "text-classifier": {"buckets": 512, "replay_slots": 0},
    "text-gru": {"dim": 8, "hidden": 8, "replay_slots": 0},
}


@pytest.mark.parametrize("name", LEARNERS)
def test_memory_goes_with_what_texts_hold_and_not_with_the_longest_that_may_come(name: str) -> None:
    blueprint, width = BUILTIN[name], 1 << 14
    learner = blueprint.learner(blueprint.options.model_validate(LEARNERS[name]), (width,), SEED, torch.device("cpu"))
    x = rows_of(["wo ist der Zug"] * 64, width)
    model: Any = learner.model
    with Largest() as largest:  # type: ignore[no-untyped-call]
        learner.learn(replace(batch(a_case(), ROWS), x=x), update_generator(SEED, 0))
        model.classify(x)
    assert largest.found <= x.nbytes  # a batch is put together, as wide as it comes


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
        for module in ("texts.analytic", "texts.counts"):
            monkeypatch.setattr(f"models.{module}.AT_ONCE", at_once)
        parted.learn(replace(some_of, x=wide[rows]), update_generator(SEED, update))
    assert same(whole.capture(), parted.capture())
    assert isinstance(parted, AnalyticLearner)
    answers = parted.model.classify(wide)
    assert [parted.model.classes[k] for k in answers[:2].argmax(1).tolist()] == ["n", "s"]
    for row in range(len(some)):
        torch.testing.assert_close(parted.model.classify(narrow[row : row + 1]), answers[row : row + 1])
    monkeypatch.undo()


def rows_changed(learner: AnalyticLearner[TextAnalytic]) -> dict[str, int | None]:
    """What the next commit moves of what is tracked: how many rows; None: all of them."""
    state = learner.capture()
    named = {**state.serving, **state.training}.items()
    changed = {name: value.changed for name, value in named if isinstance(value, Rows)}
    return {name: None if rows is None else len(rows) for name, rows in changed.items()}


def test_a_commit_moves_the_texts_that_came_and_no_sums() -> None:
    case = a_case(buckets=1 << 14)
    learner = learned(case, ROWS)
    assert set(rows_changed(learner).values()) == {None}
    learner.learn(batch(case, [0, 1]), update_generator(SEED, 99))
    sums = dict.fromkeys(("counts", "sums/gram", "sums/by_class", "sums/counts"), 0)
    assert rows_changed(learner) == {**sums, "recent/texts": 2, "recent/features": 1}


def test_where_the_log_is_full_it_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it does where a record is taken out; sums and what comes after are the same, whenever versions are made."""
    case = a_case()
    whole = learned(case, ROWS)
    monkeypatch.setattr("models.texts.recent.TEXTS", 20)
    small, often = learned(case, ROWS), case.learner()
    assert isinstance(often, AnalyticLearner)
    for update, start in enumerate(range(0, 64, 8)):
        often.learn(batch(case, ROWS[start : start + 8]), update_generator(SEED, update))
        state = cloned(often.capture())
        often = case.learner()
        often.restore(state)
        assert isinstance(often, AnalyticLearner)
    often._solve()
    assert equal(small, whole)
    assert same(small.capture(), often.capture())
    assert small.capture().serving["recent/known"] == 16
    for learner in (small, often):
        learner.forget(batch(case, [3]))
        learner.learn(batch(case, [5, 6]), update_generator(SEED, 99))
    assert small.capture().serving["recent/known"] == 2
    assert same(small.capture(), often.capture())


@pytest.mark.parametrize("classes", [1, 80])
def test_a_sampler_makes_no_more_of_a_version_than_its_bytes_allow(classes: int) -> None:
    case = Case(BLUEPRINT, TextAnalyticOptions(), *texts())
    learner: Any = case.learner()
    some = replace(batch(case, [0] * 80), labels=[f"class {row % classes}" for row in range(80)])
    learner.learn(some, update_generator(SEED, 0))
    state = learner.capture()
    stored = tensors_of(state.serving)
    with Metered(sum(tensor.nbytes for tensor in stored.values())):
        served: Any = BLUEPRINT.model(case.options, case.x.shape[1:], state.meta)
        served.load_state_dict(stored)
    assert torch.equal(served.classify(case.x[:1]), learner.model.classify(case.x[:1]))


@pytest.mark.parametrize("harm", ["known", "texts", "features"])
def test_a_log_that_asks_for_more_than_there_is_is_refused(harm: str) -> None:
    case = a_case()
    state = cloned(learned(case, ROWS).capture())
    damaged = {name: tensor.clone() for name, tensor in tensors_of(state.serving).items()}
    damaged[f"recent/{harm}"].fill_(2**30 if harm != "features" else 512)
    served = BLUEPRINT.model(case.options, case.x.shape[1:], state.meta)
    with pytest.raises(ValueError, match=r"recent|log of the last texts"):
        served.load_state_dict(damaged)


def tensors_of(named: Mapping[str, torch.Tensor | Rows]) -> dict[str, torch.Tensor]:
    return {name: value.tensor if isinstance(value, Rows) else value for name, value in named.items()}


def test_a_forgetting_factor_fades_all_sums_alike_and_cannot_be_undone() -> None:
    case = a_case(forgetting=0.9)
    learner = learned(case, [0, 1, 2, 3], size=1)
    model = learner._model
    assert learner._sums.counts.sum().item() == pytest.approx(1 + 0.9 + 0.81 + 0.729)
    torch.testing.assert_close(model.counts.sum(0), model.lengths)
    with pytest.raises(ValueError, match="forgetting"):
        learner.forget(batch(case, [0]))
