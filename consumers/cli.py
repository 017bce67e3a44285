"""The `headrace` command. Imports torch only where a model is really run: `--help` and `publish` answer at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import Progress

from pipeline.config import Config, load
from pipeline.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from pipeline.store import Store

app = typer.Typer(
    help="Continual learning on live streams: publish data to a topic, watch live metrics, pull current versions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ConfigPath = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
ModelName = Annotated[str, typer.Argument(help="A [models.NAME] table of the configuration.", metavar="MODEL")]
DEFAULT_CONFIG = Path("headrace.toml")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last one: the terminal is closed


def main() -> None:
    """Entry point: an error that headrace raises on purpose is one sentence and an exit status, never a traceback."""
    # A user's own learner or decoder may lie in this folder; behind all else, so that a `models/` here shadows nothing.
    sys.path.append(str(Path.cwd()))
    try:
        app()
    except HeadraceError as error:
        typer.secho(f"headrace: {error}", fg="red", err=True)
        sys.exit(error.exit_status)
    except OSError as error:  # of a file that the user named
        typer.secho(f"headrace: {error}. See that the path exists and may be used.", fg="red", err=True)
        sys.exit(1)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = DEFAULT_CONFIG,
) -> None:
    """Write a commented headrace.toml.

    Example: headrace init
    """
    if path.exists():
        raise ConfigError(f"{path} exists already. Remove it, or name another file: headrace init other.toml.")
    path.write_text((Path(__file__).parent / "init.toml").read_text("utf-8"), "utf-8")
    typer.echo(f"Wrote {path}. Next: headrace local (a Kafka and a Redis of your own), then headrace train pictures.")


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(help="End by itself after this time.", min=5)] = None,
    folder: Annotated[Path, typer.Option(help="Kafka's and Redis's data, logs and pictures.")] = Path(".headrace/demo"),
    kafka: Annotated[str | None, typer.Option(help="HOST:PORT of a Kafka that is already there.")] = None,
    redis: Annotated[str | None, typer.Option(help="URL of a Redis that is already there.")] = None,
) -> None:
    """Watch three models learn from two live streams of real data on this machine.

    Example: headrace demo --seconds 60
    """
    from consumers.demo import Demo

    with _stopping() as stop:
        sys.exit(Demo(folder, seconds, kafka, redis, out, stop).run())


@app.command()
def local(
    folder: Annotated[Path, typer.Argument(help="Where their data is kept.")] = Path(".headrace/local"),
    kafka_port: Annotated[int, typer.Option(help="0: a free one.")] = 9092,
    redis_port: Annotated[int, typer.Option(help="0: a free one.")] = 6379,
) -> None:
    """Run a real Kafka and a real Redis on loopback until Ctrl-C; their data stays in the folder.

    Example: headrace local
    """
    from pipeline.local import Local

    with (
        _stopping() as stop,
        Local(folder, kafka_port=kafka_port or None, redis_port=redis_port or None) as servers,
    ):
        typer.echo(
            f"Kafka at {servers.bootstrap_servers}, Redis at {servers.redis_url}, data in {folder}. Ctrl-C ends."
        )
        stop.wait()


@app.command()
def publish(
    topic: Annotated[str, typer.Argument(help="The topic.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders (sub-folders are labels), .jsonl files, or - for texts on standard input."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The label of every record.")] = None,
    follow: Annotated[Path | None, typer.Option(help="Publish what is dropped into this folder, until Ctrl-C.")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Publish pictures and texts.

    Example: headrace publish pictures ./photos
    """
    from consumers.publish import follow as following
    from consumers.publish import from_paths, from_stdin
    from pipeline.log import Publisher, ensure_topics

    if bool(sources) == (follow is not None):
        raise ConfigError(
            "Nothing to publish, or two things at once. Give files and folders, or - , or --follow FOLDER."
        )
    kafka = _config(config).kafka
    ensure_topics(kafka, [topic])
    with (
        # While a line is waited for, Ctrl-C has to be the exception that it is.
        nullcontext(threading.Event()) if sources == ["-"] else _stopping() as stop,
        Publisher(kafka) as publisher,
        Progress(console=err, transient=True, disable=not err.is_terminal) as progress,
    ):
        if follow is not None:
            outgoing = following(follow, stop, _tell, label)
        elif sources == ["-"]:
            outgoing = from_stdin(sys.stdin, label)
        else:
            outgoing = from_paths([Path(source) for source in sources or []], _tell, label)
        task = progress.add_task(f"publishing to {topic}", total=None)
        count = 0
        for record in outgoing:
            publisher.publish(topic, record.value, headers=record.headers)
            count += 1
            progress.update(task, advance=1, description=f"{count:,} records to {topic}")
            if stop.is_set():
                break
        publisher.flush(60)
    typer.echo(f"{count:,} records published to {topic}.")


@app.command()
def train(model: ModelName, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Learn from the model's topics until Ctrl-C or SIGTERM, which end with a snapshot.

    Example: headrace train pictures
    """
    settings = _config(config)
    table = settings.model(model)

    from prometheus_client import CollectorRegistry

    from consumers.registry import resolve_blueprint
    from consumers.trainer import Worker
    from pipeline.metrics import WorkerMetrics, serve_metrics

    registry = CollectorRegistry()
    with (
        _stopping() as stop,
        serve_metrics(registry, table.metrics.host, table.metrics.port) as address,
    ):
        _tell(f"{model}: metrics at {address}")
        Worker(
            model,
            settings,
            resolve_blueprint(table.learner),
            _store(settings, model),
            WorkerMetrics(registry, model),
            stop=stop,
            say=_tell,
            owner=f"{socket.gethostname()}:{os.getpid()}",
        ).run()


@app.command()
def serve(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Serve the newest version of every model over HTTP until Ctrl-C.

    Example: headrace serve
    """
    settings = _config(config)

    from consumers.sampler import serve as run

    run(settings)


@app.command()
def pull(
    model: ModelName,
    ref: Annotated[str, typer.Argument(help="latest, an alias, a number, or the beginning of a digest.")] = "latest",
    to: Annotated[Path | None, typer.Option(help="The file to write; default MODEL-vN.safetensors.")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Write a version's weights as one safetensors file, and its manifest as JSON beside it.

    Example: headrace pull pictures stable
    """
    from safetensors.torch import save

    from consumers.bridge import tensors
    from consumers.serving import essentials

    store = _store(_config(config), model)
    manifest = store.manifest(ref)
    path = to or Path(f"{model}-v{manifest.version}.safetensors")
    path.write_bytes(save(tensors(store.arrays(manifest, "serving")), essentials(manifest)))
    path.with_suffix(".json").write_bytes(manifest.raw)
    typer.echo(f"Wrote {path} and {path.with_suffix('.json')}.")


@app.command()
def versions(model: ModelName, config: ConfigPath = DEFAULT_CONFIG, json_: Json = False) -> None:
    """List a model's versions, newest first.

    Example: headrace versions pictures --json
    """
    from consumers.watch import kept_versions, version_line

    rows = kept_versions(_store(_config(config), model))
    if json_:
        _print_json(rows)
        return
    for row in rows:
        typer.echo(version_line(row))
    if not rows:
        _tell(f"{model} has no version yet.")


@app.command()
def alias(
    model: ModelName,
    name: Annotated[str, typer.Argument(help="The alias, such as stable.")],
    ref: Annotated[str, typer.Argument(help="The version it names from now on.")] = "latest",
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias instead.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Name a version; what has a name is never removed.

    Example: headrace alias pictures stable 120
    """
    store = _store(_config(config), model)
    if delete:
        store.delete_alias(name)
        typer.echo(f"{model}: {name} is removed.")
    else:
        named = store.set_alias(name, ref)
        typer.echo(f"{model}: {name} is version {named.version}.")


@app.command()
def watch(
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """The live table of all models.

    Example: headrace watch
    """
    from consumers.watch import Heads, plain, table

    settings = _config(config)
    stores = {name: _store(settings, name) for name in settings.models}
    heads = Heads()
    live = Live(console=out, auto_refresh=False) if out.is_terminal and not json_ and not once else None
    with _stopping() as stop:
        if live is not None:
            live.start()
        try:
            while True:
                newest = {name: store.head() for name, store in stores.items()}
                rows = [
                    heads.row(name, stores[name].manifest(ref) if ref else None, time.time())
                    for name, ref in newest.items()
                ]
                if json_:
                    _print_json([row.json() for row in rows])
                elif live is not None:
                    live.update(table(rows), refresh=True)
                else:
                    for row in rows:
                        typer.echo(plain(row))
                if once or stop.wait(every):
                    return
        finally:
            if live is not None:
                live.stop()


@app.command("dead-letters")
def dead_letters(
    topic: Annotated[str, typer.Argument(help="The topic that the records came from.")],
    limit: Annotated[int, typer.Option(help="At most this many, the oldest first.", min=1)] = 100,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """List the records of a topic that could not be learned, with the reason.

    Example: headrace dead-letters pictures --json
    """
    from pipeline.dead_letters import read_dead_letters

    letters = list(read_dead_letters(_config(config).kafka, topic, limit))
    if json_:
        _print_json([letter.json() for letter in letters])
        return
    for letter in letters:
        typer.echo(f"{letter.origin}  {letter.model}  {letter.reason}: {letter.detail}")
    typer.echo(f"{len(letters)} dead letters of {topic}.")


@app.command()
def delete(model: ModelName, yes: Yes = False, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Remove a model with all its versions and its lineage.

    Example: headrace delete pictures
    """
    store = _store(_config(config), model)
    _ask(f"Delete {model} with {len(store.versions())} versions, aliases and lineage?", yes)
    store.delete()
    typer.echo(f"{model} is deleted.")


@app.command()
def reset(model: ModelName, yes: Yes = False, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Start a model anew: its versions go, and the next worker begins at `start`. Numbers are not used again.

    Example: headrace reset pictures
    """
    store = _store(_config(config), model)
    _ask(f"Remove the {len(store.versions())} versions of {model} and start anew?", yes)
    store.reset()
    typer.echo(f"{model} starts anew.")


def _config(path: Path) -> Config:
    return load(path, os.environ)


def _store(config: Config, model: str) -> Store:
    from pipeline.store import Store, connect

    return Store(connect(config.redis.url), config.family(model), model)


def _ask(question: str, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def _tell(line: str) -> None:
    """What is for people alone: results are on standard output."""
    typer.echo(line, err=True)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP set, instead of an exception at any point of the program."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
