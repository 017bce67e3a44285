"""Topics that Kafka compacts: of each key only the newest record stays, and offsets in between name nothing."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from threading import Event

import pytest
from kafka import KafkaAdminClient

from pipeline.config import KafkaConfig
from pipeline.log.fetcher import Fetcher
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Reader
from pipeline.records import Partition, Record
from tests.pipeline.brokers import ConfiguredKafka
from tests.services import Topics, unique

PATIENCE_S = 60.0
SEGMENT_MS = 1000  # a record that is so much newer than a segment's first one begins the next segment
SETTINGS = {
    "cleanup.policy": "compact",
    "segment.ms": str(SEGMENT_MS),
    "min.cleanable.dirty.ratio": "0.001",
    "delete.retention.ms": "0",
}
KEYS = 5
OLD = 200  # records in the segment that is compacted
KEPT = [*range(OLD - KEYS, OLD)]  # of them: the newest of each key


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConfiguredKafka]:
    """A broker that looks for what it can compact many times a second, not every 15 s."""
    with ConfiguredKafka(tmp_path_factory.mktemp("kafka"), {"log.cleaner.backoff.ms": "20"}) as server:
        yield server


@pytest.fixture
def config(server: ConfiguredKafka) -> KafkaConfig:
    return KafkaConfig(bootstrap_servers=server.bootstrap_servers, partitions=1)


@pytest.fixture
def partition(config: KafkaConfig) -> Iterator[Partition]:
    """The one of a new topic."""
    admin = KafkaAdminClient(bootstrap_servers=config.bootstrap_servers)
    try:
        yield Partition(Topics(admin)(settings=SETTINGS), 0)
    finally:
        admin.close()


def publish(config: KafkaConfig, partition: Partition, closing: int = 1) -> None:
    """`OLD` records with `KEYS` keys in turn, some to a batch, then `closing` ones in a segment that stays as it is."""
    now_ms = int(time.time() * 1000) - 2 * SEGMENT_MS
    with Publisher(config) as publisher:
        for number in range(OLD):
            key = b"%d" % (number % KEYS)
            publisher.publish(partition.topic, b"%d" % number, key=key, timestamp_ms=now_ms)
            if number % 7 == 0:
                publisher.flush(PATIENCE_S)
    with Publisher(config) as publisher:
        for number in range(OLD, OLD + closing):
            key = b"closing %d" % number
            publisher.publish(partition.topic, b"%d" % number, key=key, timestamp_ms=now_ms + 2 * SEGMENT_MS)


def fold(reader: Reader, partition: Partition, end: int) -> tuple[list[Record], int]:
    """What a worker does: takes chunks, and moves its watermark to the positions that they name, up to `end`."""
    records: list[Record] = []
    watermark = -1
    while watermark < end:
        polled = reader.poll(PATIENCE_S)
        assert polled is not None, f"nothing came after {watermark}"
        position = polled.positions[partition]
        assert all(watermark <= record.offset < position for record in polled.records)
        records += polled.records
        watermark = position
    return records, watermark


def read(config: KafkaConfig, partition: Partition, end: int, position: int = 0) -> list[int]:
    """The offsets from `position` on."""
    with Reader(config, [partition.topic], positions={partition: position}, group="g") as reader:
        records, watermark = fold(reader, partition, end)
        assert reader.lag() == {partition: 0}
    assert watermark == end
    return [record.offset for record in records]


def until_compacted(config: KafkaConfig, partition: Partition, end: int) -> None:
    pause = Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if read(config, partition, end) == [*KEPT, *range(OLD, end)]:
            return
        pause.wait(0.05)
    raise AssertionError(f"{partition.topic} was not compacted: {read(config, partition, end)}")


def test_the_watermark_steps_over_what_is_compacted(config: KafkaConfig, partition: Partition) -> None:
    publish(config, partition)
    until_compacted(config, partition, OLD + 1)
    with Reader(config, [partition.topic], group="g") as reader:
        records, watermark = fold(reader, partition, OLD + 1)
        assert reader.lag() == {partition: 0}
    assert watermark == OLD + 1
    assert [(record.offset, record.key, record.value) for record in records] == [
        *((offset, b"%d" % (offset % KEYS), b"%d" % offset) for offset in KEPT),
        (OLD, b"closing %d" % OLD, b"%d" % OLD),
    ]


def test_a_worker_goes_on_from_inside_a_gap(config: KafkaConfig, partition: Partition) -> None:
    publish(config, partition)
    until_compacted(config, partition, OLD + 1)
    for position in (1, OLD // 2, KEPT[0] - 1, KEPT[0], KEPT[0] + 1, OLD):  # the first three name no record any more
        expected = [offset for offset in [*KEPT, OLD] if offset >= position]
        assert read(config, partition, OLD + 1, position) == expected


def test_compaction_under_a_reader_takes_no_key_away(config: KafkaConfig, partition: Partition) -> None:
    closing = 50
    with Reader(config, [partition.topic], group="g", max_buffered_bytes=2000) as reader:
        publish(config, partition, closing)
        begun = reader.poll(PATIENCE_S)  # it has fetched a little ahead, and now waits
        assert begun is not None
        until_compacted(config, partition, OLD + closing)
        records, _ = fold(reader, partition, OLD + closing)
    offsets = [record.offset for record in [*begun.records, *records]]
    assert offsets == sorted(set(offsets))
    assert {*KEPT, *range(OLD, OLD + closing)} <= {*offsets}


def batches(server: ConfiguredKafka, partition: Partition) -> list[tuple[bool, int]]:
    """What is in the partition's files: of each batch whether it is a marker, and its number of records."""
    found = []
    for file in sorted(server.folder.glob(f"**/{partition.topic}-{partition.number}/*.log")):
        content = file.read_bytes()
        at = 0
        while at + 61 <= len(content):
            _, size = struct.unpack_from(">qi", content, at)
            (attributes,), (count,) = (
                struct.unpack_from(">h", content, at + 21),
                struct.unpack_from(">i", content, at + 57),
            )
            found.append((bool(attributes & 32), count))
            at += 12 + size
    return found


def test_an_emptied_marker_of_a_transaction_stops_nobody(
    server: ConfiguredKafka, config: KafkaConfig, partition: Partition
) -> None:
    """Kafka keeps the batch of a producer's last marker, for its epoch, where compaction took the marker away."""
    now_ms, id_, topic = int(time.time() * 1000), unique("transaction"), partition.topic
    with Publisher(config, transactional_id=id_) as died:
        transaction = died.transaction()
        transaction.__enter__()
        died.publish(topic, b"never committed", key=b"k")
        died.flush(PATIENCE_S)
        Publisher(config, transactional_id=id_).close()  # it comes back, and what was open is aborted
    pause = Event()
    with Publisher(config) as publisher:
        for number in range(2, 200):
            publisher.publish(topic, b"%d" % number, key=b"again", timestamp_ms=now_ms + number * 2 * SEGMENT_MS)
            publisher.flush(PATIENCE_S)
            if (True, 0) in batches(server, partition):
                break
            pause.wait(0.1)
    assert (True, 0) in batches(server, partition)
    assert read(config, partition, number + 1)[-1] == number
    with Fetcher(config) as fetcher:
        assert [record.value for record in fetcher.records([(partition, number)])] == [b"%d" % number]
