"""The sampler's routes to how a model came to be: its figures over time, its versions, and what became of a record.

They read the store, and one of them Kafka: so they run on threads.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from consumers.sampler.examples import DIGEST, MODEL, RouteExample
from consumers.sampler.gate import refusal
from consumers.sampler.service import READS, Service, ServiceOf
from consumers.sampler.uploads import INPUTS, payload
from pipeline.records import POSITION, Place, content_id
from pipeline.store import Blame, blame, commits, places_of

MOST = 1000  # versions that one answer goes through
NEWEST = 2000  # records at the end of each partition that are looked through for one
FOUND = 16  # of them that are told
LISTED = 200  # versions that one answer of the log tells
POINTS = 240  # of a curve
QUIET = frozenset({"environment", "sources", "held_out"})  # kinds of change that are no event for who watches
BLAMED = {
    "model": "digits",
    "topic": "digits",
    "partition": 0,
    "offset": 100,
    "outcome": "learned",
    "version": 2,
    "update": 6,
}
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
    ),
    f"{MODEL}/log": RouteExample(
        [
            {
                "version": 31,
                "parent": 30,
                "digest": DIGEST,
                "aliases": ["stable"],
                "created_ms": 1_764_500_000_000,
                "updates": 294,
                "counts": {"learned": 9198, "held_out": 190},
                "since_parent": {"learned": 192},
                "ranges": {"digits:0": [4532, 4638, 106], "digits:1": [4474, 4560, 86]},
                "metrics": {"prequential_accuracy": 0.972},
                "changes": [],
            }
        ]
    ),
    f"{MODEL}/blame": RouteExample(BLAMED),
    f"{MODEL}/find": RouteExample([BLAMED]),
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


class LoggedVersion(BaseModel):
    """A version in the log, and what it learned since its parent."""

    version: int
    parent: int | None
    digest: str | None = Field(description="null: this version is not kept any more")
    aliases: list[str]
    created_ms: int = Field(description="Unix time")
    updates: int = Field(description="since the first version")
    counts: dict[str, int] = Field(description="records by outcome, since the first version")
    since_parent: dict[str, int] = Field(description="the same since the parent")
    ranges: dict[str, tuple[int, int, int]] = Field(
        description="topic:partition → the first offset that was learned, the last one + 1, records"
    )
    metrics: dict[str, float | None]
    changes: list[dict[str, Any]] = Field(description="what else happened, as the table of the lineage's changes says")


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


@router.get("/models/{model}/log", dependencies=READS)
def get_log(
    model: str,
    service: ServiceOf,
    last: Annotated[int, Query(ge=1, le=LISTED, description="so many of the newest versions")] = 20,
) -> list[LoggedVersion]:
    """The newest versions that there ever were, newest first, and what each learned."""
    return [LoggedVersion.model_validate(asdict(one)) for one in commits(service.serving.follower(model).store, last)]


@router.get("/models/{model}/blame", dependencies=READS)
def get_blame(
    model: str,
    service: ServiceOf,
    record: Annotated[str, Query(pattern=f"^{POSITION.pattern}$", description="topic:partition:offset")],
) -> Blame:
    """The version and the update that learned a record, or what else became of it.

    `earlier`: none of the newest 1,000 versions accounts for it; `headrace blame` reads all.
    """
    place = Place.parsed(record)
    return blame(service.serving.follower(model).store, place.partition, place.offset, MOST)


@router.post("/models/{model}/find", openapi_extra={"requestBody": {"content": INPUTS}})
async def post_find(
    model: str,
    request: Request,
    service: ServiceOf,
    id_: Annotated[
        str | None, Query(alias="id", min_length=1, max_length=1000, description="in place of the record itself")
    ] = None,
) -> list[Blame]:
    """What became of a record that is sent as it was published, or that has this id; of up to 16 such records.

    The id is the producer's own, or what publishing gave as one. The newest 2,000 records of each partition that the
    model reads are looked at; `headrace blame --id` looks at all.
    """
    if id_ is None:
        content, _ = await payload(request)
        if not content:
            raise refusal(422, "invalid", "There is no record. Send one, or name its id.")
        id_ = content_id(content.encode() if isinstance(content, str) else content)
    with service.admitted(service.letters):
        return await run_in_threadpool(_found, service, model, id_)


def _found(service: Service, model: str, id: str) -> list[Blame]:
    """
    Raises:
        HTTPException: 404 where no record has the id.
    """
    store, topics = service.serving.follower(model).store, service.serving.topics(model)
    records = [topic for topic, labels in topics.items() if not labels]
    places = [place for topic in records for place in places_of(service.kafka, topic, id, NEWEST)]
    if not places:
        looked = f"None of the newest {NEWEST:,} records of each partition of {', '.join(records) or 'no topic'}"
        raise refusal(404, "not-found", f"{looked} has the id {id[:80]}. `headrace blame --id` looks at all.")
    return [blame(store, place.partition, place.offset, MOST) for place in places[-FOUND:]]


def thinned(points: list[Point], most: int) -> list[Point]:
    """At most so many of them, evenly spread, the last one among them."""
    step = -(-len(points) // most) or 1
    return points[::-1][::step][::-1]
