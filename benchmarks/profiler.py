"""Runs a headrace command and notes where its threads are: `python -m benchmarks.profiler OUT.json train MODEL`.

Two instruments, from the moment that the feed runs: the stacks of all Python threads, every few milliseconds, and the
kernel's account of each thread (running; ready, but without a core). What is left of a thread's time it is blocked:
it waits for another thread, for the network, or for the interpreter's lock.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from consumers.cli.app import main

PERIOD_S = 0.005
ACCOUNT_EVERY = 50  # samples
LOOPS = ("session.py", "fold.py", "feed.py", "committer.py", "reader.py")  # whose callees are told apart


def place(frame: FrameType) -> str:
    """Where a thread is: the innermost function of a loop, and what it has called."""
    outwards: list[FrameType] = []
    at: FrameType | None = frame
    while at is not None and not at.f_code.co_filename.endswith(LOOPS):
        outwards.append(at)
        at = at.f_back
    names = [f.f_code.co_qualname for f in ([at] if at else []) + outwards[-1:]]
    return " → ".join(names)


def accounts() -> Iterator[tuple[int, tuple[int, int]]]:
    """Thread id → nanoseconds on a core, and waiting for one."""
    for path in Path("/proc/self/task").iterdir():
        running, waiting, _ = path.joinpath("schedstat").read_text().split()
        yield int(path.name), (int(running), int(waiting))


class Profiler(threading.Thread):
    """Samples until `stop`."""

    def __init__(self) -> None:
        super().__init__(name="profiler", daemon=True)
        self._ended = threading.Event()
        self._places: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._first: dict[int, tuple[int, int]] = {}
        self._last: dict[int, tuple[int, int]] = {}
        self._names: dict[int, str] = {}  # of threads by the kernel's id
        self._started_s = self._wall_s = 0.0
        self._samples = 0

    def run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            threads = {t.ident: t for t in threading.enumerate() if t.ident}
            if not any(t.name == "feed" for t in threads.values()):
                continue
            if self._samples % ACCOUNT_EVERY == 0:
                self._account(list(threads.values()))
            self._samples += 1
            for ident, frame in sys._current_frames().items():
                if ident in threads:
                    self._places[threads[ident].name][place(frame)] += 1

    def _account(self, threads: list[threading.Thread]) -> None:
        self._names |= {t.native_id: t.name for t in threads if t.native_id}
        self._last = dict(accounts())
        now_s = time.perf_counter()
        if not self._first:
            self._first, self._started_s = self._last, now_s
        self._wall_s = now_s - self._started_s

    def stop(self) -> dict[str, Any]:
        """Thread → shares of the time: running, without a core, and of the places where it was."""
        self._ended.set()
        self.join()
        found: dict[str, Any] = {}
        for thread, (running, waiting) in self._last.items():
            before = self._first.get(thread, (0, 0))
            name = self._names.get(thread, "native")
            entry = found.setdefault(name, {"running": 0.0, "without_core": 0.0})
            entry["running"] += (running - before[0]) / 1e9 / self._wall_s
            entry["without_core"] += (waiting - before[1]) / 1e9 / self._wall_s
        for name, counter in self._places.items():
            shares = {where: count / self._samples for where, count in counter.most_common(12)}
            found.setdefault(name, {})["places"] = shares
        return {"wall_s": self._wall_s, "samples": self._samples, "threads": found}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    sys.argv[:2] = ["headrace"]
    profiler = Profiler()
    profiler.start()
    try:
        main()
    finally:
        out.write_text(json.dumps(profiler.stop(), indent=1), "utf-8")
