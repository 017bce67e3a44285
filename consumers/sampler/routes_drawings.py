"""The sampler's routes that draw, and that find the codes of pictures.

Functions `(Live, items) → results` are for the batcher: what is asked of one version at one time comes in one call.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator

from consumers.sampler.abilities import COMPLETE, ENCODE, GENERATE, INTERPOLATE, RECONSTRUCT, STRIP, VARY, able
from consumers.sampler.after import FRESH
from consumers.sampler.examples import INFO, MODEL, PNG, Either, RouteExample
from consumers.sampler.pictures import described, shown
from consumers.sampler.routes_texts import WRITTEN, any_seed, seeds_of, write
from consumers.sampler.service import Service, ServiceOf
from consumers.sampler.uploads import PICTURE, payload
from models.capabilities import Generator
from models.images import between
from pipeline.client import Code, Drawn, Interpolated, Pictures, Strip, Written
from pipeline.errors import NotFound, RecordError
from pipeline.records import input_array
from pipeline.texts import composed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from numpy.typing import NDArray

    from consumers.sampler.follower import Follower, Live
    from models.capabilities import Autoencoder
    from pipeline.store import Ref

Seed = Annotated[int | None, Query(ge=0, lt=2**63, description="the same seed draws the same; default: any")]
Label = Annotated[Annotated[str, AfterValidator(composed)] | None, Query(description="a class of the model")]
Format = Annotated[Literal["png", "json"], Query(alias="format", description="one PNG, or JSON with single ones")]
OR_FEWER = "default: {}, or fewer where the sampler says so"
UPLOAD = {"requestBody": {"content": PICTURE}}
REFS = r"^[A-Za-z0-9._-]{1,100}(,[A-Za-z0-9._-]{1,100})*$"
DRAWN = {**INFO, "model": "drawings", "images": [PNG], "seed": 7, "label": "7"}
EXAMPLES = {
    f"{MODEL}/generate": RouteExample(Either({"pictures": DRAWN, "texts": WRITTEN})),
    f"{MODEL}/interpolate": RouteExample({**DRAWN, "to": 8}),
    f"{MODEL}/strip": RouteExample({**DRAWN, "versions": [31]}),
    f"{MODEL}/vary": RouteExample(DRAWN),
    f"{MODEL}/encode": RouteExample(
        {**INFO, "model": "drawings", "label": "7", "mean": [0.4, -1.2], "std": [0.1, 0.3]}
    ),
}
router = APIRouter(tags=["answers"], dependencies=FRESH)


@router.get("/models/{model}/generate", response_model=Drawn | Written, responses=described(Drawn))
async def get_generate(
    model: str,
    service: ServiceOf,
    n: Annotated[
        int | None, Query(ge=1, description=f"how many; {OR_FEWER.format('16 pictures, or one text')}")
    ] = None,
    label: Label = None,
    seed: Seed = None,
    format_: Format = "png",
) -> Response:
    """Draw n pictures, as one PNG grid or as JSON, or write n texts, as JSON.

    Picture or text i depends on version, seed, i and label alone.
    """
    live = service.live(model, GENERATE)
    service.check_label(live, label)
    seed = any_seed(seed)
    if (drawing := able(live, Generator)) is None:
        return JSONResponse((await write(service, COMPLETE.of(live), n, seed)).model_dump(mode="json"))
    n = service.bounded("n", n, 16, service.config.max_samples)
    with service.admitted():
        images = await service.batched(draw, drawing, Drawing(seeds_of(seed, n), label), n)  # (n, C, H, W)
        fields = {"seed": seed, "label": label}
        return await shown(service, live, Drawn, fields, images, format_)


@router.get("/models/{model}/interpolate", response_model=Interpolated, responses=described(Interpolated))
async def get_interpolate(
    model: str,
    service: ServiceOf,
    seed: Seed = None,
    to: Annotated[int | None, Query(ge=0, lt=2**63, description="the seed at the other end; default: any")] = None,
    steps: Annotated[int | None, Query(ge=2, description=f"pictures, both ends included; {OR_FEWER.format(8)}")] = None,
    label: Label = None,
    format_: Format = "png",
) -> Response:
    """Draw the way from image 0 of one seed to image 0 of another, as one PNG row or as JSON."""
    live = service.live(model, INTERPOLATE)
    service.check_label(live, label)
    steps = service.bounded("steps", steps, 8, service.config.max_samples)
    seed, to = any_seed(seed), any_seed(to)
    with service.admitted():
        walk = Walk(seeds_of(seed, 1)[0], seeds_of(to, 1)[0], steps, label)
        images = await service.batched(interpolate, live, walk, steps)  # (steps, C, H, W)
        fields = {"seed": seed, "label": label, "to": to}
        return await shown(service, live, Interpolated, fields, images, format_, steps)


@router.get("/models/{model}/strip", response_model=Strip, responses=described(Strip))
async def get_strip(
    model: str,
    service: ServiceOf,
    n: Annotated[int | None, Query(ge=1, description=f"how many codes: the rows; {OR_FEWER.format(4)}")] = None,
    versions: Annotated[
        str | None, Query(pattern=REFS, max_length=2000, description="numbers, aliases or digests: the columns")
    ] = None,
    last: Annotated[int | None, Query(ge=1, description=f"else so many of the newest; {OR_FEWER.format(8)}")] = None,
    label: Label = None,
    seed: Seed = None,
    format_: Format = "png",
) -> Response:
    """Draw a film-strip: the same codes, a row each, by many versions, a column each. It tells of the newest one."""
    live = service.live(model, STRIP)
    service.check_label(live, label)
    asked = list(dict.fromkeys(versions.split(","))) if versions else []
    most = service.config.max_samples
    given = len(asked) or last
    n = service.bounded("n", n, 4, most // min(given or 1, most))
    columns = service.bounded("versions", given, 8, min(service.config.max_versions, most // n))
    seed = any_seed(seed)
    follower = service.serving.follower(model)

    def drawn() -> tuple[Live[Generator], NDArray[np.uint8], list[int]]:
        refs = asked or follower.store.versions()[-columns:]
        return strip(follower, refs, seeds_of(seed, n), label, whole=bool(asked))

    with service.admitted():
        newest, images, numbers = await service.aside(live, drawn)
        fields = {"seed": seed, "label": label, "versions": numbers}
        return await shown(service, newest, Strip, fields, images, format_, len(numbers))


@router.post("/models/{model}/encode", openapi_extra=UPLOAD)
async def post_encode(model: str, request: Request, service: ServiceOf, label: Label = None) -> Code:
    """Find the latent code of a picture: mean and standard deviation of its posterior."""
    live = service.live(model, ENCODE)
    async with _sight(service, live, request, label) as sight:
        mean, std = await service.batched(encode, live, sight)
    return Code(**live.info(service.clock()), label=label, mean=mean.tolist(), std=std.tolist())


@router.post(
    "/models/{model}/reconstruct", response_class=Response, responses=described(Pictures), openapi_extra=UPLOAD
)
async def post_reconstruct(model: str, request: Request, service: ServiceOf, label: Label = None) -> Response:
    """Draw what the model makes of a picture: what it draws from the mean of the picture's code."""
    live = service.live(model, RECONSTRUCT)
    async with _sight(service, live, request, label) as sight:
        image = await service.batched(reconstruct, live, sight)
        return await shown(service, live, Pictures, {}, image)


@router.post("/models/{model}/vary", response_model=Drawn, responses=described(Drawn), openapi_extra=UPLOAD)
async def post_vary(
    model: str,
    request: Request,
    service: ServiceOf,
    n: Annotated[int | None, Query(ge=1, description=f"how many; {OR_FEWER.format(16)}")] = None,
    strength: Annotated[float, Query(ge=0, le=1, description="0: the reconstruction, 1: nothing of it")] = 0.5,
    label: Label = None,
    seed: Seed = None,
    format_: Format = "png",
) -> Response:
    """Draw n variations of a picture, as one PNG grid or as JSON.

    Variation i is drawn from √(1 - s²) · μ + s · ε: strength s, mean μ of the picture's code, code ε of image i.
    """
    live = service.live(model, VARY)
    n = service.bounded("n", n, 16, service.config.max_samples)
    seed = any_seed(seed)
    async with _sight(service, live, request, label) as sight:
        images = await service.batched(vary, live, Variation(sight, seeds_of(seed, n), strength), n)  # (n, C, H, W)
        fields = {"seed": seed, "label": label}
        return await shown(service, live, Drawn, fields, images, format_)


@asynccontextmanager
async def _sight(service: Service, live: Live[Any], request: Request, label: str | None) -> AsyncIterator[Sight]:
    """The uploaded picture in the model's size. The request is admitted once the picture is there."""
    service.check_label(live, label)
    content, content_type = await payload(request)
    with service.admitted():
        yield Sight(await service.decoded(live, input_array, content, live.input, content_type), label)


@dataclass(frozen=True, slots=True)
class Drawing:
    """One request for drawings."""

    seeds: Sequence[int]
    label: str | None


def draw(live: Live[Generator], drawings: Sequence[Drawing]) -> list[NDArray[np.uint8]]:
    """Each request's (n, C, H, W) uint8, all drawn in one pass."""
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


def interpolate(live: Live[Generator], walks: Sequence[Walk]) -> list[NDArray[np.uint8]]:
    """Each request's (steps, C, H, W) uint8."""
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


def encode(live: Live[Autoencoder], sights: Sequence[Sight]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each the mean and standard deviation of its code, (Z,) float32 each."""
    x = torch.from_numpy(np.stack([sight.x for sight in sights]))  # (B, C, H, W)
    means, deviations = live.model.encode(x, [sight.label for sight in sights])
    return list(zip(means, deviations, strict=True))


def reconstruct(live: Live[Autoencoder], sights: Sequence[Sight]) -> list[NDArray[np.uint8]]:
    """For each what the model draws from the mean of its code: (1, C, H, W) uint8."""
    means = torch.stack([mean for mean, _ in encode(live, sights)])  # (B, Z)
    return list(live.model.draw(means, [sight.label for sight in sights]).numpy()[:, None])


@dataclass(frozen=True, slots=True)
class Variation:
    """One request for variations of a picture."""

    sight: Sight
    seeds: Sequence[int]
    strength: float


def vary(live: Live[Autoencoder], variations: Sequence[Variation]) -> list[NDArray[np.uint8]]:
    """Each request's (n, C, H, W) uint8, drawn from the codes √(1 - s²) · μ + s · ε, ε ~ N(0, I) of the seeds.

    Where the pictures' codes are spread as N(0, I), these are too: s = 0 is the reconstruction, s = 1 a new drawing.
    """
    drawn = []
    for variation in variations:
        [(mean, _)] = encode(live, [variation.sight])
        kept = math.sqrt(1 - variation.strength**2)
        codes = kept * mean + variation.strength * live.model.latents(variation.seeds)  # (n, Z)
        drawn.append(live.model.draw(codes, [variation.sight.label] * len(codes)).numpy())
    return drawn


def strip(
    follower: Follower, refs: Sequence[Ref | str], seeds: Sequence[int], label: str | None, whole: bool
) -> tuple[Live[Generator], NDArray[np.uint8], list[int]]:
    """The newest of the versions, (seeds × versions, C, H, W) uint8: what each draws from the same codes; and which.

    One version is loaded at a time, drawn, and let go. Black is what a version that had not learned the label draws.

    Args:
        whole: all of them were asked for by name; else those that are removed meanwhile are left out.

    Raises:
        RecordError: none of them had learned the label.
        StoreError: a version cannot be loaded.
    """
    newest: Live[Generator] | None = None
    columns: dict[int, NDArray[np.uint8] | None] = {}
    for ref in refs:
        try:
            live = STRIP.of(_version(follower, ref))
        except NotFound:
            if whole:
                raise
            continue
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


def _version(follower: Follower, ref: Ref | str) -> Live[Any]:
    """That version, loaded if it is not the live one."""
    manifest, live = follower.store.manifest(ref), follower.live
    return live if live is not None and live.digest == manifest.digest else follower.load(manifest)
