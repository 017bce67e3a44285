"""Hot swaps under steady requests of all kinds: what fails, what mixes two versions, what waits, how memory grows.

`headrace serve` runs as a process, and so do those who ask it, each at times that are fixed beforehand: an answer's
time counts from there, so a request that had to wait for the one before it hides nothing. Each version's weights say
which version they are, in two tensors, so that an answer shows a mix. Every version goes live, and an answer names it,
before the next one is made. Between the blocks of versions the same is asked while none comes.
"""

from __future__ import annotations

import http.client
import io
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.latency import free_port, ready
from benchmarks.report import Figure, Findings
from benchmarks.stage import Process, Stage
from tests.consumers.marked import NAME, TEXT, Maker, blueprint, step

MODEL = "marked"
CLIENTS = 4
EVERY_S = 0.02  # a client asks: 200 requests a second in all, a fifth of what saturates this sampler
BLOCK = 250  # swaps between two rests
REST_S = 5.0  # how long is asked without swaps, before, between and after the blocks
FROZEN = 1 << 20  # float32 that never change, in 4 MiB beside what does
KEEP_LAST = 20
FIRST = 100  # the swap from which on memory may not grow
WINDOW = 10  # readings behind a figure of memory: their median
MAX_GROWTH = 0.02
MAX_SLOWER = 1.5  # p99 while versions come, of p99 without
LATE_S = 30.0  # by then a version answers

Headers = Mapping[str, str]


def _told(headers: Headers, body: bytes) -> tuple[int, set[float]]:
    told = json.loads(body)
    return told["version"], {1024 * told["probabilities"][name] for name in ("first", "last")}


def _drawn(headers: Headers, body: bytes) -> tuple[int, set[float]]:
    """The marks of a picture are the first row of each cell of 2 × 2 pixels."""
    version = int(headers["x-headrace-version"])
    marks = set(np.array(Image.open(io.BytesIO(body)))[::2].ravel().tolist())
    return version, {version} if marks == {version % 256} else marks


def _stated(headers: Headers, body: bytes) -> tuple[int, set[float]]:
    version = json.loads(body)["standing"]["version"]
    return version, {version}


#: kind → method, path, body, and (headers, body) of an answer → its version, and the marks that it shows
KINDS: Mapping[str, tuple[str, str, str | None, Callable[[Headers, bytes], tuple[int, set[float]]]]] = {
    "classify": ("POST", "/classify", "a", _told),
    "generate": ("GET", "/generate?n=4", None, _drawn),
    "interpolate": ("GET", "/interpolate?steps=4", None, _drawn),
    "state": ("GET", "", None, _stated),
}


@dataclass(slots=True)
class Answers:
    """What the clients were told."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: int = 0  # the newest version that answered
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    waited_s: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def take(self, kind: str, seconds: float, status: int, headers: Headers, body: bytes) -> None:
        version, marks = KINDS[kind][3](headers, body) if status == 200 else (0, {0.0})
        with self.lock:
            self.requests += 1
            self.waited_s[kind].append(seconds)
            if status != 200:
                self.failed.append(f"{kind}: {status} {body[:200]!r}")
            elif marks != {version}:
                self.mixed.append(f"{kind}: version {version} shows {marks}")
            self.seen = max(self.seen, version)


def _ask(port: int, answers: Answers, done: threading.Event, offset_s: float) -> None:
    """One client with one connection, one kind after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    due_s = time.perf_counter() + offset_s
    while not done.is_set():
        for kind, (method, path, body, _) in KINDS.items():
            due_s += EVERY_S
            time.sleep(max(0.0, due_s - time.perf_counter()))
            try:
                connection.request(method, f"/models/{MODEL}{path}", body, {"Content-Type": "text/plain"})
                response = connection.getresponse()
                content, headers = response.read(), {name.lower(): value for name, value in response.getheaders()}
                answers.take(kind, time.perf_counter() - due_s, response.status, headers, content)
            except (OSError, http.client.HTTPException) as error:
                answers.take(kind, 0.0, 0, {}, repr(error).encode())
                connection.close()


def _asking(port: int, told: Connection) -> None:
    """A process: asks until it is told to end. Answers "seen", and "waited" with what each kind took since then."""
    answers, done = Answers(), threading.Event()
    threads = [
        threading.Thread(target=_ask, args=(port, answers, done, EVERY_S * client / CLIENTS))
        for client in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    while (question := told.recv()) != "end":
        with answers.lock:
            if question == "seen":
                told.send(answers.seen)
            else:
                told.send(answers.waited_s)
                answers.waited_s = {kind: [] for kind in KINDS}
    done.set()
    for thread in threads:
        thread.join()
    told.send((answers.requests, answers.failed, answers.mixed))


class Clients:
    """Those who ask, from here."""

    def __init__(self, told: Connection) -> None:
        self._told = told

    def until(self, version: int, sampler: Process) -> None:
        """Returns once an answer was from this version, or a later one.

        Raises:
            RuntimeError: none was in time.
        """
        ends_s = time.monotonic() + LATE_S
        while self._asked("seen") < version:
            if time.monotonic() > ends_s:
                raise RuntimeError(f"version {version} did not answer: {sampler.log.read_text()[-2000:]}")
            time.sleep(0.002)

    def waited_s(self) -> dict[str, list[float]]:
        """By each kind, since it was asked before."""
        found: dict[str, list[float]] = self._asked("waited")
        return found

    def end(self) -> tuple[int, list[str], list[str]]:
        """Requests, what failed, what was mixed."""
        found: tuple[int, list[str], list[str]] = self._asked("end")
        return found

    def _asked(self, question: str) -> Any:
        self._told.send(question)
        return self._told.recv()


@contextmanager
def _clients(port: int) -> Iterator[Clients]:
    """In a process of their own, until the context ends."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_asking, args=(port, there), daemon=True)
    process.start()
    try:
        yield Clients(here)
    finally:
        process.kill()
        process.join()


def measure(stage: Stage, *, swaps: int) -> Findings:
    """As many swaps, one after the other."""
    port = free_port()
    stage.configure({MODEL: {"topics": ["none"], "learner": NAME, "input": dict(TEXT)}}, sampler_port=port)
    maker = Maker(stage.store(MODEL), NAME, blueprint, TEXT, frozen=FROZEN)
    step(maker)
    resident_kib = []
    with stage.headrace("serve") as sampler:
        sampler.until(lambda: ready(port) or None)
        with _clients(port) as clients:
            clients.until(1, sampler)
            clients.waited_s()  # of the first requests
            rests, swapping = [_rested(clients)], []
            for swap in range(1, swaps + 1):
                version = step(maker)
                maker.store.retire(maker.fence, KEEP_LAST)
                maker.store.renew(maker.fence, 60)
                clients.until(version, sampler)
                resident_kib.append(sampler.resident_kib())
                if swap % BLOCK == 0 or swap == swaps:
                    stage.say(f"{swap} swaps, {resident_kib[-1] / 1024:.1f} MiB resident")
                    swapping.append(clients.waited_s())
                    rests.append(_rested(clients))
            requests, failed, mixed = clients.end()
    first = min(FIRST, swaps // 2)
    early, late = (statistics.median(resident_kib[at - WINDOW : at]) for at in (first, swaps))
    growth = late / early - 1
    resting_s, swapping_s = _p99_s(rests), _p99_s(swapping)
    slower = max(swapping_s[kind] / resting_s[kind] for kind in KINDS)
    waits = ", ".join(f"{kind} {1000 * resting_s[kind]:.1f} → {1000 * swapping_s[kind]:.1f}" for kind in KINDS)
    name = f"{swaps:,} hot swaps under {CLIENTS} clients, {requests:,} requests of {len(KINDS)} kinds"
    figures = [
        Figure(f"{name}: failed", f"**{len(failed)}**", "0", not failed),
        Figure("the same: answers that mix versions", f"**{len(mixed)}**", "0", not mixed),
        Figure(
            f"the same: resident memory, swap {first} → {swaps:,}",
            f"{early / 1024:.1f} → {late / 1024:.1f} MiB: **{growth:+.1%}**",
            f"< {MAX_GROWTH:.0%}",
            growth < MAX_GROWTH,
        ),
        Figure(
            "the same: p99 without swaps → with them, ms",
            f"{waits}: at most × **{slower:.2f}**",
            f"≤ × {MAX_SLOWER:g}",
            slower <= MAX_SLOWER,
        ),
    ]
    raw = {"requests": requests, "failed": failed, "mixed": mixed, "resident_kib": resident_kib[:: max(1, swaps // 80)]}
    return Findings(figures, raw={**raw, "resting_p99_s": resting_s, "swapping_p99_s": swapping_s})


def _rested(clients: Clients) -> dict[str, list[float]]:
    """What each kind took while no version came."""
    time.sleep(REST_S)
    return clients.waited_s()


def _p99_s(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Of each kind, over all parts."""
    return {kind: float(np.quantile([waited for part in parts for waited in part[kind]], 0.99)) for kind in KINDS}
