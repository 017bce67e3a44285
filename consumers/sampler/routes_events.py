"""The sampler's stream for whoever watches it: one for a whole page."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from consumers.sampler.examples import RouteExample
from consumers.sampler.routes_models import model_state
from consumers.sampler.routes_operations import store_state
from consumers.sampler.routes_texts import event, stream_of
from consumers.sampler.service import Service, ServiceOf

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

LOOK_S = 0.2  # how often it is looked for what is new
ALIVE_S = 5.0  # how often it is said that nothing is new
STREAM_S = 600.0  # a stream ends then, and a browser opens the next one by itself
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
EXAMPLES: dict[str, RouteExample] = {}
TELLS = "Events `service`, `model` and `alive` with JSON as data."
router = APIRouter(tags=["operations"])


@router.get(
    "/events", response_class=Response, responses=stream_of("Events `service`, `model` and `alive` with JSON as data.")
)
async def get_events(request: Request, service: ServiceOf) -> Response:
    """What `/models` tells, as it changes: server-sent events.

    `service`: the store, and the names of all models. `model`: one of them, as `/models/{model}` tells it. `alive`:
    nothing is new. Whoever reads slowly misses states, and the newest one comes next: nothing is queued.
    """
    if request.scope.get("is_head"):
        return Response(headers=HEADERS, media_type="text/event-stream")
    return _Stream(service)


class _Stream(StreamingResponse):
    """Is admitted until the client goes, the sampler ends, or STREAM_S have passed."""

    def __init__(self, service: Service) -> None:
        self._service = service
        super().__init__(_events(service), headers=HEADERS, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.admitted(self._service.streams):
            await super().__call__(scope, receive, send)


async def _events(service: Service) -> AsyncGenerator[str, None]:
    loop = asyncio.get_running_loop()
    ends = loop.time() + STREAM_S
    quiet_since, shown, seen = loop.time(), "", dict[str, tuple[Any, ...]]()
    yield "retry: 1000\n\n"
    while loop.time() < ends:
        found = "".join(_new(service, seen))
        state = event(service_state(service), "service")
        if news := (state if state != shown else "") + found:
            quiet_since, shown = loop.time(), state
            yield news
        elif loop.time() - quiet_since > ALIVE_S:
            quiet_since = loop.time()
            yield event({}, "alive")
        if await _within(service.ending, LOOK_S):
            return


def service_state(service: Service) -> dict[str, Any]:
    """The store, what is wrong, and the names of all models."""
    return {
        "store": store_state(service),
        "problem": service.serving.problem,
        "models": list(service.serving.followers()),
    }


def _new(service: Service, seen: dict[str, tuple[Any, ...]]) -> list[str]:
    """An event for each model that is not as `seen` says; updates it."""
    followers = service.serving.followers()
    for name in seen.keys() - followers.keys():
        del seen[name]
    states = {
        name: (follower.live and follower.live.digest, follower.problem, follower.worker)
        for name, follower in followers.items()
    }
    new = [name for name, state in states.items() if seen.get(name) != state]
    seen |= states
    return [event(model_state(service, name, followers[name]).model_dump(mode="json"), "model") for name in new]


async def _within(happened: asyncio.Event, seconds: float) -> bool:
    """Whether it happens within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await happened.wait()
    except TimeoutError:
        return False
