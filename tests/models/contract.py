"""The shipped contract suite (`models.checks`) in pytest: subclass `LearnerContract` and give it a `case`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from models.checks import CHECKS, SEED, Contract, answers, cloned, differing, tensors
from models.learner import Of, State
from tests.device import DEVICE, OTHER

__all__ = ["GREETINGS", "SEED", "Case", "LearnerContract", "answers", "cloned", "digits", "same", "tensors", "texts"]

GREETINGS = {
    "en": ["good morning to you", "where is the library?", "thank you very much", "see you tomorrow 🙂"],
    "zh": ["早上好", "图书馆在哪里", "非常感谢你", "明天见🙂"],
    "ru": ["доброе утро", "где здесь библиотека?", "большое спасибо", "увидимся завтра"],
    "ar": ["صباح الخير", "أين المكتبة؟", "شكرا جزيلا لك", "أراك غدا"],
}


@cache
def digits(size: int = 8) -> tuple[Tensor, list[str]]:
    """scikit-learn's digits, (1797, 1, size, size) uint8, and their labels."""
    data = load_digits()
    x = torch.from_numpy(data.images * 255 / 16).to(torch.uint8)[:, None]
    return x.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3), [str(y) for y in data.target]


def texts(length: int = 32) -> tuple[Tensor, list[str]]:
    """Greetings in four scripts, sixteen times over: (256, length) int32."""
    pairs = [(text, label) for row in range(4) for label, some in GREETINGS.items() for text in [some[row]]] * 16
    points = [[ord(c) for c in text] + [0] * (length - len(text)) for text, _ in pairs]
    return torch.tensor(points, dtype=torch.int32), [label for _, label in pairs]


def same(one: State, other: State) -> bool:
    """Whether two states agree to the last bit."""
    return not differing(one, other)


@dataclass(frozen=True)
class Case(Contract[Of]):
    """A case where tests learn."""

    device: torch.device = DEVICE
    other: torch.device = OTHER


class LearnerContract:
    """A test for each of `CHECKS`. The fixture `case` says of which learner."""

    @pytest.fixture
    def case(self) -> Case:
        raise NotImplementedError


def _test(name: str) -> object:
    return lambda self, case: getattr(case, name)()


for name in CHECKS:
    setattr(LearnerContract, f"test_{name}", _test(name))
