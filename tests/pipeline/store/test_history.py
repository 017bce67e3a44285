"""Reading the history: what each version learned, and what became of a record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from redis import Redis

from pipeline.config import KafkaConfig
from pipeline.errors import Corrupt
from pipeline.log.publisher import Publisher
from pipeline.records import Partition, Place, content_id
from pipeline.store.history import Blame, blame, commits, places_of
from pipeline.store.lineage import Lineage, LineageBuilder, Runs
from pipeline.store.store import Store
from pipeline.store.writer import Writer
from tests.pipeline.drafts import draft, taken, weights

DIGITS, LETTERS = Partition("digits", 0), Partition("letters", 3)


def lineage(*updates: Iterable[tuple[Partition, int]], changes: Iterable[Any] = (), **outcomes: int) -> Lineage:
    """`outcomes`: offsets of `DIGITS` by the name of their outcome, with a "__" for the "/"."""
    builder = LineageBuilder()
    for change in changes:
        builder.change(change)
    for update in updates:
        builder.learned(Place(*at) for at in update)
    for name, offset in outcomes.items():
        builder.outcome(name.replace("__", "/"), Place(DIGITS, offset))
    return builder.build()


@pytest.fixture
def told(store: Store, writer: Writer) -> Store:
    """Four versions, of which the first is not kept any more."""
    first = lineage([(DIGITS, 4), (DIGITS, 5)], [(LETTERS, 0), (DIGITS, 6)], dead__lettered=7)
    second = lineage([(DIGITS, 9)], skipped__tombstone=8, changes=[{"drift": {"update": 3}}])
    states: list[dict[str, Any]] = [
        {"lineage": first, "updates": 2, "counts": {"learned": 4, "dead/lettered": 1}},
        {"lineage": second, "updates": 3, "counts": {"learned": 5, "dead/lettered": 1, "skipped/tombstone": 1}},
        {"lineage": lineage(), "updates": 3, "counts": {"learned": 5, "dead/lettered": 1, "skipped/tombstone": 1}},
    ]
    pending = Runs.of([Place(DIGITS, 10), Place(DIGITS, 11)])
    progress: dict[str, Any] = {"positions": {DIGITS: 13, LETTERS: 1}, "pending": pending}
    for n, state in enumerate(states):
        writer.commit(draft(n, {"w": weights(n)}, **progress, **state))
    fence = writer.fence
    store.set_alias("stable", 2)
    assert store.retire(fence, keep_last=1) == [1]
    return store


def test_the_history_costs_what_it_shows(store: Store, writer: Writer, redis: Redis, family: str) -> None:
    for n in range(8):
        writer.commit(
            draft(
                n,
                {"w": weights(n)},
                lineage=lineage([(DIGITS, n)]),
                counts={"learned": n + 1},
                positions={DIGITS: n + 1},
            )
        )
    for n in (1, 2, 3, 4):  # whatever reads these fails
        redis.hset(f"headrace:{{{family}}}:model:{store.model}:lineage", str(n), b"?")
    assert [(c.version, dict(c.since_parent)) for c in commits(store, limit=3)] == [
        (n, {"learned": 1}) for n in (8, 7, 6)
    ]
    assert [c.version for c in commits(store, 1, version=6)] == [6]
    assert (blame(store, DIGITS, 7).version, blame(store, DIGITS, 6).version) == (8, 7)
    assert blame(store, DIGITS, 8).outcome == "not yet"
    with pytest.raises(Corrupt):
        commits(store)


def test_a_history_in_a_ring_is_reported(told: Store, redis: Redis, family: str) -> None:
    entry = told.history(1).model_copy(update={"parent": told.head()})  # of a version that is not kept any more
    redis.hset(f"headrace:{{{family}}}:model:{told.model}:lineage", "1", entry.model_dump_json())
    with pytest.raises(Corrupt, match="goes from 1 back to 3"):
        commits(told)


def test_the_history_has_the_newest_first(told: Store) -> None:
    found = commits(told)
    assert [(c.version, c.parent, c.digest is None, c.aliases) for c in found] == [
        (3, 2, False, ()),
        (2, 1, False, ("stable",)),
        (1, None, True, ()),
    ]
    assert found[2].ranges == {"digits:0": (4, 7, 3), "letters:3": (0, 1, 1)}
    assert [c.since_parent for c in found] == [
        {},
        {"learned": 1, "skipped/tombstone": 1},
        {"learned": 4, "dead/lettered": 1},
    ]
    assert found[1].changes == ({"drift": {"update": 3}},)
    assert [c.version for c in commits(told, limit=2)] == [3, 2]


@pytest.mark.parametrize(
    ("place", "outcome", "version", "update"),
    [
        ((DIGITS, 4), "learned", 1, 0),
        ((DIGITS, 6), "learned", 1, 1),
        ((LETTERS, 0), "learned", 1, 1),
        ((DIGITS, 9), "learned", 2, 2),
        ((DIGITS, 7), "dead/lettered", 1, None),
        ((DIGITS, 8), "skipped/tombstone", 2, None),
        ((DIGITS, 11), "pending", 3, None),
        ((DIGITS, 12), "nothing there", None, None),
        ((DIGITS, 3), "nothing there", None, None),
        ((DIGITS, 13), "not yet", None, None),
        ((Partition("digits", 1), 0), "not yet", None, None),
    ],
)
def test_every_record_is_accounted_for(
    told: Store, place: tuple[Partition, int], outcome: str, version: int | None, update: int | None
) -> None:
    (topic, number), offset = place
    assert blame(told, *place) == Blame(told.model, topic, number, offset, outcome, version, update)


def test_it_reads_no_more_versions_than_it_may(told: Store) -> None:
    newest, older = (DIGITS, 9), (DIGITS, 6)
    assert blame(told, *newest, most=2).outcome == "learned"
    assert blame(told, *older, most=2).outcome == "earlier"


def test_of_a_topic_that_was_made_again_the_newest_records_count(store: Store) -> None:
    writer = store.writer(taken(store))
    jump = {"jump": {"topic": "digits", "partition": 0, "from": 5, "to": 0, "ids": ["old", "new"]}}
    elsewhere = {"jump": {"topic": "letters", "partition": 3, "from": 5, "to": 0, "ids": ["old", "new"]}}
    entries = [
        lineage([(DIGITS, 0), (DIGITS, 1)]),
        lineage(changes=[elsewhere]),
        lineage([(DIGITS, 0)], changes=[jump]),
    ]
    for n, entry in enumerate(entries):
        writer.commit(draft(n, {"w": weights(n)}, lineage=entry, positions={DIGITS: 1 if n == 2 else 2}))
    assert blame(store, DIGITS, 0).version == 3
    assert blame(store, DIGITS, 1).outcome == "not yet"


def test_a_model_without_a_version_has_no_history(store: Store) -> None:
    assert commits(store) == []
    assert blame(store, DIGITS, 0).outcome == "not yet"


def test_records_are_found_by_their_id(kafka_config: KafkaConfig, topic: str) -> None:
    assert list(places_of(kafka_config, topic, "seven")) == []
    with Publisher(kafka_config) as publisher:
        for id_ in ("six", "seven", None, "seven"):
            publisher.publish(topic, b"x", headers=[("id", id_.encode())] if id_ else [])
    at = Partition(topic, 0)
    assert list(places_of(kafka_config, topic, "seven")) == [(at, 1), (at, 3)]
    assert list(places_of(kafka_config, topic, "eight")) == []
    assert list(places_of(kafka_config, topic, content_id(b"x"))) == [(at, offset) for offset in range(4)]
    assert list(places_of(kafka_config, topic, content_id(b"x"), last=2)) == [(at, 2), (at, 3)]
    assert list(places_of(kafka_config, f"{topic}-missing", "seven")) == []
