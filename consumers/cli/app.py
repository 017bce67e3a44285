"""The `headrace` command. Imports torch only where a model is really run: `--help` and `publish` answer at once."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from consumers.cli import (
    answers as cli_answers,
    dead_letters as cli_dead_letters,
    lineage as cli_lineage,
    local as cli_local,
    publish as cli_publish,
    versions as cli_versions,
)
from consumers.cli.command import (
    DEFAULT_CONFIG,
    MISUSE,
    ConfigPath,
    Json,
    ModelName,
    app,
    end,
    load_config,
    misused,
    open_store,
    out,
    print_json,
    printable,
    tell,
)
from consumers.stopping import stopping
from consumers.worker.kernels import choose
from pipeline.errors import ConfigError, HeadraceError, StoreUnavailable
from pipeline.words import said


def main() -> None:
    """Entry point: an error that headrace raises on purpose is one sentence and an exit status, never a traceback."""
    try:
        sys.exit(app(prog_name="headrace", standalone_mode=False))
    except MISUSE as error:
        if not error.format_message():  # nothing was asked for, and the help has been shown
            sys.exit(2)
        end(misused(error), 2)
    except typer.Abort:
        end("Nothing was done.", 1)
    except HeadraceError as error:
        end(str(error), error.exit_status)
    except UnicodeEncodeError as error:  # half a character in what the user wrote
        end(f"{error.object!a:.100} is not {error.encoding.upper()}. Write it in {error.encoding.upper()}.", 2)
    except OSError as error:  # of a file that the user named
        what = f"{error.filename}: {said(error)}" if error.filename else said(error)
        end(f"{what}. See that the path exists and may be used.", 1)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = DEFAULT_CONFIG,
) -> None:
    """Write a commented headrace.toml.

    Example: headrace init
    """
    if path.exists():
        raise ConfigError(f"{path} exists already. Remove it, or name another file: headrace init other.toml.")
    text = (Path(__file__).parent / "init.toml").read_text("utf-8")
    path.touch(0o600)  # it has a password
    path.write_text(text.replace("{password}", secrets.token_urlsafe(16)), "utf-8")
    typer.echo(f"Wrote {path}. Next: headrace up (a Kafka and a Redis of your own, a worker a model, the sampler).")


@app.command()
def train(
    model: ModelName,
    jump: Annotated[
        bool, typer.Option("--jump", help="Go on at what a topic holds where that is not what comes next.")
    ] = False,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Learn from the model's topics until Ctrl-C or SIGTERM, which end with a snapshot.

    With --json two lines: where its metrics are, and at its end the newest version.

    Example: headrace train pictures
    """
    settings = load_config(config)
    table = settings.model(model)
    choose(model, table, os.environ)

    from prometheus_client import CollectorRegistry

    from consumers.loading import resolve_blueprint
    from consumers.worker.worker import Worker
    from pipeline.metrics import WorkerMetrics, serve_metrics

    registry, store = CollectorRegistry(), open_store(settings, model)
    with stopping() as stop:
        worker = Worker(
            model,
            settings,
            resolve_blueprint(table.learner),
            store,
            WorkerMetrics(registry, model),
            stop=stop,
            say=tell,
            owner=f"{socket.gethostname()}:{os.getpid()}",
            jump=jump,
        )
        with serve_metrics(registry, table.metrics.host, table.metrics.port) as address:
            tell(f"{model}: metrics at {address}")
            if json_:
                print_json({"model": model, "metrics": address})
            worker.run()
        if json_:
            head = store.head()
            print_json({"model": model, "version": head and head.version, "digest": head and head.digest})


@app.command()
def serve(config: ConfigPath = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Serve the newest version of every model over HTTP until Ctrl-C.

    With --json a line with its address.

    Example: headrace serve
    """
    settings = load_config(config)

    from consumers.sampler.app import serve as run

    run(settings, tell, (lambda url: print_json({"url": url})) if json_ else lambda url: None)


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
    from consumers.cli.watch import Heads, plain, table

    settings = load_config(config)
    stores = {name: open_store(settings, name) for name in settings.models}
    heads, problem = Heads(), ""
    live = Live(console=out, auto_refresh=False) if out.is_terminal and not json_ and not once else None
    with live or nullcontext():
        while True:
            try:
                rows = heads.look(stores)
            except StoreUnavailable as error:
                if once:
                    raise
                if str(error) != problem:
                    problem = str(error)
                    tell(f"{error} Waiting for it.")
            else:
                problem = ""
                warnings = [line for row in rows for line in row.warnings()]
                if json_:
                    print_json([row.json() for row in rows])
                elif live is not None:
                    live.update(table(rows, "\n".join(warnings)), refresh=True)
                else:
                    for row in rows:
                        typer.echo(plain(row))
                    for line in warnings:
                        typer.echo(printable(line))
            if once:
                return
            time.sleep(every)  # a signal ends it at once: it has started nothing


app.add_typer(cli_local.app)
app.add_typer(cli_publish.app)
app.add_typer(cli_answers.app)
app.add_typer(cli_versions.app)
app.add_typer(cli_lineage.app)
app.add_typer(cli_dead_letters.app)

if __name__ == "__main__":
    main()
