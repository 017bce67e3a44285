"""The check of a GPU, on the CPU: equal bits are seen as such, and what is not equal too."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks import accelerator
from benchmarks.accelerator import CPU, difference, pictures, same_bits, texts, uplink
from models.learner import update_generator


@pytest.mark.parametrize("name", ["image-classifier", "text-classifier"])
def test_runs_and_a_restart_are_equal_on_one_device(name: str) -> None:
    stream = (pictures if name in accelerator.PICTURES else texts)(4)
    assert same_bits(name, stream, CPU) == (0, 0, 0)


def test_random_numbers_of_its_own_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    monkeypatch.setattr(accelerator, "update_generator", lambda seed, update: update_generator(next(calls), update))
    runs, restart, from_cpu = same_bits("image-classifier", pictures(4), CPU)
    assert min(runs, restart, from_cpu) > 0


def test_what_is_copied_beside_updates_arrives_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "PAIRS", 1)
    apart, ratios = uplink(pictures(3), CPU)
    assert apart == 0
    assert len(ratios) == 1


def test_the_smallest_difference_is_one() -> None:
    assert difference({"w": torch.zeros(2)}, {"w": torch.tensor([0.0, 1e-45])}) > 0
    assert difference({"w": torch.zeros(2)}, {"w": torch.zeros(2)}) == 0
