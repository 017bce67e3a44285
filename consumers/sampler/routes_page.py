"""The sampler's page: a few files of `page/`, which a browser runs as they are."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from consumers.sampler.examples import RouteExample
from consumers.sampler.gate import Access, refusal
from consumers.sampler.service import ServiceOf

TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FOLDER = files("consumers.sampler").joinpath("page")
INDEX = FOLDER.joinpath("index.html").read_text("utf-8")
FILES = {
    entry.name: entry.read_bytes() for entry in FOLDER.iterdir() if entry.name.rpartition(".")[2] in TYPES
}  # what is served, and nothing else: no name is looked up in a folder
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
EXAMPLES: dict[str, RouteExample] = {}
router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request, service: ServiceOf) -> Response:
    settings = service.config
    bounds = f'data-samples="{settings.max_samples}" data-versions="{settings.max_versions}"'
    bounds += ' data-publishes="yes"' if settings.publish else ""
    bounds += ' data-records="open"' if Access(settings).records_open else ""
    return _cached(request, INDEX.replace("data-bounds", bounds).encode(), "text/html", POLICY)


@router.get("/page/{name}")
async def page_file(name: str, request: Request) -> Response:
    if name not in FILES:
        raise refusal(404, "not-found", f"The page has no file {name}.")
    return _cached(request, FILES[name], TYPES[name.rpartition(".")[2]])


def _cached(request: Request, content: bytes, media_type: str, policy: str | None = None) -> Response:
    """The content, or 304 where the browser has it: it asks each time, so that no old part meets a new one."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"} | ({"Content-Security-Policy": policy} if policy else {})
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)
