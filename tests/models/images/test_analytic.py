"""The classifier in closed form: the contract, its features, its head beside scikit-learn's and beside other orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional as F

from models.analytic import BLOCK, RIDGES, TOGETHER, HeadName, Sums, packed, unpacked
from models.analytic_learner import AnalyticLearner
from models.familiarity import STEPS
from models.images.analytic import BLUEPRINT, ImageAnalytic, ImageAnalyticOptions
from models.images.backbone import Backbone, BackboneOptions, torchvision_network
from models.images.wavelets import Wavelets
from models.learner import Batch, Reference, Rows, Source, State, module_on, tensor, update_generator
from models.registry import BUILTIN
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, cloned, digits, same

HEADS: tuple[HeadName, ...] = ("ridge", "lda", "means")
NAME = "shufflenet_v2_x0_5"  # torchvision's smallest
VERSION: Mapping[str, Any] = {"source": "before"}
MAPS: Mapping[str, Any] = {"source": "before", "layers": ("0", "2"), "half": True}
FILE: Mapping[str, Any] = {"architecture": NAME, "weights": "w.pth"}


def a_case(size: int = 8, **options: object) -> Case:
    return Case(BLUEPRINT, ImageAnalyticOptions.model_validate({"width": 64, **options}), *digits(size))


@cache
def version(updates: int = 30) -> Source:
    """A version of an image-classifier that has learned digits below five."""
    blueprint = BUILTIN["image-classifier"]
    settings = {"width": 8, "hidden": 16, "replay_slots": 40, "replay_draws": 8, "learning_rate": 4e-3}
    rows = [row for row, label in enumerate(digits()[1]) if label < "5"]
    x, labels = digits()[0][rows], [digits()[1][row] for row in rows]
    state = cloned(Case(blueprint, blueprint.options.model_validate(settings), x, labels).learned(updates).capture())
    serving = {name: value for name, value in state.serving.items() if isinstance(value, Tensor)}
    return Source("digest", serving, {}, {}, "image-classifier", settings, (1, 8, 8), state.meta)


@cache
def file() -> Source:
    return Source("digest", module_on(lambda: torchvision_network(NAME, num_classes=7), CPU).state_dict())


def started(features: Mapping[str, Any] = VERSION, updates: int = 30, **options: object) -> Case:
    made = ImageAnalyticOptions.model_validate({"width": 64, "features": features, **options})
    return Case(BLUEPRINT, made, *digits(), sources={"source": version(updates), "weights": file()})


class TestContract(LearnerContract):
    @pytest.fixture(params=[*HEADS, "wavelets alone", "over a version", "over its maps"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        cases: Mapping[str, Case] = {
            "wavelets alone": a_case(patches=False),
            "over a version": started(),
            "over its maps": started(MAPS, width=96),
        }
        return cases.get(request.param) or a_case(head=request.param)

    def test_other_seed_other_bits(self, case: Case) -> None:
        """Nothing in it is random: what it learns is a function of the records."""
        assert same(case.learned().capture(), case.learned(seed=SEED + 1).capture())


def learner_of(case: Case) -> AnalyticLearner[ImageAnalytic]:
    learner = case.learner()
    assert isinstance(learner, AnalyticLearner)
    return learner


def learned(case: Case, rows: list[int], size: int = 16) -> AnalyticLearner[ImageAnalytic]:
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
    variance = x.double().var(0, correction=0).mean().item()
    oracle = Ridge(alpha=20 * variance).fit(x.double().numpy(), np.eye(3)[y])
    solved = sums.solve("ridge", 20.0)
    np.testing.assert_allclose(solved.weight.numpy(), oracle.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(solved.bias.numpy(), oracle.intercept_, rtol=1e-3, atol=1e-4)


def test_how_much_a_head_is_held_back_follows_from_the_sums() -> None:
    """As by generalised cross-validation with the exact trace; noisy labels hold it back more."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(200, 40, generator=rng)
    clean, noise = x[:, 0].gt(0).long(), torch.randint(3, (200,), generator=rng)
    best = []
    for y in (clean, noise):
        sums, errors = sums_of(x, y), []
        centred, targets = x.double() - x.double().mean(0), F.one_hot(y, 3).double()
        targets -= targets.mean(0)
        for ridge in RIDGES:
            added = ridge * centred.square().mean(0).mean()
            hat = centred @ torch.linalg.inv(centred.T @ centred + added * torch.eye(40)) @ centred.T
            errors.append(float((targets - hat @ targets).square().sum() / (200 - hat.trace()) ** 2))
        best.append(RIDGES[errors.index(min(errors))])
        assert torch.equal(sums.solve("ridge", None).weight, sums.solve("ridge", best[-1]).weight)
    assert best[0] < best[1]


def test_lda_answers_as_scikit_learns_does() -> None:
    x, y = gaussians()
    solved = sums_of(x, y).solve("lda", 1e-6)
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
    models = (one.model, other.model)
    ours, theirs = (model.look(case.x[400:500]).scores(model.weight, model.bias) for model in models)
    torch.testing.assert_close(ours, theirs[:, order], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_two_learners_merge_into_what_one_would_be(head: HeadName) -> None:
    case = a_case(head=head)
    rows = sorted(range(400), key=lambda row: case.labels[row])
    whole, first, second = (learned(case, some) for some in (rows, rows[:200], rows[200:]))
    first.merge(second)
    assert first.model.classes == whole.model.classes
    assert torch.equal(first._sums.gram, whole._sums.gram)
    assert torch.equal(first._sums.counts, whole._sums.counts)


@pytest.mark.parametrize("head", HEADS)
def test_a_record_is_taken_out_again(head: HeadName) -> None:
    case = a_case(head=head)
    without, ours = learned(case, list(range(100, 400))), learned(case, [*range(100, 400), *range(100)])
    ours.forget(batch(case, list(range(100))))
    assert torch.equal(ours._sums.counts.sort().values, without._sums.counts.sort().values)
    order = [ours.model.classes.index(name) for name in without.model.classes]
    assert torch.equal(ours._sums.gram, without._sums.gram)
    assert torch.equal(ours._sums.by_class[order], without._sums.by_class)


def test_a_version_holds_the_pictures_that_came_and_no_sums() -> None:
    case = a_case()
    learner = learned(case, list(range(20)))
    learner.capture()
    learner.learn(batch(case, [20, 21, 22]), update_generator(SEED, 99))
    changed = {name: each.changed for name, each in learner.capture().training.items() if isinstance(each, Rows)}
    sums = dict.fromkeys(("sums/gram", "sums/by_class", "sums/counts"), 0)
    rows = {name: None if each is None else len(each) for name, each in changed.items()}
    assert rows == {**sums, "sums/recent/features": 3, "sums/recent/classes": 3}


@pytest.mark.parametrize("rows", [range(30), range(700), [*range(60)] * 6], ids=["few", "many", "repeated"])
def test_what_is_stored_of_sums_is_what_they_are(rows: Sequence[int]) -> None:
    """In a log that is full now and then, also of records that were taken out again."""
    case = a_case(width=64)
    live, stored = learner_of(case), learner_of(case)
    for update, first in enumerate(range(0, len(rows), 30)):
        for learner in (live, stored):
            learner.learn(batch(case, list(rows[first : first + 30])), update_generator(SEED, update))
            if update % 3 == 1:
                learner.forget(batch(case, list(rows[first : first + 3])))
        state, stored = cloned(stored.capture()), learner_of(case)
        stored.restore(state)
    live.capture()
    assert stored.capture().training["sums/recent/known"]
    assert torch.equal(stored._sums.gram, live._sums.gram)
    assert torch.equal(stored._sums.by_class, live._sums.by_class)
    assert torch.equal(stored.model.weight, live.model.weight)


@pytest.mark.parametrize("harm", ["known", "classes"])
def test_a_log_of_what_is_not_there_is_refused(harm: str) -> None:
    case = a_case()
    state = cloned(learned(case, list(range(20))).capture())
    tensors = {**state.training}
    tensors[f"sums/recent/{harm}"] = torch.full_like(tensor(tensors[f"sums/recent/{harm}"]), 4000)
    with pytest.raises(ValueError, match="recent"):
        learner_of(case).restore(State(state.serving, tensors, state.meta))


@pytest.mark.parametrize("head", HEADS)
def test_ten_pictures_of_two_classes_give_an_answer(head: HeadName) -> None:
    """One at a time, one class after the other, and no update after them."""
    case = a_case(head=head, width=1000)
    zeros, ones = ([row for row in range(100) if case.labels[row] == name] for name in ("0", "1"))
    learner = learner_of(case)
    for update, row in enumerate([*zeros[:5], *ones[:5]]):
        learner.learn(batch(case, [row]), update_generator(SEED, update))
    learner.capture()
    assert learner.model.classify(case.x[[*zeros[5:10], *ones[5:10]]]).argmax(1).tolist() == [0] * 5 + [1] * 5


def test_nothing_that_was_learned_is_missing_in_a_version() -> None:
    case = a_case()
    learner = learner_of(case)
    for update in range(40):
        learner.learn(case.batch(8 * update), update_generator(SEED, update))
        learner.capture()
        weight = learner.model.weight.clone()
        assert torch.equal(weight, learner._sums.solve(learner.options.head, learner._ridge.item() or None).weight)


def test_features_do_not_depend_on_the_batch() -> None:
    case = a_case(size=16, width=300)
    model = case.learner().model
    assert isinstance(model, ImageAnalytic)
    together = model.look(case.x[:100])
    for size in (1, 3, 32):
        parts = [model.look(case.x[start : min(start + size, 100)]) for start in range(0, 100, size)]
        assert torch.equal(torch.cat([part.features for part in parts]), together.features)
        assert torch.equal(torch.cat([part.v for part in parts]), together.v)


@pytest.mark.parametrize("most", [4.0, 2000.0])
def test_products_that_wait_are_added_exactly(most: float) -> None:
    """Over blocks and batches of any size, with records taken out; where single precision is too little, too."""
    rng = torch.Generator().manual_seed(0)
    width = BLOCK + 30
    x = (torch.rand(2 * TOGETHER + 60, width, generator=rng) * most * 16).round() / 16
    sums, left = Sums(width, CPU, units=16), x[40:].double()
    sums.grow(1)
    for some in torch.split(x, [1, 10, TOGETHER, TOGETHER + 49]):
        sums.add(some, torch.zeros(len(some), dtype=torch.int64))
    sums.add(x[:40], torch.zeros(40, dtype=torch.int64), sign=-1)
    assert torch.equal(sums.copy().gram, left.T @ left)
    assert torch.equal(sums.gram, left.T @ left)


@pytest.mark.parametrize("learned_before", [2**24, 2**31, 2**40])
def test_sums_do_not_stand_still(learned_before: int) -> None:
    """A record counts as much after many as after few: where single precision and 32 bits end, and beyond."""
    x, y = (gaussians()[0] * 16).round() / 16, gaussians()[1]
    sums, few = Sums(12, CPU), sums_of(x, y)
    sums.grow(3)
    sums.add(torch.ones(1, 12), torch.tensor([0]))
    before = sums.copy()
    for each in (before.gram, before.by_class, before.counts):
        each *= learned_before
    sums = before.copy()
    for start in range(0, len(x), 50):
        sums.add(x[start : start + 50], y[start : start + 50])
    for now, then, added in (
        (sums.gram, before.gram, few.gram),
        (sums.by_class, before.by_class, few.by_class),
        (sums.counts, before.counts, few.counts),
    ):
        assert torch.equal(now - then, added)


def test_forgetting_weighs_what_is_older_less_and_cannot_be_undone() -> None:
    case = a_case(forgetting=0.99)
    learner = learned(case, list(range(160)))
    left = sum(0.99 ** (160 - 16 * (update + 1)) * 16 for update in range(10))
    assert learner._sums.counts.sum().item() == pytest.approx(left)
    with pytest.raises(ValueError, match="forgetting"):
        learner.forget(batch(case, [0]))
    with pytest.raises(ValueError, match="'never'"):
        learned(a_case(), [0]).forget(replace(batch(case, [0]), labels=["never"]))


def rademacher(rows: int, columns: int) -> Tensor:
    """P, in Python's integers: the signs of SplitMix64's outputs (Steele et al. 2014), one after the other."""
    found = []
    for place in range(rows * columns):
        z = place * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        found.append(-1.0 if (z ^ (z >> 31)) >> 63 else 1.0)
    return torch.tensor(found, dtype=torch.float64).view(rows, columns)


def known(features: Mapping[str, Any] | None, x: Tensor) -> Tensor:
    """What is projected: of wavelets, of a backbone's features, or of its maps, by definition."""
    pictures = x.float() / 255
    if features is None:
        return Wavelets((1, 8, 8)).scattered(pictures).sqrt()
    backbone = Backbone.of_sources(BackboneOptions.model_validate(features), {"source": version(), "weights": file()})
    if "layers" not in features:
        return backbone(pictures)  # type: ignore[no-any-return]
    layers = []
    for maps in backbone.maps(pictures):
        side = maps.shape[2]
        edges = [(side * cell // 3, -(-side * (cell + 1) // 3)) for cell in range(3)]
        cells = torch.stack([maps[:, :, a:b, c:d].mean((2, 3)) for a, b in edges for c, d in edges], 2)  # (B, c, 9)
        layers.append(cells.flatten(1) / cells.flatten(1).norm(dim=1, keepdim=True))
    return torch.cat(layers, 1)


@pytest.mark.parametrize("features", [None, VERSION, MAPS, FILE], ids=["wavelets", "version", "maps", "file"])
def test_features_are_random_ones_of_what_is_extracted(features: Mapping[str, Any] | None) -> None:
    case = a_case(patches=False, mirror=False) if features is None else started(features)
    learner = case.learned()
    state = cloned(learner.capture())
    served = BLUEPRINT.model(case.options, (1, 8, 8), state.meta)
    served.load_state_dict(state.serving)
    assert isinstance(served, ImageAnalytic)
    u = known(features, case.x[:20]).double()
    z = u - u.mean(1, keepdim=True)
    expected = (z / z.norm(dim=1, keepdim=True) @ rademacher(64, u.shape[1]).T + 1).square()
    found = served.look(case.x[:20]).features.double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.5 / STEPS + 1e-3)
    assert torch.equal(found * STEPS, (found * STEPS).round())
    assert expected.mean().item() == pytest.approx(2, abs=0.8)  # P z has mean 0 and variance 1
    of_itself = {"weight", "bias", "sharpness", "shares", "familiar", "mean", "whitener"}
    assert (state.serving.keys() == of_itself) == (features is None)


def test_a_backbone_is_given_once_and_needed_once() -> None:
    case = started(FILE)
    ours = case.learned()
    first, later = ours.capture().serving, ours.capture().serving
    names = [name for name in first if name.startswith("extractor.") and isinstance(first[name], Rows)]
    assert len(names) > 100
    assert all(isinstance(first[name], Rows) and first[name].changed is None for name in names)  # type: ignore[union-attr]
    assert all(isinstance(later[name], Rows) and not len(later[name].changed) for name in names)  # type: ignore[union-attr, arg-type]
    restored = case.restored(cloned(ours.capture()))  # without the file
    assert all(not len(restored.capture().serving[name].changed) for name in names)  # type: ignore[union-attr, arg-type]
    assert case.learn(restored, range(6, 9)) == case.learn(ours, range(6, 9))


def test_only_learners_over_the_same_backbone_merge() -> None:
    rows = sorted(range(400), key=lambda row: digits()[1][row])
    case = started()
    whole, first, second = (learned(case, some) for some in (rows, rows[:200], rows[200:]))
    first.merge(second)
    torch.testing.assert_close(first._sums.gram, whole._sums.gram, rtol=1e-5, atol=1e-4)
    for one, other in ((started(), started(updates=3)), (started(FILE), started({**FILE, "side": 64}))):
        with pytest.raises(ValueError, match="same backbone"):
            learned(one, rows[:8]).merge(learned(other, rows[:8]))
    for size in (a_case(), started(MAPS)):
        with pytest.raises(ValueError, match="can be merged"):
            first.merge(learned(size, rows[:8]))


def test_what_it_needs_is_named() -> None:
    named = ImageAnalyticOptions(features=BackboneOptions(source="m@7"))
    assert BLUEPRINT.sources(named) == {"source": Reference("version", "m@7")}
    assert BLUEPRINT.sources(ImageAnalyticOptions()) == {}


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
    features = learner.model.look(x).features
    assert features.shape == (6, 32)
    assert torch.equal(features * STEPS, (features * STEPS).round())
    assert learner.model.classify(x).shape == (6, 2)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 28, 28)])
def test_features_of_a_mirror_image_are_the_same_or_have_another_sign(shape: tuple[int, ...]) -> None:
    x = torch.randint(256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = Case(BLUEPRINT, ImageAnalyticOptions(width=200), x, list("abab")).learner().model
    one, mirrored = (model.look(some).features for some in (x, x.flip(3)))  # type: ignore[attr-defined]
    differences = slice(100, 120)  # of 120 that are wavelets' a sixth
    assert one[:, differences].abs().max() > 0.2
    torch.testing.assert_close(one[:, differences], -mirrored[:, differences], atol=0.1, rtol=0)
    torch.testing.assert_close(one[:, 120:], mirrored[:, 120:], atol=0.1, rtol=0)
    torch.testing.assert_close(one[:, :100], mirrored[:, :100], atol=0.1, rtol=0)


def test_versions_of_before_have_other_features_on_each_side() -> None:
    before = ImageAnalyticOptions.of_version({"width": 60, "patches": True})
    assert not before.mirror
    x = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = Case(BLUEPRINT, before, x, "ab").learner().model
    assert len(model.projection) == 60 - 40  # type: ignore[attr-defined]
    assert model.look(x).features.shape == (2, 60)  # type: ignore[attr-defined]


def test_colours_that_nobody_sees_do_not_count() -> None:
    x = torch.randint(256, (2, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x[1] = x[0]
    x[:, 3, :8] = 0
    x[1, :3, :8] = 255 - x[1, :3, :8]
    model = Case(BLUEPRINT, ImageAnalyticOptions(width=16), x, "ab").learner().model
    assert torch.equal(*model.look(x).features)  # type: ignore[attr-defined]
