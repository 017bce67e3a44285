"""What Kafka holds: topics with their ids, and the first and next offsets of their partitions.

Ends are those of committed records: an open transaction holds them back.
"""

from __future__ import annotations

import base64
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Required

from kafka import TopicPartition
from kafka.errors import KafkaError, LeaderNotAvailableError, UnknownTopicOrPartitionError, for_code
from kafka.protocol.metadata import MetadataRequest
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from pipeline.errors import ConfigError, OffsetsGone, TopicMissing, TopicReplaced
from pipeline.records import Partition, Record
from pipeline.words import milliseconds

REMEMBERED = 100_000  # records that were read last, of a partition
AGAIN_S = 10.0  # for reading doubtful ones again
CALL_MS = 10_000
NUMBER = re.compile("[0-9]{1,15}")  # of a version, as a worker notes it
ASK_MS = 2_000  # where an answer is not waited for: who asks looks after everything else in between


@with_config(ConfigDict(extra="allow"))
class Open(TypedDict):
    """Base of what a lineage records: fields of a later headrace are kept."""


_FromTo = TypedDict("_FromTo", {"from": int, "to": int})


class Span(Open, _FromTo):
    """Offsets, or a jump over them."""


class Jump(Span, total=False):
    """Reading went on at another offset, for the one to be read next was gone."""

    topic: Required[str]
    partition: Required[int]
    first: int  # that the partition held then
    end: int
    ids: Annotated[list[Any], Field(min_length=2, max_length=2)]  # of a topic that was made again: before, now


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now. Its id tells it from an earlier one of the same name."""

    id: str | None  # as Kafka's own tools print it; None from brokers before Kafka 2.8
    partitions: tuple[Partition, ...]


def describe(consumer: Any, names: Iterable[str], timeout_ms: float = CALL_MS) -> dict[str, Topic]:
    """Asks a broker which topics exist. The consumer may remember older answers.

    Raises:
        KafkaError: no broker answers in time, or one refuses.
    """
    manager = consumer._manager  # kafka-python offers ids in its admin client alone: a second connection
    request = MetadataRequest(
        topics=[MetadataRequest.MetadataRequestTopic(name=name) for name in names],
        allow_auto_topic_creation=False,
        include_cluster_authorized_operations=False,
        include_topic_authorized_operations=False,
    )

    async def ask() -> Any:
        return await manager.wait_for(manager.send(request), timeout_ms)

    found = {}
    for topic in manager.run(ask).topics:
        error = for_code(topic.error_code)
        if error is UnknownTopicOrPartitionError:
            continue
        if topic.error_code:
            raise error(topic.name)
        has_id = topic.topic_id is not None and topic.topic_id.int != 0
        key = base64.urlsafe_b64encode(topic.topic_id.bytes).decode().rstrip("=") if has_id else None
        numbers = sorted(partition.partition_index for partition in topic.partitions)
        found[topic.name] = Topic(key, tuple(Partition(topic.name, number) for number in numbers))
    return found


def first_offsets(consumer: Any, partitions: Iterable[Partition], timeout_ms: float = CALL_MS) -> dict[Partition, int]:
    """The first offset that each partition still holds, or would hold next where it is empty."""
    return _asked(consumer.beginning_offsets, partitions, timeout_ms)


def end_offsets(consumer: Any, partitions: Iterable[Partition], timeout_ms: float = CALL_MS) -> dict[Partition, int]:
    """The offset behind the last record that can be read of each partition."""
    return _asked(consumer.end_offsets, partitions, timeout_ms)


def _asked(
    ask: Callable[..., Mapping[Any, int]], partitions: Iterable[Partition], timeout_ms: float
) -> dict[Partition, int]:
    try:
        return _plain(ask([tp(p) for p in partitions], timeout_ms=timeout_ms))
    except KeyError as error:  # kafka-python's for a new partition, of which the broker does not tell yet
        raise LeaderNotAvailableError(str(error)) from error


def tp(partition: Partition) -> Any:
    return TopicPartition(partition.topic, partition.number)


def starts(
    consumer: Any,
    partitions: list[Partition],
    start: str,
    firsts: Mapping[Partition, int],
    ends: Mapping[Partition, int],
) -> dict[Partition, int]:
    """The offsets that `start` means: "earliest", "latest", or an ISO 8601 time.

    Raises:
        ConfigError: it is not a time.
    """
    if start == "earliest":
        return {partition: firsts[partition] for partition in partitions}
    if start == "latest":
        return {partition: ends[partition] for partition in partitions}
    if (moment_ms := milliseconds(start)) is None:
        raise ConfigError(
            f"start = {start!r} is not a time with its zone. "
            'Write "earliest", "latest" or an ISO 8601 time such as "2026-01-31T12:00:00Z".'
        )
    moments = {tp(partition): moment_ms for partition in partitions}
    found = consumer.offsets_for_times(moments, timeout_ms=CALL_MS)  # None: nothing is that new
    return _plain({at: ends[Partition(*at)] if hit is None else hit.offset for at, hit in found.items()})


def last_number(consumer: Any, partitions: Iterable[Partition]) -> str | None:
    """The highest number that was committed beside the offsets of the consumer's group, if any."""
    found = [consumer.committed(tp(partition), metadata=True, timeout_ms=CALL_MS) for partition in partitions]
    texts = [at.metadata for at in found if at is not None and at.metadata]
    return max((text for text in texts if NUMBER.fullmatch(text)), key=int, default=None)


def resume(
    positions: Mapping[Partition, int],
    former_ids: Mapping[str, str],
    topics: Mapping[str, Topic],
    firsts: Mapping[Partition, int],
    ends: Mapping[Partition, int],
    *,
    model: str,
    jump: bool,
) -> tuple[dict[Partition, int], list[Jump]]:
    """Decides where reading goes on, and which jumps that takes.

    Args:
        positions: next offsets to read. A partition that is not there any more goes on at 0.
        former_ids: of the topics that the positions belong to.
        jump: go on at the first offset where a position cannot be held, instead of raising.

    Returns:
        Next offsets to read, and for each that is another a jump, with "ids" where the topic was made again.

    Raises:
        TopicReplaced: a topic has another id.
        OffsetsGone: a position is not between a partition's first and last offset.
    """
    positions_now = {}
    jumps: list[Jump] = []
    for partition, position in positions.items():
        first, end = firsts.get(partition, 0), ends.get(partition, 0)
        before, now = former_ids.get(partition.topic), topics[partition.topic].id
        is_replaced = before is not None and now is not None and before != now
        if not is_replaced and first <= position <= end:
            positions_now[partition] = position
            continue
        if not jump:
            if is_replaced:
                raise replaced(partition.topic, (str(before), str(now)), positions, firsts, ends, model)
            raise gone(partition, position, first, end, model)
        entry: Jump = {
            "topic": partition.topic,
            "partition": partition.number,
            "from": position,
            "to": first,
            "first": first,
            "end": end,
        }
        if is_replaced:
            entry["ids"] = [before, now]
        jumps.append(entry)
        positions_now[partition] = first
    return positions_now, jumps


class TopicWatch:
    """Whether topics that are read are still the ones that they were."""

    def __init__(self, consumer: Any, names: tuple[str, ...], model: str) -> None:
        self._consumer = consumer
        self._names = names
        self._model = model
        self._missing: frozenset[str] = frozenset()  # topics that the last look did not find
        self._ends: dict[Partition, int] = {}  # what the last look found
        self.ids: dict[str, str] = {}
        self.sure: dict[Partition, int] = {}  # what was read up to there is of the topics with these ids
        self.doubtful: dict[Partition, range] = {}  # what was read after that, and may be of a topic made again
        self.again: dict[Partition, set[int]] = {}  # offsets of these that the new topic has, with the same records
        self.ids_now: dict[str, str] = {}  # of topics that were made again
        self._seen: defaultdict[Partition, deque[tuple[int, int]]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def look_first(self) -> dict[str, Topic]:
        """Returns the topics, and remembers their ids."""
        topics = describe(self._consumer, self._names)
        self.ids = {name: topic.id for name, topic in topics.items() if topic.id is not None}
        return topics

    def seen(self, records: Iterable[Record]) -> None:
        for record in records:
            partition, offset = record.place
            self._seen[partition].append((offset, hash(record)))

    def now(self, read: Mapping[Partition, int], *, are_others: bool = False) -> dict[str, Topic]:
        """The topics as they are now, without missing ones.

        Raises:
            TopicReplaced: one is another, unless they `are_others`; `read` says what was to be read next.
        """
        topics = describe(self._consumer, self._names, ASK_MS)
        for name, topic in topics.items():
            before = self.ids.get(name)
            if not are_others and before is not None and topic.id is not None and topic.id != before:
                firsts, ends = self.held(topic.partitions)
                others = {at: range(self.sure[at], min(end, ends.get(at, 0))) for at, end in read.items()}
                self.doubtful |= {at: offsets for at, offsets in others.items() if at.topic == name and offsets}
                self.ids_now[name] = topic.id
                self._read_again()
                raise replaced(name, (before, topic.id), read, firsts, ends, self._model)
        if not are_others:
            self.sure |= {at: offset for at, offset in read.items() if at.topic in topics}
        return topics

    def _read_again(self) -> None:
        """Finds out which doubtful records the new topic holds. Nothing else is read any more."""
        deadline = time.monotonic() + AGAIN_S
        with suppress(KafkaError):
            for partition, offsets in self.doubtful.items():
                marks, at = dict(self._seen[partition]), tp(partition)
                self.again[partition] = set()
                self._consumer.assign([at])
                self._consumer.seek(at, offsets.start)
                while self._consumer.position(at) < offsets.stop and time.monotonic() < deadline:
                    for record in chain.from_iterable(self._consumer.poll(timeout_ms=ASK_MS).values()):
                        if record.offset in offsets and marks.get(record.offset) == hash(record):
                            self.again[partition].add(record.offset)

    def look(self, read: Mapping[Partition, int]) -> dict[str, Topic]:
        """The same as `now`. Call it from time to time.

        Raises:
            TopicMissing: a topic was not there the last time either: it is not just being made again.
        """
        topics = self.now(read)
        missing = frozenset(self._names) - topics.keys()
        if again := missing & self._missing:
            raise deleted(sorted(again), self._model)
        self._missing = missing
        return topics

    def held(self, partitions: Iterable[Partition]) -> tuple[dict[Partition, int], dict[Partition, int]]:
        return first_offsets(self._consumer, partitions, ASK_MS), end_offsets(self._consumer, partitions, ASK_MS)

    def withheld(self, written: Mapping[Partition, int], ends: dict[Partition, int]) -> dict[Partition, int]:
        """Records behind the readable ends that were there at the last look, too: most transactions end at once."""
        before, self._ends = self._ends, ends
        found = {at: written.get(at, 0) - end for at, end in ends.items() if end == before.get(at)}
        return {at: records for at, records in found.items() if records > 0}

    def explain_cut(self, read: Mapping[Partition, int]) -> None:
        """Raises an error that says what happened. Returns where the broker or the topic is away: `look` finds that."""
        try:
            if len(self.now(read)) < len(self._names):
                return
            firsts, ends = self.held(read)
        except KafkaError as error:
            if not error.retriable:
                raise
            return
        for partition, position in read.items():
            if not firsts[partition] <= position <= ends[partition]:
                raise gone(partition, position, firsts[partition], ends[partition], self._model)
        raise OffsetsGone(
            f"{', '.join(self._names)}: the log was cut behind what has been read. "
            f"Start again; if it lasts, start the model anew with `headrace reset {self._model}`."
        )


def gone(partition: Partition, position: int, first: int, end: int, model: str) -> OffsetsGone:
    """A partition does not hold the position."""
    return OffsetsGone(
        f"{partition} holds offsets {first} to {end}, "
        f"and {position} is to be read next: going on would be a silent jump. Restore the topic's data, go on at the "
        f"first offset that it holds with {_choices(model)}."
    )


def replaced(
    topic: str,
    ids: tuple[str, str],
    positions: Mapping[Partition, int],
    firsts: Mapping[Partition, int],
    ends: Mapping[Partition, int],
    model: str,
) -> TopicReplaced:
    """A topic of this name was made again: `ids` before and now."""
    before = ", ".join(f"{p.number}:{offset}" for p, offset in sorted(positions.items()) if p.topic == topic)
    now = ", ".join(f"{p.number}:{firsts[p]} to {ends[p]}" for p in sorted(firsts) if p.topic == topic)
    return TopicReplaced(
        f"{topic} was deleted and made again (its id was {ids[0]} and is {ids[1]}): the offsets to be read next, "
        f"{before} (partition:offset), belong to records that are gone, and it holds {now} now. Restore the topic, "
        f"go on at the new topic's first record with {_choices(model)}."
    )


def deleted(names: Iterable[str], model: str) -> TopicMissing:
    """Topics that were there have gone."""
    return TopicMissing(
        f"{', '.join(names)} was deleted while it was read. Restore the topic, make it again and go on at its first "
        f"record with {_choices(model)}."
    )


def _choices(model: str) -> str:
    return f"`headrace train {model} --jump`, or start the model anew with `headrace reset {model}`"


def _plain(offsets: Mapping[Any, int]) -> dict[Partition, int]:
    return {Partition(*at): offset for at, offset in offsets.items()}
