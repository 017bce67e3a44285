from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st
from kafka import TopicPartition

from pipeline.client.client import Client
from pipeline.config import Config, KafkaConfig, RedisConfig
from pipeline.errors import LogError, OffsetsGone, RecordError, StoreError
from pipeline.log import dead_letters
from pipeline.log.batches import MAX_HEADERS
from pipeline.log.dead_letters import (
    KEY,
    NAMES,
    RESOLUTION,
    DeadLetter,
    dead_letter,
    dead_letter_topic,
    parse,
    publish_dead_letter,
    read_dead_letters,
    resolve,
    with_values,
)
from pipeline.log.publisher import Publisher
from pipeline.log.topics import ensure_topics
from pipeline.records import Example, Partition, Place, Record, RecordDecoder, Skipped
from pipeline.store.lineage import Runs
from pipeline.store.store import Store
from pipeline.texts import TextInput
from tests.pipeline import raw
from tests.pipeline.drafts import draft, taken, weights
from tests.services import Topics, unique

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

PATIENCE_S = 60.0

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(0, 2**62)
HEADERS = st.lists(st.tuples(st.sampled_from(["label", KEY, RESOLUTION, *NAMES]) | TEXTS, st.binary())).map(tuple)
RECORDS = st.builds(Record, TEXTS, NUMBERS, NUMBERS, NUMBERS, st.none() | st.binary(), st.none() | st.binary(), HEADERS)


def sent(letter: DeadLetter) -> Record:
    """What a reader of the dead-letter topic gets."""
    return Record("t.dead-letters", 0, 9, 99, letter.origin.encode(), letter.record.value, letter.headers)


@given(st.builds(DeadLetter, RECORDS, TEXTS, TEXTS, TEXTS, st.sampled_from([None, "requeued", "dropped"])))
def test_round_trip(letter: DeadLetter) -> None:
    assert parse(sent(letter)) == letter


@given(st.builds(dead_letter, RECORDS, st.builds(RecordError, TEXTS, TEXTS), TEXTS))
def test_a_dead_letter_may_die_again(letter: DeadLetter) -> None:
    again = dead_letter(sent(letter), RecordError("undecodable", "twice"), "other")
    assert parse(parse(sent(again)).record) == letter


def test_the_public_format() -> None:
    record = Record("digits", 1, 42, 1_700_000_000_000, b"k", b"GIF?", (("label", b"seven"),))
    letter = dead_letter(record, RecordError("undecodable", "no picture."), "pictures")
    assert letter.origin == "digits:1:42"
    assert letter.headers == (
        ("headrace-key", b"k"),
        ("headrace-model", b"pictures"),
        ("headrace-reason", b"undecodable"),
        ("headrace-detail", b"no picture."),
        ("headrace-topic", b"digits"),
        ("headrace-partition", b"1"),
        ("headrace-offset", b"42"),
        ("headrace-timestamp-ms", b"1700000000000"),
        ("label", b"seven"),
    )


def test_foreign_text_in_the_detail_is_bounded_and_can_be_written() -> None:
    record = Record("t", 0, 0, 0, None, b"")
    letter = dead_letter(record, RecordError("decoder", "\ud800" + "x" * 10**6), "m")
    assert letter.detail == "?" + "x" * 999
    assert parse(sent(letter)) == letter


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("headrace-key", b""),),
        (("headrace-resolution", b"forgiven"), *((name, b"0") for name in NAMES)),
        (("label", b"a"), *((name, b"0") for name in NAMES)),
        tuple((name, b"no number") for name in NAMES),
        tuple((name, b"\xff") for name in NAMES),
    ],
)
def test_what_somebody_else_wrote_is_no_dead_letter(headers: tuple[tuple[str, bytes], ...]) -> None:
    with pytest.raises(RecordError, match="t:0:5 is not a dead letter"):
        parse(Record("t", 0, 5, 0, None, b"", headers))


def send(config: KafkaConfig, *letters: DeadLetter) -> None:
    """As a worker does it: originals that are there, letters, and what nobody knows between them."""
    ensure_topics(config, [dead_letter_topic(letter.record.topic) for letter in letters])
    with Publisher(config, idempotent=False) as publisher:
        for letter in letters:
            publish_dead_letter(publisher, letter.record, RecordError(letter.reason, letter.detail), letter.model)
            publisher.publish(dead_letter_topic(letter.record.topic), b"somebody else's")


def letter(topic: str, offset: int, model: str = "m", **fields: Any) -> DeadLetter:
    values = {"key": None, "value": b"bytes \xff", "headers": (("label", b"7"),), **fields}
    return DeadLetter(Record(topic, 0, offset, 1_700_000_000_000, **values), model, "empty", "why")


def plain(letters: list[DeadLetter]) -> list[DeadLetter]:
    """As they were sent, but for the values, which reading leaves out."""
    return [replace(e, place=None, sent_ms=None, value_bytes=None) for e in letters]


def listed(config: KafkaConfig, topic: str, **filters: Any) -> list[tuple[int, str, str | None]]:
    """Offset, model and resolution."""
    return [(e.record.offset, e.model, e.resolution) for e in read_dead_letters(config, topic, **filters)]


def published(config: KafkaConfig, topic: str) -> list[Record]:
    """All that is in a topic of one partition that can be read."""
    return list(dead_letters.committed(config, topic))


def test_reading_gives_what_was_sent_and_its_values_only_when_asked(kafka_config: KafkaConfig, topic: str) -> None:
    sent = [letter(topic, 3), letter(topic, 4, key=b"k", value=b""), letter(topic, 8, key=b"")]
    send(kafka_config, *sent)
    letters = read_dead_letters(kafka_config, topic)
    assert plain(letters) == [replace(e, record=replace(e.record, value=None)) for e in sent]
    assert [e.value_bytes for e in letters] == [7, 0, 7]
    for order in (letters, letters[::-1], letters[:1] + letters[2:]):
        values = {e.origin: e.record.value for e in with_values(kafka_config, order)}
        assert values == {e.origin: e.record.value for e in sent if e.origin in values}
        assert len(values) == len(order)
    shown = json.loads(json.dumps(letters[0].json()))
    assert (shown["offset"], shown["reason"], shown["headers"], shown["bytes"]) == (3, "empty", {"label": "7"}, 7)


def test_only_the_newest_are_read_where_that_is_asked(kafka_config: KafkaConfig, topic: str) -> None:
    send(kafka_config, *(letter(topic, offset) for offset in range(3)))
    found = read_dead_letters(kafka_config, topic, last=4, keep_bytes=1000)
    assert [(one.record.offset, one.record.value) for one in found] == [
        (offset, letter(topic, offset).record.value) for offset in (1, 2)
    ]
    assert [one.record.value for one in read_dead_letters(kafka_config, topic, last=2, keep_bytes=1)] == [None]


def test_filters(kafka_config: KafkaConfig, topic: str) -> None:
    send(kafka_config, letter(topic, 0), letter(topic, 0, "other"), replace(letter(topic, 1), reason="label"))
    assert listed(kafka_config, topic, model="m") == [(0, "m", None), (1, "m", None)]
    assert listed(kafka_config, topic, reason="label") == [(1, "m", None)]
    assert listed(kafka_config, topic, model="other", reason="label") == []
    last = read_dead_letters(kafka_config, topic)[-1].sent_ms
    assert last is not None
    assert (1, "m", None) in listed(kafka_config, topic, since_ms=last)
    assert listed(kafka_config, topic, since_ms=last + 1) == []


def test_what_is_too_large_to_be_sent_again_is_read_at_its_origin(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(settings={"max.message.bytes": "9000"})
    small = kafka_config.model_copy(update={"max_bytes": 2000, "client": {"compression_type": None}})
    with Publisher(kafka_config) as publisher:
        publisher.publish(topic, bytes(3000), key=b"k", timestamp_ms=1_700_000_000_000)
    send(small, letter(topic, 0, key=b"k", value=bytes(3000), headers=()))
    [found] = read_dead_letters(small, topic)
    assert (found.origin, found.value_bytes) == (f"{topic}:0:0", None)
    assert [e.record.value for e in with_values(small, [found])] == [bytes(3000)]
    with pytest.raises(LogError, match=rf"{topic}:0:0 cannot be requeued: .* exceeds kafka.max_bytes = 2000"):
        resolve(small, topic, [found], "requeued")
    assert len(resolve(kafka_config, topic, [found], "requeued")) == 1  # with a higher limit
    assert [record.value for record in published(kafka_config, topic)] == [bytes(3000)] * 2


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"k", random.Random(0).randbytes(4500), (("label", b"7"),)),
        (b"k", b"small", (("odd", random.Random(1).randbytes(4500)), ("label", b"7"))),
        (random.Random(2).randbytes(4500), b"small", ()),
    ],
)
def test_a_letter_is_as_large_as_its_topic_takes(
    kafka_config: KafkaConfig, topics: Topics, key: bytes, value: bytes, headers: tuple[tuple[str, bytes], ...]
) -> None:
    topic = topics(settings={"max.message.bytes": "5000"})
    limit = {"max.message.bytes": "2000"}
    topics.admin.create_topics(
        {dead_letter_topic(topic): {"num_partitions": 1, "replication_factor": 1, "configs": limit}},
        wait_for_metadata=True,
    )
    with Publisher(kafka_config) as publisher:
        publisher.publish(topic, value, key=key, headers=headers, timestamp_ms=1_700_000_000_000)
    original = letter(topic, 0, key=key, value=value, headers=headers)
    with Publisher(kafka_config, idempotent=False) as publisher:
        for sent in (letter(topic, 5), original, letter(topic, 6)):  # in one batch, which goes in parts
            publish_dead_letter(publisher, sent.record, RecordError("empty", "why" * 300), "m")
    found = read_dead_letters(kafka_config, topic)
    assert sorted((e.record.offset, e.value_bytes) for e in found) == [(0, None), (5, 7), (6, 7)]
    [cut] = [e for e in found if e.record.offset == 0]
    [whole] = with_values(kafka_config, [cut])
    assert whole.record == original.record
    assert resolve(kafka_config, topic, [cut], "requeued") == [replace(cut, resolution="requeued")]
    first, again = published(kafka_config, topic)
    assert (again.key, again.value, again.headers[2:]) == (first.key, first.value, first.headers)
    assert listed(kafka_config, topic, resolved=True)[-1] == (0, "m", "requeued")


def test_what_a_joined_label_added_is_kept_where_the_value_is_not(kafka_config: KafkaConfig, topic: str) -> None:
    with Publisher(kafka_config) as publisher:
        publisher.publish(topic, bytes(3000), headers=[("id", b"1")], timestamp_ms=1_700_000_000_000)
    headers = (("id", b"1"), ("label", b"7"))
    send(kafka_config.model_copy(update={"max_bytes": 2000}), letter(topic, 0, value=bytes(3000), headers=headers))
    [found] = with_values(kafka_config, read_dead_letters(kafka_config, topic))
    assert (found.record.value, found.record.headers) == (bytes(3000), headers)


def test_what_could_not_be_read_is_not_requeued(kafka_config: KafkaConfig, topic: str, kafka: str) -> None:
    with raw.sending(kafka) as publish:
        many = [(b"", None)] * (MAX_HEADERS + 1)
        assert publish(topic, raw.batch([raw.record(0, b"x", headers=many)], timestamp_ms=1_700_000_000_000))[0] == 0
    send(kafka_config, letter(topic, 0, value=None, headers=()))
    letters = read_dead_letters(kafka_config, topic)
    assert [e.record.value for e in with_values(kafka_config, letters)] == [None]
    with pytest.raises(LogError, match=f"{topic}:0:0 cannot be requeued: {len(many)} headers"):
        resolve(kafka_config, topic, letters, "requeued")
    assert resolve(kafka_config, topic, letters, "dropped")


def test_a_topic_without_dead_letters(kafka_config: KafkaConfig, topic: str) -> None:
    assert read_dead_letters(kafka_config, topic) == []
    ensure_topics(kafka_config, [dead_letter_topic(topic)])
    assert read_dead_letters(kafka_config, topic) == []


def test_reading_ends_behind_markers_and_before_an_open_transaction(kafka_config: KafkaConfig, topic: str) -> None:
    ensure_topics(kafka_config, [dead_letter_topic(topic)])

    def in_a_transaction(publisher: Publisher, offset: int, found_meanwhile: int, *, fails: bool = False) -> None:
        with publisher.transaction():
            publish_dead_letter(publisher, letter(topic, offset).record, RecordError("empty", "why"), "m")
            publisher.flush(PATIENCE_S)
            assert len(listed(kafka_config, topic)) == found_meanwhile
            if fails:
                raise KeyError(offset)

    with Publisher(kafka_config, transactional_id=unique("transaction")) as publisher:
        in_a_transaction(publisher, 0, 0)
        in_a_transaction(publisher, 1, 1)
        with pytest.raises(KeyError):
            in_a_transaction(publisher, 2, 2, fails=True)
    assert listed(kafka_config, topic) == [(0, "m", None), (1, "m", None)]


def test_a_letter_that_a_killed_worker_sent_twice_is_one(kafka_config: KafkaConfig, topic: str) -> None:
    send(kafka_config, letter(topic, 0), letter(topic, 1), letter(topic, 0), letter(topic, 0, "other"))
    found = [(0, "m", None), (0, "other", None), (1, "m", None)]
    assert sorted(listed(kafka_config, topic)) == found


def test_requeue_publishes_the_original_for_its_model_alone(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics(partitions=3)
    original = replace(letter(topic, 5), record=Record(topic, 2, 5, 77, b"key", b"text", (("label", b"7"),)))
    send(kafka_config, original, letter(topic, 6))
    done = resolve(kafka_config, topic, read_dead_letters(kafka_config, topic)[:1], "requeued")
    assert [(e.origin, e.resolution) for e in done] == [(f"{topic}:2:5", "requeued")]
    [again] = published(kafka_config, topic)
    assert (again.partition, again.offset, again.key, again.value) == (2, 0, b"key", b"text")
    assert again.headers == (("headrace-origin", f"{topic}:2:5".encode()), ("headrace-for", b"m"), ("label", b"7"))
    assert again.timestamp_ms > 77
    for model, kind in (("m", Example), ("other", Skipped)):
        decoded = RecordDecoder(TextInput(), needs_label=True, model=model)(again)
        assert isinstance(decoded, kind)
    assert listed(kafka_config, topic) == [(6, "m", None)]
    assert listed(kafka_config, topic, resolved=True) == [(5, "m", "requeued"), (6, "m", None)]
    # It fails once more, at its new place: the headers of the first time do not pile up.
    send(kafka_config, dead_letter(again, RecordError("label", "still"), "m"))
    [twice] = read_dead_letters(kafka_config, topic, reason="label")
    resolve(kafka_config, topic, [twice], "requeued")
    assert published(kafka_config, topic)[-1].headers == (
        ("headrace-origin", f"{topic}:2:0".encode()),
        *again.headers[1:],
    )


def test_drop_publishes_nothing_and_resolved_letters_can_be_sent_again(kafka_config: KafkaConfig, topic: str) -> None:
    send(kafka_config, letter(topic, 0), letter(topic, 0, "other"))
    found = read_dead_letters(kafka_config, topic, model="m")
    assert len(resolve(kafka_config, topic, found, "dropped")) == 1
    assert published(kafka_config, topic) == []
    assert listed(kafka_config, topic) == [(0, "other", None)]
    assert resolve(kafka_config, topic, found, "requeued") == []  # it is not open
    send(kafka_config, letter(topic, 0))
    assert sorted(listed(kafka_config, topic, resolved=True)) == [(0, "m", None), (0, "other", None)]
    assert len(resolve(kafka_config, topic, found, "requeued")) == 1
    assert len(published(kafka_config, topic)) == 1


def test_many_at_once(kafka_config: KafkaConfig, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "TRANSACTION_LETTERS", 40)
    monkeypatch.setattr(dead_letters, "TRANSACTION_BYTES", 9000)
    ensure_topics(kafka_config.model_copy(update={"partitions": 3}), [dead_letter_topic(topic)])
    send(kafka_config, *(letter(topic, offset, value=b"%d" % offset * 100) for offset in range(100)))
    letters = read_dead_letters(kafka_config, topic)
    assert [len(resolve(kafka_config, topic, letters, "requeued")) for _ in range(2)] == [100, 0]
    values = [record.value for record in published(kafka_config, topic)]
    assert len(values) == 100
    assert set(values) == {b"%d" % offset * 100 for offset in range(100)}
    kept = [record for record in published(kafka_config, dead_letter_topic(topic)) if record.key]
    assert len(kept) == 200
    assert len({record.partition for record in kept}) == 3
    assert len({(record.key, record.partition) for record in kept}) == 100  # read after its letter, each
    assert read_dead_letters(kafka_config, topic) == []


def test_an_error_on_the_way_publishes_neither(kafka_config: KafkaConfig, topics: Topics) -> None:
    topic = topics()
    send(kafka_config, letter(topic, 0), letter(topic, 1))
    letters = read_dead_letters(kafka_config, topic)
    topics.admin.delete_records({TopicPartition(dead_letter_topic(topic), 0): 1})  # the first one's value is gone
    send(kafka_config, letter(topic, 2, value=None))  # at its origin alone, and the topic is shorter
    found = read_dead_letters(kafka_config, topic)
    assert [e.record.offset for e in found] == [1, 2]
    with pytest.raises(OffsetsGone, match=f"letter {topic}:0:2 is not in the log .* removed {topic}:0:2,"):
        resolve(kafka_config, topic, found, "requeued")
    with pytest.raises(OffsetsGone, match=f"letter {topic}:0:0 is .* removed {topic}.dead-letters:0:0,"):
        list(with_values(kafka_config, letters))
    assert published(kafka_config, topic) == []
    assert listed(kafka_config, topic) == [(1, "m", None), (2, "m", None)]
    with Publisher(kafka_config) as publisher:  # and now another record is there
        for _ in range(3):
            publisher.publish(topic, b"else")
    with pytest.raises(LogError, match=f"{topic}:0:2 does not hold the value"):
        resolve(kafka_config, topic, found, "requeued")
    gone = replace(letter(topic, 9), record=Record(topic, 4, 9, 0, None, b"x"))
    send(kafka_config, gone)
    with pytest.raises(LogError, match=f"{topic}:4:9 cannot be requeued .*partition 4"):
        resolve(kafka_config, topic, [gone], "requeued")
    assert len(published(kafka_config, topic)) == 3


def test_a_crash_on_the_way_publishes_neither(kafka_config: KafkaConfig, topic: str) -> None:
    send(kafka_config, letter(topic, 0))
    letters = read_dead_letters(kafka_config, topic)
    crashed = Publisher(kafka_config, transactional_id=f"headrace-requeue-{topic}")
    transaction = crashed.transaction()
    transaction.__enter__()
    crashed.publish(topic, b"half")
    crashed.publish(dead_letter_topic(topic), None, key=b"half")
    crashed.flush(PATIENCE_S)
    assert len(resolve(kafka_config, topic, letters, "requeued")) == 1  # the next one does not wait for its end
    assert [record.value for record in published(kafka_config, topic)] == [b"bytes \xff"]
    with pytest.raises(LogError, match="took over"):  # not even if it only was asleep
        transaction.__exit__(None, None, None)
    crashed.close()


def test_a_requeue_that_another_one_overtakes_publishes_nothing(
    kafka_config: KafkaConfig, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(kafka_config, letter(topic, 0))
    letters = read_dead_letters(kafka_config, topic)

    def overtaken(*args: Any, **filters: Any) -> list[DeadLetter]:
        monkeypatch.undo()
        open_letters = read_dead_letters(*args, **filters)
        assert len(resolve(kafka_config, topic, letters, "requeued")) == 1
        return open_letters

    monkeypatch.setattr(dead_letters, "read_dead_letters", overtaken)
    with pytest.raises(LogError, match="Another process took over"):
        resolve(kafka_config, topic, letters, "requeued")
    assert len(published(kafka_config, topic)) == 1
    assert listed(kafka_config, topic, resolved=True) == [(0, "m", "requeued")]


def test_requeues_at_the_same_time_publish_once(kafka_config: KafkaConfig, topic: str) -> None:
    send(kafka_config, *(letter(topic, offset) for offset in range(5)))
    letters = read_dead_letters(kafka_config, topic)
    together = Barrier(3)

    def attempt(_: int) -> int:
        together.wait(PATIENCE_S)
        try:
            return len(resolve(kafka_config, topic, letters, "requeued"))
        except LogError as error:
            assert "took over" in str(error)  # noqa: PT017 - or there is none
            return 0

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(attempt, range(3))) == 5
    assert len(published(kafka_config, topic)) == 5
    assert read_dead_letters(kafka_config, topic) == []


@pytest.fixture
def client(kafka_config: KafkaConfig, redis_url: str) -> Iterator[Client]:
    with Client(Config(kafka=kafka_config, redis=RedisConfig(url=redis_url))) as client:
        yield client


def test_the_client_requeues_only_what_the_model_will_not_read_again(
    client: Client, kafka_config: KafkaConfig, topic: str, redis: Redis
) -> None:
    model = unique("model")
    send(kafka_config, *(letter(topic, offset, model) for offset in (0, 1, 2)))
    letters = client.dead_letters(topic, model, "empty")
    assert client.fetch(letters[2]).record.value == b"bytes \xff"
    with pytest.raises(StoreError, match=f"The newest version of {model} does not account for {topic}:0:0 yet"):
        client.requeue(*letters)
    store = Store(redis, model, model)
    partition = Partition(topic, 0)
    store.writer(taken(store)).commit(
        draft(0, {"w": weights(0)}, positions={partition: 2}, pending=Runs.of([Place(partition, 1)]))
    )
    for waiting in letters[1:]:
        with pytest.raises(StoreError, match=f"does not account for {waiting.origin} yet"):
            client.requeue(letters[0], waiting)
    assert client.requeue(letters[0], letters[0]) == [replace(letters[0], resolution="requeued")]
    assert client.requeue(letters[0]) == []
    assert [e.record.offset for e in client.drop(*letters)] == [1, 2]
    assert len(published(kafka_config, topic)) == 1
    assert client.requeue() == client.drop() == client.dead_letters(topic) == []
