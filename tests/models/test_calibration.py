"""How sure networks are: one number, found on records that they do not learn, in any order of the stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch.nn import functional as F

from models.capabilities import Classifier
from models.classifier import ClassifierLearner
from models.evidence import FIRST
from models.images.classifier import BLUEPRINT, ImageClassifierOptions
from models.learner import update_generator
from tests.device import CPU
from tests.models.contract import SEED, Case, cloned, digits, same

LEARNED = 1400


def case(*, singly: bool = False, **options: Any) -> Case:
    """Digits in random order, or a class at a time; the records behind `LEARNED` are of all classes."""
    x, labels = digits()
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED)).tolist()
    first = sorted(rows[:LEARNED], key=lambda row: labels[row]) if singly else rows[:LEARNED]
    ordered = [*first, *rows[LEARNED:]]
    options = {"width": 8, "hidden": 32, **options}
    return Case(BLUEPRINT, ImageClassifierOptions(**options), x[ordered], [labels[row] for row in ordered])


def taught(one: Case, until: int = LEARNED, size: int = 64) -> ClassifierLearner[Any]:
    learner = one.learner(device=CPU)
    assert isinstance(learner, ClassifierLearner)
    for update, start in enumerate(range(0, until, size)):
        learner.learn(one.batch(start, min(size, until - start)), update_generator(SEED, update))
    return learner


def calibration_error(one: Case, model: object) -> float:
    """ECE in 15 bins, by hand, of the records that were not learned."""
    assert isinstance(model, Classifier)
    sure, best = model.classify(one.x[LEARNED:]).max(1)
    right = torch.tensor(
        [model.classes[k] == label for k, label in zip(best.tolist(), one.labels[LEARNED:], strict=True)]
    )
    gaps = [
        (sure[here].sum() - right[here].sum()).abs().item()
        for low in range(15)
        if (here := (sure > low / 15) & (sure <= (low + 1) / 15)).any()
    ]
    return sum(gaps) / len(right)


@pytest.mark.parametrize("singly", [False, True])
def test_a_network_is_as_sure_as_it_is_right(*, singly: bool) -> None:
    one, plain = case(singly=singly), case(singly=singly, calibrate=False)
    ours, theirs = taught(one).model, taught(plain).model
    assert theirs.sharpness.tolist() == [1]
    assert calibration_error(plain, theirs) > 0.06
    assert calibration_error(one, ours) < 0.05


def test_evidence_is_never_learned_and_stays_what_it_is() -> None:
    one = case()
    ours = taught(one)
    calibration = ours._calibration
    assert calibration is not None
    evidence = set(calibration.remembered())
    assert 20 < len(evidence) < LEARNED / 10
    memory = set(ours.remembered()) - evidence
    assert len(memory) + len(evidence) == LEARNED  # each is one or the other: the memory has room for all
    again = [row for row in range(LEARNED) if bytes(one.batch(row, 1).ids[0].tolist()) in evidence]
    before = cloned(ours.capture())
    for row in again[:5]:
        ours.learn(one.batch(row, 1), update_generator(SEED, 1000 + row))
    after = cloned(ours.capture())
    for name, value in before.serving.items():
        if name != "sharpness":
            assert torch.equal(value, after.serving[name]), name  # type: ignore[arg-type]


def test_a_class_of_few_records_is_learned_whole() -> None:
    ours = taught(case(), until=5 * FIRST, size=8)
    assert ours._calibration is not None
    assert not ours._calibration.remembered()


def test_sharpness_explains_evidence_best() -> None:
    one = case()
    ours = taught(one)
    calibration = ours._calibration
    assert calibration is not None
    t = calibration.found(ours.log_probabilities)
    x, y = calibration.records()
    logs = ours.log_probabilities(x).double()

    def objective(value: float) -> float:
        return F.cross_entropy(value * logs, y, reduction="sum").item() + 2 * (value - 1) ** 2

    assert objective(t.item()) < min(objective(0.98 * t.item()), objective(1.02 * t.item()))


def test_a_label_of_evidence_is_corrected_there() -> None:
    one = case()
    ours = taught(one)
    assert ours._calibration is not None
    id_ = min(ours._calibration.remembered())
    assert ours.correct(id_, "another", update_generator(SEED, 500))
    state = cloned(ours.capture())
    row = [bytes(ids.tolist()) for ids in cast(torch.Tensor, state.training["evidence/ids"])].index(id_)
    assert cast(torch.Tensor, state.training["evidence/y"])[row] == ours.model.classes.index("another") == 10


def test_it_goes_on_to_the_last_bit_with_evidence() -> None:
    one = case()
    ours, restored = taught(one, until=640), one.learner(device=CPU)
    restored.restore(cloned(ours.capture()))
    for update in range(10, 20):
        losses = [
            each.learn(one.batch(64 * update, 64), update_generator(SEED, update)).loss for each in (ours, restored)
        ]
        assert losses[0] == losses[1]
    assert same(ours.capture(), restored.capture())


def test_a_version_of_before_answers_as_it_did() -> None:
    """Its options say nothing of evidence, and its state has no sharpness."""
    assert not ImageClassifierOptions.of_version({}).calibrate
    one = case(calibrate=False)
    ours = taught(one, until=320)
    state = cloned(ours.capture())
    assert state.serving["sharpness"].tolist() == [1]  # type: ignore[union-attr]
    before = replace(state, serving={name: value for name, value in state.serving.items() if name != "sharpness"})
    restored = one.learner(device=CPU)
    restored.restore(before)
    served = BLUEPRINT.model(one.options, (1, 8, 8), before.meta)
    served.load_state_dict(before.serving)
    expected = ours.model(one.x[:20]).softmax(1)
    for model in (ours.model, restored.model, served):
        assert isinstance(model, Classifier)
        torch.testing.assert_close(model.classify(one.x[:20]), expected.detach())
    assert same(restored.capture(), ours.capture())


def test_evidence_of_a_class_that_turned_is_dropped() -> None:
    ours = taught(case())
    calibration = ours._calibration
    assert calibration is not None
    before = calibration.records()[1].clone()
    ours.flush(ours.model.classes[0])
    assert sorted(before[before != 0].tolist()) == sorted(calibration.records()[1].tolist())
    assert (before == 0).any()
