"""The sampler's routes that write texts: whole, or piece by piece as server-sent events."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from consumers.sampler.abilities import COMPLETE
from consumers.sampler.after import FRESH
from consumers.sampler.examples import INFO, MODEL, RouteExample
from consumers.sampler.service import Service, ServiceOf, ended
from models.capabilities import Sampling
from pipeline.client import Completed, Written
from pipeline.texts import composed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from concurrent.futures import Future

    from starlette.types import Receive, Scope, Send

    from consumers.sampler.follower import Live
    from models.capabilities import TextGenerator

DEFAULT = Sampling()
PIECES = (
    'Events with {"text": …}, the next piece, as data; in the end an event `done` with all of the JSON answer but its '
    "text, or an event `error` with error and detail."
)


def stream_of(description: str, **more: Any) -> dict[int | str, dict[str, Any]]:
    """OpenAPI: an answer that is a stream of events."""
    text = {"type": "string"}
    schema = {"type": "object", "properties": {"event": text, "data": text}, "description": description}
    return {200: {"content": {"text/event-stream": {"schema": schema}}, **more}}


EVENTS = stream_of(PIECES, headers=Completed.described())
WRITTEN = {**INFO, "model": "verses", "seed": 7, "texts": ["the winter of our discontent"]}
EXAMPLES = {
    f"{MODEL}/complete": RouteExample(
        {**INFO, "model": "verses", "seed": 7, "text": "the winter of our discontent"},
        sent={"prompt": "Now is ", "seed": 7, "max_bytes": 100},
    )
}
router = APIRouter(tags=["answers"], dependencies=FRESH)


def any_seed(seed: int | None) -> int:
    """The seed that is asked for, or else a random one."""
    return secrets.randbits(32) if seed is None else seed


def seeds_of(seed: int, n: int) -> list[int]:
    """The seed of picture or text i is a function of (seed, i) alone."""
    digests = [hashlib.blake2b(f"{seed}:{i}".encode(), digest_size=8).digest() for i in range(n)]
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]


def _utf8(text: str) -> str:
    """JSON can escape half a character, which no model can read.

    Raises:
        ValueError: the text holds one.
    """
    text.encode()
    return text


Utf8 = Annotated[str, AfterValidator(_utf8)]


class Completion(BaseModel):
    """A text to go on with, and how."""

    model_config = ConfigDict(extra="forbid")

    prompt: Utf8 = ""
    seed: int | None = Field(None, ge=0, lt=2**63, description="the same seed writes the same; default: any")
    temperature: float = Field(DEFAULT.temperature, ge=0, le=100, description="0: always the most probable byte")
    top_k: int = Field(DEFAULT.top_k, ge=0, le=2**31, description="only the k most probable bytes; 0: all")
    top_p: float = Field(DEFAULT.top_p, gt=0, le=1, description="only those that together have this probability")
    max_bytes: int | None = Field(None, ge=1, description="UTF-8; default: 500, or fewer where the sampler says so")
    stop: Utf8 | None = Field(None, min_length=1, max_length=200, description="ends before this text")


class _AskedByAddress(Completion):
    after: list[str] = []  # which a dependency of all these routes reads: here it is no unknown name


@router.post("/models/{model}/complete", response_model=Completed, responses=EVENTS)
async def post_complete(model: str, asked: Completion, request: Request, service: ServiceOf) -> Response:
    """Go on with a text: as server-sent events, or with `Accept: application/json` as one answer.

    One version writes the whole text. A client that goes away ends the work.
    """
    live = service.live(model, COMPLETE)
    most = service.config.max_text_bytes
    service.bounded("bytes of the prompt", len(asked.prompt.encode()), 0, most)
    max_bytes = service.bounded("max_bytes", asked.max_bytes, DEFAULT.max_bytes, most)
    seed = any_seed(asked.seed)
    sampling = Sampling(asked.temperature, asked.top_k, asked.top_p, max_bytes, asked.stop)
    pieces = _pieces(service, live, composed(asked.prompt), seed, sampling)
    accept = request.headers.get("accept", "")
    if "application/json" not in accept or "text/event-stream" in accept:
        return _Events(service, live, seed, pieces)
    with service.admitted(), service.admitted(service.slow_admission):
        async with aclosing(pieces):
            text = []
            async for piece in pieces:
                if await request.is_disconnected():
                    break
                text.append(piece)
    answer = Completed(**live.info(service.clock()), seed=seed, text="".join(text))
    return JSONResponse(answer.model_dump(mode="json"))


@router.get("/models/{model}/complete", response_model=Completed, responses=EVENTS)
async def get_complete(
    model: str, asked: Annotated[_AskedByAddress, Query()], request: Request, service: ServiceOf
) -> Response:
    """The same for a browser's EventSource, which has only an address to ask with."""
    return await post_complete(model, asked, request, service)


async def write(service: Service, live: Live[TextGenerator], n: int | None, seed: int) -> Written:
    """n new texts, which share the bytes that one request may have."""
    model, most = live.model, service.config.max_text_bytes
    n = service.bounded("n", n, 1, min(most, service.config.max_samples))
    sampling = Sampling(max_bytes=min(DEFAULT.max_bytes, most // n))
    with service.admitted():
        seeds = seeds_of(seed, n)
        texts = await service.aside(live, lambda: ["".join(model.complete("", s, sampling)) for s in seeds])
    return Written(**live.info(service.clock()), seed=seed, texts=texts)


async def _pieces(
    service: Service, live: Live[TextGenerator], prompt: str, seed: int, sampling: Sampling
) -> AsyncGenerator[str, None]:
    """What the model writes on the sideline, as it comes. To close this ends the work at its next piece.

    The thread never waits for the client: what is on its way is bounded by the bytes of the whole text. Raises as
    `ended`.
    """
    model, loop = live.model, asyncio.get_running_loop()
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    gone = threading.Event()

    def deliver(piece: str | None) -> None:
        if not gone.is_set():
            loop.call_soon_threadsafe(queue.put_nowait, piece)

    def work() -> None:
        for piece in model.complete(prompt, seed, sampling):
            if gone.is_set():
                return
            deliver(piece)

    with ended():
        written: Future[None] = service.sideline.submit(service.client, live.manifest.model, work)
    written.add_done_callback(lambda _: deliver(None))
    try:
        while (piece := await queue.get()) is not None:
            yield piece
        with ended():
            written.result()
    finally:
        gone.set()
        written.cancel()


class _Events(StreamingResponse):
    """The pieces as server-sent events. They are admitted from the first byte to the last, or until the client goes."""

    def __init__(self, service: Service, live: Live[Any], seed: int, pieces: AsyncGenerator[str, None]) -> None:
        self._service, self._live, self._seed, self._pieces = service, live, seed, pieces
        headers = {**self._answer().headers(), "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._events(), headers=headers, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        with service.admitted(), service.admitted(service.slow_admission):
            async with aclosing(self._pieces):
                await super().__call__(scope, receive, send)

    async def _events(self) -> AsyncGenerator[str, None]:
        try:
            async for piece in self._pieces:
                yield event({"text": piece})
        except HTTPException as error:  # as the JSON answer has it
            yield event(error.detail, "error")
            return
        except Exception:
            yield event({"error": "internal", "detail": "The model failed at this text."}, "error")
            raise
        yield event(self._answer().model_dump(mode="json", exclude={"text"}), "done")

    def _answer(self) -> Completed:
        return Completed(**self._live.info(self._service.clock()), seed=self._seed, text="")


def event(data: Any, name: str | None = None) -> str:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html; the data is one line of ASCII."""
    return f"event: {name}\n" * (name is not None) + f"data: {json.dumps(data)}\n\n"
