"""Records out of the batches that Kafka sends: whatever their bytes, each comes out, whole or with its fault.

kafka-python ends at a batch or header that it does not understand, at every start at the same one, and takes as much
memory as a batch unfolds to. Here what cannot be read is a record with a `fault`, and a batch is unfolded bit by bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import lz4.frame
import snappy
import zstandard
from kafka.consumer.fetcher import Fetcher
from kafka.record.util import decode_varint

from pipeline.errors import RecordError
from pipeline.records import Record

MAX_HEADERS = 1000  # of a record: in Python each takes a hundred times what it takes in the log
CHUNK_BYTES = 256 << 10  # that a batch is unfolded by
HEADER_OVERHEAD = 150  # bytes that a header takes in Python beside its value,
RECORD_OVERHEAD = 500  # and a record beside key, value and headers
At = tuple[str, int]  # topic and partition
XERIAL, XERIAL_BYTES = b"\x82SNAPPY\0", 16  # what Java's snappy begins a stream with, and how long that is


def memory_of(record: Record) -> int:
    """Bytes that a record takes, about."""
    size = RECORD_OVERHEAD + len(record.key or b"") + len(record.value or b"")
    return size + sum(HEADER_OVERHEAD + len(value) for _, value in record.headers)


class PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """What kafka-python makes of one partition's part of an answer; gives our records.

    Args:
        most_bytes: a compressed record may unfold to so many.
    """

    def __init__(self, *args: Any, most_bytes: int, **kwargs: Any) -> None:
        self._most_bytes = most_bytes
        super().__init__(*args, **kwargs)

    def _unpack_records(self, at: At, records: Any, *_: Any) -> Iterator[Record]:
        self.bytes_read = records.size_in_bytes()
        while (batch := records.next_batch()) is not None:
            is_sound = batch.magic == 2 and batch.validate_crc()
            if not (is_sound and self._is_passed_over(batch)):
                for record in self._records(batch, at, is_sound):
                    self.records_read += 1
                    self.next_fetch_offset = record.offset + 1
                    yield record
            if is_sound:  # compaction leaves batches that end behind their last record
                self.next_fetch_offset = batch.next_offset
        self.drain()

    def _records(self, batch: Any, at: At, is_sound: bool) -> Iterator[Record]:
        if batch.magic < 2:
            return _legacy(batch, at, self.fetch_offset)
        self.leader_epoch = batch.leader_epoch
        return _read(batch, at, self._most_bytes) if is_sound else _damaged(batch, at, self.fetch_offset)

    def _is_passed_over(self, batch: Any) -> bool:
        """Whether it is a transaction's marker, or of one that was aborted."""
        if batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if batch.is_control_batch and _is_abort(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


def _is_abort(batch: Any) -> bool:
    """Of a control batch; compaction may have left none of its records."""
    marker = next(_read(batch, ("", 0), CHUNK_BYTES), None)
    return marker is not None and (marker.key or b"")[2:4] == b"\0\0"


def _read(batch: Any, at: At, most_bytes: int) -> Iterator[Record]:
    """The records of a batch that is as it was sent, in order; those that cannot be read with a fault."""
    expected = batch.base_offset
    timestamp_ms = batch.max_timestamp
    try:
        source = _Source(_unfolded(batch))
        most = most_bytes if batch.compression_type else batch.size_in_bytes
        for _ in range(batch.records_count):
            size = source.varint()
            fields = _fields(source.take(size)) if size <= most else _cut(source, size)
            offset = batch.base_offset + fields.offset_delta
            if not expected <= offset <= batch.last_offset:
                raise ValueError(f"a record has offset {offset} in a batch of {expected} to {batch.last_offset}")
            if not batch.timestamp_type:  # else it is the broker's, of the whole batch
                timestamp_ms = min(max(batch.first_timestamp + fields.timestamp_delta, -(2**63)), 2**63 - 1)
            yield Record(*at, offset, timestamp_ms, fields.key, fields.value, fields.headers, fields.fault)
            expected = offset + 1
    except Exception as error:  # noqa: BLE001 - of four decompressors, beside those of fields
        for offset in range(expected, batch.next_offset):
            yield _faulty(at, offset, str(error) or type(error).__name__)


def _damaged(batch: Any, at: At, fetch_offset: int) -> Iterator[Record]:
    """As many records as there were in a batch that is not as it was sent, if that is to be believed, else one."""
    first, end = batch.base_offset, batch.next_offset
    if not first < end <= first + batch.size_in_bytes:
        first = max(first, fetch_offset)
        end = first + 1
    for offset in range(first, end):
        yield _faulty(at, offset, "its checksum does not fit, or its format is not known")


def _legacy(batch: Any, at: At, fetch_offset: int) -> Iterator[Record]:
    """The records of a batch as Kafka wrote them before 0.11."""
    try:
        if not batch.validate_crc():
            raise ValueError("its checksum does not fit")
        for r in batch:
            yield Record(*at, r.offset, -1 if r.timestamp is None else r.timestamp, r.key, r.value)
    except Exception as error:  # noqa: BLE001 - of decompressors, and of kafka-python's reading
        yield _faulty(at, max(batch.base_offset, fetch_offset), str(error) or type(error).__name__)


def _faulty(at: At, offset: int, why: str) -> Record:
    return Record(*at, offset, -1, None, None, fault=RecordError("undecodable", f"its batch cannot be read: {why}."))


class _Fields(NamedTuple):
    """One record inside a batch."""

    timestamp_delta: int
    offset_delta: int
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    fault: RecordError | None = None


def _fields(raw: bytes) -> _Fields:
    """Raises IndexError or ValueError for what is damaged."""
    timestamp_delta, at = decode_varint(raw, 1)  # behind the attributes, which mean nothing yet
    offset_delta, at = decode_varint(raw, at)
    key, at = _bytes(raw, at)
    value, at = _bytes(raw, at)
    count, at = decode_varint(raw, at)
    if count > MAX_HEADERS:
        fault = RecordError("too-large", f"{count} headers, over {MAX_HEADERS}.")
        return _Fields(timestamp_delta, offset_delta, key, fault=fault)
    headers: list[tuple[str, bytes]] = []
    for _ in range(count):
        name, at = _bytes(raw, at)
        content, at = _bytes(raw, at)
        text = (name or b"").decode(errors="replace")  # as Kafka's own client does it
        if content is None:  # the last one of a name counts, and this one says that there is none
            headers = [header for header in headers if header[0] != text]
        else:
            headers.append((text, content))
    if count < 0 or at != len(raw):
        raise ValueError(f"a record's fields take {at} of its {len(raw)} bytes")
    return _Fields(timestamp_delta, offset_delta, key, value, tuple(headers))


def _bytes(raw: bytes, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(raw, at)
    if size < 0:
        return None, at
    end = at + size
    if end > len(raw):
        raise ValueError(f"a field of {size} bytes ends behind its record")
    return raw[at:end], end


def _cut(source: _Source, size: int) -> _Fields:
    """What is known of a record that unfolds to too much; the source steps over it."""
    head = source.take(32)  # attributes and the two deltas take less
    timestamp_delta, at = decode_varint(head, 1)
    offset_delta, _ = decode_varint(head, at)
    source.skip(size - len(head))
    fault = RecordError("too-large", f"it unfolds to {size} bytes, over kafka.max_bytes.")
    return _Fields(timestamp_delta, offset_delta, fault=fault)


class _Source:
    """Bytes that come in pieces, read from the front."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0

    def varint(self) -> int:
        while True:
            try:
                value, self._at = decode_varint(self._piece, self._at)
            except IndexError:
                self._more(len(self._piece) - self._at + 1)
            else:
                return int(value)

    def take(self, size: int) -> bytes:
        if size < 0:
            raise ValueError(f"a record of {size} bytes")
        end = self._at + size
        if end > len(self._piece):
            self._more(size)
            end = size
        found = self._piece[self._at : end]
        self._at = end
        return found

    def skip(self, size: int) -> None:
        while size > len(self._piece) - self._at:
            size -= len(self._piece) - self._at
            self._piece, self._at = self._next(), 0
        self._at += size

    def _more(self, size: int) -> None:
        """Has at least so many bytes in the piece, from its beginning on."""
        pieces = [self._piece[self._at :]]
        size -= len(pieces[0])
        while size > 0:
            pieces.append(self._next())
            size -= len(pieces[-1])
        self._piece, self._at = b"".join(pieces), 0

    def _next(self) -> bytes:
        piece = next(self._pieces, None)
        if piece is None:
            raise ValueError("it ends inside a record")
        return piece


def _unfolded(batch: Any) -> Iterator[bytes]:
    """A batch's records, in pieces, none of them empty."""
    payload = bytes(batch._buffer[batch.HEADER_STRUCT.size :])
    codecs = {0: lambda whole: iter([whole]), 1: _gunzipped, 2: _unsnapped, 3: _unlz4ed, 4: _unzstded}
    if batch.compression_type not in codecs:
        raise ValueError(f"compression {batch.compression_type} is not known")
    return filter(None, codecs[batch.compression_type](payload))


def _gunzipped(payload: bytes) -> Iterator[bytes]:
    while payload:  # members in a row are one
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        while not member.eof:
            piece = member.decompress(payload, CHUNK_BYTES)
            payload = member.unconsumed_tail
            if not (piece or payload or member.eof):
                raise ValueError("its gzip ends early")
            yield piece
        payload = member.unused_data


def _unsnapped(payload: bytes) -> Iterator[bytes]:
    """At most 21 times as large as it was: a block is unfolded at once."""
    if not payload.startswith(XERIAL):
        yield snappy.decompress(payload)
        return
    at = 0
    while at < len(payload):
        if payload.startswith(XERIAL, at):  # streams in a row are one
            at += XERIAL_BYTES
            continue
        end = at + 4 + int.from_bytes(payload[at : at + 4])
        yield snappy.decompress(payload[at + 4 : end])
        at = end


def _unlz4ed(payload: bytes) -> Iterator[bytes]:
    frame = lz4.frame.LZ4FrameDecompressor()
    yield frame.decompress(payload, CHUNK_BYTES)
    while not frame.eof:
        if frame.needs_input:
            raise ValueError("its lz4 ends early")
        yield frame.decompress(b"", CHUNK_BYTES)


def _unzstded(payload: bytes) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(payload, read_across_frames=True) as reader:
        yield from iter(lambda: reader.read(CHUNK_BYTES), b"")
