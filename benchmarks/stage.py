"""Where a benchmark takes place: a Kafka and a Redis of its own, and headrace's own commands as processes."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pipeline.config import Config, load
from pipeline.local.servers import Local
from pipeline.process import tied
from pipeline.store.redis import connect
from pipeline.store.store import Store

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120.0  # for what should take seconds
END_S = 30.0  # for a process to end after SIGTERM

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stage:
    """A scratch folder, two servers, and where progress is told."""

    folder: Path
    servers: Local
    say: Callable[[str], None]

    def configure(self, models: Mapping[str, Mapping[str, Any]], *, partitions: int = 2, sampler_port: int = 0) -> Path:
        """Writes a headrace.toml: what is not given is the default."""
        tree = {
            "kafka": {"bootstrap_servers": self.servers.kafka.bootstrap_servers, "partitions": partitions},
            "redis": {"url": self.servers.redis.url},
            "sampler": {"port": sampler_port},
            "models": models,
        }
        path = self.folder / "headrace.toml"
        path.write_text("\n".join(_toml(tree, ())), "utf-8")
        return path

    def config(self) -> Config:
        """The file that `configure` wrote."""
        return load(self.folder / "headrace.toml", {})

    def store(self, model: str) -> Store:
        """Where the model's versions are."""
        config = self.config()
        return Store(connect(config.redis.url), config.family(model), model)

    @contextmanager
    def headrace(self, *arguments: str, through: tuple[str, ...] = ("consumers.cli.app",)) -> Iterator[Process]:
        """A headrace command as a process of its own, until the context ends with SIGTERM."""
        log = self.folder / f"{arguments[0]}.log"
        config = str(self.folder / "headrace.toml")
        command = [sys.executable, "-m", *through, *arguments, "--config", config]
        with (
            log.open("w") as file,
            subprocess.Popen(tied(command), cwd=ROOT, stdout=file, stderr=file) as popen,
        ):
            try:
                yield Process(popen, log)
            finally:
                popen.terminate()
                try:
                    popen.wait(END_S)
                except subprocess.TimeoutExpired:
                    popen.kill()


@dataclass(frozen=True, slots=True)
class Process:
    """A command that runs, and what it prints."""

    popen: subprocess.Popen[bytes]
    log: Path

    def until(self, found: Callable[[], T | None], every_s: float = 0.25, patience_s: float = PATIENCE_S) -> T:
        """Asks again until there is an answer.

        Raises:
            RuntimeError: the process has ended, or time ran out.
        """
        ends_s = time.monotonic() + patience_s
        while time.monotonic() < ends_s:
            if (answer := found()) is not None:
                return answer
            if self.popen.poll() is not None:
                raise RuntimeError(f"{self.popen.args!r} has ended: {self.log.read_text()[-2000:]}")
            time.sleep(every_s)
        raise RuntimeError(f"{self.popen.args!r} took over {patience_s:.0f} s: {self.log.read_text()[-2000:]}")

    def resident_kib(self) -> int:
        """Memory that the process has in RAM."""
        lines = Path(f"/proc/{self.popen.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@contextmanager
def stage(folder: Path, say: Callable[[str], None]) -> Iterator[Stage]:
    """Servers in `folder`, until the context ends."""
    with Local(folder) as servers:
        yield Stage(folder, servers, say)


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _toml(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """JSON's scalars and lists are TOML's too."""
    tables = {key: value for key, value in tree.items() if isinstance(value, Mapping)}
    if path:
        yield f"[{'.'.join(map(json.dumps, path))}]"
    yield from (f"{key} = {json.dumps(value)}" for key, value in tree.items() if key not in tables)
    for key, value in tables.items():
        yield from _toml(value, (*path, key))
