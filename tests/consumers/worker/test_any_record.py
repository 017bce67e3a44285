"""Whatever a log holds, each record gets its outcome, once, and the model goes on."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, example, given, settings, strategies as st

from pipeline.log.dead_letters import dead_letter_topic, read_dead_letters, resolve, with_values
from pipeline.log.topics import ensure_topics
from pipeline.records import Partition
from tests.consumers import odd
from tests.consumers.working import configuration, publish, verified, working
from tests.pipeline import raw
from tests.pipeline.log.test_batches import NO_TEXT, batches, read
from tests.services import Topics

TEXTS: dict[str, Any] = {"learner": "text-classifier", "input": {"kind": "text", "max_chars": 16}}
PICTURES: dict[str, Any] = {
    "learner": "image-classifier",
    "input": {"kind": "image", "size": 8, "channels": 1},
    "decoder": "tests.consumers.odd:decode",
}
GOOD = raw.batch(raw.numbered([b"good"] * 4, headers=[(b"label", b"a")]))
ODD = raw.batch(raw.numbered([b"odd"], headers=[(b"label", b"b"), (NO_TEXT, b"5")]))
UNLABELLED = raw.batch(raw.numbered([b"none"], headers=[(b"label", b"b"), (b"label", None)]))
BOMB = raw.batch(raw.numbered([bytes(50 << 20), b"small"], headers=[(b"label", b"a")]), codec=1)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([ODD, UNLABELLED, BOMB])
@given(st.lists(batches(), min_size=1, max_size=8))
def test_whatever_a_broker_takes_has_its_outcome(kafka: str, redis_url: str, topics: Topics, made: list[bytes]) -> None:
    topic = topics()
    config = configuration(kafka, redis_url, topic, **TEXTS)
    with raw.sending(kafka) as send:
        taken = [one for one in [GOOD, *made, GOOD] if send(topic, one)[0] == 0]
    records = read(config.kafka, topic, sum(int.from_bytes(one[23:27]) + 1 for one in taken))
    with working(config) as run:
        run.read(len(records))
        head = run.finish()
    outcomes = run.outcomes()
    assert outcomes.keys() == {(topic, 0, record.offset) for record in records}
    assert all(len(names) == 1 for names in outcomes.values())
    assert Counter(name for [name] in outcomes.values()) == head.counts
    if made == [ODD, UNLABELLED, BOMB]:
        wanted = {"learned": 10, "skipped/unlabelled": 1, "dead-lettered/too-large": 1}
        assert head.counts == wanted
    letters = read_dead_letters(config.kafka, topic)
    dead = {place for place, [name] in outcomes.items() if name.startswith("dead-lettered/")}
    assert {(topic, 0, letter.record.offset) for letter in letters} == dead
    by_offset = {record.offset: record.value for record in records}
    for letter in with_values(config.kafka, letters):
        assert letter.record.value == by_offset[letter.record.offset]
    assert len(resolve(config.kafka, topic, letters, "dropped")) == len(dead)
    assert verified(run, config).same


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(batches(), min_size=1, max_size=8))
def test_whatever_stands_among_dead_letters_they_are_listed(
    kafka: str, redis_url: str, topics: Topics, made: list[bytes]
) -> None:
    topic = topics()
    config = configuration(kafka, redis_url, topic, **TEXTS)
    ensure_topics(config.kafka, [dead_letter_topic(topic)])
    with raw.sending(kafka) as send:
        for one in made:
            send(dead_letter_topic(topic), one)
    publish(config, topic, (b"\xff", "a"))
    with working(config) as run:
        run.read(1)
        run.finish()
    [letter] = read_dead_letters(config.kafka, topic)
    assert (letter.origin, letter.reason) == (f"{topic}:0:0", "undecodable")
    assert resolve(config.kafka, topic, [letter], "requeued")


def test_whatever_a_users_decoder_does_ends_its_record_alone(kafka: str, redis_url: str, topics: Topics) -> None:
    topic = topics()
    config = configuration(kafka, redis_url, topic, **PICTURES, decode_threads=2)
    kinds = [*odd.KINDS, b"good"] * 2
    publish(config, topic, *kinds)
    with working(config) as run:
        run.read(len(kinds))
        head = run.finish()
    good = kinds.count(b"good")
    dead = {"dead-lettered/undecodable": 2, "dead-lettered/decoder": len(kinds) - good - 2}
    assert head.counts == {"learned": good, **dead}
    details = {letter.detail for letter in read_dead_letters(config.kafka, topic, reason="decoder")}
    assert {"gave a picture of 0×17 pixels.", "gave a picture of 9×0 pixels."} <= details
    assert any(detail.startswith("box-") for detail in details)
    at = Partition(topic, 0)
    assert run.outcomes()[*at, 0] == ["dead-lettered/decoder"]
