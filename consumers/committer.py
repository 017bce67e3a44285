"""Commits on a thread of its own: what was captured is serialised, sent and made the head while the updates go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import HeadraceError
from pipeline.log import Partition, Publisher, Reader
from pipeline.metrics import WorkerMetrics
from pipeline.store import Committed, Draft, Fence, Store

RETRY_S = 1.0
FLUSH_S = 30.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one commit needs, copied at one moment between two updates."""

    draft: Draft
    positions: dict[Partition, int]  # the watermark, for lag monitors
    keep_last: int
    keep_every: int | None


class Committer:
    """One commit at a time. An error that a later try can mend is tried again until it is mended, or until `close`."""

    def __init__(
        self,
        store: Store,
        fence: Fence,
        *,
        dead_letters: Publisher,
        reader: Reader,
        lease_s: float,
        metrics: WorkerMetrics,
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._fence = fence
        self._writer = store.writer(fence)
        self._dead_letters = dead_letters
        self._reader = reader
        self._lease_s = lease_s
        self._metrics = metrics
        self._say = say
        self._stop = threading.Event()
        self._wake = threading.Condition()
        self._snapshot: Snapshot | None = None
        self._error: HeadraceError | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=name, daemon=True)
            for name, loop in (("commit", self._commit_loop), ("lease", self._lease_loop))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> bool:
        """Whether a snapshot is on its way."""
        return self._snapshot is not None

    def check(self) -> None:
        """Raises what ended one of the threads, above all `Fenced`."""
        if self._error is not None:
            raise self._error

    def submit(self, snapshot: Snapshot) -> None:
        """Hands over a snapshot; only when not busy."""
        with self._wake:
            self._snapshot = snapshot
            self._wake.notify_all()

    def wait(self) -> None:
        """Returns when nothing is on its way.

        Raises:
            HeadraceError: the snapshot cannot become a version.
        """
        with self._wake:
            self._wake.wait_for(lambda: self._snapshot is None or self._error is not None)
        self.check()

    def close(self) -> None:
        """Stops the threads; a snapshot still on its way is given up."""
        self._stop.set()
        with self._wake:
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except HeadraceError as error:
            with self._wake:
                self._error = error
                self._wake.notify_all()

    def _commit_loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._snapshot is not None or self._stop.is_set())
                snapshot = self._snapshot
            if snapshot is None:
                return
            self._until_done(lambda snapshot=snapshot: self._commit(snapshot))  # type: ignore[misc]
            with self._wake:
                self._snapshot = None
                self._wake.notify_all()

    def _lease_loop(self) -> None:
        while not self._stop.wait(self._lease_s / 3):
            self._until_done(lambda: self._store.renew(self._fence, self._lease_s))

    def _until_done(self, call: Callable[[], None]) -> None:
        while True:
            try:
                call()
            except HeadraceError as error:
                if not error.retriable:
                    raise
                self._metrics.retry()
                self._say(f"{error} Trying again every {RETRY_S:.0f} s; learning goes on.")
                if self._stop.wait(RETRY_S):
                    raise
            else:
                return

    def _commit(self, snapshot: Snapshot) -> None:
        started = time.perf_counter()
        self._dead_letters.flush(FLUSH_S)
        committed: Committed = self._writer.commit(snapshot.draft)
        self._metrics.committed(committed, time.perf_counter() - started)
        self._reader.commit(snapshot.positions)
        self._store.retire(self._fence, snapshot.keep_last, snapshot.keep_every)
