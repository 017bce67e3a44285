"""The sampler's routes that put records into classes.

Functions `(Live, items) → results` are for the batcher: what is asked of one version at one time comes in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from fastapi import APIRouter, Request

from consumers.sampler.abilities import CLASSIFY, RECOGNISE
from consumers.sampler.after import FRESH
from consumers.sampler.examples import INFO, MODEL, RouteExample
from consumers.sampler.follower import Live
from consumers.sampler.service import Service, ServiceOf
from consumers.sampler.uploads import INPUTS, payload
from pipeline.client import Classified, Recognised
from pipeline.records import input_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.capabilities import Classifier, Recogniser

CLASSIFIED = {**INFO, "label": "7", "probability": 0.96, "probabilities": {"7": 0.96, "1": 0.04}}
EXAMPLES = {
    f"{MODEL}/classify": RouteExample(CLASSIFIED),
    f"{MODEL}/recognise": RouteExample({**CLASSIFIED, "unknown": False}),
}
Answer = TypeVar("Answer")
ModelT = TypeVar("ModelT")
router = APIRouter(tags=["answers"], dependencies=FRESH)


@router.post("/models/{model}/classify", openapi_extra={"requestBody": {"content": INPUTS}})
async def post_classify(model: str, request: Request, service: ServiceOf) -> Classified:
    """Classify one record: the picture or the UTF-8 text itself as the body.

    Also taken: JSON {"text": …}, and a form with one field, `image` or `text`.
    """
    live = service.live(model, CLASSIFY)
    return classified(live, await _answered(classify, live, request, service), service.clock())


@router.post("/models/{model}/recognise", openapi_extra={"requestBody": {"content": INPUTS}})
async def post_recognise(model: str, request: Request, service: ServiceOf) -> Recognised:
    """Classify one record, or say that it resembles none of the classes. The body is as for `classify`."""
    live = service.live(model, RECOGNISE)
    return recognised(live, await _answered(recognise, live, request, service), service.clock())


async def _answered(
    run: Callable[[Live[ModelT], Sequence[Any]], Sequence[Answer]],
    live: Live[ModelT],
    request: Request,
    service: Service,
) -> Answer:
    content, content_type = await payload(request)  # before it is admitted: a slow client keeps nobody out
    with service.admitted():
        decode = partial(input_array, whole=live.reads_whole)
        x = await service.decoded(live, decode, content, live.input, content_type)
        return await service.batched(run, live, x)


def classify(live: Live[Classifier], xs: Sequence[NDArray[Any]]) -> list[list[float]]:
    """B arrays as the model's input wants them → B × K probabilities, in the order of the model's classes."""
    return _alike(xs, lambda x: live.model.classify(x).tolist())


def _alike(xs: Sequence[NDArray[Any]], ask: Callable[[torch.Tensor], Iterable[Answer]]) -> list[Answer]:
    """Asks once for each shape, and returns the answers in order: long texts differ in shape."""
    found: dict[int, Answer] = {}
    for shape in {x.shape for x in xs}:
        rows = [row for row, x in enumerate(xs) if x.shape == shape]
        found |= zip(rows, ask(torch.from_numpy(np.stack([xs[row] for row in rows]))), strict=True)
    return [found[row] for row in range(len(xs))]


def classified(live: Live[Classifier], probabilities: Sequence[float], now_s: float) -> Classified:
    """The answer for one record."""
    ranked = sorted(zip(live.model.classes, probabilities, strict=True), key=lambda pair: -pair[1])
    label, probability = ranked[0] if ranked else (None, None)
    return Classified(**live.info(now_s), label=label, probability=probability, probabilities=dict(ranked))


def recognise(live: Live[Recogniser], xs: Sequence[NDArray[Any]]) -> list[tuple[list[float], bool]]:
    """B arrays → for each the K probabilities, and whether it resembles none of the classes."""
    return _alike(xs, lambda x: zip(*(answer.tolist() for answer in live.model.recognise(x)), strict=True))


def recognised(live: Live[Classifier], result: tuple[Sequence[float], bool], now_s: float) -> Recognised:
    """The answer for one record."""
    probabilities, unknown = result
    answer = classified(live, probabilities, now_s).model_dump()
    if unknown or not probabilities:
        answer |= {"label": None, "probability": None}
    return Recognised(**answer, unknown=answer["label"] is None)
