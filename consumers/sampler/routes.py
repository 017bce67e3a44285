"""The sampler's routes on models, versions and records. `routes_pictures.py` and `routes_texts.py` have the others.

Those that read the store are `def` and run on threads, the others are `async`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from queue import Full
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from consumers.sampler.answers import (
    AliasTarget,
    ModelState,
    Version,
    capabilities,
    classified,
    classify,
    is_able,
    model_state,
    recognise,
    recognised,
)
from consumers.sampler.batcher import Batcher, Sideline
from consumers.sampler.gate import RETRY_AFTER, described, refusal
from consumers.sampler.service import Follower, Live, Serving, weights
from consumers.sampler.uploads import INPUTS, payload
from consumers.workers import ANSWER_S, Broken, Ending, Places, Stalled, Workers
from pipeline.client import Classified, Recognised
from pipeline.config import NAME, SamplerConfig
from pipeline.records import input_array
from pipeline.store import Manifest, Ref

PAGE = files("consumers.sampler").joinpath("page.html").read_text("utf-8")
SCRIPT = PAGE[PAGE.index("<script>") + len("<script>") : PAGE.index("</script>")]  # the only one that may run
SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_DIGEST}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DIGEST = "SHA-256 of the version's manifest"
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with.

    Args:
        places: requests that are admitted at one time, be their body read, decoded, queued or answered: the bound on
            the memory that requests take.
        decoders: by kind of record, so that a text does not wait for pictures.
        slow_places: of these, what is on the sideline or waits for it.
        readers: of the store, on threads that they share with what else is not `async`.
        client: the address that asks.
    """

    config: SamplerConfig
    serving: Serving
    batcher: Batcher
    sideline: Sideline
    decoders: Mapping[str, Sideline]
    places: Places
    slow_places: Places
    readers: Places
    downloads: Places
    registry: CollectorRegistry
    clock: Callable[[], float]
    client: str = ""

    @property
    def workers(self) -> list[Workers[Any]]:
        """All that models and decoders run on."""
        return [self.batcher, self.sideline, *self.decoders.values()]

    @property
    def given_up(self) -> int:
        """Threads that never came back."""
        return sum(workers.given_up for workers in self.workers)

    def live(self, model: str, route: str) -> Live:
        """The version that is live now, if it answers that route.

        Raises:
            NotFound: no such model.
            HTTPException: 503 without a version, 409 where the model does something else.
        """
        follower = self.serving.follower(model)
        live = follower.live  # once: a reset may take it away at any moment
        if live is None:
            detail = follower.problem or "It has no version yet; one comes when its worker has learned."
            raise refusal(503, "no-version", f"{model}: {detail}", **RETRY_AFTER)
        if not is_able(live, route):
            able = " or ".join(capabilities(live)) or "ask for its versions alone"
            raise refusal(409, "wrong-kind", f"{model} does not {route}. What it does: {able}.")
        return live

    def known(self, live: Live, label: str | None) -> None:
        """
        Raises:
            HTTPException: 422 where the model has not learned that label.
        """
        if label is not None and label not in live.model.classes:
            known = ", ".join(live.model.classes[:50]) or "none yet"
            raise refusal(422, "label", f"{live.manifest.model} has learned no label {label!r}. Known: {known}.")

    def bounded(self, name: str, value: int | None, default: int, most: int) -> int:
        """What is asked, or else the default, as far as it may be asked.

        Raises:
            HTTPException: 422 where more is asked than the configuration allows one request.
        """
        if value is not None and value > most:
            raise refusal(422, "invalid", f"{name} = {value}: at most {most} at one time. Ask for less.")
        return value or min(default, most)

    @contextmanager
    def place(self, places: Places | None = None) -> Iterator[None]:
        """Admits one request that costs memory and computing time.

        Raises:
            HTTPException: 503 where there is no place, or none for this client.
        """
        try:
            with (places or self.places).place(self.client):
                yield
        except Full:
            raise refusal(503, "busy", "Too many requests at one time. Try again in a second.", **RETRY_AFTER) from None

    async def batched(
        self, run: Callable[[Live, Sequence[Item]], Sequence[Result]], live: Live, item: Item, rows: int = 1
    ) -> Result:
        """The item's result, computed by the batcher. Raises as `ended`."""
        with ended():
            return await asyncio.wrap_future(self.batcher.submit(self.client, run, live, item, rows))

    async def aside(self, live: Live, work: Callable[[], Result]) -> Result:
        """What the work gives, on the sideline. Raises as `place` and `ended`."""
        with self.place(self.slow_places), ended():
            return await asyncio.wrap_future(self.sideline.submit(self.client, live.manifest.model, work))

    async def decoded(self, live: Live, work: Callable[..., Result], *arguments: Any) -> Result:
        """What the work gives, on the threads that read and write such records. Raises as `ended`."""
        with ended():
            decoders = self.decoders[live.input.kind]
            return await asyncio.wrap_future(decoders.submit(self.client, live.manifest.model, work, *arguments))


@contextmanager
def ended() -> Iterator[None]:
    """
    Raises:
        HTTPException: 503 where the model never ends, or the sampler does; 504 where what was asked takes too long.
    """
    try:
        yield
    except Stalled as error:
        raise refusal(503, "stalled", str(error)) from None
    except Broken as error:
        raise refusal(503, "broken", str(error)) from None
    except Ending as error:
        raise refusal(503, "ending", str(error), **RETRY_AFTER) from None
    except TimeoutError:
        raise refusal(504, "timeout", f"It was not done within {ANSWER_S:.0f} s. Ask for less.") from None


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return replace(service, client=request.client.host if request.client else "")


ServiceOf = Annotated[Service, Depends(_service)]


async def _reading(service: ServiceOf) -> AsyncIterator[None]:
    """A place among those who wait for the store: it may be slow."""
    with service.place(service.readers):
        yield


READS = [Depends(_reading)]
Reference = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="latest, an alias, a number, or the beginning of a digest",
    ),
]
Alias = Annotated[str, Path(pattern=NAME)]
router = APIRouter()


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page(service: ServiceOf) -> HTMLResponse:
    bounds = f'data-samples="{service.config.max_samples}" data-versions="{service.config.max_versions}"'
    return HTMLResponse(PAGE.replace("data-bounds", bounds), headers={"Content-Security-Policy": POLICY})


@router.get("/healthz", tags=["operations"])
async def healthz() -> dict[str, str]:
    """Alive: the process answers."""
    return {"status": "alive"}


@router.get(
    "/readyz",
    tags=["operations"],
    responses={
        503: {"description": "Not ready; the body is the same.", "content": {"application/json": {"schema": {}}}}
    },
)
async def readyz(service: ServiceOf) -> JSONResponse:
    """Ready (200) when every model has a version, models can be asked, and no version is loaded for ever, else 503.

    Says so if the store is away; what is live is served. A model that was deleted is not waited for.
    """
    followers = {name: f for name, f in service.serving.followers().items() if not f.deleted}
    lives = {name: f.live for name, f in followers.items()}
    outages = [f.unreachable_since_s for f in followers.values() if f.unreachable_since_s is not None]
    since = f"unreachable since {datetime.fromtimestamp(min(outages), UTC):%Y-%m-%dT%H:%M:%SZ}" if outages else None
    models = {
        name: {"version": live.manifest.version if live else None, "problem": followers[name].problem}
        for name, live in lives.items()
    }
    stalls = [workers.problem for workers in service.workers]
    stalled = " ".join(dict.fromkeys(filter(None, stalls)))
    problem = stalled or service.serving.problem
    loads = any(follower.stalled for follower in followers.values())
    ready = bool(models) and all(lives.values()) and not (stalled or loads or service.serving.broken)
    content = {"ready": ready, "store": since or "reachable", "problem": problem, "models": models}
    return JSONResponse(content, 200 if ready else 503)


@router.get("/metrics", tags=["operations"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: ServiceOf) -> Response:
    """For Prometheus."""
    return Response(generate_latest(service.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/models", tags=["models"])
async def list_models(service: ServiceOf) -> list[ModelState]:
    """Every model: its live version, its classes, its metrics, how fresh it is."""
    now_s = service.clock()
    return [model_state(name, follower, now_s) for name, follower in service.serving.followers().items()]


@router.get("/models/{model}", tags=["models"])
async def get_model(model: str, service: ServiceOf) -> ModelState:
    """One model."""
    return model_state(model, service.serving.follower(model), service.clock())


@router.post("/models/{model}/classify", tags=["answers"], openapi_extra={"requestBody": {"content": INPUTS}})
async def post_classify(model: str, request: Request, service: ServiceOf) -> Classified:
    """Classify one record: the picture or the UTF-8 text itself as the body.

    Also taken: JSON {"text": …}, and a form with one field, `image` or `text`.
    """
    live = service.live(model, "classify")
    return classified(live, await _answered(classify, live, request, service), service.clock())


@router.post("/models/{model}/recognise", tags=["answers"], openapi_extra={"requestBody": {"content": INPUTS}})
async def post_recognise(model: str, request: Request, service: ServiceOf) -> Recognised:
    """Classify one record, or say that it resembles none of the classes. The body is as for `classify`."""
    live = service.live(model, "recognise")
    return recognised(live, await _answered(recognise, live, request, service), service.clock())


async def _answered(
    run: Callable[[Live, Sequence[Any]], Sequence[Result]], live: Live, request: Request, service: Service
) -> Result:
    content, content_type = await payload(request)  # before a place is taken: a slow client keeps none
    with service.place():
        decode = partial(input_array, whole=live.reads_whole)
        x = await service.decoded(live, decode, content, live.input, content_type)
        return await service.batched(run, live, x)


@router.get("/models/{model}/versions", tags=["versions"], dependencies=READS)
def list_versions(model: str, service: ServiceOf) -> list[Version]:
    """The versions that the store holds, newest first, and the aliases that name them."""
    store = service.serving.follower(model).store
    names: dict[Ref, list[str]] = {}
    for alias, ref in store.aliases().items():
        names.setdefault(ref, []).append(alias)
    return [
        Version(version=ref.version, digest=ref.digest, aliases=names.get(ref, []))
        for ref in reversed(store.versions())
    ]


@router.get(
    "/models/{model}/versions/{ref}",
    tags=["versions"],
    dependencies=READS,
    responses={200: {"headers": described(X_Headrace_Digest=DIGEST)}},
)
def get_version(model: str, ref: Reference, service: ServiceOf) -> Response:
    """A version's manifest, byte for byte as it is stored."""
    store = service.serving.follower(model).store
    manifest = store.manifest(ref)
    return Response(manifest.raw, headers={"X-Headrace-Digest": manifest.digest}, media_type="application/json")


@router.get(
    "/models/{model}/versions/{ref}/weights",
    tags=["versions"],
    dependencies=READS,
    response_class=Response,
    responses={
        200: {
            "content": {"application/octet-stream": {}},
            "headers": described(
                X_Headrace_Model="the model",
                X_Headrace_Version="the version's number",
                X_Headrace_Digest=DIGEST,
                X_Headrace_Watermark="topic → partition → the next offset to be read, as JSON",
                Content_Disposition="a name for the file",
                Content_Length="bytes",
            ),
        }
    },
)
def get_weights(model: str, ref: Reference, service: ServiceOf) -> Response:
    """What serving needs, as one safetensors file; its metadata tells how to build the model."""
    follower = service.serving.follower(model)
    manifest = follower.store.manifest(ref)
    return _Download(service, partial(_file, follower, manifest))


class _Download(Response):
    """Has a place from before its first byte is fetched to its last, or until the client goes."""

    def __init__(self, service: Service, made: Callable[[], Response]) -> None:
        super().__init__()
        self._service, self._made = service, made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.place(self._service.downloads):
            answer = await run_in_threadpool(self._made)
            await answer(scope, receive, send)


def _file(follower: Follower, manifest: Manifest) -> Response:
    """A version's weights as a file that is read while it is sent."""
    live = follower.live
    pieces, size = weights(follower.store, manifest, live.objects if live else {})
    headers = {
        "X-Headrace-Model": manifest.model,
        "X-Headrace-Version": str(manifest.version),
        "X-Headrace-Digest": manifest.digest,
        "X-Headrace-Watermark": json.dumps(manifest.watermark),
        "Content-Disposition": f'attachment; filename="{manifest.model}-v{manifest.version}.safetensors"',
        "Content-Length": str(size),
    }
    return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")


@router.put("/models/{model}/aliases/{alias}", tags=["versions"], status_code=204, dependencies=READS)
def put_alias(model: str, alias: Alias, target: AliasTarget, service: ServiceOf) -> None:
    """Let an alias name a version; what has a name is never removed."""
    service.serving.follower(model).store.set_alias(alias, target.version)


@router.delete("/models/{model}/aliases/{alias}", tags=["versions"], status_code=204, dependencies=READS)
def delete_alias(model: str, alias: Alias, service: ServiceOf) -> None:
    """Remove an alias; the version is kept or removed by the rules again."""
    service.serving.follower(model).store.delete_alias(alias)
