"""Commands about dead letters: list, show, requeue, drop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consumers.cli.command import (
    DEFAULT_CONFIG,
    ConfigPath,
    Json,
    Yes,
    ask,
    load_config,
    moment,
    print_result,
    printable,
    valid_topic,
)
from pipeline.errors import ConfigError, LogError, RecordError
from pipeline.words import counted, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.client import Client
    from pipeline.log import DeadLetter

    Resolve = Callable[[Client, list[DeadLetter]], list[DeadLetter]]

PREVIEW_CHARS = 500
PREVIEW_BYTES = 32
PREVIEW_SIZE = (12, 24)  # lines and characters of a picture
INKS = " .:-=+*#%@"

app = typer.Typer()
letters_app = typer.Typer(
    no_args_is_help=True,
    help="""Records that could not be learned: look at them, learn them after a fix, or give them up.

    Example: headrace dead-letters list pictures
    """,
)
app.add_typer(letters_app, name="dead-letters")

Topic = Annotated[
    str, typer.Argument(help="The topic that the records came from.", metavar="TOPIC", callback=valid_topic)
]
Origins = Annotated[
    list[str] | None,
    typer.Argument(help="TOPIC:PARTITION:OFFSET of the records, as list prints it.", metavar="ORIGIN"),
]
OfModel = Annotated[str | None, typer.Option("--model", help="Only those of this model.")]
OfReason = Annotated[str | None, typer.Option("--reason", help="Only those with this reason.")]
Since = Annotated[
    str | None, typer.Option("--since", help="Only those sent since, such as 2026-01-31T12:00:00Z.", metavar="TIME")
]
Every = Annotated[bool, typer.Option("--all", help="All that are open.")]


@letters_app.command("list")
def list_(
    topic: Topic,
    model: OfModel = None,
    reason: OfReason = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(help="At most this many, the oldest first.", min=1)] = 100,
    all_: Annotated[bool, typer.Option("--all", help="Also those that were requeued or dropped.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """List the records of a topic that could not be learned, with the reason.

    Example: headrace dead-letters list pictures --reason label
    """
    with _client(config) as client:
        letters = client.dead_letters(topic, model, reason, since_ms=_milliseconds(since), resolved=all_)
    more = f", {limit} shown" if len(letters) > limit else ""
    _report(letters[:limit], f"{counted(len(letters), 'dead letter')} of {topic}{more}.", json_)


@letters_app.command()
def show(
    topic: Topic,
    origin: Annotated[str, typer.Argument(help="TOPIC:PARTITION:OFFSET, as list prints it.")],
    model: OfModel = None,
    to: Annotated[Path | None, typer.Option(help="Write the original's bytes to this file.")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Show one dead letter: why, since when, its headers and what it holds.

    Example: headrace dead-letters show pictures pictures:0:17 --to bad.png
    """
    with _client(config) as client:
        found = [e for e in client.dead_letters(topic, model, resolved=True) if e.origin == origin]
        if not found:
            raise _unknown(origin, topic)
        if len(found) > 1:
            names = ", ".join(letter.model for letter in found)
            raise ConfigError(f"{origin} is a dead letter of {names}. Name one of them with --model.")
        letter = client.fetch(found[0])
    content = letter.record.value or b""
    if to is not None:
        to.write_bytes(content)
    lines = [_line(letter)]
    for name, ms in (("published", letter.record.timestamp_ms), ("sent here", letter.sent_ms or 0)):
        lines.append(f"{name}: {moment(ms, 'milliseconds')}")
    foreign = [(f"header {name}", value) for name, value in letter.record.headers]
    if letter.record.key is not None:
        foreign.insert(0, ("key", letter.record.key))
    lines += [printable(f"{name}: {value.decode(errors='backslashreplace')}") for name, value in foreign]
    preview = _preview(content)
    lines.append(f"{counted(len(content), 'byte')}{'' if to is None else f', written to {to}'}:\n{preview}")
    print_result(json_, {**letter.json(), "bytes": len(content), "preview": preview}, *lines)


def resolving(done: str) -> Callable[[Resolve], None]:
    """A command that asks which letters are meant. Its function resolves them, and gives those that were open."""

    def command(resolve: Resolve) -> None:
        def run(
            topic: Topic,
            origins: Origins = None,
            model: OfModel = None,
            reason: OfReason = None,
            since: Since = None,
            all_: Every = False,
            yes: Yes = False,
            config: ConfigPath = DEFAULT_CONFIG,
            json_: Json = False,
        ) -> None:
            if not (origins or model or reason or since or all_):
                raise ConfigError(
                    f"Nothing is chosen. Name origins as `headrace dead-letters list {topic}` prints them, "
                    "or use --model, --reason, --since or --all."
                )
            with _client(config) as client:
                letters = client.dead_letters(topic, model, reason, since_ms=_milliseconds(since))
                for origin in origins or ():
                    if all(letter.origin != origin for letter in letters):
                        raise _unknown(origin, topic)
                letters = [letter for letter in letters if not origins or letter.origin in origins]
                if len(letters) > 1:
                    ask(f"{resolve.__name__.title()} {counted(len(letters), 'dead letter')} of {topic}?", yes)
                letters = resolve(client, letters)
            _report(letters, f"{counted(len(letters), 'dead letter')} of {topic} {done}.", json_)

        run.__doc__ = resolve.__doc__
        letters_app.command(resolve.__name__)(run)

    return command


@resolving("requeued")
def requeue(client: Client, letters: list[DeadLetter]) -> list[DeadLetter]:
    """Publish the originals again, each for the model that could not learn it; the others skip them.

    Example: headrace dead-letters requeue pictures --reason decoder
    """
    return client.requeue(*letters)


@resolving("dropped")
def drop(client: Client, letters: list[DeadLetter]) -> list[DeadLetter]:
    """Give dead letters up: they are listed only with --all from now on.

    Example: headrace dead-letters drop pictures pictures:0:17
    """
    return client.drop(*letters)


def _client(config: Path) -> Client:
    from pipeline.client import Client

    return Client(load_config(config))


def _report(letters: list[DeadLetter], summary: str, json_: bool) -> None:
    print_result(json_, [letter.json() for letter in letters], *map(_line, letters), summary)


def _unknown(origin: str, topic: str) -> LogError:
    return LogError(
        f"{origin} is no such dead letter. `headrace dead-letters list {topic}` shows those that are open, "
        "--all also what became of the others."
    )


def _milliseconds(since: str | None) -> int:
    if since is None:
        return 0
    if (found := milliseconds(since)) is None:
        raise ConfigError(f"--since {since} is not a time with its zone. Write it as 2026-01-31T12:00:00Z.")
    return found


def _line(letter: DeadLetter) -> str:
    resolution = "" if letter.resolution is None else f"  [{letter.resolution}]"
    return printable(f"{letter.origin}  {letter.model}  {letter.reason}: {letter.detail}{resolution}")


def _preview(content: bytes) -> str:
    """What the bytes are, for people: a picture in characters, the beginning of a text, or a few bytes."""
    from pipeline.images import ImageInput, image_array

    try:
        rows = image_array(content, ImageInput(size=PREVIEW_SIZE, channels=1, fit="resize"))[0]
        return "\n".join("".join(INKS[pixel * len(INKS) // 256] for pixel in row) for row in rows.tolist())
    except RecordError:
        pass
    try:
        text = content.decode()[:PREVIEW_CHARS]
    except UnicodeDecodeError:
        return content[:PREVIEW_BYTES].hex(" ")
    return printable(text)
