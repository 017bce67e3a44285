"""The forward passes behind the sampler's answers, and what there is to say about its models.

A new kind of answer is one shape in `pipeline/client/answers.py`, one function here, and one route. Functions
`(Live, items) → results` are for the batcher: what is asked of one version at one time comes in one call.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field

from models.capabilities import (
    Autoencoder,
    Classifier,
    Generator,
    Recogniser,
    Restorer,
    Restyler,
    TextGenerator,
)
from models.generator import between
from pipeline.client import Classified, Recognised, Standing
from pipeline.errors import NotFound, RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from consumers.sampler.service import Follower, Live
    from pipeline.store import Ref

#: route below a model → what the model must be able to do
ROUTES: dict[str, type | tuple[type, ...]] = {
    "classify": Classifier,
    "recognise": Recogniser,
    "generate": (Generator, TextGenerator),
    "interpolate": Generator,
    "strip": Generator,
    "encode": Autoencoder,
    "reconstruct": Autoencoder,
    "vary": Autoencoder,
    "complete": TextGenerator,
    "restore": Restorer,
    "restyle": Restyler,
}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
Answer = TypeVar("Answer")


class ModelState(BaseModel):
    """A model as it is served at this moment; what is null is not known before its first version."""

    model: str
    answers: list[str] = Field(description=f"the routes below this model that it answers, of: {', '.join(ROUTES)}")
    standing: Standing | None
    problem: str | None = Field(description="why the newest version is not the live one")
    created_ms: int | None = None
    learner: str | None = None
    input: dict[str, Any] | None = None
    classes: list[str] = []
    kinds: list[str] = Field([], description="of damage that it undoes")
    updates: int | None = None
    counts: dict[str, int] = Field({}, description="records by outcome")
    metrics: dict[str, float | None] = Field({}, description="prequential: predicted first, then learned")
    diagnoses: dict[str, str] = Field({}, description="why it does badly, if it does, and what to do")


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
        kinds=list(live.model.kinds) if isinstance(live.model, Restorer) else [],
        updates=manifest.updates,
        counts=manifest.counts,
        metrics=manifest.metrics,
        diagnoses=manifest.diagnoses,
    )


def capabilities(live: Live) -> list[str]:
    """The routes that this model answers."""
    return [route for route in ROUTES if is_able(live, route)]


def is_able(live: Live, route: str) -> bool:
    """Whether the model answers that route."""
    return isinstance(live.model, ROUTES[route])


def classify(live: Live, xs: Sequence[NDArray[Any]]) -> list[list[float]]:
    """B arrays as the model's input wants them → B × K probabilities, in the order of the model's classes."""
    model = live.model
    assert isinstance(model, Classifier)  # noqa: S101 - the route checks it
    return _alike(xs, lambda x: model.classify(x).tolist())


def _alike(xs: Sequence[NDArray[Any]], ask: Callable[[torch.Tensor], Iterable[Answer]]) -> list[Answer]:
    """What is answered to each record; long texts, which have other shapes, are asked of by themselves."""
    found: dict[int, Answer] = {}
    for shape in {x.shape for x in xs}:
        rows = [row for row, x in enumerate(xs) if x.shape == shape]
        found |= zip(rows, ask(torch.from_numpy(np.stack([xs[row] for row in rows]))), strict=True)
    return [found[row] for row in range(len(xs))]


def classified(live: Live, probabilities: Sequence[float], now_s: float) -> Classified:
    """The answer for one record."""
    ranked = sorted(zip(live.model.classes, probabilities, strict=True), key=lambda pair: -pair[1])
    label, probability = ranked[0] if ranked else (None, None)
    return Classified(**standing(live, now_s), label=label, probability=probability, probabilities=dict(ranked))


def recognise(live: Live, xs: Sequence[NDArray[Any]]) -> list[tuple[list[float], bool]]:
    """B arrays → for each the K probabilities, and whether it resembles none of the classes."""
    model = live.model
    assert isinstance(model, Recogniser)  # noqa: S101 - the route checks it
    return _alike(xs, lambda x: zip(*(answer.tolist() for answer in model.recognise(x)), strict=True))


def recognised(live: Live, result: tuple[Sequence[float], bool], now_s: float) -> Recognised:
    """The answer for one record."""
    probabilities, unknown = result
    answer = classified(live, probabilities, now_s).model_dump()
    if unknown or not probabilities:
        answer |= {"label": None, "probability": None}
    return Recognised(**answer, unknown=answer["label"] is None)


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


@dataclass(frozen=True, slots=True)
class Walk:
    """One request for the way between two drawings."""

    start: int  # the seed of one code
    end: int
    steps: int
    label: str | None


def interpolate(live: Live, walks: Sequence[Walk]) -> list[NDArray[np.uint8]]:
    """Each request's (steps, C, H, W) uint8."""
    assert isinstance(live.model, Generator)  # noqa: S101 - the route checks it
    drawn = []
    for walk in walks:
        start, end = live.model.latents([walk.start, walk.end])
        codes = between(start, end, walk.steps)  # (steps, Z)
        drawn.append(live.model.draw(codes, [walk.label] * walk.steps).numpy())
    return drawn


@dataclass(frozen=True, slots=True)
class Sight:
    """A picture (C, H, W) uint8 of the model's size, and what is in it where that is known."""

    x: NDArray[np.uint8]
    label: str | None


def encode(live: Live, sights: Sequence[Sight]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each the mean and standard deviation of its code, (Z,) float32 each."""
    assert isinstance(live.model, Autoencoder)  # noqa: S101 - the route checks it
    x = torch.from_numpy(np.stack([sight.x for sight in sights]))  # (B, C, H, W)
    means, deviations = live.model.encode(x, [sight.label for sight in sights])
    return list(zip(means, deviations, strict=True))


def reconstruct(live: Live, sights: Sequence[Sight]) -> list[NDArray[np.uint8]]:
    """For each what the model draws from the mean of its code: (1, C, H, W) uint8."""
    assert isinstance(live.model, Autoencoder)  # noqa: S101 - the route checks it
    means = torch.stack([mean for mean, _ in encode(live, sights)])  # (B, Z)
    return list(live.model.draw(means, [sight.label for sight in sights]).numpy()[:, None])


@dataclass(frozen=True, slots=True)
class Variation:
    """One request for variations of a picture."""

    sight: Sight
    seeds: Sequence[int]
    strength: float


def vary(live: Live, variations: Sequence[Variation]) -> list[NDArray[np.uint8]]:
    """Each request's (n, C, H, W) uint8, drawn from the codes √(1 - s²) · μ + s · ε, ε ~ N(0, I) of the seeds.

    Where the pictures' codes are spread as N(0, I), these are too: s = 0 is the reconstruction, s = 1 a new drawing.
    """
    assert isinstance(live.model, Autoencoder)  # noqa: S101 - the route checks it
    drawn = []
    for variation in variations:
        [(mean, _)] = encode(live, [variation.sight])
        kept = math.sqrt(1 - variation.strength**2)
        codes = kept * mean + variation.strength * live.model.latents(variation.seeds)  # (n, Z)
        drawn.append(live.model.draw(codes, [variation.sight.label] * len(codes)).numpy())
    return drawn


def restore(live: Live, x: NDArray[np.uint8], kind: str | None, holes: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """x (C, H, W) uint8 of any size, holes (1, H, W) → (C, H, W) uint8."""
    assert isinstance(live.model, Restorer)  # noqa: S101 - the route checks it
    missing = None if holes is None else torch.from_numpy(holes)[None]
    return live.model.restore(torch.from_numpy(np.stack([x])), [kind], missing)[0].numpy()


def restyle(live: Live, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """x (C, H, W) uint8 of any size → the same shape."""
    assert isinstance(live.model, Restyler)  # noqa: S101 - the route checks it
    return live.model.restyle(torch.from_numpy(np.stack([x])))[0].numpy()


def strip(
    follower: Follower, refs: Sequence[Ref | str], seeds: Sequence[int], label: str | None, whole: bool
) -> tuple[Live, NDArray[np.uint8], list[int]]:
    """The newest of the versions, (seeds × versions, C, H, W) uint8: what each draws from the same codes; and which.

    One version is loaded at a time, drawn, and let go. Black is what a version that had not learned the label draws.

    Args:
        whole: all of them were asked for by name; else those that are removed meanwhile are left out.

    Raises:
        RecordError: none of them had learned the label.
        StoreError: a version cannot be loaded.
    """
    newest: Live | None = None
    columns: dict[int, NDArray[np.uint8] | None] = {}
    for ref in refs:
        try:
            live = _version(follower, ref)
        except NotFound:
            if whole:
                raise
            continue
        assert isinstance(live.model, Generator)  # noqa: S101 - one model's versions are of one learner
        knows = label is None or label in live.model.classes
        drawing = live.model.generate(seeds, [label] * len(seeds)).numpy() if knows else None
        columns[live.manifest.version] = drawing
        if newest is None or live.manifest.version > newest.manifest.version:
            newest = live
    drawn = next((column for column in columns.values() if column is not None), None)
    if newest is None or drawn is None:
        raise RecordError("label", f"none of these versions had learned {label}.")
    filled = [np.zeros_like(drawn) if column is None else column for column in columns.values()]
    return newest, np.stack(filled, 1).reshape(-1, *drawn.shape[1:]), list(columns)


def _version(follower: Follower, ref: Ref | str) -> Live:
    """That version, loaded if it is not the live one."""
    manifest, live = follower.store.manifest(ref), follower.live
    return live if live is not None and live.digest == manifest.digest else follower.load(manifest)


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
