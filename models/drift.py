"""Drift: river's HDDM_A on the prequential errors. One-sided: a fall in error is no alarm.

Frías-Blanco et al. 2014, "Online and non-parametric drift detection methods based on Hoeffding's bounds": an alarm
when the mean error since the best cut point exceeds the mean up to it by more than chance explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from river.drift.binary import HDDMA
from river.stats import Mean

MEANS = {"best": "_x_min", "worst": "_x_max", "all": "_z"}  # the means that HDDM_A keeps


class DriftDetector:
    """Watches whether predictions hit. Its state is six numbers and a flag, no pickle."""

    def __init__(self) -> None:
        self._hddm: Any = HDDMA()  # type: ignore[no-untyped-call]

    def update(self, hits: Iterable[bool]) -> bool:
        """Whether an alarm rose at any of these predictions, in order; the detector begins anew after an alarm."""
        alarm = False
        for hit in hits:
            self._hddm.update(not hit)
            alarm |= self._hddm.drift_detected
        return alarm

    def state(self) -> dict[str, Any]:
        """JSON: each mean as [count, mean], and whether the last prediction was an alarm."""
        means = {name: getattr(self._hddm, attribute) for name, attribute in MEANS.items()}
        return {"alarm": self._hddm.drift_detected, **{name: [mean.n, mean.get()] for name, mean in means.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`, bit for bit."""
        self._hddm = HDDMA()  # type: ignore[no-untyped-call]
        self._hddm._drift_detected = state["alarm"]
        for name, attribute in MEANS.items():
            count, mean = state[name]
            setattr(self._hddm, attribute, Mean._from_state(count, mean))
