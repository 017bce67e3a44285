"""Drift: HDDM_A on the prequential errors. One-sided: a fall in error is no alarm.

Frías-Blanco et al. 2014, "Online and non-parametric drift detection methods based on Hoeffding's bounds": with the mean
error x̄ up to the best cut point and z̄ of all, over m and n predictions, an alarm rises when

    z̄ − x̄ ≥ √((n − m) / (2 m n) · ln(2 / α)),    α = 0.001

and the cut point moves to n when x̄ + ε(m) ≥ z̄ + ε(n), where ε(k) = √(ln(1 / α) / 2 k). The numbers are river's, to the
last bit; its `river.drift` takes a second to import, because it brings data sets, scikit-learn and scipy along.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

ALPHA = 0.001
Mean = tuple[float, float]  # of how many predictions, and their mean error


class DriftDetector:
    """Watches whether predictions hit. Its state is six numbers and a flag, no pickle."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._alarm = False
        self._best: Mean = (0.0, 0.0)
        self._worst: Mean = (0.0, 0.0)  # where a fall in error would be measured from
        self._all: Mean = (0.0, 0.0)

    def update(self, hits: Iterable[bool]) -> bool:
        """Whether an alarm rose at any of these predictions, in order; the detector begins anew after an alarm."""
        alarm = False
        for hit in hits:
            if self._alarm:
                self._begin()
            n, mean = self._all[0] + 1, self._all[1]
            mean += 1 / n * ((not hit) - mean)
            self._all = (n, mean)
            if n == 1 or self._best[1] + _bound(self._best[0]) >= mean + _bound(n):
                self._best = self._all
            if n == 1 or self._worst[1] - _bound(self._worst[0]) <= mean - _bound(n):
                self._worst = self._all
            self._alarm = _rose(self._best, self._all)
            alarm |= self._alarm
        return alarm

    def state(self) -> dict[str, Any]:
        """JSON: each mean as [count, mean], and whether the last prediction was an alarm."""
        means = {"best": self._best, "worst": self._worst, "all": self._all}
        return {"alarm": self._alarm, **{name: list(mean) for name, mean in means.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`, bit for bit."""
        self._alarm = state["alarm"]
        self._best, self._worst, self._all = (tuple(state[name]) for name in ("best", "worst", "all"))


def _bound(n: float) -> float:
    """Hoeffding's, of a mean over n predictions."""
    return math.sqrt(1.0 / (2 * n) * math.log(1.0 / ALPHA))


def _rose(best: Mean, all_: Mean) -> bool:
    """Whether the mean of all is further above the best than chance explains."""
    m = (all_[0] - best[0]) / best[0] * (1.0 / all_[0])
    return m > 0 and all_[1] - best[1] >= math.sqrt(m / 2 * math.log(2.0 / ALPHA))
