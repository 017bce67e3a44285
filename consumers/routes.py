"""The sampler's routes. Those that read the store are `def` and run on threads, the others are `async`."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from queue import Full
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, ValidationError
from safetensors.torch import save
from starlette.datastructures import UploadFile

from consumers.answers import (
    AliasTarget,
    Classified,
    Drawing,
    Drawn,
    ModelState,
    Standing,
    Version,
    capabilities,
    classified,
    classify,
    draw,
    grid,
    image_seeds,
    model_state,
    png,
    standing,
)
from consumers.batcher import Batcher
from consumers.bridge import tensors
from consumers.gate import RETRY_AFTER, Writers, refusal
from consumers.serving import Live, Serving, essentials
from pipeline.config import NAME, SamplerConfig
from pipeline.records import input_array
from pipeline.store import Ref

BODY_S = 30.0  # how long a client may take to send its body
PAGE = files("consumers").joinpath("page.html").read_text("utf-8")
POLICY = "default-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
INPUTS: dict[str, Any] = {"image/*": {}, "text/plain": {}, "application/json": {}, "multipart/form-data": {}}


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with."""

    config: SamplerConfig
    serving: Serving
    batcher: Batcher
    decoders: ThreadPoolExecutor
    writers: Writers
    registry: CollectorRegistry
    clock: Callable[[], float]

    def live(self, model: str, route: str) -> Live:
        """The version that is live now, if it answers that route.

        Raises:
            NotFound: no such model.
            HTTPException: 503 without a version, 409 where the model does something else.
        """
        follower = self.serving.follower(model)
        if follower.live is None:
            detail = follower.problem or "It has no version yet; one comes when its worker has learned."
            raise refusal(503, "no-version", f"{model}: {detail}", **RETRY_AFTER)
        able = capabilities(follower.live)
        if route not in able:
            others = " or ".join(f"/models/{model}/{other}" for other in able)
            raise refusal(409, "wrong-kind", f"{model} does not {route}. Use {others}.")
        return follower.live

    @contextmanager
    def place(self) -> Iterator[None]:
        """Admits one request that costs memory and computing time."""
        try:
            with self.batcher.place():
                yield
        except Full:
            raise refusal(503, "busy", "Too many requests at one time. Try again in a second.", **RETRY_AFTER) from None


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
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
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})


@router.get("/healthz", tags=["operations"])
async def healthz() -> dict[str, str]:
    """Alive: the process answers."""
    return {"status": "alive"}


@router.get("/readyz", tags=["operations"])
async def readyz(service: ServiceOf) -> JSONResponse:
    """Ready (200) when every model has a version, else 503. Says so if the store is away; what is live is served."""
    followers = service.serving.followers()
    outages = [f.unreachable_since_s for f in followers.values() if f.unreachable_since_s is not None]
    since = f"unreachable since {datetime.fromtimestamp(min(outages), UTC):%Y-%m-%dT%H:%M:%SZ}" if outages else None
    models = {
        name: {"version": f.live.manifest.version if f.live else None, "problem": f.problem}
        for name, f in followers.items()
    }
    ready = bool(models) and all(f.live for f in followers.values())
    content = {"ready": ready, "store": since or "reachable", "models": models}
    return JSONResponse(content, 200 if ready else 503)


@router.get("/metrics", tags=["operations"], response_class=Response)
def metrics(service: ServiceOf) -> Response:
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
    with service.place():
        content, content_type = await _payload(request)
        loop = asyncio.get_running_loop()
        x = await loop.run_in_executor(service.decoders, input_array, content, live.input, content_type)
        probabilities = await asyncio.wrap_future(service.batcher.submit(classify, live, x))
    return classified(live, probabilities, service.clock())


@router.get("/models/{model}/generate", tags=["answers"], response_model=Drawn)
async def get_generate(
    model: str,
    service: ServiceOf,
    n: Annotated[int, Query(ge=1, description="how many")] = 16,
    label: Annotated[str | None, Query(description="a class of the model")] = None,
    seed: Annotated[int | None, Query(ge=0, lt=2**63, description="the same seed draws the same; default: any")] = None,
    format_: Annotated[Literal["png", "json"], Query(alias="format", description="one grid, or single images")] = "png",
) -> Response:
    """Draw n images, as one PNG grid or as JSON. Image i depends on version, seed, i and label alone."""
    live = service.live(model, "generate")
    if n > service.config.max_samples:
        raise refusal(422, "invalid", f"n: at most {service.config.max_samples} are drawn by one request.")
    if label is not None and label not in live.model.classes:
        known = ", ".join(live.model.classes[:50]) or "none yet"
        raise refusal(422, "label", f"{model} has learned no such label. Known: {known}.")
    seed = secrets.randbits(32) if seed is None else seed
    with service.place():
        drawing = Drawing(image_seeds(seed, n), label)
        images = await asyncio.wrap_future(service.batcher.submit(draw, live, drawing, n))  # (n, C, H, W)
        loop = asyncio.get_running_loop()
        if format_ == "png":
            file = await loop.run_in_executor(service.decoders, png, grid(images))
        else:
            singles = await loop.run_in_executor(service.decoders, lambda: [png(image) for image in images])
    fields = standing(live, service.clock())
    if format_ == "png":
        headers = {**Standing(**fields).headers(), "X-Headrace-Seed": str(seed), "Cache-Control": "no-store"}
        return Response(file, headers=headers, media_type="image/png")
    encoded = [base64.b64encode(single).decode() for single in singles]
    return JSONResponse(Drawn(**fields, seed=seed, label=label, images=encoded).model_dump(mode="json"))


@router.get("/models/{model}/versions", tags=["versions"])
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


@router.get("/models/{model}/versions/{ref}", tags=["versions"])
def get_version(model: str, ref: Reference, service: ServiceOf) -> Response:
    """A version's manifest, byte for byte as it is stored."""
    store = service.serving.follower(model).store
    manifest = store.manifest(ref)
    return Response(manifest.raw, headers={"X-Headrace-Digest": manifest.digest}, media_type="application/json")


@router.get("/models/{model}/versions/{ref}/weights", tags=["versions"], response_class=Response)
def get_weights(model: str, ref: Reference, service: ServiceOf) -> Response:
    """What serving needs, as one safetensors file; its metadata tells how to build the model."""
    follower = service.serving.follower(model)
    manifest = follower.store.manifest(ref)
    objects = dict(follower.live.objects) if follower.live else {}
    content = save(tensors(follower.store.arrays(manifest, "serving", objects)), essentials(manifest))
    headers = {
        "X-Headrace-Model": model,
        "X-Headrace-Version": str(manifest.version),
        "X-Headrace-Digest": manifest.digest,
        "X-Headrace-Watermark": json.dumps(manifest.watermark),
        "Content-Disposition": f'attachment; filename="{model}-v{manifest.version}.safetensors"',
    }
    return Response(content, headers=headers, media_type="application/octet-stream")


@router.put("/models/{model}/aliases/{alias}", tags=["versions"], status_code=204)
def put_alias(model: str, alias: Alias, target: AliasTarget, request: Request, service: ServiceOf) -> None:
    """Let an alias name a version; what has a name is never removed."""
    service.writers.check(request)
    service.serving.follower(model).store.set_alias(alias, target.version)


@router.delete("/models/{model}/aliases/{alias}", tags=["versions"], status_code=204)
def delete_alias(model: str, alias: Alias, request: Request, service: ServiceOf) -> None:
    """Remove an alias; the version is kept or removed by the rules again."""
    service.writers.check(request)
    service.serving.follower(model).store.delete_alias(alias)


class _TextBody(BaseModel):
    text: str


async def _payload(request: Request) -> tuple[bytes | str, str | None]:
    """The payload of a request and its content type, if it is one that says something about the payload.

    `curl --data-binary @file` calls every body a form; so only a multipart body is taken for one.

    Raises:
        HTTPException: 400 or 422 where there is none, 408 where it does not come.
    """
    try:
        async with asyncio.timeout(BODY_S):
            media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media == "multipart/form-data":
                return await _form_payload(request)
            body = await request.body()
    except TimeoutError:
        raise refusal(408, "timeout", f"The body did not come within {BODY_S:.0f} s. Send it again.") from None
    if media == "application/json":
        try:
            return _TextBody.model_validate_json(body).text, None
        except ValidationError as error:
            first: Any = error.errors()[0]
            raise refusal(422, "invalid", f'{first["msg"]}. Send {{"text": "…"}}.') from None
    said = media.startswith(("image/", "text/"))
    return body, request.headers["content-type"] if said else None


async def _form_payload(request: Request) -> tuple[bytes | str, str | None]:
    async with request.form(max_files=1, max_fields=1) as form:
        for value in form.values():
            return (await value.read(), None) if isinstance(value, UploadFile) else (value, None)
    raise refusal(422, "invalid", "The form is empty. Send one field, image or text.")
