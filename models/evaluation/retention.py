"""Retention: what a classifier still makes of each class that it has learned, whatever came since.

A model is probed now and then on records of every class that it never learns. With a_c the accuracy of now on class c,
a_c* the best of all probings before, and a_c⁰ that of the first one:

    forgetting = mean_c (a_c* - a_c)           (Chaudhry et al. 2018, "Riemannian walk for incremental learning", eq. 3)
    backward transfer = mean_c (a_c - a_c⁰)    (Lopez-Paz and Ranzato 2017, "Gradient episodic memory", eq. 3)

over the classes that were probed before. The papers probe at the ends of tasks. A stream has none: the first probing
of a class is soon after it came, so that what is learned about it later counts as backward transfer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kept:
    """Accuracies on one class, 0 to 1: of now, the best one, the first one; and how many records say so."""

    now: float
    best: float
    first: float
    records: int


class Retention:
    """Follows the accuracies on each class."""

    def __init__(self) -> None:
        self._classes: dict[str, Kept] = {}

    def probed(self, hits: Mapping[str, tuple[int, int]]) -> dict[str, float]:
        """Takes one probing: class → (hits, records), at least one record each; gives what it says of all of them."""
        kept = self._classes
        found = {label: right / records for label, (right, records) in hits.items()}
        before = [label for label in found if label in kept]
        said: dict[str, float] = {}
        if before:
            said["held_out_forgetting"] = sum(kept[label].best - found[label] for label in before) / len(before)
            gained = sum(found[label] - kept[label].first for label in before)
            said["held_out_backward_transfer"] = gained / len(before)
        for label, accuracy in found.items():
            former = kept.get(label, Kept(accuracy, accuracy, accuracy, 0))
            kept[label] = Kept(accuracy, max(former.best, accuracy), former.first, hits[label][1])
        return said

    def classes(self) -> Mapping[str, Kept]:
        """Every class that was ever probed."""
        return self._classes

    def state(self) -> dict[str, dict[str, Any]]:
        """JSON: by class."""
        return {label: asdict(kept) for label, kept in self._classes.items()}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Goes on from a `state`."""
        self._classes = {label: Kept(**kept) for label, kept in state.items()}
