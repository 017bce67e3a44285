"""Requests/s of single pictures and how long they take, by the sampler, a plain FastAPI handler and LitServe.

All have the same version of the same small network, and one thread of torch. Each is asked in turn by wrk, from one
connection and from many, while the others are stopped: LitServe keeps a core busy with nothing to do. Peers run in an
environment of their own: `make bench-serving`.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import statistics
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.data import PICTURE, digits
from benchmarks.latency import free_port
from benchmarks.machine import tree_cpu_s
from benchmarks.report import Figure, Findings
from benchmarks.serving.peers import MODEL
from benchmarks.stage import ROOT, Process, Stage
from models.images.classifier import BLUEPRINT
from pipeline.process import tied
from tests.consumers.marked import Maker

SCRIPT = ROOT / "benchmarks/serving/ask.lua"
PYTHON = ROOT / ".venv-litserve/bin/python"
LEARNED = 640  # digits
FEW, MANY = 1, 64  # connections
TIMES = 3.0  # as many requests as a plain handler answers
OURS, PLAIN, UVLOOP, LIT = "the sampler", "plain FastAPI", "plain FastAPI on httptools and uvloop", "LitServe"


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs, where it is asked, and with what. Peers are stopped but for their turns."""

    process: Process
    url: str
    body: Path
    content_type: str = "image/png"
    is_peer: bool = True

    def is_ready(self) -> bool | None:
        """Whether it answers a picture."""
        request = urllib.request.Request(self.url, self.body.read_bytes(), {"Content-Type": self.content_type})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                return "label" in json.load(answer) or None
        except OSError:  # it does not listen yet, or has no version
            return None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Lets it run meanwhile."""
        self.send(signal.SIGCONT)
        yield
        self.send(signal.SIGSTOP)

    def send(self, number: signal.Signals) -> None:
        """To all processes of a peer."""
        if self.is_peer:
            os.killpg(self.process.popen.pid, number)

    def asked(self, connections: int, seconds: int) -> dict[str, float]:
        """So long, from so many connections: requests, seconds, p50_s, p99_s, per_s, cpu_s of a request."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(SCRIPT), self.url]
        environment = {**os.environ, "BODY": str(self.body), "TYPE": self.content_type}
        with self.turn():
            before_s = tree_cpu_s(self.process.popen.pid)
            told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            cpu_s = tree_cpu_s(self.process.popen.pid) - before_s
        found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
        if found["failed"]:
            raise RuntimeError(f"{self.url}: {found['failed']:.0f} requests failed")
        per_s, cpu_s = found["requests"] / found["seconds"], cpu_s / found["requests"]
        return {**found, "per_s": per_s, "cpu_s": cpu_s}


def measure(stage: Stage, *, rounds: int, seconds: int) -> Findings:
    """Each server is asked `seconds` long from one and from many connections, `rounds` times in turn."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: install it (Debian: apt-get install wrk).")
    if not PYTHON.exists():
        raise SystemExit("LitServe is missing: run make bench-serving, which installs it.")
    told: dict[int, dict[str, list[dict[str, float]]]] = {FEW: {}, MANY: {}}
    with _servers(stage) as servers:
        for number in range(1, rounds + 1):
            for connections, found in told.items():
                for name, server in servers.items():
                    found.setdefault(name, []).append(server.asked(connections, seconds))
            stage.say(f"round {number} of {rounds}: {_summary(told[MANY], -1)}")
    return Findings([*_figures(told[MANY], MANY), *_figures(told[FEW], FEW)], raw={str(n): f for n, f in told.items()})


@contextmanager
def _servers(stage: Stage) -> Iterator[dict[str, Server]]:
    """All of them, ready."""
    port = free_port()
    table = {"topics": ["none"], "learner": "image-classifier", "input": dict(PICTURE)}
    config = str(stage.configure({MODEL: table}, sampler_port=port))
    picture, packed = stage.folder / "picture.png", stage.folder / "picture.json"
    _commit(stage)
    content, _ = next(digits(1).records())
    picture.write_bytes(content)
    packed.write_text(json.dumps({"image": base64.b64encode(content).decode()}))
    with ExitStack() as stack:
        sampler = stack.enter_context(stage.headrace("serve"))
        servers = {OURS: Server(sampler, f"http://127.0.0.1:{port}/models/{MODEL}/classify", picture, is_peer=False)}
        for name, arguments, *asked in (
            (PLAIN, ("plain", "h11", "asyncio"), picture),
            (UVLOOP, ("plain", "httptools", "uvloop"), picture),
            (LIT, ("lit",), packed, "application/json"),
        ):
            port = free_port()
            process = stack.enter_context(_peer(stage, config, port, *arguments))
            servers[name] = Server(process, f"http://127.0.0.1:{port}/classify", *asked)
        for server in servers.values():
            server.process.until(server.is_ready)
            server.send(signal.SIGSTOP)
        yield servers


def _commit(stage: Stage) -> None:
    """A version that has learned some digits."""
    pictures = digits(LEARNED)
    maker = Maker(stage.store(MODEL), "image-classifier", BLUEPRINT, PICTURE)
    for at in range(0, LEARNED, 64):
        maker.learn(torch.from_numpy(pictures.x[at : at + 64]), pictures.labels[at : at + 64])
    maker.commit()


@contextmanager
def _peer(stage: Stage, config: str, port: int, module: str, *server: str) -> Iterator[Process]:
    """In a group of processes of its own, which ends at once."""
    log = stage.folder / f"{'-'.join((module, *server))}.log"
    command = [str(PYTHON), "-m", f"benchmarks.serving.{module}", config, str(port), *server]
    with (
        log.open("w") as file,
        subprocess.Popen(tied(command), cwd=ROOT, stdout=file, stderr=file, start_new_session=True) as popen,
    ):
        try:
            yield Process(popen, log)
        finally:
            os.killpg(popen.pid, signal.SIGKILL)


def _median(found: list[dict[str, float]], key: str) -> float:
    return statistics.median(one[key] for one in found)


def _summary(found: Mapping[str, list[dict[str, float]]], at: int) -> str:
    return ", ".join(f"{name} {one[at]['per_s']:,.0f}" for name, one in found.items())


def _figures(found: Mapping[str, list[dict[str, float]]], connections: int) -> list[Figure]:
    """Medians of all rounds; ratios are of the medians."""
    per_s = {name: _median(one, "per_s") for name, one in found.items()}
    p99_ms = {name: 1000 * _median(one, "p99_s") for name, one in found.items()}
    others = [name for name in found if name != OURS]
    ratios = ", ".join(f"**{per_s[OURS] / per_s[name]:.2f}** of {name}'s {per_s[name]:,.0f}" for name in others)
    late = ", ".join(f"{name} {p99_ms[name]:.0f}" for name in others)
    cpu_us = {name: 1e6 * _median(one, "cpu_s") for name, one in found.items()}
    return [
        Figure(
            f"Pictures classified, one a request, {connections} connection{'s' * (connections > 1)}",
            f"{per_s[OURS]:,.0f}/s: {ratios}",
            f"≥ {TIMES:g} of {PLAIN}'s, > {LIT}'s",
            per_s[OURS] >= TIMES * per_s[PLAIN] and per_s[OURS] > per_s[LIT],
        ),
        Figure(
            "the same: p99",
            f"**{p99_ms[OURS]:.0f} ms**; {late}",
            f"≤ {PLAIN}'s",
            p99_ms[OURS] <= p99_ms[PLAIN],
        ),
        Figure(
            "the same: CPU time of a request, all threads and processes",
            f"{cpu_us[OURS]:.0f} µs; {', '.join(f'{name} {cpu_us[name]:.0f}' for name in others)}",
        ),
    ]
