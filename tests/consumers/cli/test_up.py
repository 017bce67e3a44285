"""`headrace up` as a user runs it: from an empty folder to answers, through kills, to a clean end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import httpx
import pytest

from consumers.processes import Processes
from pipeline.config import load
from pipeline.errors import HeadraceError
from pipeline.process import tied
from pipeline.store.redis import connect
from pipeline.store.store import Store

HEADRACE = str(Path(sys.executable).with_name("headrace"))
PATIENCE_S = 120.0
MODELS = ("pictures", "messages", "drawings")


def eventually(true: Callable[[], object], what: str) -> None:
    """Asks again until it is true."""
    pause = Event()
    for _ in range(int(PATIENCE_S / 0.1)):
        if true():
            return
        pause.wait(0.1)
    raise AssertionError(f"did not come true: {what}")


def free_ports(count: int) -> list[int]:
    """Of loopback; nobody else is given them while we hold them all."""
    with ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@dataclass(slots=True)
class Place:
    """A folder with the file that `headrace init` writes, and what a user does there."""

    folder: Path
    environ: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [HEADRACE, *arguments],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def store(self, model: str) -> Store:
        return Store(connect(load(self.folder / "headrace.toml", self.environ).redis.url), model, model)

    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8")

    def processes(self) -> dict[int, str]:
        """Of `up` and all that it has started: what runs in the folder, or was told of it."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                inside = (path / "cwd").readlink().is_relative_to(self.folder)
            except OSError:
                continue
            if inside and line:
                found[int(path.name)] = line
        return found

    def pid(self, words: str) -> int:
        [found] = [pid for pid, line in self.processes().items() if words in line]
        return found

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(tied([HEADRACE, "up"]), cwd=self.folder, env=self.environ, stderr=log)
            try:
                yield process
            finally:
                process.kill()
                process.wait()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    subprocess.run([HEADRACE, "init"], cwd=tmp_path, check=True, capture_output=True)
    kafka, redis, sampler = free_ports(3)
    file = tmp_path / "headrace.toml"
    text = file.read_text("utf-8").replace("9092", str(kafka)).replace("6379", str(redis))
    file.write_text(text.replace("8080", str(sampler)), "utf-8")
    return Place(tmp_path, {name: value for name, value in os.environ.items() if "HEADRACE__" not in name})


def test_from_an_empty_folder_through_kills_to_a_clean_end(place: Place) -> None:
    sampler = load(place.folder / "headrace.toml", {}).sampler
    with place.up() as process:
        eventually(lambda: "sampler answers at" in place.log(), "the sampler answers")
        eventually(lambda: all(place.store(name).holder() for name in MODELS), "each worker has its place")
        assert httpx.get(f"http://127.0.0.1:{sampler.port}/healthz").status_code == 200
        (place.folder / "lines.txt").write_text("good morning\n", "utf-8")
        assert place.run("publish", "messages", "lines.txt", "--label", "en").returncode == 0

        def learned() -> bool:
            head = place.store("messages").head()
            return head is not None and place.store("messages").manifest(head).counts.get("learned", 0) == 1

        eventually(learned, "the record is learned")
        holder = place.store("pictures").holder()
        for killed in ("train pictures", "-server 127.0.0.1"):
            os.kill(place.pid(killed), signal.SIGKILL)
        eventually(lambda: "Redis has ended; started again." in place.log(), "Redis comes back")
        eventually(lambda: "pictures was killed by signal 9; started again." in place.log(), "the worker comes back")
        eventually(lambda: place.store("pictures").holder() not in (None, holder), "it has its place again")
        assert learned()  # Redis came back with what it had
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
        assert place.processes() == {}
    for line in place.log().splitlines():  # one log, with names in front
        assert re.match(r"(pictures|messages|drawings|sampler) +\| |headrace: |Redis |Kafka |pictures was", line), line
    assert "Traceback" not in place.log()
    for part in ("kafka", "redis"):
        assert (place.folder / ".headrace" / "local" / part).stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot tie a child to its parent")
def test_killed_it_leaves_no_process(place: Place) -> None:
    with place.up() as process:
        eventually(lambda: place.log().count("| ") >= 1, "a process says something")
        assert len(place.processes()) == 1 + 2 + len(MODELS) + 1
        process.kill()
        process.wait()
        eventually(lambda: place.processes() == {}, "all end")


@pytest.mark.parametrize(
    ("before", "after", "status", "message"),
    [
        ('learner = "text-', 'learner = "txet-', 2, "headrace: messages ended with status 2: learner = "),
        ("[models.", "[[nonsense", 2, "headrace: headrace.toml is not valid TOML"),
    ],
)
def test_what_cannot_go_on_ends_all_in_one_sentence(
    place: Place, kafka: str, redis_url: str, before: str, after: str, status: int, message: str
) -> None:
    file = place.folder / "headrace.toml"
    file.write_text(file.read_text("utf-8").replace(before, after), "utf-8")
    place.environ |= {
        "HEADRACE__KAFKA__BOOTSTRAP_SERVERS": kafka,
        "HEADRACE__REDIS__URL": redis_url.rpartition("/")[0] + "/5",
    }
    done = place.run("up")
    assert done.returncode == status
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr
    assert "started again" not in done.stderr + done.stdout
    assert place.processes() == {}
    assert not (place.folder / ".headrace").exists()  # servers that are there are not started


def test_something_is_seen_before_anything_is_imported(tmp_path: Path) -> None:
    """Imports take seconds where the disk is cold."""
    script = """
import sys
class Told:
    def find_spec(self, name, path=None, target=None):
        if name in ("consumers.cli.app", "typer"): print("imports", name, flush=True)
sys.meta_path.insert(0, Told())
sys.argv = ["headrace", "up"]
from consumers.entry import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    first, *rest = done.stdout.splitlines()
    assert first.startswith("headrace: starting ")
    assert rest == ["imports consumers.cli.app", "imports typer"]
    assert done.stderr.startswith("headrace: headrace.toml")


def test_no_model_is_nothing_to_run(place: Place) -> None:
    (place.folder / "headrace.toml").write_text("", "utf-8")
    done = place.run("up")
    assert (done.returncode, done.stderr) == (
        2,
        "headrace: headrace.toml has no model. Add a [models.NAME] table; `headrace init` writes examples.\n",
    )


@pytest.mark.parametrize(("status", "times"), [(1, 1), (10, 2)])
def test_what_has_given_up_too_many_threads_is_started_again(tmp_path: Path, status: int, times: int) -> None:
    """As what was killed; who fails otherwise ends all."""
    said: list[str] = []
    with Processes(tmp_path, said.append) as started:
        started.start("worker", "--version")
        child = started._children["worker"]
        child.command[:] = [sys.executable, "-c", f"print('why'); raise SystemExit({status})"]
        child.process.terminate()
        child.process.wait()
        with pytest.raises(HeadraceError, match=f"worker ended with status {status}: why"):
            eventually(lambda: started.check(), "an end")
    assert sum("started again" in line for line in said) == times
