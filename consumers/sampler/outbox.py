"""Publishing for those who have no Kafka client: what requests bring goes to the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Full

from consumers.sampler.gate import refusal
from pipeline.config import KafkaConfig
from pipeline.errors import LogError, LogUnavailable
from pipeline.log import Publisher, ensure_topics
from pipeline.records import Place

WAIT_S = 2.0  # for a connection, or for room
ACKNOWLEDGED_S = 8.0  # for all records of a request
END_S = 1.0


@dataclass(frozen=True, slots=True)
class Message:
    """A record that is on its way to the log."""

    id: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    key: bytes | None = None


class Outbox:
    """Publishes one request at a time: what Kafka refuses is then of that request alone.

    For threads that may wait. It connects when the first request comes.
    """

    def __init__(self, kafka: KafkaConfig) -> None:
        self._kafka = kafka
        self._turn = threading.Lock()
        self._publisher: Publisher | None = None
        self._topics: set[str] = set()  # known to exist

    def send(self, topic: str, messages: Sequence[Message]) -> list[Place]:
        """Returns where the messages are in the log, once Kafka has acknowledged all.

        Raises:
            Full: Kafka has not acknowledged yet what an earlier request brought.
            HTTPException: 413 where one is larger than may be: none is sent. 504 where Kafka took them and did not
                acknowledge them in time.
            TopicMissing: there is no such topic, and none is made.
            TooLarge: the topic takes none of this size.
            LogUnavailable, LogError: Kafka cannot be reached, or refuses.
        """
        most = self._kafka.max_bytes
        for number, message in enumerate(messages, 1):
            if len(message.value) > most:
                detail = (
                    f"Record {number} has {len(message.value)} bytes, over kafka.max_bytes = {most}. Make it smaller."
                )
                raise refusal(413, "too-large", detail)
        with self._turn:
            try:
                return self._sent(topic, messages)
            except LogUnavailable:
                raise
            except LogError:  # the publisher takes no more
                self._leave()
                raise

    def close(self) -> None:
        """Disconnects. What is still on its way has END_S."""
        with self._turn:
            self._leave()

    def _sent(self, topic: str, messages: Sequence[Message]) -> list[Place]:
        if self._publisher is None:
            self._publisher = Publisher(self._kafka, linger_ms=0, wait_s=WAIT_S)
        if self._publisher.buffered_bytes:
            raise Full
        if topic not in self._topics:
            ensure_topics(self._kafka, [topic])
            self._topics.add(topic)
        deadline_s, receipts = time.monotonic() + ACKNOWLEDGED_S, []
        try:
            for one in messages:
                receipts.append(self._publisher.publish(topic, one.value, key=one.key, headers=one.headers))
            return [receipt.place(max(0.0, deadline_s - time.monotonic())) for receipt in receipts]
        except LogUnavailable as error:
            if not receipts:
                raise
            raise refusal(504, "unacknowledged", f"{error} The records may be in the log, or come there.") from None

    def _leave(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            with suppress(LogError):
                publisher.close(END_S)
