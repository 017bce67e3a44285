"""Records as the log holds them, and what they decode to.

The public format has no envelope: a record's value *is* the picture (see `pipeline.images`) or the UTF-8
text. A few headers are optional, and UTF-8:

| header | meaning |
|---|---|
| `content-type` | agrees with what the model reads: `image/*`, `text/*`, or `application/octet-stream` |
| `label` | the class, 1 to 200 characters |
| `id` | the producer's name of the record, 1 to 200 characters; else "topic:partition:offset" |

White space and byte-order marks around them are dropped; control characters and line breaks are refused.

If a header is there twice, the last one counts. Two more are in front of all others where a dead letter was
requeued (see `pipeline.log.dead_letters`); of these the first one counts:

| header | meaning |
|---|---|
| `headrace-origin` | "topic:partition:offset" of the record that the model could not learn then |
| `headrace-for` | the only model that shall learn this one: the others had the original |

The format of a picture is told by its own bytes alone.
Texts: a byte-order mark is dropped, nothing else is stripped; of what is longer than `max_chars` most models read
the beginning, those that read texts of any length all of it; an empty one is refused, for nothing can be learned from
it, and so is one with U+0000: it fills up short texts.

Texts, labels and ids that look the same are the same: they are composed (Unicode's form NFC), whether a letter and its
accent came as one character or, as from macOS's file names, as two.

A record that cannot be learned raises `RecordError` with one of these reasons, values of a metric's label:

| reason | meaning |
|---|---|
| `undecodable` | neither a picture of a known format nor UTF-8 text, or damaged |
| `too-large` | over `max_bytes` or `max_pixels` |
| `empty` | a text without characters |
| `content-type` | another kind of record than the model reads, or another charset than UTF-8 |
| `label` | not UTF-8, with control characters, or not of 1 to 200 characters |
| `id` | the same, for the id |
| `decoder` | the user's decoder raised, or gave something else than a `Payload` that fits the model |

A user's decoder may raise it, too, with one of these; any other is `decoder`, and leads the detail. Where it does not
return at all, the worker's reason is `stalled`.

Where a model has a topic of labels (`models.NAME.labels`), a record of that topic is a label: its value is the label,
its `id` header, or else its key, the id of the record that it is for; all UTF-8.

One that is fine but not for this model is `Skipped`: `tombstone` (no value), `requeued` (`headrace-for` names
another model) or `unlabelled` (the learner needs a label); nothing else of the record is looked at.

A topic that already carries something else needs a decoder, a function of a `Record` that returns a `Payload`, named in
the configuration; docs/publish.md has one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ConfigError, RecordError
from pipeline.images import ImageInput
from pipeline.inputs import Content, Input, error_text
from pipeline.own_code import own
from pipeline.texts import BYTE_ORDER_MARK, TextInput, composed

#: The kinds of record that a model can read, by the `kind` of its input.
KINDS: dict[str, type[Input]] = {"image": ImageInput, "text": TextInput}

MAX_NAME_CHARS = 200  # of a label or an id
REASONS = ("undecodable", "too-large", "empty", "content-type", "label", "id", "decoder")
CONTROLS = ("Cc", "Zl", "Zp", "Cs")  # Unicode's categories of controls, separators of lines, halves of characters
POSITION = re.compile(r"([A-Za-z0-9._-]{1,249}):([0-9]{1,10}):([0-9]{1,18})")
ORIGIN, FOR = "headrace-origin", "headrace-for"  # headers of a requeued record


class Partition(NamedTuple):
    """One ordered part of a topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic} partition {self.number}"


class Place(NamedTuple):
    """Where a record is in the log."""

    partition: Partition
    offset: int

    def __str__(self) -> str:
        return f"{self.partition.topic}:{self.partition.number}:{self.offset}"

    @classmethod
    def parsed(cls, text: str) -> Place:
        """The place that is written so.

        Raises:
            ConfigError: it is no place.
        """
        if (found := POSITION.fullmatch(text)) is None:
            raise ConfigError(f"{text[:80]!r} is no position of a record. Give it as topic:partition:offset.")
        return cls(Partition(found[1], int(found[2])), int(found[3]))


@dataclass(frozen=True, slots=True)
class Record:
    """A record as Kafka holds it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    fault: RecordError | None = field(default=None, compare=False)  # why it could not be read; it has no value then

    @property
    def place(self) -> Place:
        """As text also the id of a record that its producer gave none."""
        return Place(Partition(self.topic, self.partition), self.offset)


@dataclass(frozen=True, slots=True)
class Payload:
    """What a decoder makes of a record: the picture or text itself, and what is known about it."""

    content: Content
    label: str | None = None
    id: str | None = None
    content_type: str | None = None


#: Called with records that have a value; raises `RecordError` for what it cannot read.
PayloadDecoder = Callable[[Record], Payload]


@dataclass(frozen=True, slots=True)
class Example:
    """A record that can be learned."""

    record: Record
    x: NDArray[Any]  # (C, H, W) uint8, or (L,) int32: of a text its beginning
    label: str | None
    id: str
    label_record: Record | None = None  # that the label came with, where it came later
    is_cut: bool = False  # a text of which the model reads no more than x
    whole: NDArray[np.int32] | None = None  # (n,), a text that is longer than x, where the model reads all of it

    @property
    def held_out_by(self) -> str:
        """The text that decides whether it is held out: its id, or without one of its own, its content."""
        places = (str(self.record.place), *(v.decode(errors="replace") for n, v in self.record.headers if n == ORIGIN))
        return content_id(self.record.value or b"") if self.id in places else self.id

    @property
    def records(self) -> tuple[Record, ...]:
        """The record, and the label's behind it."""
        return (self.record,) if self.label_record is None else (self.record, self.label_record)


@dataclass(frozen=True, slots=True)
class Label:
    """A label that comes by itself."""

    record: Record
    label: str
    id: str  # of the record that it is for


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that is fine, but not for this model."""

    record: Record
    reason: str  # "tombstone", "requeued", "unlabelled" or "label-replaced"


def as_input(described: object) -> Input:
    """The input that a table of the configuration or of a manifest describes.

    Raises:
        ValueError: it is of no kind that there is, or does not fit its kind.
    """
    if isinstance(described, Input):
        return described
    kind = described.get("kind") if isinstance(described, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind = {kind!r:.40} is none of {', '.join(map(repr, KINDS))}: set one")
    return KINDS[kind].model_validate(described)


@dataclass(frozen=True)
class RecordDecoder:
    """Record → example, for one model. Holds no state: threads may share it.

    Without the `model`'s name it decodes what was requeued for any model. With `labels`, the topic of labels, records
    may come without one. A model that `reads_whole` is given all of a text that is longer than `max_chars`.
    """

    input: Input
    _: KW_ONLY
    needs_label: bool
    decode: PayloadDecoder | None = None
    model: str | None = None
    labels: str | None = None
    reads_whole: bool = False

    def __call__(self, record: Record) -> Example | Label | Skipped:
        """
        Raises:
            RecordError: with a reason of the table above.
        """
        if record.fault is not None:
            raise record.fault
        if record.value is None:
            return Skipped(record, "tombstone")
        if self.model is not None and record.headers:
            ours = self.model.encode()
            if next((value for name, value in record.headers if name == FOR), ours) != ours:
                return Skipped(record, "requeued")
        if record.topic == self.labels:
            return label_in(record)
        payload = (self.decode or from_headers)(record)
        if payload.label is None and self.needs_label and self.labels is None:
            return Skipped(record, "unlabelled")
        label = None if payload.label is None else name_of("label", payload.label)
        id_ = str(record.place) if payload.id is None else name_of("id", payload.id)
        x = input_array(payload.content, self.input, payload.content_type, whole=True)
        return self._example(Example(record, x, label, id_))

    def _example(self, example: Example) -> Example:
        """What the model reads of one that is whole."""
        if example.x.shape == self.input.shape:
            return example
        start = example.x[: self.input.shape[0]].copy()  # else it keeps the rest in memory
        if self.reads_whole:
            return replace(example, x=start, whole=example.x)
        return replace(example, x=start, is_cut=True)


def label_in(record: Record) -> Label:
    """The label in a record of a topic of labels that has a value.

    Raises:
        RecordError: "label" or "id".
    """
    assert record.value is not None  # noqa: S101 - tombstones are not decoded
    id_ = _text(dict(record.headers), "id")
    if id_ is None:
        if record.key is None:
            raise RecordError("id", "a label without id header and key. Name the record that it is for.")
        id_ = _utf8("id", record.key)
    return Label(record, name_of("label", _utf8("label", record.value)), name_of("id", id_))


def labelled(record: Record, label: Record) -> Record:
    """The record with a label of its own, from a record of a topic of labels that was decoded."""
    assert label.value is not None  # noqa: S101 - it was decoded
    return replace(record, headers=(*record.headers, ("label", label.value)))


def from_headers(record: Record) -> Payload:
    """The public format: the value is the payload, headers say the rest."""
    assert record.value is not None  # noqa: S101 - tombstones are not decoded
    if not record.headers:
        return Payload(record.value)
    headers = dict(record.headers)
    return Payload(
        record.value,
        label=_text(headers, "label"),
        id=_text(headers, "id"),
        content_type=_text(headers, "content-type"),
    )


def input_array(
    content: Content, input: Input, content_type: str | None = None, *, whole: bool = False
) -> NDArray[Any]:
    """What a model is fed with, the same in worker and sampler: (C, H, W) uint8 or (L,) int32.

    Args:
        whole: of a text that is longer than `max_chars`, all of it.

    Raises:
        RecordError: with a reason of the table above.
    """
    if content_type is not None:
        _check_content_type(content_type, input)
    return input.array(content, whole=whole)


def content_id(value: bytes) -> str:
    """The name of a record that its producer gave none: the same for the same content."""
    return hashlib.blake2b(value, digest_size=16).hexdigest()


def load_decoder(path: str) -> PayloadDecoder:
    """The function named "module:function" in the configuration, held to the contract of `PayloadDecoder`.

    Raises:
        ConfigError: there is no such function.
    """
    advice = 'Name a function that takes a Record and returns a Payload, as "module:function".'
    function = own("decoder", path, advice)
    if not callable(function):
        raise ConfigError(f'decoder = "{path}" cannot be called. {advice}')

    def decode(record: Record) -> Payload:
        try:
            return _checked(function(record), path)
        except RecordError as error:
            raise _limited(error) from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - foreign code ends its record, not the worker
            raise RecordError("decoder", f"{path} raised {error_text(error)}.") from None

    return decode


def _checked(payload: object, path: str) -> Payload:
    """What foreign code gave, if it kept to the types of `Payload`, which nothing checked so far."""
    if (
        not isinstance(payload, Payload)
        or not isinstance(payload.content, bytes | str | Image.Image)
        or not all(isinstance(field, str | None) for field in (payload.label, payload.id, payload.content_type))
    ):
        raise RecordError("decoder", f"{path} did not give a Payload of the right types: {payload!r:.200}")
    return payload


def _limited(error: RecordError) -> RecordError:
    """A reason is a label of a metric: one of few."""
    if error.reason in REASONS:
        return RecordError(error.reason, str(error.detail))
    return RecordError("decoder", f"{error.reason}: {error.detail}")


def _text(headers: dict[str, bytes], name: str) -> str | None:
    raw = headers.get(name)
    return None if raw is None else _utf8(name, raw)


def _utf8(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RecordError(name, f"it is not UTF-8: {error}.") from None


def id_in(record: Record) -> str | None:
    """The record's `id` header as it is known; None where there is none, or one that is refused."""
    try:
        text = _text(dict(record.headers), "id")
        return None if text is None else name_of("id", text)
    except RecordError:
        return None


def headers_of(content_type: str | None, label: str | None, id: str | None) -> tuple[tuple[str, bytes], ...]:
    """The headers of the public format, of what is known about a record."""
    named = {"content-type": content_type, "label": label, "id": id}
    return tuple((name, text.encode()) for name, text in named.items() if text is not None)


def name_of(kind: str, text: str) -> str:
    """A label or an id as it is known: composed, without what surrounds it.

    Raises:
        RecordError: with `kind` as its reason.
    """
    try:
        found = composed(text.strip().strip(BYTE_ORDER_MARK).strip())
    except RecordError as error:
        raise RecordError(kind, error.detail) from None
    if not 0 < len(found) <= MAX_NAME_CHARS:
        raise RecordError(kind, f"{text[:40]!r}, {len(found)} characters: use 1 to {MAX_NAME_CHARS}.")
    if bad := [char for char in found if unicodedata.category(char) in CONTROLS]:
        raise RecordError(kind, f"{text[:40]!r} holds {bad[0]!a}: leave out control characters and line breaks.")
    return found


def _check_content_type(content_type: str, input: Input) -> None:
    """RFC 9110, section 8.3: type "/" subtype *( ";" name "=" value ), case-insensitive."""
    media, _, parameters = content_type.partition(";")
    media = media.strip().lower()
    if media != "application/octet-stream" and not fnmatchcase(media, input.media):
        raise RecordError("content-type", f"it is {content_type[:80]!r}, and the model reads {input.media}.")
    for parameter in parameters.lower().split(";") if input.media == "text/*" else ():
        name, _, value = parameter.strip().partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise RecordError("content-type", f"{content_type[:80]!r}: publish texts as UTF-8.")
