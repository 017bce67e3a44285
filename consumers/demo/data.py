"""The demo's two streams: real data that comes with packages (scikit-learn's digits, Django's messages).

What is held out is never published.
"""

from __future__ import annotations

import gettext
import io
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

#: one in this many digits and texts is held out
HOLD_OUT_EVERY = 8
DIGIT_PIXELS = 16

# Written out, so that what "24 languages and English" means does not change with Django's version.
LANGUAGES = (
    "ar", "bg", "cs", "da", "de", "el", "es", "fi", "fr", "he", "hu", "it", "ja", "ko", "nl", "pl", "pt", "ro", "ru",
    "sv", "tr", "uk", "vi", "zh_Hans",
)  # fmt: skip
MARKUP = re.compile(r"%\([^)]*\)[.\d]*\w?|%[sd]|\{[^}]*\}|<[^>]*>")


@dataclass(frozen=True, slots=True)
class Sample:
    """One record to publish: the payload as a stranger would send it, and its label."""

    value: bytes
    label: str
    content_type: str


@dataclass(frozen=True, slots=True)
class Split:
    """Samples for the stream, and samples that are only measured on."""

    published: list[Sample]
    held_out: list[Sample]


def digits() -> Split:
    """scikit-learn's 1,797 handwritten digits (8×8, 17 grey levels), as 16×16 PNG."""
    from sklearn.datasets import load_digits  # the demo's dependency alone

    data = load_digits()
    pictures = [Image.fromarray((image * 255 / 16).astype(np.uint8)) for image in data.images]
    larger = [picture.resize((DIGIT_PIXELS, DIGIT_PIXELS), Image.Resampling.BICUBIC) for picture in pictures]
    samples = [Sample(png(p), str(t), "image/png") for p, t in zip(larger, data.target, strict=True)]
    return _split(samples)


def texts() -> Split:
    """Django's messages in English and 24 languages: 20–400 characters, no text in two languages."""
    import django  # the demo's dependency alone

    root = Path(django.__file__).parent
    languages: dict[str, set[str]] = {}
    for path in sorted(root.glob("**/locale/*/LC_MESSAGES/django.mo")):
        label = path.parts[-3]
        if label not in LANGUAGES:
            continue
        with path.open("rb") as file:
            catalog = gettext.GNUTranslations(file)
        # The catalogue as gettext parsed it: {(message, plural index) or message: translation}.
        for source, translation in catalog._catalog.items():  # type: ignore[attr-defined]
            message = source if isinstance(source, str) else source[0]
            languages.setdefault("en", set()).add(_plain(message))
            languages.setdefault(label, set()).add(_plain(translation))
    seen: dict[str, int] = {}
    for messages in languages.values():
        for message in messages:
            seen[message] = seen.get(message, 0) + 1
    samples = [
        Sample(message.encode(), label, "text/plain")
        for label, messages in sorted(languages.items())
        for message in sorted(messages)
        if 20 <= len(message) <= 400 and seen[message] == 1
    ]
    return _split(samples)


def digit_stream(split: Split, rng: random.Random, *, already: int = 0) -> Iterator[Sample]:
    """Each digit once in random order, then for ever with small random shifts and turns.

    `already`: how many the topic holds from an earlier run.
    """
    yield from rng.sample(split.published, max(0, len(split.published) - already))
    while True:
        sample = rng.choice(split.published)
        picture = Image.open(io.BytesIO(sample.value))
        shift = (rng.randint(-1, 1), rng.randint(-1, 1))
        turned = picture.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR, translate=shift)
        yield Sample(png(turned), sample.label, sample.content_type)


def text_stream(
    split: Split, rng: random.Random, *, already: int = 0, first: int = 6, every: int = 400
) -> Iterator[Sample]:
    """Texts in `first` languages, and one language more after every `every` texts, for ever.

    `already`: how many the topic holds from an earlier run.
    """
    by_language: dict[str, list[Sample]] = {}
    for sample in split.published:
        by_language.setdefault(sample.label, []).append(sample)
    order = ["en", *rng.sample(sorted(set(by_language) - {"en"}), len(by_language) - 1)]
    for count in itertools.count(already):
        arrived = order[: first + count // every]
        yield rng.choice(by_language[rng.choice(arrived)])


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _plain(message: str) -> str:
    """The message without placeholders and markup: they give a language away, or hide it."""
    return " ".join(MARKUP.sub(" ", message).split())


def _split(samples: list[Sample]) -> Split:
    """Every eighth of a shuffled order is held out; the order is fixed, so that a restart holds out the same ones."""
    shuffled = random.Random(8).sample(samples, len(samples))  # noqa: S311 - not a secret
    held_out = shuffled[::HOLD_OUT_EVERY]
    published = [sample for i, sample in enumerate(shuffled) if i % HOLD_OUT_EVERY]
    return Split(published, held_out)
