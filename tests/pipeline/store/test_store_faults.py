"""The store on a real Redis when something breaks: bytes, formats, connections, memory."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import Corrupt, NotFound, StoreError, StoreUnavailable
from pipeline.store.codec import from_numpy, sha256
from pipeline.store.manifest import FORMAT
from pipeline.store.rowlog import Delta
from pipeline.store.store import Store
from pipeline.store.writer import Writer
from tests.pipeline.drafts import draft, taken, weights

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_a_flipped_byte_is_found_and_named(store: Store, writer: Writer, redis: Redis, family: str) -> None:
    writer.commit(draft(0, {"conv.weight": weights(1)}))
    digest = store.manifest().serving["conv.weight"].parts[0].digest
    key = f"headrace:{{{family}}}:tensor:{digest}"
    redis.setrange(key, redis.strlen(key) - 1, b"\x01")
    with pytest.raises(Corrupt, match=r"Tensor conv\.weight of version 1 of digits.* other bytes"):
        store.arrays(store.manifest(), "serving")
    redis.delete(key)
    with pytest.raises(Corrupt, match=r"Tensor conv\.weight of version 1 of digits.* is gone"):
        store.arrays(store.manifest(), "serving")


def test_a_changed_manifest_is_found(store: Store, writer: Writer, redis: Redis) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    key = store._keys.key("manifest:1")
    raw: Any = redis.get(key)
    redis.set(key, raw.replace(b'"seed":0', b'"seed":1'))
    with pytest.raises(Corrupt, match="manifest of version 1 of digits has other bytes"):
        store.manifest()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": 7}, "manifest of version 1 of digits is one of version 7"),
        ({"probes": {"a": {}}}, r"damaged at 'probes\.a': .*it lacks now, best, first, records"),
        ({"probes": {"a": {"now": None}}}, r"damaged at 'probes\.a\.now"),
    ],
)
def test_a_manifest_that_is_forged_whole_is_reported(
    store: Store, writer: Writer, redis: Redis, changed: dict[str, Any], said: str
) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    raw = json.dumps(json.loads(store.manifest().raw) | changed).encode()
    redis.delete(store._keys.key("versions"))
    redis.zadd(store._keys.key("versions"), {f"1:{sha256(raw)}": 1})
    redis.set(store._keys.key("manifest:1"), raw)
    redis.set(store._keys.key("head"), f"1:{sha256(raw)}")
    with pytest.raises(Corrupt, match=said):
        store.manifest()


def test_a_head_of_a_newer_format_is_refused_with_the_choices(store: Store, redis: Redis) -> None:
    fence = taken(store)
    store.writer(fence).commit(draft(0, {"w": weights(1)}))
    raw = b'{"format":%d,"anything":"else"}' % (FORMAT + 1)
    redis.set(store._keys.key("manifest:2"), raw)
    redis.zadd(store._keys.key("versions"), {f"2:{sha256(raw)}": 2})
    redis.set(store._keys.key("head"), f"2:{sha256(raw)}")
    said = (
        rf"manifest of version 2 of digits is of format {FORMAT + 1}.*Upgrade headrace, use an older version, .*reset"
    )
    with pytest.raises(Corrupt, match=said):
        store.manifest()
    with pytest.raises(Corrupt, match=said):
        store.writer(fence)
    assert store.manifest(1).version == 1


@pytest.mark.parametrize("garbage", [b"garbage", b"\xff", b"9" * 5000, b"9" * 18, b"-1", "٣".encode()])
def test_a_number_that_is_none_is_reported(store: Store, writer: Writer, redis: Redis, garbage: bytes) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    redis.set(store._keys.key("counter"), garbage)
    for look in (lambda: store.writer(writer.fence), lambda: [*store.histories()]):
        with pytest.raises(Corrupt, match="which is no number"):
            look()
    redis.set(store._keys.key("counter"), 1000)  # most numbers below were never used: those that were are listed
    redis.hset(store._keys.key("lineage"), garbage, b"?")
    with pytest.raises(Corrupt, match="which is no number"):
        list(store.histories())
    redis.set(store._keys.key("head"), garbage)
    with pytest.raises(Corrupt, match="which is not NUMBER:DIGEST"):
        store.head()


def test_an_alias_whose_name_is_no_text_hides_no_other(store: Store, writer: Writer, redis: Redis) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    store.set_alias("stable", 1)
    redis.hset(store._keys.key("aliases"), b"\xff", str(store.head()))
    assert {ref.version for ref in store.aliases().values()} == {1}
    assert "stable" in store.aliases()


@pytest.mark.parametrize("what", ["flipped", "gone"])
def test_a_damaged_keyframe_stops_a_worker_and_nobody_else(store: Store, redis: Redis, family: str, what: str) -> None:
    fence = taken(store)
    writer = store.writer(fence)
    table = from_numpy(np.ones((4, 3), np.float32))
    writer.commit(draft(0, {"w": weights(1)}, {"memory": Delta(4, np.arange(4), table)}))
    writer.commit(draft(1, {"w": weights(2)}, keyframe=False))
    key = f"headrace:{{{family}}}:tensor:{store.manifest(1).training['memory'].parts[0].digest}"
    if what == "gone":
        redis.delete(key)
    else:
        redis.setrange(key, redis.strlen(key) - 1, b"\x01")
    said = r"Tensor memory of version 1 of digits.*Use another version"
    with pytest.raises(Corrupt, match=said):
        store.arrays(store.keyframe(store.manifest()), "training")
    changed = Delta(4, np.array([2]), from_numpy(np.zeros((1, 3), np.float32)))
    with pytest.raises(Corrupt, match=said):  # whose copy of the memory comes from Redis
        store.writer(fence).commit(draft(2, {"w": weights(3)}, {"memory": changed}))
    assert store.arrays(store.manifest(), "serving").keys() == {"w"}
    redis.delete(store._keys.key("manifest:1"))
    with pytest.raises(NotFound, match="Version 1 of digits is not kept any more"):
        store.writer(fence)


def test_an_object_that_was_evicted_stops_the_commit(store: Store, writer: Writer, redis: Redis, family: str) -> None:
    writer.commit(draft(0, {"frozen": weights(1), "w": weights(2)}))
    digest = store.manifest().serving["frozen"].parts[0].digest
    redis.delete(f"headrace:{{{family}}}:tensor:{digest}")
    with pytest.raises(Corrupt, match="noeviction"):
        writer.commit(draft(1, {"frozen": weights(1), "w": weights(3)}))
    head = store.head()
    assert head is not None
    assert head.version == 1


@pytest.fixture
def nobody() -> Iterator[str]:
    """The address of a port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"


def test_a_redis_that_is_not_there_is_worth_another_try(nobody: str) -> None:
    with (
        Redis.from_url(nobody, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(StoreUnavailable) as raised,
    ):
        Store(client, "family", "model").head()
    assert raised.value.retriable


def test_a_redis_without_memory_is_worth_another_try(store: Store, writer: Writer, redis: Redis) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    second = draft(1, {"w": weights(2)})
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="Redis takes no writes"):
            writer.commit(second)
        with pytest.raises(StoreUnavailable, match="Redis takes no writes"):
            store.set_alias("stable", 1)
    finally:
        redis.config_set("maxmemory", 0)
    assert writer.commit(second).version == 2


def test_a_full_redis_can_be_held_and_freed(store: Store, redis: Redis) -> None:
    fence = taken(store)
    writer = store.writer(fence)
    for number in range(5):
        writer.commit(draft(number, {"w": weights(number)}))
    store.set_alias("stable", 1)
    redis.config_set("maxmemory", 1)
    try:
        store.renew(fence, 60)
        store.delete_alias("stable")
        assert store.retire(fence, 2) == [1, 2, 3]
        store.release(fence)
        again = store.acquire("another", 60)
        assert again is not None
        assert store.acquire("third", 60) is None
        assert store.writer(again).next_version == 6  # a worker may start, and wait with its first version
        store.release(again)
        store.delete()
    finally:
        redis.config_set("maxmemory", 0)
    assert not redis.keys(f"headrace:{{{store.family}}}:model:*")


def test_memory_that_ends_between_upload_and_commit_leaves_nothing_half_done(
    store: Store, writer: Writer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = draft(0, {"w": weights(1)})
    put = store._objects.put_if_absent

    def full(objects: Any) -> int:
        sent = put(objects)
        redis.config_set("maxmemory", 1)
        return sent

    monkeypatch.setattr(store._objects, "put_if_absent", full)
    try:
        with pytest.raises(StoreUnavailable, match="Redis takes no writes"):
            writer.commit(first)
    finally:
        redis.config_set("maxmemory", 0)
    assert store.head() is None
    assert not redis.exists(store._keys.key("manifest:1"), store._keys.family_key("refs"))
    monkeypatch.setattr(store._objects, "put_if_absent", put)
    assert writer.commit(first).version == 1


def test_a_wrong_type_is_no_matter_of_time(store: Store, redis: Redis) -> None:
    redis.lpush(store._keys.key("head"), "not a string")
    with pytest.raises(StoreError) as raised:
        store.head()
    assert not raised.value.retriable
