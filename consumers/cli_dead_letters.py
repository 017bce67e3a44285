"""Commands about dead letters."""

from __future__ import annotations

from typing import Annotated

import typer

from consumers.command import (
    DEFAULT_CONFIG,
    ConfigPath,
    Json,
    load_config,
    print_json,
)

app = typer.Typer()


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

    letters = list(read_dead_letters(load_config(config).kafka, topic, limit))
    if json_:
        print_json([letter.json() for letter in letters])
        return
    for letter in letters:
        typer.echo(f"{letter.origin}  {letter.model}  {letter.reason}: {letter.detail}")
    typer.echo(f"{len(letters)} dead letters of {topic}.")
