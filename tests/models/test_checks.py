"""The shipped checks on learners of a user's own: a good one passes, and of a broken one they say what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checks import CHECKS, check_learner
from models.learner import Batch, Blueprint, Learner, Report, State, copy_into
from tests.models.class_means import Means, MeansLearner, MeansOptions, blueprint, model
from tests.models.contract import digits

OPTIONS = MeansOptions()


class Forgetful(MeansLearner):
    """A restart forgets how many records a class had."""

    def restore(self, state: State) -> None:
        self._grow(state.meta["classes"][len(self.model.classes) :])
        copy_into(
            {name: value for name, value in self.model.state_dict().items() if name != "counts"},
            {name: value for name, value in state.serving.items() if name != "counts"},
        )
        self.model.counts.fill_(1)


class Unseeded(MeansLearner):
    """Its loss has noise that no seed gives."""

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        report = super().learn(batch, rng)
        return Report(report.loss + torch.rand(()).item(), report.predicted)


class Neighbourly(Means):
    """Records are centred by the mean of those that are asked for together."""

    def project(self, x: Tensor) -> Tensor:
        found = super().project(x)
        return found - found.mean(0)


def neighbourly(options: MeansOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> MeansLearner:
    made = MeansLearner(options, shape, seed, device)
    made.model.__class__ = Neighbourly
    return made


def neighbourly_model(options: MeansOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> Means:
    made = model(options, shape, meta)
    made.__class__ = Neighbourly
    return made


def test_a_users_own_learner_passes() -> None:
    check_learner(blueprint, OPTIONS, *digits())


BROKEN = {
    "goes on to the last bit after a restart. Restored and captured again, these differ: .*'counts'": (
        Forgetful,
        model,
    ),
    "touches no global random numbers. It drew from the global generator of torch. Draw from `rng`": (Unseeded, model),
    "an answer depends on its own record alone. It changes by .* with the other": (neighbourly, neighbourly_model),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_of_a_broken_learner_it_is_said_what_is_wrong(sentence: str) -> None:
    with pytest.raises(AssertionError, match=f"^A promise is broken: {sentence}"):
        check_learner(Blueprint(MeansOptions, *BROKEN[sentence], "image"), OPTIONS, *digits())


def test_a_check_that_does_not_hold_can_be_left_out() -> None:
    def seedless(options: MeansOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> Learner:
        return MeansLearner(options, shape, 0, device)

    own = Blueprint(MeansOptions, seedless, model, "image")
    with pytest.raises(AssertionError, match=r"other seed other bits\. Where nothing is random, leave this check out"):
        check_learner(own, OPTIONS, *digits(), without=[name for name in CHECKS if name != "other_seed_other_bits"])
    check_learner(own, OPTIONS, *digits(), without=["other_seed_other_bits"])


def test_they_need_no_test_framework() -> None:
    code = "import sys, models.checks; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
