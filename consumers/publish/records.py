"""What `headrace publish` sends: files, folders, JSON lines, standard input."""

from __future__ import annotations

import codecs
import json
import os
import random
import select
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from consumers.publish.folders import Entry, listing
from consumers.publish.outgoing import (
    LINES,
    PLAIN,
    Outgoing,
    Refused,
    content_type_of,
    decoded,
    from_file,
    named,
    shown,
    text_of,
    why_unread,
)
from pipeline.errors import ConfigError, RecordError
from pipeline.texts import utf8

CHUNK_BYTES = 1 << 16
LOOK_S = 0.2  # how soon it is seen that the command is to end while a line is waited for
STDIN = "standard input"
NOTHING = "no picture and no text is in it. See that it is the right folder."
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Way:
    """How records are made of what was named."""

    limit: int  # bytes of a record
    label: str | None = None  # of every record
    seed: int | str | None = 0  # of the order of a folder's files; None: as they are sorted


def entries(paths: Iterable[Path], way: Way, say: Callable[[str], None]) -> list[Entry | Refused]:
    """Files in the order in which they are published: folders by folders, each shuffled unless the way says not to.

    Raises:
        ConfigError: a file that was named is not there, or neither picture nor text.
    """
    found: list[Entry | Refused] = []
    for number, path in enumerate(paths):
        if path.is_dir():
            inside = listing(path, say) or [Refused(str(path), NOTHING)]
            if way.seed is not None:
                random.Random(f"{way.seed} {number}").shuffle(inside)  # noqa: S311 - an order, no secret
            found += inside
        else:
            _check_named(path)
            found.append(Entry(str(path), None))
    return found


def are_lines(entry: Entry | Refused) -> bool:
    """Whether it is a file of JSON lines, of which nobody knows how many there are."""
    return isinstance(entry, Entry) and entry.path.lower().endswith(LINES)


def from_entries(found: Iterable[Entry | Refused], way: Way, stop: Event) -> Iterator[Outgoing | Refused]:
    """The records of files, and of the lines of `.jsonl` files, until `stop`."""
    for entry in found:
        if isinstance(entry, Refused):
            yield entry
        elif are_lines(entry):
            yield from from_jsonl(Path(entry.path), way, stop)
        else:
            try:
                yield from_file(Path(entry.path), entry.label if way.label is None else way.label, way.limit)
            except RecordError as error:
                yield Refused(entry.path, error.detail)


def from_jsonl(path: Path, way: Way, stop: Event) -> Iterator[Outgoing | Refused]:
    """`{"text": …}` or `{"image": path relative to the file}` a line, with optional "label" and "id"."""

    def record(line: str) -> Outgoing:
        fields = _fields(line)
        label = fields.get("label") if way.label is None else way.label
        if isinstance(fields.get("text"), str):
            made = Outgoing(utf8(fields["text"]), PLAIN, label)
        elif isinstance(fields.get("image"), str):
            picture = path.parent / fields["image"]
            try:
                made = from_file(picture, label, way.limit)
            except RecordError as error:
                raise RecordError(error.reason, f"{shown(fields['image'][:100])}: {error.detail}") from None
        else:
            raise RecordError("undecodable", 'neither "text" nor "image". Give one of them as a text.')
        return replace(made, id=fields.get("id"))

    try:
        with path.open("rb") as file:
            yield from _from_lines(reading(file.fileno(), stop), str(path), way, record)
    except OSError as error:
        yield Refused(str(path), f"{error.strerror}. Give a file that can be read.")


def from_stdin(chunks: Iterable[bytes], way: Way) -> Iterator[Outgoing | Refused]:
    """Every line that is not empty is a text."""
    return _from_lines(chunks, STDIN, way, lambda line: Outgoing(line.encode(), PLAIN, way.label))


def reading(descriptor: int, stop: Event) -> Iterator[bytes]:
    """What comes, until its end or `stop`."""
    while not stop.is_set():
        if select.select([descriptor], [], [], LOOK_S)[0]:
            chunk = os.read(descriptor, CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def _from_lines(
    chunks: Iterable[bytes], source: str, way: Way, record: Callable[[str], Outgoing]
) -> Iterator[Outgoing | Refused]:
    """The records of a source's lines; each is checked, whatever made it."""
    most = 6 * way.limit + CHUNK_BYTES  # JSON may write a byte as six
    for number, raw in enumerate(_lines(chunks, most), 1):
        where = f"{source}, line {number}" if source == STDIN else f"{source}:{number}"
        if number == 1 and raw.startswith(UTF_16):
            yield Refused(source, "it is UTF-16. Save it as UTF-8.")
            return
        try:
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if line.strip():
                yield _checked(record(_decoded(line, most)), way.limit, where)
        except RecordError as error:
            yield Refused(where, error.detail)


def _lines(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Lines without their ends; of one that is longer than `limit` the beginning, one chunk longer at the most."""
    line = bytearray()
    for chunk in chunks:
        for number, part in enumerate(chunk.split(b"\n")):
            if number:
                yield bytes(line).removesuffix(b"\r")
                line.clear()
            if len(line) <= limit:
                line += part
    if line:
        yield bytes(line).removesuffix(b"\r")


def _decoded(line: bytes, most: int) -> str:
    if len(line) > most:
        raise RecordError("too-large", f"a line of more than {most:,} bytes. Break it.")
    return decoded(line, "Convert it to UTF-8.")


def _fields(line: str) -> dict[str, str]:
    """The object of a line, whose label and id are texts."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = f"{error.msg} at {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise RecordError("undecodable", f"not JSON ({why}). Write one object a line.") from None
    fields = entry if isinstance(entry, dict) else {}
    if any(not isinstance(fields.get(name), str | None) for name in ("label", "id")):
        raise RecordError("label", '"label" and "id" are texts. Put them in quotes.')
    return fields


def _checked(made: Outgoing, limit: int, where: str) -> Outgoing:
    """Raises: RecordError: no record of the public format."""
    if made.content_type == PLAIN:
        text_of(made.value)
    if len(made.value) > limit:
        raise RecordError("too-large", f"{len(made.value):,} bytes, over kafka.max_bytes = {limit:,}. Make it smaller.")
    label, id_ = made.label, made.id
    return replace(
        made,
        label=None if label is None else named("label", label),
        id=None if id_ is None else named("id", id_),
        where=where,
    )


def _check_named(path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"{shown(path)}: No such file or directory. Correct the path; nothing was published.")
    if path.suffix.lower() not in LINES and content_type_of(path.name) is None:
        raise ConfigError(f"{shown(path)}: {why_unread(path.name)}. Leave it out; nothing was published.")
