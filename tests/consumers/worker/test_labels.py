"""Labels in a topic of their own, on a real Kafka and Redis: each record and each label has one outcome, for good."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from redis import Redis

from benchmarks.soak.checker import read_log, recount
from models.evaluation.held_out import is_held_out
from models.learner import id_digest
from pipeline.config import Config
from pipeline.errors import ConfigError, StateMismatch
from pipeline.log.dead_letters import dead_letter_topic, read_dead_letters
from pipeline.log.publisher import Publisher
from pipeline.records import Partition
from pipeline.store.history import blame
from tests.consumers.working import Working, configuration, verified, working
from tests.services import Topics

WINDOW_S = 60
BEGAN_S = 1_700_000_000
CLASSIFIER: dict[str, Any] = {"learner": "text-classifier", "options": {"buckets": 64, "dim": 8, "replay_slots": 64}}
TEXT = {"kind": "text", "max_chars": 32}
WORDS = ("good", "day", "über", "早上")


class Topic:
    """A topic of records, or of labels, and the outcomes that those which are published must have."""

    def __init__(self, config: Config, name: str, wanted: dict[tuple[str, int, int], str]) -> None:
        self._config, self.name, self._wanted = config, name, wanted

    def publish(self, *records: tuple[str | None, float, bytes | None, str], **headers: str) -> None:
        """Each with its id, timestamp, value and outcome."""
        with Publisher(self._config.kafka) as publisher:
            sent = []
            for id_, at_s, value, outcome in records:
                key = None if id_ is None else id_.encode()
                named = {"id": id_, **headers} if self.name in self._config.models else {}
                headers_ = [(name, text.encode()) for name, text in named.items() if text is not None]
                at_ms = round(1000 * (BEGAN_S + at_s))
                receipt = publisher.publish(self.name, value, key=key, headers=headers_, timestamp_ms=at_ms)
                sent.append((receipt, outcome))
            self._wanted |= {receipt.result(10): outcome for receipt, outcome in sent}


def text(number: int) -> bytes:
    return " ".join(random.Random(number).choices(WORDS, k=4)).encode()


def remembered(run: Working) -> dict[bytes, str]:
    """Id → class of what the replay memory of the head holds."""
    manifest = run.store.manifest()
    training, size = run.store.arrays(manifest, "training"), manifest.meta["memory"]["size"]
    ids, y = training["memory/ids"].numpy()[:size], training["memory/y"].numpy()[:size]
    return {bytes(id_.tolist()): manifest.classes[number] for id_, number in zip(ids, y, strict=True)}


def labelled_by(
    topics: Topics, kafka: str, redis_url: str, **model: Any
) -> tuple[Config, Topic, Topic, dict[Any, str]]:
    """A model that waits for labels, its two topics, and what they must lead to."""
    records, labels = topics(), topics()
    table = {"window_s": WINDOW_S, "topic": labels}
    settings = {"batch_size": 4, "keep_last": 1000, "input": TEXT, **CLASSIFIER, **model}
    config = configuration(kafka, redis_url, records, labels=table, **settings)
    wanted: dict[tuple[str, int, int], str] = {}
    return config, Topic(config, records, wanted), Topic(config, labels, wanted), wanted


def checked(run: Working, redis: Redis, config: Config, labels: Topic, wanted: dict[Any, str]) -> None:
    """By code that shares none of ours: every record and label has the one outcome that it must have."""
    topics = config.model(run.name).read_topics
    letters = read_log(config.kafka.bootstrap_servers, map(dead_letter_topic, topics))
    found = recount(redis, run.name, run.name, wanted, letters, labels.name)
    assert (found.problems, found.pending) == ([], 0)
    assert found.outcomes == Counter(wanted.values())
    again = verified(run, config)
    assert (again.differs, again.records) == ({}, Counter(wanted.values())["learned"])


@pytest.mark.parametrize("keyframe_every", [1, 1000])
def test_labels_that_come_later_in_any_order(
    kafka: str, redis_url: str, redis: Redis, topics: Topics, keyframe_every: int
) -> None:
    config, records, labels, wanted = labelled_by(topics, kafka, redis_url, keyframe_every=keyframe_every)
    rng = random.Random(5)
    records.publish(*[(f"r{n}", n, text(n), "learned") for n in range(16)], ("late", 16, b"x", "skipped/unlabelled"))
    answers = [(f"r{n}", n + rng.uniform(0, 50), f"class {n % 3}".encode(), "joined") for n in range(16)]
    rng.shuffle(answers)
    with working(config) as run:
        run.waits(lambda: run.metric("headrace_pending_records") == 17)  # no label yet
        labels.publish(*sorted(answers[:8], key=lambda answer: answer[1]))
        head = run.read(16)
        run.crash()
    waiting = [offset for at, offset in head.pending if at == Partition(records.name, 0)]
    assert waiting == sorted([int(id_[1:]) for id_, *_ in answers[8:]] + [16])
    first, second = (next(id_ for id_, *_ in some if id_) for some in (answers[:8], answers[8:]))
    with working(config) as run:
        labels.publish(
            (first, 51, b"another", "corrected"),  # of before the crash
            ("early", 52, b"class 1", "joined"),
            ("early, twice", 52, b"class 1", "skipped/label-replaced"),
            ("early, twice", 52, b"class 2", "joined"),
            ("nobody", 53, b"class 1", "skipped/label-orphaned"),
            *sorted(answers[8:], key=lambda answer: answer[1]),
            (None, 53, b"class 1", "dead-lettered/id"),
            ("r1", 54, b"\xff", "dead-lettered/label"),
            ("r1", 54, None, "skipped/tombstone"),
            ("late", 16 + WINDOW_S + 1, b"class 1", "skipped/label-late"),
        )
        run.read(16 + 7 + 16)  # the correction at once, too
        labels.publish((second, 80, b"class 0", "corrected"), (second, 81, b"another", "corrected"))
        records.publish(("early", 85, text(1), "learned"), ("early, twice", 85, text(2), "learned"))
        records.publish(("own", 86, text(3), "learned"), ("end", 1000, text(4), "learned"), label="class 2")
        run.read(len(wanted))
        run.finish()
        checked(run, redis, config, labels, wanted)
        held = remembered(run)
        named = {answer[0]: answer[2].decode() for answer in answers} | {first: "another", second: "another"}
        named |= {"early": "class 1", "early, twice": "class 2", "own": "class 2", "end": "class 2"}
        assert held == {id_digest(name): label for name, label in named.items()}
        assert run.metric("headrace_records_total", outcome="corrected", reason="") == 3
        place = next(place for place, outcome in wanted.items() if outcome == "corrected")
        assert blame(run.store, Partition(*place[:2]), place[2]).outcome == "learned"
    letters = read_dead_letters(config.kafka, labels.name)
    assert sorted(letter.reason for letter in letters) == ["id", "label"]


def test_a_worker_that_was_away_joins_what_a_live_one_would_have(
    kafka: str, redis_url: str, redis: Redis, topics: Topics
) -> None:
    """Labels are read far faster than pictures; no more wait than they would have, but for a chunk of each."""
    table: dict[str, Any] = {"learner": "tests.consumers.fragile:labelled", "options": {}, "batch_size": 64}
    config, records, labels, wanted = labelled_by(topics, kafka, redis_url, **table)
    limits = {"window_s": WINDOW_S, "topic": labels.name, "max_records": 1200}
    config = configuration(kafka, redis_url, records.name, input=TEXT, keep_last=1000, labels=limits, **table)
    numbers = range(6000)
    records.publish(*[(f"r{n}", n / 10, b"%d" % (n % 900), "learned") for n in numbers])
    labels.publish(*[(f"r{n}", n / 10 + 1, b"class", "joined") for n in numbers])
    with working(config) as run:
        run.read(len(wanted))
        run.finish()
        checked(run, redis, config, labels, wanted)


def test_records_that_are_held_out_or_refused_take_their_labels_along(
    kafka: str, redis_url: str, redis: Redis, topics: Topics
) -> None:
    options = {**CLASSIFIER["options"], "max_classes": 2}
    config, records, labels, wanted = labelled_by(
        topics, kafka, redis_url, options=options, hold_out={"slots": 8, "share": 0.3}, keyframe_every=1000
    )

    def outcome(id_: str, n: int) -> str:
        return "held-out" if is_held_out(id_, 0.3) else "dead-lettered/label" if n % 8 == 7 else "learned"

    both = [(f"r{n}", n, b"third" if n % 8 == 7 else b"class %d" % (n % 2)) for n in range(40)]
    records.publish(*[(id_, n, text(n), outcome(id_, n)) for id_, n, _ in both])
    labels.publish(*[(id_, n + 1, label, "joined") for id_, n, label in both])
    with working(config) as run:
        run.read(80)
        learned = next(id_ for id_, n, _ in both if outcome(id_, n) == "learned")
        labels.publish(("r1", 50, b"fourth", "dead-lettered/label"), (learned, 51, b"class 1", "corrected"))
        run.read(82)
        run.crash()
    aside, came_with = next((id_, label) for id_, n, label in both if outcome(id_, n) == "held-out" and n % 8 != 7)
    right = {b"class 0": "class 1", b"class 1": "class 0"}[came_with]
    with working(config) as run:  # learned again from the first keyframe
        run.waits(lambda: run.metric("headrace_log_up"))
        labels.publish((aside, 52, right.encode(), "corrected"))
        run.read(83)
        run.finish()
        checked(run, redis, config, labels, wanted)
        head = run.store.manifest()
        kept = run.store.arrays(head, "training")["held_out/ids"].numpy().tolist()
        numbers = run.store.arrays(head, "training")["held_out/y"].numpy().tolist()
        number = numbers[kept.index(list(id_digest(aside)))]
        assert head.worker["held_out"]["classes"][number] == right
    assert len(set(wanted.values())) == 5
    refused = [letter.record for letter in read_dead_letters(config.kafka, records.name)]
    assert {dict(record.headers)["label"] for record in refused} == {b"third"}  # so that it can be requeued


@pytest.mark.parametrize("many", [True, False], ids=["one version", "a version each update"])
def test_what_is_held_out_is_corrected_in_its_turn(
    kafka: str, redis_url: str, redis: Redis, topics: Topics, many: bool
) -> None:
    """Also within one version, whose lineage has what was held out beside its updates."""
    often = {"snapshot_every_s": None, "snapshot_every_updates": 10_000 if many else 1}
    config, records, labels, wanted = labelled_by(
        topics, kafka, redis_url, hold_out={"slots": 64, "share": 0.5, "every_s": 3600}, keyframe_every=1000, **often
    )
    aside = [n for n in range(60) if is_held_out(f"r{n}", 0.5)]
    with working(config) as run:
        for start in range(0, 60, 20):
            some = range(start, start + 20)
            records.publish(*[(f"r{n}", n, text(n), "held-out" if n in aside else "learned") for n in some])
            labels.publish(*[(f"r{n}", n + 0.5, b"class %d" % (n % 3), "joined") for n in some])
            run.waits(lambda: read(run) == len(wanted))
            wrong = [n for n in some if n in aside]
            labels.publish(*[(f"r{n}", start + 20.5, b"class %d" % ((n + 1) % 3), "corrected") for n in wrong])
            run.waits(lambda: read(run) == len(wanted))
        run.finish()
        checked(run, redis, config, labels, wanted)
        assert bool(run.changes("held_out")) == many


def read(run: Working) -> int:
    """Records and labels that have an outcome, in a version or not; what was joined has its record's."""
    family = next(each for each in run.registry.collect() if each.name == "headrace_records")
    return int(sum(sample.value for sample in family.samples if sample.name.endswith("_total")))


def test_the_guard_takes_a_record_and_its_label_out_together(
    kafka: str, redis_url: str, redis: Redis, topics: Topics
) -> None:
    config, records, labels, wanted = labelled_by(
        topics, kafka, redis_url, learner="tests.consumers.fragile:labelled", options={}, batch_size=8
    )
    numbers = [*range(20), 900, *range(20, 30), 901]
    records.publish(
        *[(str(n), n / 100, b"%d" % n, "dead-lettered/non-finite" if n >= 900 else "learned") for n in numbers]
    )
    labels.publish(*[(str(n), n / 100, b"label of %d" % n, "joined") for n in numbers])
    with working(config) as run:
        run.read(len(wanted))
        labels.publish(("3", 20, b"another", "skipped/label-late"))  # this learner remembers nothing
        run.read(len(wanted))
        run.finish()
        checked(run, redis, config, labels, wanted)
    letters = read_dead_letters(config.kafka, records.name)
    assert {dict(letter.record.headers)["label"] for letter in letters} == {b"label of 900", b"label of 901"}


def test_a_model_may_come_to_wait_for_labels_and_not_end_it(
    kafka: str, redis_url: str, redis: Redis, topics: Topics
) -> None:
    config, records, labels, wanted = labelled_by(topics, kafka, redis_url)
    without = configuration(kafka, redis_url, records.name, input=TEXT, keep_last=1000, **CLASSIFIER)
    records.publish(("a", 0, text(0), "learned"), label="class 0")
    records.publish(("b", 0, text(1), "skipped/unlabelled"))
    with working(without) as run:
        run.read(2)
        run.finish()
    records.publish(("c", 1, text(2), "learned"))
    labels.publish(("c", 2, b"class 1", "joined"), ("a", 3, b"class 1", "corrected"))
    with working(config) as run:
        run.read(5)
        run.finish()
        checked(run, redis, config, labels, wanted)
    with working(without) as run, pytest.raises(StateMismatch, match=r"labels\.topic changed"):
        run.join()


def test_a_learner_that_needs_no_labels_does_not_wait_for_them(kafka: str, redis_url: str, topics: Topics) -> None:
    _, records, labels, _ = labelled_by(topics, kafka, redis_url)
    counts = configuration(kafka, redis_url, records.name, name="counts", labels={"topic": labels.name})
    with working(counts) as run, pytest.raises(ConfigError, match="does not wait for labels"):
        run.join()
