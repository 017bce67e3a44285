"""The learner of most people: the contract, the weights beside scipy's, evidence that nobody learns, corrections."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError
from scipy.optimize import minimize
from torch import Tensor

from models.auto import HEAD_ALONE, AutoLearner, ImageAutoOptions
from models.evaluation.held_out import is_held_out
from models.learner import State, structural_fields, update_generator
from models.memory import records_of
from models.pooling import PRIOR, fitted, heard, pooled, right
from models.registry import BUILTIN
from tests.models.contract import SEED, Case, LearnerContract, digits, same, texts

SMALL: dict[str, dict[str, Any]] = {
    "image-auto": {
        "head": {"width": 64},
        "network": {"width": 8, "hidden": 16, "replay_slots": 24, "replay_draws": 4},
    },
    "text-auto": {
        "head": {"width": 64, "buckets": 512},
        "network": {"buckets": 512, "dim": 8, "words": False, "replay_slots": 24, "replay_draws": 4},
    },
}


def case(name: str) -> Case:
    blueprint = BUILTIN[name]
    made = blueprint.options.model_validate(SMALL[name])
    return Case(blueprint, made, *(digits() if name == "image-auto" else texts()))


def learner_of(one: Case, updates: int) -> AutoLearner:
    learner = one.learned(updates)
    assert isinstance(learner, AutoLearner)
    return learner


def untrained(one: Case) -> AutoLearner:
    learner = one.learner(SEED + 1)
    assert isinstance(learner, AutoLearner)
    return learner


class TestContract(LearnerContract):
    @pytest.fixture(params=list(SMALL))
    def case(self, request: pytest.FixtureRequest) -> Case:
        return case(request.param)


@pytest.mark.parametrize("name", SMALL)
def test_goes_on_to_the_last_bit_with_evidence(name: str) -> None:
    """The suite's own test ends before there is any."""
    one = case(name)
    learner, restored = learner_of(one, 40), one.learner(SEED + 1)
    restored.restore(learner.capture())
    assert len(learner._evidence)
    assert not torch.equal(learner._weights[:2], HEAD_ALONE)
    assert one.learn(restored, range(40, 60)) == one.learn(learner, range(40, 60))
    assert same(restored.capture(), learner.capture())


def test_evidence_calibrates_and_nothing_else_does() -> None:
    with pytest.raises(ValidationError, match=r"leave network\.calibrate at true"):
        ImageAutoOptions.model_validate({"network": {"calibrate": False}})
    older = ImageAutoOptions.model_validate({}).model_dump()
    del older["network"]["calibrate"]  # it came later
    assert ImageAutoOptions.of_version(older).network.calibrate
    assert ImageAutoOptions.of_version({}).network.calibrate


def test_without_evidence_the_head_answers_alone() -> None:
    one = case("image-auto")
    model = learner_of(one, 4).model
    torch.testing.assert_close(model.classify(one.x[:50]), model.head.classify(one.x[:50]))


def fading(one: Case) -> Case:
    """With a head that forgets."""
    parts = SMALL["image-auto"]
    return replace(
        one, options=one.blueprint.options.model_validate({**parts, "head": {"width": 64, "forgetting": 0.999}})
    )


def test_evidence_is_learned_by_the_head_alone() -> None:
    learner = learner_of(case("image-auto"), 60)
    kept = set(learner._evidence.remembered())
    assert kept
    assert not kept & set(learner.inner.remembered())
    assert learner.inner._seen.total() == 8 * 60 - len(kept)
    assert learner._head.counts.sum() == 8 * 60
    assert all(is_held_out(id_.hex(), 0.1) for id_ in kept)


def test_evidence_is_learned_by_neither_where_old_records_fade() -> None:
    one = case("image-auto")
    learner, without = learner_of(fading(one), 60), fading(one).learner()
    assert isinstance(without, AutoLearner)
    kept = set(learner._evidence.remembered())
    assert kept
    for update in range(60):
        batch = one.batch(8 * update, 8)
        rest = [row for row, id_ in enumerate(batch.ids.tolist()) if bytes(id_) not in kept]
        without._head.learn(batch.rows(rest), update_generator(SEED, update))
    assert same(without._head.capture(), learner._head.capture())


def test_evidence_is_dropped_where_the_head_has_not_learned_it() -> None:
    """After `forgetting = 1` in place of less, and in versions of before: it would be taken out of what has it not."""
    fades, exact = fading(case("image-auto")), case("image-auto")
    state = learner_of(fades, 40).capture()
    kept, dropped, former = (untrained(one) for one in (fades, exact, exact))
    kept.restore(state)
    dropped.restore(state)
    meta = dict(learner_of(exact, 40).capture().meta)
    del meta["head_learns_evidence"]
    former.restore(replace(learner_of(exact, 40).capture(), meta=meta))
    assert [len(learner._evidence) > 0 for learner in (kept, dropped, former)] == [True, False, False]
    assert exact.learn(dropped, range(40, 60))


def test_evidence_that_comes_again_is_learned_once() -> None:
    """And what the network remembers is none when it comes again."""
    one, parts = case("image-auto"), SMALL["image-auto"]
    roomy = {**parts, "network": {**parts["network"], "replay_slots": 480}}
    one = replace(one, options=one.blueprint.options.model_validate(roomy))
    learner = learner_of(one, 60)
    kept = len(learner._evidence)
    one.learn(learner, range(60))
    assert learner._head.counts.sum() == 2 * 8 * 60 - kept
    assert len(learner._evidence) == kept


@pytest.mark.parametrize(
    ("name", "head"),
    [("image-auto", {}), ("text-auto", {}), ("text-auto", {"counts": "records"}), ("image-auto", {"head": "lda"})],
)
def test_the_head_says_what_it_would_without_the_evidence(name: str, head: dict[str, Any]) -> None:
    one = case(name)
    options: Any = one.blueprint.options.model_validate({**SMALL[name], "head": {**SMALL[name]["head"], **head}})
    one = replace(one, options=options)
    learner, without = learner_of(one, 60), one.learner()
    assert isinstance(without, AutoLearner)
    x, y = learner._evidence.records()
    kept, before = set(learner._evidence.remembered()), learner._head.capture()
    assert kept
    for update in range(60):
        batch = one.batch(8 * update, 8)
        rest = [row for row, id_ in enumerate(batch.ids.tolist()) if bytes(id_) not in kept]
        without._head.learn(batch.rows(rest), update_generator(SEED, update))
    without._head._ridge = learner._head._ridge  # which λ is best depends on what came
    without._head.model.take(without._head._sums.solve(options.head.head, without._head._ridge_now()))
    model = without._head.model
    model.sharpness.copy_(learner._head.sharpness_now)
    expected = model.probabilities(model.look(x)).log()
    found = learner._head.left_out(x, y)
    torch.testing.assert_close(found, expected.to(found), atol=2e-3, rtol=1e-2)
    assert same(learner._head.capture(), before)


def test_evidence_tells_what_is_like_learned_texts_in_a_sorted_stream() -> None:
    """The last records are of the last class, and say little of the others."""
    rng = np.random.default_rng(0)
    labels = [label for label in "abcd" for _ in range(400)]
    # Each class has a vocabulary of its own, of a quarter of the words of the class before.
    words = {label: [f"{label}{number}" for number in range(800 >> 2 * at)] for at, label in enumerate("abcd")}
    drawn = [" ".join(rng.choice(words[label], 4)) for label in (*labels, *("abcd" * 100))]
    x = torch.tensor([[*map(ord, text.ljust(32, "\0"))] for text in drawn], dtype=torch.int32)
    one = replace(case("text-auto"), x=x, labels=[*labels, *("abcd" * 100)])
    learner = one.learner()
    assert isinstance(learner, AutoLearner)
    for update in range(100):
        learner.learn(one.batch(16 * update, 16), update_generator(SEED, update))
    learner.capture()
    called = learner.model.recognise(one.x[1600:])[1].float().mean().item()
    assert 0.005 < called < 0.2  # a quarter by the last records
    before = one.learner()
    assert isinstance(before, AutoLearner)
    state = learner.capture()
    before.restore(State(state.serving, state.training, {k: v for k, v in state.meta.items() if k != "tells_familiar"}))
    assert not before.capture().meta["tells_familiar"]


def test_a_class_that_comes_as_one_batch_has_evidence_too() -> None:
    x, labels = digits()
    rows = sorted(range(800), key=lambda row: labels[row])
    one = replace(case("image-auto"), x=x[rows], labels=[labels[row] for row in rows])
    learner = one.learner()
    assert isinstance(learner, AutoLearner)
    for update in range(10):
        report = learner.learn(one.batch(80 * update, 80), update_generator(SEED, update))
        assert math.isfinite(report.loss)
    assert {learner.model.classes[number] for number in learner._evidence.records()[1].tolist()} == set(labels)
    assert learner._head.counts.sum() == 800


def answers(noise: float, y: Tensor, rng: torch.Generator) -> Tensor:
    """Logarithms (N, 4) of what somebody says who is right the more, the less noise there is."""
    scores = torch.nn.functional.one_hot(y, 4) + noise * torch.randn(len(y), 4, generator=rng)
    return scores.double().log_softmax(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.floats(0, 3), st.floats(0, 3), st.integers(0, 100))
def test_the_weights_are_the_best_there_are(count: int, first: float, second: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (count,), generator=rng)
    logs = torch.stack([answers(first, y, rng), answers(second, y, rng)], 1)  # (N, 2, 4)

    def loss(weights: Any) -> float:
        said = np.einsum("i,nik->nk", weights, logs.numpy())
        told = said[np.arange(count), y.numpy()] - np.log(np.exp(said).sum(1))
        return float(-told.sum() + PRIOR / 2 * ((weights - np.array([1.0, 0.0])) ** 2).sum())

    oracle = minimize(loss, [1.0, 0.1], bounds=[(0, None), (0, None)], tol=1e-12)
    found = fitted(logs, y)
    assert (found >= 0).all()
    assert loss(found.numpy()) <= oracle.fun + 1e-4  # in single precision


def test_who_knows_better_is_heard() -> None:
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(4, (500,), generator=rng)
    wise, wrong = answers(0.1, y, rng), answers(0.1, (y + 1) % 4, rng)
    head, network = fitted(torch.stack([wrong, wise], 1), y).tolist()
    assert head == 0 < network
    a, b = fitted(torch.stack([wise, wrong], 1), y).tolist()
    assert b == 0 < a
    assert torch.equal(pooled(torch.stack([wise, wrong], 1), HEAD_ALONE), wise)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.floats(0, 3), st.floats(0, 3), st.integers(0, 100))
def test_the_pool_is_right_more_often_than_the_head_by_more_than_chance(
    count: int, first: float, second: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (count,), generator=rng)
    logs = torch.stack([answers(first, y, rng), answers(second, y, rng)], 1)  # (N, 2, 4)
    found, best = heard(logs, y), fitted(logs, y)
    both, alone = right(pooled(logs, best), y), right(logs[:, 0], y)
    gained, differ = int(both.sum() - alone.sum()), int((both != alone).sum())
    if gained >= math.sqrt(differ):
        assert torch.equal(found, best)
    else:
        assert found[1] == 0 <= found[0]  # 0: what the head says is worse than nothing


def test_how_sure_the_head_is_by_its_last_records_does_not_matter() -> None:
    one = case("image-auto")
    model = learner_of(one, 60).model
    before = model.classify(one.x[:50])
    model.head.sharpness /= 2
    torch.testing.assert_close(model.classify(one.x[:50]), before, atol=1e-3, rtol=1e-2)


def test_a_corrected_record_is_corrected_in_the_sums_too() -> None:
    one = case("image-auto")
    learner = learner_of(one, 10)
    id_ = next(iter(learner.inner.remembered()))
    before = learner._head.counts.clone()
    was = learner.inner.kept(id_).labels[0]
    assert learner.correct(id_, "another", update_generator(SEED, 10))
    changed = learner._head.counts - torch.nn.functional.pad(before, (0, 1))
    assert changed[learner.model.classes.index(str(was))] == -1
    assert changed[learner.model.classes.index("another")] == 1
    assert learner.inner.kept(id_).labels == ["another"]
    one.learn(learner, range(11, 20))


def test_where_old_records_fade_a_corrected_one_is_learned_once_more() -> None:
    """How much of it is left is not known there; a correction must stop nothing."""
    one = case("image-auto")
    learner = learner_of(fading(one), 10)
    id_ = next(iter(learner.inner.remembered()))
    assert learner.correct(id_, "another", update_generator(SEED, 10))
    assert learner.inner.kept(id_).labels == ["another"]
    assert learner._head.counts[-1] == 1
    assert learner._head.classes == learner.inner.model.classes
    one.learn(learner, range(11, 14))


@pytest.mark.parametrize("fades", [False, True])
def test_evidence_can_be_corrected(fades: bool) -> None:
    one = fading(case("image-auto")) if fades else case("image-auto")
    learner = learner_of(one, 60)
    id_ = next(iter(learner._evidence.remembered()))
    was, before = records_of(id_, learner._evidence.columns(), learner.model.classes), learner._head.counts.clone()
    for label in (learner.model.classes[3], "unheard of"):
        assert learner.correct(id_, label, update_generator(SEED, 60))
        assert records_of(id_, learner._evidence.columns(), learner.model.classes).labels == [label]
        assert learner._head.classes == learner.inner.model.classes
    assert "unheard of" in learner._head.classes
    changed = learner._head.counts - torch.nn.functional.pad(before, (0, 1))
    if not fades:
        assert changed[learner._head.classes.index(str(was.labels[0]))] == -1
        assert changed[-1] == 1
    one.learn(learner, range(61, 64))


def test_evidence_of_a_class_that_turned_is_dropped() -> None:
    learner = learner_of(case("image-auto"), 60)
    label, before = learner.model.classes[0], len(learner._evidence)
    of_it = int((learner._evidence.records()[1] == 0).sum())
    assert of_it
    learner.flush(label)
    assert len(learner._evidence) == before - of_it
    assert not (learner._evidence.records()[1] == 0).any()


def test_options_of_both_parts_shape_it() -> None:
    shaping = structural_fields(ImageAutoOptions)
    assert {"head.width", "network.width", "network.replay_slots"} <= shaping
    with pytest.raises(ValidationError, match=r"set head\.unknown"):
        ImageAutoOptions.model_validate({"network": {"unknown": 0.05}})
