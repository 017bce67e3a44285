"""Workers as processes of their own, forked from a warm parent: importing torch takes seconds, once."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from consumers.loading import resolve_blueprint
from consumers.worker.worker import Worker
from pipeline.config import Config
from pipeline.errors import HeadraceError
from pipeline.metrics import WorkerMetrics
from pipeline.store.redis import connect
from pipeline.store.store import Store

COUNTING = "tests.consumers.counting"  # as a user's own learner: by its import path
# A child's status can be read once, and starting one reads those of all others: two threads that do it at once lose it.
READING = threading.RLock()
WARM = ["consumers.worker.worker", "benchmarks.soak.workers", COUNTING]


def start(config: Config, name: str, log: Path, owner: str = "worker") -> ForkServerProcess:
    """A worker process, until SIGTERM; what it says goes to the end of a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WARM)
    process = context.Process(target=_work, args=(config.model_dump(), name, str(log), owner), daemon=True)
    with READING:
        process.start()
    popen: Any = process._popen  # type: ignore[attr-defined]
    poll = popen.poll

    def alone(flag: int = os.WNOHANG) -> int | None:
        with READING:
            found: int | None = poll(flag)
            return found

    popen.poll = alone
    return process


def _work(tree: Mapping[str, Any], name: str, log: str, owner: str) -> None:
    """Ends with the status that `headrace train` would end with."""
    if sys.platform == "linux":  # ends with its parent, the fork server
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    config = Config.model_validate(tree)
    if config.model(name).deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Path(log).open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), sys.stderr.fileno())  # a traceback, too

        def say(line: str) -> None:
            file.write(f"{os.getpid()} {line}\n")

        store = Store(connect(config.redis.url), config.family(name), name)
        metrics = WorkerMetrics(CollectorRegistry(), name)
        blueprint = resolve_blueprint(config.model(name).learner)
        try:
            Worker(name, config, blueprint, store, metrics, stop=stop, say=say, owner=owner).run()
        except HeadraceError as error:
            say(f"{type(error).__name__}: {error}")
            sys.exit(error.exit_status)
