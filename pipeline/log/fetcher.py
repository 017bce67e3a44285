"""Reading named records again: those at given places, in a given order, and no others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from kafka import KafkaConsumer
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from pipeline.closing import Closing
from pipeline.config import KafkaConfig
from pipeline.errors import LogUnavailable, OffsetsGone, TopicReplaced
from pipeline.log.batches import memory_of
from pipeline.log.connection import connect, translated
from pipeline.log.offsets import CALL_MS, describe, end_offsets, first_offsets, tp
from pipeline.records import Partition, Record

POLL_MS = 100
FETCH_WAIT_MS = 10  # what is asked for is there, or will not come: a fetch that finds nothing only holds up the next
CHUNK_RECORDS = 500
FETCH_BYTES = 8 << 20  # of one answer
PARTITION_FETCH_BYTES = 512 << 10
FAR = 5_000  # offsets: a seek costs about as much as reading over these


@dataclass(slots=True)
class _Ahead:
    """The records of a partition that were read and not handed out yet: from offset `first` up to `position`."""

    first: int
    position: int  # where the consumer stands
    records: deque[Record] = field(default_factory=deque)
    size_bytes: int = 0
    is_reading: bool = False  # else it is read on when that is asked for, not before

    def reaches(self, offset: int) -> bool:
        """Whether reading on comes to it soon, if it is not here already."""
        return self.first <= offset < self.position + FAR

    def drop(self) -> Record:
        record = self.records.popleft()
        self.first = record.offset + 1
        self.size_bytes -= memory_of(record)
        return record

    def move(self, offset: int) -> None:
        self.first = self.position = offset
        self.records.clear()
        self.size_bytes = 0


class Fetcher(Closing):
    """Hands out committed records by their places, over one connection of its own, for one thread.

    Partitions are read on in order, in chunks; it seeks only where a place is behind what was read last, or far
    ahead. What is read ahead stays until it is asked for or passed over: of the n-th partition that is asked for at
    most `max_buffered_bytes` / n and a chunk, and in kafka-python one fetch (8 MiB, or one record) or two.

    Raises:
        ConfigError, LogUnavailable, LogError: as `connect`.
    """

    def __init__(self, config: KafkaConfig, *, timeout_s: float = 30.0, max_buffered_bytes: int = 16 << 20) -> None:
        self._config = config
        self._timeout_s = timeout_s
        self._max_buffered_bytes = max_buffered_bytes
        self._ahead: dict[Partition, _Ahead] = {}
        self._consumer = connect(
            KafkaConsumer,
            config,
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
            max_poll_records=CHUNK_RECORDS,
        )

    def records(
        self, wanted: Iterable[tuple[Partition, int]], topic_ids: Mapping[str, str] | None = None
    ) -> Iterator[Record]:
        """The records at these places, in this order; `wanted` is read as the records are asked for.

        Args:
            topic_ids: the topics that the places belong to, if known: an offset of another one names another record.

        Raises:
            OffsetsGone: a record is not in the log any more, or not yet.
            TopicReplaced: a topic has another id.
            LogUnavailable: no broker answered for `timeout_s`.
            LogError: Kafka refuses.
        """
        unchecked = dict(topic_ids or {})
        for partition, offset in wanted:
            try:
                record = self._record(partition, offset)
                if partition.topic in unchecked:
                    self._check_id(partition, offset, unchecked.pop(partition.topic))
            except KafkaError as error:
                raise translated(error, self._config, f"read {partition} offset {offset}") from error
            yield record

    def close(self) -> None:
        """Ends the connection."""
        self._consumer.close(autocommit=False, timeout_ms=1000)

    def _record(self, partition: Partition, offset: int) -> Record:
        ahead = self._ahead.get(partition)
        if ahead is None:
            ahead = self._ahead[partition] = _Ahead(offset, offset)
        elif not ahead.reaches(offset):
            self._move(partition, offset)
        moved_at = time.monotonic()
        while True:
            while ahead.records and ahead.records[0].offset < offset:
                ahead.drop()
            if ahead.records and ahead.records[0].offset == offset:
                return ahead.drop()
            if offset < ahead.position:
                raise _gone(partition, offset, "which the log has left out: compaction, or its transaction was aborted")
            before = ahead.position
            self._read_on(partition, offset)
            if ahead.position != before:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > self._timeout_s:
                raise LogUnavailable(
                    f"Kafka at {self._config.bootstrap_servers} did not give {partition} offset {offset} within "
                    f"{self._timeout_s:g} s. See that it runs and that the partition has a leader."
                )

    def _move(self, partition: Partition, offset: int) -> None:
        self._ahead[partition].move(offset)
        if self._ahead[partition].is_reading:
            self._consumer.seek(tp(partition), offset)

    def _read_on(self, partition: Partition, offset: int) -> None:
        """Polls once: for the one that is waited for, and for others while they have room."""
        share = self._max_buffered_bytes // len(self._ahead)
        full = [at for at, ahead in self._ahead.items() if ahead.is_reading and ahead.size_bytes >= share]
        self._assign(added={partition}, removed={*full} - {partition})
        try:
            fetched = self._consumer.poll(timeout_ms=POLL_MS)
        except (OffsetOutOfRangeError, LogTruncationError):
            self._check_held(partition, offset)
            self._assign(added={partition}, removed=self._ahead.keys() - {partition})  # others when they are asked for
            self._move(partition, offset)  # over what is gone in between
            return
        for at, records in fetched.items():
            ahead = self._ahead[Partition(*at)]
            ahead.records.extend(records)
            ahead.size_bytes += sum(map(memory_of, records))
        for at, ahead in self._ahead.items():
            if ahead.is_reading:
                ahead.position = self._consumer.position(tp(at), timeout_ms=0)
        if not fetched:
            self._check_held(partition, offset)

    def _assign(self, added: Set[Partition], removed: Set[Partition]) -> None:
        """Changes what is being read. Not by pausing: kafka-python 3.0 may never go on with what was paused."""
        reading = {at for at, ahead in self._ahead.items() if ahead.is_reading}
        changed = (reading | added) - removed
        if changed != reading:
            self._consumer.assign([tp(at) for at in changed])
        for at in changed - reading:
            self._consumer.seek(tp(at), self._ahead[at].position)
        for at, ahead in self._ahead.items():
            ahead.is_reading = at in changed

    def _check_held(self, partition: Partition, offset: int) -> None:
        """Raises OffsetsGone where waiting for the record is in vain; not where the broker is away."""
        timeout_ms = min(CALL_MS, self._timeout_s * 1000)
        try:
            topic = describe(self._consumer, [partition.topic], timeout_ms).get(partition.topic)
            if topic is None or partition not in topic.partitions:
                raise _gone(partition, offset, "and there is no such partition now")
            first = first_offsets(self._consumer, [partition], timeout_ms)[partition]
            end = end_offsets(self._consumer, [partition], timeout_ms)[partition]
        except KafkaError as error:
            if not error.retriable:
                raise
            return
        if not first <= offset < end:
            raise _gone(partition, offset, f"and the partition holds offsets {first} to {end}")

    def _check_id(self, partition: Partition, offset: int, former_id: str) -> None:
        topic = describe(self._consumer, [partition.topic], self._timeout_s * 1000).get(partition.topic)
        if topic is not None and topic.id is not None and topic.id != former_id:
            raise TopicReplaced(
                f"{partition} offset {offset} is to be read again, but {partition.topic} was deleted and made again "
                f"(its id was {former_id} and is {topic.id}). Restore the topic, or go on from a version that does not "
                "need its records."
            )


def _gone(partition: Partition, offset: int, why: str) -> OffsetsGone:
    return OffsetsGone(
        f"{partition} offset {offset} is to be read again, {why}. Restore the topic's data, or go on from a version "
        "that does not need this record."
    )
