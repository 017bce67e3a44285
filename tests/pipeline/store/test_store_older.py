"""Redis came back older than it was: no number ever comes to name other content, and nobody goes on unaware."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from redis import Redis

from pipeline.errors import Fenced, HeadMoved, NotFound, StoreUnavailable
from pipeline.store.codec import from_numpy
from pipeline.store.rowlog import Delta
from pipeline.store.store import Store
from pipeline.store.writer import Writer
from tests.pipeline.drafts import backup, draft, restore, taken, weights


def test_a_live_worker_hears_it_and_numbers_go_on_above_the_announced_one(
    store: Store, redis: Redis, family: str
) -> None:
    fence = taken(store)
    writer = store.writer(fence)
    made = [writer.commit(draft(0, {"w": weights(1)})), writer.commit(draft(1, {"w": weights(2)}))]
    older = backup(redis, family)
    made.append(writer.commit(draft(2, {"w": weights(3)}, keyframe=False)))
    vanished = store.manifest()
    store.set_alias("stable", 3)
    restore(redis, family, older)

    noted = writer.next_version
    with pytest.raises(HeadMoved) as raised:
        writer.commit(draft(3, {"w": weights(4)}))
    for part in (f"2:{made[1].digest}", f"3:{made[2].digest}", "digits", "Redis came back older", "starts again"):
        assert part in str(raised.value)
    assert [ref.version for ref in store.versions()] == [1, 2]

    assert store.writer(fence, above=noted).commit(draft(2, {"w": weights(5)})).version == 5
    refs = store.versions()
    assert [ref.version for ref in refs] == [1, 2, 5]
    assert store.manifest().parent == refs[1]
    assert [entry.version for entry in store.histories()] == [1, 2, 5]
    assert store.aliases() == {}
    is_gone(store, vanished)
    for name in ("3", made[2].digest, "stable"):
        with pytest.raises(NotFound):
            store.resolve(name)


def test_without_the_announced_number_a_version_that_vanished_is_not_taken_for_another(
    store: Store, redis: Redis, family: str
) -> None:
    fence = taken(store)
    store.writer(fence).commit(draft(0, {"w": weights(1)}))
    older = backup(redis, family)
    store.writer(fence).commit(draft(1, {"w": weights(2)}))
    vanished = store.manifest()
    restore(redis, family, older)
    again = store.writer(fence).commit(draft(1, {"w": weights(3)}))
    assert (again.version, again.digest == vanished.digest) == (2, False)
    is_gone(store, vanished)


def is_gone(store: Store, vanished: Any) -> None:
    """For a sampler that knows this very version."""
    with pytest.raises(NotFound, match="not kept any more"):
        store.manifest(vanished.ref)
    with pytest.raises(NotFound, match="not kept any more"):
        store.arrays(vanished, "serving")
    with pytest.raises(NotFound, match="not kept any more"):
        store.set_alias("stable", vanished.ref)


def test_a_head_that_vanished_before_its_tensors_were_fetched(store: Store, redis: Redis, family: str) -> None:
    fence = taken(store)
    writer = store.writer(fence)
    table = weights(1)
    writer.commit(draft(0, {"w": weights(1)}, {"table": Delta(4, np.arange(4), table)}))
    older = backup(redis, family)
    writer.commit(draft(1, {"w": weights(2)}, {"table": Delta(4, np.arange(4), weights(7))}))
    writer = store.writer(fence)
    restore(redis, family, older)
    with pytest.raises(HeadMoved, match="Redis came back older"):
        writer.commit(draft(2, {"w": weights(3)}, {"table": Delta(4, np.array([2]), weights(2, rows=1))}))


def test_a_commit_that_got_lost_with_its_answer_is_made_again(
    store: Store, writer: Writer, redis: Redis, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = from_numpy(np.arange(40, dtype=np.float32).reshape(20, 2))
    writer.commit(draft(0, {"w": weights(1)}, {"x": Delta(20, np.arange(20), memory)}))
    older = backup(redis, family)
    lost = draft(1, {"w": weights(2)}, {"x": Delta(20, np.array([3]), from_numpy(np.zeros((1, 2), np.float32)))})
    run = store._keys.run

    def cut(script: str, *args: Any) -> Any:
        run(script, *args)
        raise StoreUnavailable("The connection broke before the answer came. Try again.")

    with monkeypatch.context() as patch:
        patch.setattr(store._keys, "run", cut)
        with pytest.raises(StoreUnavailable):
            writer.commit(lost)
    vanished = store.head()
    restore(redis, family, older)
    made = writer.commit(lost)
    assert store.head() == vanished
    assert made.version == 2
    assert store.arrays(store.manifest(), "training")["x"].numpy()[3].sum() == 0


def test_redis_from_before_the_worker_took_its_lease(store: Store, redis: Redis, family: str) -> None:
    first = taken(store, "first")
    store.writer(first).commit(draft(0, {"w": weights(1)}))
    store.release(first)
    older = backup(redis, family)
    second = taken(store, "second")
    writer = store.writer(second)
    restore(redis, family, older)
    for call in (
        lambda: writer.commit(draft(1, {"w": weights(2)})),
        lambda: store.renew(second, 60),
        lambda: store.retire(second, keep_last=1),
    ):
        with pytest.raises(HeadMoved, match=r"knows of 1 workers of digits so far, but this one is number 2.*older"):
            call()
    assert store.writer(taken(store, "second")).commit(draft(1, {"w": weights(2)})).version == 2


def test_redis_that_lost_everything(store: Store, writer: Writer, redis: Redis, family: str) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    restore(redis, family, {})
    with pytest.raises(HeadMoved, match=r"knows of 0 workers of digits so far.* or empty"):
        writer.commit(draft(1, {"w": weights(2)}))
    made = store.writer(taken(store), above=2).commit(draft(0, {"w": weights(3)}))
    assert made.version == 3
    assert store.manifest().parent is None


def test_a_model_that_was_deleted_does_not_start_anew(store: Store, writer: Writer, redis: Redis) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    redis.delete(store._keys.key("lease"))  # the worker slept for longer than that
    store.delete()
    with pytest.raises(Fenced, match=r"digits is not held .* or deleted\. Start the worker again"):
        writer.commit(draft(1, {"w": weights(2)}))


def test_a_head_that_was_changed_by_hand(store: Store, redis: Redis) -> None:
    fence = taken(store)
    writer = store.writer(fence)
    first = writer.commit(draft(0, {"w": weights(1)}))
    writer.commit(draft(1, {"w": weights(2)}))
    stale = [store.writer(fence), store.writer(fence)]
    for writer, head, now in zip(stale, (f"1:{first.digest}", ""), (f"1:{first.digest}", "gone"), strict=True):
        redis.set(store._keys.key("head"), head)
        with pytest.raises(HeadMoved, match=f"The head of digits is {now}, .* or was changed by hand"):
            writer.commit(draft(2, {"w": weights(3)}))
