"""What `headrace publish` sends: files, folders, JSON lines, standard input, or whatever is dropped into a folder."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TextIO

from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to publish."""

    value: bytes
    content_type: str
    label: str | None = None
    id: str | None = None

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """The optional headers of the public format; see README, "Publish"."""
        named = {"content-type": self.content_type, "label": self.label, "id": self.id}
        return [(name, text.encode()) for name, text in named.items() if text is not None]


def from_file(path: Path, label: str | None = None) -> Outgoing:
    """One file as one record.

    Raises:
        ConfigError: it cannot be read, or is neither a picture nor a text.
    """
    try:
        value = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Give a file that can be read.") from None
    kind, _ = mimetypes.guess_type(path.name, strict=False)  # strict: without WebP
    if kind is None or kind.split("/")[0] not in ("image", "text"):
        raise ConfigError(f"{path}: neither a picture nor a text by its name. Give it a suffix such as .png or .txt.")
    return Outgoing(value, kind if kind.startswith("image/") else "text/plain", label)


def from_paths(paths: Iterable[Path], say: Callable[[str], None], label: str | None = None) -> Iterator[Outgoing]:
    """Files, JSON lines (`.jsonl`), and folders: the name of a sub-folder is the label of what is in it.

    A file in a folder that cannot be published is said and passed over; one that is named must fit.

    Raises:
        ConfigError: as `from_file` and `from_jsonl`.
    """
    for path in paths:
        if path.is_dir():
            for file in sorted(_files(path)):
                yield from _fitting(file, path, say, label)
        elif path.suffix == ".jsonl":
            try:
                with path.open(encoding="utf-8") as lines:
                    yield from from_jsonl(lines, path)
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path} cannot be read: {error}. Give a file of JSON lines in UTF-8.") from None
        else:
            yield from_file(path, label)


def from_jsonl(lines: Iterable[str], source: Path) -> Iterator[Outgoing]:
    """`{"text": …}` or `{"image": path relative to the file}` a line, with optional "label" and "id".

    Raises:
        ConfigError: names the file and the line.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{source}:{number}: not JSON ({error}). Write one object a line.") from None
        fields = entry if isinstance(entry, dict) else {}
        label, id_ = fields.get("label"), fields.get("id")
        if any(not isinstance(value, str | None) for value in (label, id_)):
            raise ConfigError(f'{source}:{number}: "label" and "id" are texts. Put them in quotes.')
        if isinstance(fields.get("text"), str):
            yield Outgoing(fields["text"].encode(), "text/plain", label, id_)
        elif isinstance(fields.get("image"), str):
            picture = from_file(source.parent / fields["image"], label)
            yield Outgoing(picture.value, picture.content_type, label, id_)
        else:
            raise ConfigError(f'{source}:{number}: neither "text" nor "image". Give one of them as a text.')


def from_stdin(stream: TextIO, label: str | None = None) -> Iterator[Outgoing]:
    """Every line that is not empty is a text."""
    for line in stream:
        text = line.rstrip("\r\n")
        if text:
            yield Outgoing(text.encode(), "text/plain", label)


def follow(
    folder: Path, stop: Event, say: Callable[[str], None], label: str | None = None, poll_s: float = 0.5
) -> Iterator[Outgoing]:
    """What is dropped into the folder from now on, once its size has stayed the same for `poll_s`.

    A file that cannot be published is said and passed over; hidden files are passed over: programs that save in two
    steps use them.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder. Create it, or name the one that files are dropped into.")
    sent = set(_files(folder))
    sizes: dict[Path, int] = {}
    while not stop.wait(poll_s):
        now = {path: size for path, size in _files(folder).items() if path not in sent}
        for path in sorted(path for path, size in now.items() if sizes.get(path) == size):
            sent.add(path)
            yield from _fitting(path, folder, say, label)
        sizes = now


def _fitting(path: Path, folder: Path, say: Callable[[str], None], label: str | None) -> Iterator[Outgoing]:
    """The file, if it can be published."""
    try:
        outgoing = from_file(path, label or _sub_folder(path, folder))
    except ConfigError as error:
        say(str(error))
    else:
        yield outgoing


def _sub_folder(path: Path, folder: Path) -> str | None:
    """The first folder between the two: a label."""
    inside = path.relative_to(folder).parts
    return inside[0] if len(inside) > 1 else None


def _files(folder: Path) -> dict[Path, int]:
    """File → size in bytes."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            try:
                found[path] = path.stat().st_size
            except FileNotFoundError:  # taken away between the two calls
                continue
    return found
