"""What producers' clocks can do, and what a transaction that is left open does: it is bounded, counted and told."""

from __future__ import annotations

import time
from functools import partial

import pytest

from consumers.worker import worker as trainer
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Reader
from tests.consumers.worker.test_labels import labelled_by
from tests.consumers.working import Working, configuration, numbers, publish, working
from tests.services import Topics, unique

HOUR_MS = 3_600_000
ANY_TIME = {"message.timestamp.after.max.ms": str(2**63 - 1)}


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.mark.parametrize("ahead_ms", [HOUR_MS // 2, 10**15, 2**63 - 1 - 2 * 10**12])
def test_a_record_from_the_future_is_not_fresh_for_ever(
    kafka: str, redis_url: str, topics: Topics, ahead_ms: int
) -> None:
    topic = topics(settings=ANY_TIME)
    config = configuration(kafka, redis_url, topic)
    with Publisher(config.kafka) as publisher:
        publisher.publish(topic, b"0", timestamp_ms=now_ms() + ahead_ms)
        publisher.flush(10)  # one batch's timestamps are not that far apart
        publisher.publish(topic, b"1", timestamp_ms=-(2**62))
    with working(config) as run:
        head = run.read(2)
        assert head.newest_timestamp_ms is not None
        assert head.newest_timestamp_ms <= head.created_ms
        run.waits(lambda: run.metric("headrace_future_records_total") == 1)
        publish(config, topic, b"2")
        assert (run.read(3).newest_timestamp_ms or 0) >= head.newest_timestamp_ms
        run.finish()
        [line] = [line for line in run.said if "ahead of this machine's clock" in line]
        assert f"{topic} partition 0" in line


def joined(run: Working) -> float:
    return run.metric("headrace_records_total", outcome="joined", reason="") or 0


@pytest.mark.parametrize("odd_s", [1800.0, -7200.0], ids=["ahead", "kept offline"])
def test_labels_are_joined_beside_a_pair_of_another_time(
    kafka: str, redis_url: str, topics: Topics, odd_s: float
) -> None:
    """A pair of its own time is joined, and so is each live one, of which the label comes after."""
    config, records, labels, _ = labelled_by(topics, kafka, redis_url)
    with working(config) as run, Publisher(config.kafka) as publisher:

        def send(topic: str, value: bytes, id_: str, ago_s: float = 0.0) -> None:
            id_header = [("id", id_.encode())]
            at_ms = now_ms() - round(1000 * ago_s)
            publisher.publish(topic, value, key=id_.encode(), headers=id_header, timestamp_ms=at_ms)
            publisher.flush(10)

        for number in range(3):
            send(records.name, b"text", f"live {number}")
            send(labels.name, b"a", f"live {number}")
            run.waits(lambda n=number: joined(run) == n + 1)  # type: ignore[misc]
        send(records.name, b"text", "odd", -odd_s)
        send(records.name, b"text", "waits")
        run.waits(lambda: run.metric("headrace_pending_records") == 2)
        send(labels.name, b"a", "odd", 5 - odd_s)
        run.waits(lambda: joined(run) == 4)
        send(labels.name, b"a", "waits")
        run.waits(lambda: joined(run) == 5)
        send(records.name, b"text", "restarted", 7200)
        run.waits(lambda: run.metric("headrace_pending_records") == 1)
        send(records.name, b"text", "before")
        send(labels.name, b"a", "before")
        run.until(lambda manifest: manifest.counts.get("joined") == 6 and len(list(manifest.pending)) == 1)
        run.crash()
        with working(config) as again:
            again.waits(lambda: again.metric("headrace_pending_records") == 1)
            send(records.name, b"text", "next")
            send(labels.name, b"a", "next")
            again.waits(lambda: joined(again) == 1)
            send(labels.name, b"a", "restarted", 7195)
            again.waits(lambda: joined(again) == 2)
            assert again.finish().counts == {"learned": 8, "joined": 8}


@pytest.mark.parametrize(("at_once", "odd"), [(4, 1), (1, 1), (1, 4)])
def test_a_worker_that_catches_up_is_not_led_by_a_clock_that_was_ahead(
    kafka: str, redis_url: str, topics: Topics, monkeypatch: pytest.MonkeyPatch, at_once: int, odd: int
) -> None:
    """Two hours ago a few records of many were half an hour ahead of their day; now they are past, like all others,
    and may be the last of those that are read at once."""
    monkeypatch.setattr("pipeline.log.reader.CHUNK_RECORDS", at_once)
    config, records, labels, _ = labelled_by(topics, kafka, redis_url)
    begin_ms = now_ms() - 2 * HOUR_MS
    with Publisher(config.kafka) as publisher:
        for number in range(60):
            id_, at_ms = f"{number}".encode(), begin_ms + 30_000 * number
            headers = [("id", id_)]
            for again in range(odd if number == 10 else 0):
                odd_id = [("id", b"odd %d" % again)]
                publisher.publish(records.name, b"odd", headers=odd_id, timestamp_ms=at_ms + HOUR_MS // 2)
            publisher.publish(records.name, b"text", headers=headers, timestamp_ms=at_ms)
            publisher.publish(labels.name, b"a", headers=headers, timestamp_ms=at_ms + 3000)
            publisher.flush(10)
    with working(config) as run:
        run.until(lambda manifest: sum(manifest.counts.values()) >= 120)
        assert run.finish().counts["joined"] == 60


def test_records_behind_an_open_transaction_are_reported(
    kafka: str, redis_url: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "Reader", partial(Reader, refresh_s=0.2))
    monkeypatch.setattr("pipeline.log.publisher.TRANSACTION_MS", 600_000)
    topic = topics()
    config = configuration(kafka, redis_url, topic)
    where = {"topic": topic, "partition": "0"}
    with working(config) as run:
        publish(config, topic, b"0")
        run.read(1)
        id_ = unique("transaction")
        with Publisher(config.kafka, transactional_id=id_) as died:
            transaction = died.transaction()
            transaction.__enter__()
            died.publish(topic, b"1")
            died.flush(10)
            publish(config, topic, *numbers(range(2, 6)))
            run.waits(lambda: run.metric("headrace_withheld_records", **where) == 5)
            run.waits(lambda: run.metric("headrace_lag_records", **where) == 5)
            run.waits(lambda: any("behind a transaction" in line for line in run.said))
            Publisher(config.kafka, transactional_id=id_).close()  # it comes back: what was open is aborted
        run.read(5)
        run.waits(lambda: run.metric("headrace_withheld_records", **where) == 0)
        run.waits(lambda: run.metric("headrace_lag_records", **where) == 0)
        run.finish()
        assert run.counts() == [1, 0, 1, 1, 1, 1]
        assert sum("behind a transaction" in line for line in run.said) == 1
