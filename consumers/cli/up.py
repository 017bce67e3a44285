"""All that a configuration names, on this machine: Kafka, Redis, a worker for each model, the sampler."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from consumers.processes import processes
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.local import Server

LOOPBACK = ("127.0.0.1", "localhost")
LOOK_S = 0.5  # between two looks at what runs
CONNECT_S = 2.0


def up(path: Path, config: Config, folder: Path, stop: Event, say: Callable[[str], None]) -> None:
    """Runs it until `stop` is set, or until a part of it ends that cannot be started again.

    Args:
        path: of the configuration, for the processes.
        folder: where a Kafka and a Redis that are started here keep their data.
        say: takes the log, a line at a time.

    Raises:
        ConfigError: there is nothing to run, or a server cannot be started here.
        HeadraceError: a process has ended by itself; has its status and its last words.
    """
    if not config.models:
        raise ConfigError(f"{path} has no model. Add a [models.NAME] table; `headrace init` writes examples.")
    with ExitStack() as stack:
        servers = missing_servers(config, folder, stop, say)
        for server in servers:
            stack.enter_context(server)
            say(f"{server.title} answers at 127.0.0.1:{server.port}; its data is in {server.folder}.")
        started = stack.enter_context(processes(path, say))
        for name in config.models:
            started.start(name, "train", name)
        started.start("sampler", "serve")
        while not stop.wait(LOOK_S):
            for server in servers:
                server.check()
            started.check()


def missing_servers(config: Config, folder: Path, stop: Event, say: Callable[[str], None]) -> list[Server]:
    """The servers that the configuration expects on loopback, where nobody listens yet. They are not started."""
    found: list[Server] = []
    if urlsplit(config.redis.url).scheme == "redis" and (port := _missing(config.redis.url, 6379)):
        from pipeline.local import EmbeddedRedis

        found.append(EmbeddedRedis(folder / "redis", port, password=password_of(config), say=say, stop=stop))
    plain = config.kafka.client.get("security_protocol", "PLAINTEXT") == "PLAINTEXT"
    if plain and (port := _missing(f"kafka://{config.kafka.bootstrap_servers}", 9092)):
        from pipeline.local import EmbeddedKafka

        found.append(EmbeddedKafka(folder / "kafka", port, say=say, stop=stop))
    return found


def password_of(config: Config) -> str | None:
    """The password of the configuration's Redis."""
    password = urlsplit(config.redis.url).password
    return None if password is None else unquote(password)


def _missing(url: str, default: int) -> int | None:
    """The port, if the address is on loopback and nobody listens there."""
    try:
        host, port = urlsplit(url).hostname, urlsplit(url).port or default
    except ValueError:  # several addresses, or none: not for this machine to mend
        return None
    if host not in LOOPBACK:
        return None
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError:
        return port
    return None
