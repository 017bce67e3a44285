"""Work of a worker that comes to no end. Its thread cannot be stopped, but the worker can say what it is at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.metrics import WorkerMetrics

STALLED_S = 60.0  # what takes longer than this is taken for what never ends


@dataclass(eq=False)
class Stalls:
    """What the worker's own thread is at, and whether that takes too long."""

    model: str
    metrics: WorkerMetrics
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic  # monotonic seconds

    def __post_init__(self) -> None:
        self._at: tuple[Callable[[], str], float] | None = None
        self._said: str | None = None
        self.is_log_away = False

    @contextmanager
    def at(self, what: Callable[[], str]) -> Iterator[None]:
        """Work that shall end; `what` it is may be asked from another thread."""
        self._at = what, self.clock()
        try:
            yield
        finally:
            self._at = None

    def problem(self) -> str | None:
        """What keeps the worker from learning, for whoever watches. For another thread, again and again."""
        return self.look() or ("Kafka, which does not answer," if self.is_log_away else None)

    def look(self) -> str | None:
        """What has been worked on for too long. Says so once, and once when it has ended. For another thread."""
        what, since_s = self._at or (str, self.clock())
        lasts_s = self.clock() - since_s
        stalled = what() if lasts_s > STALLED_S else None
        self.metrics.stuck.set(lasts_s if stalled else 0.0)
        if stalled != self._said:
            self.say(
                f"{self.model}: has been at {stalled} for more than {STALLED_S:.0f} s, and nothing else is learned "
                f"meanwhile. If it never ends, mend the learner, end this worker, and start it again."
                if stalled
                else f"{self.model}: {self._said} has ended; going on."
            )
        self._said = stalled
        return stalled
