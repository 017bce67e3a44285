"""What waits for the same version is one forward pass; whatever happens to one request, the thread goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from queue import Full
from types import SimpleNamespace
from typing import Any

import pytest

from consumers.sampler.batcher import STALLED_S, Batcher, Sideline
from consumers.sampler.follower import Live
from consumers.workers import ANSWER_S, Admission, Stalled
from pipeline.texts import TextInput

WAIT_S = 60.0


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    batcher = Batcher(max_rows=8, threads=1)
    batcher.start()
    yield batcher
    batcher.close()


def version(model: str = "model") -> Live[Any]:
    """Any version: the batcher looks at its model's name, and hands it on."""
    manifest: Any = SimpleNamespace(model=model)
    nothing: Any = None
    return Live(manifest, "", nothing, TextInput(), False, {})


class Pass:
    """A forward pass that waits to be let go; it notes what it was given."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.batches: list[tuple[Live[Any], list[int]]] = []

    def __call__(self, live: Live[Any], items: Sequence[int]) -> list[int]:
        self.entered.set()
        assert self.go.wait(WAIT_S)
        self.batches.append((live, list(items)))
        return [10 * item for item in items]


def test_what_waits_for_one_version_is_one_pass_and_no_pass_mixes_versions(batcher: Batcher) -> None:
    run, old, new = Pass(), version(), version()
    futures = [batcher.submit("client", run, old, 0)]
    assert run.entered.wait(WAIT_S)  # the thread is busy: what comes now waits
    futures += [batcher.submit("client", run, live, item) for item, live in enumerate([old, new, old, new, old], 1)]
    run.go.set()
    assert [future.result(WAIT_S) for future in futures] == [0, 10, 20, 30, 40, 50]
    assert run.batches == [(old, [0]), (old, [1, 3, 5]), (new, [2, 4])]


def test_a_pass_is_bounded_in_rows_but_one_request_may_be_larger(batcher: Batcher) -> None:
    run, live = Pass(), version()
    futures = [batcher.submit("client", run, live, 0)]
    assert run.entered.wait(WAIT_S)
    futures += [batcher.submit("client", run, live, item, rows) for item, rows in [(1, 20), (2, 5), (3, 3), (4, 1)]]
    run.go.set()
    for future in futures:
        future.result(WAIT_S)
    assert [items for _, items in run.batches] == [[0], [1], [2, 3], [4]]


def test_a_pass_that_raises_fails_its_own_requests_alone(batcher: Batcher) -> None:
    def fail(live: Live[Any], items: Sequence[int]) -> list[int]:
        raise ZeroDivisionError("the model divides")

    live = version()
    with pytest.raises(ZeroDivisionError, match="the model divides"):
        batcher.submit("client", fail, live, 1).result(WAIT_S)
    run = Pass()
    run.go.set()
    assert batcher.submit("client", run, live, 1).result(WAIT_S) == 10


class Odd:
    """Answers that no caller can use."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, live: Live[Any], items: Sequence[int]) -> Any:
        match self.name:
            case "too few":
                return items[1:]
            case "too many":
                return [*items, 0]
            case "not a list":
                return 0.5
            case "exit":
                raise SystemExit(3)
            case _:
                return next(iter(()))


@pytest.mark.parametrize("name", ["too few", "too many", "not a list", "exit", "stop"])
def test_a_model_that_answers_oddly_fails_its_own_requests_alone(batcher: Batcher, name: str) -> None:
    async def asked() -> list[Any]:
        futures = [asyncio.wrap_future(batcher.submit("client", odd, live, item)) for item in range(3)]
        return await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), WAIT_S)

    odd, live, run = Odd(name), version(), Pass()
    assert all(isinstance(error, Exception) for error in asyncio.run(asked()))
    run.go.set()
    assert batcher.submit("client", run, live, 1).result(WAIT_S) == 10
    assert batcher.problem is None


def test_a_pass_that_does_not_end_holds_its_own_model_alone(batcher: Batcher) -> None:
    now = batcher.clock()
    batcher.clock = lambda: now
    hung, run, live, other = Pass(), Pass(), version("hung"), version("other")
    run.go.set()
    asked = [batcher.submit("client", hung, live, 0)]
    assert hung.entered.wait(WAIT_S)
    asked += [
        batcher.submit("client", hung, live, 1),
        batcher.submit("client", hung, version("hung"), 2),
    ]  # a newer version, too
    waits = batcher.submit("client", run, other, 1)
    now += STALLED_S + 1
    for future in asked:
        assert isinstance(future.exception(WAIT_S), Stalled)
    assert waits.result(WAIT_S) == 10
    assert "hung has been at one piece of work" in str(batcher.problem)
    with pytest.raises(Stalled):
        batcher.submit("client", run, live, 3)
    assert batcher.submit("client", run, other, 4).result(WAIT_S) == 40
    hung.go.set()  # it ends after all
    while batcher.problem:
        pass
    assert batcher.submit("client", run, live, 5).result(WAIT_S) == 50
    assert hung.batches == [(live, [0])]


def test_a_thread_that_has_ended_is_reported(batcher: Batcher) -> None:
    assert batcher.problem is None
    batcher.close()
    assert batcher.problem == "A thread that models run on has ended. Start the sampler again."


def test_a_request_that_was_given_up_costs_nothing(batcher: Batcher) -> None:
    run, live = Pass(), version()
    first = batcher.submit("client", run, live, 0)
    assert run.entered.wait(WAIT_S)
    given_up, kept = batcher.submit("client", run, live, 1), batcher.submit("client", run, live, 2)
    assert given_up.cancel()
    run.go.set()
    assert (first.result(WAIT_S), kept.result(WAIT_S)) == (0, 20)
    assert [items for _, items in run.batches] == [[0], [2]]


def test_admission_is_bounded_and_shared() -> None:
    admission = Admission(4)
    with admission.admit("greedy"), admission.admit("greedy"):
        with pytest.raises(Full), admission.admit("greedy"):
            pass
        with admission.admit("other"), admission.admit("third"), pytest.raises(Full), admission.admit("fourth"):
            pass
    with admission.admit("greedy"), Admission(1).admit("alone"):
        pass


@pytest.fixture
def sideline() -> Iterator[Sideline]:
    sideline = Sideline("sideline", slots=2, threads=1)
    sideline.start()
    yield sideline
    sideline.close()


def test_each_client_has_its_turn_on_the_sideline(sideline: Sideline) -> None:
    begun, go, order = threading.Semaphore(0), threading.Semaphore(0), []

    def work(name: str) -> None:
        order.append(name)
        begun.release()
        assert go.acquire(timeout=WAIT_S)

    futures = [sideline.submit("greedy", "model", work, "greedy") for _ in range(6)]
    for _ in range(2):
        assert begun.acquire(timeout=WAIT_S)
    futures += [sideline.submit(client, "model", work, client) for client in ("other", "third", "third")]
    for _ in range(7):
        go.release()
        assert begun.acquire(timeout=WAIT_S)
    go.release(2)
    for future in futures:
        future.result(WAIT_S)
    assert order == ["greedy"] * 2 + ["other", "third", "third"] + ["greedy"] * 4


def test_what_never_ends_on_the_sideline_leaves_its_slots_to_others(sideline: Sideline) -> None:
    now = sideline.clock()
    sideline.clock = lambda: now
    entered, go = threading.Semaphore(0), threading.Event()

    def hang() -> str:
        entered.release()
        assert go.wait(WAIT_S)
        return "after all"

    asked = [sideline.submit("client", "hung", hang) for _ in range(3)]
    for _ in range(2):  # in all slots
        assert entered.acquire(timeout=WAIT_S)
    now += 1
    waits = sideline.submit("client", "other", lambda: "other")
    assert sideline.problem is None
    now += ANSWER_S
    for future in asked:
        assert isinstance(future.exception(WAIT_S), TimeoutError)
    assert waits.result(WAIT_S) == "other"
    assert "hung has been at one piece of work for more than 120 s" in str(sideline.problem)
    with pytest.raises(Stalled):
        sideline.submit("client", "hung", hang)
    go.set()
    while sideline.problem:
        pass
    assert sideline.submit("client", "hung", hang).result(WAIT_S) == "after all"


def test_what_waits_is_answered_before_the_end() -> None:
    batcher = Batcher(max_rows=1, threads=1)
    batcher.start()
    run, live = Pass(), version()
    futures = [batcher.submit("client", run, live, item) for item in range(5)]
    run.go.set()
    batcher.close()
    assert [future.result(0) for future in futures] == [0, 10, 20, 30, 40]
