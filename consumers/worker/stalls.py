"""Work of a worker that comes to no end. Its thread cannot be stopped, but the worker can say what it is at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.metrics import WorkerMetrics

STALLED_S = 60.0  # what takes longer than this is taken for what never ends


class Stalls:
    """What the worker's own thread is at, and whether that takes too long.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        model: str,
        metrics: WorkerMetrics,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._metrics = metrics
        self._say = say
        self._clock = clock
        self._at: tuple[Callable[[], str], float] | None = None
        self._said: str | None = None

    @contextmanager
    def at(self, what: Callable[[], str]) -> Iterator[None]:
        """Work that shall end; `what` it is may be asked from another thread."""
        self._at = what, self._clock()
        try:
            yield
        finally:
            self._at = None

    def look(self) -> str | None:
        """What has been worked on for too long. Says so once, and once when it has ended. For another thread."""
        what, since_s = self._at or (str, self._clock())
        lasts_s = self._clock() - since_s
        stalled = what() if lasts_s > STALLED_S else None
        self._metrics.stuck(lasts_s if stalled else 0.0)
        if stalled != self._said:
            self._say(
                f"{self._model}: has been at {stalled} for more than {STALLED_S:.0f} s, and nothing else is learned "
                f"meanwhile. If it never ends, mend the learner, end this worker, and start it again."
                if stalled
                else f"{self._model}: {self._said} has ended; going on."
            )
        self._said = stalled
        return stalled
