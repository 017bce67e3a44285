"""The sampler's routes for whoever watches it, and its page."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from consumers.sampler.examples import RouteExample
from consumers.sampler.service import ServiceOf

PAGE = files("consumers.sampler").joinpath("page.html").read_text("utf-8")
SCRIPT = PAGE[PAGE.index("<script>") + len("<script>") : PAGE.index("</script>")]  # the only one that may run
SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_DIGEST}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
EXAMPLES = {
    "/healthz": RouteExample({"status": "alive"}),
    "/readyz": RouteExample(
        {
            "ready": True,
            "store": "reachable",
            "problem": None,
            "models": {"digits": {"version": 31, "problem": None}},
        }
    ),
}
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
    ready = bool(models) and all(lives.values()) and not (stalled or loads or service.broken)
    content = {"ready": ready, "store": since or "reachable", "problem": problem, "models": models}
    return JSONResponse(content, 200 if ready else 503)


@router.get("/metrics", tags=["operations"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: ServiceOf) -> Response:
    """For Prometheus."""
    return Response(generate_latest(service.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
