"""Threads that models work on: each client has its turn, and a thread that does not come back is replaced."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Full
from typing import Any, Generic, TypeVar

import torch

from pipeline.threads import Background

ANSWER_S = 120.0  # what is not done by then comes to a `TimeoutError`, be it at work or waiting
LOOK_S = 1.0  # between two looks for it

Result = TypeVar("Result")


class Admission:
    """Admits so many requests at one time, and at most half of them, rounded up, of one client."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str] = Counter()  # by client
        self._lock = threading.Lock()

    @contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """Counts a request while it is worked on.

        Raises:
            Full: there are too many, or too many of this client.
        """
        with self._lock:
            if self._held.total() >= self._most or self._held[client] >= (self._most + 1) // 2:
                raise Full
            self._held[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[client] -= 1
                self._held += Counter()  # without those that are gone


class Stalled(Exception):
    """The model is at work that does not end, and is given no more."""

    def __init__(self, model: str, seconds: float) -> None:
        super().__init__(
            f"{model} has been at one piece of work for more than {seconds:.0f} s, and is asked no more until that "
            f"ends. Mend the model, and start the sampler again."
        )


class Broken(Exception):
    """A thread that models run on has ended, by a mistake or because it was closed."""

    def __init__(self, why: str | None) -> None:
        super().__init__(f"{why or 'A thread that models run on has ended'}. Start the sampler again.")


class Ending(Exception):
    """The sampler ends, and starts nothing more."""

    def __init__(self) -> None:
        super().__init__("The sampler ends. Ask again when it is back.")


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Something that a client asks of a model."""

    model: str
    client: str
    since_s: float
    future: Future[Any] = field(default_factory=Future, init=False)


TaskT = TypeVar("TaskT", bound=Task)


@dataclass(frozen=True, slots=True, eq=False)
class _Work(Generic[TaskT]):
    """What one thread is at, all of it for one model."""

    tasks: Sequence[TaskT]
    since_s: float
    thread_id: int = field(default_factory=threading.get_ident)

    @property
    def model(self) -> str:
        return self.tasks[0].model


class Workers(ABC, Generic[TaskT]):
    """Threads and what waits for them.

    Work that does not end keeps its thread. Another thread replaces that one. The model gets no more work until its
    last one has ended.

    Args:
        name: of the threads.
        slots: how many there are.
        threads: of torch, for each.
        limit_s: what takes longer than this is taken for what never ends.
        clock: monotonic seconds.
    """

    def __init__(
        self, name: str, *, slots: int, threads: int, limit_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self._name = name
        self._torch_threads = threads
        self._limit_s = limit_s
        self._queue: deque[TaskT] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._works: set[_Work[TaskT]] = set()
        self._stalled: set[_Work[TaskT]] = set()  # each on a thread that was given up
        self._crew = {self._new_thread() for _ in range(slots)}
        self._ended = threading.Event()
        self._watch = Background(self._look, "stalls", self._answer_all)

    @abstractmethod
    def _take(self) -> list[TaskT]:
        """Takes the next work of one thread from the queue, which is not empty. All of it is of one model."""

    @abstractmethod
    def _run(self, tasks: Sequence[TaskT]) -> None:
        """Settles the tasks' futures."""

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    @property
    def threads(self) -> list[Background]:
        """All that shall run until the end, but not those that were given up."""
        return [*self._crew, self._watch]

    @property
    def problem(self) -> str | None:
        """Why some requests are not answered at this moment."""
        with self._wake:
            if (broken := self._broken()) is not None:
                return str(broken)
            stalled = sorted({work.model for work in self._stalled})
        return " ".join(str(Stalled(model, self._limit_s)) for model in stalled) or None

    @property
    def given_up(self) -> int:
        """Threads that never came back."""
        return len(self._stalled)

    def close(self) -> None:
        """Tells the threads to end once their queue is empty."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._ended.set()

    def _submit(self, task: TaskT) -> Future[Any]:
        """
        Raises:
            Ending: the threads end.
            Broken: one of them has failed.
            Stalled: the model's last work has not ended.
        """
        with self._wake:
            if self._closed:
                raise Ending
            if (broken := self._broken()) is not None:
                raise broken
            if any(work.model == task.model for work in self._stalled):
                raise Stalled(task.model, self._limit_s)
            self._queue.append(task)
            self._wake.notify()
        return task.future

    def _broken(self) -> Broken | None:
        if problem := next((thread.problem for thread in self.threads if thread.problem), None):
            return Broken(problem)
        return None if all(thread.is_alive() for thread in self.threads) else Broken(None)

    def _answer_all(self) -> None:
        """Answers everybody who waits, because a thread has failed. One that was given up does not count."""
        with self._wake:
            if (broken := self._broken()) is None:
                return
            asked = [*(task for work in self._works for task in work.tasks), *self._queue]
            self._works.clear()
            self._queue.clear()
        for task in asked:
            settle(task.future, broken)

    def _loop(self) -> None:
        torch.set_num_threads(self._torch_threads)
        while (work := self._next()) is not None:
            self._run(work.tasks)
            with self._wake:
                self._works.discard(work)
                if work in self._stalled:  # another thread has taken over
                    self._stalled.remove(work)
                    return

    def _next(self) -> _Work[TaskT] | None:
        with self._wake:
            while self._wake.wait_for(lambda: self._queue or self._closed) and self._queue:
                # A client that went away has cancelled its future.
                tasks = [task for task in self._take() if task.future.set_running_or_notify_cancel()]
                if tasks:
                    work = _Work(tasks, self.clock())
                    self._works.add(work)
                    return work
        return None

    def _look(self) -> None:
        """Gives up threads whose work does not end, and answers clients who wait too long."""
        while not self._ended.wait(LOOK_S):
            with self._wake:
                settled = [*self._too_late(), *self._give_up()]  # what is both, is too late
            for task, error in settled:
                settle(task.future, error)

    def _give_up(self) -> list[tuple[TaskT, Exception]]:
        overdue = [work for work in self._works if self.clock() - work.since_s > self._limit_s]
        for work in overdue:
            self._works.remove(work)
            self._stalled.add(work)
            thread = self._new_thread()
            self._crew = {other for other in self._crew if other.ident != work.thread_id} | {thread}
            thread.start()
        models = {work.model for work in overdue}
        waiting = [task for task in self._queue if task.model in models]
        self._queue = deque(task for task in self._queue if task.model not in models)
        asked = [task for work in overdue for task in work.tasks] + waiting
        return [(task, Stalled(task.model, self._limit_s)) for task in asked]

    def _too_late(self) -> list[tuple[TaskT, Exception]]:
        late = self.clock() - ANSWER_S
        waiting = [task for task in self._queue if task.since_s < late]
        self._queue = deque(task for task in self._queue if task.since_s >= late)
        asked = [task for work in self._works for task in work.tasks if task.since_s < late] + waiting
        return [(task, TimeoutError()) for task in asked]

    def _new_thread(self) -> Background:
        return Background(self._loop, self._name, self._answer_all)


def contained(work: Callable[..., Result]) -> Callable[..., Result]:
    """Returns the same work, which raises an `Exception` whatever happens: a future can carry that to its waiter.

    A user's own code may raise `SystemExit`. A future cannot carry `StopIteration`: its waiter would wait for ever.
    """

    def run(*arguments: Any) -> Result:
        try:
            return work(*arguments)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                raise
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    return run


def settle(future: Future[Any], outcome: Any) -> None:
    """Sets a future's result or error. One that is settled stays as it is: work may end after it was given up."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
