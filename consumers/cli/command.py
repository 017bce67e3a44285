"""What the commands share: the application, its options, and how they speak."""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from pipeline import __version__
from pipeline.config import Config, load
from pipeline.errors import ConfigError, NotFound
from pipeline.words import near

if TYPE_CHECKING:
    from pipeline.store import Store


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"headrace {__version__}")
        raise typer.Exit


app = typer.Typer(
    help="Continual learning on live streams: publish data to a topic, watch live metrics, pull current versions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def headrace(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """What is said before any command."""


out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ConfigPath = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
After = Annotated[
    list[str] | None,
    typer.Option(
        help="The position of a record that the version shall have learned.", metavar="TOPIC:PARTITION:OFFSET"
    ),
]
ModelName = Annotated[str, typer.Argument(help="A [models.NAME] table of the configuration.", metavar="MODEL")]
TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
POSSIBLE = re.compile(r" \(Possible options: ([^,)]+).*\)$")
MISUSE: type[typer.BadParameter] = typer.BadParameter.__mro__[1]  # what typer raises for a command line that is none
LINES = "\n\t"  # what a text of several lines keeps
DEFAULT_CONFIG = Path("headrace.toml")


def load_config(path: Path) -> Config:
    return load(path, os.environ)


def open_store(config: Config, model: str) -> Store:
    """Opens the model's store. It is closed when the process ends."""
    from pipeline.store import Store, connect

    client = connect(config.redis.url)
    atexit.register(client.close)
    return Store(client, config.family(model), model, max_bytes=config.sampler.max_model_bytes)


def existing_store(config: Config, model: str) -> Store:
    """Opens the store of a model that exists.

    Raises:
        NotFound: it is neither in the configuration nor in Redis.
    """
    if unknown := stranger(config, model):
        raise NotFound(f"{unknown}`headrace watch` lists those that are.")
    return open_store(config, model)


def stranger(config: Config, model: str) -> str:
    """A sentence about a name that is neither in the configuration nor in Redis; for other names an empty text."""
    from pipeline.store import connect, models

    names = {*config.models, *(name for _, name in models(connect(config.redis.url)))}
    if model in names:
        return ""
    return f"There is no model {model} (known: {', '.join(sorted(names)) or 'none'}).{near(model, names)} "


def valid_topic(topic: str) -> str:
    """Checks the name of a topic as Kafka does, before Kafka is asked.

    Raises:
        ConfigError: Kafka has no topic of such a name.
    """
    if not TOPIC.fullmatch(topic):
        raise ConfigError(f"{topic!a} can be no topic. Use 1 to 249 letters, digits, '.', '_' and '-'.")
    return topic


def end(what: str, status: int) -> NoReturn:
    """Ends the command with one sentence on what is wrong, and what to do."""
    typer.secho(f"headrace: {printable(what, LINES)}", fg="red", err=True)
    sys.exit(status)


def misused(error: typer.BadParameter) -> str:
    """What is wrong with a command line."""
    what = POSSIBLE.sub(r". Did you mean \1?", error.format_message().replace("(s) (", " (")).rstrip(".")
    command = error.ctx.command_path if error.ctx else "headrace COMMAND"
    return f"{what}{'' if what.endswith('?') else '.'} `{command} --help` tells what it takes."


def ask(question: str, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_result(json_: bool, value: Any, *lines: str) -> None:
    """What a command found: as JSON for programs, or in lines for people."""
    if json_:
        print_json(value)
        return
    for line in lines:
        typer.echo(line)


def moment(ms: int, timespec: str = "seconds") -> str:
    """The local time of milliseconds since the epoch; producers may write any number."""
    try:
        return datetime.fromtimestamp(ms / 1000).isoformat(" ", timespec)
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms since 1970, which no calendar here has"


def printable(text: str, kept: str = "") -> str:
    """Foreign text with its control characters escaped, so that none steers the terminal; those in `kept` stay."""
    return "".join(char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text)


def tell(line: str) -> None:
    """Prints a line for people on standard error. Results go to standard output."""
    with suppress(OSError):  # whoever reads it may have gone: a closed terminal, a killed parent
        typer.echo(printable(line, LINES), err=True)
