"""A real sampler for tests: uvicorn on a free port, on a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from consumers.sampler.app import open_server
from consumers.sampler.follower import Follower
from consumers.sampler.service import Service
from pipeline.config import Config, validate
from tests.consumers.marked import NAME, TEXT

PATIENCE_S = 60.0  # a slow machine is no failure


@dataclass(frozen=True, slots=True)
class Running:
    """A sampler that answers, and an HTTP client for it."""

    url: str
    service: Service
    client: httpx.Client
    server: uvicorn.Server
    said: list[str] = field(default_factory=list)

    def follower(self, model: str) -> Follower:
        return self.service.serving.follower(model)

    def serves(self, model: str, version: int) -> bool:
        """Whether the version goes live while we wait."""
        return self.follower(model).wait_for(
            lambda f: f.live is not None and f.live.manifest.version >= version, PATIENCE_S
        )


def configuration(
    redis_url: str, models: dict[str, dict[str, Any]], kafka: str | dict[str, Any] = "127.0.0.1:1", **sampler: Any
) -> Config:
    """Tables of models: what is not given is that of the marked learner. An empty `models` serves what is found."""
    defaults = {"topics": ["topic"], "learner": NAME, "input": TEXT}
    return validate(
        {
            "kafka": {"bootstrap_servers": kafka} if isinstance(kafka, str) else kafka,
            "redis": {"url": redis_url},
            "sampler": {"port": 0, **sampler},
            "models": {name: {**defaults, **table} for name, table in models.items()},
        },
        "test",
    )


@contextmanager
def running(config: Config) -> Iterator[Running]:
    """The sampler, until the context ends."""
    said: list[str] = []
    server, listener = open_server(config, said.append)
    host, port = listener.getsockname()[:2]
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104
    thread = threading.Thread(target=server.run, args=([listener],), name="server")
    thread.start()
    try:
        # The socket listens already: a request that comes before the server is up waits for it.
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            client.get("/healthz").raise_for_status()
            yield Running(url, server.config.app.state.service, client, server, said)  # type: ignore[union-attr]
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()
        assert not thread.is_alive()
