"""What the sampler answers: the shapes of its JSON, and the forward passes behind them.

A new kind of answer is one function `(Live, items) → results` here and one route.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field

from models.capabilities import Classifier, Generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from consumers.serving import Follower, Live

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Standing(BaseModel):
    """Which version answers, and how new it is."""

    model: str
    version: int
    digest: str = Field(description="SHA-256 of the version's manifest")
    watermark: dict[str, dict[int, int]] = Field(description="topic → partition → the next offset to be read")
    freshness_s: float | None = Field(description="age of the newest learned record; an idle topic is no alarm")
    lag_records: int | None = Field(description="records that waited when the version was made")

    def headers(self) -> dict[str, str]:
        """The same for answers that are not JSON."""
        values = self.model_dump(exclude_none=True)
        return {
            f"X-Headrace-{name.replace('_', '-').title()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }


class Classified(Standing):
    """One record, classified."""

    label: str | None = Field(description="the most probable class; null before any class was learned")
    probability: float | None
    probabilities: dict[str, float] = Field(description="by class, the most probable first")


class Drawn(Standing):
    """What was drawn. Image i of a seed and label is the same, whatever n is and whatever else is asked."""

    seed: int
    label: str | None
    images: list[str] = Field(description="PNG files in base64")


class ModelState(BaseModel):
    """A model as it is served at this moment; what is null is not known before its first version."""

    model: str
    answers: list[str] = Field(description="the routes below this model that it answers: classify, generate")
    standing: Standing | None
    problem: str | None = Field(description="why the newest version is not the live one")
    created_ms: int | None = None
    learner: str | None = None
    input: dict[str, Any] | None = None
    classes: list[str] = []
    updates: int | None = None
    counts: dict[str, int] = Field({}, description="records by outcome")
    metrics: dict[str, float | None] = Field({}, description="prequential: predicted first, then learned")


class Version(BaseModel):
    """One version that the store still holds."""

    version: int
    digest: str
    aliases: list[str]


class AliasTarget(BaseModel):
    """The version that an alias names from now on."""

    version: int = Field(ge=1, lt=2**53)


def standing(live: Live, now_s: float) -> dict[str, Any]:
    """The fields of `Standing`."""
    manifest = live.manifest
    newest_ms, lag = manifest.newest_timestamp_ms, manifest.metrics.get("lag_records")
    return {
        "model": manifest.model,
        "version": manifest.version,
        "digest": live.digest,
        "watermark": manifest.watermark,
        "freshness_s": None if newest_ms is None else max(0.0, round(now_s - newest_ms / 1000, 3)),
        "lag_records": None if lag is None else int(lag),
    }


def model_state(name: str, follower: Follower, now_s: float) -> ModelState:
    """What there is to say about a model at this moment."""
    live = follower.live
    if live is None:
        return ModelState(model=name, answers=[], standing=None, problem=follower.problem or "It has no version yet.")
    manifest = live.manifest
    return ModelState(
        model=name,
        answers=capabilities(live),
        standing=Standing(**standing(live, now_s)),
        problem=follower.problem,
        created_ms=manifest.created_ms,
        learner=manifest.learner,
        input=manifest.input,
        classes=manifest.classes,
        updates=manifest.updates,
        counts=manifest.counts,
        metrics=manifest.metrics,
    )


def capabilities(live: Live) -> list[str]:
    """The routes that this model answers."""
    kinds = {"classify": Classifier, "generate": Generator}
    return [route for route, kind in kinds.items() if isinstance(live.model, kind)]


def classify(live: Live, xs: Sequence[NDArray[Any]]) -> list[list[float]]:
    """B arrays as the model's input wants them → B × K probabilities, in the order of the model's classes."""
    assert isinstance(live.model, Classifier)  # noqa: S101 - the route checks it
    probabilities: list[list[float]] = live.model.classify(torch.from_numpy(np.stack(xs))).tolist()  # (B, K)
    return probabilities


def classified(live: Live, probabilities: Sequence[float], now_s: float) -> Classified:
    """The answer for one record."""
    ranked = sorted(zip(live.model.classes, probabilities, strict=True), key=lambda pair: -pair[1])
    label, probability = ranked[0] if ranked else (None, None)
    return Classified(**standing(live, now_s), label=label, probability=probability, probabilities=dict(ranked))


@dataclass(frozen=True, slots=True)
class Drawing:
    """One request for drawings."""

    seeds: Sequence[int]
    label: str | None


def image_seeds(seed: int, n: int) -> list[int]:
    """The seed of image i is a function of (seed, i) alone."""
    digests = [hashlib.blake2b(f"{seed}:{i}".encode(), digest_size=8).digest() for i in range(n)]
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]


def draw(live: Live, drawings: Sequence[Drawing]) -> list[NDArray[np.uint8]]:
    """Each request's (n, C, H, W) uint8, all drawn in one pass."""
    assert isinstance(live.model, Generator)  # noqa: S101 - the route checks it
    seeds = [seed for drawing in drawings for seed in drawing.seeds]
    labels = [drawing.label for drawing in drawings for _ in drawing.seeds]
    drawn = live.model.generate(seeds, labels).numpy()  # (N, C, H, W)
    ends = np.cumsum([len(drawing.seeds) for drawing in drawings])
    return np.split(drawn, ends[:-1])


def png(image: NDArray[np.uint8]) -> bytes:
    """(C, H, W) → a PNG file."""
    channels = image.shape[0]
    pixels = np.ascontiguousarray(image[0] if channels == 1 else image.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(pixels, MODES[channels]).save(file, "PNG")
    return file.getvalue()


def grid(images: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """(n, C, H, W) → one (C, rows × H, columns × W), as square as it gets; places that stay empty are 0."""
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = np.zeros((rows * columns, channels, height, width), np.uint8)
    cells[:n] = images
    cells = cells.reshape(rows, columns, channels, height, width)
    return cells.transpose(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
