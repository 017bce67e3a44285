"""Records before they are sent: those to publish, and those that cannot be published."""

from __future__ import annotations

import mimetypes
import stat
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import RecordError
from pipeline.records import content_id, headers_of, name_of
from pipeline.texts import BYTE_ORDER_MARK

PICTURES = {
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".jfif": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}
TEXTS = (".md", ".rst", ".text")  # which not every machine knows as texts
LINES = (".jsonl", ".ndjson")  # of JSON, each of which is a record
OTHER_PICTURES = {".arw", ".avif", ".cr2", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".psd", ".svg"}
PLAIN = "text/plain"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to publish."""

    value: bytes
    content_type: str
    label: str | None = None
    id: str | None = None  # None: the digest of the value
    where: str = field(default="", compare=False)  # file and line, for messages: through `shown`

    @property
    def name(self) -> str:
        return content_id(self.value) if self.id is None else self.id

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """The optional headers of the public format; see README, "Publish"."""
        return list(headers_of(self.content_type, self.label, self.name))


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that cannot be published. It is named, and the others go on."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{shown(self.where)}: {self.why}"


def content_type_of(name: str) -> str | None:
    """What a file is by its name; None: neither a picture that a model reads nor a text."""
    suffix = Path(name).suffix.lower()
    if suffix in PICTURES:
        return PICTURES[suffix]
    kind, compressed = mimetypes.guess_type(name)
    is_text = suffix in TEXTS or (compressed is None and str(kind).startswith("text/"))
    return PLAIN if is_text else None


def why_unread(name: str) -> str:
    """Why a file of no content type is passed over."""
    if (suffix := Path(name).suffix.lower()) in OTHER_PICTURES:
        return f"no model reads {suffix[1:].upper()}: save it as JPEG or PNG"
    return "neither a picture nor a text by its name (.png, .jpg, .webp, .txt, …)"


def from_file(path: Path, label: str | None, limit: int) -> Outgoing:
    """One file as one record of at most `limit` bytes.

    Raises:
        RecordError: it cannot be read, or can be no record.
    """
    kind = content_type_of(path.name)
    if kind is None:
        raise RecordError("content-type", f"{why_unread(path.name)}.")
    value = _content(path, limit)
    if kind == PLAIN:
        text_of(value)
    return Outgoing(value, kind, None if label is None else named("label", label), where=str(path))


def decoded(raw: bytes, advice: str) -> str:
    """
    Raises:
        RecordError: it is not UTF-8; what to do then is the `advice`.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        why = f"not UTF-8 (byte {raw[error.start]:#04x} at {error.start}). {advice}"
        raise RecordError("undecodable", why) from None


def text_of(raw: bytes) -> str:
    """
    Raises:
        RecordError: no model reads it as a text.
    """
    text = decoded(raw, "Save it as UTF-8.").removeprefix(BYTE_ORDER_MARK)
    if not text:
        raise RecordError("empty", "it is empty. Fill it, or leave it out.")
    if "\0" in text:
        raise RecordError("undecodable", "it holds U+0000, which no text has. Save it as UTF-8.")
    return text


def named(kind: str, text: str) -> str:
    """A label or an id as it is published.

    Raises:
        RecordError: it can be none.
    """
    try:
        text.encode()
        return name_of(kind, text)
    except UnicodeEncodeError:
        raise RecordError(
            kind, f"the {kind} {shown(text[:40])} is not UTF-8. Rename the folder, or give --{kind}."
        ) from None
    except RecordError as error:
        raise RecordError(kind, f"the {kind} {error.detail}") from None


def shown(name: str | Path) -> str:
    """A name as a terminal may have it: what is no text, or would steer it, becomes an escape."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in str(name))


def _content(path: Path, limit: int) -> bytes:
    """Raises: RecordError: it cannot be read, is empty or too large."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise RecordError("undecodable", "not a file. Name files and folders.")
        if found.st_size <= limit:
            with path.open("rb") as file:
                value = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RecordError("undecodable", f"{why}. Give a file that can be read.") from None
    if found.st_size > limit or len(value) > limit:
        raise RecordError(
            "too-large",
            f"{found.st_size:,} bytes, over kafka.max_bytes = {limit:,}. Make it smaller, or raise the limit "
            "there and in the topic's max.message.bytes.",
        )
    if not value:
        raise RecordError("empty", "it is empty. Fill it, or leave it out.")
    return value
