"""Not collected: what `test_killed.py` kills. All that tests start, and what that starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event

CONFIG = """
[kafka]
bootstrap_servers = "{kafka}"
[redis]
url = "{redis}"
[sampler]
port = 0
[models.killed]
topics = ["killed"]
learner = "text-analytic"
[models.killed.input]
kind = "text"
"""


def test_that_does_not_end(kafka: str, redis_url: str, tied: Callable[[list[str]], list[str]], tmp_path: Path) -> None:
    """A Kafka and a Redis, and a process with a worker and a sampler."""
    (tmp_path / "headrace.toml").write_text(CONFIG.format(kafka=kafka, redis=redis_url))
    command = [str(Path(sys.executable).with_name("headrace")), "up"]
    with subprocess.Popen(tied(command), cwd=tmp_path, stderr=subprocess.PIPE, text=True) as up:
        assert up.stderr is not None
        said = ""
        while not ("killed" in said and "sampler" in said):  # the names in front of what both say
            said += up.stderr.readline()
        print("all run", flush=True)
        Event().wait()
