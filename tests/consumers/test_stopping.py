"""A signal ends a command at every moment in one line: while it imports, starts, waits, or runs."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import NamedTuple

import pytest

from consumers.stopping import STOP_SIGNALS, UNTIL_SIGNAL, stopping
from pipeline.local.servers import EmbeddedRedis
from pipeline.process import tied

HEADRACE = str(Path(sys.executable).with_name("headrace"))
PATIENCE_S = 60.0
READY = "consumers.stopping"  # from its import on signals are told
# (command, how many modules are imported before the signal): from the first to torch's.
IMPORTING = [
    ("log pictures", 5),
    ("watch", 90),
    ("classify pictures cat.png", 250),
    ("publish pictures cat.png", 170),
    ("local", 330),
    ("verify pictures", 700),
    ("train pictures", 1500),
    ("serve", 1700),
    ("demo", 1100),
]


class Ended(NamedTuple):
    status: int
    said: str


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the user is: nothing listens at the addresses of its headrace.toml."""
    subprocess.run([HEADRACE, "init"], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


@contextmanager
def nothing() -> Iterator[str]:
    """An address of which nobody answers, while the context lasts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def ended(folder: Path, command: list[str], number: int, met: Callable[[str], bool], **environ: str) -> Ended:
    """Sends the signal once a line of the command's is met, and waits for its end; `said` is what it says from then."""
    with nothing() as kafka, nothing() as redis:
        servers = {"HEADRACE__KAFKA__BOOTSTRAP_SERVERS": kafka, "HEADRACE__REDIS__URL": f"redis://{redis}/0"}
        with subprocess.Popen(
            tied(command),
            cwd=folder,
            env=os.environ | servers | {"HEADRACE__SAMPLER__PORT": "0"} | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert any(met(line) for line in process.stdout)
            process.send_signal(number)
            said, _ = process.communicate(timeout=PATIENCE_S)
            return Ended(process.returncode, said)


@pytest.mark.parametrize(("line", "modules"), IMPORTING)
def test_while_it_imports(folder: Path, line: str, modules: int) -> None:
    left = [-1]

    def met(imported: str) -> bool:
        if imported.rstrip().endswith(READY):
            left[0] = modules
        left[0] -= 1
        return left[0] == 0

    number = STOP_SIGNALS[modules % 3]
    status, said = ended(folder, [HEADRACE, *line.split()], number, met, PYTHONPROFILEIMPORTTIME="1")
    assert status == (0 if line.split()[0] in UNTIL_SIGNAL else -number)
    [told] = [line for line in said.splitlines() if not line.startswith("import time:")]
    assert told == f"headrace: ended by {number.name}."


@pytest.mark.parametrize("module", ["fnmatch", "consumers.shadows"])  # before there is anything that could say so
def test_before_it_can_say_so(folder: Path, module: str) -> None:
    command = [HEADRACE, "log", "pictures"]
    met = lambda imported: imported.rstrip().endswith(f" {module}")  # noqa: E731
    status, said = ended(folder, command, signal.SIGINT, met, PYTHONPROFILEIMPORTTIME="1")
    assert status == -signal.SIGINT
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("train pictures", "Standing by."),
        ("serve", "trying again"),
    ],
)
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_while_redis_is_awaited(folder: Path, command: str, line: str, number: signal.Signals) -> None:
    status, said = ended(folder, [HEADRACE, *command.split()], number, lambda told: line in told)
    assert status == 0
    assert f"headrace: ending, by {number.name}." in said.splitlines()
    assert "Traceback" not in said


def test_while_kafka_is_awaited(folder: Path, redis_url: str) -> None:
    url = redis_url.rpartition("/")[0] + "/6"
    command = [HEADRACE, "train", "pictures"]
    found = ended(folder, command, signal.SIGTERM, lambda line: "Starting again" in line, HEADRACE__REDIS__URL=url)
    assert found == (0, "headrace: ending, by SIGTERM.\n")


SERVER = """
import sys
from pathlib import Path
from consumers.stopping import stopping
from pipeline.local import Server

class Slow(Server):
    title = "Slow"

    def _command(self):
        return ["/bin/sleep", "600"]

    def _answers(self):
        print("asked", flush=True)
        return False

with stopping() as stop, Slow(Path(sys.argv[1]), stop=stop):
    print("started")
"""


def test_while_a_server_starts(folder: Path) -> None:
    command = [sys.executable, "-c", SERVER, str(folder / "slow")]
    status, said = ended(folder, command, signal.SIGINT, lambda line: line == "asked\n")
    assert (status, said.replace("asked\n", "")) == (0, "headrace: ending, by SIGINT.\n")


HANGING = """
from consumers.stopping import stopping
with stopping() as stop:
    print("begun", flush=True)
    stop.wait()
    print("goes on", flush=True)
    while True:
        pass
"""


def test_a_second_ctrl_c_ends_at_once(folder: Path) -> None:
    process = subprocess.Popen(
        tied([sys.executable, "-c", HANGING]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "goes on\n"
        process.send_signal(signal.SIGTERM)  # which a closed terminal sends after its SIGHUP: once is enough
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert said == "headrace: ending, by SIGINT.\nheadrace: ended by SIGINT.\n"
    assert process.returncode == -signal.SIGINT


def test_nohup_outlives_its_terminal(folder: Path) -> None:
    def hung_up(line: str) -> bool:
        return "Standing by." in line

    command = ["/usr/bin/env", "sh", "-c", f"trap '' HUP; exec {HEADRACE} train pictures"]
    with nothing() as redis:
        process = subprocess.Popen(
            tied(command),
            cwd=folder,
            env=os.environ | {"HEADRACE__REDIS__URL": f"redis://{redis}/0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            assert any(map(hung_up, process.stderr))
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (0, "headrace: ending, by SIGTERM.\n")


def test_a_signal_while_the_event_is_being_waited_for_does_not_lock(capfd: pytest.CaptureFixture[str]) -> None:
    with stopping() as stop:
        with stop._cond:  # type: ignore[attr-defined]  # as within `wait`
            os.kill(os.getpid(), signal.SIGTERM)
            Event().wait(0)
        assert stop.wait(PATIENCE_S)
    assert capfd.readouterr().err == "headrace: ending, by SIGTERM.\n"


OVERDUE = """
from consumers import stopping
stopping.OVERDUE_S = 0.1
with stopping.stopping() as stop:
    print("begun", flush=True)
    stop.wait()
    while True:
        pass
"""


def test_what_hangs_is_not_waited_for_without_end() -> None:
    with subprocess.Popen(
        tied([sys.executable, "-c", OVERDUE]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert said == "headrace: ending, by SIGTERM.\nheadrace: did not end within 0 s: ended by SIGTERM.\n"


def test_a_hanging_redis_does_not_hold_watch(folder: Path, tmp_path: Path) -> None:
    with (
        EmbeddedRedis(tmp_path / "redis") as server,
        subprocess.Popen(
            tied([HEADRACE, "watch", "--every", "0.1"]),
            cwd=folder,
            env=os.environ | {"HEADRACE__REDIS__URL": server.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline().startswith("model ")
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        while select.select([process.stdout], [], [], 1.0)[0]:  # until it waits for an answer
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)  # less than it waits for Redis
        server.process.send_signal(signal.SIGCONT)
    assert (process.returncode, said) == (0, "headrace: ended by SIGINT.\n")


@pytest.mark.parametrize("line", ["train pictures", "serve", "up", "demo --seconds 5", "verify pictures"])
def test_what_takes_long_to_import_says_so_first(folder: Path, line: str) -> None:
    """Before the first module that is not of the command's beginning, and nothing of it among results."""
    before: list[str] = []

    def met(said: str) -> bool:
        before.append(said)
        return said.rstrip().endswith(" typer")

    ended(folder, [HEADRACE, *line.split()], signal.SIGTERM, met, PYTHONPROFILEIMPORTTIME="1")
    [told] = [said for said in before if not said.startswith("import time:")]
    assert told.startswith("headrace: starting ")
