"""What a topic was sent since a moment, so that publishing that ended early can go on.

Kafka itself is asked, so that what it took counts, whether or not the publisher still heard of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from threading import Event

from kafka import KafkaConsumer
from pydantic import BaseModel, ConfigDict

from pipeline.config import KafkaConfig
from pipeline.errors import Stopped
from pipeline.log.connection import connected, missing_topics
from pipeline.log.offsets import describe, end_offsets
from pipeline.log.reader import Reader
from pipeline.records import Partition

POLL_S = 1.0

#: Of a record its id and its label: what is the same in a second try.
Essence = tuple[bytes | None, bytes | None]


class Mark(BaseModel):
    """The end of a topic at a moment."""

    model_config = ConfigDict(frozen=True)

    topic: str
    topic_id: str | None
    offsets: dict[int, int]  # partition → next offset


def mark(config: KafkaConfig, topic: str) -> Mark:
    """Returns the end of the topic as it is now.

    Raises:
        TopicMissing: there is no such topic.
        LogUnavailable, LogError: Kafka cannot be reached, or lets nobody read.
    """
    with connected(KafkaConsumer, config, f"tell the offsets of {topic}") as consumer:
        found = describe(consumer, [topic]).get(topic)
        if found is None:
            raise missing_topics(config, [topic])
        ends = end_offsets(consumer, found.partitions)
    return Mark(topic=topic, topic_id=found.id, offsets={at.number: offset for at, offset in ends.items()})


def sent_since(config: KafkaConfig, start: Mark, stop: Event) -> Counter[Essence]:
    """Counts each record that the topic was sent since then. If the topic was made again, all that it holds counts.

    Raises:
        Stopped: `stop` was set meanwhile.
        TopicMissing, LogUnavailable, LogError: as `Reader`.
    """
    positions = {Partition(start.topic, number): offset for number, offset in start.offsets.items()}
    ids = {} if start.topic_id is None else {start.topic: start.topic_id}
    found: Counter[Essence] = Counter()
    with Reader(
        config, [start.topic], positions=positions, topic_ids=ids, jump=True, group="headrace-publish"
    ) as reader:
        while any(reader.lag().values()):
            if stop.is_set():
                raise Stopped(f"What {start.topic} holds was not read to its end.")
            polled = reader.poll(POLL_S)
            found.update(essence(record.headers) for record in (polled.records if polled else ()))
    return found


def essence(headers: Iterable[tuple[str, bytes]]) -> Essence:
    """The id and the label of a record, from its headers."""
    named = dict(headers)
    return named.get("id"), named.get("label")
