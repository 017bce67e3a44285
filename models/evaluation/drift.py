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
from collections.abc import Callable, Iterable, Mapping
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
    """The last 20 predictions on each class, to tell which classes fell in a drift.

    A class *fell* where its last 5 predictions hit less than half as often as the 15 before. A sudden drift is noticed
    after a few records, fewer than there are classes: so a class is looked at when the alarm rises and at each of its
    next 5 predictions, until it fell.
    """

    LAST, REST = 5, 15

    def __init__(self) -> None:
        self._hits: dict[str, deque[bool]] = {}
        self._looks: dict[str, int] = {}  # class → at how many of its next predictions it is looked at

    def update(self, labels: Iterable[str | None], hits: Iterable[bool], alarm: bool) -> list[str]:
        """Takes predictions → the classes whose accuracy fell, in the order in which that was seen."""
        fallen = []
        for label, hit in zip(labels, hits, strict=True):
            if label is None:
                continue
            self._hits.setdefault(label, deque(maxlen=self.LAST + self.REST)).append(hit)
            if label in self._looks and self._fell(label):
                fallen.append(label)
        if alarm:
            self._looks = {label: self.LAST + 1 for label in self._hits if label not in fallen}
            fallen += [label for label in list(self._looks) if self._fell(label)]
        return fallen

    def _fell(self, label: str) -> bool:
        """Looks at a class once."""
        hits = list(self._hits[label])
        last, rest = sum(hits[self.REST :]), sum(hits[: self.REST])
        fell = len(hits) == self.LAST + self.REST and 2 * last * self.REST < rest * self.LAST
        self._looks[label] -= 1
        if fell or not self._looks[label]:
            del self._looks[label]
        return fell

    def state(self) -> dict[str, Any]:
        """JSON: for each class, a hit is "1", an error "0"; and how often it is still looked at."""
        hits = {label: "".join("1" if hit else "0" for hit in each) for label, each in self._hits.items()}
        return {"hits": hits, "looks": dict(self._looks)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`."""
        size = self.LAST + self.REST
        self._hits = {label: deque((hit == "1" for hit in hits), size) for label, hits in state["hits"].items()}
        self._looks = dict(state["looks"])
