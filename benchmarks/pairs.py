"""Two things timed in turn, so that a machine that is busy with something else slows both."""

from __future__ import annotations

import time
from collections.abc import Callable


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of this process while it runs."""
    started_s = time.process_time()
    run()
    return time.process_time() - started_s


def alternated(one: Callable[[], object], other: Callable[[], object], pairs: int) -> list[tuple[float, float]]:
    """CPU seconds of both, pair by pair; who comes first changes, since the second one finds warm caches."""
    one()
    other()
    found = []
    for number in range(pairs):
        if number % 2:
            other_s = cpu_seconds(other)
            found.append((cpu_seconds(one), other_s))
        else:
            found.append((cpu_seconds(one), cpu_seconds(other)))
    return found
