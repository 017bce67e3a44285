"""Records that could not be learned: kept with the reason in `<topic>.dead-letters`, whole where that takes them.

A dead letter is an ordinary record. Its key is the original's "topic:partition:offset". Its value is the
original's; or none, if it could not be read, or if the letter would be larger than its topic or `kafka.max_bytes`
allows: then it is at its origin alone. If the letter is too large even so, key and headers are, too. Its headers:

| header | value |
|---|---|
| `headrace-resolution` | only where it was resolved: `requeued` or `dropped` |
| `headrace-key` | the original's key, if it had one |
| `headrace-model` | the model that could not learn it |
| `headrace-reason` | the constant slug, see `pipeline.records` |
| `headrace-detail` | what exactly, for people: at most 1,000 characters |
| `headrace-topic`, `headrace-partition`, `headrace-offset` | where the original is, or was |
| `headrace-timestamp-ms` | when it was published |
| all others | those of the original |

Ours come first and in this order, so that an original with such headers of its own is no riddle.

What became of a letter is in the same topic: a *resolution* is a record with the letter's key and our headers, no
value, and `headrace-resolution` in front. Reading folds by origin and model: the last one counts. So a letter
that was sent twice, by a worker and by the next after a crash, is one letter; one that was sent again after it
was resolved is open again.

To requeue is to publish the original again, in its partition, under its key and headers, with the headers
`headrace-origin` and `headrace-for` in front (see `pipeline.records`), and its label behind them, if that came later.
That record and the resolution are one transaction: a crash leaves both or neither.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from kafka import KafkaConsumer

from pipeline.config import Config, KafkaConfig, LabelsConfig, ModelConfig
from pipeline.errors import LogError, LogUnavailable, OffsetsGone, RecordError
from pipeline.log.connection import connected
from pipeline.log.fetcher import Fetcher
from pipeline.log.offsets import describe, end_offsets, first_offsets, tp
from pipeline.log.publisher import Publisher
from pipeline.records import FOR, ORIGIN, Label, Partition, Place, Record, from_headers, label_in, load_decoder

Headers = tuple[tuple[str, bytes], ...]
Resolution = Literal["requeued", "dropped"]
RESOLUTIONS = ("requeued", "dropped")
NAMES = tuple(
    f"headrace-{name}" for name in ("model", "reason", "detail", "topic", "partition", "offset", "timestamp-ms")
)
RESOLUTION = "headrace-resolution"
KEY = "headrace-key"
MAX_DETAIL_CHARS = 1000
POLL_MS = 100
SILENCE_S = 30.0  # of a broker that names records and gives none
TRANSACTION_LETTERS = 500  # resolved together, if they have
TRANSACTION_BYTES = 32 << 20  # no more than this


def dead_letter_topic(topic: str) -> str:
    """Where the dead letters of `topic` go."""
    return f"{topic}.dead-letters"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The original record, and why the model could not learn it."""

    record: Record  # its value is left out where letters are listed: `with_values`
    model: str
    reason: str
    detail: str
    resolution: str | None = None  # one of RESOLUTIONS
    # Of letters that were listed:
    place: Place | None = None  # the letter's own
    sent_ms: int | None = None  # when it was sent, since the epoch
    value_bytes: int | None = None  # None: at its origin alone

    @property
    def origin(self) -> str:
        """ "topic:partition:offset" of the original."""
        return str(self.record.place)

    @property
    def key(self) -> tuple[str, str]:
        """What makes two letters the same: origin and model."""
        return self.origin, self.model

    @property
    def headers(self) -> Headers:
        """The headers of the table above."""
        r = self.record
        texts = (self.model, self.reason, self.detail, r.topic, r.partition, r.offset, r.timestamp_ms)
        resolution = () if self.resolution is None else ((RESOLUTION, self.resolution.encode()),)
        key = () if r.key is None else ((KEY, r.key),)
        ours = tuple((name, str(text).encode()) for name, text in zip(NAMES, texts, strict=True))
        return (*resolution, *key, *ours, *r.headers)

    def json(self) -> dict[str, Any]:
        """What a program reads; the value itself stays in the log."""
        record = self.record
        return {
            "origin": self.origin,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp_ms,
            "model": self.model,
            "reason": self.reason,
            "detail": self.detail,
            "resolution": self.resolution,
            "sent_ms": self.sent_ms,
            "bytes": self.value_bytes,
            "headers": {name: value.decode(errors="replace") for name, value in record.headers},
        }


def dead_letter(record: Record, error: RecordError, model: str) -> DeadLetter:
    """What is kept of a record that could not be learned."""
    detail = error.detail[:MAX_DETAIL_CHARS].encode(errors="replace").decode()  # foreign text: lone surrogates
    return DeadLetter(record, model, error.reason, detail)


def parse(record: Record) -> DeadLetter:
    """Reads a record of a dead-letter topic: a dead letter, or the resolution of one.

    Raises:
        RecordError: "undecodable": somebody else wrote it.
    """
    headers = record.headers
    resolution = key = None
    if headers and headers[0] in [(RESOLUTION, name.encode()) for name in RESOLUTIONS]:
        resolution, headers = headers[0][1].decode(), headers[1:]
    if headers and headers[0][0] == KEY:
        key, headers = headers[0][1], headers[1:]
    ours, others = headers[: len(NAMES)], headers[len(NAMES) :]
    try:
        if tuple(name for name, _ in ours) != NAMES:
            raise ValueError(f"its first headers are not {', '.join(NAMES)}")
        model, reason, detail, topic, *numbers = (value.decode() for _, value in ours)
        partition, offset, timestamp_ms = map(int, numbers)
    except ValueError as error:
        raise RecordError("undecodable", f"{record.place} is not a dead letter: {error}.") from None
    original = Record(topic, partition, offset, timestamp_ms, key, record.value, others)
    return DeadLetter(original, model, reason, detail, resolution)


def publish_dead_letter(publisher: Publisher, record: Record, error: RecordError, model: str) -> None:
    """Sends the record to its dead-letter topic. It is safe once the publisher is flushed.

    Raises:
        LogUnavailable: Kafka does not take it in time, or the topic does not exist.
        LogError: Kafka refused an earlier one.
    """
    _publish(publisher, dead_letter(record, error, model))


def _publish(publisher: Publisher, letter: DeadLetter) -> None:
    topic, key = dead_letter_topic(letter.record.topic), letter.origin.encode()
    instead = partial(_publish_smaller, publisher, letter)
    try:
        publisher.publish(topic, letter.record.value, key=key, headers=letter.headers, instead=instead)
    except RecordError:
        instead()


def _publish_smaller(publisher: Publisher, letter: DeadLetter) -> None:
    """Less of it, down to the reason alone; a topic that does not take that either has no letter of this record."""
    if letter.record.value is not None:
        _publish(publisher, replace(letter, record=replace(letter.record, value=None)))
    elif letter.detail or letter.record.headers or letter.record.key is not None:
        _publish(publisher, _bare(letter))


def _bare(letter: DeadLetter) -> DeadLetter:
    """Without all that makes it large."""
    return replace(letter, detail="", record=replace(letter.record, key=None, value=None, headers=()))


def read_dead_letters(
    config: KafkaConfig,
    topic: str,
    *,
    model: str | None = None,
    reason: str | None = None,
    since_ms: int = 0,
    resolved: bool = False,
    last: int | None = None,
    keep_bytes: int = 0,
) -> list[DeadLetter]:
    """The open dead letters of `topic`, oldest first, without their values. Records that are none are passed over.

    It reads up to what is the end of the dead-letter topic when it is called.

    Args:
        model: only those of this model.
        reason: only those with this one.
        since_ms: only those sent at this time or later, in milliseconds since the epoch.
        resolved: also those that were requeued or dropped.
        last: only of so many records at the end of each partition of the dead-letter topic.
        keep_bytes: values of at most so many bytes are kept.

    Raises:
        LogUnavailable: Kafka cannot be reached.
        LogError: Kafka refuses.
    """
    letters: dict[tuple[str, str], DeadLetter] = {}
    with closing(committed(config, dead_letter_topic(topic), last)) as records:
        for record in records:
            with suppress(RecordError):
                letter = parse(record)
                if letter.record.topic != topic or model not in (None, letter.model):
                    continue
                if letter.resolution is None:
                    kept = record.value if keep_bytes and len(record.value or b"") <= keep_bytes else None
                    letters[letter.key] = replace(
                        letter,
                        record=replace(letter.record, value=kept),
                        place=record.place,
                        sent_ms=record.timestamp_ms,
                        value_bytes=None if record.value is None else len(record.value),
                    )
                elif (before := letters.pop(letter.key, None)) and resolved:
                    letters[letter.key] = replace(before, resolution=letter.resolution)
    found = [e for e in letters.values() if reason in (None, e.reason) and (e.sent_ms or 0) >= since_ms]
    return sorted(found, key=lambda letter: (letter.sent_ms or 0, letter.place))


def with_values(config: KafkaConfig, letters: Iterable[DeadLetter]) -> Generator[DeadLetter]:
    """Adds the originals' values to letters that were listed, one at a time.

    Raises:
        OffsetsGone: the record that holds it was removed.
        LogUnavailable: Kafka cannot be reached.
        LogError: Kafka refuses, or has another record there now.
    """
    with Fetcher(config) as fetcher:
        for letter in letters:
            original = letter.record
            at_origin = letter.value_bytes is None
            place = original.place if letter.place is None or at_origin else letter.place
            try:
                [found] = fetcher.records([place])
            except OffsetsGone:
                raise OffsetsGone(
                    f"The value of the dead letter {letter.origin} is not in the log any more: retention removed "
                    f"{place}, or the topic was made again. Restore the topic's data, or drop the letter."
                ) from None
            if at_origin:
                same = _is_of(letter, found)
            else:
                same = found.key == letter.origin.encode() and len(found.value or b"") == letter.value_bytes
            if not same:
                raise LogError(
                    f"{place} does not hold the value of the dead letter {letter.origin} any more: the topic "
                    "was made again. Restore the topic's data, or drop the letter."
                )
            whole = replace(found, headers=original.headers or found.headers) if at_origin else original
            yield replace(letter, record=replace(whole, value=found.value))


def _is_of(letter: DeadLetter, found: Record) -> bool:
    """Whether the record at its origin is still the letter's, of which less may be in the letter, or a label more."""
    kept = letter.record
    return (
        found.timestamp_ms == kept.timestamp_ms
        and kept.key in (None, found.key)
        and (not kept.headers or kept.headers[: len(found.headers)] == found.headers)
    )


def resolve(
    config: KafkaConfig,
    topic: str,
    letters: Iterable[DeadLetter],
    resolution: Resolution,
    headers: Mapping[tuple[str, str], Headers] | None = None,
    last: int | None = None,
    values: Mapping[tuple[str, str], bytes] | None = None,
) -> list[DeadLetter]:
    """Requeues or drops dead letters of `topic` that are still open, and returns those.

    Each is resolved and, if requeued, published in one transaction (of up to `TRANSACTION_LETTERS`). Another
    call for the same topic, wherever it runs, takes over: the earlier one fails, and what it had not committed
    is not done. So no letter is requeued twice for having been sent once. What remains: a letter that is sent
    again after it was resolved is open again, and a worker that has not committed yet what became of the
    original reads that again itself; `pipeline.client.client.Client.requeue` refuses in that case.

    Args:
        headers: further ones of records that are requeued, by the keys of their letters.
        last: as of `read_dead_letters`.
        values: what takes the place of a record's value.

    Raises:
        OffsetsGone: a value was removed from the log; nothing of that transaction is done.
        LogUnavailable: Kafka does not answer in time.
        LogError: Kafka refuses, another call took over, or a value is over `kafka.max_bytes`.
    """
    with Publisher(config, transactional_id=f"headrace-requeue-{topic}") as publisher:
        listed = read_dead_letters(config, topic, last=last)  # now that no other writes
        still_open = {letter.key: letter for letter in listed}
        chosen = [still_open[key] for key in dict.fromkeys(letter.key for letter in letters) if key in still_open]
        done = [replace(letter, resolution=resolution) for letter in chosen]
        with closing(with_values(config, chosen)) as originals:
            for chunk in _chunks(done, config.max_bytes):
                with publisher.transaction():
                    for letter in chunk:
                        if resolution == "requeued":
                            original = next(originals)
                            value = (values or {}).get(letter.key, original.record.value)
                            _publish_again(publisher, original, value, (headers or {}).get(letter.key, ()))
                        _publish_resolution(publisher, letter)
    return done


def _chunks(letters: list[DeadLetter], unknown_bytes: int) -> Iterator[list[DeadLetter]]:
    """Letters in order, as they go into one transaction."""
    chunk, size = list[DeadLetter](), 0
    for letter in letters:
        letter_bytes = unknown_bytes if letter.value_bytes is None else letter.value_bytes
        if chunk and (len(chunk) == TRANSACTION_LETTERS or size + letter_bytes > TRANSACTION_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(letter)
        size += letter_bytes
    if chunk:
        yield chunk


def _publish_again(publisher: Publisher, letter: DeadLetter, value: bytes | None, more: Headers) -> None:
    record = letter.record
    ours = ((ORIGIN, letter.origin.encode()), (FOR, letter.model.encode()))
    others = tuple(header for header in record.headers if header[0] not in (ORIGIN, FOR))
    try:
        if value is None:
            raise record.fault or RecordError("undecodable", "it has no value.")
        publisher.publish(
            record.topic, value, key=record.key, headers=(*ours, *others, *more), partition=record.partition
        )
    except RecordError as error:
        raise LogError(f"{letter.origin} cannot be requeued: {error.detail}") from None
    except ValueError as error:  # kafka-python's for a partition that is not there
        raise LogError(
            f"{letter.origin} cannot be requeued ({error}): the topic was made again. Drop the letter."
        ) from None


def _publish_resolution(publisher: Publisher, letter: DeadLetter) -> None:
    assert letter.place is not None  # noqa: S101 - of all that were listed
    partition, _ = letter.place  # where it is read after the letter
    headers = _bare(letter).headers
    publisher.publish(partition.topic, None, key=letter.origin.encode(), headers=headers, partition=partition.number)


def committed(config: KafkaConfig, topic: str, last: int | None = None) -> Generator[Record]:
    """The committed records of a topic up to its present end, in the order of each partition; none if it is missing.

    A `Reader` goes on for ever; this one ends. `last`: of each partition only so many offsets before its end.
    """
    # "earliest": retention may be faster.
    with connected(KafkaConsumer, config, f"read {topic}", auto_offset_reset="earliest") as consumer:
        found = describe(consumer, [topic]).get(topic)
        partitions = found.partitions if found else ()
        firsts, ends = first_offsets(consumer, partitions), end_offsets(consumer, partitions)
        firsts = {one: max(first, ends[one] - last) if last else first for one, first in firsts.items()}
        left = {tp(partition): ends[partition] for partition in partitions if firsts[partition] < ends[partition]}
        consumer.assign(list(left))
        for partition in left:
            consumer.seek(partition, firsts[Partition(*partition)])
        moved_at = time.monotonic()
        while left:
            for batch in consumer.poll(timeout_ms=POLL_MS).values():
                moved_at = time.monotonic()
                yield from batch
            # Beyond the last record there may be markers of transactions: the position steps over them.
            for partition in [partition for partition, end in left.items() if consumer.position(partition) >= end]:
                consumer.pause(partition)
                del left[partition]
            if time.monotonic() - moved_at > SILENCE_S:
                raise LogUnavailable(
                    f"Kafka at {config.bootstrap_servers} gave no record of {topic} for {SILENCE_S:g} s. "
                    "See that it runs, then try again."
                )


def late_headers(config: Config, letters: Iterable[DeadLetter]) -> dict[tuple[str, str], Headers]:
    """The headers that requeued records need beside their own, by the keys of their letters.

    Where a model gets its labels from a topic of their own, that is the last label in that topic which the record would
    have been joined with, and the id that it had by its place.

    Raises:
        ConfigError: a model's decoder is not there.
        OffsetsGone: a value was removed from the log.
        LogUnavailable, LogError: Kafka cannot be reached, or refuses.
    """
    found: dict[tuple[str, str], Headers] = {}
    by_model: dict[str, list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        by_model[letter.model].append(letter)
    for model, those in by_model.items():
        settings = config.models.get(model)
        if settings is not None and settings.labels is not None:
            found |= _of_model(config, settings, settings.labels, those)
    return found


def _of_model(
    config: Config, settings: ModelConfig, table: LabelsConfig, letters: list[DeadLetter]
) -> dict[tuple[str, str], Headers]:
    found: dict[tuple[str, str], Headers] = {}
    waiting: dict[str, list[DeadLetter]] = defaultdict(list)
    decode = load_decoder(settings.decoder) if settings.decoder else from_headers
    with closing(with_values(config.kafka, letters)) as originals:
        for letter in originals:
            if letter.record.value is None:
                continue  # it cannot be read, and `resolve` says so
            payload = None
            with suppress(RecordError):
                payload = decode(letter.record)
            if payload is None or payload.label is None:
                id_ = payload.id if payload else None
                found[letter.key] = () if id_ else (("id", letter.origin.encode()),)
                waiting[id_ or letter.origin].append(letter)
    for label in _labels(config, table.topic):
        for letter in waiting.get(label.id, ()):
            if abs(label.record.timestamp_ms - letter.record.timestamp_ms) <= 1000 * table.window_s:
                others = [header for header in found[letter.key] if header[0] != "label"]
                found[letter.key] = (*others, ("label", label.label.encode()))
    return found


def _labels(config: Config, topic: str) -> Iterator[Label]:
    with closing(committed(config.kafka, topic)) as records:
        for record in records:
            if record.value is not None:
                with suppress(RecordError):
                    yield label_in(record)
