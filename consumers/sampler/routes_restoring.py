"""The sampler's routes that give a picture back, of any size: without damage, or in another style."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from fastapi import APIRouter, Query, Request, Response

from consumers.sampler.abilities import RESTORE, RESTYLE
from consumers.sampler.after import FRESH
from consumers.sampler.gate import refusal
from consumers.sampler.pictures import described, shown
from consumers.sampler.service import Service, ServiceOf
from consumers.sampler.uploads import PICTURE, of_any_size, picture_and_mask
from pipeline.client import Pictures
from pipeline.images import ImageInput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from numpy.typing import NDArray

    from consumers.sampler.examples import RouteExample
    from consumers.sampler.follower import Live
    from models.capabilities import Restorer, Restyler

UPLOAD = {"requestBody": {"content": PICTURE}}
EXAMPLES: dict[str, RouteExample] = {}  # a PNG is shown as any file is
router = APIRouter(tags=["answers"], dependencies=FRESH)


@router.post("/models/{model}/restore", response_class=Response, responses=described(Pictures), openapi_extra=UPLOAD)
async def post_restore(
    model: str,
    request: Request,
    service: ServiceOf,
    kind: Annotated[str | None, Query(description="of damage; default: not known")] = None,
) -> Response:
    """Undo damage to a picture of any size, as a PNG of the same size; a large one is scaled down first.

    The body is the picture, or a form with the files `image` and `mask`, which is white where pixels are missing.
    """
    live = service.live(model, RESTORE)
    if kind is not None and kind not in live.model.kinds:
        kinds = ", ".join(live.model.kinds)
        raise refusal(422, "kind", f"{model} was taught no such kind of damage. Known: {kinds}.")
    async with _upload(service, live, request) as (x, holes):
        image = await service.aside(live, lambda: restore(live, x, kind, holes))  # (C, H, W)
        return await shown(service, live, Pictures, {}, image[None])


@router.post("/models/{model}/restyle", response_class=Response, responses=described(Pictures), openapi_extra=UPLOAD)
async def post_restyle(model: str, request: Request, service: ServiceOf) -> Response:
    """Give a picture of any size another style, as a PNG of the same size; a large one is scaled down first."""
    live = service.live(model, RESTYLE)
    async with _upload(service, live, request) as (x, _):
        image = await service.aside(live, lambda: restyle(live, x))  # (C, H, W)
        return await shown(service, live, Pictures, {}, image[None])


@asynccontextmanager
async def _upload(
    service: Service, live: Live[Any], request: Request
) -> AsyncIterator[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]:
    """The uploaded picture in its own size, and what is missing of it. The request is admitted once both are there."""
    if not isinstance(live.input, ImageInput):
        raise refusal(409, "wrong-kind", f"{live.manifest.model} reads texts, and not pictures.")
    content, mask = await picture_and_mask(request)
    with service.admitted():
        yield await service.decoded(live, of_any_size, content, mask, live.input, service.config.max_side)


def restore(
    live: Live[Restorer], x: NDArray[np.uint8], kind: str | None, holes: NDArray[np.bool_] | None
) -> NDArray[np.uint8]:
    """x (C, H, W) uint8 of any size, holes (1, H, W) → (C, H, W) uint8."""
    missing = None if holes is None else torch.from_numpy(holes)[None]
    return live.model.restore(torch.from_numpy(np.stack([x])), [kind], missing)[0].numpy()


def restyle(live: Live[Restyler], x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """x (C, H, W) uint8 of any size → the same shape."""
    return live.model.restyle(torch.from_numpy(np.stack([x])))[0].numpy()
