"""The worker: what it learns, what it accounts for, when it commits, and how it goes on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.config import Config
from pipeline.errors import ConfigError, StateMismatch, StoreUnavailable
from pipeline.local.servers import EmbeddedRedis
from pipeline.log.dead_letters import read_dead_letters, with_values
from pipeline.records import Partition, Place
from tests.consumers.working import configuration, numbers, prepared, publish, working
from tests.services import Topics, unique

TEXTS: dict[str, Any] = {
    "learner": "text-classifier",
    "input": {"kind": "text", "max_chars": 16, "max_bytes": 64},
    "options": {"buckets": 64, "replay_slots": 32, "max_classes": 2},
}
PICTURES: dict[str, Any] = {
    "learner": "image-classifier",
    "input": {"kind": "image", "size": 8, "channels": 1},
    "options": {"width": 8, "hidden": 8, "replay_slots": 32},
}
AT_THE_END: dict[str, Any] = {
    "snapshot_every_s": 3600,
    "max_wait_ms": 60_000,
}  # batches by size alone, one version when it ends


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


def test_a_worker_goes_on_from_the_head(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic)
    publish(config, topic, *numbers(range(50)))
    with working(config) as first:
        assert first.read(50).watermark == {topic: {0: 50}}
        before = first.finish()
    with working(config) as second:
        second.waits(lambda: second.metric("headrace_log_up"))  # then it reads
        assert any(f"going on from version {before.version}" in line for line in second.said)
        publish(config, topic, b"50")
        after = second.read(51)
        second.finish()
        assert second.counts() == [1] * 51
    assert after.parent == before.ref  # what was there already is no reason for a version
    assert (after.counts, after.watermark) == ({"learned": 51}, {topic: {0: 51}})
    assert after.updates == before.updates + 1


def test_a_new_topic_of_a_model_starts_at_its_start(kafka: str, redis_url: str, topics: Topics) -> None:
    one, two = topics(), topics()
    config = configuration(kafka, redis_url, one)
    publish(config, one, *numbers(range(3)))
    publish(config, two, *numbers(range(3, 6)))
    with working(config) as run:
        run.read(3)
        run.finish()
    with working(configuration(kafka, redis_url, two, one, name=one)) as run:
        head = run.read(6)
        assert run.counts() == [1] * 6
    assert head.watermark == {one: {0: 3}, two: {0: 3}}
    assert head.worker["topics"] == {one: 0, two: 1}  # the numbers in the replay memory's origins stay


def test_a_change_of_the_configuration_is_in_the_lineage(kafka: str, redis_url: str, topic: str) -> None:
    publish(configuration(kafka, redis_url, topic), topic, b"0")
    with working(configuration(kafka, redis_url, topic, batch_size=8)) as run:
        run.read(1)
        before = run.finish()
    with working(configuration(kafka, redis_url, topic, batch_size=9)) as run:
        after = run.until(lambda manifest: manifest.version > before.version)
    assert run.store.history(after.version).lineage.changes == ({"config": {"batch_size": [8, 9]}},)
    assert after.config["batch_size"] == 9


@pytest.fixture(scope="module")
def learned(kafka: str, redis_url: str, topics: Topics) -> dict[str, Any]:
    """A picture model with a version of two classes: what its configuration was made of."""
    topic = topics()
    tables = {"name": unique("pictures"), **PICTURES}
    config = configuration(kafka, redis_url, topic, **tables)
    publish(config, topic, *[(picture(shade), f"{shade}") for shade in (0, 255)])
    with working(config) as run:
        assert run.read(2).classes == ["0", "255"]
        run.finish()
    return {"topic": topic, **tables}


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("options.width", {"options": {**PICTURES["options"], "width": 16}}),
        ("input.size", {"input": {**PICTURES["input"], "size": 12}}),
        ("learner", {"learner": "image-vae", "options": {}}),
        ("max_classes = 1", {"options": {**PICTURES["options"], "max_classes": 1}}),
    ],
)
def test_what_the_learned_state_cannot_follow_is_refused(
    kafka: str, redis_url: str, learned: dict[str, Any], key: str, change: dict[str, Any]
) -> None:
    topic, tables = learned["topic"], {**learned, **change}
    del tables["topic"]
    with working(configuration(kafka, redis_url, topic, **tables)) as run:
        with pytest.raises(StateMismatch, match=f"{key}.* `headrace reset {learned['name']}`"):
            run.join()
        assert run.store.holder() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"numbers": 0}}, r"models\.wrong\.options\.numbers = 0: "),
        ({"options": {"wide": 3}}, r"models\.wrong\.options\.wide = 3: "),
        (
            {"input": {"kind": "image"}},
            r'models\.wrong\.input\.kind = "image": .* learns from texts\. Set it to "text"',
        ),
        ({"device": "abacus"}, r'device = "abacus" cannot be used here: .* Use "auto" or "cpu"'),
        ({"learner": "no-such"}, r'learner = "no-such" is not built in\. Use one of image-analytic, '),
        ({"learner": "no.such:thing"}, r'learner = "no\.such:thing" cannot be imported: '),
        ({"learner": "json:dumps"}, r'learner = "json:dumps" is a function, not a Blueprint'),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], message: str) -> None:
    config = configuration("127.0.0.1:1", "redis://127.0.0.1:1", "topic", name="wrong", **change)
    with pytest.raises(ConfigError, match=message):
        prepared(config)


def test_what_cannot_be_learned_is_accounted_for_and_kept(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **TEXTS)
    what: dict[str, bytes | tuple[bytes, str] | None] = {
        "skipped/unlabelled": b"no label",
        "skipped/tombstone": None,
        "dead-lettered/undecodable": (b"\xff\xfe\xff", "a"),
        "dead-lettered/too-large": (b"x" * 65, "a"),
        "dead-lettered/empty": (b"", "a"),
        "dead-lettered/label": (b"a third class", "c"),
    }
    publish(config, topic, (b"first", "a"), (b"second", "b"), *what.values(), (b"last", "a"))
    with working(config) as run:
        run.read(3 + len(what))
        head = run.finish()
    assert head.counts == {"learned": 3, **dict.fromkeys(what, 1)}
    assert head.classes == ["a", "b"]
    for offset, outcome in enumerate(["learned", "learned", *what, "learned"]):
        place = Place(Partition(topic, 0), offset)
        found = {run.store.history(n).lineage.outcome_of(place) for n in range(1, head.version + 1)}
        assert found - {None} == {outcome}
    for outcome in what:
        kind, _, reason = outcome.partition("/")
        assert run.metric("headrace_records_total", outcome=kind, reason=reason) == 1

    letters = list(with_values(config.kafka, read_dead_letters(config.kafka, topic)))
    assert [letter.record.offset for letter in letters] == [4, 5, 6, 7]
    for letter in letters:
        original = what[f"dead-lettered/{letter.reason}"]
        assert isinstance(original, tuple)
        value, label = original[0], original[1].encode()
        assert (letter.model, letter.record.topic, letter.record.value) == (run.name, topic, value)
        assert dict(letter.record.headers)["label"] == label
    assert "'c'" in letters[-1].detail
    assert "max_classes" in letters[-1].detail


def test_a_decoder_of_ones_own(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, decoder="tests.consumers.counting:from_words")
    publish(config, topic, b"number 2", b"nonsense", b"number 0")
    with working(config) as run:
        head = run.read(3)
        assert run.counts() == [1, 0, 1]
    assert head.counts == {"learned": 2, "dead-lettered/decoder": 1}
    assert "ValueError" in read_dead_letters(config.kafka, topic)[0].detail


def test_versions_by_updates(kafka: str, redis_url: str, topic: str) -> None:
    every: dict[str, Any] = {"snapshot_every_s": None, "snapshot_every_updates": 3}
    config = configuration(kafka, redis_url, topic, max_wait_ms=60_000, keep_last=100, **every)
    publish(config, topic, *numbers(range(8 * 8)))
    with working(config) as run:
        run.read(3 * 8)
        run.learns(8 * 8)
        head = run.finish()
    made = [len(run.store.history(version).lineage.updates) for version in range(1, head.version + 1)]
    assert sum(made) == 8
    assert min(made[:-1]) >= 3


def test_the_end_leaves_a_version_of_everything_learned(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, snapshot_every_s=3600)
    publish(config, topic, *numbers(range(50)))
    with working(config) as run:
        run.learns(50)
        assert run.store.head() is None
        assert run.finish().version == 1
        assert run.counts() == [1] * 50
    assert run.store.holder() is None


def test_retention_keeps_what_is_configured(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, keep_last=2, snapshot_every_updates=1)
    with working(config) as run:
        for number in range(5):
            publish(config, topic, b"%d" % number)
            run.read(number + 1)
        head = run.finish()
        assert run.counts() == [1] * 5
    assert [ref.version for ref in run.store.versions()] == [head.version - 1, head.version]


def test_learning_goes_on_while_redis_is_away(kafka: str, tmp_path: Path, topic: str) -> None:
    with EmbeddedRedis(tmp_path) as redis:
        config = configuration(kafka, redis.url, topic)
        publish(config, topic, *numbers(range(20)))
        with working(config) as run:
            run.read(20)
            redis.stop()
            publish(config, topic, *numbers(range(20, 60)))
            run.learns(60)
            run.waits(lambda: run.metric("headrace_store_up") == 0)
            redis.start()
            run.read(60)
            head = run.finish()
            assert run.counts() == [1] * 60
        assert head.counts == {"learned": 60}
        lineages = [entry.lineage for entry in run.store.histories()]
        offsets = [offset for lineage in lineages for update in lineage.learned() for _, offset in update]
        assert offsets == list(range(60))
    assert run.metric("headrace_store_up") == 1
    assert sum("Redis cannot be reached" in line for line in run.said) == 1


def test_a_worker_that_ends_while_redis_is_away_says_so_and_loses_nothing(
    kafka: str, tmp_path: Path, topic: str
) -> None:
    with EmbeddedRedis(tmp_path) as redis:
        config = configuration(kafka, redis.url, topic, lease_s=0.5)
        publish(config, topic, *numbers(range(20)))
        with working(config) as run:
            run.read(20)
            redis.stop()
            publish(config, topic, *numbers(range(20, 40)))
            run.learns(40)
            run.stop.set()
            with pytest.raises(StoreUnavailable):
                run.join()
        redis.start()
        with working(config) as run:
            run.read(40)
            assert run.counts() == [1] * 40


def test_drift_is_reported_and_recorded(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **TEXTS, keep_last=100)
    ab, ba = [(b"aaaa", "a"), (b"bbbb", "b")], [(b"aaaa", "b"), (b"bbbb", "a")]
    publish(config, topic, *ab * 100, *ba * 100)
    with working(config) as run:
        run.read(400)
        head = run.finish()
    changes = [change for n in range(head.version) for change in run.store.history(n + 1).lineage.changes]
    assert len(changes) >= 1
    assert all(change["drift"]["update"] > 25 for change in changes)  # an update is 8 records: not before the flip
    assert run.metric("headrace_drift_events_total") == len(changes)
    assert any("drift" in line for line in run.said)


def tensors(config: Config, records: int) -> dict[str, bytes]:
    """All tensors of the version that a worker leaves which learned so many records."""
    with working(config) as run:
        run.learns(records)
        head = run.finish()
    groups = run.store.arrays(head, "serving"), run.store.arrays(head, "training")
    return {name: array.data.tobytes() for group in groups for name, array in group.items()}


def test_the_same_batches_and_seed_make_the_same_bits_also_over_a_restart(
    kafka: str, redis_url: str, topic: str
) -> None:
    records = [(picture(shade), f"{shade % 3}") for shade in range(64)]

    def seeded(seed: int) -> Config:
        return configuration(kafka, redis_url, topic, name=unique("seeded"), seed=seed, **PICTURES, **AT_THE_END)

    interrupted = seeded(0)
    publish(interrupted, topic, *records[:32])
    tensors(interrupted, 32)
    publish(interrupted, topic, *records[32:])
    resumed = tensors(interrupted, 32)

    once = tensors(seeded(0), 64)
    assert tensors(seeded(0), 64) == once
    assert tensors(seeded(1), 64) != once
    assert [name for name in once if resumed[name] != once[name]] == []
    assert resumed.keys() == once.keys()
