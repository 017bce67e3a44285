"""The sampler's route to how a model came to be: its figures over time, and what happened to it."""

from __future__ import annotations

from collections import deque
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from consumers.sampler.examples import MODEL, RouteExample
from consumers.sampler.service import READS, ServiceOf

MOST = 1000  # versions that one answer goes through
POINTS = 240  # of a curve
QUIET = frozenset({"environment", "sources", "held_out"})  # kinds of change that are no event for who watches
EXAMPLES = {
    f"{MODEL}/history": RouteExample(
        {
            "points": [
                {
                    "version": 31,
                    "created_ms": 1_764_500_000_000,
                    "updates": 294,
                    "records": 9198,
                    "metrics": {"prequential_accuracy": 0.972},
                }
            ],
            "marks": [
                {"version": 12, "created_ms": 1_764_499_900_000, "kind": "drift", "what": {"update": 120}},
            ],
        }
    )
}
router = APIRouter(tags=["models"])


class Point(BaseModel):
    """A version's figures."""

    version: int
    created_ms: int = Field(description="Unix time")
    updates: int
    records: int = Field(description="that were learned since the first version")
    metrics: dict[str, float | None]


class Happening(BaseModel):
    """Something that happened on the way to a version."""

    version: int
    created_ms: int = Field(description="Unix time")
    kind: str = Field(description="as the table of the lineage's changes names it")
    what: dict[str, Any]


class Curve(BaseModel):
    """The figures of a model over time, and what happened to it, both oldest first."""

    points: list[Point]
    marks: list[Happening]


@router.get("/models/{model}/history", dependencies=READS)
def get_history(
    model: str,
    service: ServiceOf,
    last: Annotated[int, Query(ge=1, le=MOST, description="so many of the newest versions")] = MOST,
) -> Curve:
    """The figures of the last versions, of which at most 240 are told, and all that happened to them."""
    store = service.serving.follower(model).store
    head = store.head()
    points, marks = list[Point](), list[Happening]()
    for entry in store.histories(max(0, head.version - last)) if head else ():
        moment = {"version": entry.version, "created_ms": entry.created_ms}
        learned = entry.counts.get("learned", 0)
        points.append(Point(**moment, updates=entry.updates, records=learned, metrics=entry.metrics))
        changes = [(kind, what) for change in entry.lineage.changes for kind, what in change.items()]
        marks += [
            Happening.model_validate({**moment, "kind": k, "what": what}) for k, what in changes if k not in QUIET
        ]
    return Curve(points=thinned(points, POINTS), marks=list(deque(marks, POINTS)))


def thinned(points: list[Point], most: int) -> list[Point]:
    """At most so many of them, evenly spread, the last one among them."""
    step = -(-len(points) // most) or 1
    return points[::-1][::step][::-1]
