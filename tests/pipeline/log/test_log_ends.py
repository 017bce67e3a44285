"""Where reading cannot simply go on: retention, topics that are deleted or made again; and the note beside offsets."""

from __future__ import annotations

import gc
import logging
from functools import partial
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition

from pipeline.config import KafkaConfig
from pipeline.errors import LogError, LogUnavailable, OffsetsGone, TopicMissing, TopicReplaced
from pipeline.local.servers import EmbeddedKafka
from pipeline.log.fetcher import Fetcher
from pipeline.log.reader import Reader
from pipeline.log.topics import ensure_topics
from pipeline.records import Partition
from tests.pipeline.log.test_log import PATIENCE_S, publish, take, until
from tests.services import Topics, unique

CHOICES = r"`headrace train digits --jump`.*`headrace reset digits`"
GROUP = "headrace-digits"


def begin(reader: Reader) -> dict[Partition, int]:
    polled = reader.poll(PATIENCE_S)
    assert polled is not None
    return polled.positions


def wait_for_end(reader: Reader) -> None:
    """Polls until the reader raises."""
    while reader.poll(PATIENCE_S) is not None:
        pass
    raise AssertionError("the reader goes on, and finds nothing")


def delete(topics: Topics, topic: str) -> None:
    topics.admin.delete_topics([topic])


def create(topics: Topics, topic: str, partitions: int = 1) -> None:
    topics.admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1}}, wait_for_metadata=True)


def replace(topics: Topics, topic: str, partitions: int = 1) -> None:
    delete(topics, topic)
    create(topics, topic, partitions)


# Topics that are made again.


def test_ids_tell_topics_apart_as_kafka_prints_them(kafka_config: KafkaConfig, topics: Topics) -> None:
    names = [topics(), topics()]
    with Reader(kafka_config, names, group=GROUP) as reader:
        before = reader.topic_ids
    assert before.keys() == set(names)
    assert all(len(text) == 22 for text in before.values())  # 16 bytes, base64url without padding
    replace(topics, names[0])
    with Reader(kafka_config, names, group=GROUP) as reader:
        assert reader.topic_ids[names[0]] != before[names[0]]
        assert reader.topic_ids[names[1]] == before[names[1]]


def test_a_replaced_topic_is_not_read_on_even_where_its_offsets_fit(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(partitions=2)
    publish(kafka_config, topic, *[b"old"] * 5, partition=1)
    with Reader(kafka_config, [topic], group=GROUP) as reader:
        _, positions = take(reader, 5)
        ids = reader.topic_ids
    replace(topics, topic, partitions=2)
    publish(kafka_config, topic, *[b"new"] * 9, partition=1)
    positions = {Partition(topic, 0): 0} | positions
    with pytest.raises(TopicReplaced) as told:
        Reader(kafka_config, [topic], positions=positions, topic_ids=ids, group=GROUP)
    with Reader(kafka_config, [topic], group=GROUP) as reader:
        now = reader.topic_ids[topic]
    message = str(told.value)
    for part in (topic, ids[topic], now, "0:0, 1:5", "0:0 to 0, 1:0 to 9", "`headrace train digits --jump`", "reset"):
        assert part in message
    with Reader(kafka_config, [topic], positions=positions, topic_ids={topic: now}, group=GROUP) as reader:
        assert [record.offset for record in take(reader, 4)[0]] == [5, 6, 7, 8]


def test_a_jump_starts_with_the_new_topics_first_record(kafka_config: KafkaConfig, topics: Topics) -> None:
    kept, topic = topics(), topics(partitions=2)
    publish(kafka_config, kept, *[b"kept"] * 3)
    for number in range(2):
        publish(kafka_config, topic, *[b"old"] * 5, partition=number)
    with Reader(kafka_config, [kept, topic], group=GROUP) as reader:
        _, positions = take(reader, 13)
        before = reader.topic_ids
    replace(topics, topic)
    publish(kafka_config, topic, *[b"new"] * 9)
    going_on = partial(Reader, kafka_config, [kept, topic], group=GROUP)
    with going_on(positions=positions, topic_ids=before, jump=True, start="latest") as reader:
        ids = [before[topic], reader.topic_ids[topic]]
        jump = {"topic": topic, "from": 5, "to": 0, "first": 0, "ids": ids}
        assert sorted(reader.jumps, key=lambda entry: str(entry["partition"])) == [
            {**jump, "partition": 0, "end": 9},
            {**jump, "partition": 1, "end": 0},
        ]
        first = begin(reader)
        assert first == {Partition(kept, 0): 3, Partition(topic, 0): 0, Partition(topic, 1): 0}
        assert reader.lag() == {Partition(kept, 0): 0, Partition(topic, 0): 9, Partition(topic, 1): 0}
        records, moved = take(reader, 9)
        assert [record.value for record in records] == [b"new"] * 9
        reader.commit_number("7", first | moved, PATIENCE_S)  # of a partition that is not there
        after = reader.topic_ids
    with going_on(positions=first | moved, topic_ids=after) as reader:
        assert reader.jumps == []
        assert begin(reader) == {Partition(kept, 0): 3, Partition(topic, 0): 9, Partition(topic, 1): 0}


def test_a_topic_replaced_under_the_reader_ends_it(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics()
    publish(kafka_config, topic, *[b"old"] * 3)
    with Reader(kafka_config, [topic], group=GROUP, refresh_s=0.2) as reader:
        take(reader, 3)
        replace(topics, topic)
        with pytest.raises(TopicReplaced, match=rf"{topic} was deleted and made again.* 0:3 .*0:0 to 0 now.*{CHOICES}"):
            wait_for_end(reader)


def test_a_shorter_topic_of_its_name_is_reported_before_the_next_refresh(
    kafka_config: KafkaConfig, topics: Topics
) -> None:
    topic = topics()
    publish(kafka_config, topic, *[b"old"] * 3)
    with Reader(kafka_config, [topic], group=GROUP, refresh_s=60) as reader:
        take(reader, 3)
        replace(topics, topic)
        with pytest.raises(TopicReplaced, match=f"{topic} was deleted and made again"):
            wait_for_end(reader)


def test_what_was_read_of_another_topic_gets_no_number(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics()
    publish(kafka_config, topic, *[b"old"] * 3)
    with Reader(kafka_config, [topic], group=GROUP, refresh_s=60) as reader:
        _, positions = take(reader, 3)
        reader.commit_number("1", positions, PATIENCE_S)
        replace(topics, topic)
        publish(kafka_config, topic, *[b"new"] * 9)
        reader.commit_number("2", positions, PATIENCE_S)  # of the old one
        for at, offsets in reader.doubtful.items():  # none, where offset 3 was out of range for a moment
            assert (at, offsets.start) == (Partition(topic, 0), 3)
            with pytest.raises(TopicReplaced, match=f"{topic} was deleted and made again"):
                reader.commit_number("3", {at: offsets.stop}, PATIENCE_S)
            reader.commit_number("3", {at: offsets.stop}, PATIENCE_S, may_doubt=True)


def test_a_topic_deleted_under_the_reader_ends_it(kafka_config: KafkaConfig, topics: Topics) -> None:
    kept, topic = topics(), topics()
    with Reader(kafka_config, [kept, topic], group=GROUP, refresh_s=0.2) as reader:
        begin(reader)
        delete(topics, topic)
        with pytest.raises(TopicMissing, match=rf"^{topic} was deleted while it was read.*{CHOICES}"):
            wait_for_end(reader)


# Offsets that are gone.


def test_a_jump_over_deleted_offsets_is_reported(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(partitions=3)
    for number in range(3):
        publish(kafka_config, topic, *[b"x"] * 10, partition=number)
    topics.admin.delete_records({TopicPartition(topic, 0): 6})
    positions = {Partition(topic, 0): 2, Partition(topic, 1): 7, Partition(topic, 2): 11}
    with pytest.raises(OffsetsGone, match=f"partition 0 holds offsets 6 to 10, and 2 .* silent jump.*{CHOICES}"):
        Reader(kafka_config, [topic], positions=positions, group=GROUP)
    with Reader(kafka_config, [topic], positions=positions, jump=True, group=GROUP) as reader:
        assert reader.jumps == [
            {"topic": topic, "partition": 0, "from": 2, "to": 6, "first": 6, "end": 10},
            {"topic": topic, "partition": 2, "from": 11, "to": 0, "first": 0, "end": 10},
        ]
        assert begin(reader) == {Partition(topic, 0): 6, Partition(topic, 1): 7, Partition(topic, 2): 0}
        assert len(take(reader, 17)[0]) == 17


def test_a_running_reader_never_jumps(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics()
    publish(kafka_config, topic, *[b"x" * 1000] * 3000)
    with Reader(kafka_config, [topic], jump=True, group=GROUP, max_buffered_bytes=50_000) as reader:
        until(reader, lambda polled: bool(polled.records))
        topics.admin.delete_records({TopicPartition(topic, 0): 2999})
        with pytest.raises(OffsetsGone, match=f"{topic} partition 0 holds offsets 2999 to 3000.*{CHOICES}"):
            wait_for_end(reader)


def test_first_offsets_follow_retention(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(partitions=2)
    publish(kafka_config, topic, *[b"x"] * 10, partition=0)
    with Reader(kafka_config, [topic], group=GROUP, refresh_s=0.1) as reader:
        take(reader, 10)
        assert reader.firsts() == {Partition(topic, 0): 0, Partition(topic, 1): 0}
        topics.admin.delete_records({TopicPartition(topic, 0): 6})
        while reader.firsts()[Partition(topic, 0)] != 6:
            assert reader.poll(0.05) is None
        assert reader.firsts() == {Partition(topic, 0): 6, Partition(topic, 1): 0}


# The note.


def test_a_number_is_found_by_the_next_reader(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic, group = topics(partitions=2), unique("headrace")
    publish(kafka_config, topic, *[b"x"] * 5, partition=1)
    with Reader(kafka_config, [topic], group=group) as reader:
        assert reader.last_number is None
        reader.commit_number("9", {}, PATIENCE_S)  # before anything was read
    offsets = topics.admin.list_group_offsets(group)[group]
    assert {at.partition: (found.offset, found.metadata) for at, found in offsets.items()} == {0: (0, "9"), 1: (0, "9")}
    with Reader(kafka_config, [topic], group=group) as reader:
        assert reader.last_number == "9"
        _, positions = take(reader, 5)
        reader.commit_number("10", positions, PATIENCE_S)
        reader.commit_number("11", {Partition(topic, 1): 3}, PATIENCE_S)
        reader.commit({Partition(topic, 1): 4})
        assert reader.last_number == "9"  # at the start
    offsets = topics.admin.list_group_offsets(group)[group]
    assert {at.partition: (found.offset, found.metadata) for at, found in offsets.items()} == {
        0: (0, "11"),
        1: (4, "11"),
    }


def test_a_commit_before_the_first_number_keeps_the_old_one(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic, group = topics(), unique("headrace")
    with Reader(kafka_config, [topic], group=group) as reader:
        reader.commit_number("12", {}, PATIENCE_S)
    with Reader(kafka_config, [topic], group=group) as reader:
        reader.commit({Partition(topic, 0): 0})
    with Reader(kafka_config, [topic], group=group) as reader:
        assert reader.last_number == "12"


def test_the_highest_number_counts_and_foreign_ones_do_not(
    kafka: str, kafka_config: KafkaConfig, topics: Topics
) -> None:
    topic, group = topics(partitions=6), unique("headrace")
    texts = ["9", "10", "", "of another tool", "²", "9" * 4000]
    consumer = KafkaConsumer(bootstrap_servers=kafka, group_id=group, enable_auto_commit=False)
    consumer.commit({TopicPartition(topic, n): OffsetAndMetadata(0, text, -1) for n, text in enumerate(texts)})
    consumer.close()
    with Reader(kafka_config, [topic], group=group) as reader:
        assert reader.last_number == "10"


def test_a_number_that_kafka_refuses_is_reported(kafka_config: KafkaConfig, topic: str) -> None:
    with Reader(kafka_config, [topic], group=GROUP) as reader:
        with pytest.raises(LogError, match=r"could not note 1{9}.* for digits .*OffsetMetadataTooLarge"):
            reader.commit_number("1" * 5000, {}, PATIENCE_S)
        begin(reader)
        assert reader.poll(0) is None  # it reads on
    with pytest.raises(LogError, match="7 was not noted for digits: its reader is closed"):
        reader.commit_number("7", {}, PATIENCE_S)


# A broker that is merely away.


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # kafka-python forgets sockets that were refused
def test_a_broker_that_is_away_is_waited_for_but_not_without_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "kafka")  # its messages would keep those sockets
    with EmbeddedKafka(tmp_path) as server:
        config = KafkaConfig(bootstrap_servers=server.bootstrap_servers, partitions=1)
        ensure_topics(config, ["kept"])
        publish(config, "kept", b"before")
        reader = Reader(config, ["kept"], group=GROUP, refresh_s=0.1)
        fetcher = Fetcher(config, timeout_s=5.0)  # longer than a client waits before it connects again
        take(reader, 1)
        [record] = fetcher.records([(Partition("kept", 0), 0)])
        assert record.value == b"before"
    with reader, fetcher:
        while reader.reachable:
            assert reader.poll(0.05) is None
        with pytest.raises(LogUnavailable, match=r"did not take the note 1 for digits within 0\.2 s"):
            reader.commit_number("1", {}, 0.2)
        with pytest.raises(LogUnavailable, match="did not give kept partition 0 offset 1 within 5 s"):
            list(fetcher.records([(Partition("kept", 0), 1)]))
        with EmbeddedKafka(tmp_path) as server:
            assert server.bootstrap_servers == config.bootstrap_servers
            reader.commit_number("2", {}, PATIENCE_S)
            publish(config, "kept", b"after")
            assert [record.value for record in take(reader, 1)[0]] == [b"after"]
            assert [record.value for record in fetcher.records([(Partition("kept", 0), 1)])] == [b"after"]
            assert reader.reachable or reader.poll(PATIENCE_S) is None
            admin = KafkaAdminClient(bootstrap_servers=config.bootstrap_servers)
            found = admin.list_group_offsets(GROUP)[GROUP]
            admin.close()
            assert {(at.topic, at.partition): offset.metadata for at, offset in found.items()} == {("kept", 0): "2"}
    del reader, fetcher
    gc.collect()  # while the warnings are ignored
