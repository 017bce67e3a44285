"""A command ends by SIGINT, SIGTERM or SIGHUP at any moment: with one line, and cleanly."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pipeline.errors import Stopped

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last one: the terminal is closed
UNTIL_SIGNAL = ("up", "local", "demo", "train", "serve", "watch")  # commands whose right end a signal is
OVERDUE_S = 60.0  # for a last snapshot; a Kafka or Redis that hangs is waited for no longer
SHOW_CURSOR = "\x1b[?25h"  # what shows progress has hidden it


def end(number: int, _: FrameType | None = None) -> None:
    """Ends this process at once with the status of the signal: it has started nothing that must end in order.

    It raises no exception: an import, a destructor or C++ code could catch it.
    """
    _tell_ended(number)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def end_as_asked(number: int, _: FrameType | None = None) -> None:
    """The same of a command that runs until a signal: status 0."""
    _tell_ended(number)
    os._exit(0)


def end_by_signals() -> None:
    """From now on a signal ends this process; one that is ignored since the start stays so, as `nohup` wants it."""
    runs_on = (sys.argv[1:2] and sys.argv[1] in UNTIL_SIGNAL) or "--follow" in sys.argv
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_as_asked if runs_on else end)


class Stop(threading.Event):
    """Set by the first signal, whose number it has."""

    number = 0

    @property
    def status(self) -> int:
        """The exit status of a process that ends before its work is done: 130 by Ctrl-C, 143 by SIGTERM."""
        return 128 + self.number


@contextmanager
def stopping() -> Iterator[Stop]:
    """An event that the signals set, for whatever has to be ended in order, within OVERDUE_S.

    A second Ctrl-C ends at once. What is `Stopped` meanwhile ends the context.
    """
    stop, ended = Stop(), threading.Event()

    def overdue(number: int) -> None:
        if not ended.wait(OVERDUE_S):
            tell(f"headrace: did not end within {OVERDUE_S:.0f} s: ended by {signal.Signals(number).name}.")
            os._exit(128 + number)  # as a shell tells it

    def asked(number: int, _: FrameType | None) -> None:
        if stop.number and number == signal.SIGINT:
            end(number)
        if not stop.number:
            stop.number = number
            tell(f"headrace: ending, by {signal.Signals(number).name}.")
            _thread.start_new_thread(overdue, (number,))
        _thread.start_new_thread(stop.set, ())  # it takes a lock, which the code that was interrupted may hold

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = STOP_SIGNALS[:2] if ignored else STOP_SIGNALS
    before = {number: signal.signal(number, asked) for number in numbers}
    try:
        yield stop
    except Stopped:
        pass
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_ended(number: int) -> None:
    tell(f"headrace: ended by {signal.Signals(number).name}.")


def tell(line: str) -> None:
    """A line on standard error, from wherever a signal was met."""
    with suppress(OSError):  # a terminal that is closed
        os.write(2, f"{SHOW_CURSOR if os.isatty(2) else ''}{line}\n".encode())
