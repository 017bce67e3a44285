from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dead_letters import (
    NAMES,
    DeadLetter,
    dead_letter,
    dead_letter_topic,
    parse,
    publish_dead_letter,
    read_dead_letters,
)
from pipeline.errors import RecordError
from pipeline.log import Publisher, ensure_topics
from pipeline.records import Record

if TYPE_CHECKING:
    from pipeline.config import KafkaConfig

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(0, 2**62)
HEADERS = st.lists(st.tuples(st.sampled_from(["label", "headrace-key", *NAMES]) | TEXTS, st.binary())).map(tuple)
RECORDS = st.builds(Record, TEXTS, NUMBERS, NUMBERS, NUMBERS, st.none() | st.binary(), st.none() | st.binary(), HEADERS)


def sent(letter: DeadLetter) -> Record:
    """What a reader of the dead-letter topic gets."""
    return Record("t.dead-letters", 0, 9, 99, letter.origin.encode(), letter.record.value, letter.headers)


@given(st.builds(DeadLetter, RECORDS, TEXTS, TEXTS, TEXTS))
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
        (("label", b"a"), *((name, b"0") for name in NAMES)),
        tuple((name, b"no number") for name in NAMES),
        tuple((name, b"\xff") for name in NAMES),
    ],
)
def test_what_somebody_else_wrote_is_no_dead_letter(headers: tuple[tuple[str, bytes], ...]) -> None:
    with pytest.raises(RecordError, match="t:0:5 is not a dead letter"):
        parse(Record("t", 0, 5, 0, None, b"", headers))


def test_through_kafka(kafka_config: KafkaConfig, topic: str) -> None:
    records = [
        Record(topic, 0, offset, 1_700_000_000_000, key, b"bytes \xff", (("label", b"7"),))
        for offset, key in ((3, None), (4, b"k"), (8, b""))
    ]
    ensure_topics(kafka_config, [dead_letter_topic(topic)])
    with Publisher(kafka_config) as publisher:
        for record in records:
            publish_dead_letter(publisher, record, RecordError("empty", "why"), "m")
            publisher.publish(dead_letter_topic(topic), b"somebody else's")
    letters = list(read_dead_letters(kafka_config, topic, 100))
    assert letters == [DeadLetter(record, "m", "empty", "why") for record in records]
    assert list(read_dead_letters(kafka_config, topic, 2)) == letters[:2]
    shown = json.loads(json.dumps(letters[0].json()))
    assert (shown["offset"], shown["reason"], shown["headers"]) == (3, "empty", {"label": "7"})


def test_what_is_too_large_to_be_sent_again_stays_at_its_origin(kafka_config: KafkaConfig, topic: str) -> None:
    large = Record(topic, 0, 3, 0, None, bytes(kafka_config.max_bytes + 1))
    ensure_topics(kafka_config, [dead_letter_topic(topic)])
    with Publisher(kafka_config) as publisher:
        publish_dead_letter(publisher, large, RecordError("too-large", "why"), "m")
    (letter,) = read_dead_letters(kafka_config, topic, 100)
    assert (letter.origin, letter.record.value) == (f"{topic}:0:3", None)


def test_a_topic_without_dead_letters(kafka_config: KafkaConfig, topic: str) -> None:
    assert list(read_dead_letters(kafka_config, topic, 100)) == []
