"""The sampler's route to the records of a topic, as a model sees them."""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from consumers.sampler.examples import RouteExample
from consumers.sampler.gate import RETRY_AFTER, refusal
from consumers.sampler.pictures import png
from consumers.sampler.routes_topics import Topic
from consumers.sampler.service import Service, ServiceOf
from pipeline.errors import OffsetsGone, RecordError, TopicReplaced
from pipeline.log import Fetcher
from pipeline.records import Partition, input_array

if TYPE_CHECKING:
    from collections.abc import Mapping

    from consumers.sampler.follower import Live
    from models.capabilities import Model
    from pipeline.config import KafkaConfig
    from pipeline.records import Record

MOST = 16  # records in one answer
PATIENCE_S = 5.0  # for Kafka
SHOWN = 300  # characters of a text
EXAMPLES = {"/topics/{topic}/records": RouteExample([{"at": "0:4637", "text": "Guten Morgen", "image": None}])}
At = Annotated[str, Field(pattern=r"^[0-9]{1,9}:[0-9]{1,18}$")]
router = APIRouter(tags=["topics"])


class ShownRecord(BaseModel):
    """A record; without both it is not in the log any more, or cannot be shown."""

    at: str = Field(description="partition:offset")
    text: str | None = Field(None, description=f"the first {SHOWN} characters")
    image: str | None = Field(None, description="a PNG in base64, of the size that the model reads")


@router.get("/topics/{topic}/records")
async def get_records(
    topic: Topic,
    service: ServiceOf,
    model: Annotated[str, Query(description="that reads the topic")],
    at: Annotated[list[At], Query(min_length=1, max_length=MOST, description="partition:offset")],
) -> list[ShownRecord]:
    """Records of a topic as a model sees them, in the order that is asked for: `last` in its state names some."""
    live = service.serving.follower(model).live
    if topic not in service.serving.topics(model):
        raise refusal(404, "not-found", f"{model} does not read {topic}.")
    if live is None:
        raise refusal(503, "no-version", f"{model} has no version yet.", **RETRY_AFTER)
    ids = live.manifest.topic_ids
    with service.admitted(service.letters):
        found = await run_in_threadpool(_read, service.kafka, topic, at, {topic: ids[topic]} if topic in ids else {})
        return [await _shown(service, live, place, record) for place, record in zip(at, found, strict=True)]


def _read(kafka: KafkaConfig, topic: str, at: list[str], topic_ids: Mapping[str, str]) -> list[Record | None]:
    found: list[Record | None] = [None] * len(at)
    with Fetcher(kafka, timeout_s=PATIENCE_S) as fetcher, suppress(TopicReplaced):
        for row, place in enumerate(at):
            partition, _, offset = place.partition(":")
            with suppress(OffsetsGone):
                [found[row]] = fetcher.records([(Partition(topic, int(partition)), int(offset))], topic_ids)
    return found


async def _shown(service: Service, live: Live[Model], at: str, record: Record | None) -> ShownRecord:
    if record is None or record.value is None:
        return ShownRecord(at=at)
    if live.input.kind != "image":
        return ShownRecord(at=at, text=record.value[: 4 * SHOWN].decode(errors="replace")[:SHOWN])
    try:
        image = await service.decoded(live, lambda value: png(input_array(value, live.input)), record.value)
    except RecordError:
        return ShownRecord(at=at)
    return ShownRecord(at=at, image=base64.b64encode(image).decode())
