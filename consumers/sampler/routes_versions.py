"""The sampler's routes to versions: their manifests, weights and aliases.

They read the store: so they are `def`, and run on threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from consumers.sampler.after import FRESH
from consumers.sampler.examples import DIGEST, MODEL, RouteExample
from consumers.sampler.gate import described
from consumers.sampler.service import READS, Service, ServiceOf
from consumers.sampler.weights import weights
from pipeline.config import NAME

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from consumers.sampler.follower import Follower
    from pipeline.store import Manifest, Ref

OF_MANIFEST = "SHA-256 of the version's manifest"
EXAMPLES = {
    f"{MODEL}/versions": RouteExample([{"version": 31, "digest": DIGEST, "aliases": ["stable"]}]),
    f"{MODEL}/versions/{{ref}}": RouteExample(
        {"format": 1, "model": "digits", "version": 31, "learner": "image-analytic"}
    ),
    f"{MODEL}/aliases/{{alias}}": RouteExample(sent={"version": 31}),
}
Reference = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="latest, an alias, a number, or the beginning of a digest",
    ),
]
Alias = Annotated[str, Path(pattern=NAME)]
router = APIRouter(tags=["versions"])


class Version(BaseModel):
    """One version that the store still holds."""

    version: int
    digest: str
    aliases: list[str]


class AliasTarget(BaseModel):
    """The version that an alias names from now on."""

    version: int = Field(ge=1, lt=2**53)


@router.get("/models/{model}/versions", dependencies=[*FRESH, *READS])
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
    dependencies=[*FRESH, *READS],
    responses={200: {"headers": described(X_Headrace_Digest=OF_MANIFEST)}},
)
def get_version(model: str, ref: Reference, service: ServiceOf) -> Response:
    """A version's manifest, byte for byte as it is stored."""
    store = service.serving.follower(model).store
    manifest = store.manifest(ref)
    return Response(manifest.raw, headers={"X-Headrace-Digest": manifest.digest}, media_type="application/json")


@router.get(
    "/models/{model}/versions/{ref}/weights",
    dependencies=[*FRESH, *READS],
    response_class=Response,
    responses={
        200: {
            "content": {"application/octet-stream": {}},
            "headers": described(
                X_Headrace_Model="the model",
                X_Headrace_Version="the version's number",
                X_Headrace_Digest=OF_MANIFEST,
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
    """Is admitted before its first byte is fetched, and until its last one is sent or the client goes."""

    def __init__(self, service: Service, made: Callable[[], Response]) -> None:
        super().__init__()
        self._service, self._made = service, made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.admitted(self._service.downloads):
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


@router.put("/models/{model}/aliases/{alias}", status_code=204, dependencies=READS)
def put_alias(model: str, alias: Alias, target: AliasTarget, service: ServiceOf) -> None:
    """Let an alias name a version; what has a name is never removed."""
    service.serving.follower(model).store.set_alias(alias, target.version)


@router.delete("/models/{model}/aliases/{alias}", status_code=204, dependencies=READS)
def delete_alias(model: str, alias: Alias, service: ServiceOf) -> None:
    """Remove an alias; the version is kept or removed by the rules again."""
    service.serving.follower(model).store.delete_alias(alias)
