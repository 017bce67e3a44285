"""Reading: self-assigned partitions, in order, from given positions, in the background, in bounded memory.

No consumer group decides who reads what, so a long step can never be thrown out of one; offsets are committed
to Kafka only so that lag monitors see them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from pipeline.config import KafkaConfig
from pipeline.errors import ConfigError, OffsetsGone
from pipeline.kafka_client import connect, missing_topics, translated
from pipeline.records import Record

POLL_MS = 100  # how soon the thread sees that it shall stop or commit
FETCH_WAIT_MS = 50  # how long a fetch that finds nothing holds up other partitions of that broker
CALL_MS = 10_000
CHUNK_RECORDS = 500
RECORD_OVERHEAD = 500  # bytes that a record takes in Python beside its key and value


class Partition(NamedTuple):
    """One ordered part of a topic."""

    topic: str
    number: int


@dataclass(slots=True)
class Polled:
    """A chunk of records, in the order of each partition; perhaps none, where only positions have moved."""

    records: list[Record] = field(default_factory=list)
    # Next offset to read once the records are consumed; steps over gaps (transaction markers, compaction).
    positions: dict[Partition, int] = field(default_factory=dict)


class Reader:
    """Reads committed records of `topics`. A thread fetches ahead until `max_buffered_bytes` wait for `poll`.

    A partition in `positions` goes on there. Any other begins at `start`: "earliest", "latest", or an ISO
    8601 time; unless its topic has positions already: then it is new, and begins at its first record, like
    the partitions that appear while running. The first chunk names where every partition begins, so that a
    watermark made of the chunks' positions is complete from the start.

    A broker that is away is waited for. What waits may exceed `max_buffered_bytes` by one fetch.

    Raises:
        TopicMissing: a topic does not exist.
        OffsetsGone: a position is not between a partition's first and last offset.
        ConfigError: `start` is not a time.
        LogUnavailable, LogError: Kafka cannot be reached, or refuses.
    """

    def __init__(
        self,
        config: KafkaConfig,
        topics: Iterable[str],
        *,
        positions: Mapping[Partition, int] | None = None,
        start: str = "earliest",
        group: str,
        max_buffered_bytes: int = 32 << 20,
        refresh_s: float = 5.0,  # how often new partitions are looked for
    ) -> None:
        self._config = config
        self._topics = tuple(topics)
        self._max_buffered_bytes = max_buffered_bytes
        self._refresh_s = refresh_s
        self.reachable = True  # whether the broker answered the last refresh
        self._changed = threading.Condition()  # guards what follows
        self._chunks: deque[tuple[Polled, int]] = deque()  # with their sizes in bytes
        self._buffered_bytes = 0
        self._polled: dict[Partition, int] = {}  # what `poll` has handed out
        self._ends: dict[Partition, int] = {}
        self._commits: dict[Partition, int] = {}
        self._error: BaseException | None = None
        self._stopped = False
        self._read: dict[Partition, int] = {}  # what the thread has read; its own
        self._consumer = connect(
            KafkaConsumer,
            config,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            metadata_max_age_ms=max(1, int(refresh_s * 1000)),
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=max_buffered_bytes,
            max_partition_fetch_bytes=max(1, max_buffered_bytes // 4),
            max_poll_records=CHUNK_RECORDS,
            metrics_enabled=False,
        )
        try:
            self._begin(positions or {}, start)
        except BaseException as error:
            self._consumer.close(autocommit=False)
            if isinstance(error, KafkaError):
                raise translated(error, config, "tell the offsets of " + ", ".join(self._topics)) from error
            raise
        self._thread = threading.Thread(target=self._run, name="log-reader", daemon=True)
        self._thread.start()

    def poll(self, timeout_s: float) -> Polled | None:
        """The next chunk, or None if there is none in time.

        Raises:
            OffsetsGone: records that were not read yet have been deleted.
            LogError: Kafka refuses.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._error, timeout_s)
            if self._chunks:
                polled, size = self._chunks.popleft()
                self._buffered_bytes -= size
                self._polled.update(polled.positions)
                self._changed.notify_all()
                return polled
            if self._error is not None:
                raise self._error
            return None

    def lag(self) -> dict[Partition, int]:
        """Offsets that are written and not yet polled; transaction markers count until they are stepped over."""
        with self._changed:
            return {p: max(0, self._ends[p] - position) for p, position in self._polled.items()}

    @property
    def buffered_bytes(self) -> int:
        """What waits for `poll`."""
        with self._changed:
            return self._buffered_bytes

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Has the offsets committed to Kafka soon, for lag monitors alone; failures are ignored."""
        with self._changed:
            self._commits.update(positions)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread; what was not polled is read again by the next reader."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Where to begin: in the caller's thread, before the other one runs.

    def _begin(self, positions: Mapping[Partition, int], start: str) -> None:
        found = {topic: self._consumer.partitions_for_topic(topic) for topic in self._topics}
        if missing := [topic for topic, numbers in found.items() if not numbers]:
            raise missing_topics(self._config, missing)
        partitions = [Partition(topic, number) for topic, numbers in found.items() for number in numbers]
        firsts, ends = self._firsts(partitions), self._lasts(partitions)
        started = {partition.topic for partition in positions}
        fresh = [partition for partition in partitions if partition.topic not in started]
        begins = firsts | self._starts(fresh, start, firsts, ends)
        for partition, position in positions.items():
            if partition.topic in self._topics:
                first, end = firsts.get(partition, 0), ends.get(partition, 0)
                if partition not in firsts or not first <= position <= end:
                    raise _gone(partition, position, first, end)
                begins[partition] = position
        self._assign(begins, ends)

    def _starts(
        self,
        partitions: list[Partition],
        start: str,
        firsts: Mapping[Partition, int],
        ends: Mapping[Partition, int],
    ) -> dict[Partition, int]:
        if start == "earliest":
            return {partition: firsts[partition] for partition in partitions}
        if start == "latest":
            return {partition: ends[partition] for partition in partitions}
        moments = {_tp(partition): _milliseconds(start) for partition in partitions}
        found = self._consumer.offsets_for_times(moments, timeout_ms=CALL_MS)  # None: nothing is that new
        return {Partition(*tp): ends[Partition(*tp)] if at is None else at.offset for tp, at in found.items()}

    def _firsts(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return _plain(self._consumer.beginning_offsets([_tp(p) for p in partitions], timeout_ms=CALL_MS))

    def _lasts(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return _plain(self._consumer.end_offsets([_tp(p) for p in partitions], timeout_ms=CALL_MS))

    def _assign(self, begins: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
        """Reads these partitions as well, from these offsets."""
        with self._changed:
            self._polled |= begins
            self._ends |= ends
        self._read |= begins
        self._consumer.assign([_tp(partition) for partition in self._read])
        for partition, offset in begins.items():
            self._consumer.seek(_tp(partition), offset)
        self._put(Polled(positions=dict(begins)), 0)

    # The thread: it alone uses the consumer.

    def _run(self) -> None:
        try:
            self._loop()
            if self._commits:
                self._consumer.commit(_offsets(self._commits), timeout_ms=1000)
        except KafkaError as error:
            self._fail(translated(error, self._config, "read " + ", ".join(self._topics)))
        except BaseException as error:  # noqa: BLE001 - handed over: `poll` raises it in the caller's thread
            self._fail(error)
        finally:
            self._consumer.close(autocommit=False, timeout_ms=1000)

    def _loop(self) -> None:
        refresh_at = time.monotonic() + self._refresh_s
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopped or self._commits or self._buffered_bytes < self._max_buffered_bytes,
                    max(0.0, refresh_at - time.monotonic()),
                )
                if self._stopped:
                    return
                commits, self._commits = self._commits, {}
                has_room = self._buffered_bytes < self._max_buffered_bytes
            if commits:
                self._consumer.commit_async(_offsets(commits))
            if time.monotonic() >= refresh_at:
                self._refresh()
                refresh_at = time.monotonic() + self._refresh_s
            if has_room:
                self._fetch()

    def _fetch(self) -> None:
        try:
            fetched = self._consumer.poll(timeout_ms=POLL_MS)
        except (OffsetOutOfRangeError, LogTruncationError) as error:
            raise self._lost() from error
        records = []
        size = 0
        for batch in fetched.values():
            for r in batch:
                headers = tuple([h for h in r.headers if h[1] is not None]) if r.headers else ()
                records.append(Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, headers))
                size += r.serialized_value_size + r.serialized_key_size
        positions = {}
        ends = {}
        for partition, before in self._read.items():
            tp = _tp(partition)
            position = self._consumer.position(tp, timeout_ms=0)
            if position is not None and position != before:
                positions[partition] = position
                ends[partition] = max(position, self._consumer.highwater(tp) or 0)
        if positions:
            self._read |= positions
            self._put(Polled(records, positions), size + RECORD_OVERHEAD * len(records), ends)

    def _put(self, polled: Polled, size: int, ends: Mapping[Partition, int] | None = None) -> None:
        with self._changed:
            self._chunks.append((polled, size))
            self._buffered_bytes += size
            self._ends |= ends or {}
            self._changed.notify_all()

    def _refresh(self) -> None:
        """New partitions, and the ends of those that are not being fetched because enough is waiting."""
        try:
            partitions = [
                Partition(topic, number)
                for topic in self._topics
                for number in self._consumer.partitions_for_topic(topic)
            ]
            new = [partition for partition in partitions if partition not in self._read]
            firsts = self._firsts(new) if new else {}
            ends = self._lasts(partitions)
        except KafkaError as error:
            if not error.retriable:
                raise
            self.reachable = False
            return  # the broker is away, or a new partition has no leader yet: next time
        self.reachable = True
        if firsts:
            self._assign(firsts, ends)
        with self._changed:
            self._ends |= ends

    def _lost(self) -> OffsetsGone:
        firsts, ends = self._firsts(self._read), self._lasts(self._read)
        for partition, position in self._read.items():
            if not firsts[partition] <= position <= ends[partition]:
                return _gone(partition, position, firsts[partition], ends[partition])
        return OffsetsGone(
            f"{', '.join(self._topics)}: the log was cut behind what has been read. "
            "Start again; if it lasts, name a start with `headrace reset`."
        )

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()


def _gone(partition: Partition, position: int, first: int, end: int) -> OffsetsGone:
    return OffsetsGone(
        f"{partition.topic} partition {partition.number} holds offsets {first} to {end}, "
        f"and {position} is to be read next: going on would be a silent jump. "
        "Restore the topic's data, or start the model anew with `headrace reset`."
    )


def _milliseconds(start: str) -> int:
    """Since the epoch, of an ISO 8601 time with its zone."""
    try:
        moment = datetime.fromisoformat(start)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigError(
            f"start = {start!r} is not a time with its zone. "
            'Write "earliest", "latest" or an ISO 8601 time such as "2026-01-31T12:00:00Z".'
        )
    return int(moment.timestamp() * 1000)


def _tp(partition: Partition) -> Any:
    return TopicPartition(partition.topic, partition.number)


def _plain(offsets: Mapping[Any, int]) -> dict[Partition, int]:
    return {Partition(*tp): offset for tp, offset in offsets.items()}


def _offsets(positions: Mapping[Partition, int]) -> dict[Any, Any]:
    return {_tp(partition): OffsetAndMetadata(offset, "", -1) for partition, offset in positions.items()}
