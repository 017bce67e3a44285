"""`kill -9` of the tests: whatever they started ends with them, and meets no later run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from pipeline.process import tied

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120.0


def running() -> dict[int, tuple[int, str]]:
    """All processes of the machine: id → parent's id, and command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if state != "Z":  # has ended; whoever adopted it has not looked yet
            found[int(path.name)] = (int(parent), line)
    return found


def children(of: int) -> dict[int, str]:
    """All that a process has started, and that these have: id → command line."""
    everybody, found = running(), dict[int, str]()
    ids = [of]
    for id_ in ids:
        mine = {pid: line for pid, (parent, line) in everybody.items() if parent == id_}
        found |= mine
        ids += mine
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot tie a child to its parent")
def test_what_tests_started_ends_with_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-s", f"--basetemp={tmp_path / 'base'}", "tests/killed.py"]
    with subprocess.Popen(tied(command), cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        try:
            while "all run" not in (line := tests.stdout.readline()):
                assert line, "it ended by itself"
            started = children(tests.pid)
        finally:
            tests.send_signal(signal.SIGKILL)
    lines = " ".join(started.values())
    assert all(
        part in lines for part in ("kafka.Kafka", "-server 127.0.0.1", "headrace up", "train killed", "serve")
    ), started
    pause = Event()
    for _ in range(int(PATIENCE_S / 0.1)):
        left = {pid: line for pid, line in started.items() if running().get(pid, (0, ""))[1] == line}
        if not left:
            return
        pause.wait(0.1)
    raise AssertionError(f"still there: {left}")
