"""The sampler's routes that tell why: what in a record speaks for a class, and which learned records it resembles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from fastapi import APIRouter, Query, Request

from consumers.sampler.abilities import EXPLAIN, NEAREST
from consumers.sampler.after import FRESH
from consumers.sampler.examples import INFO, MODEL, PNG, Either, RouteExample
from consumers.sampler.gate import refusal
from consumers.sampler.pictures import heated, png
from consumers.sampler.remembered import Remembered, remembered
from consumers.sampler.routes_drawings import Label
from consumers.sampler.service import ServiceOf
from consumers.sampler.uploads import INPUTS, payload
from models.capabilities import Generator, Linear
from models.explaining import added, left_out, occlusion, parts
from models.nearest import COPY, distances, spacing
from pipeline.client import Explained, Nearest, Neighbour, WeighedPart
from pipeline.errors import Corrupt
from pipeline.images import ImageInput
from pipeline.records import input_array
from pipeline.texts import TextInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from consumers.sampler.follower import Live
    from models.capabilities import Classifier
    from pipeline.store import Store

WHY = {**INFO, "label": "7", "probability": 0.96}
PARTS = [{"text": "Guten ", "weight": 1.5}, {"text": "Morgen", "weight": 2.25}]
RECORD = {"distance": 1.25, "label": "7", "position": "digits:0:4630", "image": PNG, "text": None}
NEAR = {**INFO, "records": [RECORD], "kept": 2000, "compared": 2000}
EXAMPLES = {
    f"{MODEL}/explain": RouteExample(
        Either(
            {
                "pictures": {**WHY, "method": "occlusion", "heat": [[0.0, 2.5]], "image": PNG, "parts": None},
                "texts": {**WHY, "method": "left-out", "heat": None, "image": None, "parts": PARTS},
            }
        )
    ),
    f"{MODEL}/nearest": RouteExample(
        Either(
            {
                "classifiers": {**NEAR, "spacing": None, "is_copy": None},
                "generators": {**NEAR, "spacing": 3.5, "is_copy": True},
            }
        )
    ),
}
router = APIRouter(tags=["answers"], dependencies=FRESH)


@router.post("/models/{model}/explain", openapi_extra={"requestBody": {"content": INPUTS}})
async def post_explain(model: str, request: Request, service: ServiceOf, label: Label = None) -> Explained:
    """Tell how much each part of a picture, or each word of a text, speaks for its likeliest class, or for `label`.

    The body is as for `classify`. Of a text that is longer than the model's `max_chars` the beginning is explained.
    """
    live = service.live(model, EXPLAIN)
    service.check_label(live, label)
    if not live.model.classes:
        raise refusal(422, "label", f"{model} has learned no class yet, so there is nothing to explain.")
    content, content_type = await payload(request)
    with service.admitted():
        x = await service.decoded(live, input_array, content, live.input, content_type)
        found = await service.aside(live, lambda: explain(live, x, label))
    return Explained(**live.info(service.clock()), **found)


@router.post("/models/{model}/nearest", openapi_extra={"requestBody": {"content": INPUTS}})
async def post_nearest(
    model: str,
    request: Request,
    service: ServiceOf,
    n: Annotated[
        int | None, Query(ge=1, description="how many; default: 8, or fewer where the sampler says so")
    ] = None,
) -> Nearest:
    """Find the learned records that are nearest to one, of those in the version's replay memory.

    The body is as for `classify`. Of a model that draws, pictures are compared by their pixels, and it is told whether
    one is a copy.
    """
    live = service.live(model, NEAREST)
    n = service.bounded("n", n, 8, service.config.max_samples)
    store = service.serving.follower(model).store
    content, content_type = await payload(request)
    with service.admitted():
        x = await service.decoded(live, input_array, content, live.input, content_type)
        return await service.aside(live, lambda: nearest(live, store, x, n, service.clock()))


def explain(live: Live[Classifier], x: NDArray[Any], label: str | None) -> dict[str, Any]:
    """The fields of the answer for one record.

    Raises:
        HTTPException: 409 where records are neither pictures nor texts.
    """
    record, classify = torch.from_numpy(x.copy()), live.model.classify
    p = classify(record[None])[0]
    number = int(p.argmax()) if label is None else live.model.classes.index(label)
    found = {"label": live.model.classes[number], "probability": p[number].item()}
    none = {"heat": None, "image": None, "parts": None}
    if isinstance(live.input, ImageInput):
        heat = occlusion(classify, record, number)  # (h, w)
        image = heated(x, heat.numpy())
        return {**found, **none, "method": "occlusion", "heat": heat.tolist(), "image": image}
    if not isinstance(live.input, TextInput):
        raise refusal(409, "wrong-kind", f"{live.manifest.model} reads neither pictures nor texts.")
    method = "exact" if isinstance(live.model, Linear) else "left-out"
    worth = added(live.model, record, number) if isinstance(live.model, Linear) else left_out(classify, record, number)
    weighed = [WeighedPart(text=text, weight=each) for text, each in zip(parts(record), worth.tolist(), strict=True)]
    return {**found, **none, "method": method, "parts": weighed}


def nearest(live: Live[Classifier | Generator], store: Store, x: NDArray[Any], n: int, now_s: float) -> Nearest:
    """The answer for one record.

    Raises:
        StoreError: the replay memory cannot be read, or is damaged.
    """
    kept = remembered(store, live.manifest, live.input)
    try:
        far = distances(live.model, torch.from_numpy(x.copy())[None], kept.x)
    except ValueError as error:
        raise Corrupt(f"The replay memory of {live.manifest.model} does not fit its model: {error}.") from None
    ordered, rows = far.sort(stable=True)
    usual = spacing(ordered) if isinstance(live.model, Generator) else None
    return Nearest(
        **live.info(now_s),
        records=[_neighbour(kept, row, far[row].item()) for row in rows[:n].tolist()],
        kept=kept.count,
        compared=len(kept.x),
        spacing=usual,
        is_copy=None if usual is None else ordered[0].item() < COPY * usual,
    )


def _neighbour(kept: Remembered, row: int, distance: float) -> Neighbour:
    x, place = kept.x[row], kept.positions[row]
    return Neighbour(
        distance=distance,
        label=kept.labels[row],
        position=None if place is None else str(place),
        image=png(x.numpy()) if x.dtype == torch.uint8 else None,
        text=text_of(x.numpy()) if x.dtype == torch.int32 else None,
    )


def text_of(x: NDArray[np.int32]) -> str:
    """The text of code points (L,), zero-padded at the end. What is no character becomes U+FFFD."""
    return x.astype("<u4").tobytes().decode("utf-32-le", "replace").rstrip("\0")
