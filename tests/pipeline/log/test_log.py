"""Publisher and Reader against a real broker."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from confluent_kafka import Producer
from hypothesis import HealthCheck, given, settings, strategies as st
from kafka import KafkaProducer, TopicPartition

from pipeline.config import KafkaConfig
from pipeline.errors import ConfigError, LogError, LogUnavailable, OffsetsGone, RecordError, TopicMissing
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Polled, Reader
from pipeline.log.topics import ensure_topics
from pipeline.records import Partition, Record
from tests.services import Topics, unique

PATIENCE_S = 60.0


def publish(config: KafkaConfig, topic: str, *values: bytes, partition: int | None = None) -> None:
    with Publisher(config) as publisher:
        for value in values:
            publisher.publish(topic, value, partition=partition)


def take(reader: Reader, count: int) -> tuple[list[Record], dict[Partition, int]]:
    """The next records, at least `count`, and the positions after them."""
    records: list[Record] = []
    positions: dict[Partition, int] = {}
    while len(records) < count:
        polled = reader.poll(PATIENCE_S)
        assert polled is not None, f"{len(records)} of {count} records came"
        records += polled.records
        positions |= polled.positions
    return records, positions


def until(reader: Reader, reached: Callable[[Polled], bool]) -> list[Polled]:
    """Chunks up to the one that is looked for."""
    chunks: list[Polled] = []
    while not chunks or not reached(chunks[-1]):
        polled = reader.poll(PATIENCE_S)
        assert polled is not None, f"it did not come after {chunks}"
        chunks.append(polled)
    return chunks


@contextmanager
def transactional(kafka: str) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=unique("transaction"))
    producer.init_transactions()
    try:
        yield producer
    finally:
        producer.close()


headers = st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=8)), max_size=3).map(tuple)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.none() | st.binary(max_size=300),
    key=st.binary(max_size=20),
    headers=headers,
    timestamp_ms=st.integers(0, 1_700_000_000_000),  # Kafka refuses what is hours ahead
)
def test_a_record_comes_back_as_it_was(
    echo: tuple[Publisher, Reader, str],
    value: bytes | None,
    key: bytes,
    headers: tuple[tuple[str, bytes], ...],
    timestamp_ms: int,
) -> None:
    publisher, reader, topic = echo
    receipt = publisher.publish(topic, value, key=key, headers=headers, timestamp_ms=timestamp_ms)
    [record], _ = take(reader, 1)
    assert receipt.result(PATIENCE_S) == (topic, record.partition, record.offset)
    assert record == Record(topic, 0, record.offset, timestamp_ms, key, value, headers)


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_whatever_a_producer_compresses_with_is_read(
    kafka: str, kafka_config: KafkaConfig, topic: str, codec: str
) -> None:
    values = [bytes([n]) * 300 for n in range(50)]
    producer = Producer({"bootstrap.servers": kafka, "compression.type": codec})  # librdkafka, as most clients use it
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(PATIENCE_S) == 0
    with Reader(kafka_config, [topic], group="g") as reader:
        records, _ = take(reader, len(values))
    assert [record.value for record in records] == values


@pytest.fixture
def echo(kafka_config: KafkaConfig, topic: str) -> Iterator[tuple[Publisher, Reader, str]]:
    with (
        Publisher(kafka_config, linger_ms=0) as publisher,
        Reader(kafka_config, [topic], group="g") as reader,
    ):
        yield publisher, reader, topic


def test_a_partition_is_read_in_order_without_loss_or_repetition(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(partitions=3)
    publish(kafka_config, topic, *(b"%d" % i for i in range(3000)))
    with Reader(kafka_config, [topic], group="g") as reader:
        records, positions = take(reader, 3000)
    assert sorted(int(record.value or b"") for record in records) == list(range(3000))
    for number in range(3):
        offsets = [record.offset for record in records if record.partition == number]
        assert offsets == list(range(positions[Partition(topic, number)]))


def test_equal_keys_meet_in_one_partition(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(partitions=4)
    with Publisher(kafka_config) as publisher:
        receipts = [publisher.publish(topic, b"x", key=b"%d" % (i % 8)) for i in range(32)]
        partitions = [receipt.result(PATIENCE_S)[1] for receipt in receipts]
    assert partitions[:8] * 4 == partitions
    assert len(set(partitions)) > 1


def test_reading_goes_on_at_the_positions(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(partitions=2)
    publish(kafka_config, topic, *(b"%d" % i for i in range(2000)))
    seen: list[Record] = []
    positions: dict[Partition, int] = {}
    while len(seen) < 2000:
        with Reader(kafka_config, [topic], positions=positions, group="g") as reader:
            records, moved = take(reader, 1)  # one chunk or more; what is buffered beyond is dropped with the reader
        seen += records
        positions |= moved
    assert len({(record.partition, record.offset) for record in seen}) == len(seen) == 2000


def test_where_reading_starts(kafka_config: KafkaConfig, topic: str) -> None:
    with Publisher(kafka_config) as publisher:
        for second in range(10):
            publisher.publish(topic, b"%d" % second, timestamp_ms=second * 1000)

    def first(start: str) -> tuple[int, list[Record]]:
        with Reader(kafka_config, [topic], start=start, group="g") as reader:
            [begin] = until(reader, lambda polled: True)
            offset = begin.positions[Partition(topic, 0)]
            return offset, take(reader, 10 - offset)[0]

    assert [record.value for record in first("earliest")[1]] == [b"%d" % second for second in range(10)]
    assert first("latest") == (10, [])
    moment = datetime.fromtimestamp(6.5, UTC).isoformat()
    assert [record.value for record in first(moment)[1]] == [b"7", b"8", b"9"]
    assert first("2100-01-01T00:00:00Z") == (10, [])


@pytest.mark.parametrize("start", ["newest", "2026-01-31T12:00:00"])
def test_a_start_that_is_no_time_is_refused(kafka_config: KafkaConfig, topic: str, start: str) -> None:
    with pytest.raises(ConfigError, match=f"start = '{start}'"):
        Reader(kafka_config, [topic], start=start, group="g")


def test_aborted_records_are_not_read_and_positions_step_over_markers(
    kafka: str, kafka_config: KafkaConfig, topic: str
) -> None:
    with transactional(kafka) as producer:
        for value, end in (
            (b"kept 1", producer.commit_transaction),
            (b"aborted", producer.abort_transaction),
            (b"kept 2", producer.commit_transaction),
            (b"aborted", producer.abort_transaction),
        ):
            producer.begin_transaction()
            producer.send(topic, value)
            producer.flush()
            end()
    partition = Partition(topic, 0)  # eight offsets: each record is followed by its marker
    with Reader(kafka_config, [topic], group="g") as reader:
        chunks = until(reader, lambda polled: polled.positions[partition] == 8)
        assert reader.lag() == {partition: 0}
    assert [(r.offset, r.value) for chunk in chunks for r in chunk.records] == [
        (0, b"kept 1"),
        (4, b"kept 2"),
    ]


def test_an_aborted_transaction_alone_moves_positions(kafka: str, kafka_config: KafkaConfig, topic: str) -> None:
    partition = Partition(topic, 0)
    with transactional(kafka) as producer, Reader(kafka_config, [topic], group="g") as reader:
        until(reader, lambda polled: True)
        producer.begin_transaction()
        producer.send(topic, b"aborted")
        producer.flush()
        producer.abort_transaction()
        [polled] = until(reader, lambda polled: polled.positions[partition] == 2)
        assert polled.records == []
        assert reader.lag() == {partition: 0}
    with Reader(kafka_config, [topic], positions=polled.positions, group="g") as reader:
        publish(kafka_config, topic, b"next")
        assert [record.offset for record in take(reader, 1)[0]] == [2]


def test_an_open_transaction_holds_back_what_follows(kafka: str, kafka_config: KafkaConfig, topic: str) -> None:
    with transactional(kafka) as producer, Reader(kafka_config, [topic], group="g") as reader:
        producer.begin_transaction()
        producer.send(topic, b"open")
        producer.flush()
        publish(kafka_config, topic, b"behind")
        until(reader, lambda polled: True)
        assert reader.poll(0.3) is None
        producer.commit_transaction()
        assert [record.value for record in take(reader, 2)[0]] == [b"open", b"behind"]


def test_deleted_offsets_are_no_silent_jump(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics()
    publish(kafka_config, topic, *[b"x"] * 10)
    topics.admin.delete_records({TopicPartition(topic, 0): 6})
    partition = Partition(topic, 0)
    for position in (5, 11):
        with pytest.raises(OffsetsGone, match=rf"{topic} partition 0 holds offsets 6 to 10, and {position} is"):
            Reader(kafka_config, [topic], positions={partition: position}, group="g")
    with pytest.raises(OffsetsGone, match="partition 7 holds offsets 0 to 0, and 3 is"):
        Reader(kafka_config, [topic], positions={Partition(topic, 7): 3}, group="g")
    for position in (6, 10):
        with Reader(kafka_config, [topic], positions={partition: position}, group="g") as reader:
            assert len(take(reader, 10 - position)[0]) == 10 - position
    with Reader(kafka_config, [topic], group="g") as reader:  # nothing was read yet: it starts where the topic does
        assert take(reader, 1)[0][0].offset == 6


def test_records_deleted_under_the_reader_are_reported(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics()
    publish(kafka_config, topic, *[b"x" * 1000] * 3000)
    with Reader(kafka_config, [topic], group="g", max_buffered_bytes=50_000) as reader:
        until(reader, lambda polled: bool(polled.records))
        topics.admin.delete_records({TopicPartition(topic, 0): 2999})
        with pytest.raises(OffsetsGone, match=f"{topic} partition 0 holds offsets 2999 to 3000"):
            until(reader, lambda polled: polled.positions[Partition(topic, 0)] == 3000)


def test_new_partitions_are_noticed_and_read_from_their_first_offset(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics()
    publish(kafka_config, topic, b"old")
    with Reader(kafka_config, [topic], start="latest", group="g", refresh_s=0.2) as reader:
        until(reader, lambda polled: True)
        topics.admin.create_partitions({topic: 2})
        topics.admin.wait_for_topics([topic])
        publish(kafka_config, topic, b"new", partition=1)
        records, positions = take(reader, 1)
        assert [(record.partition, record.value) for record in records] == [(1, b"new")]
        assert positions == {Partition(topic, 1): 1}
        assert reader.lag() == {Partition(topic, 0): 0, Partition(topic, 1): 0}


def test_a_partition_that_appeared_between_two_readers_loses_nothing(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics()
    with Reader(kafka_config, [topic], start="latest", group="g") as reader:
        positions = until(reader, lambda polled: True)[0].positions
    topics.admin.create_partitions({topic: 2})
    topics.admin.wait_for_topics([topic])
    publish(kafka_config, topic, b"between", partition=1)
    with Reader(kafka_config, [topic], positions=positions, start="latest", group="g") as reader:
        assert [record.value for record in take(reader, 1)[0]] == [b"between"]


def test_a_reader_that_is_not_polled_stops_fetching(kafka_config: KafkaConfig, topic: str) -> None:
    bound = 200_000
    publish(kafka_config, topic, *[b"x" * 1000] * 6000)
    with Reader(kafka_config, [topic], group="g", max_buffered_bytes=bound) as slow:
        with Reader(kafka_config, [topic], group="g") as fast:  # meanwhile another reads all of it
            take(fast, 6000)
        assert bound <= slow.buffered_bytes <= bound + 500 * 1500
        assert [record.offset for record in take(slow, 6000)[0]] == list(range(6000))


def test_lag_counts_what_was_not_polled(kafka_config: KafkaConfig, topic: str) -> None:
    partition = Partition(topic, 0)
    publish(kafka_config, topic, *[b"x"] * 700)
    with Reader(kafka_config, [topic], group="g", refresh_s=0.1) as reader:
        assert reader.lag() == {partition: 700}
        _, chunk = until(reader, lambda polled: bool(polled.records))
        assert reader.lag() == {partition: 700 - len(chunk.records)}
        take(reader, 700 - len(chunk.records))
        assert reader.lag() == {partition: 0}
        publish(kafka_config, topic, b"x")
        take(reader, 1)
        assert reader.lag() == {partition: 0}


def test_offsets_are_committed_for_lag_monitors(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic, group = topics(), unique("group")
    publish(kafka_config, topic, *[b"x"] * 5)
    with Reader(kafka_config, [topic], group=group) as reader:
        take(reader, 5)
        reader.commit({Partition(topic, 0): 2})
        reader.commit({Partition(topic, 0): 4})
    offsets = topics.admin.list_group_offsets(group)[group]
    assert offsets[TopicPartition(topic, 0)].offset == 4
    with Reader(kafka_config, [topic], group=group) as reader:  # and for nothing else
        assert take(reader, 5)[0][0].offset == 0


def test_topics_are_created_where_that_is_allowed(kafka_config: KafkaConfig, topics: Topics) -> None:
    names = [unique("topic"), unique("topic")]
    refused = kafka_config.model_copy(update={"create_topics": False})
    with pytest.raises(TopicMissing, match=rf"--create --topic {names[1]} --partitions 3 --replication-factor 1"):
        ensure_topics(refused.model_copy(update={"partitions": 3}), names)
    ensure_topics(kafka_config.model_copy(update={"partitions": 3}), names[:1])
    ensure_topics(kafka_config, names)
    ensure_topics(refused, names)
    found = {topic["name"]: len(topic["partitions"]) for topic in topics.admin.describe_topics(names)}
    assert found == {names[0]: 3, names[1]: 1}


def test_a_topic_that_kafka_does_not_create_is_reported(kafka_config: KafkaConfig) -> None:
    with pytest.raises(LogError, match=r"did not create the topic .*[Rr]eplication factor"):
        ensure_topics(kafka_config.model_copy(update={"replication_factor": 3}), [unique("topic")])


def test_a_missing_topic_is_not_read(kafka_config: KafkaConfig) -> None:
    with pytest.raises(TopicMissing, match="no-such-topic cannot be read"):
        Reader(kafka_config, ["no-such-topic"], group="g")


def test_a_record_above_the_limit_is_refused_and_one_at_it_arrives(kafka_config: KafkaConfig) -> None:
    topic = unique("topic")
    ensure_topics(kafka_config, [topic])
    largest = bytes(kafka_config.max_bytes)
    with Publisher(kafka_config) as publisher:
        with pytest.raises(RecordError, match=rf"too-large: .* {len(largest) + 1} bytes for {topic}"):
            publisher.publish(topic, largest + b"x")
        publisher.publish(topic, largest)
    with Reader(kafka_config, [topic], group="g", max_buffered_bytes=1000) as reader:
        assert take(reader, 1)[0][0].value == largest


def test_what_waits_to_be_sent_is_bounded(kafka_config: KafkaConfig, topic: str) -> None:
    with Publisher(kafka_config, max_buffered_bytes=100_000) as publisher:
        waiting = []
        for _ in range(1000):
            publisher.publish(topic, b"x" * 5000)
            waiting.append(publisher.buffered_bytes)
    assert 50_000 < max(waiting) <= 100_000
    with Reader(kafka_config, [topic], group="g") as reader:
        take(reader, 1000)


def test_a_broker_that_takes_nothing_is_reported(kafka_config: KafkaConfig, topic: str) -> None:
    with Publisher(kafka_config, max_buffered_bytes=10_000, linger_ms=60_000, wait_s=1.0) as publisher:
        publisher.publish(topic, b"x" * 9000)  # lingers
        with pytest.raises(LogUnavailable, match=rf"took no record of {topic} for 1.0 s, and 9500 bytes wait"):
            publisher.publish(topic, b"x" * 9000)
        publisher.flush(PATIENCE_S)
        publisher.publish(topic, b"x" * 9000)
        publisher.flush(PATIENCE_S)


def test_a_record_that_the_broker_refuses_is_reported(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(settings={"max.message.bytes": "1000"})
    publisher = Publisher(kafka_config.model_copy(update={"client": {"compression_type": None}}))
    receipt = publisher.publish(topic, b"x" * 2000)
    with pytest.raises(LogError, match=r"could not acknowledge a record .*MessageSizeTooLarge"):
        receipt.result(PATIENCE_S)
    with pytest.raises(LogError, match=r"could not take a record .*MessageSizeTooLarge"):
        publisher.flush(PATIENCE_S)
    with pytest.raises(LogError, match=r"could not take a record .*MessageSizeTooLarge"):
        publisher.publish(topic, b"x")
    assert publisher.buffered_bytes == 0
    publisher.close()


def test_settings_pass_through_to_the_clients_that_know_them(kafka_config: KafkaConfig, topic: str) -> None:
    config = kafka_config.model_copy(update={"client": {"max_request_size": 1000, "max_poll_records": 7}})
    with Publisher(config) as publisher:
        with pytest.raises(RecordError, match=r"1000|max_request_size"):
            publisher.publish(topic, b"x" * 2000)
        for _ in range(20):
            publisher.publish(topic, b"x")
    with Reader(config, [topic], group="g") as reader:
        chunks = until(reader, lambda polled: polled.positions[Partition(topic, 0)] == 20)
    assert max(len(chunk.records) for chunk in chunks) == 7


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ({"sasl_pasword": "x"}, "kafka.client.sasl_pasword is not a setting"),
        ({"isolation_level": "read_uncommitted"}, "kafka.client.isolation_level is set by headrace"),
        ({"request_timeout_ms": 10}, "kafka.client does not fit .*request_timeout_ms"),
    ],
)
def test_settings_that_do_not_fit_are_named(kafka_config: KafkaConfig, client: dict[str, object], message: str) -> None:
    config = kafka_config.model_copy(update={"client": client})
    with pytest.raises(ConfigError, match=message):
        Reader(config, ["any"], group="g")


def test_a_kafka_that_does_not_answer_is_reported() -> None:
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        config = KafkaConfig(bootstrap_servers=address, client={"bootstrap_timeout_ms": 200})
        for connect in (
            lambda: Publisher(config),
            lambda: Reader(config, ["any"], group="g"),
            lambda: ensure_topics(config, ["any"]),
        ):
            with pytest.raises(LogUnavailable, match=rf"{address} could not connect .*`headrace up`"):
                connect()
    assert threading.active_count() == threads
