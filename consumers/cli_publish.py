"""Commands that send: publish, label."""

from __future__ import annotations

import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from consumers.command import DEFAULT_CONFIG, ConfigPath, err, load_config, tell
from consumers.stopping import stopping
from pipeline.errors import ConfigError

app = typer.Typer()


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
    kafka = load_config(config).kafka
    ensure_topics(kafka, [topic])
    with (
        # While a line is waited for, Ctrl-C has to be the exception that it is.
        nullcontext(threading.Event()) if sources == ["-"] else stopping() as stop,
        Publisher(kafka) as publisher,
        Progress(console=err, transient=True, disable=not err.is_terminal) as progress,
    ):
        if follow is not None:
            outgoing = following(follow, stop, tell, label)
        elif sources == ["-"]:
            outgoing = from_stdin(sys.stdin, label)
        else:
            outgoing = from_paths([Path(source) for source in sources or []], tell, label)
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
def label(
    topic: Annotated[str, typer.Argument(help="A model's topic of labels.")],
    id_: Annotated[str, typer.Argument(metavar="ID", help="The id of the record.")],
    label: Annotated[str, typer.Argument(help="Its label, or the one that replaces it.")],
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Publish the label of a record that was published without one, or under a wrong one.

    Example: headrace label answers photo-17 cat
    """
    from pipeline.client import Client

    with Client(load_config(config)) as client:
        client.publish_label(topic, id_, label)
    typer.echo(f"{id_} is {label}: published to {topic}.")
