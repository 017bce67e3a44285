"""What the soak publishes, and what has to become of it."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from pipeline.records import Payload, Record

PICTURES, TEXTS, LABELS = "soak-pictures", "soak-texts", "soak-labels"
PARTITIONS = 3  # of each
SIDE = 8  # pixels
MAX_BYTES = 512
CLASSES = 4
KIND = "soak-kind"  # a header, for the checker

GOOD, UNLABELLED, TOMBSTONE, BROKEN, LARGE = "good", "unlabelled", "tombstone", "broken", "large"
MISSING, BETTER = "missing", "better"  # labels: of texts that came without one, and in place of another one

LABELLED: Mapping[str, str] = {
    GOOD: "learned",
    UNLABELLED: "skipped/unlabelled",
    TOMBSTONE: "skipped/tombstone",
    BROKEN: "dead-lettered/undecodable",
    LARGE: "dead-lettered/too-large",
}
ALL: Mapping[str, str] = {**LABELLED, UNLABELLED: "learned"}
JOINED: Mapping[str, str] = {**ALL, MISSING: "joined", BETTER: "corrected"}
COUNTED: Mapping[str, str] = {**ALL, BROKEN: "dead-lettered/decoder", LARGE: "learned"}


@dataclass(frozen=True, slots=True)
class Sent:
    """One record, as it is published."""

    value: bytes | None
    key: bytes
    headers: list[tuple[str, bytes]]


def kind_of(number: int) -> str:
    """Most are good."""
    for every, kind in ((41, TOMBSTONE), (37, BROKEN), (29, LARGE), (11, UNLABELLED)):
        if number % every == 0:
            return kind
    return GOOD


def picture(number: int) -> Sent:
    """A small PNG of its class's shade, with noise."""
    rng = random.Random(number)
    shade = 60 * (number % CLASSES)
    pixels = bytes(shade + rng.randrange(40) for _ in range(SIDE * SIDE))
    file = io.BytesIO()
    Image.frombytes("L", (SIDE, SIDE), pixels).save(file, "PNG")
    return _sent(number, file.getvalue())


def text(number: int) -> Sent:
    """A few words of its class."""
    words = ("river mill", "stone wheel", "water gate", "wooden trough")[number % CLASSES]
    return _sent(number, f"{words} {number}".encode())


def label(number: int) -> Sent | None:
    """What comes in the labels' topic for a text, if anything does."""
    kind = {UNLABELLED: MISSING, GOOD: BETTER if number % 17 == 0 else None}.get(kind_of(number))
    if kind is None:
        return None
    name = f"class {(number + (kind == BETTER)) % CLASSES}"
    return Sent(name.encode(), str(number).encode(), [(KIND, kind.encode())])


def numbered(record: Record) -> Payload:
    """The counting learner's decoder: the number of a record of either topic, whatever else it holds."""
    headers = dict(record.headers)
    if headers[KIND] == BROKEN.encode():
        raise ValueError("broken")
    return Payload(headers["id"].decode())


def _sent(number: int, value: bytes) -> Sent:
    kind = kind_of(number)
    headers = [("id", str(number).encode()), (KIND, kind.encode())]
    if kind != UNLABELLED:
        headers.append(("label", f"class {number % CLASSES}".encode()))
    changed: dict[str, bytes | None] = {TOMBSTONE: None, BROKEN: b"\xff\xfe broken", LARGE: value + b"." * MAX_BYTES}
    return Sent(changed.get(kind, value), str(number).encode(), headers)
