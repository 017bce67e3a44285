"""Records that could not be learned: kept whole, with the reason, in `<topic>.dead-letters`.

A dead letter is an ordinary record. Its key is the original's "topic:partition:offset", so that one sent
twice, by a worker and by the next after a crash, can be told. Its value is the original's; or none, if that
is larger than `kafka.max_bytes`: then it is at its origin alone. Its headers:

| header | value |
|---|---|
| `headrace-key` | the original's key, if it had one |
| `headrace-model` | the model that could not learn it |
| `headrace-reason` | the constant slug, see `pipeline.records` |
| `headrace-detail` | what exactly, for people: at most 1,000 characters |
| `headrace-topic`, `headrace-partition`, `headrace-offset` | where the original is, or was |
| `headrace-timestamp-ms` | when it was published |
| all others | those of the original |

Ours come first and in this order, so that an original with such headers of its own is no riddle.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import RecordError, TopicMissing
from pipeline.log import Reader
from pipeline.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config import KafkaConfig
    from pipeline.log import Publisher

NAMES = tuple(
    f"headrace-{name}" for name in ("model", "reason", "detail", "topic", "partition", "offset", "timestamp-ms")
)
KEY = "headrace-key"
MAX_DETAIL_CHARS = 1000
POLL_S = 0.1


def dead_letter_topic(topic: str) -> str:
    """Where the dead letters of `topic` go."""
    return f"{topic}.dead-letters"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The original record, and why the model could not learn it."""

    record: Record
    model: str
    reason: str
    detail: str

    @property
    def origin(self) -> str:
        """ "topic:partition:offset" of the original."""
        return f"{self.record.topic}:{self.record.partition}:{self.record.offset}"

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """The headers of the table above."""
        r = self.record
        texts = (self.model, self.reason, self.detail, r.topic, r.partition, r.offset, r.timestamp_ms)
        key = () if r.key is None else ((KEY, r.key),)
        ours = tuple((name, str(text).encode()) for name, text in zip(NAMES, texts, strict=True))
        return (*key, *ours, *r.headers)

    def json(self) -> dict[str, Any]:
        """What a program reads; the value itself stays in the log."""
        record = self.record
        return {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp_ms,
            "model": self.model,
            "reason": self.reason,
            "detail": self.detail,
            "bytes": len(record.value or b""),
            "headers": {name: value.decode(errors="replace") for name, value in record.headers},
        }


def dead_letter(record: Record, error: RecordError, model: str) -> DeadLetter:
    """What is kept of a record that could not be learned."""
    detail = error.detail[:MAX_DETAIL_CHARS].encode(errors="replace").decode()  # foreign text: lone surrogates
    return DeadLetter(record, model, error.reason, detail)


def parse(record: Record) -> DeadLetter:
    """The dead letter that is in a record of a dead-letter topic.

    Raises:
        RecordError: "undecodable": somebody else wrote it.
    """
    headers = record.headers
    key = None
    if headers and headers[0][0] == KEY:
        key, headers = headers[0][1], headers[1:]
    ours, others = headers[: len(NAMES)], headers[len(NAMES) :]
    try:
        if tuple(name for name, _ in ours) != NAMES:
            raise ValueError(f"its first headers are not {', '.join(NAMES)}")
        model, reason, detail, topic, *numbers = (value.decode() for _, value in ours)
        partition, offset, timestamp_ms = map(int, numbers)
    except ValueError as error:
        where = f"{record.topic}:{record.partition}:{record.offset}"
        raise RecordError("undecodable", f"{where} is not a dead letter: {error}.") from None
    original = Record(topic, partition, offset, timestamp_ms, key, record.value, others)
    return DeadLetter(original, model, reason, detail)


def publish_dead_letter(publisher: Publisher, record: Record, error: RecordError, model: str) -> None:
    """Sends the record to its dead-letter topic; it is there once the publisher is flushed.

    Raises:
        LogUnavailable: Kafka does not take it in time, or the topic does not exist.
        LogError: Kafka refused an earlier one.
    """
    letter = dead_letter(record, error, model)
    topic, key = dead_letter_topic(record.topic), letter.origin.encode()
    try:
        publisher.publish(topic, record.value, key=key, headers=letter.headers)
    except RecordError:  # over kafka.max_bytes: only the topic's own, higher limit let it in
        publisher.publish(topic, None, key=key, headers=letter.headers)


def read_dead_letters(config: KafkaConfig, topic: str, limit: int) -> Iterator[DeadLetter]:
    """The dead letters of `topic`, oldest first, at most `limit`; what others wrote there is passed over.

    Raises:
        LogUnavailable: Kafka cannot be reached.
        LogError: Kafka refuses.
    """
    try:
        reader = Reader(config, [dead_letter_topic(topic)], group="headrace-dead-letters")
    except TopicMissing:
        return
    with reader:
        while limit > 0 and any(reader.lag().values()):
            polled = reader.poll(POLL_S)
            for record in polled.records if polled else ():
                with suppress(RecordError):
                    yield parse(record)
                    limit -= 1
                if limit == 0:
                    return
