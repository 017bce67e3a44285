"""Whatever the bytes of a log are, each record comes out once, whole or with its fault, and reading goes on."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from kafka import TopicPartition
from kafka.record import MemoryRecords

from pipeline.config import KafkaConfig
from pipeline.log.batches import CHUNK_BYTES, MAX_HEADERS, PartitionRecords, memory_of
from pipeline.log.fetcher import Fetcher
from pipeline.log.reader import Reader
from pipeline.records import Partition, Record
from tests.pipeline import raw
from tests.services import Topics

AT = TopicPartition("t", 0)
MOST = 1 << 20
PATIENCE_S = 60.0
NO_TEXT = b"Gr\xf6\xdfe"  # a header's name in Latin-1

values = st.none() | st.binary(max_size=40)
headers = st.lists(st.tuples(st.sampled_from([b"label", b"id", b"x"]) | st.binary(max_size=9), values), max_size=4)


@st.composite
def batches(draw: st.DrawFn) -> bytes:
    """A batch as a strange producer may send it: perhaps with bytes of its records changed, its checksum fits."""
    made = [
        raw.record(number, draw(values), key=draw(values), headers=draw(headers))
        for number in range(draw(st.integers(1, 4)))
    ]
    whole = bytearray(b"".join(made))
    for _ in range(draw(st.integers(0, 3))):
        whole[draw(st.integers(0, len(whole) - 1))] = draw(st.integers(0, 255))
    codec = draw(st.sampled_from(sorted(raw.CODECS)))
    payload = raw.CODECS[codec](bytes(whole)) + draw(st.just(b"") | st.binary(max_size=3))
    flags = draw(st.sampled_from([0, 8, 64]))  # 8: timestamps are the broker's; 64 means nothing yet
    timestamp_ms = draw(st.sampled_from([1_700_000_000_000, -1, 0, -(2**63)]))
    return raw.batch(made, codec=codec, flags=flags, payload=payload, timestamp_ms=timestamp_ms)


def unpacked(*batches: bytes, **kwargs: Any) -> tuple[list[Record], int]:
    """The records, and where reading goes on."""
    part = PartitionRecords(0, AT, MemoryRecords(b"".join(batches)), isolation_level=1, most_bytes=MOST, **kwargs)
    found = list(part.record_iterator)
    assert part.record_iterator is None  # it is done, and the next answer is asked for
    return found, part.next_fetch_offset


def outcome(record: Record) -> bytes | str | None:
    return record.value if record.fault is None else record.fault.reason


def test_a_header_is_no_reason_to_stop() -> None:
    odd = [(NO_TEXT, b"5"), (b"label", b"a"), (b"id", None), (b"\xed\xa0\xbd", b""), (b"label", b"b")]
    [record], _ = unpacked(raw.batch([raw.record(0, b"x", headers=odd)]))
    assert record.headers == (("Gr\ufffd\ufffde", b"5"), ("label", b"a"), ("\ufffd\ufffd\ufffd", b""), ("label", b"b"))


def test_the_last_header_of_a_name_counts_also_where_it_has_no_value() -> None:
    told = [(b"label", b"a"), (b"id", None), (b"label", None), (b"id", b"7")]
    [record], _ = unpacked(raw.batch([raw.record(0, b"x", headers=told)]))
    assert record.headers == (("id", b"7"),)


@pytest.mark.parametrize("codec", raw.CODECS)
def test_what_any_producer_compresses_is_read(codec: int) -> None:
    sent = [b"%d" % number * 9 for number in range(3)]
    found, position = unpacked(raw.batch(raw.numbered(sent), codec=codec))
    assert ([record.value for record in found], position) == (sent, 3)


def test_streams_in_a_row_are_one() -> None:
    both = b"".join(raw.numbered([b"one", b"two"]))
    halves = [both[:7], both[7:]]
    xerial = [b"\x82SNAPPY\0" + bytes(8) + struct.pack(">i", len(b)) + b for b in map(raw.CODECS[2], halves)]
    for codec, payload in ((1, b"".join(map(gzip.compress, halves))), (2, b"".join(xerial))):
        found, _ = unpacked(raw.batch([b"", b""], codec=codec, payload=payload))
        assert [record.value for record in found] == [b"one", b"two"]


@pytest.mark.parametrize("codec", [1, 3, 4])
def test_what_unfolds_to_too_much_is_stepped_over_in_little_memory(codec: int) -> None:
    bomb = raw.batch(raw.numbered([b"a", bytes(100 << 20), b"b"]), codec=codec)
    tracemalloc.start()
    try:
        found, position = unpacked(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ([outcome(record) for record in found], position) == ([b"a", "too-large", b"b"], 3)
    assert peak < 16 * CHUNK_BYTES


def test_more_headers_than_anybody_needs_take_no_memory() -> None:
    many = raw.record(0, b"x", headers=[(b"", None)] * (MAX_HEADERS + 1))
    found, _ = unpacked(raw.batch([many, raw.record(1, b"y", headers=[(b"h", b"")] * MAX_HEADERS)]))
    assert [outcome(record) for record in found] == ["too-large", b"y"]
    assert memory_of(found[1]) > 100 * MAX_HEADERS  # so that few of them wait


def test_a_damaged_batch_takes_its_own_records_alone() -> None:
    good = raw.batch(raw.numbered([b"a"]))
    damaged = bytearray(raw.batch(raw.numbered([b"b", b"c"]), base_offset=1))
    damaged[-1] ^= 1
    odd = bytearray(raw.batch(raw.numbered([b"d"]), base_offset=3))
    struct.pack_into(">i", odd, 23, 2_000_000_000)  # where it ends is not to be believed
    last = raw.batch(raw.numbered([b"e"]), base_offset=4)
    found, position = unpacked(good, bytes(damaged), bytes(odd), last)
    assert [record.offset for record in found] == [0, 1, 2, 3, 4]
    assert [outcome(record) for record in found] == [b"a", *["undecodable"] * 3, b"e"]
    assert position == 5


@pytest.mark.parametrize("key", [None, b"", b"\0\0", b"\0\0\0\0", b"\0\0\0\x01\0\0"])
def test_markers_of_any_kind_are_no_records(key: bytes | None) -> None:
    marker = raw.batch([raw.record(0, b"", key=key)], flags=raw.CONTROL | raw.TRANSACTIONAL, producer=(7, 0, -1))
    found, position = unpacked(marker, raw.batch(raw.numbered([b"a"]), base_offset=1))
    assert ([record.value for record in found], position) == ([b"a"], 2)


def test_a_marker_that_compaction_emptied_is_stepped_over() -> None:
    empty = raw.batch([], last=0, flags=raw.CONTROL | raw.TRANSACTIONAL, producer=(7, 0, -1))  # Kafka keeps its end
    found, position = unpacked(empty, raw.batch(raw.numbered([b"a"]), base_offset=1))
    assert ([record.value for record in found], position) == ([b"a"], 2)


@settings(max_examples=300, deadline=None)
@given(st.lists(batches(), min_size=1, max_size=3))
def test_any_bytes_end_and_each_offset_comes_once(made: list[bytes]) -> None:
    at = 0
    placed = []
    for one in made:
        placed.append(struct.pack(">q", at) + one[8:])
        at += struct.unpack_from(">i", one, 23)[0] + 1
    found, position = unpacked(*placed)
    offsets = [record.offset for record in found]
    assert offsets == sorted(set(offsets))
    assert position == at
    assert all(record.fault is None or record.value is None for record in found)


@pytest.fixture(scope="module")
def send(kafka: str) -> Iterator[Any]:
    with raw.sending(kafka) as call:
        yield call


def read(config: KafkaConfig, topic: str, end: int) -> list[Record]:
    found: list[Record] = []
    position = 0
    with Reader(config, [topic], group="headrace-m") as reader:
        while position < end:
            polled = reader.poll(PATIENCE_S)
            assert polled is not None, f"nothing came after {position}"
            found += polled.records
            position = polled.positions[Partition(topic, 0)]
    assert position == end
    return found


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([raw.batch(raw.numbered([b"x"], headers=[(NO_TEXT, b"5")]))])
@example([raw.batch([raw.record(0, b"a"), raw.record(5, b"b")])])  # which a broker takes
@given(st.lists(batches(), min_size=1, max_size=8))
def test_whatever_a_broker_takes_is_read_by_both_readers(
    kafka_config: KafkaConfig, topics: Topics, send: Any, made: list[bytes]
) -> None:
    topic = topics()
    last = raw.batch(raw.numbered([b"last"]))
    taken = [one for one in [*made, last] if send(topic, one)[0] == 0]
    end = sum(struct.unpack_from(">i", one, 23)[0] + 1 for one in taken)
    found = read(kafka_config, topic, end)
    assert found[-1].value == b"last"
    assert [record.offset for record in found] == sorted({record.offset for record in found})
    with Fetcher(kafka_config) as fetcher:
        backwards = found[::-1]
        places = [(Partition(topic, 0), record.offset) for record in backwards]
        assert list(fetcher.records(places)) == backwards
