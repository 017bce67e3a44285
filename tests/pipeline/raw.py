"""Record batches written byte by byte, as no client of a library would, and sent as they are."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import crc32c
import lz4.frame
import snappy
import zstandard
from kafka import KafkaAdminClient
from kafka.protocol.producer import ProduceRequest
from kafka.record.util import encode_varint

CODECS = {
    0: bytes,
    1: gzip.compress,
    2: snappy.compress,
    3: lz4.frame.compress,
    4: zstandard.ZstdCompressor().compress,
}
CONTROL, TRANSACTIONAL = 32, 16  # bits of a batch's attributes
Headers = Sequence[tuple[bytes, bytes | None]]
HEADER = struct.Struct(">hiqqqhii")  # what the checksum covers, in front of the records


def varint(value: int) -> bytes:
    """Zigzag, as Kafka has it."""
    found = bytearray()
    encode_varint(value, found.append)
    return bytes(found)


def field(value: bytes | None) -> bytes:
    return varint(-1) if value is None else varint(len(value)) + value


def record(
    number: int, value: bytes | None, *, key: bytes | None = None, headers: Headers = (), timestamp_delta: int = 0
) -> bytes:
    """One record of a batch; `number` in it, from 0."""
    told = b"".join(field(name) + field(content) for name, content in headers)
    body = b"\0" + varint(timestamp_delta) + varint(number) + field(key) + field(value) + varint(len(headers)) + told
    return varint(len(body)) + body


def batch(
    records: Sequence[bytes],
    *,
    codec: int = 0,
    flags: int = 0,
    payload: bytes | None = None,
    last: int | None = None,
    timestamp_ms: int = 1_700_000_000_000,
    producer: tuple[int, int, int] = (-1, -1, -1),
    base_offset: int = 0,
) -> bytes:
    """A batch with a checksum that fits; `payload` instead of the records, compressed; `last`: where it ends."""
    if payload is None:
        payload = CODECS[codec](b"".join(records))
    count = len(records)
    last = count - 1 if last is None else last
    id_, epoch, sequence = producer
    fields = HEADER.pack(codec | flags, last, timestamp_ms, timestamp_ms, id_, epoch, sequence, count)
    body = fields + payload
    return struct.pack(">qiibI", base_offset, 9 + len(body), 0, 2, crc32c.crc32c(body)) + body


@contextmanager
def sending(bootstrap_servers: str) -> Iterator[Any]:
    """Calls with (topic, batch) that give the broker's error code, and the first offset where that is 0."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    manager = admin._manager

    def send(topic: str, raw: bytes, partition: int = 0) -> tuple[int, int]:
        data = ProduceRequest.TopicProduceData
        part = data.PartitionProduceData(index=partition, records=raw)
        request = ProduceRequest(
            transactional_id=None,
            acks=-1,
            timeout_ms=10_000,
            topic_data=[data(name=topic, partition_data=[part])],
            min_version=3,
            max_version=9,
        )

        async def ask() -> Any:
            return await manager.wait_for(manager.send(request), 10_000)

        [answer] = manager.run(ask).responses
        [told] = answer.partition_responses
        return int(told.error_code), int(told.base_offset)

    try:
        yield send
    finally:
        admin.close()


def numbered(values: Iterable[bytes | None], **of_each: Any) -> list[bytes]:
    """Records of these values."""
    return [record(number, value, **of_each) for number, value in enumerate(values)]
