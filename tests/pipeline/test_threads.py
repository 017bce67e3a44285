"""What a thread raises reaches its owner, once at least."""

from __future__ import annotations

import threading

import pytest

from pipeline.errors import HeadraceError
from pipeline.threads import Background

WAIT_S = 60.0


def failing(error: BaseException, failed: threading.Event) -> Background:
    def work() -> None:
        raise error

    thread = Background(work, "worker", failed.set)
    thread.start()
    assert failed.wait(WAIT_S)
    return thread


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_it_raises_is_raised_by_check_as_often_as_asked(error: BaseException) -> None:
    thread = failing(error, threading.Event())
    for _ in range(2):
        with pytest.raises(type(error)):
            thread.check()
    thread.close()
    assert thread.problem == f"The thread worker has ended by {type(error).__name__}: {error}"


def test_what_nobody_asked_for_is_raised_at_the_end() -> None:
    with pytest.raises(ValueError, match="no"):
        failing(ValueError("no"), threading.Event()).close()


def test_a_thread_that_does_not_end_is_reported_in_time() -> None:
    go_on = threading.Event()
    thread = Background(go_on.wait, "worker")
    thread.start()
    with pytest.raises(HeadraceError, match=r"The thread worker did not end within 0 s"):
        thread.close(0.01)
    go_on.set()
    thread.close()


def test_one_that_was_never_started_or_ended_well_has_nothing_to_tell() -> None:
    thread = Background(lambda: None, "worker")
    thread.close()
    thread.start()
    thread.close()
    thread.check()
    assert thread.problem is None
