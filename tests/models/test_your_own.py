"""The documented example of a user's own learner keeps the contract, and is as short as it says."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumers.loading import resolve_blueprint
from models.classifier import ClassifierOptions
from tests.models.contract import Case, LearnerContract, digits

PAGE = Path(__file__).parents[2] / "docs" / "learners" / "your-own.md"
CODE, TEST = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's module, importable as it is from a user's folder."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "linear.py").write_text(CODE, "utf-8")
    sys.path.append(str(folder))
    yield "linear:blueprint"
    sys.path.remove(str(folder))
    del sys.modules["linear"]


class TestContract(LearnerContract):
    @pytest.fixture
    def case(self, linear: str) -> Case:
        return Case(resolve_blueprint(linear), ClassifierOptions(replay_slots=24, replay_draws=4), *digits())


def test_its_test_passes(linear: str, tmp_path: Path) -> None:
    """The page's second block, beside the first."""
    (tmp_path / "test_linear.py").write_text(TEST, "utf-8")
    runpy.run_path(str(tmp_path / "test_linear.py"))["test_it_keeps_the_contract"]()


def test_it_is_thirty_lines() -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 30


def test_it_learns(linear: str) -> None:
    case = Case(resolve_blueprint(linear), ClassifierOptions(learning_rate=0.01), *digits())
    learner = case.learned(120)
    held_out, labels = case.x[1500:], case.labels[1500:]
    model = learner.model
    found = [model.classes[number] for number in model.classify(held_out).argmax(1)]  # type: ignore[attr-defined]
    assert sum(a == b for a, b in zip(found, labels, strict=True)) / len(labels) > 0.8
