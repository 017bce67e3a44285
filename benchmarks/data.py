"""What the benchmarks publish: scikit-learn's digits as 28×28 pictures, each shifted anew, and Django's messages."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consumers.demo.data import png, text_stream, texts
from pipeline.config import KafkaConfig
from pipeline.log.publisher import Publisher
from pipeline.log.topics import ensure_topics

SIZE = 28
MAX_SHIFT = 2  # pixels, each way
PICTURE: Mapping[str, Any] = {"kind": "image", "size": SIZE, "channels": 1}
TEXT: Mapping[str, Any] = {"kind": "text"}

Sent = tuple[bytes, str]  # value, label


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures and their labels."""

    x: NDArray[np.uint8]  # (N, 1, 28, 28)
    labels: list[str]

    def records(self) -> Iterator[Sent]:
        """The same as PNG files."""
        for picture, label in zip(self.x, self.labels, strict=True):
            yield png(Image.fromarray(picture[0])), label


def digits(count: int) -> Pictures:
    """`count` digits in random order, the same at every call."""
    from sklearn.datasets import load_digits  # the demo's dependency

    data = load_digits()
    grey = (data.images * 255 / 16).astype(np.uint8)  # (1797, 8, 8)
    inner = SIZE - 2 * MAX_SHIFT
    large = np.stack([np.asarray(Image.fromarray(g).resize((inner, inner), Image.Resampling.BICUBIC)) for g in grey])
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(large), count)
    shifts = rng.integers(0, 2 * MAX_SHIFT + 1, (count, 2))
    x = np.zeros((count, 1, SIZE, SIZE), np.uint8)
    for row, (number, (down, right)) in enumerate(zip(chosen, shifts, strict=True)):
        x[row, 0, down : down + inner, right : right + inner] = large[number]
    return Pictures(x, [str(target) for target in data.target[chosen]])


def messages(count: int) -> Iterator[Sent]:
    """`count` short texts in 24 languages and English."""
    stream = text_stream(texts(), random.Random(0))
    return ((sample.value, sample.label) for sample in islice(stream, count))


def publish(kafka: KafkaConfig, topic: str, records: Iterator[Sent]) -> None:
    """Fills a topic."""
    ensure_topics(kafka, [topic])
    with Publisher(kafka) as publisher:
        for value, label in records:
            publisher.publish(topic, value, headers=[("label", label.encode())])
        publisher.flush(60)
