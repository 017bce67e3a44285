"""The fetcher against a plain list of what was published."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from kafka import KafkaProducer, TopicPartition

from pipeline.config import KafkaConfig
from pipeline.errors import OffsetsGone, TopicReplaced
from pipeline.log.fetcher import Fetcher
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Reader
from pipeline.records import Partition, Record
from tests.pipeline.log.test_log import publish, transactional
from tests.services import Topics

Place = tuple[Partition, int]
Piece = tuple[int, float, tuple[int, int]]


@dataclass(frozen=True)
class Published:
    """Two topics of two partitions, with gaps: what aborted and open transactions and markers leave."""

    config: KafkaConfig
    records: dict[Place, bytes | None]  # in the order of their partitions
    ends: dict[Partition, int]  # the offset behind what can be read


@pytest.fixture(scope="module")
def published(kafka: str, topics: Topics) -> Iterator[Published]:
    names = [topics(partitions=2), topics(partitions=2)]
    records: dict[Place, bytes | None] = {}
    ends = dict.fromkeys((Partition(name, number) for name in names for number in range(2)), 0)

    def send(producer: KafkaProducer, partition: Partition, count: int, kept: bool) -> None:
        sent = []
        for n in range(count):
            value = b"%s:%d:%d" % (partition.topic.encode(), ends[partition] + n, partition.number)
            sent.append((producer.send(partition.topic, value, partition=partition.number), value))
        for future, value in sent:
            offset = future.get(20).offset
            ends[partition] = offset + 1
            if kept:
                records[partition, offset] = value

    plain = KafkaProducer(bootstrap_servers=kafka)
    with transactional(kafka) as producer, transactional(kafka) as opened:
        for turn in range(6):
            for partition in ends:
                send(plain, partition, 700 + 300 * partition.number, kept=True)
                producer.begin_transaction()
                send(producer, partition, 3, kept=turn % 2 == 0)
                producer.commit_transaction() if turn % 2 == 0 else producer.abort_transaction()
                ends[partition] += 1  # the marker
        last = Partition(names[0], 0)
        end = ends[last]
        opened.begin_transaction()
        send(opened, last, 2, kept=False)
        send(plain, last, 2, kept=False)
        ends[last] = end
        yield Published(KafkaConfig(bootstrap_servers=kafka), dict(sorted(records.items())), ends)
        opened.abort_transaction()
    plain.close()


@pytest.fixture(scope="module")
def fetcher(published: Published) -> Iterator[Fetcher]:
    with Fetcher(published.config, max_buffered_bytes=200_000) as fetcher:  # of some 6 MB
        yield fetcher


def check(published: Published, places: list[Place], records: Iterator[Record]) -> None:
    found = [(Partition(record.topic, record.partition), record.offset, record.value) for record in records]
    assert found == [(*place, published.records[place]) for place in places]


@st.composite
def interleavings(draw: st.DrawFn) -> list[Piece]:
    """Pieces of partitions: which one, where in it, how many records and how far apart."""
    steps = st.sampled_from([(1, 1), (3, 1), (64, 1), (900, 1), (64, 2), (100, 50), (8, -7)])
    piece = st.tuples(st.integers(0, 3), st.floats(0, 1), steps)
    return draw(st.lists(piece, min_size=1, max_size=8))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=interleavings(), goes_on=st.booleans())
def test_any_places_in_any_order(published: Published, fetcher: Fetcher, pieces: list[Piece], goes_on: bool) -> None:
    by_partition = {at: [place for place in published.records if place[0] == at] for at in published.ends}
    lists = list(by_partition.values())
    stood = [0] * len(lists)
    wanted: list[Place] = []
    for which, where, (count, step) in pieces:
        start = stood[which] if goes_on else int(where * (len(lists[which]) - 1))
        indices = [i for i in range(start, start + count * step, step) if 0 <= i < len(lists[which])]
        wanted += [lists[which][i] for i in indices]
        stood[which] = max(indices, default=start) + 1
    check(published, wanted, fetcher.records(iter(wanted)))


def test_everything_interleaved_and_no_more_than_asked_for(published: Published) -> None:
    by_partition = [[place for place in published.records if place[0] == at] for at in published.ends]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_partition))
    wanted = [place for place in turns if place is not None]
    taken = []

    def lazily() -> Iterator[Place]:
        for place in itertools.cycle(wanted):  # without end
            taken.append(place)
            yield place

    with Fetcher(published.config) as fetcher:
        records = fetcher.records(lazily())
        assert taken == []
        check(published, wanted, itertools.islice(records, len(wanted)))
        assert taken == wanted


def test_a_record_that_is_not_there_is_reported(published: Published) -> None:
    """A marker, an aborted record, one of an open transaction, one behind the end, one that never was."""
    present = next(iter(published.records))
    with Fetcher(published.config) as fetcher:
        for partition, end in published.ends.items():
            held = {offset for at, offset in published.records if at == partition}
            gaps = [offset for offset in range(end) if offset not in held]
            for offset in [gaps[0], gaps[1], end, end + 10_000]:
                place = f"{partition.topic} partition {partition.number} offset {offset} is to be read again"
                why = "left out" if offset < end else f"holds offsets 0 to {end}"
                with pytest.raises(OffsetsGone, match=rf"{place}, .*{why}.* Restore"):
                    list(fetcher.records([present, (partition, offset)]))
        check(published, [present], fetcher.records([present]))  # it can be asked again


def test_records_that_retention_removed_are_reported(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(partitions=2)
    for number in range(2):
        publish(kafka_config, topic, *[b"x" * 1000] * 3000, partition=number)
    first, second = Partition(topic, 0), Partition(topic, 1)
    with Fetcher(kafka_config, max_buffered_bytes=100_000) as fetcher:
        assert len(list(fetcher.records([(first, 0), (second, 0)]))) == 2  # and what follows is being read ahead
        topics.admin.delete_records({TopicPartition(topic, 0): 2990})
        with pytest.raises(OffsetsGone, match=rf"{topic} partition 0 offset 2500 .* offsets 2990 to 3000"):
            list(fetcher.records([(first, 2500)]))
        assert [r.offset for r in fetcher.records((second, n) for n in range(3000))] == list(range(3000))
        assert [r.offset for r in fetcher.records((first, n) for n in range(2990, 3000))] == list(range(2990, 3000))


def test_a_partition_that_retention_cut_does_not_hold_up_the_others(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(partitions=2)
    for number in range(2):
        publish(kafka_config, topic, *[b"x" * 1000] * 3000, partition=number)
    first, second = Partition(topic, 0), Partition(topic, 1)
    with Fetcher(kafka_config, timeout_s=3.0, max_buffered_bytes=3_000_000) as fetcher:
        assert len(list(fetcher.records([(first, 0)]))) == 1
        topics.admin.delete_records({TopicPartition(topic, 0): 2990})
        assert [r.offset for r in fetcher.records((second, n) for n in range(3000))] == list(range(3000))
        assert [r.offset for r in fetcher.records([(first, 2995)])] == [2995]


def test_a_topic_that_is_gone_is_reported(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics()
    publish(kafka_config, topic, b"old")
    with Reader(kafka_config, [topic], group="headrace-digits") as reader:
        ids = reader.topic_ids
    place = (Partition(topic, 0), 0)
    topics.admin.delete_topics([topic])
    with Fetcher(kafka_config) as fetcher, pytest.raises(OffsetsGone, match=f"{topic} partition 0 offset 0 .* no such"):
        list(fetcher.records([place]))
    topics.admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    publish(kafka_config, topic, b"new")
    with Fetcher(kafka_config) as fetcher:
        with pytest.raises(TopicReplaced, match=rf"{topic} was deleted and made again \(its id was {ids[topic]}"):
            list(fetcher.records([place], ids))
        with pytest.raises(OffsetsGone, match=f"{topic} partition 4 offset 0 .* no such"):
            list(fetcher.records([(Partition(topic, 4), 0)]))
        assert [record.value for record in fetcher.records([place])] == [b"new"]


def test_records_come_as_a_reader_gives_them(kafka_config: KafkaConfig, topic: str) -> None:
    with Publisher(kafka_config) as publisher:
        publisher.publish(topic, b"v", key=b"k", headers=(("label", b"x"),), timestamp_ms=1000)
        publisher.publish(topic, None, key=b"k")
    places = [(Partition(topic, 0), offset) for offset in range(2)]
    with Reader(kafka_config, [topic], group="g") as reader, Fetcher(kafka_config) as fetcher:
        read: list[Record] = []
        while len(read) < 2:
            polled = reader.poll(20)
            assert polled is not None
            read += polled.records
        assert list(fetcher.records(places)) == read


def test_memory_is_bounded(published: Published) -> None:
    bound = 100_000
    with Fetcher(published.config, max_buffered_bytes=bound) as fetcher:
        for place in itertools.islice(published.records, 0, None, 5):
            assert len(list(fetcher.records([place]))) == 1
            held = sum(ahead.size_bytes for ahead in fetcher._ahead.values())
            assert held <= bound + 500 * 1000  # a chunk
