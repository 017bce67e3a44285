"""Strategies beside their equations, written out record by record; and what each promises on a sorted stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.capabilities import Classifier
from models.images.classifier import BLUEPRINT, ImageClassifierOptions
from models.learner import update_generator
from models.memory import ReplayMemory
from models.strategies import STRATEGIES, Rehearsal, StrategyName
from tests.device import CPU
from tests.models.contract import SEED, Case, cloned, digits

ALPHA = 0.3


def seen(replayed: int = 4) -> Rehearsal:
    """Five classes; incoming are of 1 and 3; the kept logits are of the first three, or fewer, of four classes."""
    rng = torch.Generator().manual_seed(1)
    return Rehearsal(
        torch.randn(6, 5, generator=rng, requires_grad=True),
        torch.tensor([1, 3, 3, 1, 1, 3]),
        torch.randn(replayed, 5, generator=rng, requires_grad=True),
        torch.tensor([0, 4, 2, 1])[:replayed],
        torch.randn(replayed, 4, generator=rng),
        torch.arange(4) < torch.tensor([3, 2, 0, 3])[:replayed, None],
        ALPHA,
    )


def cross_entropy(logits: Tensor, y: Tensor, among: set[int] | None = None) -> float:
    """Mean over records, by hand."""
    total = 0.0
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        total += math.log(sum(math.exp(value) for k, value in enumerate(row) if among is None or k in among))
        total -= row[label]
    return total / len(y)


def distance(given: Rehearsal) -> float:
    """Mean over the logits that were kept, by hand."""
    assert given.kept is not None
    assert given.compared is not None
    squares = [
        (given.replayed[row, k].item() - given.kept[row, k].item()) ** 2
        for row in range(len(given.kept))
        for k in range(4)
        if given.compared[row, k]
    ]
    return sum(squares) / len(squares)


def together(s: Rehearsal, most: float) -> float:
    """Incoming classes weigh as many of five as they are, by hand."""
    if not len(s.replayed_y):
        return cross_entropy(s.logits, s.y)
    share = min(most, len(set(s.y.tolist())) / 5)
    return share * cross_entropy(s.logits, s.y) + (1 - share) * cross_entropy(s.replayed, s.replayed_y)


def balanced(s: Rehearsal) -> float:
    """Mean over classes of the mean over the records of each, by hand."""
    logits, y = torch.cat([s.logits, s.replayed]), torch.cat([s.y, s.replayed_y])
    return sum(cross_entropy(logits[y == label], y[y == label]) for label in set(y.tolist())) / len(set(y.tolist()))


EXPECTED: dict[StrategyName, Callable[[Rehearsal], float]] = {
    "naive": lambda s: cross_entropy(s.logits, s.y),
    "er": lambda s: together(s, most=6 / 10),
    "er-ace": lambda s: (
        cross_entropy(s.logits, s.y, {1, 3}) + cross_entropy(s.replayed, s.replayed_y) + ALPHA * distance(s)
    ),
    "der++": lambda s: 2 * together(s, most=1 / 2) + ALPHA * distance(s),
    "dreams": lambda s: cross_entropy(s.logits, s.y, {1, 3}) + balanced(s),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_minimises_its_equation(name: StrategyName) -> None:
    given = seen()
    assert STRATEGIES[name](given).item() == pytest.approx(EXPECTED[name](given), rel=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_without_a_past_the_incoming_records_count_alone(name: StrategyName) -> None:
    given = seen(replayed=0)
    alone = EXPECTED[name](given) if name == "dreams" else cross_entropy(given.logits, given.y)
    assert STRATEGIES[name](given).item() == pytest.approx(alone, rel=1e-5)


def test_er_ace_lets_incoming_records_push_no_class_that_is_not_coming() -> None:
    given = seen()
    STRATEGIES["er-ace"](replace(given, logits_weight=0.0)).backward()  # type: ignore[no-untyped-call]
    assert given.logits.grad is not None
    assert torch.equal(given.logits.grad[:, [0, 2, 4]], torch.zeros(6, 3))
    assert (given.logits.grad[:, [1, 3]] != 0).all()


def test_er_ace_tells_a_class_that_comes_alone_from_all_others() -> None:
    given = seen()
    alone = replace(given, y=torch.full_like(given.y, 3))
    assert STRATEGIES["er-ace"](alone).item() == pytest.approx(
        together(alone, most=6 / 10) + ALPHA * distance(alone), rel=1e-5
    )


@pytest.mark.parametrize("name", ["er", "er-ace", "der++"])
def test_many_records_of_one_class_weigh_no_more_than_few(name: StrategyName) -> None:
    few = replace(seen(), y=torch.full((6,), 3))
    many = replace(few, logits=few.logits.repeat(16, 1), y=few.y.repeat(16))
    assert STRATEGIES[name](many).item() == pytest.approx(STRATEGIES[name](few).item(), rel=1e-5)


def test_fewer_classes_than_are_kept() -> None:
    given = Rehearsal(torch.randn(2, 1), torch.tensor([0, 0]), torch.ones(1, 1), torch.tensor([0]), torch.zeros(1, 4),
                 torch.tensor([[True, False, False, False]]), ALPHA)  # fmt: skip
    assert given.from_kept().item() == pytest.approx(ALPHA)


def test_a_memory_keeps_the_logits_that_records_came_with() -> None:
    case = Case(BLUEPRINT, ImageClassifierOptions(), *digits())
    memory = ReplayMemory(4, (1, 8, 8), torch.uint8, CPU, "reservoir", logits=3)
    memory.add(case.batch(0, 2), [0, 1], update_generator(SEED, 0), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    memory.add(case.batch(2, 1), [3], update_generator(SEED, 1), torch.tensor([[5.0, 6.0, 7.0, 8.0]]))
    found = memory.logits(torch.tensor([2, 0]))
    assert found is not None
    assert found[0].tolist() == [[5, 6, 7], [1, 2, 0]]
    assert found[1].tolist() == [[True, True, True], [True, True, False]]
    assert ReplayMemory(4, (1, 8, 8), torch.uint8, CPU, "reservoir").logits(torch.tensor([0])) is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_logits_are_kept_for_strategies_that_compare_them(name: StrategyName) -> None:
    kept = ImageClassifierOptions(strategy=name).memory((1, 8, 8), torch.uint8, CPU).columns()
    assert ("logits" in kept) == (name in ("er-ace", "der++"))


SORTED: dict[str, dict[str, Any]] = {
    "naive": {"strategy": "naive"},
    "er": {"strategy": "er"},
    "er-ace": {"strategy": "er-ace", "logits_weight": ALPHA},
    "der++": {"strategy": "der++", "logits_weight": ALPHA},
    "dreams": {"strategy": "dreams", "replay_draws": 32},
    "er, with dreams": {"strategy": "er", "replay_draws": 32, "dream_share": 0.5},
}


@pytest.mark.parametrize("name", SORTED)
def test_on_a_sorted_stream_naive_forgets_and_the_others_do_not(name: str) -> None:
    x, labels = digits()
    rows = sorted(range(1400), key=lambda row: int(labels[row]) // 2)
    options = ImageClassifierOptions(width=8, hidden=32, learning_rate=3e-3, replay_slots=200, **SORTED[name])
    case = Case(BLUEPRINT, options, x[rows], [labels[row] for row in rows])
    learner = case.learner()
    for update in range(140):
        learner.learn(case.batch(10 * update, 10), update_generator(SEED, update))
    model = learner.model
    assert hasattr(model, "classify")
    found = [model.classes[k] for k in model.classify(x[1400:]).argmax(1).tolist()]
    right = sum(a == b for a, b in zip(found, labels[1400:], strict=True)) / len(found)
    assert right < 0.3 if name == "naive" else right > 0.7


@pytest.mark.parametrize("strategy", ["er", "er-ace", "der++"])
@pytest.mark.parametrize(("size", "singly"), [(64, True), (256, True), (256, False)])
def test_a_small_set_in_batches_of_any_size(strategy: StrategyName, size: int, *, singly: bool) -> None:
    """A class at a time, or shuffled: 6 batches of 256 are enough, where each used to be a single step."""
    x, labels = digits()
    rows = torch.randperm(1400, generator=torch.Generator().manual_seed(SEED)).tolist()
    ordered = sorted(rows, key=lambda row: labels[row]) if singly else rows
    case = Case(BLUEPRINT, ImageClassifierOptions(strategy=strategy), x[ordered], [labels[row] for row in ordered])
    ours = case.learner(device=CPU)
    for update, start in enumerate(range(0, 1400, size)):
        ours.learn(case.batch(start, min(size, 1400 - start)), update_generator(SEED, update))
    assert isinstance(ours.model, Classifier)
    found = [ours.model.classes[k] for k in ours.model.classify(x[1400:]).argmax(1).tolist()]
    assert sum(map(str.__eq__, found, labels[1400:])) >= 0.85 * len(found)


def test_a_version_that_counted_no_classes_goes_on() -> None:
    case = Case(BLUEPRINT, ImageClassifierOptions(), *digits())
    learned = cloned(case.learned(2).capture())
    ours = case.learner()
    ours.restore(replace(learned, meta={key: value for key, value in learned.meta.items() if key != "seen"}))
    case.learn(ours, range(2, 4))
    assert len(ours.capture().meta["seen"]) == len(ours.capture().meta["classes"])
