"""Prequential evaluation: every record is predicted before it is learned, and the last `window` of them count.

Gama et al. 2013, "On evaluating stream learning algorithms". Prequential accuracy follows the stream, not the past: a
learner that forgets shows a high one on a stream that is ordered by class.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any


class Prequential:
    """Accuracy and mean loss (nats per record) over the last `window` records."""

    def __init__(self, window: int = 1000) -> None:
        self._window = window
        self._hits: deque[bool] = deque(maxlen=window)
        self._losses: deque[tuple[int, float]] = deque()  # (records, mean loss) of each update
        self._records = 0  # in `_losses`

    def update(self, loss: float, hits: Sequence[bool] | None = None, *, records: int | None = None) -> None:
        """Takes one update's mean loss and, from a classifier, whether each prediction hit.

        Args:
            records: how many records the update had, where there are no hits; 1 if left out.
        """
        count = len(hits) if hits is not None else records or 1
        self._hits.extend(hits or ())
        self._losses.append((count, loss))
        self._records += count
        while (surplus := self._records - self._window) > 0:
            oldest, mean = self._losses.popleft()
            if oldest > surplus:
                self._losses.appendleft((oldest - surplus, mean))
            self._records -= min(oldest, surplus)

    @property
    def accuracy(self) -> float | None:
        """Share of hits, 0 to 1; None before the first prediction."""
        return sum(self._hits) / len(self._hits) if self._hits else None

    @property
    def loss(self) -> float | None:
        """Mean over the window's records, in nats; None before the first update."""
        return sum(count * mean for count, mean in self._losses) / self._records if self._records else None

    def metrics(self) -> dict[str, float]:
        """What there is of both, by name."""
        found = {"prequential_accuracy": self.accuracy, "prequential_loss": self.loss}
        return {name: value for name, value in found.items() if value is not None}

    def state(self) -> dict[str, Any]:
        """JSON: a hit is "1", an error "0"; losses as [records, mean]."""
        return {"hits": "".join("1" if hit else "0" for hit in self._hits), "losses": list(map(list, self._losses))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`."""
        self._hits = deque((hit == "1" for hit in state["hits"]), maxlen=self._window)
        self._losses = deque((count, mean) for count, mean in state["losses"])
        self._records = sum(count for count, _ in self._losses)
