"""The sampler's page in Chromium: how soon it shows, what it loads, and what a minute of updates does to it.

`headrace serve` runs as a process, and Chromium asks it as people do, each time with an empty cache. Meanwhile versions
are committed at a rate. Times and layout shifts are the browser's own; memory is what is left after a collection.
"""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from benchmarks.latency import free_port, ready
from benchmarks.report import Figure, Findings
from benchmarks.stage import Stage
from tests.consumers.marked import NAME, TEXT, Maker, blueprint

MODEL = "marked"
LOADS = 5  # of the page, each with an empty cache
SETTLED_S = 15.0  # from loading until memory is first looked at: charts have their bounded number of points
KEEP_LAST = 20
PAINT_S, LCP_S, CLS, TASK_MS, BYTES, GROWTH = 1.0, 2.5, 0.1, 200, 200_000, 0.05
WATCH = """
window.seen = {cls: 0, lcp: 0, tasks: []};
new PerformanceObserver((list) => list.getEntries().forEach((e) => { if (!e.hadRecentInput) seen.cls += e.value; }))
  .observe({type: "layout-shift", buffered: true});
new PerformanceObserver((list) => list.getEntries().forEach((e) => { seen.lcp = e.startTime; }))
  .observe({type: "largest-contentful-paint", buffered: true});
new PerformanceObserver((list) => list.getEntries().forEach((e) => seen.tasks.push(e.duration)))
  .observe({type: "longtask", buffered: true});
"""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def measure(stage: Stage, *, seconds: float, updates_per_s: float) -> Findings:
    """Loads the page a few times, then looks on while versions come."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("Chromium is missing: install it (Debian: apt-get install chromium).")
    port = free_port()
    stage.configure({MODEL: {"topics": ["none"], "learner": NAME, "input": dict(TEXT)}}, sampler_port=port)
    maker = Maker(stage.store(MODEL), NAME, blueprint, TEXT)
    _commit(maker, 0)
    with stage.headrace("serve") as sampler, sync_playwright() as playwright:
        sampler.until(lambda: ready(port) or None)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with _committing(maker, updates_per_s) as committed:
            loads = [_load(browser, f"http://127.0.0.1:{port}") for _ in range(LOADS)]
            stage.say(f"loaded {LOADS} times: {loads}")
            looked = _look(browser, f"http://127.0.0.1:{port}", seconds, committed)
        browser.close()
    stage.say(f"{looked}")
    return Findings([*_loaded(loads), *_watched(looked, seconds)], raw={"loads": loads, **looked})


@contextmanager
def _committing(maker: Maker, per_s: float) -> Iterator[list[int]]:
    """Versions at a rate, until the context ends; the list grows by the number of each."""
    committed, done = [0], threading.Event()

    def run() -> None:
        started_s = time.monotonic()
        while not done.is_set():
            committed.append(_commit(maker, len(committed)))
            maker.store.retire(maker.fence, KEEP_LAST)
            maker.store.renew(maker.fence, 60)
            done.wait(max(0.0, started_s + len(committed) / per_s - time.monotonic()))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield committed
    finally:
        done.set()
        thread.join()


def _commit(maker: Maker, number: int) -> int:
    accuracy = 0.5 + 0.4 * (number % 100) / 100
    metrics = {"prequential_accuracy": accuracy, "held_out_accuracy": accuracy / 2, "lag_records": 0.0}
    return maker.commit(metrics={**metrics, "prequential_loss": 1 - accuracy}).version


def _opened(browser: Browser, url: str) -> tuple[Page, CDPSession, list[float]]:
    """A page of its own, and the bytes that come for it, headers among them."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    session, sizes = page.context.new_cdp_session(page), list[float]()
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    session.send("Network.enable")
    page.add_init_script(WATCH)
    page.goto(url)
    page.locator("section.card").first.wait_for()
    return page, session, sizes


def _load(browser: Browser, url: str) -> dict[str, float]:
    """One load: seconds to the first and the largest paint, layout shifts within two seconds, bytes."""
    page, _, sizes = _opened(browser, url)
    page.wait_for_timeout(2000)
    seen = page.evaluate("seen")
    found = {"paint_s": page.evaluate(PAINTED) / 1000, "lcp_s": seen["lcp"] / 1000, "cls": seen["cls"]}
    page.context.close()
    return {**found, "bytes": sum(sizes), "task_ms": max(seen["tasks"], default=0.0)}


def _look(browser: Browser, url: str, seconds: float, committed: list[int]) -> dict[str, Any]:
    """So long while versions come: how many were shown, long tasks, layout shifts, and memory every few seconds."""
    page, session, _ = _opened(browser, url)
    page.wait_for_timeout(1000 * SETTLED_S)
    page.evaluate("seen.tasks = []; seen.cls = 0; undefined")
    before, started_s, heap = len(committed), time.monotonic(), [_heap(session)]
    while time.monotonic() - started_s < seconds:
        page.wait_for_timeout(5000)
        heap.append(_heap(session))
    seen = page.evaluate("seen")
    per_s = (len(committed) - before) / (time.monotonic() - started_s)
    return {"versions_per_s": per_s, "heap": heap, "tasks_ms": seen["tasks"], "cls": seen["cls"]}


def _heap(session: CDPSession) -> float:
    """Bytes that JavaScript holds after a collection."""
    session.send("HeapProfiler.collectGarbage")
    used: float = session.send("Runtime.getHeapUsage")["usedSize"]
    return used


def _loaded(loads: list[dict[str, float]]) -> list[Figure]:
    """The median of all loads, but the most bytes and shifts."""
    paint_s, lcp_s = (statistics.median(load[key] for load in loads) for key in ("paint_s", "lcp_s"))
    bytes_, cls = (max(load[key] for load in loads) for key in ("bytes", "cls"))
    return [
        Figure("The page: first paint", f"**{paint_s:.2f} s**", f"< {PAINT_S:g} s", paint_s < PAINT_S),
        Figure("the same: largest paint (LCP)", f"**{lcp_s:.2f} s**", f"≤ {LCP_S:g} s", lcp_s <= LCP_S),
        Figure("the same: layout shifts (CLS)", f"**{cls:.3f}**", f"≤ {CLS:g}", cls <= CLS),
        Figure("the same: all that it loads", f"**{bytes_ / 1000:.0f} kB**", f"< {BYTES // 1000} kB", bytes_ < BYTES),
    ]


def _watched(looked: dict[str, Any], seconds: float) -> list[Figure]:
    # The median of the first third of the readings, and of the last: what a collection leaves varies.
    longest_ms, third = max(looked["tasks_ms"], default=0.0), len(looked["heap"]) // 3
    early, late = (statistics.median(part) for part in (looked["heap"][:third], looked["heap"][-third:]))
    growth = late / early - 1
    name = f"The page for {seconds:.0f} s, {looked['versions_per_s']:.1f} versions a second"
    heap = f"{early / 1e6:.2f} → {late / 1e6:.2f} MB: **{growth:+.1%}**"
    return [
        Figure(f"{name}: longest task", f"**{longest_ms:.0f} ms**", f"≤ {TASK_MS} ms", longest_ms <= TASK_MS),
        Figure(
            "the same: heap",
            heap,
            f"< {GROWTH:.0%}",
            growth < GROWTH,
        ),
        Figure("the same: layout shifts", f"**{looked['cls']:.3f}**", f"≤ {CLS:g}", looked["cls"] <= CLS),
    ]
