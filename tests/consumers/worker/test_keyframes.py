"""Versions without training state: what goes on from them is, to the last bit, what never stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from kafka import TopicPartition
from redis import Redis

from consumers.bridge import array
from consumers.loading import resolve_blueprint
from consumers.worker import session, worker as trainer
from consumers.worker.replay import use_threads
from models.learner import Batch, Rows, update_generator
from pipeline.config import Config
from pipeline.errors import NotRepeatable, OffsetsGone
from pipeline.log.reader import Reader
from pipeline.store.codec import Encoded, from_numpy, sha256
from pipeline.store.manifest import Manifest, Ref
from pipeline.store.store import Store
from tests.consumers.families import FAMILIES, records
from tests.consumers.working import Working, configuration, numbers, publish, verified, working
from tests.device import DEVICE
from tests.services import Topics, unique

BATCH = 8
STEPWISE: dict[str, Any] = {  # every batch is a version
    "snapshot_every_updates": 1,
    "snapshot_every_s": None,
    "max_wait_ms": 60_000,
    "batch_size": BATCH,
    "keyframe_every": 3,
    "keep_last": 100,
}


def stepwise(run: Working, config: Config, topic: str, values: Iterator[Any], batches: int) -> Manifest:
    """Publishes so many batches, each when the one before is in a version; the head then."""
    head = run.store.head()
    read = sum(run.store.manifest(head).counts.values()) if head else 0
    for batch in range(1, batches + 1):
        publish(config, topic, *[next(values) for _ in range(BATCH)])
        run.read(read + batch * BATCH)
    return run.store.manifest()


def bits(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """Every tensor of a version."""
    groups = [store.arrays(manifest, "serving"), store.arrays(manifest, "training")]
    return {name: value.data.tobytes() for group in groups for name, value in group.items()}


def learned_alone(run: Working, config: Config, values: list[tuple[bytes, str]]) -> Iterator[dict[str, bytes]]:
    """What each version must hold: a plain loop over the batches of the lineage, with none of the worker's code.

    Args:
        values: what was published, by offset.
    """
    settings = config.model(run.name)
    blueprint = resolve_blueprint(settings.learner)
    learner = blueprint.learner(blueprint.options(**settings.options), settings.input.shape, settings.seed, DEVICE)
    torch.set_num_threads(settings.threads)  # of this thread: the worker's own count is that of its thread
    images, update = settings.input.kind == "image", 0
    for entry in run.store.histories():
        for places in entry.lineage.learned():
            rows = [values[offset] for _, offset in places]
            x = torch.zeros(len(rows), *settings.input.shape, dtype=torch.uint8 if images else torch.int32)
            for row, (value, label) in enumerate(rows):
                if images:
                    x[row] = values.index((value, label))  # the shade of the picture
                else:
                    x[row, : len(value)] = torch.tensor(list(value))
            ids = [hashlib.blake2b(f"{at.topic}:{at.number}:{n}".encode(), digest_size=16).digest() for at, n in places]
            batch = Batch(
                x,
                [label for _, label in rows],
                torch.tensor([(0, at.number, offset) for at, offset in places]),
                torch.tensor(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 16).copy()),
            )
            learner.learn(batch, update_generator(settings.seed, update))
            update += 1
        state = learner.capture()
        named = {**state.serving, **state.training}
        live = {name: value.tensor if isinstance(value, Rows) else value for name, value in named.items()}
        yield {name: array(value.detach().cpu()).data.tobytes() for name, value in live.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_worker_goes_on_from_a_version_without_training_as_if_it_had_never_stopped(
    kafka: str, redis_url: str, topic: str, family: str
) -> None:
    config = configuration(kafka, redis_url, topic, **FAMILIES[family], **STEPWISE)
    values = list(records(family))
    coming = iter(values)
    with working(config) as run:
        assert stepwise(run, config, topic, coming, 5).keyframe == run.store.resolve("4")
        run.crash()
    with working(config) as run:
        stepwise(run, config, topic, coming, 2)
        head = run.finish()
        assert any("going on from version 5" in line for line in run.said)
        assert [run.store.manifest(ref).is_keyframe for ref in run.store.versions()] == [1, 0, 0, 1, 0, 0, 1]
        wanted = list(learned_alone(run, config, values))
        for ref, shall in zip(run.store.versions(), wanted, strict=True):
            stored = bits(run.store, run.store.manifest(ref))
            assert {name: shall[name] for name in stored} == stored
        assert bits(run.store, head) == wanted[-1]  # training as well
        assert head.counts == {"learned": 7 * BATCH}
        if family == "counting":
            assert run.counts() == [1] * 7 * BATCH


def test_the_last_version_of_a_worker_that_ends_in_peace_is_a_keyframe(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **STEPWISE)
    with working(config) as run:
        before = stepwise(run, config, topic, iter(numbers(range(16))), 2)
        head = run.finish()
    assert not before.is_keyframe
    assert head.is_keyframe
    assert (head.parent, head.counts) == (before.ref, before.counts)  # it learned nothing more
    with working(config) as run:
        run.waits(lambda: run.metric("headrace_log_up"))
        assert run.finish() == head  # and once is enough


def test_learning_again_takes_the_settings_of_then(kafka: str, redis_url: str, topics: Topics) -> None:
    def life(keyframe_every: int) -> list[dict[str, bytes]]:
        topic, other = topics(), topics()
        tables = {"name": unique("model"), **FAMILIES["text"], **STEPWISE, "keyframe_every": keyframe_every}
        fast = {
            "options": {**FAMILIES["text"]["options"], "learning_rate": 0.1},
            "seed": 3,
            "drift": {"detector": "none"},
        }
        configs = [
            configuration(kafka, redis_url, topic, **tables),
            configuration(kafka, redis_url, other, topic, **{**tables, **fast, "threads": 2}),
            configuration(kafka, redis_url, other, topic, **tables),
        ]
        values = records("text")
        for config in configs:
            with working(config) as run:
                stepwise(run, config, topic, values, 2)
                if config is not configs[-1]:
                    run.crash()
        run.finish()
        assert [change.keys() for change in run.changes("config")] == [
            {"drift", "options", "seed", "threads", "topics"},
            {"drift", "options", "seed", "threads"},
        ]
        assert not run.changes("replayed")
        head = run.store.manifest()
        assert head.worker["topics"] == {topic: 0, other: 1}
        return [
            {
                name: value
                for name, value in bits(run.store, run.store.manifest(version)).items()
                if name in head.serving or version == head.version
            }
            for version in range(1, 7)
        ]

    remembered, again = life(keyframe_every=1), life(keyframe_every=100)
    for one, other in zip(remembered[:-1], again[:-1], strict=True):
        assert {name: one[name] for name in other} == other  # the first is a keyframe in both


def test_retention_keeps_the_keyframe_of_the_head(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **{**STEPWISE, "keyframe_every": 100, "keep_last": 2})
    values = iter(numbers(range(100)))
    with working(config) as run:
        stepwise(run, config, topic, values, 5)
        run.waits(lambda: [ref.version for ref in run.store.versions()] == [1, 4, 5])
        run.crash()
    with working(config) as run:
        stepwise(run, config, topic, values, 1)
        assert run.finish().is_keyframe
        assert run.counts() == [1] * 48
        assert [ref.version for ref in run.store.versions()] == [1, 6, 7]  # 6 is none


@contextmanager
def at_a_version_without_training(config: Config, topic: str) -> Iterator[Working]:
    """A worker that crashed at version 3; version 1 is its keyframe."""
    with working(config) as run:
        stepwise(run, config, topic, records("text"), 3)
        run.crash()
    yield run


def test_a_log_that_does_not_reach_back_to_the_keyframe(kafka: str, redis_url: str, topics: Topics) -> None:
    topic = topics()
    config = configuration(kafka, redis_url, topic, **STEPWISE)
    with at_a_version_without_training(config, topic):
        topics.admin.delete_records({TopicPartition(topic, 0): 9})
    with working(config) as run, pytest.raises(OffsetsGone) as raised:
        run.join()
    assert f"{topic} partition 0 offset 8 is to be read again" in str(raised.value)
    assert "the partition holds offsets 9 to 24" in str(raised.value)
    assert f"headrace reset {topic}" in str(raised.value)
    assert raised.value.exit_status == 3


def test_a_keyframe_is_made_before_the_log_stops_reaching_back_to_the_last(
    kafka: str, redis_url: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WATCH_S", 0.0)
    monkeypatch.setattr(trainer, "Reader", partial(Reader, refresh_s=0.2))
    topic = topics()
    config = configuration(kafka, redis_url, topic, **{**STEPWISE, "keyframe_every": 100})
    values = iter(numbers(range(100)))
    with working(config) as run:
        stepwise(run, config, topic, values, 4)
        assert run.metric("headrace_keyframe_headroom_records") == 8
        topics.admin.delete_records({TopicPartition(topic, 0): 5})
        head = run.until(lambda manifest: manifest.version == 5)  # without any further record
        assert head.is_keyframe
        assert any(
            f"{topic} partition 0 is deleted up to 5, and the last keyframe needs it from 8 on" in line
            for line in run.said
        )
        run.waits(lambda: run.metric("headrace_keyframe_headroom_records") == 32 - 5)
        assert stepwise(run, config, topic, values, 1).keyframe == head.ref  # and then it is over
        run.crash()
    topics.admin.delete_records({TopicPartition(topic, 0): 32})
    with working(config) as run:
        stepwise(run, config, topic, values, 1)
        assert run.counts() == [1] * 48


def forged(redis: Redis, store: Store, version: int, **fields: Any) -> Manifest:
    """Puts another manifest in the place of a version, the head, as consistently as an attacker would."""
    before = store.manifest(version)
    after = Manifest.model_validate({**before.model_dump(mode="json"), **fields})
    redis.set(store._keys.key(f"manifest:{version}"), after.raw)
    redis.zrem(store._keys.key("versions"), str(before.ref))
    redis.zadd(store._keys.key("versions"), {str(after.ref): version})
    redis.set(store._keys.key("head"), str(Ref(version=version, digest=sha256(after.raw))))
    return after


def other_weights(redis: Redis, store: Store, version: int, name: str) -> dict[str, Any]:
    """The serving tensors of a version with one number of one of them changed by a quarter."""
    manifest = store.manifest(version)
    values = store.arrays(manifest, "serving")[name].numpy().copy()
    values.reshape(-1)[0] += 0.25
    encoded = Encoded({"rows": from_numpy(values)})
    redis.set(store._keys.family_key(f"tensor:{encoded.digest}"), encoded.serialized())
    serving = json.loads(manifest.model_dump_json())["serving"]
    serving[name]["parts"] = [{"digest": encoded.digest, "bytes": encoded.bytes, "first": 0}]
    return {"serving": serving}


def test_weights_that_learning_again_does_not_give(kafka: str, redis_url: str, topic: str, redis: Redis) -> None:
    config = configuration(kafka, redis_url, topic, **FAMILIES["text"], **STEPWISE)
    with at_a_version_without_training(config, topic) as run:
        tensor = next(name for name in run.store.manifest(3).serving if "bias" in name)
        forged(redis, run.store, 3, **other_weights(redis, run.store, 3, tensor))
        assert verified(run, config).differs == {tensor: pytest.approx(0.25)}
    with working(config) as run, pytest.raises(NotRepeatable) as raised:
        run.join()
    for part in ("Version 3", "keyframe 1", f"{tensor} by up to 0.25", "same environment", "headrace verify"):
        assert part in str(raised.value)

    then = {**run.store.manifest(3).environment, "torch": "1.0"}
    forged(redis, run.store, 3, environment=then)
    values = records("text")
    with working(config) as run:
        head = stepwise(run, config, topic, values, 1)
    [replayed] = run.changes("replayed")
    assert (replayed["from"], replayed["differs"]) == (1, {tensor: pytest.approx(0.25)})
    assert replayed["environment"] == {"torch": ["1.0", torch.__version__]}
    assert any("other weights" in line and "1.0" in line for line in run.said)
    assert head.counts == {"learned": 32}


def test_what_is_pending_at_a_version_without_training_is_learned_next(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **STEPWISE)
    values = iter(numbers(range(100)))
    with working(config) as run:
        stepwise(run, config, topic, values, 1)
        publish(config, topic, *[next(values) for _ in range(BATCH + 3)])
        run.until(lambda manifest: manifest.counts["learned"] == 2 * BATCH)
        assert not run.crash().is_keyframe
    with working(config) as run:
        publish(config, topic, *[next(values) for _ in range(BATCH - 3)])
        run.read(3 * BATCH)
        assert run.counts() == [1] * 3 * BATCH
        assert run.outcomes() == {(topic, 0, offset): ["learned"] for offset in range(3 * BATCH)}


@pytest.mark.parametrize("stored", [0, -1, 10**9, "2", None, 1.5])
def test_a_stored_number_of_threads_is_one_that_a_worker_has(stored: object) -> None:
    before = torch.get_num_threads()
    with pytest.raises(NotRepeatable, match="threads"):
        use_threads(stored)
    assert torch.get_num_threads() == before
