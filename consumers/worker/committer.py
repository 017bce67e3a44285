"""What a worker does in the background: it renews its lease, and commits versions while the updates go on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import InitVar, dataclass
from typing import Self, TypeVar

from pipeline.errors import HeadraceError, StoreUnavailable
from pipeline.log import AlignedReader, Publisher, Reader
from pipeline.metrics import WorkerMetrics
from pipeline.records import Partition
from pipeline.store import Committed, Draft, Fence, Store
from pipeline.threads import Background

RETRY_S = 1.0
FLUSH_S = 30.0
NUMBER_S = 10.0

T = TypeVar("T")


@dataclass(eq=False)
class Lease:
    """Renews the writer's lease until the end of the context. The caller has acquired it: restoring may take a while.

    Args:
        stalled: gives what the worker has been at for too long, for whoever watches.
    """

    store: Store
    fence: Fence
    lease_s: float
    metrics: WorkerMetrics
    stalled: Callable[[], str | None] = lambda: None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = Background(self._run, "lease")

    def check(self) -> None:
        """
        Raises:
            Fenced: another worker took the lease.
        """
        self._thread.check()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        try:
            self._thread.close()
        finally:
            with suppress(StoreUnavailable):  # then the lease runs out by itself
                self.store.release(self.fence)

    def _run(self) -> None:
        while not self._stop.wait(self.lease_s / 3):
            try:
                self.store.renew(self.fence, self.lease_s, self.stalled())
            except StoreUnavailable:  # one that ran out can be prolonged as long as nobody else took it
                self.metrics.store_up(False)
            else:
                self.metrics.store_up(True)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one commit needs. All of it was copied at one moment between two updates."""

    draft: Draft
    positions: dict[Partition, int]  # the watermark, for lag monitors
    keep_last: int
    keep_every: int | None
    may_doubt: bool = False  # some of it may be of a topic that was made again


@dataclass(eq=False)
class Committer:
    """Makes one commit at a time. A step that a later try can mend is tried again, until `finish` gives up.

    Each step is repeated by itself, so that one draft never becomes two versions.
    """

    store: Store
    fence: Fence
    last_number: InitVar[int]  # the highest number that a version may have had. New ones are above it
    reader: Reader | AlignedReader
    dead_letters: Publisher
    metrics: WorkerMetrics
    say: Callable[[str], None]

    def __post_init__(self, last_number: int) -> None:
        self._writer = self.store.writer(self.fence, above=last_number)
        self._stop = threading.Event()
        self._until_s = math.inf  # when trying again ends
        self._wake = threading.Condition()
        self._snapshot: Snapshot | None = None
        self._thread = Background(self._loop, "commit", self._notify)

    @property
    def busy(self) -> bool:
        """Whether a snapshot is on its way."""
        return self._snapshot is not None

    def check(self) -> None:
        self._thread.check()

    def submit(self, snapshot: Snapshot) -> None:
        """Hands over a snapshot; only when not busy."""
        with self._wake:
            self._until_s = math.inf  # what an earlier `finish` was given is over
            self._snapshot = snapshot
            self._wake.notify_all()

    def finish(self, patience_s: float) -> None:
        """Waits for the snapshot that is being committed. What fails is tried again for `patience_s` at most.

        Raises:
            HeadraceError: the snapshot did not become a version.
        """
        self._until_s = time.monotonic() + patience_s
        with self._wake:
            self._wake.wait_for(lambda: self._snapshot is None or self._thread.error is not None)
        self._until_s = math.inf
        self.check()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Gives up a snapshot that is not committed yet."""
        self._stop.set()
        self._notify()
        self._thread.close()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._snapshot is not None or self._stop.is_set())
                snapshot = self._snapshot
            if snapshot is None:
                return
            self._commit(snapshot)
            with self._wake:
                self._snapshot = None
                self._wake.notify_all()

    def _commit(self, snapshot: Snapshot) -> None:
        """The order of a commit. docs/guarantees.md says what a crash leaves between each two steps.

        1. Between two updates, what changed is copied, with the watermark, what is pending, and the lineage.
        2. Dead letters are flushed to Kafka.
        3. The version's number is committed to Kafka, as metadata of the offsets of the group `headrace-MODEL`.
        4. Objects that the parent does not name are uploaded, with a TTL.
        5. One script checks the fence, the parent, and that every object is there, and moves the head.
        6. Offsets are committed to Kafka, for lag monitors alone.
        7. Versions beyond the configured ones are removed.

        The session has done step 1. The store's writer does steps 4 and 5. The number comes before them, so that it
        never names another content, should Redis come back older.
        """
        started = time.perf_counter()
        self._until_done(lambda: self.dead_letters.flush(FLUSH_S))
        number, positions = str(self._writer.next_version), snapshot.positions
        self._until_done(lambda: self.reader.commit_number(number, positions, NUMBER_S, may_doubt=snapshot.may_doubt))
        committed = self._until_done(lambda: self._make_head(snapshot))
        self.metrics.committed(committed, time.perf_counter() - started)
        self.reader.commit(snapshot.positions)
        self._until_done(lambda: self._retire(snapshot))

    def _make_head(self, snapshot: Snapshot) -> Committed:
        try:
            return self._writer.commit(snapshot.draft)
        except StoreUnavailable:
            self._retire(snapshot)  # what may be missing is memory, and the configuration may ask for less now
            raise

    def _retire(self, snapshot: Snapshot) -> None:
        self.store.retire(self.fence, snapshot.keep_last, snapshot.keep_every)

    def _until_done(self, call: Callable[[], T]) -> T:
        is_said = False
        while True:
            try:
                found = call()
            except HeadraceError as error:
                if not error.retriable:
                    raise
                self.metrics.retry()
                if not is_said:
                    self.say(f"{error} Trying again every {RETRY_S:.0f} s; learning goes on.")
                is_said = True
                if self._stop.wait(RETRY_S) or time.monotonic() >= self._until_s:
                    raise
            else:
                self.metrics.retried()
                return found
