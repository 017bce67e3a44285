"""headrace commands as child processes: started in order, watched, ended together, with one log."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.closing import Closing
from pipeline.config import Config
from pipeline.errors import Exhausted, HeadraceError
from pipeline.process import tied
from pipeline.threads import Background

STOP_S = 20.0  # how long a process gets to end with its snapshot
NAME_WIDTH = 10
KILLS, WITHIN_S = 3, 60.0  # what was killed so often within this time would be killed again


@dataclass(eq=False)
class Processes(Closing):
    """The children; they end with this process, also with one that is killed (pipeline/process.py).

    Args:
        say: takes the log, a line at a time, with the process's name in front; called on several threads.
    """

    config: Path  # the configuration that all of them read
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._children: dict[str, Child] = {}
        self._kills: dict[str, deque[float]] = {}  # when, the last ones

    def start(self, name: str, *arguments: str) -> None:
        """Starts `headrace ARGUMENTS --config …`, known as `name`."""
        self._kills[name] = deque(maxlen=KILLS)
        # -P: the current folder may hold a `models` of its own.
        command = [sys.executable, "-P", "-m", "consumers.entry", *arguments, "--config", str(self.config)]
        self._children[name] = Child(name, command, self.say)

    def start_all(self, config: Config) -> None:
        """Starts a worker for each model, and the sampler."""
        for model in config.models:
            self.start(model, "train", model)
        self.start("sampler", "serve")

    def check(self) -> None:
        """Starts a process again that was killed from outside, or has given up too many threads.

        Raises:
            HeadraceError: a process ended with an error of its own, or is killed again and again; with its status.
        """
        for name, child in self._children.items():
            child.log.check()
            status = child.process.poll()
            if status is None:
                continue
            kills = self._kills[name]
            kills.append(time.monotonic())
            failed = status > 0 and status != Exhausted.exit_status
            if failed or (len(kills) == KILLS and kills[-1] - kills[0] < WITHIN_S):
                raise child.failed(status)
            self.say(f"{name} {how(status)}; started again.")
            self._children[name] = Child(name, child.command, self.say)

    def close(self) -> None:
        """SIGTERM for all, and SIGKILL for those that do not end in time."""
        for child in self._children.values():
            child.process.terminate()
        deadline = time.monotonic() + STOP_S
        for child in self._children.values():
            child.wait(deadline)
        for child in self._children.values():
            child.log.close()
        self._children.clear()


@dataclass(eq=False)
class Child:
    """One of them. In a session of its own: Ctrl-C in a terminal reaches only its parent, which ends all in order."""

    name: str
    command: list[str]
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._last: deque[str] = deque(maxlen=1)
        self.process = subprocess.Popen(
            tied(self.command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self.log = Background(self._read, f"log-{self.name}")
        self.log.start()

    def failed(self, status: int) -> HeadraceError:
        """Why it ended, in its own last words."""
        self.log.close()
        words = " ".join(self._last).removeprefix("headrace: ") or "It said nothing."
        error = HeadraceError(f"{self.name} {how(status)}: {words}")
        error.exit_status = max(status, 1)
        return error

    def wait(self, deadline_s: float) -> None:
        """Until it has ended; at the deadline it is killed."""
        try:
            self.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.say(f"{self.name} did not end within {STOP_S:.0f} s; killed.")
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - for the type checker
        with self.process.stdout as lines:
            for line in lines:
                self._last.append(line.rstrip())
                self.say(f"{self.name:<{NAME_WIDTH}} | {line.rstrip()}")


def how(status: int) -> str:
    """A process ended, in words."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
