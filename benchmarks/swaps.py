"""Hot swaps under steady requests: what fails, what mixes two versions, and how memory grows.

`headrace serve` runs as a process. Each version's weights say which version they are, in two tensors, so that an answer
shows a mix. Every version goes live, and an answer names it, before the next one is made.
"""

from __future__ import annotations

import http.client
import json
import statistics
import threading
from dataclasses import dataclass, field

from benchmarks.latency import free_port, ready
from benchmarks.report import Figure, Findings
from benchmarks.stage import Stage
from tests.consumers.marked import NAME, TEXT, Maker, blueprint, step

MODEL = "marked"
CLIENTS = 4
FROZEN = 1 << 20  # float32 that never change, in 4 MiB beside what does
KEEP_LAST = 20
FIRST = 100  # the swap from which on memory may not grow
WINDOW = 10  # readings behind a figure of memory: their median
MAX_GROWTH = 0.02


@dataclass(slots=True)
class Answers:
    """What the clients were told; `seen` grows, and each change is announced."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    done: bool = False
    seen: int = 0  # the newest version that answered
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    def take(self, status: int, body: bytes) -> None:
        told = json.loads(body) if status == 200 else {}
        with self.changed:
            self.requests += 1
            if status != 200:
                self.failed.append(f"{status} {body[:200]!r}")
            else:
                marks = {told["probabilities"]["first"], told["probabilities"]["last"]}
                if marks != {told["version"] / 1024}:
                    self.mixed.append(str(told))
                self.seen = max(self.seen, told["version"])
            self.changed.notify_all()


def ask(port: int, answers: Answers) -> None:
    """One client with one connection, request after request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while not answers.done:
        try:
            connection.request("POST", f"/models/{MODEL}/classify", "a", {"Content-Type": "text/plain"})
            response = connection.getresponse()
            answers.take(response.status, response.read())
        except (OSError, http.client.HTTPException) as error:
            answers.take(0, repr(error).encode())
            connection.close()


def measure(stage: Stage, *, swaps: int) -> Findings:
    """As many swaps, one after the other."""
    port = free_port()
    stage.configure({MODEL: {"topics": ["none"], "learner": NAME, "input": dict(TEXT)}}, sampler_port=port)
    maker = Maker(stage.store(MODEL), NAME, blueprint, TEXT, frozen=FROZEN)
    step(maker)
    answers = Answers()
    resident_kib = []
    with stage.headrace("serve") as sampler:
        sampler.until(lambda: ready(port) or None)
        threads = [threading.Thread(target=ask, args=(port, answers)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            for swap in range(1, swaps + 1):
                version = step(maker)
                maker.store.retire(maker.fence, KEEP_LAST)
                maker.store.renew(maker.fence, 60)
                with answers.changed:
                    if not answers.changed.wait_for(lambda wanted=version: answers.seen >= wanted, 30):  # type: ignore[misc]
                        raise RuntimeError(f"version {version} did not answer: {sampler.log.read_text()[-2000:]}")
                resident_kib.append(sampler.resident_kib())
                if swap % 100 == 0:
                    stage.say(f"{swap} swaps, {answers.requests} answers, {resident_kib[-1] / 1024:.1f} MiB resident")
        finally:
            answers.done = True
            for thread in threads:
                thread.join()
    first = min(FIRST, swaps // 2)
    early, late = (statistics.median(resident_kib[at - WINDOW : at]) for at in (first, swaps))
    growth = late / early - 1
    name = f"{swaps:,} hot swaps under {CLIENTS} clients, {answers.requests:,} requests"
    figures = [
        Figure(f"{name}: failed", f"**{len(answers.failed)}**", "0", not answers.failed),
        Figure("the same: answers that mix versions", f"**{len(answers.mixed)}**", "0", not answers.mixed),
        Figure(
            f"the same: resident memory, swap {first} → {swaps:,}",
            f"{early / 1024:.1f} → {late / 1024:.1f} MiB: **{growth:+.1%}**",
            f"< {MAX_GROWTH:.0%}",
            growth < MAX_GROWTH,
        ),
    ]
    raw = {"requests": answers.requests, "failed": answers.failed, "mixed": answers.mixed, "resident_kib": resident_kib}
    return Findings(figures, raw=raw)
