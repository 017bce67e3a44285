"""A server as a child process with its data in one folder: its lock, its ports, its start and its end.

It runs in a session of its own, so that Ctrl-C in a terminal reaches the parent, which stops its servers in
order; it ends with a parent that is killed (pipeline/process.py).
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import IO, ClassVar, Self

from pipeline.errors import ConfigError, HeadraceError, Stopped
from pipeline.folders import locked, private
from pipeline.process import tied

HOST = "127.0.0.1"
START_S = 120.0  # a JVM on a cold disk and a busy machine
STOP_S = 20.0  # then SIGKILL
LOCK_S = 10.0  # how long servers of a killed parent may take to let go of the folder


def quiet(_: str) -> None:
    """Says nothing."""


class Server(ABC):
    """One process with its data in one folder: start, stop, and start again at the same address.

    Start it from a thread that lives as long as it shall; `stop` ends the waiting for its start.
    """

    title: ClassVar[str]
    error: ClassVar[type[HeadraceError]]

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        say: Callable[[str], None] = quiet,
        stop: Event | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.environ = environ
        self.say = say
        self.stopped = stop or Event()  # whoever waits for the start is to end
        self.process: subprocess.Popen[bytes] | None = None
        self._given_port = port
        self._port: int | None = None
        self._lock: IO[bytes] | None = None

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1, once it has started."""
        if self._port is None:
            raise self.error(f"{self.title} in {self.folder} has not been started. Start it first.")
        return self._port

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Writes the files that the server needs, and returns its command, whose first item is an absolute path."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it answers a real request yet."""

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
            ConfigError: what it needs is not installed, or its port or folder is in use.
            LogUnavailable, StoreUnavailable: it cannot be downloaded, or does not start; has its last words.
            Stopped: `stop` was set meanwhile.
        """
        private(self.folder)
        self.folder.chmod(0o700)  # what is learned is its owner's alone
        self._lock = self._locked()
        try:
            self._port = self._claim("port", self._given_port)
            self.process = self._spawn(self._command())
            self._wait_until_ready(self.process)
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Starts it again at the same address if it has ended; raises what `start` does."""
        if self.process is not None and self.process.poll() is not None:
            self.say(f"{self.title} has ended; started again.")
            self.stop()
            self.start()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it does not end in time; does nothing if it does not run."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _locked(self) -> IO[bytes]:
        """The folder's lock. The server inherits it: it is held until both we and the server are gone."""
        deadline = time.monotonic() + LOCK_S

        def wait() -> None:
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"{self.folder} is in use by another {self.title}. Stop that one, or name another folder."
                )
            self._pause(0.05)

        return locked(self.folder / "lock", wait)

    def _claim(self, name: str, given: int | None) -> int:
        """The given port, else the last start's if it is free, else any free one; kept for the next start."""
        file = self.folder / name
        if given is not None:
            if not is_free(given):
                raise ConfigError(
                    f"Port {given} is in use, so {self.title} cannot listen there. Stop what listens, or "
                    "name another port."
                )
            port = given
        else:
            with contextlib.suppress(FileNotFoundError, ValueError):
                port = int(file.read_text("ascii"))
                if is_free(port):
                    return port
            port = free_port()
        file.write_text(str(port), "ascii")
        return port

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        assert self._lock is not None  # noqa: S101 - for the type checker: start() has locked
        if self._log.exists():
            self._log.replace(self._log.with_suffix(".log.1"))  # what the last run said, for post-mortems
        with self._log.open("wb") as log:
            return subprocess.Popen(
                tied(command),
                cwd=self.folder,
                env=dict(self.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self._lock.fileno()],
                start_new_session=True,
            )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while not self._answers():
            if (status := process.poll()) is not None:
                raise self.error(f"{self.title} ended with status {status} at its start. {self._last_words()}")
            if time.monotonic() >= deadline:
                raise self.error(f"{self.title} did not answer within {START_S:.0f} s. {self._last_words()}")
            self._pause(0.02)

    def _pause(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise Stopped(f"{self.title} was not awaited.")

    def _last_words(self) -> str:
        lines = self._log.read_text("utf-8", errors="replace").splitlines()[-10:]
        return "\n".join([f"See {self._log}, which ends with:", *lines])


def is_free(port: int) -> bool:
    """Whether a server can listen there, on loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no listener
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Below those that Linux and macOS give to outgoing connections, so that none takes it before the server does."""
    ports = random.SystemRandom()
    while not is_free(port := ports.randrange(20_000, 32_768)):
        pass
    return port
