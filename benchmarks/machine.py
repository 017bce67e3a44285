"""The machine that figures come from, and how much of it other processes took meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.local.artefacts import TITLE

PACKAGES = ("torch", "kafka-python", "redis", "pillow", "numpy")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """Cores and CPU model."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{os.cpu_count()} cores, {model}"


def versions(redis_server: str) -> dict[str, str]:
    """Of everything that the figures depend on."""
    return {
        "headrace": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "kafka": TITLE.split()[-1],
        "redis-server": redis_server,
    }


@contextmanager
def others() -> Iterator[dict[str, Any]]:
    """At the end, fills in how many cores processes that are not ours took on average, and the hypervisor."""
    found: dict[str, Any] = {}
    started_s, before = time.monotonic(), _cpu_s()
    yield found
    wall_s, after = time.monotonic() - started_s, _cpu_s()
    busy, stolen, own = (b - a for a, b in zip(before, after, strict=True))
    found["other_processes_cores"] = round(max(0.0, busy - own) / wall_s, 2)
    found["stolen_cores"] = round(stolen / wall_s, 2)


def _cpu_s() -> tuple[float, float, float]:
    """CPU seconds since the start: of all processes, stolen by the hypervisor, of this process's tree."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split(None, 9)[1:9])
    return (user + nice + system + irq + softirq) * TICK_S, steal * TICK_S, tree_cpu_s(os.getpid())


def tree_cpu_s(root: int) -> float:
    """CPU seconds of a process and all below it."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = sum(map(int, fields[11:15]))  # its own, and of its children that have ended
    tree = [root]
    for pid in tree:
        tree += children.get(pid, [])
    return sum(ticks.get(pid, 0) for pid in tree) * TICK_S
