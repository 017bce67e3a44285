"""Where models run: one thread for what is quick, in batches, and a few beside it for what takes long.

Micro-batching: what waits for the same version is one forward pass. A text that is written byte by byte, a picture of
any size and a film-strip take seconds, and do not hold it up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Full
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from consumers.serving import Live

STALLED_S = 60.0  # a forward pass that takes longer than this
CLOSE_S = 1.0  # how long the last batch gets when the sampler ends

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Task:
    run: Callable[[Live, Sequence[Any]], Sequence[Any]]
    live: Live
    item: Any
    rows: int
    future: Future[Any]

    def joins(self, other: _Task) -> bool:
        """Whether both fit in one forward pass: the same work by the same version."""
        return self.run is other.run and self.live is other.live


class Places:
    """So many requests at one time, and no more."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._lock = threading.Lock()

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places, held while a request is worked on.

        Raises:
            Full: none is free.
        """
        with self._lock:
            if self._free == 0:
                raise Full
            self._free -= 1
        try:
            yield
        finally:
            with self._lock:
                self._free += 1


class Batcher(Places):
    """A request is bound to one `Live` when it comes: whatever is swapped meanwhile, no answer mixes versions.

    Args:
        places: requests that are admitted at one time, be their body read, decoded, queued or answered: the
            bound on the memory that requests take.
        max_rows: rows of one forward pass; a single request may be larger.
        threads: of torch.
    """

    def __init__(self, *, places: int, max_rows: int, threads: int) -> None:
        super().__init__(places)
        self._max_rows = max_rows
        self._threads = threads
        self._queue: deque[_Task] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._since_s: float | None = None  # monotonic: when the present pass began
        self._thread = threading.Thread(target=self._loop, name="inference", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why nobody is answered at this moment."""
        if not self._thread.is_alive():
            return "The thread that models run on has ended. Start the sampler again."
        since_s = self._since_s
        if since_s is not None and time.monotonic() - since_s > STALLED_S:
            return f"A model has been at one forward pass for more than {STALLED_S:.0f} s, and all others wait."
        return None

    def close(self) -> None:
        """Answers what still waits, then ends."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(CLOSE_S)

    def submit(
        self, run: Callable[[Live, Sequence[Item]], Sequence[Result]], live: Live, item: Item, rows: int = 1
    ) -> Future[Result]:
        """The item's result of `run(live, items)`, where other items may keep it company."""
        future: Future[Result] = Future()
        with self._wake:
            self._queue.append(_Task(run, live, item, rows, future))
            self._wake.notify()
        return future

    def _loop(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                batch = self._take()
            self._since_s = time.monotonic()
            # A client that went away has cancelled its future.
            _answer([task for task in batch if task.future.set_running_or_notify_cancel()])
            self._since_s = None

    def _take(self) -> list[_Task]:
        """The oldest task and those that join it, oldest first."""
        first, rest = self._queue.popleft(), deque[_Task]()
        batch, rows = [first], first.rows
        for task in self._queue:
            if task.joins(first) and rows + task.rows <= self._max_rows:
                batch.append(task)
                rows += task.rows
            else:
                rest.append(task)
        self._queue = rest
        return batch


class Sideline(Places):
    """Threads for what takes long.

    Args:
        slots: what is worked on at one time.
        places: what is worked on or waits.
        threads: of torch, for each.
    """

    def __init__(self, *, slots: int, places: int, threads: int) -> None:
        super().__init__(places)
        self._pool = ThreadPoolExecutor(slots, "sideline", torch.set_num_threads, (threads,))

    def close(self) -> None:
        """What has begun ends by itself; what waits is given up."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """What the work gives."""
        return self._pool.submit(contained(torch.inference_mode()(work)))


def contained(work: Callable[..., Result]) -> Callable[..., Result]:
    """The same, for a thread: whatever it raises is an `Exception`, which whoever waits for it can be given.

    A user's own code may raise `SystemExit`; and `StopIteration` never arrives: who waits for it waits for ever.
    """

    def run(*arguments: Any) -> Result:
        try:
            return work(*arguments)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                raise
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    return run


def _answer(batch: Sequence[_Task]) -> None:
    if not batch:
        return
    try:
        results = contained(_results)(batch)
    except Exception as error:  # noqa: BLE001 - the thread's outermost loop: a user's own model may raise anything
        for task in batch:
            task.future.set_exception(error)
    else:
        for task, result in zip(batch, results, strict=True):
            task.future.set_result(result)


@torch.inference_mode()
def _results(batch: Sequence[_Task]) -> Sequence[Any]:
    """
    Raises:
        ValueError: the model gives more or fewer answers than it was asked for.
    """
    results = batch[0].run(batch[0].live, [task.item for task in batch])
    if len(results) != len(batch):
        raise ValueError(f"the model gave {len(results)} answers to {len(batch)} questions")
    return list(results)
