"""The feed on a real log: every record leaves it once, in order, and is pending until then."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from kafka import KafkaProducer

from consumers.worker.feed import Feed, Item, Uplink, collate
from pipeline.config import KafkaConfig
from pipeline.errors import ConfigError, RecordError
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Reader
from pipeline.records import Example, Partition, Payload, Record, RecordDecoder
from pipeline.store.lineage import Runs
from pipeline.texts import TextInput
from tests.services import Topics, unique

PATIENCE_S = 60.0
TEXT = TextInput(max_chars=8)
CPU = Uplink(torch.device("cpu"))


@contextmanager
def feeding(config: KafkaConfig, topic: str, decoder: RecordDecoder | None = None, **settings: Any) -> Iterator[Feed]:
    decoder = decoder or RecordDecoder(TEXT, needs_label=False)
    with Reader(config, [topic], group="g") as reader:
        feed = Feed(
            reader,
            decoder,
            CPU,
            topics={topic: 7},
            **{"batch_size": 4, "max_wait_ms": 20, "decode_threads": 1, "positions": {}, **settings},
        )
        try:
            yield feed
        finally:
            feed.close()


def publish(config: KafkaConfig, topic: str, *values: bytes | None, partition: int | None = None) -> None:
    with Publisher(config) as publisher:
        for value in values:
            publisher.publish(topic, value, key=b"key", partition=partition)


def take(feed: Feed, records: int) -> list[Item]:
    """The next items, up to so many records."""
    items: list[Item] = []
    while sum(len(item.examples) + len(item.skipped) + len(item.dead) for item in items) < records:
        item = feed.take(PATIENCE_S)
        assert item is not None
        items.append(item)
    return items


def offsets(items: list[Item], partition: int) -> list[int]:
    records = [example.record for item in items for example in item.examples]
    return [record.offset for record in records if record.partition == partition]


@pytest.mark.parametrize("decode_threads", [1, 3])
def test_records_come_in_the_order_of_their_partition(
    kafka_config: KafkaConfig, topics: Topics, decode_threads: int
) -> None:
    topic = topics(partitions=2)
    for partition in (0, 1):
        publish(kafka_config, topic, *[b"%d" % n for n in range(200)], partition=partition)
    taken: list[Item] = []
    with feeding(kafka_config, topic, batch_size=16, decode_threads=decode_threads) as feed:
        while sum(len(item.examples) for item in taken) < 400:
            taken += take(feed, 1)
            positions, pending = feed.progress()
            waiting = list(pending)
            for partition in (0, 1):  # what is before the next offset to read was taken, or is pending: never both
                at = Partition(topic, partition)
                left = [offset for where, offset in waiting if where == at]
                assert offsets(taken, partition) + left == list(range(positions[at]))
    assert offsets(taken, 0) == offsets(taken, 1) == list(range(200))
    for item in taken:
        if item.batch is not None:
            texts = ["".join(map(chr, row[row != 0].tolist())) for row in item.batch.x]
            assert texts == [str(example.record.offset) for example in item.examples]
            partitions = [example.record.partition for example in item.examples]
            assert partitions == sorted(partitions)  # so that its lineage is short
            assert item.batch.origins.tolist() == [[7, e.record.partition, e.record.offset] for e in item.examples]


def test_a_batch_is_closed_by_its_size_or_by_its_wait(kafka_config: KafkaConfig, topic: str) -> None:
    publish(kafka_config, topic, *[b"x"] * 9)
    with feeding(kafka_config, topic, max_wait_ms=60_000) as feed:
        assert [len(item.examples) for item in take(feed, 8)] == [4, 4]
        assert feed.take(0.3) is None  # the ninth waits for company
    with feeding(kafka_config, topic, max_wait_ms=300) as feed:
        assert [len(item.examples) for item in take(feed, 9) if item.examples] == [4, 4, 1]


def test_what_cannot_be_learned_leaves_beside_the_batch(kafka_config: KafkaConfig, topic: str) -> None:
    publish(kafka_config, topic, b"first", None, b"\xff", b"last")
    with feeding(kafka_config, topic) as feed:
        items = take(feed, 4)
        assert feed.progress() == ({Partition(topic, 0): 4}, Runs())
    assert offsets(items, 0) == [0, 3]
    assert [(skipped.record.offset, skipped.reason) for item in items for skipped in item.skipped] == [(1, "tombstone")]
    assert [(d.record.offset, d.error.reason) for item in items for d in item.dead] == [(2, "undecodable")]


def test_a_backlog_comes_first_and_is_pending_until_it_is_taken(kafka_config: KafkaConfig, topic: str) -> None:
    publish(kafka_config, topic, *[b"%d" % n for n in range(6)])
    with Reader(kafka_config, [topic], group="g") as reader:
        before: list[Record] = []
        while len(before) < 6:
            polled = reader.poll(PATIENCE_S)
            assert polled is not None
            before += polled.records
    at = Partition(topic, 0)
    publish(kafka_config, topic, b"6", b"7")
    with Reader(kafka_config, [topic], positions={at: 6}, group="g") as reader:
        decoder = RecordDecoder(TEXT, needs_label=False)
        chosen = [before[4], before[1]]  # in the order in which they were read, whatever their offsets
        settings = {"topics": {topic: 0}, "batch_size": 4, "max_wait_ms": 60_000, "decode_threads": 1}
        feed = Feed(reader, decoder, CPU, positions={at: 6}, backlog=chosen, **settings)  # type: ignore[arg-type]
        try:
            assert list(feed.progress()[1])[:2] == [(at, 4), (at, 1)]
            assert offsets(take(feed, 4), 0) == [4, 1, 6, 7]
            assert feed.progress() == ({at: 8}, Runs())
        finally:
            feed.close()


def test_positions_step_over_the_ends_of_transactions(kafka: str, kafka_config: KafkaConfig, topic: str) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=unique("transaction"))
    producer.init_transactions()
    for value, end in ((b"kept", producer.commit_transaction), (b"taken back", producer.abort_transaction)):
        producer.begin_transaction()
        producer.send(topic, value).get(PATIENCE_S)
        end()
    producer.close()
    examples: list[Example] = []
    with feeding(kafka_config, topic) as feed:
        while feed.progress()[0].get(Partition(topic, 0), 0) < 4 or not examples:  # two records, two markers
            if (item := feed.take(0.05)) is not None:
                examples += item.examples
    assert [example.record.value for example in examples] == [b"kept"]


def test_what_ends_the_reading_is_raised_by_take(kafka_config: KafkaConfig, topic: str) -> None:
    def broken(record: Record) -> Payload:
        raise ConfigError("The decoder lost its dictionary. Give it another.")

    publish(kafka_config, topic, b"x")
    with (
        feeding(kafka_config, topic, RecordDecoder(TEXT, needs_label=False, decode=broken)) as feed,
        pytest.raises(ConfigError, match="dictionary"),
    ):
        feed.take(PATIENCE_S)


def test_a_feed_that_nobody_takes_from_can_be_closed(kafka_config: KafkaConfig, topic: str) -> None:
    publish(kafka_config, topic, *[b"x"] * 400)
    with feeding(kafka_config, topic) as feed:
        assert feed.take(PATIENCE_S) is not None


def example(offset: int, label: str) -> Example:
    record = Record("letters", 1, offset, 0, None, b"x")
    return Example(record, np.full(8, offset, np.int32), label, f"id-{offset}")


def test_a_batch_has_each_records_origin_and_the_digest_of_its_id() -> None:
    batch = collate([example(5, "a"), example(9, "b")], {"letters": 3}, CPU)
    assert batch.x.dtype == torch.int32
    assert batch.x.tolist() == [[5] * 8, [9] * 8]
    assert batch.labels == ["a", "b"]
    assert batch.origins.tolist() == [[3, 1, 5], [3, 1, 9]]
    assert bytes(batch.ids[1].tolist()) == hashlib.blake2b(b"id-9", digest_size=16).digest()


def test_refused_rows_become_dead_and_the_others_stay_a_batch() -> None:
    item = Item()
    for offset, label in enumerate("abcd"):
        item.add(example(offset, label), 0.0)
    item.batch = collate(item.examples, {"letters": 0}, CPU)
    item.refuse({1: "one too many", 3: "one too many"})
    assert item.batch is not None
    assert (item.batch.labels, item.batch.x[:, 0].tolist()) == (["a", "c"], [0, 2])
    assert (item.batch.origins[:, 2].tolist(), len(item.batch.ids)) == ([0, 2], 2)
    assert [e.record.offset for e in item.examples] == [0, 2]
    assert [(d.record.offset, str(d.error)) for d in item.dead] == [
        (1, str(RecordError("label", "one too many"))),
        (3, str(RecordError("label", "one too many"))),
    ]
    item.refuse({0: "all", 1: "all"})
    assert item.batch is None
    assert (len(item.examples), len(item.dead)) == (0, 4)
    assert len(item.records) == 4
