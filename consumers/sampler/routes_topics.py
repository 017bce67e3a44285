"""The sampler's route for those who publish without a Kafka client."""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool

from consumers.sampler.examples import RouteExample
from consumers.sampler.gate import PUSHED_BACK, refusal
from consumers.sampler.outbox import Message
from consumers.sampler.service import ServiceOf
from consumers.sampler.uploads import FORM, media_of, payload
from pipeline.client import Published, PublishedRecord
from pipeline.errors import RecordError
from pipeline.records import content_id, headers_of, name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.records import Place

MOST = 1000  # records in one request
JSON, LINES = "application/json", "application/x-ndjson"
Topic = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,249}$", description="that a model reads")]
Name = Annotated[str | None, Query(description="of a record that is the body itself")]
EXAMPLES = {
    "/topics/{topic}": RouteExample(
        {
            "topic": "digits",
            "records": [{"position": "digits:0:4638", "id": "5ba2ab7c9d7b1d8b5c1e2f6c7c9d0a11"}],
            "after": ["digits:0:4638"],
        },
        {"records": [{"text": "Guten Morgen", "label": "de"}]},
    )
}
ModelT = TypeVar("ModelT", bound=BaseModel)
router = APIRouter(tags=["topics"])


def _decoded(value: Any) -> Any:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


Base64 = Annotated[bytes, BeforeValidator(_decoded), WithJsonSchema({"type": "string", "contentEncoding": "base64"})]


class NewRecord(BaseModel):
    """A text, or bytes as base64; with neither it is the label of the record with this id."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    data: Base64 | None = None
    content_type: str | None = Field(None, max_length=200, description="of the bytes, such as image/png")
    label: str | None = None
    id: str | None = Field(None, description="the producer's own name of the record; default: a digest of its content")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.text is not None and (self.data is not None or self.content_type is not None):
            raise ValueError("give a text, or data with its content_type")
        if self.text is None and self.data is None and (self.label is None or self.id is None):
            raise ValueError("give a text, or data, or else an id and its label")
        return self

    @property
    def is_label(self) -> bool:
        """Whether it says the label of another record."""
        return self.text is None and self.data is None

    def message(self) -> Message:
        """
        Raises:
            RecordError: a label or an id that can be none, or nothing to learn from.
        """
        label = None if self.label is None else name_of("label", self.label)
        id_ = None if self.id is None else name_of("id", self.id)
        if self.is_label:
            return Message(str(id_), str(label).encode(), key=str(id_).encode())
        value = self.data or b"" if self.text is None else self.text.encode()
        if not value:
            raise RecordError("content", "there is none. Fill it, or leave the record out.")
        id_ = id_ or content_id(value)
        kind = self.content_type if self.text is None else "text/plain"
        return Message(id_, value, headers_of(kind, label, id_))


class _NewRecords(BaseModel):
    model_config = ConfigDict(extra="forbid")

    records: list[NewRecord] = Field(min_length=1, max_length=MOST)


RECORD = NewRecord.model_json_schema()
SENT: dict[str, Any] = {
    "image/*": {},
    "text/plain": {},
    JSON: {
        "schema": {
            "anyOf": [
                RECORD,
                {
                    "type": "object",
                    "properties": {"records": {"type": "array", "items": RECORD, "minItems": 1, "maxItems": MOST}},
                    "required": ["records"],
                    "additionalProperties": False,
                },
            ]
        }
    },
    LINES: {"schema": {"type": "string", "description": "a record a line, each as in JSON"}},
    FORM: {},
    "multipart/form-data": {},
}


@router.post(
    "/topics/{topic}",
    openapi_extra={"requestBody": {"content": SENT}},
    responses={429: PUSHED_BACK},
)
async def post_records(
    topic: Topic, request: Request, service: ServiceOf, label: Name = None, id: Name = None
) -> Published:
    """Publish records to a topic that a model reads: all of them, or none.

    The body is the picture or the text itself, or a form with one field, `image` or `text`; or JSON: one record, or
    `records`, or a record a line. It answers once the log has them. Hand `after` to a route of a model: it is answered
    by a version that has learned them.
    """
    of_labels = service.has_labels(topic)
    media = media_of(request)
    if media in (JSON, LINES):
        if label is not None or id is not None:
            raise refusal(422, "invalid", "Name label and id inside the JSON, beside each record.")
        read = partial(_records, await request.body(), media)
    else:
        content, kind = await payload(request)
        read = partial(_alone, content, kind, label, id)
    with service.publishing():
        messages = await run_in_threadpool(lambda: _messages(read(), of_labels))
        places = await run_in_threadpool(service.outbox.send, topic, messages)
    return _published(topic, messages, places)


def _records(body: bytes, media: str) -> list[NewRecord]:
    """The records of a body of JSON, or of lines of it.

    Raises:
        HTTPException: 422 where it is none of the documented forms.
    """
    if media == JSON:
        fields = _json(body, "The body")
        many = isinstance(fields, dict) and "records" in fields
        return _valid(_NewRecords, fields, "").records if many else [_valid(NewRecord, fields, "")]
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    if not 0 < len(lines) <= MOST:
        raise refusal(422, "invalid", f"{len(lines)} lines. Send 1 to {MOST} at one time.")
    return [_valid(NewRecord, _json(line, f"Line {number}"), f"line {number}: ") for number, line in lines]


def _alone(content: bytes | str, kind: str | None, label: str | None, id: str | None) -> list[NewRecord]:
    """The record that is a body itself."""
    if isinstance(content, str):
        return [NewRecord(text=content, label=label, id=id)]
    return [NewRecord.model_construct(data=content, content_type=kind, label=label, id=id)]


def _messages(records: Sequence[NewRecord], of_labels: bool) -> list[Message]:
    """
    Args:
        of_labels: whether the topic has labels, and no records.

    Raises:
        HTTPException: 422 where the topic takes the other, or a record cannot be published.
    """
    if any(record.is_label != of_labels for record in records):
        takes = "labels: send an id and its label, as JSON" if of_labels else "records: send a text or data"
        raise refusal(422, "invalid", f"This topic takes {takes}.")
    messages = []
    for number, record in enumerate(records, 1):
        try:
            messages.append(record.message())
        except RecordError as error:
            raise refusal(422, error.reason, f"Record {number}, its {error.reason}: {error.detail}") from None
    return messages


def _json(raw: bytes, what: str) -> Any:
    try:
        return from_json(raw)
    except ValueError as error:
        raise refusal(422, "invalid", f"{what} is not JSON: {error}.") from None


def _valid(model: type[ModelT], fields: Any, where: str) -> ModelT:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "the record"
        raise refusal(422, "invalid", f"{where}{at}: {first['msg']}.") from None


def _published(topic: str, messages: Sequence[Message], places: Sequence[Place]) -> Published:
    last = {place.partition: place for place in places}  # offsets of a partition rise
    records = [
        PublishedRecord(position=str(place), id=message.id) for message, place in zip(messages, places, strict=True)
    ]
    return Published(topic=topic, records=records, after=[str(place) for place in last.values()])
