"""The contract of `Objects`, run on every implementation: a row in MAKERS for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from redis import Redis

from pipeline.errors import StoreUnavailable
from pipeline.store.codec import Encoded, from_numpy, sha256
from pipeline.store.objects import TRANSFER_BYTES, Objects, RedisObjects
from pipeline.store.redis import Keyspace
from tests.pipeline.drafts import draft, taken, weights

if TYPE_CHECKING:
    from pipeline.store.store import Store
    from pipeline.store.writer import Writer

#: What makes the objects of a family that has none yet.
MAKERS: dict[str, Callable[[Redis, str], Objects]] = {
    "redis": lambda redis, family: RedisObjects(Keyspace(redis, family, "digits")),
}


@pytest.fixture(params=list(MAKERS.values()), ids=list(MAKERS))
def objects(request: pytest.FixtureRequest, redis: Redis, family: str) -> Objects:
    made: Objects = request.param(redis, family)
    return made


def some(*values: float) -> dict[str, Encoded]:
    encoded = [Encoded({"rows": weights(value)}) for value in values]
    return {one.digest: one for one in encoded}


def sizes(some: dict[str, Encoded]) -> dict[str, int]:
    return {digest: encoded.bytes for digest, encoded in some.items()}


def test_what_was_put_is_got(objects: Objects) -> None:
    put = some(1, 2, 3)
    assert objects.put_if_absent(put) == sum(sizes(put).values())
    assert dict(objects.get(sizes(put))) == {digest: encoded.serialized() for digest, encoded in put.items()}


def test_what_is_there_is_not_sent_again(objects: Objects) -> None:
    objects.put_if_absent(some(1, 2))
    assert objects.put_if_absent(some(1, 2)) == 0
    assert objects.put_if_absent(some(2, 3)) == sum(sizes(some(3)).values())


def test_what_is_there_is_not_overwritten(objects: Objects) -> None:
    one, other = Encoded({"rows": weights(1)}), Encoded({"rows": weights(2)})
    objects.put_if_absent({one.digest: one})
    assert objects.put_if_absent({one.digest: other}) == 0
    [(_, raw)] = objects.get({one.digest: one.bytes})
    assert sha256(raw) == one.digest


def test_what_is_not_there_is_empty(objects: Objects) -> None:
    objects.put_if_absent(some(1))
    [there, gone] = some(1, 2)
    found = dict(objects.get({there: 1 << 20, gone: 1 << 20}))
    assert found == {there: some(1)[there].serialized(), gone: b""}


def test_no_more_is_fetched_than_was_asked_for_and_one_byte(objects: Objects) -> None:
    [(digest, encoded)] = some(1).items()
    objects.put_if_absent({digest: encoded})
    assert list(objects.get({digest: 10})) == [(digest, encoded.serialized()[:11])]


def test_nothing_is_asked_for_nothing(objects: Objects) -> None:
    assert objects.put_if_absent({}) == 0
    assert list(objects.get({})) == []
    objects.delete([])


def test_more_than_one_transfer_takes(objects: Objects) -> None:
    rows = TRANSFER_BYTES // 2
    encoded = [Encoded({"rows": from_numpy(np.full(rows, value, np.uint8))}) for value in range(3)]
    put = {one.digest: one for one in encoded}
    assert objects.put_if_absent(put) > TRANSFER_BYTES
    assert {digest: sha256(raw) for digest, raw in objects.get(sizes(put))} == {digest: digest for digest in put}


def test_what_is_there_is_listed_until_it_is_deleted(objects: Objects) -> None:
    assert list(objects.list()) == []
    objects.put_if_absent(some(1, 2, 3))
    assert sorted(objects.list()) == sorted(some(1, 2, 3))
    objects.delete(some(1, 2, 9))  # one of which was never there
    assert list(objects.list()) == list(some(3))
    objects.put_if_absent(some(1))
    assert sorted(objects.list()) == sorted(some(1, 3))


def test_one_family_sees_nothing_of_another(objects: Objects, redis: Redis, request: pytest.FixtureRequest) -> None:
    other: Objects = request.node.callspec.params["objects"](redis, "another-family")
    objects.put_if_absent(some(1))
    other.delete(some(1))
    assert list(other.list()) == []
    assert list(objects.list()) == list(some(1))


# --- what a commit needs ---


def test_what_a_version_names_is_not_deleted(store: Store, writer: Writer) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    store._objects.delete(list(store._objects.list()))
    np.testing.assert_array_equal(store.arrays(store.manifest(), "serving")["w"].numpy(), weights(1).numpy())


def test_a_commit_between_the_retirement_of_an_object_and_its_deletion_keeps_it(
    store: Store, writer: Writer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model of the family names it, and saw no need to upload it."""
    fence = taken(other := store.sibling(store.family, "other"))
    for value in range(3):
        writer.commit(draft(value, {"w": weights(value)}))
    delete = RedisObjects.delete

    def late(objects: RedisObjects, digests: list[str]) -> None:
        other.writer(fence).commit(draft(0, {"w": weights(0)}))
        delete(objects, digests)

    monkeypatch.setattr(RedisObjects, "delete", late)
    assert store.retire(writer.fence, keep_last=2) == [1]
    np.testing.assert_array_equal(other.arrays(other.manifest(), "serving")["w"].numpy(), weights(0).numpy())
    digest = other.manifest().serving["w"].parts[0].digest
    assert redis.ttl(store._keys.family_key(f"tensor:{digest}")) == -1


def test_a_crash_before_the_deletion_leaves_what_goes_away_by_itself(
    store: Store, writer: Writer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in range(3):
        writer.commit(draft(value, {"w": weights(value)}))
    digest = store.manifest(1).serving["w"].parts[0].digest

    def crash(*_: object) -> None:
        raise StoreUnavailable("The connection broke. Try again.")

    monkeypatch.setattr(RedisObjects, "delete", crash)
    with pytest.raises(StoreUnavailable):
        store.retire(writer.fence, keep_last=2)
    assert 0 < redis.ttl(store._keys.family_key(f"tensor:{digest}")) <= 3600
