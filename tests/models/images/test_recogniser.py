"""The recogniser: the contract, order, unknown records, what it starts from. Its closed form: `test_recognition`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from models.capabilities import Classifier, Recogniser
from models.images import recogniser as image_recogniser
from models.images.backbone import torchvision_network
from models.images.recogniser import BLUEPRINT, ImageRecogniserLearner, ImageRecogniserOptions
from models.images.recognition import NEVER, distances
from models.learner import Batch, Reference, Rows, Source, State, module_on, update_generator
from models.registry import BUILTIN
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, cloned, digits, same

FIVE = ((0, 0), (-2, 0), (2, 0), (0, -2), (0, 2))
SMALL: Mapping[str, Any] = {"source": "before", "cells": 1, "calibration_pictures": 3}


@cache
def version() -> Source:
    """A version of an image-classifier that has learned digits below five."""
    blueprint = BUILTIN["image-classifier"]
    settings = {"width": 8, "hidden": 16, "replay_slots": 200, "replay_draws": 8, "learning_rate": 4e-3}
    rows = [row for row, label in enumerate(digits()[1]) if label < "5"]
    x, labels = digits()[0][rows], [digits()[1][row] for row in rows]
    case = Case(blueprint, blueprint.options.model_validate(settings), x, labels)
    state = cloned(case.learned(40).capture())
    serving = {name: value for name, value in state.serving.items() if isinstance(value, Tensor)}
    training = {name: value for name, value in state.training.items() if isinstance(value, Tensor)}
    return Source("digest", serving, training, {}, "image-classifier", settings, (1, 8, 8), state.meta)


@cache
def file() -> Source:
    return Source(
        "digest", module_on(lambda: torchvision_network("shufflenet_v2_x0_5", num_classes=7), CPU).state_dict()
    )


def started(**options: object) -> Case:
    made = ImageRecogniserOptions.model_validate({**SMALL, **options})
    return Case(BLUEPRINT, made, *digits(), sources={"source": version(), "weights": file()})


BARE = Case(BLUEPRINT, ImageRecogniserOptions(calibration_pictures=3), *digits())
CASES = {
    "no backbone": BARE,
    "version": started(),
    "version, its features, no statistics": started(cells=0, shift_pixels=0, source_statistics=False, half=True),
}


class TestContract(LearnerContract):
    @pytest.fixture(params=list(CASES.values()), ids=list(CASES))
    def case(self, request: pytest.FixtureRequest) -> Case:
        assert isinstance(request.param, Case)
        return request.param

    def test_other_seed_other_bits(self, case: Case) -> None:
        """Nothing in it is random: what it learns is a function of the records."""
        assert same(case.learned().capture(), case.learned(seed=SEED + 1).capture())


def learner_of(case: Case) -> ImageRecogniserLearner:
    ours = case.learner()
    assert isinstance(ours, ImageRecogniserLearner)
    return ours


ORDER = torch.randperm(1797, generator=torch.Generator().manual_seed(0)).tolist()  # the set itself goes by writers


def rows_of(label: str, count: int, after: int = 0) -> list[int]:
    return [row for row in ORDER if digits()[1][row] == label][after : after + count]


def batch_of(case: Case, rows: list[int]) -> Batch:
    parts = [case.batch(row, 1) for row in rows]
    return Batch(
        torch.cat([part.x for part in parts]),
        [part.labels[0] for part in parts],
        torch.cat([part.origins for part in parts]),
        torch.cat([part.ids for part in parts]),
    )


def enrolled(case: Case, rows: list[int], size: int = 7) -> ImageRecogniserLearner:
    ours = learner_of(case)
    for start in range(0, len(rows), size):
        ours.learn(batch_of(case, rows[start : start + size]), update_generator(SEED, start))
    return ours


NEW = [row for label in "56789" for row in rows_of(label, 5)]


def test_features_are_means_of_five_places() -> None:
    x = digits()[0][:6]
    still, moved = learner_of(started(shift_pixels=0)).model, learner_of(started(shift_pixels=2)).model
    wide = F.pad(x.float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    places = [wide[:, :, 2 + down : 10 + down, 2 + right : 10 + right] for down, right in FIVE]
    expected = torch.stack([still.features(place) for place in places]).mean(0)
    torch.testing.assert_close(moved.features(x), expected)
    assert not torch.allclose(moved.features(x), still.features(x), atol=1e-3)


def test_the_order_of_records_and_their_batches_do_not_matter() -> None:
    one = started()
    rows = [row for label in "56789" for row in rows_of(label, 9)]
    first, x = enrolled(one, rows), digits()[0][900:1000]
    for seed, size in ((1, 7), (2, 1), (3, 45)):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        other = enrolled(one, [rows[place] for place in order], size)
        columns = [other.model.classes.index(label) for label in first.model.classes]
        p, unknown = first.model.recognise(x)
        q, as_well = other.model.recognise(x)
        torch.testing.assert_close(q[:, columns], p, rtol=0, atol=1e-5)
        assert torch.equal(unknown, as_well)
        torch.testing.assert_close(other.model.threshold, first.model.threshold, rtol=1e-4, atol=0)


def test_one_to_five_pictures_enrol_a_class_at_once() -> None:
    one = started(cells=2)
    ours = enrolled(one, NEW)
    assert isinstance(ours.model, Classifier)
    assert isinstance(ours.model, Recogniser)
    test = [row for label in "56789" for row in rows_of(label, 40, after=20)]
    x, labels = digits()[0][test], [digits()[1][row] for row in test]
    hits = [ours.model.classes[k] == label for k, label in zip(ours.model.classify(x).argmax(1), labels, strict=True)]
    assert sum(hits) > 0.8 * len(hits)
    ours.learn(batch_of(one, rows_of("0", 1)), update_generator(SEED, 9))
    zeros = ours.model.classify(digits()[0][rows_of("0", 40, after=20)]).argmax(1)
    assert (zeros == 5).float().mean() > 0.7


def test_what_resembles_none_is_unknown_and_what_is_enrolled_is_not() -> None:
    one = started(cells=2)
    ours = enrolled(one, NEW)
    test = [row for label in "56789" for row in rows_of(label, 40, after=20)]
    _, rejected = ours.model.recognise(digits()[0][test])
    assert rejected.float().mean() < 0.25
    noise = torch.randint(17, (100, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 15
    for strange in (noise.to(torch.uint8), 255 - digits()[0][test]):
        assert ours.model.recognise(strange)[1].float().mean() > 0.9


def test_a_class_of_one_picture_competes_fairly() -> None:
    ours = enrolled(started(), [*NEW, *rows_of("0", 1)])
    u = ours.model.features(digits()[0][:50])
    d = distances(u, ours.model.whitener, ours.model.means) - ours.model.surplus
    assert ours.model.surplus[-1] == pytest.approx(5 * ours.model.surplus[0].item())
    torch.testing.assert_close(ours.model.answer(u)[0], (-0.5 * ours.model.sharpness * d).log_softmax(1).float())


def test_nothing_is_unknown_before_there_are_two_pictures() -> None:
    one = started()
    ours = learner_of(one)
    assert ours.model.recognise(one.x[:2])[1].all()  # without a class there is none to resemble
    ours.learn(batch_of(one, [5]), update_generator(SEED, 0))
    assert ours.model.threshold == torch.tensor(NEVER)
    assert not ours.model.recognise(255 - one.x[:9])[1].any()
    ours.learn(batch_of(one, [6]), update_generator(SEED, 1))
    assert ours.model.threshold < NEVER / 2  # each is what the other is not


@pytest.mark.parametrize("case", [started(), BARE], ids=["over a version", "no backbone"])
def test_one_picture_each_tells_classes_apart(case: Case) -> None:
    """Five digits; chance is 0.2."""
    names = "56789"
    ours = enrolled(case, [row for label in names for row in rows_of(label, 1)])
    asked = [row for label in names for row in rows_of(label, 100, after=1)]
    p, unknown = ours.model.recognise(case.x[asked])
    right = [ours.model.classes[number] == case.labels[row] for number, row in zip(p.argmax(1), asked, strict=True)]
    assert sum(right) > 0.5 * len(asked)
    assert p.amax(1).mean() < sum(right) / len(asked) + 0.2  # it does not claim to know more
    assert unknown.float().mean() < 0.4


@pytest.mark.parametrize("known", [5, 7])
def test_without_a_backbone_no_more_is_called_unknown_than_is_promised(known: int) -> None:
    labels = "0123456789"[:known]
    ours = enrolled(BARE, [row for label in labels for row in rows_of(label, 5)])
    asked = [row for label in labels for row in rows_of(label, 60, after=5)]
    assert ours.model.recognise(BARE.x[asked])[1].float().mean() < 1.5 * ours.options.false_rejection


def test_a_version_that_does_not_know_folds_goes_on_as_it_was() -> None:
    ours = enrolled(BARE, NEW)
    state = ours.capture()
    within = ours._within.sum(0)
    before = State(
        state.serving,
        {**{name: value for name, value in state.training.items() if name != "warped"}, "within": within},
        state.meta,
    )
    older = learner_of(BARE)
    older.restore(before)
    assert older.capture().training.keys() == state.training.keys() - {"warped"}
    for one in (older, ours):
        one.learn(batch_of(BARE, rows_of("5", 3, after=30)), update_generator(SEED, 9))
    torch.testing.assert_close(older.model.whitener, ours.model.whitener)
    assert older.model.threshold < ours.model.threshold


@pytest.mark.parametrize("each", [1, 5])
def test_without_a_backbone_what_was_never_met_is_unknown(each: int) -> None:
    ours = enrolled(BARE, [row for label in "56789" for row in rows_of(label, each)])
    strange = torch.randint(256, (100, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert ours.model.recognise(strange)[1].float().mean() > 0.8


def test_without_a_backbone_five_pictures_each_do_better_than_pixels() -> None:
    rows = [row for label in "0123456789" for row in rows_of(label, 5)]
    asked = [row for label in "0123456789" for row in rows_of(label, 50, after=5)]
    ours = enrolled(BARE, rows)
    found = [ours.model.classes[number] for number in ours.model.classify(BARE.x[asked]).argmax(1)]
    pixels = BARE.x.flatten(1).double()
    means = torch.stack([pixels[rows_of(str(digit), 5)].mean(0) for digit in range(10)])
    nearest = [str(number) for number in torch.cdist(pixels[asked], means).argmin(1).tolist()]
    wrong, wrong_pixels = (
        sum(name != BARE.labels[row] for name, row in zip(names, asked, strict=True)) for names in (found, nearest)
    )
    assert wrong < 0.75 * wrong_pixels


def test_the_records_kept_are_a_sample_that_does_not_depend_on_the_order() -> None:
    one = started(calibration_pictures=4)
    rows = rows_of("3", 12)
    states = [cloned(enrolled(one, order).capture()).training for order in (rows, rows[::-1], rows + rows[:5])]
    digests = sorted(bytes(digest) for digest in batch_of(one, rows).ids.tolist())[:4]
    for state in states:
        assert [bytes(digest) for digest in state["kept/ids"][0].tolist()] == digests  # type: ignore[index]
        torch.testing.assert_close(state["kept/u"], states[0]["kept/u"])


def test_the_report_is_from_before_the_update() -> None:
    one = started()
    ours = enrolled(one, NEW)
    batch = batch_of(one, [*rows_of("5", 3, after=30), *rows_of("0", 1)])
    p, unknown = ours.model.recognise(batch.x)
    report = ours.learn(batch, update_generator(SEED, 9))
    k = ours.model.classes.index("5")
    expected = -(p[:3, k].log().sum() + math.log(1 / 6)) / 4  # six classes there are, with the new one
    assert report.loss == pytest.approx(expected.item(), rel=1e-4)
    assert report.metrics["false_rejections"] == pytest.approx(unknown[:3].float().mean().item())
    assert report.metrics["rejections_of_new"] == float(unknown[3])


def test_a_backbone_and_what_a_source_tells_are_given_once() -> None:
    one = started()
    ours = enrolled(one, NEW)
    ours.capture()
    state = ours.capture()
    names = [name for name in state.serving if name.startswith(("backbone.", "background_"))]
    assert len(names) > 5, names
    for value in [*(state.serving[name] for name in names), state.training["within"]]:
        assert not isinstance(value, Rows) or len(value.changed) == 0  # type: ignore[arg-type]
    assert isinstance(state.training["within"], Rows)


def test_weights_from_a_file_are_needed_once() -> None:
    one = started(source=None, architecture="shufflenet_v2_x0_5", weights="w.pth", layers=("maxpool",), half=True)
    ours = enrolled(one, NEW[:10])
    assert BLUEPRINT.sources(one.options) == {"weights": Reference("file", "w.pth")}
    state = cloned(ours.capture())
    assert same(one.restored(state).capture(), state)
    served = BLUEPRINT.model(one.options, (1, 8, 8), state.meta)
    served.load_state_dict(state.serving)
    assert isinstance(served, Classifier)
    assert torch.equal(served.classify(one.x[:5]), ours.model.classify(one.x[:5]))


def test_a_label_beyond_the_limit_is_refused() -> None:
    one = started(max_classes=1)
    ours = learner_of(one)
    assert list(ours.refuses(["a", "b", "a"])) == [1]
    with pytest.raises(ValueError, match="max_classes"):
        ours.learn(one.batch(0, 2, ["a", "b"]), update_generator(SEED, 0))
    assert ours.model.classes == []


def test_what_it_needs_is_named() -> None:
    assert BLUEPRINT.sources(started().options) == {"source": Reference("version", "before")}
    with pytest.raises(ValidationError, match="Name their architecture"):
        ImageRecogniserOptions(weights="w.pth")
    assert BLUEPRINT.sources(BARE.options) == {}


def test_a_source_without_a_memory_is_refused_unless_its_statistics_are_not_wanted() -> None:
    bare = replace(version(), training={})
    with pytest.raises(ValueError, match="no replay memory"):
        replace(started(), sources={"source": bare}).learner()
    replace(started(source_statistics=False), sources={"source": bare}).learner()


def test_a_backbone_with_too_many_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_recogniser, "MAX_DIM", 20)
    with pytest.raises(ValueError, match="fewer layers or cells"):
        learner_of(started())
