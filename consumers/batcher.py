"""Where models run: one thread for what is quick, in batches, and a few beside it for what takes long.

Micro-batching: what waits for the same version is one forward pass. A text that is written byte by byte, a picture of
any size and a film-strip take seconds, and do not hold it up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Full
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from consumers.serving import Live

STALLED_S = 60.0  # what takes longer than this is taken for what never ends
LOOK_S = 1.0  # between two looks for it
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

    @property
    def model(self) -> str:
        return self.live.manifest.model

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


class Stalled(Exception):
    """The model is at work that does not end, and is given no more."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model} has been at one piece of work for more than {STALLED_S:.0f} s, and is asked no more until that "
            f"ends. Mend the model, and start the sampler again."
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """A forward pass at work."""

    batch: Sequence[_Task]
    since_s: float

    @property
    def model(self) -> str:
        return self.batch[0].model


class Batcher(Places):
    """A request is bound to one `Live` when it comes: whatever is swapped meanwhile, no answer mixes versions.

    A pass that does not end keeps its thread, and another takes its place; its model is given no more until it ends.

    Args:
        places: requests that are admitted at one time, be their body read, decoded, queued or answered: the
            bound on the memory that requests take.
        max_rows: rows of one forward pass; a single request may be larger.
        threads: of torch.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, places: int, max_rows: int, threads: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(places)
        self.clock = clock
        self._max_rows = max_rows
        self._threads = threads
        self._queue: deque[_Task] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._pass: _Pass | None = None  # at work
        self._stalled: dict[str, _Pass] = {}  # by model, each on a thread that was given up
        self._thread = self._new_thread()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look, name="stalls", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._watch.start()

    @property
    def problem(self) -> str | None:
        """Why nobody is answered at this moment."""
        if not self._thread.is_alive():
            return "The thread that models run on has ended. Start the sampler again."
        if stalled := sorted(self._stalled):
            return " ".join(str(Stalled(model)) for model in stalled)
        return None

    def close(self) -> None:
        """Answers what still waits, then ends."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._ended.set()
        self._thread.join(CLOSE_S)

    def submit(
        self, run: Callable[[Live, Sequence[Item]], Sequence[Result]], live: Live, item: Item, rows: int = 1
    ) -> Future[Result]:
        """The item's result of `run(live, items)`, where other items may keep it company.

        Raises:
            Stalled: the model's last pass has not ended.
        """
        future: Future[Result] = Future()
        task = _Task(run, live, item, rows, future)
        with self._wake:
            if task.model in self._stalled:
                raise Stalled(task.model)
            self._queue.append(task)
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
                # A client that went away has cancelled its future.
                batch = [task for task in batch if task.future.set_running_or_notify_cancel()]
                if not batch:
                    continue
                work = self._pass = _Pass(batch, self.clock())
            _answer(batch)
            with self._wake:
                if self._stalled.get(work.model) is work:  # another thread has taken over
                    del self._stalled[work.model]
                    return
                self._pass = None

    def _look(self) -> None:
        """Gives up the thread of a pass that does not end."""
        while not self._ended.wait(LOOK_S):
            with self._wake:
                work = self._pass
                if work is None or self.clock() - work.since_s <= STALLED_S:
                    continue
                self._pass, self._stalled[work.model] = None, work
                given_up = [task for task in self._queue if task.model == work.model]
                self._queue = deque(task for task in self._queue if task.model != work.model)
                self._thread = self._new_thread()
                self._thread.start()
            for task in [*work.batch, *given_up]:
                _settle(task.future, Stalled(work.model))

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._loop, name="inference", daemon=True)

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


def _settle(future: Future[Any], outcome: Any) -> None:
    """What a future comes to, be it an error; nothing where that is settled: a pass may end after it was given up."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _answer(batch: Sequence[_Task]) -> None:
    try:
        results = contained(_results)(batch)
    except Exception as error:  # noqa: BLE001 - the thread's outermost loop: a user's own model may raise anything
        for task in batch:
            _settle(task.future, error)
    else:
        for task, result in zip(batch, results, strict=True):
            _settle(task.future, result)


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
