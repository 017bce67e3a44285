"""Any version can be learned again from the log, to the last bit, or it is said what stands in the way."""

from __future__ import annotations

import random
from typing import Any

import pytest
from kafka import TopicPartition
from redis import Redis

from pipeline.errors import NotRepeatable, OffsetsGone, StateMismatch, TopicReplaced
from pipeline.records import Partition, Place
from pipeline.store.lineage import LineageBuilder
from pipeline.store.manifest import HistoryEntry
from tests.consumers.families import FAMILIES, records
from tests.consumers.worker.test_keyframes import STEPWISE, forged, other_weights, stepwise
from tests.consumers.working import Working, configuration, numbers, publish, verified, working
from tests.services import Topics, unique

Life = tuple[Working, str, dict[str, Any]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_life_with_all_that_happens_is_learned_again(kafka: str, redis_url: str, topics: Topics, family: str) -> None:
    """Restarts, hard and in peace, other settings, another topic, records skipped, dead-lettered or held out."""
    topic, other = topics(), topics(partitions=3)
    often: dict[str, Any] = {"snapshot_every_updates": 2, "keyframe_every": 3, "keep_last": 100}
    often["hold_out"] = {"slots": 4, "share": 0.2}
    tables = {"name": unique("model"), **FAMILIES[family], **often}
    options = FAMILIES[family].get("options", {}) | ({} if family == "counting" else {"learning_rate": 0.02})
    configs = [
        configuration(kafka, redis_url, topic, **tables),
        configuration(kafka, redis_url, topic, **tables, batch_size=5, threads=2),
        configuration(kafka, redis_url, other, topic, **{**tables, "options": options}, drift={"detector": "none"}),
    ]
    coming = records(family)
    bad = (b"\xff\xfe", "class 1")
    read = 0
    for life, config in enumerate(configs):
        with working(config) as run:
            publish(config, topic, *[next(coming) for _ in range(21)], bad, None)
            read += 23
            if life == 2:
                publish(config, other, *[next(coming) for _ in range(20)], None)
                read += 21
            head = run.read(read)
            run.crash() if life == 0 else run.finish()
    assert sum(head.counts.values()) == read
    assert head.counts["held-out"] > 0
    head = run.store.manifest()
    versions = [ref.version for ref in run.store.versions()]
    keyframes = [version for version in versions if run.store.manifest(version).is_keyframe]
    last = configs[-1]
    whole = verified(run, last)
    assert (whole.differs, whole.environment, whole.same) == ({}, {}, True)
    assert (whole.start, whole.records, whole.updates) == (None, head.counts["learned"], head.updates)
    assert whole.stored == whole.learned
    assert verified(run, configs[0]).same  # the file of now plays no part
    between = next(version for version in versions if version not in keyframes)
    assert verified(run, last, between).same
    for start in (keyframes[0], between, head.version):
        part = verified(run, last, start=start)
        assert part.same
        assert part.updates == head.updates - run.store.manifest(start).updates


@pytest.fixture(scope="module")
def learned(kafka: str, redis_url: str, topics: Topics) -> Life:
    """A model of texts with versions 1 to 4, its topic, and what else its configuration was made of."""
    topic = topics()
    tables = {"name": unique("model"), **FAMILIES["text"], **STEPWISE}
    config = configuration(kafka, redis_url, topic, **tables)
    with working(config) as run:
        stepwise(run, config, topic, records("text"), 4)
        run.finish()
    return run, topic, tables


def test_what_was_forged_is_found(kafka: str, redis_url: str, learned: Life, redis: Redis) -> None:
    run, topic, tables = learned
    config = configuration(kafka, redis_url, topic, **tables)
    assert verified(run, config).same
    store, before = run.store, run.store.manifest(4)
    tensor = next(name for name in before.serving if "bias" in name)
    forged(redis, store, 4, **other_weights(redis, store, 4, tensor))
    found = verified(run, config)
    assert not found.same
    assert found.differs == {tensor: pytest.approx(0.25)}
    assert found.json()["same"] is False
    forged(redis, store, 4, serving=before.model_dump(mode="json")["serving"], counts={"learned": 31})
    assert verified(run, config).differs == {"counts": None}
    forged(redis, store, 4, counts=before.counts)
    assert verified(run, config).same


def test_another_learner_or_decoder_is_reported(kafka: str, redis_url: str, learned: Life) -> None:
    run, topic, tables = learned
    config = configuration(kafka, redis_url, topic, **tables, decoder="tests.consumers.counting:from_words")
    with pytest.raises(NotRepeatable, match=f"{topic}:0:0 was learned and cannot be any more.* Put the decoder back"):
        verified(run, config)
    tables = {**tables, "learner": "tests.consumers.counting:blueprint", "options": {}}
    with pytest.raises(StateMismatch, match=r"learner = 'tests\.consumers\.counting:blueprint'.* 'text-classifier'"):
        verified(run, configuration(kafka, redis_url, topic, **tables))


def test_a_start_that_is_no_ancestor_is_reported(kafka: str, redis_url: str, learned: Life) -> None:
    run, topic, tables = learned
    config = configuration(kafka, redis_url, topic, **tables)
    with pytest.raises(NotRepeatable, match="does not lead from version 4 to version 1"):
        verified(run, config, 1, start=4)


def test_a_history_with_a_gap_is_reported(kafka: str, redis_url: str, topic: str, redis: Redis) -> None:
    config = configuration(kafka, redis_url, topic, **STEPWISE)
    with working(config) as run:
        stepwise(run, config, topic, iter(numbers(range(40))), 5)
        run.finish()
    redis.hdel(run.store._keys.key("lineage"), "2")
    with pytest.raises(NotRepeatable, match=f"history of {topic} has a gap before version 3.*--from 3"):
        verified(run, config)
    assert verified(run, config, start=4).same
    redis.hdel(run.store._keys.key("lineage"), str(run.store.manifest().version))
    with pytest.raises(NotRepeatable, match="does not lead from version"):
        verified(run, config, start=4)


def test_a_model_that_was_reset_is_learned_again_from_there(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, keep_last=2)
    publish(config, topic, *numbers(range(20)))
    with working(config) as run:
        run.read(20)
        head = run.finish()
    run.store.reset()
    with working(config) as run:
        run.read(20)
        after = run.finish()
        assert not run.changes("lost")  # what was reset is not lost
    assert after.version > head.version
    assert verified(run, config).same


def test_an_emptied_log_is_reported_and_a_later_start_goes(kafka: str, redis_url: str, topics: Topics) -> None:
    topic = topics()
    config = configuration(kafka, redis_url, topic, **{**STEPWISE, "keyframe_every": 1})
    with working(config) as run:
        stepwise(run, config, topic, iter(numbers(range(40))), 3)
        run.finish()
    topics.admin.delete_records({TopicPartition(topic, 0): 10})
    with pytest.raises(OffsetsGone, match=f"{topic} partition 0 offset 0 .*holds offsets 10 to 24"):
        verified(run, config)
    assert verified(run, config, start=2).same


def test_a_topic_that_was_made_again_is_never_taken_for_the_one_before(
    kafka: str, redis_url: str, topics: Topics
) -> None:
    topic, kept = topics(), topics()
    config = configuration(kafka, redis_url, topic, kept, **STEPWISE)
    values = iter(numbers(range(100)))
    with working(config) as run:
        stepwise(run, config, topic, values, 2)
        run.finish()
    topics.admin.delete_topics([topic])
    topics.admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
    topics.admin.wait_for_topics([topic])
    with working(config, jump=True) as run:
        run.waits(lambda: run.metric("headrace_log_up"))
        stepwise(run, config, topic, values, 3)
        run.crash()
    before = next(entry.version - 1 for entry in run.store.histories() if entry.lineage.changes)
    with pytest.raises(TopicReplaced, match=f"{topic} was deleted and made again"):
        verified(run, config)
    assert verified(run, config, start=before).same  # over the jump
    with working(config) as run:  # and a restart learns again what came after it
        stepwise(run, config, topic, values, 1)
        assert run.counts() == [1] * 48


def test_the_history_of_a_million_updates_stays_small() -> None:
    """Batches of 64 from six partitions, in chunks of up to 500 records as the reader hands them out."""
    rng = random.Random(0)
    ends = {Partition(f"topic-{n // 3}", n % 3): rng.randrange(1 << 40) for n in range(6)}
    updates, versions, size = 20_000, 100, 0
    waiting: list[Place] = []
    for version in range(versions):
        builder = LineageBuilder()
        for _ in range(updates // versions):
            while len(waiting) < 64:
                for partition in rng.sample(sorted(ends), 6):  # a chunk: some of each partition, one after the other
                    count = rng.randrange(84)
                    waiting += [Place(partition, ends[partition] + n) for n in range(count)]
                    ends[partition] += count
            builder.learned(waiting[:64])
            del waiting[:64]
        entry = HistoryEntry(version=version, created_ms=0, updates=0, counts={}, metrics={}, lineage=builder.build())
        size += len(entry.model_dump_json(exclude_none=True))
    assert size / updates < 100, f"{size / updates:.1f} bytes an update"

    # The worst that a slow stream does: no two neighbours from one partition. The feed sorts a batch by partition.
    builder = LineageBuilder()
    for _ in range(1000):
        places = []
        for _ in range(64):
            partition = rng.choice(sorted(ends))
            places.append(Place(partition, ends[partition]))
            ends[partition] += 1
        builder.learned(sorted(places))
    assert len(builder.build().model_dump_json()) / 1000 < 100
