"""Reading: self-assigned partitions, in order, from given positions, in the background, in bounded memory.

There is no consumer group that could throw out a long step. Offsets are committed to Kafka for lag monitors alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from pipeline.closing import Closing
from pipeline.config import KafkaConfig
from pipeline.errors import LogError, LogUnavailable, OffsetsGone, TopicMissing, TopicReplaced
from pipeline.log.batches import memory_of
from pipeline.log.connection import connect, missing_topics, translated
from pipeline.log.offsets import ASK_MS, Jump, TopicWatch, end_offsets, first_offsets, last_number, resume, starts, tp
from pipeline.records import Partition, Record
from pipeline.threads import Background

POLL_MS = 50  # how soon the thread sees that it shall stop or commit
AHEAD_MS = 10_000  # by which the clock of a producer may be ahead of this machine's
FETCH_WAIT_MS = 50  # how long a fetch that finds nothing holds up other partitions of that broker
CHUNK_RECORDS = 500


@dataclass(slots=True)
class Polled:
    """A chunk of records, in the order of each partition; perhaps none, where only positions have moved."""

    records: list[Record] = field(default_factory=list)
    # Next offset to read once the records are consumed; steps over gaps (transaction markers, compaction).
    positions: dict[Partition, int] = field(default_factory=dict)


@dataclass(slots=True)
class _NumberCommit:
    text: str
    positions: dict[Partition, int]
    may_doubt: bool
    is_done: bool = False
    error: LogError | None = None


class Reader(Closing):
    """Reads committed records of `topics`. A thread fetches ahead until `max_buffered_bytes` wait for `poll`.

    A partition in `positions` goes on there. Any other starts at `start`: "earliest", "latest", or an ISO 8601
    time. Where its topic has positions already, the partition is new: it starts at its first record, as do those
    that appear while running. The first chunk has the first position of every partition, so that a watermark made
    of the chunks' positions is complete from the start.

    A broker that is away is waited for. What waits may exceed `max_buffered_bytes` by one fetch.

    kafka-python fetches by a topic's name, so that one that is replaced while running may be read for `refresh_s`.
    `commit_number` looks: what was read before it returns is of the topics in `topic_ids`, or is `doubtful`.

    Args:
        topic_ids: the topics that `positions` belong to; their offsets name other records in another topic.
        jump: where a position is not held any more (or its topic was replaced), go on at the partition's first
            offset instead of raising; `jumps` tells (see `offsets.resume`). Never while running.
        group: "headrace-" and the model's name, which messages repeat.

    Raises:
        TopicMissing: a topic does not exist.
        TopicReplaced: a topic is not the one of `topic_ids`.
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
        topic_ids: Mapping[str, str] | None = None,
        jump: bool = False,
        start: str = "earliest",
        group: str,
        max_buffered_bytes: int = 32 << 20,
        refresh_s: float = 5.0,  # how often new partitions are looked for
    ) -> None:
        self._config = config
        self._topics = tuple(dict.fromkeys(topics))
        self._model = group.removeprefix("headrace-")
        self._max_buffered_bytes = max_buffered_bytes
        self._refresh_s = refresh_s
        self.reachable = True  # whether the broker answered the last refresh
        self.jumps: list[Jump] = []
        self.last_number: str | None = None  # the highest that was committed for the group before
        self._changed = threading.Condition()  # guards what follows
        self._chunks: deque[tuple[Polled, int]] = deque()  # with their sizes in bytes
        self._buffered_bytes = 0
        self._polled: dict[Partition, int] = {}  # what `poll` has handed out
        self._firsts: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        self._withheld: dict[Partition, int] = {}
        self._ahead: Counter[Partition] = Counter()
        self._commits: dict[Partition, int] = {}
        self._asked: _NumberCommit | None = None
        self._error: OffsetsGone | TopicMissing | None = None  # why nothing more is read
        self._stopped = False
        # The thread's own:
        self._read: dict[Partition, int] = {}  # what it has read
        self._committed: dict[Partition, int] = {}  # to Kafka, or where it began
        self._text = ""  # the number that goes with every commit
        self._is_cut = False  # a partition does not go on where it was read to, for a reason to be found
        self._consumer = connect(
            KafkaConsumer,
            config,
            group_id=group,
            auto_offset_reset="none",
            metadata_max_age_ms=max(1, int(refresh_s * 1000)),
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=max_buffered_bytes,
            max_partition_fetch_bytes=max(1, max_buffered_bytes // 4),
            max_poll_records=CHUNK_RECORDS,
        )
        self._watch = TopicWatch(self._consumer, self._topics, self._model)
        self.doubtful = self._watch.doubtful  # offsets that were read, and may be those of a topic that was made again
        self.again, self.ids_now = self._watch.again, self._watch.ids_now  # those that are, and of which topics
        try:
            self._start(positions or {}, topic_ids or {}, start, jump)
        except BaseException as error:
            self._consumer.close(autocommit=False)
            if isinstance(error, KafkaError):
                raise translated(error, config, "tell the offsets of " + ", ".join(self._topics)) from error
            raise
        self._thread = Background(self._run, "log-reader", self._notify)
        self._thread.start()

    def poll(self, timeout_s: float) -> Polled | None:
        """Returns the next chunk, or None if there is none in time.

        Raises:
            OffsetsGone: records that were not read yet have been deleted.
            TopicReplaced, TopicMissing: a topic was deleted, and made again, or not.
            LogError: Kafka refuses.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._error or self._thread.error, timeout_s)
            if self._chunks:
                polled, size = self._chunks.popleft()
                self._buffered_bytes -= size
                self._polled.update(polled.positions)
                self._changed.notify_all()
                return polled
            if self._error is not None:
                raise self._error
        self._thread.check()
        return None

    def lag(self) -> dict[Partition, int]:
        """Offsets that are written and not yet polled, behind open transactions, too; markers count."""
        with self._changed:
            return {p: max(0, self._ends[p] - position) for p, position in self._polled.items()}

    def withheld(self) -> dict[Partition, int]:
        """Of the lag, what a transaction holds back that has been open for long."""
        with self._changed:
            return dict(self._withheld)

    def ahead(self) -> dict[Partition, int]:
        """Records so far whose timestamps were ahead of this machine's clock, by more than clocks are."""
        return self._ahead.copy()

    def firsts(self) -> dict[Partition, int]:
        """The first offset that each partition still holds, as of the last refresh."""
        with self._changed:
            return dict(self._firsts)

    @property
    def topic_ids(self) -> dict[str, str]:
        """Of the topics that are read, as Kafka's tools print them."""
        return self._watch.ids

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

    def commit_number(
        self, text: str, positions: Mapping[Partition, int], timeout_s: float, *, may_doubt: bool = False
    ) -> None:
        """Commits the offsets, with `text` as metadata of those of every partition, and returns when Kafka has it.

        From then on `commit` repeats it, and the next reader of the group finds it as `last_number`. It returns only
        if the offsets are of the topics that were read, or `may_doubt` and are `doubtful`. It can still be done after
        records were removed that were not read yet.

        Raises:
            LogUnavailable: not done in time; it may still come to pass.
            TopicReplaced: a topic was made again, and offsets are doubtful.
            LogError: Kafka refuses, or the reader is closed.
        """
        asked = _NumberCommit(text, dict(positions), may_doubt)
        with self._changed:
            self._asked = asked
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: asked.is_done or asked.error or self._prevents(asked) or self._thread.error or self._stopped,
                timeout_s,
            )
            if self._asked is asked:
                self._asked = None
            if asked.is_done:
                return
            if error := asked.error or self._prevents(asked):
                raise error
            self._thread.check()
            if self._stopped:
                raise LogError(f"{text} was not noted for {self._model}: its reader is closed. Start the worker again.")
        raise LogUnavailable(
            f"Kafka at {self._config.bootstrap_servers} did not take the note {text} for {self._model} within "
            f"{timeout_s:g} s. See that it runs and that its __consumer_offsets topic has a leader."
        )

    def _prevents(self, asked: _NumberCommit) -> LogError | None:
        """What ended the reading, if no number can be committed for it."""
        if isinstance(self._error, TopicReplaced):
            doubtful = any(asked.positions.get(at, 0) > offsets.start for at, offsets in self.doubtful.items())
            return self._error if doubtful and not asked.may_doubt else None
        return None

    def close(self) -> None:
        """Ends the thread; what was not polled is read again by the next reader."""
        self._stopped = True
        self._notify()
        self._thread.close()

    # Where to start: in the caller's thread, before the other one runs.

    def _start(self, positions: Mapping[Partition, int], former_ids: Mapping[str, str], start: str, jump: bool) -> None:
        topics = self._watch.look_first()
        if missing := [name for name in self._topics if name not in topics]:
            raise missing_topics(self._config, missing)
        partitions = [partition for topic in topics.values() for partition in topic.partitions]
        firsts, ends = first_offsets(self._consumer, partitions), end_offsets(self._consumer, partitions)
        started = {partition.topic for partition in positions}
        fresh = [partition for partition in partitions if partition.topic not in started]
        positions = {partition: offset for partition, offset in positions.items() if partition.topic in topics}
        resumed, self.jumps = resume(positions, former_ids, topics, firsts, ends, model=self._model, jump=jump)
        starts_at = firsts | starts(self._consumer, fresh, start, firsts, ends) | resumed
        self.last_number = last_number(self._consumer, partitions)
        self._text = self.last_number or ""
        self._assign(starts_at, firsts, dict.fromkeys(starts_at, 0) | ends)

    def _assign(
        self, starts_at: Mapping[Partition, int], firsts: Mapping[Partition, int], ends: Mapping[Partition, int]
    ) -> None:
        """Reads these partitions as well, from these offsets; not those that are gone, whose position is 0."""
        with self._changed:
            self._polled |= starts_at
            self._firsts |= firsts
            self._ends |= ends
        held = {partition: offset for partition, offset in starts_at.items() if partition in firsts}
        self._read |= held
        self._watch.sure |= held
        self._committed |= held
        self._consumer.assign([tp(partition) for partition in self._read])
        for partition, offset in held.items():
            self._consumer.seek(tp(partition), offset)
        self._put(Polled(positions=dict(starts_at)), 0)

    # The thread: it alone uses the consumer.

    def _run(self) -> None:
        try:
            try:
                self._loop()
            except (OffsetsGone, TopicMissing) as error:
                self._error = error
                self._notify()
                self._commit_last_numbers()
            if self._commits:
                with suppress(KafkaError):
                    self._consumer.commit(self._to_commit(self._commits), timeout_ms=1000)
        except KafkaError as error:
            raise translated(error, self._config, "read " + ", ".join(self._topics)) from error
        finally:
            self._consumer.close(autocommit=False, timeout_ms=1000)

    def _loop(self) -> None:
        refresh_at = time.monotonic() + self._refresh_s
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._stopped or self._commits or self._asked or self._buffered_bytes < self._max_buffered_bytes
                    ),
                    max(0.0, refresh_at - time.monotonic()),
                )
                if self._stopped:
                    return
                asked = self._asked
                commits, self._commits = self._commits, {}
                has_room = self._buffered_bytes < self._max_buffered_bytes
            if asked is not None:
                self._write(asked, commits)
            elif commits:
                self._consumer.commit_async(self._to_commit(commits))
            if time.monotonic() >= refresh_at:
                self._refresh()
                refresh_at = time.monotonic() + self._refresh_s
            if has_room:
                self._fetch()

    def _commit_last_numbers(self) -> None:
        """Nothing is read any more; but a number may have to be committed for what was read."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._asked)
                asked = self._asked
            if self._stopped or asked is None:
                return
            self._write(asked, {})

    def _fetch(self) -> None:
        try:
            fetched = self._consumer.poll(timeout_ms=POLL_MS)
        except (OffsetOutOfRangeError, LogTruncationError):
            self._is_cut = True
            fetched = {}
        except KafkaError as error:  # it also looks for the group's coordinator, and tells where that is away
            if not error.retriable:
                raise
            self.reachable = False
            fetched = {}
        records = [record for batch in fetched.values() for record in batch]
        self._watch.seen(records)
        latest_ms = 1000 * time.time() + AHEAD_MS
        self._ahead.update(Partition(r.topic, r.partition) for r in records if r.timestamp_ms > latest_ms)
        positions = {}
        ends = {}
        for partition, before in self._read.items():
            at = tp(partition)
            position = self._position(at)
            if position is not None and position != before:
                positions[partition] = position
                ends[partition] = max(position, self._consumer.highwater(at) or 0)
        if positions:
            self._read |= positions
            self._put(Polled(records, positions), sum(map(memory_of, records)), ends)
        if self._is_cut:
            self._watch.explain_cut(self._read)

    def _position(self, at: Any) -> int | None:
        try:
            position: int | None = self._consumer.position(at, timeout_ms=0)
        except LogTruncationError:  # told once
            self._is_cut = True
            position = self._consumer.position(at, timeout_ms=0)
        return position

    def _put(self, polled: Polled, size: int, ends: Mapping[Partition, int] | None = None) -> None:
        with self._changed:
            self._chunks.append((polled, size))
            self._buffered_bytes += size
            self._ends |= ends or {}
            self._changed.notify_all()

    def _write(self, asked: _NumberCommit, commits: dict[Partition, int]) -> None:
        """Tries to; one that is not done is tried again until its caller gives up."""
        self._text = asked.text
        offsets = self._to_commit(self._committed | commits | asked.positions)
        try:
            there = self._watch.now(self._read, are_others=self._error is not None)
            if self._error is not None:
                offsets = {at: offset for at, offset in offsets.items() if at.topic in there}
            if self._error is not None or len(there) == len(self._topics):
                self._consumer.commit(offsets, timeout_ms=ASK_MS)
                asked.is_done = True
        except KafkaError as error:
            if not error.retriable:
                asked.error = translated(error, self._config, f"note {asked.text} for {self._model}")
        with self._changed:
            if asked.is_done or asked.error:
                if self._asked is asked:
                    self._asked = None
                self._changed.notify_all()
            else:
                self._changed.wait_for(lambda: self._stopped, POLL_MS / 1000)

    def _to_commit(self, positions: Mapping[Partition, int]) -> dict[Any, Any]:
        kept = {partition: offset for partition, offset in positions.items() if partition in self._read}
        self._committed |= kept
        return {tp(partition): OffsetAndMetadata(offset, self._text, -1) for partition, offset in kept.items()}

    def _refresh(self) -> None:
        """The topics, new partitions, and the offsets of those that are not fetched because enough is waiting."""
        try:
            written = {partition: self._consumer.highwater(tp(partition)) or 0 for partition in self._read}
            topics = self._watch.look(self._read)
            partitions = [partition for topic in topics.values() for partition in topic.partitions]
            firsts, ends = self._watch.held(partitions)
        except KafkaError as error:
            if not error.retriable:
                raise
            self.reachable = False
            return  # the broker is away, or a new partition has no leader yet: next time
        self.reachable = True
        if new := [partition for partition in partitions if partition not in self._read]:
            self._assign({partition: firsts[partition] for partition in new}, firsts, ends)
        with self._changed:
            self._firsts |= firsts
            self._withheld = self._watch.withheld(written, ends)
            self._ends |= {at: max(end, written.get(at, 0)) for at, end in ends.items()}

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
