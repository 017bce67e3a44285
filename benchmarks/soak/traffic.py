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
LETTER_BYTES = 2000  # that a dead-letter topic takes
ODD = (  # neither pictures nor texts, each in its way
    b"\xff\xfe broken",
    b"\x89PNG\r\n\x1a\n\xff" + bytes(9),
    b"GIF89a\0\0\0\0\0\0\0\xff;",
    b"RIFF\x04\0\0\0WEBP\xff",
    b"BM\xff" + bytes(60),
)
KIND = "soak-kind"  # a header, for the checker

GOOD, UNLABELLED, TOMBSTONE, BROKEN, LARGE = "good", "unlabelled", "tombstone", "broken", "large"
HUGE = "huge"  # before it is compressed
MISSING, BETTER = "missing", "better"  # labels: of texts that came without one, and in place of another one

LABELLED: Mapping[str, str] = {
    GOOD: "learned",
    UNLABELLED: "skipped/unlabelled",
    TOMBSTONE: "skipped/tombstone",
    BROKEN: "dead-lettered/undecodable",
    LARGE: "dead-lettered/too-large",
    HUGE: "dead-lettered/too-large",
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
    ahead_s: float = 0.0  # of the producer's clock


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
    return Sent(name.encode(), str(number).encode(), [(KIND, kind.encode())], _ahead_s(number))


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
    noise = random.Random(number).randbytes(LETTER_BYTES)  # too large for a dead letter, too
    changed: dict[str, bytes | None] = {
        TOMBSTONE: None,
        BROKEN: ODD[number % len(ODD)],
        LARGE: value + noise[: LETTER_BYTES if number % 2 else MAX_BYTES],
    }
    return Sent(changed.get(kind, value), str(number).encode(), headers, _ahead_s(number))


def _ahead_s(number: int) -> float:
    return 3000.0 if number % 23 == 0 else 0.0
