"""The sampler's routes for whoever watches it."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from consumers.sampler.examples import RouteExample
from consumers.sampler.service import Service, ServiceOf

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
    models = {
        name: {"version": live.manifest.version if live else None, "problem": followers[name].problem}
        for name, live in lives.items()
    }
    stalls = [workers.problem for workers in service.workers]
    stalled = " ".join(dict.fromkeys(filter(None, stalls)))
    problem = stalled or service.serving.problem
    loads = any(follower.stalled for follower in followers.values())
    ready = bool(models) and all(lives.values()) and not (stalled or loads or service.broken)
    content = {"ready": ready, "store": store_state(service), "problem": problem, "models": models}
    return JSONResponse(content, 200 if ready else 503)


@router.get("/metrics", tags=["operations"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: ServiceOf) -> Response:
    """For Prometheus."""
    return Response(generate_latest(service.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def store_state(service: Service) -> str:
    """Whether Redis answers whoever follows a model, in words."""
    followers = [follower for follower in service.serving.followers().values() if not follower.deleted]
    outages = [f.unreachable_since_s for f in followers if f.unreachable_since_s is not None]
    return (
        f"unreachable since {datetime.fromtimestamp(min(outages), UTC):%Y-%m-%dT%H:%M:%SZ}" if outages else "reachable"
    )
