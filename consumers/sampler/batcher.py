"""Where models run: one thread for what is quick, in batches, and a few beside it for what takes long.

Micro-batching: what waits for the same version is one forward pass. A text that is written byte by byte, a picture of
any size and a film-strip take seconds, and do not hold it up.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from consumers.workers import ANSWER_S, Ending, Task, Workers, contained, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from consumers.sampler.follower import Live

STALLED_S = 60.0  # what is quick, and takes longer than this, never ends
CLOSE_S = 1.0  # how long the last batch gets when the sampler ends

Item = TypeVar("Item")
ModelT = TypeVar("ModelT")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class _Pass(Task):
    """A part of a forward pass."""

    run: Callable[[Live[Any], Sequence[Any]], Sequence[Any]]
    live: Live[Any]
    item: Any
    rows: int

    def joins(self, other: _Pass) -> bool:
        """Whether both fit in one forward pass: the same work by the same version."""
        return self.run is other.run and self.live is other.live


class Batcher(Workers[_Pass]):
    """Binds a request to one `Live` when it comes: an answer never mixes versions, whatever is swapped meanwhile.

    Args:
        max_rows: rows of one forward pass; a single request may be larger.
        threads: of torch.
        clock: monotonic seconds.
    """

    def __init__(self, *, max_rows: int, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__("inference", slots=1, threads=threads, limit_s=STALLED_S, clock=clock)
        self._max_rows = max_rows

    def close(self) -> None:
        """Answers what still waits, then ends."""
        super().close()
        for thread in self._crew:
            thread.join(CLOSE_S)

    def submit(
        self,
        client: str,
        run: Callable[[Live[ModelT], Sequence[Item]], Sequence[Result]],
        live: Live[ModelT],
        item: Item,
        rows: int = 1,
    ) -> Future[Result]:
        """The item's result of `run(live, items)`, perhaps in one pass with other items.

        Raises:
            Stalled: the model's last pass has not ended.
        """
        return self._submit(_Pass(live.manifest.model, client, self.clock(), run, live, item, rows))

    def _take(self) -> list[_Pass]:
        """The oldest task and those that join it, oldest first."""
        first, rest = self._queue.popleft(), deque[_Pass]()
        batch, rows = [first], first.rows
        for task in self._queue:
            if task.joins(first) and rows + task.rows <= self._max_rows:
                batch.append(task)
                rows += task.rows
            else:
                rest.append(task)
        self._queue = rest
        return batch

    def _run(self, tasks: Sequence[_Pass]) -> None:
        try:
            results = contained(_results)(tasks)
        except Exception as error:  # noqa: BLE001 - the thread's outermost loop: a user's own model may raise anything
            for task in tasks:
                settle(task.future, error)
        else:
            for task, result in zip(tasks, results, strict=True):
                settle(task.future, result)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece(Task):
    """Something that takes long."""

    work: Callable[[], Any]
    turn: int  # how much of the same client comes before it


class Sideline(Workers[_Piece]):
    """Threads for long work, one piece each. The client with the fewest pieces comes first."""

    def __init__(self, name: str, *, slots: int, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name, slots=slots, threads=threads, limit_s=ANSWER_S, clock=clock)

    def close(self) -> None:
        """Lets running work end by itself. Waiting work ends with `Ending`."""
        with self._wake:
            waiting, self._queue = self._queue, deque()
        super().close()
        for piece in waiting:
            settle(piece.future, Ending())

    def submit(self, client: str, model: str, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """What the work gives.

        Raises:
            Stalled: the model's last work has not ended.
        """
        with self._wake:
            at_work = (piece for work in self._works for piece in work.tasks)
            turn = sum([piece.client == client for piece in chain(self._queue, at_work)])
            return self._submit(_Piece(model, client, self.clock(), lambda: work(*arguments), turn))

    def _take(self) -> list[_Piece]:
        piece = min(self._queue, key=lambda piece: piece.turn)  # of these the oldest
        self._queue.remove(piece)
        return [piece]

    def _run(self, tasks: Sequence[_Piece]) -> None:
        for task in tasks:
            try:
                settle(task.future, contained(torch.inference_mode()(task.work))())
            except Exception as error:  # noqa: BLE001 - as above
                settle(task.future, error)


@torch.inference_mode()
def _results(tasks: Sequence[_Pass]) -> Sequence[Any]:
    """
    Raises:
        ValueError: the model gives more or fewer answers than it was asked for.
    """
    results = tasks[0].run(tasks[0].live, [task.item for task in tasks])
    if len(results) != len(tasks):
        raise ValueError(f"the model gave {len(results)} answers to {len(tasks)} questions")
    return list(results)
