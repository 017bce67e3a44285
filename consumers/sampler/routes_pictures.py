"""The sampler's routes that answer with pictures, or about one."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator

from consumers.sampler.answers import (
    Drawing,
    Sight,
    Variation,
    Walk,
    draw,
    encode,
    grid,
    image_seeds,
    interpolate,
    png,
    reconstruct,
    restore,
    restyle,
    standing,
    strip,
    vary,
)
from consumers.sampler.gate import refusal
from consumers.sampler.routes import Service, ServiceOf
from consumers.sampler.routes_texts import write
from consumers.sampler.uploads import PICTURE, of_any_size, payload, picture_and_mask
from models.capabilities import Generator, Restorer
from pipeline.client import Code, Drawn, Interpolated, Pictures, Strip, Written
from pipeline.config import ImageInput
from pipeline.records import composed, input_array

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import numpy as np
    from numpy.typing import NDArray

    from consumers.sampler.service import Live

Seed = Annotated[int | None, Query(ge=0, lt=2**63, description="the same seed draws the same; default: any")]
Label = Annotated[Annotated[str, AfterValidator(composed)] | None, Query(description="a class of the model")]
Format = Annotated[Literal["png", "json"], Query(alias="format", description="one PNG, or JSON with single ones")]
OR_FEWER = "default: {}, or fewer where the sampler says so"
UPLOAD = {"requestBody": {"content": PICTURE}}


def _png(kind: type[Pictures]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI: a PNG, with the rest of such an answer as its headers."""
    return {200: {"content": {"image/png": {}}, "headers": kind.described()}}


REFS = r"^[A-Za-z0-9._-]{1,100}(,[A-Za-z0-9._-]{1,100})*$"
router = APIRouter(tags=["answers"])


@router.get("/models/{model}/generate", response_model=Drawn | Written, responses=_png(Drawn))
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
    live = service.live(model, "generate")
    service.known(live, label)
    seed = _seed(seed)
    if not isinstance(live.model, Generator):
        return JSONResponse((await write(service, live, n, seed)).model_dump(mode="json"))
    n = service.bounded("n", n, 16, service.config.max_samples)
    with service.place():
        images = await service.batched(draw, live, Drawing(image_seeds(seed, n), label), n)  # (n, C, H, W)
        fields = {"seed": seed, "label": label}
        return await _shown(service, live, Drawn, fields, images, format_)


@router.get("/models/{model}/interpolate", response_model=Interpolated, responses=_png(Interpolated))
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
    live = service.live(model, "interpolate")
    service.known(live, label)
    steps = service.bounded("steps", steps, 8, service.config.max_samples)
    seed, to = _seed(seed), _seed(to)
    with service.place():
        walk = Walk(image_seeds(seed, 1)[0], image_seeds(to, 1)[0], steps, label)
        images = await service.batched(interpolate, live, walk, steps)  # (steps, C, H, W)
        fields = {"seed": seed, "label": label, "to": to}
        return await _shown(service, live, Interpolated, fields, images, format_, steps)


@router.get("/models/{model}/strip", response_model=Strip, responses=_png(Strip))
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
    """Draw a film-strip: the same codes, a row each, by many versions, a column each. The newest one's standing."""
    live = service.live(model, "strip")
    service.known(live, label)
    asked = list(dict.fromkeys(versions.split(","))) if versions else []
    most = service.config.max_samples
    given = len(asked) or last
    n = service.bounded("n", n, 4, most // min(given or 1, most))
    columns = service.bounded("versions", given, 8, min(service.config.max_versions, most // n))
    seed = _seed(seed)
    follower = service.serving.follower(model)

    def drawn() -> tuple[Live, NDArray[np.uint8], list[int]]:
        refs = asked or follower.store.versions()[-columns:]
        return strip(follower, refs, image_seeds(seed, n), label, whole=bool(asked))

    with service.place():
        newest, images, numbers = await service.aside(live, drawn)
        fields = {"seed": seed, "label": label, "versions": numbers}
        return await _shown(service, newest, Strip, fields, images, format_, len(numbers))


@router.post("/models/{model}/encode", openapi_extra=UPLOAD)
async def post_encode(model: str, request: Request, service: ServiceOf, label: Label = None) -> Code:
    """Find the latent code of a picture: mean and standard deviation of its posterior."""
    live = service.live(model, "encode")
    async with _sight(service, live, request, label) as sight:
        mean, std = await service.batched(encode, live, sight)
    return Code(**standing(live, service.clock()), label=label, mean=mean.tolist(), std=std.tolist())


@router.post("/models/{model}/reconstruct", response_class=Response, responses=_png(Pictures), openapi_extra=UPLOAD)
async def post_reconstruct(model: str, request: Request, service: ServiceOf, label: Label = None) -> Response:
    """Draw what the model makes of a picture: what it draws from the mean of the picture's code."""
    live = service.live(model, "reconstruct")
    async with _sight(service, live, request, label) as sight:
        image = await service.batched(reconstruct, live, sight)
        return await _shown(service, live, Pictures, {}, image)


@router.post("/models/{model}/vary", response_model=Drawn, responses=_png(Drawn), openapi_extra=UPLOAD)
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
    live = service.live(model, "vary")
    n = service.bounded("n", n, 16, service.config.max_samples)
    seed = _seed(seed)
    async with _sight(service, live, request, label) as sight:
        images = await service.batched(vary, live, Variation(sight, image_seeds(seed, n), strength), n)  # (n, C, H, W)
        fields = {"seed": seed, "label": label}
        return await _shown(service, live, Drawn, fields, images, format_)


@router.post("/models/{model}/restore", response_class=Response, responses=_png(Pictures), openapi_extra=UPLOAD)
async def post_restore(
    model: str,
    request: Request,
    service: ServiceOf,
    kind: Annotated[str | None, Query(description="of damage; default: not known")] = None,
) -> Response:
    """Undo damage to a picture of any size, as a PNG of the same size; a large one is scaled down first.

    The body is the picture, or a form with the files `image` and `mask`, which is white where pixels are missing.
    """
    live = service.live(model, "restore")
    kinds = live.model.kinds if isinstance(live.model, Restorer) else ()
    if kind is not None and kind not in kinds:
        raise refusal(422, "kind", f"{model} was taught no such kind of damage. Known: {', '.join(kinds)}.")
    async with _upload(service, live, request) as (x, holes):
        image = await service.aside(live, lambda: restore(live, x, kind, holes))  # (C, H, W)
        return await _shown(service, live, Pictures, {}, image[None])


@router.post("/models/{model}/restyle", response_class=Response, responses=_png(Pictures), openapi_extra=UPLOAD)
async def post_restyle(model: str, request: Request, service: ServiceOf) -> Response:
    """Give a picture of any size another style, as a PNG of the same size; a large one is scaled down first."""
    live = service.live(model, "restyle")
    async with _upload(service, live, request) as (x, _):
        image = await service.aside(live, lambda: restyle(live, x))  # (C, H, W)
        return await _shown(service, live, Pictures, {}, image[None])


def _seed(seed: int | None) -> int:
    return secrets.randbits(32) if seed is None else seed


@asynccontextmanager
async def _sight(service: Service, live: Live, request: Request, label: str | None) -> AsyncIterator[Sight]:
    """The uploaded picture in the model's size, and a place from when it is there on."""
    service.known(live, label)
    content, content_type = await payload(request)
    with service.place():
        yield Sight(await service.decoded(live, input_array, content, live.input, content_type), label)


@asynccontextmanager
async def _upload(
    service: Service, live: Live, request: Request
) -> AsyncIterator[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]:
    """The uploaded picture in its own size, and what is missing of it; and a place, as above."""
    assert isinstance(live.input, ImageInput)  # noqa: S101 - what restores or restyles reads pictures
    content, mask = await picture_and_mask(request)
    with service.place():
        yield await service.decoded(live, of_any_size, content, mask, live.input, service.config.max_side)


async def _shown(
    service: Service,
    live: Live,
    kind: type[Pictures],
    fields: dict[str, Any],
    images: NDArray[np.uint8],
    format_: str = "png",
    columns: int | None = None,
) -> Response:
    """(n, C, H, W) uint8 as the answer that was asked for: JSON, or one PNG with the rest as its headers."""
    fields = {**standing(live, service.clock()), **fields}
    if format_ == "json":
        files = await service.decoded(live, lambda: [png(image) for image in images])
        return JSONResponse(kind(**fields, images=files).model_dump(mode="json"))
    file = await service.decoded(live, lambda: png(grid(images, columns)))
    headers = kind(**fields, images=[]).headers()
    return Response(file, headers={**headers, "Cache-Control": "no-store"}, media_type="image/png")
