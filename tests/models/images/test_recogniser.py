"""The recogniser: the contract, its closed form against plain recounts, order, unknown records, what it starts from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.nn import functional as F

from models.capabilities import Classifier, Recogniser
from models.images import recogniser as image_recogniser
from models.images.backbone import torchvision_network
from models.images.recogniser import BLUEPRINT, ImageRecogniserLearner, ImageRecogniserOptions
from models.images.recognition import NEVER, background, distances, fit, limit, shrunk
from models.learner import Batch, Reference, Rows, Source, module_on, update_generator
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


def gaussian(counts: list[int], dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Records around as many means as there are counts, their classes, and S₀."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    means = 3 * torch.randn(len(counts), dim, generator=generator, dtype=torch.float64)
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    u = means[y] + torch.randn(len(y), dim, generator=generator, dtype=torch.float64) @ root.T
    return u, y, torch.eye(dim, dtype=torch.float64) + 0.1 * root @ root.T


def plain(u: Tensor, y: Tensor, within: Tensor, prior: float, of: Tensor) -> tuple[np.ndarray[Any, Any], float]:
    """Squared Mahalanobis distances of records to the means of the classes, by definition, and the degrees of A."""
    a, means = prior * within.numpy(), []
    for c in torch.unique(y):
        mine = u[y == c].numpy()
        means.append(mine.mean(0))
        a = a + (mine - means[-1]).T @ (mine - means[-1])
    degrees = prior + len(y) - len(means)
    inverse = np.linalg.inv(a / degrees)
    away = of.numpy()[:, None] - np.stack(means)
    return np.einsum("nkd,de,nke->nk", away, inverse, away), degrees


def fitted(u: Tensor, y: Tensor, within: Tensor, kept: Tensor, share: float = 0.1, prior: float = 7.0) -> Any:
    counts, sums = torch.bincount(y), torch.stack([u[y == c].sum(0) for c in torch.unique(y)])
    nothing = torch.zeros(len(kept), dtype=torch.float64)
    return fit(
        counts, sums, u.T @ u, within, u[kept].float(), y[kept], nothing, prior_records=prior, false_rejection=share
    )


def test_distances_are_those_of_the_definition() -> None:
    u, y, within = gaussian([5, 3, 6])
    found = fitted(u, y, within, torch.arange(len(y)))
    expected, _ = plain(u, y, within, 7.0, u)
    torch.testing.assert_close(
        distances(u.float(), found.whitener, found.means), torch.from_numpy(expected), rtol=1e-4, atol=1e-3
    )


def test_without_a_prior_it_is_linear_discriminant_analysis() -> None:
    u, y, within = gaussian([40, 40, 40])
    found = fitted(u, y, within, torch.arange(0, len(y), 9), prior=1e-9)
    theirs = LinearDiscriminantAnalysis("lsqr", priors=[1 / 3] * 3, store_covariance=True).fit(u.numpy(), y.numpy())
    # Theirs divides the scatter by n, ours by n - K.
    logits = -0.5 * distances(u.float(), found.whitener, found.means) * 120 / 117
    expected = torch.from_numpy(theirs.predict_proba(u.numpy()))
    torch.testing.assert_close(logits.softmax(1), expected, rtol=1e-3, atol=1e-5)


def test_leaving_one_out_is_what_learning_without_it_gives() -> None:
    u, y, within = gaussian([5, 3, 6, 1])
    kept = torch.tensor([0, 2, 5, 6, 9, 13, 14])  # the last is alone in its class: nothing is left without it
    found, own, others, fits = fitted(u, y, within, kept), [], [], []
    n = torch.bincount(y).double()
    for i in kept[:-1]:
        rest = torch.arange(len(y)) != i
        d, _ = plain(u[rest], y[rest], within, 7.0, u[i : i + 1])
        left = torch.bincount(y[rest]).double()
        own.append(d[0, y[i]] * float(left[y[i]] / (left[y[i]] + 1)))
        others.append(left.numpy())
        fits.append(d[0])
    w = float(np.mean(own))
    torch.testing.assert_close(found.surplus.double(), w / n, rtol=1e-4, atol=0)
    scores = [(d - w / left).min() for d, left in zip(fits, others, strict=True)]
    assert found.threshold.item() == pytest.approx(limit(scores, 0.1), rel=1e-4)
    likelihood = {
        tau: np.mean(
            [
                -np.log(np.exp(-0.5 * tau * (d - w / left - (d - w / left).min())).sum())
                - 0.5 * tau * ((d - w / left)[y[i]] - (d - w / left).min())
                for d, left, i in zip(fits, others, kept, strict=False)
            ]
        )
        for tau in [2.0**-k for k in range(12)]
    }
    assert found.sharpness.item() == max(likelihood, key=lambda tau: float(likelihood[tau]))


def test_the_surplus_makes_the_distance_to_a_mean_of_few_what_it_is_to_the_true_one() -> None:
    generator = torch.Generator().manual_seed(0)
    dim, n = 6, 2
    gaps = []
    for _ in range(200):
        u = torch.randn(n + 1, dim, generator=generator, dtype=torch.float64)
        found = fitted(u[:n], torch.zeros(n, dtype=torch.int64), torch.eye(dim).double(), torch.arange(n), prior=1e6)
        gaps.append((distances(u[n:].float(), found.whitener, found.means) - dim / n).item())
    assert np.mean(gaps) == pytest.approx(dim, rel=0.1)


def test_the_limit_is_a_prediction_bound_of_few_and_a_quantile_of_many() -> None:
    scores = np.random.default_rng(0).normal(size=25)
    bound = scores.mean() + stats.t.ppf(0.9, 24) * scores.std(ddof=1) * math.sqrt(1 + 1 / 25)
    assert limit(scores.tolist(), 0.1) == pytest.approx(bound, rel=1e-4)
    many = np.random.default_rng(0).exponential(size=999)
    assert limit(many.tolist(), 0.1) == np.sort(many)[899]
    assert limit([], 0.1) == limit([3.0], 0.1) == NEVER
    rng, misses = np.random.default_rng(1), []
    for n in (3, 25, 99, 100, 300):
        misses.append(np.mean([rng.normal() > limit(rng.normal(size=n).tolist(), 0.1) for _ in range(1500)]))
    assert misses == pytest.approx([0.1] * 5, abs=0.03)


def test_the_background_is_a_gaussian_around_all_of_it() -> None:
    u, y, _ = gaussian([30, 40])
    told = background(u.float(), y, 0.5)
    total = shrunk(torch.cov(u.T, correction=0), 0.5)
    expected = torch.distributions.MultivariateNormal(u.mean(0), total)
    d0 = distances(u, told.whitener, told.mean[None])[:, 0]
    constant = -0.5 * (torch.logdet(total) + 4 * math.log(2 * math.pi))
    torch.testing.assert_close(constant - 0.5 * d0, expected.log_prob(u), rtol=1e-4, atol=1e-4)  # type: ignore[no-untyped-call]
    away = torch.cat([u[y == c] - u[y == c].mean(0) for c in (0, 1)])
    scatter = away.T @ away
    torch.testing.assert_close(told.within, shrunk(scatter / 68, 0.5), rtol=1e-4, atol=1e-5)


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
    restored = BLUEPRINT.learner(one.options, (1, 8, 8), SEED, CPU)
    restored.restore(state)
    assert same(restored.capture(), state)
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
