"""What README and pages say is run, in their order, on a real Kafka and Redis: a page that lies fails the build."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Event

import confluent_kafka
import httpx
import numpy as np
import pytest
from PIL import Image
from redis import Redis

from pipeline.config import load
from pipeline.process import tied
from pipeline.store.store import Store

ROOT = Path(__file__).parent.parent
README = [ROOT / "README.md"]
NAMES = ("getting-started", "publish", "labels", "watch", "pull", "history", "sample")  # one goes on from the other
PAGES = [ROOT / "docs" / f"{name}.md" for name in NAMES]
WATCH = ROOT / "docs" / "watch.md"
ELSEWHERE = [ROOT / "docs" / "operate.md"]  # deploy/check.py
HEADRACE = Path(sys.executable).with_name("headrace")
PATIENCE_S = 90.0
UNTIL_CTRL_C = ("headrace watch", "headrace publish pictures --follow")
NEEDS_VERSIONS = ("headrace classify", "headrace pull", "headrace log", "curl")


def blocks(pages: list[Path], language: str) -> list[str]:
    told = "\n".join(page.read_text("utf-8") for page in pages)
    return re.findall(rf"^```{language}\n(.*?)^```", told, re.DOTALL | re.MULTILINE)


def commands(pages: list[Path]) -> list[str]:
    """Every line of the shell blocks, without its comment."""
    lines = [line for block in blocks(pages, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [line.split(" # ")[0].strip() for line in lines if line.strip()]


class Shell:
    """Runs the pages' lines in one folder, against the servers of the tests."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, port: int) -> None:
        self.folder = folder
        self.kafka = kafka
        self.port = port
        self.background: list[subprocess.Popen[bytes]] = []
        self.environment = os.environ | {
            "HEADRACE__KAFKA__BOOTSTRAP_SERVERS": kafka,
            "HEADRACE__REDIS__URL": redis_url,
            "HEADRACE__SAMPLER__PORT": str(port),
        }

    def run(self, line: str) -> None:
        program = line.split()[0]
        {"headrace": self.headrace, "curl": self.curl, "kcat": self.kcat, "make": self.make, "pip": self.pip}[program](
            line
        )

    def headrace(self, line: str) -> None:
        words = shlex.split(line.removesuffix("&").split("<")[0])
        command = [str(HEADRACE), *words[1:]]
        with ExitStack() as files:
            stdin = files.enter_context((self.folder / line.split("<")[1].strip()).open("rb")) if "<" in line else None
            log = files.enter_context((self.folder / "log").open("ab"))
            process = subprocess.Popen(
                tied(command),
                cwd=self.folder,
                env=self.environment,
                stdin=stdin or subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.background.append(process)
        if line.endswith("&"):
            return
        if line.startswith(UNTIL_CTRL_C):
            eventually(lambda: handles_interrupts(process))
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0, f"{line}: {(self.folder / 'log').read_text()}"

    def here(self, text: str) -> str:
        """The text, with the address that its sampler has here."""
        return text.replace("127.0.0.1:8080", f"127.0.0.1:{self.port}")

    def is_ready(self) -> bool:
        """Whether each model has a version, and the sampler serves them."""
        config = load(self.folder / "headrace.toml", self.environment)
        with Redis.from_url(config.redis.url) as redis:
            if not all(Store(redis, config.family(name), name).head() for name in config.models):
                return False
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def curl(self, line: str) -> None:
        """The options that the pages use, sent by httpx: curl itself may not be there."""
        words = shlex.split(line.split(" > ")[0])[1:]
        headers, content, url = {}, None, ""
        while words:
            word = words.pop(0)
            if word == "-H":
                name, _, value = words.pop(0).partition(": ")
                headers[name] = value
            elif word in ("-d", "--data-binary"):
                data = words.pop(0)
                content = (self.folder / data[1:]).read_bytes() if data.startswith("@") else data.encode()
            else:
                url = self.here(word)
        assert url.startswith("http://")

        def answered() -> bool:
            try:
                answer = httpx.request("POST" if content else "GET", url, headers=headers, content=content)
            except httpx.TransportError:
                return False
            if " > " in line and answer.status_code == 200:
                (self.folder / line.split(" > ")[1].strip()).write_bytes(answer.content)
            return answer.status_code == 200

        eventually(answered, line)

    def kcat(self, line: str) -> None:
        words = shlex.split(line)
        label = words[words.index("-H") + 1].partition("=")
        producer = confluent_kafka.Producer({"bootstrap.servers": self.kafka})
        value = (self.folder / words[-1]).read_bytes()
        producer.produce(words[words.index("-t") + 1], value, headers=[(label[0], label[2].encode())])
        assert producer.flush(PATIENCE_S) == 0

    def make(self, line: str) -> None:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert line.split()[1] in targets

    def pip(self, line: str) -> None:
        extra = re.search(r"headrace\[(\w+)\]", line)
        assert extra
        assert (
            extra[1] in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        )


def eventually(condition: Callable[[], bool], what: str = "") -> None:
    """Asks again until it holds; a bound in place of for ever, not a measurement."""
    pause = Event()
    for _ in range(int(PATIENCE_S / 0.1)):
        if condition():
            return
        pause.wait(0.1)
    raise AssertionError(f"did not come true: {what}")


def group_lives(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Of loopback, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def handles_interrupts(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has put its handler for SIGINT in place, as Linux tells."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    terminated = caught is not None and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1
    return bool(terminated)  # Python itself catches SIGINT from the start, SIGTERM only where the program says so


@pytest.fixture
def shell(tmp_path: Path, kafka: str, redis_url: str) -> Iterator[Shell]:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 128, (28, 28, 3), dtype=np.uint8) + (100 if label == "cat" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / label / f"{number}.png")
    for label in "0123456789":
        (tmp_path / "photos" / label).mkdir()
        (tmp_path / "photos" / label / "a.png").write_bytes((tmp_path / "photos" / "cat" / "0.png").read_bytes())
    (tmp_path / "cat.png").write_bytes((tmp_path / "photos" / "cat" / "0.png").read_bytes())
    (tmp_path / "lines.txt").write_text("good morning\ngood evening\n", "utf-8")
    (tmp_path / "dropbox").mkdir()
    [port] = free_ports(1)
    database = redis_url.rpartition("/")[0] + "/7"
    made = Shell(tmp_path, kafka, database, port)
    yield made
    for process in made.background:
        process.terminate()
    assert [process.wait(PATIENCE_S) for process in made.background] == [0] * len(made.background)
    with Redis.from_url(database) as redis:
        redis.flushdb()


@pytest.mark.parametrize("pages", [README, PAGES], ids=["README", "docs"])
def test_what_is_said_runs(pages: list[Path], shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = commands(pages)
    assert any(line.startswith("headrace up") for line in lines)
    for line in lines:
        if line.startswith(NEEDS_VERSIONS):
            eventually(shell.is_ready, "a version of each model")
        shell.run(line)
    assert (shell.folder / "cats.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.chdir(shell.folder)
    for name, value in shell.environment.items():
        monkeypatch.setenv(name, value)
    programs = [block for block in blocks(pages, "python") if "Client" in block]
    assert programs
    for number, block in enumerate(programs):
        script = shell.folder / f"block{number}.py"
        script.write_text(shell.here(block), "utf-8")
        runpy.run_path(str(script))


def test_the_readme_is_short() -> None:
    assert len(README[0].read_text("utf-8").splitlines()) <= 150


def test_no_command_is_left_out() -> None:
    told = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "```sh" in page.read_text("utf-8")]
    assert told == sorted(PAGES + ELSEWHERE)


def test_the_start_block_runs_as_pasted(shell: Shell) -> None:
    """From an empty folder, with a Kafka and a Redis of its own, to answers; only the ports are others."""
    block, again = (block for block in blocks([*README, *PAGES], "sh") if "headrace up" in block)
    assert block == again
    kafka, redis = free_ports(2)
    environment = shell.environment | {
        "PATH": f"{HEADRACE.parent}:{os.environ['PATH']}",
        "HEADRACE__KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{kafka}",
        "HEADRACE__REDIS__URL": f"redis://:secret@127.0.0.1:{redis}/0",
    }
    log = shell.folder / "log"
    with log.open("wb") as said:
        pasted = subprocess.Popen(
            tied(["/bin/bash", "-c", block]),
            cwd=shell.folder,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            learned = re.compile(r"^model drawings .* records 50 .* worker alive$", re.MULTILINE)
            eventually(lambda: learned.search(log.read_text()) is not None, block)
            for command in ("classify pictures cat.png", "generate drawings --label cat -o cats.png"):
                answered = partial(subprocess.call, [HEADRACE, *command.split()], cwd=shell.folder, env=environment)
                eventually(lambda answered=answered: answered() == 0, command)  # type: ignore[misc]
            assert (shell.folder / "cats.png").read_bytes().startswith(b"\x89PNG")
        finally:
            os.killpg(pasted.pid, signal.SIGINT)  # Ctrl-C, for `watch`
            os.killpg(pasted.pid, signal.SIGTERM)  # for `up`, which a script starts without Ctrl-C
            pasted.wait(PATIENCE_S)
            eventually(lambda: not group_lives(pasted.pid), "all of it ends")
    assert "Traceback" not in log.read_text()


def test_every_metric_is_named() -> None:
    """The table of metrics is complete, and names none that does not exist."""
    from prometheus_client import CollectorRegistry

    from pipeline.metrics import SamplerMetrics, WorkerMetrics

    worker, sampler = CollectorRegistry(), CollectorRegistry()
    WorkerMetrics(worker, "m")
    SamplerMetrics(sampler)
    exist = {metric.name for registry in (worker, sampler) for metric in registry.collect()}
    named = {name.removesuffix("_total") for name in re.findall(r"`(headrace_[a-z_]+)`", WATCH.read_text("utf-8"))}
    assert named == exist
