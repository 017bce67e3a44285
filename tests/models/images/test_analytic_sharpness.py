"""How sure the classifier in closed form is of a class that has just come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.learner import update_generator
from tests.models.contract import SEED, digits
from tests.models.images.test_analytic import a_case, batch, learned, learner_of


def halves_and_crosses() -> tuple[Tensor, list[str]]:
    """Eight times either half and sixteen times a cross, the same pixels each time: (32, 1, 8, 8) uint8."""
    left = torch.zeros(8, 8, dtype=torch.uint8)
    left[:, :4] = 255
    cross = 255 * torch.eye(8, dtype=torch.uint8)
    pictures = [left, left.flip(1)] * 8 + [cross | cross.flip(1)] * 16
    return torch.stack(pictures)[:, None], ["left", "right"] * 8 + ["cross"] * 16


def digits_and_another() -> tuple[Tensor, list[str]]:
    """Eight times a zero and a one, and sixteen fours, each another handwriting."""
    x, labels = digits()
    zeros, ones, fours = (rows_of(labels, name) for name in "014")
    rows = [row for pair in zip(zeros[:8], ones[:8], strict=True) for row in pair] + fours[:16]
    return x[rows], [labels[row] for row in rows]


def rows_of(labels: Sequence[str], name: str) -> list[int]:
    return [row for row, label in enumerate(labels) if label == name]


@pytest.mark.parametrize("signs", [halves_and_crosses, digits_and_another])
def test_a_class_that_is_taught_again_and_again_does_not_grow_less_sure(
    signs: Callable[[], tuple[Tensor, list[str]]],
) -> None:
    """Though the head that predicts is not solved again for each record, and does not know the class for a while."""
    x, labels = signs()
    case = replace(a_case(width=1000), x=x, labels=labels)
    learner, sure = learner_of(case), []
    for row in range(len(x)):
        learner.learn(batch(case, [row]), update_generator(SEED, row))
        learner.capture()
        sure.append(learner.model.classify(x[16:])[:, -1].mean().item())
    taught = sure[16:]
    assert all(after > before - 0.01 for before, after in pairwise(taught)), taught
    assert taught[-1] > taught[0] > 1 / 3


def test_records_of_a_class_that_the_head_does_not_know_do_not_say_how_sure_it_is() -> None:
    """But the first of each, however many come at once."""
    case = a_case()
    learner = learned(case, rows_of(case.labels, "0")[:20] + rows_of(case.labels, "1")[:20])
    zeros, fours = rows_of(case.labels, "0")[20:], rows_of(case.labels, "4")
    learner.learn(batch(case, zeros[:1]), update_generator(SEED, 3))  # takes the head that `learned` solves
    learner._grow(["4"])
    assert learner._telling(torch.tensor([2, 0, 2, 1, 2])).tolist() == [0, 1, 3]
    learner.learn(batch(case, fours[:1]), update_generator(SEED, 4))
    assert learner._telling(torch.tensor([2, 0, 2])).tolist() == [1]
