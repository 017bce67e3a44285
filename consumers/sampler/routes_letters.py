"""The sampler's routes to dead letters: the newest of a topic, and what becomes of one.

They read Kafka: so they are `def`, and run on threads.
"""

from __future__ import annotations

import base64
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from consumers.sampler.examples import RouteExample
from consumers.sampler.gate import PUSHED_BACK, refusal
from consumers.sampler.routes_topics import Topic
from consumers.sampler.service import Service, ServiceOf
from pipeline.errors import RecordError
from pipeline.log import DeadLetter, meant, read_dead_letters, resolve_dead_letters
from pipeline.records import POSITION, Place, headers_of, name_of

NEWEST = 200  # records at the end of each partition of a topic of dead letters that are looked at
SHOWN_BYTES = 1 << 16  # of a letter's value; a larger one is not shown
LETTER = {
    "origin": "digits:0:17",
    "model": "digits",
    "reason": "undecodable",
    "detail": "it is no picture.",
    "sent_ms": 1_764_500_000_000,
    "bytes": 5,
    "label": "7",
    "text": "hello",
    "data": "aGVsbG8=",
}
EXAMPLES = {
    "/topics/{topic}/dead-letters": RouteExample(
        [LETTER], {"origin": "digits:0:17", "model": "digits", "resolution": "requeued", "label": "1"}
    )
}
router = APIRouter(tags=["topics"])


class Letter(BaseModel):
    """A record that could not be learned."""

    origin: str = Field(description="topic:partition:offset of the record")
    model: str
    reason: str = Field(description="a constant slug")
    detail: str
    sent_ms: int | None = Field(description="Unix time")
    bytes: int | None = Field(description="of the record; null: it is at its origin alone")
    label: str | None = None
    text: str | None = Field(None, description="the record, where it is a text of at most 64 kB")
    data: str | None = Field(None, description="the record in base64, where it has at most 64 kB")


class Resolved(BaseModel):
    """What shall become of a letter."""

    origin: str = Field(pattern=f"^{POSITION.pattern}$")
    model: str
    resolution: Literal["requeued", "dropped"]
    label: str | None = Field(None, description="what it is requeued with")
    text: str | None = Field(None, min_length=1, description="what it is requeued as, where the model reads texts")


@router.get("/topics/{topic}/dead-letters")
def get_letters(
    topic: Topic,
    service: ServiceOf,
    last: Annotated[int, Query(ge=1, le=NEWEST, description="so many of the newest")] = 50,
) -> list[Letter]:
    """The newest open dead letters of a topic that a model reads, newest first."""
    topics = service.serving.topics()
    if topic not in topics:
        raise refusal(404, "not-found", f"No model reads {topic}. {meant(topic, topics.keys())}")
    with service.admitted(service.letters):
        letters = read_dead_letters(service.kafka, topic, last=NEWEST, keep_bytes=SHOWN_BYTES)
        return [_shown(letter) for letter in letters[::-1][:last]]


@router.post("/topics/{topic}/dead-letters", responses={429: PUSHED_BACK})
def post_letter(topic: Topic, asked: Resolved, service: ServiceOf) -> list[Letter]:
    """Publish a dead letter again for its model alone, after a fix or mended, or drop it; tells what was done."""
    service.has_labels(topic)  # where nothing is published, it refuses
    if asked.resolution == "requeued":
        _check_requeued(service, asked)
    key, headers = (asked.origin, asked.model), _mended(asked)
    values = {} if asked.text is None else {key: asked.text.encode()}
    with service.publishing(), service.admitted(service.letters):
        letters = read_dead_letters(service.kafka, topic, last=NEWEST, model=asked.model)
        chosen = [letter for letter in letters if letter.origin == asked.origin]
        done = chosen and resolve_dead_letters(
            service.kafka, topic, chosen, asked.resolution, {key: headers}, NEWEST, values
        )
        if not done:
            detail = f"No such dead letter is open among the newest: {asked.origin} of {asked.model}. "
            raise refusal(404, "not-found", f"{detail}`headrace dead-letters list {topic}` looks at all.")
        return [_shown(letter) for letter in done]


def _check_requeued(service: Service, asked: Resolved) -> None:
    """
    Raises:
        NotFound: no such model.
        HTTPException: 409 where the record would be learned twice, or without a label that came later.
    """
    live = service.serving.follower(asked.model).live
    if live is None or not live.manifest.accounts_for(Place.parsed(asked.origin)):
        detail = f"No version of {asked.model} accounts for {asked.origin} yet: its worker will read it by itself."
        raise refusal(409, "not-yet", detail)
    if any(service.serving.topics(asked.model).values()):
        detail = f"{asked.model} reads labels from a topic: `headrace dead-letters requeue` looks for that of a record."
        raise refusal(409, "labels", detail)
    if asked.text is not None and live.input.kind != "text":
        raise refusal(422, "invalid", f"{asked.model} reads no texts: requeue it without one.")


def _mended(asked: Resolved) -> tuple[tuple[str, bytes], ...]:
    """
    Raises:
        HTTPException: 422 where the label can be none.
    """
    try:
        label = None if asked.label is None else name_of("label", asked.label)
    except RecordError as error:
        raise refusal(422, error.reason, f"The label: {error.detail}") from None
    return headers_of(None if asked.text is None else "text/plain", label, None)


def _shown(letter: DeadLetter) -> Letter:
    value = letter.record.value
    labels = [text for name, text in letter.record.headers if name == "label"]
    return Letter(
        origin=letter.origin,
        model=letter.model,
        reason=letter.reason,
        detail=letter.detail,
        sent_ms=letter.sent_ms,
        bytes=letter.value_bytes,
        label=labels[-1].decode(errors="replace") if labels else None,
        text=None if value is None else _text(value),
        data=None if value is None else base64.b64encode(value).decode(),
    )


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
