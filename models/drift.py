"""Drift: river's detectors on the prequential errors, one-sided: a fall in error is no alarm.

- hddm: HDDM_A (Frías-Blanco et al. 2014, "Online and non-parametric drift detection methods based on Hoeffding's
  bounds"): the mean error since the best cut point exceeds the mean up to it by more than chance explains.
- ddm: DDM (Gama et al. 2004, "Learning with drift detection"): the mean error exceeds its lowest one by three standard
  deviations.
- page-hinkley: Page 1954, "Continuous inspection schemes": errors beyond their mean add up to 50.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from river.drift import PageHinkley
from river.drift.binary import DDM, HDDMA
from river.stats import Mean

DetectorName = Literal["hddm", "ddm", "page-hinkley"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One of river's detectors, and the attributes that are its state."""

    build: Callable[..., Any]
    means: Mapping[str, str]  # our name → river's
    numbers: Mapping[str, str]


KINDS: Mapping[DetectorName, Kind] = {
    "hddm": Kind(HDDMA, {"best": "_x_min", "worst": "_x_max", "all": "_z"}, {}),
    "ddm": Kind(DDM, {"all": "_p"}, {"lowest": "_p_min", "deviation": "_s_min", "limit": "_ps_min"}),
    "page-hinkley": Kind(
        lambda: PageHinkley(mode="up"),
        {"all": "_x_mean"},
        {"rise": "_sum_increase", "fall": "_sum_decrease", "lowest": "_min_increase", "highest": "_max_decrease"},
    ),
}


class DriftDetector:
    """Watches whether predictions hit. Its state is a few numbers and a flag, no pickle."""

    def __init__(self, name: DetectorName = "hddm") -> None:
        self._kind = KINDS[name]
        self._detector = self._kind.build()

    def update(self, hits: Iterable[bool]) -> bool:
        """Whether an alarm rose at any of these predictions, in order; the detector begins anew after an alarm."""
        alarm = False
        for hit in hits:
            self._detector.update(not hit)
            alarm |= self._detector.drift_detected
        return alarm

    def state(self) -> dict[str, Any]:
        """JSON: means as [count, mean], numbers that are there yet, and whether the last prediction was an alarm."""
        means = {name: getattr(self._detector, attribute) for name, attribute in self._kind.means.items()}
        numbers = {name: getattr(self._detector, attribute) for name, attribute in self._kind.numbers.items()}
        return {
            "alarm": self._detector.drift_detected,
            **{name: [mean.n, mean.get()] for name, mean in means.items()},
            **{name: value for name, value in numbers.items() if value is not None and math.isfinite(value)},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`, bit for bit."""
        self._detector = self._kind.build()
        self._detector._drift_detected = state["alarm"]
        for name, attribute in self._kind.means.items():
            count, mean = state[name]
            setattr(self._detector, attribute, Mean._from_state(count, mean))
        for name, attribute in self._kind.numbers.items():
            if name in state:  # else it is as a new detector has it: infinite, or none
                setattr(self._detector, attribute, state[name])


class ClassHits:
    """The last 20 predictions on each class. It has *fallen* where the last 5 hit less than half as often as the rest.

    Five, since a sudden drift is noticed after some tens of records: of ten classes each has had a few by then.
    """

    LAST, REST = 5, 15

    def __init__(self) -> None:
        self._hits: dict[str, deque[bool]] = {}

    def update(self, labels: Iterable[str | None], hits: Iterable[bool]) -> None:
        for label, hit in zip(labels, hits, strict=True):
            if label is not None:
                self._hits.setdefault(label, deque(maxlen=self.LAST + self.REST)).append(hit)

    def fallen(self) -> list[str]:
        """The classes that fell, of those with 20 predictions, in the order of first appearance."""
        return [label for label, hits in self._hits.items() if self._fell(list(hits))]

    def _fell(self, hits: Sequence[bool]) -> bool:
        last, rest = sum(hits[self.REST :]), sum(hits[: self.REST])
        return len(hits) == self.LAST + self.REST and 2 * last * self.REST < rest * self.LAST

    def state(self) -> dict[str, str]:
        """JSON: for each class, a hit is "1", an error "0"."""
        return {label: "".join("1" if hit else "0" for hit in hits) for label, hits in self._hits.items()}

    def restore(self, state: Mapping[str, str]) -> None:
        """Goes on from a `state`."""
        self._hits = {
            label: deque((hit == "1" for hit in hits), self.LAST + self.REST) for label, hits in state.items()
        }
