"""Prequential evaluation: every record is predicted before it is learned, and the last `window` of them count.

Gama et al. 2013, "On evaluating stream learning algorithms". Prequential accuracy follows the stream, not the past: a
learner that forgets shows a high one on a stream that is ordered by class.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any


class WindowedMean:
    """The mean over the last `window` records of what is given as one mean an update."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._means: deque[tuple[int, float]] = deque()  # (records, mean) of each update
        self._records = 0  # in `_means`

    def update(self, mean: float, records: int) -> None:
        self._means.append((records, mean))
        self._records += records
        while (surplus := self._records - self._window) > 0:
            oldest, mean = self._means.popleft()
            if oldest > surplus:
                self._means.appendleft((oldest - surplus, mean))
            self._records -= min(oldest, surplus)

    @property
    def value(self) -> float:
        """Over the window's records; there is at least one update."""
        return sum(count * mean for count, mean in self._means) / self._records

    def state(self) -> list[list[float | None]]:
        """JSON: [records, mean] of each update, None for a mean that is no number."""
        return [[count, mean if math.isfinite(mean) else None] for count, mean in self._means]

    def restore(self, state: Sequence[Sequence[float | None]]) -> None:
        """Goes on from a `state`."""
        self._means = deque((int(count or 0), math.nan if mean is None else mean) for count, mean in state)
        self._records = sum(count for count, _ in self._means)


class Prequential:
    """Accuracy, mean loss (nats per record) and what else a learner reports, over the last `window` records."""

    def __init__(self, window: int = 1000) -> None:
        self._window = window
        self._hits: deque[bool] = deque(maxlen=window)
        self._means: dict[str, WindowedMean] = {}  # "loss", and the learner's own

    def update(
        self,
        loss: float,
        hits: Sequence[bool] | None = None,
        *,
        records: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Takes one update's mean loss and, from a classifier, whether each prediction hit.

        Args:
            records: how many records the update had, where there are no hits; 1 if left out.
            metrics: further means over its records, by name.
        """
        count = len(hits) if hits is not None else records or 1
        self._hits.extend(hits or ())
        for name, mean in {"loss": loss, **(metrics or {})}.items():
            self._means.setdefault(name, WindowedMean(self._window)).update(mean, count)

    @property
    def accuracy(self) -> float | None:
        """Share of hits, 0 to 1; None before the first prediction."""
        return sum(self._hits) / len(self._hits) if self._hits else None

    @property
    def loss(self) -> float | None:
        """Mean over the window's records, in nats; None before the first update."""
        return self._means["loss"].value if "loss" in self._means else None

    def own(self) -> dict[str, float]:
        """The learner's own means, by name."""
        return {name: mean.value for name, mean in self._means.items() if name != "loss"}

    def metrics(self) -> dict[str, float]:
        """All figures that there are, by name: prequential_…"""
        found = {"accuracy": self.accuracy, "loss": self.loss, **self.own()}
        return {f"prequential_{name}": value for name, value in found.items() if value is not None}

    def state(self) -> dict[str, Any]:
        """JSON: a hit is "1", an error "0"; means by name."""
        means = {name: mean.state() for name, mean in self._means.items()}
        return {"hits": "".join("1" if hit else "0" for hit in self._hits), "means": means}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`."""
        self._hits = deque((hit == "1" for hit in state["hits"]), maxlen=self._window)
        self._means = {}
        for name, means in state["means"].items():
            self._means[name] = WindowedMean(self._window)
            self._means[name].restore(means)


class LossRange:
    """Tells when an update's loss is far above its recent range: an alarm alone, for a new class looks just like that.

    The range is the mean and the variance of the losses with exponentially falling weights (West 1979, "Updating mean
    and variance estimates"): m ← m + αd and v ← (1 − α)(v + αd²), where d = loss − m. Far above is what exceeds m by
    10·√v and by a tenth of |m|, for a range may be a point; and what is not finite, which does not become part of it.
    """

    def __init__(self, weight: float = 0.02, warm_up: int = 50) -> None:
        self._weight, self._warm_up = weight, warm_up
        self._updates, self._mean, self._variance = 0, 0.0, 0.0
        self._above = False

    def update(self, loss: float) -> bool:
        """Takes one update's mean loss; True when it leaves the range, not again before it was back."""
        gap = loss - self._mean
        finite = math.isfinite(loss)
        above = not finite or gap > max(10 * self._variance**0.5, 0.1 * abs(self._mean))
        above = above and self._updates >= self._warm_up
        alarm, self._above = above and not self._above, above
        if not finite:
            return alarm
        self._updates += 1
        weight = max(self._weight, 1 / self._updates)
        self._mean += weight * gap
        self._variance = (1 - weight) * (self._variance + weight * gap * gap)
        return alarm

    def state(self) -> list[float]:
        """JSON."""
        return [self._updates, self._mean, self._variance, self._above]

    def restore(self, state: Sequence[float]) -> None:
        """Goes on from a `state`."""
        updates, self._mean, self._variance, above = state
        self._updates, self._above = int(updates), bool(above)
