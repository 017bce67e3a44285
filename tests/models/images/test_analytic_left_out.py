"""What the classifier in closed form says of records that it learned, had it not learned them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.analytic_learner import AnalyticLearner
from models.images.analytic import ImageAnalytic
from tests.models.images.test_analytic import a_case


def test_what_is_left_out_again_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one = a_case()
    learner, other = one.learned(20), one.learned(20)
    assert isinstance(learner, AnalyticLearner)
    assert isinstance(other, AnalyticLearner)
    y = torch.tensor([learner.classes.index(str(label)) for label in one.labels[:80]])
    learner.left_out(one.x[:70], y[:70])
    seen: list[int] = []
    look = ImageAnalytic.look

    def counted(self: ImageAnalytic, x: Tensor, *others: Any) -> Any:
        seen.append(len(x))
        return look(self, x, *others)

    monkeypatch.setattr(ImageAnalytic, "look", counted)
    found = learner.left_out(one.x[10:80], y[10:80])
    assert seen == [10]
    assert torch.equal(found, other.left_out(one.x[10:80], y[10:80]))
