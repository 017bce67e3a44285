"""Versions with and without training state, numbers with gaps, and the history of all of them, on a real Redis."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from redis import Redis

from pipeline.errors import Corrupt, HeadMoved, NotFound, StoreUnavailable
from pipeline.records import Partition
from pipeline.store import store as store_module
from pipeline.store.codec import Array, from_numpy
from pipeline.store.rowlog import Delta
from pipeline.store.store import Store
from pipeline.store.writer import Writer
from tests.pipeline.drafts import draft, taken, weights


def commits(writer: Writer, count: int, every: int) -> None:
    """So many versions, the first and then one in `every` a keyframe."""
    for update in range(count):
        keyframe = update % every == 0
        writer.commit(draft(update, {"w": weights(update)}, {"m": weights(-update)}, keyframe=keyframe))


# --- keyframes ---


def test_a_version_without_training_goes_back_to_its_keyframe(store: Store, writer: Writer) -> None:
    made = [
        writer.commit(draft(update, {"w": weights(update)}, {"m": weights(-update)}, keyframe=update in (0, 3)))
        for update in range(5)
    ]
    assert [commit.keyframe for commit in made] == [True, False, False, True, False]
    manifests = [store.manifest(commit.version) for commit in made]
    assert [manifest.is_keyframe for manifest in manifests] == [commit.keyframe for commit in made]
    assert [store.keyframe(manifest).version for manifest in manifests] == [1, 1, 1, 4, 4]
    for manifest, keyframe in zip(manifests, (0, 0, 0, 3, 3), strict=True):
        assert manifest.keyframe == (None if manifest.is_keyframe else manifests[keyframe].ref)
        assert manifest.training.keys() == ({"m"} if manifest.is_keyframe else set())
        arrays = store.arrays(store.keyframe(manifest), "training")
        np.testing.assert_array_equal(arrays["m"].numpy(), weights(-keyframe).numpy())
        arrays = store.arrays(manifest, "serving")
        np.testing.assert_array_equal(arrays["w"].numpy(), weights(manifest.updates - 1).numpy())


def test_the_first_version_is_a_keyframe(store: Store, writer: Writer) -> None:
    with pytest.raises(ValueError, match="first version has no training state"):
        writer.commit(draft(0, {"w": weights(1)}, keyframe=False))
    assert store.head() is None
    assert writer.commit(draft(0, {"w": weights(1)})).keyframe  # a learner without training state has keyframes, too


def test_a_keyframe_moves_what_changed_since_the_one_before_also_after_restarts(store: Store) -> None:
    rng = np.random.default_rng(0)
    fence = taken(store)
    writer = store.writer(fence)
    memory = rng.integers(0, 255, (2000, 200), dtype=np.uint8)
    table = rng.integers(0, 255, (1000, 100), dtype=np.uint8)
    changed_rows, served_rows = np.arange(2000), np.arange(1000)
    kept = memory.copy()
    for update in range(60):
        keyframe = update % 3 == 0
        training: dict[str, Array | Delta] = {"x": Delta(2000, changed_rows, from_numpy(memory[changed_rows]))}
        serving = {"t": Delta(1000, served_rows, from_numpy(table[served_rows]))}
        made = writer.commit(draft(update, serving, training, keyframe=keyframe))
        assert made.bytes_moved <= 1.2 * made.bytes_changed
        if keyframe:
            kept, changed_rows = memory.copy(), np.empty(0, np.int64)
        manifest = store.manifest()
        np.testing.assert_array_equal(store.arrays(manifest, "serving")["t"].numpy(), table)
        np.testing.assert_array_equal(store.arrays(store.keyframe(manifest), "training")["x"].numpy(), kept)
        store.retire(fence, keep_last=1)
        some = np.unique(rng.integers(0, 2000, 100))
        memory[some] = rng.integers(0, 255, (len(some), 200), dtype=np.uint8)
        changed_rows = np.union1d(changed_rows, some)
        served_rows = np.unique(rng.integers(0, 1000, 300))
        table[served_rows] = rng.integers(0, 255, (len(served_rows), 100), dtype=np.uint8)
        if update in (30, 40, 50):  # a keyframe, and each of the two after one
            writer = store.writer(fence)


def test_training_that_stays_the_same_is_not_moved_by_the_next_keyframe(store: Store, writer: Writer) -> None:
    large = from_numpy(np.random.default_rng(0).normal(size=(50_000,)))
    for update, keyframe in enumerate((True, False, False)):
        writer.commit(draft(update, {"w": weights(update)}, {"statistics": large}, keyframe=keyframe))
    made = writer.commit(draft(3, {"w": weights(3)}, {"statistics": large}))
    assert made.bytes_changed < 200
    assert made.bytes_moved < 3000
    assert store.arrays(store.manifest(), "training").keys() == {"statistics"}


def test_a_writer_keeps_its_copy_from_keyframe_to_keyframe(
    store: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._objects, "get", None)
    index = np.arange(4)
    for update in range(5):
        changed = {"m": Delta(4, index, weights(update, rows=len(index)))}
        keyframe = update % 2 == 0
        writer.commit(draft(update, {"w": weights(update)}, changed, keyframe=keyframe))
        index = np.array([update % 4])
    monkeypatch.undo()
    rows = store.arrays(store.manifest(), "training")["m"].numpy()[:, 0]
    np.testing.assert_array_equal(rows, [0, 2, 0, 4])


# --- retention ---


def test_retention_keeps_the_keyframes_of_what_it_keeps(store: Store, redis: Redis, family: str) -> None:
    fence = taken(store)
    commits(store.writer(fence), 12, every=3)  # keyframes: 1, 4, 7, 10
    store.set_alias("stable", 5)
    assert store.retire(fence, keep_last=2, keep_every=9) == [1, 2, 3, 6, 8]
    assert [ref.version for ref in store.versions()] == [4, 5, 7, 9, 10, 11, 12]  # 4 for 5, 7 for 9, 10 for the rest
    for ref in store.versions():
        manifest = store.manifest(ref)
        assert store.arrays(manifest, "serving").keys() == {"w"}
        assert store.arrays(store.keyframe(manifest), "training").keys() == {"m"}
    goes_back: Any = redis.hgetall(store._keys.key("keyframes"))
    numbers = {int(ref.split(b":")[0]): int(keyframe.split(b":")[0]) for ref, keyframe in goes_back.items()}
    assert numbers == {5: 4, 9: 7, 11: 10, 12: 10}
    store.delete_alias("stable")
    assert store.retire(fence, keep_last=1) == [4, 5, 7, 9, 11]
    assert [ref.version for ref in store.versions()] == [10, 12]
    assert len(list(redis.scan_iter(f"headrace:{{{family}}}:tensor:*"))) == 3
    store.writer(fence).commit(draft(12, {"w": weights(12)}))
    assert store.retire(fence, keep_last=1) == [10, 12]
    assert not redis.exists(store._keys.key("keyframes"))


def test_a_keyframe_goes_before_what_goes_back_to_it_in_no_batch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BATCH", 2)
    fence = taken(store)
    commits(store.writer(fence), 9, every=4)  # keyframes: 1, 5, 9
    store.set_alias("stable", 3)
    assert store.retire(fence, keep_last=1) == [2, 4, 5, 6, 7, 8]
    assert [ref.version for ref in store.versions()] == [1, 3, 9]


def test_a_reset_leaves_no_keyframe(store: Store, redis: Redis) -> None:
    fence = taken(store)
    commits(store.writer(fence), 4, every=3)
    store.release(fence)
    store.reset()
    assert not redis.exists(store._keys.key("keyframes"))
    writer = store.writer(taken(store))
    with pytest.raises(ValueError, match="first version has no training state"):
        writer.commit(draft(0, {"w": weights(1)}, keyframe=False))


# --- numbers ---


def test_numbers_go_on_above_the_one_that_was_announced(store: Store) -> None:
    fence = taken(store)
    writer = store.writer(fence, above=4)
    assert [writer.commit(draft(update, {"w": weights(update)})).version for update in range(2)] == [5, 6]
    assert store.writer(fence, above=3).next_version == 7  # one that was used counts more
    assert store.writer(fence, above=9).commit(draft(2, {"w": weights(2)})).version == 10
    assert store.writer(fence).next_version == 11
    refs = store.versions()
    assert [ref.version for ref in refs] == [5, 6, 10]
    assert [store.manifest(ref).parent for ref in refs] == [None, *refs[:-1]]
    assert store.retire(fence, keep_last=1) == [5, 6]


def test_the_next_number_is_that_of_the_draft_that_waits(
    store: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writer.next_version == 1
    waiting = draft(0, {"w": weights(1)})
    run = store._keys.run

    def cut(script: str, *args: Any) -> Any:
        run(script, *args)
        raise StoreUnavailable("The connection broke before the answer came. Try again.")

    with monkeypatch.context() as patch:
        patch.setattr(store._keys, "run", cut)
        with pytest.raises(StoreUnavailable):
            writer.commit(waiting)
    assert writer.next_version == 1
    assert writer.commit(waiting).version == 1
    assert writer.next_version == 2


def test_a_number_that_was_used_is_refused(store: Store, writer: Writer, redis: Redis) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    redis.set(store._keys.key("counter"), 2)  # as if by hand
    with pytest.raises(HeadMoved):
        writer.commit(draft(1, {"w": weights(2)}))
    assert [ref.version for ref in store.versions()] == [1]


# --- the history ---


@pytest.mark.parametrize("gap", [1, 3, 10_000])
def test_histories_are_a_chain_in_order_also_of_what_was_retired(
    store: Store, monkeypatch: pytest.MonkeyPatch, gap: int
) -> None:
    monkeypatch.setattr(store_module, "HISTORY_BATCH", 4)
    fence = taken(store)
    for start in (0, 5):
        writer = store.writer(fence, above=2 + start * gap)
        for update in range(start, start + 5):
            writer.commit(draft(update, {"w": weights(update)}, keyframe=update % 2 == 0))
    store.retire(fence, keep_last=2)
    numbers = [*range(3, 8), *range(max(2 + 5 * gap, 7) + 1, max(2 + 5 * gap, 7) + 6)]
    entries = list(store.histories())
    assert [entry.version for entry in entries] == numbers
    assert [entry.updates for entry in entries] == list(range(1, 11))
    assert entries[0].parent is None
    for parent, entry in itertools.pairwise(entries):
        assert entry.parent is not None
        assert entry.parent.version == parent.version
    named = {entry.parent.version: entry.parent for entry in entries if entry.parent}
    assert all(named.get(ref.version, ref) == ref for ref in store.versions())
    learned = [list(entry.lineage.learned()) for entry in entries]
    assert learned == [[[(Partition("digits", 0), update)]] for update in range(10)]
    for above in (0, 2, 5, numbers[5], numbers[-1], numbers[-1] + 100):
        assert [entry.version for entry in store.histories(above)] == [n for n in numbers if n > above]
    assert store.history(numbers[-1]) == entries[-1]
    with pytest.raises(NotFound):
        store.history(2)


def test_there_is_no_history_before_the_first_version_and_after_a_reset(store: Store) -> None:
    assert list(store.histories()) == []
    fence = taken(store)
    commits(store.writer(fence), 3, every=2)
    store.release(fence)
    store.reset()
    assert list(store.histories()) == []
    store.writer(taken(store)).commit(draft(0, {"w": weights(1)}))
    [entry] = store.histories()
    assert (entry.version, entry.parent) == (4, None)


def test_a_history_that_was_changed_is_found_as_long_as_its_manifest_is_kept(store: Store, redis: Redis) -> None:
    fence = taken(store)
    commits(store.writer(fence), 3, every=1)
    raw: Any = redis.hget(store._keys.key("lineage"), "2")
    redis.hset(store._keys.key("lineage"), "2", raw.replace(b'"updates":2', b'"updates":9'))
    for read in (lambda: store.history(2), lambda: list(store.histories())):
        with pytest.raises(Corrupt, match=r"history of version 2 of digits has other bytes.* Restore"):
            read()
    assert [entry.version for entry in store.histories(above=2)] == [3]
    redis.hset(store._keys.key("lineage"), "2", b"{")
    store.retire(fence, keep_last=1)
    with pytest.raises(Corrupt, match="history of version 2 of digits is damaged"):
        store.history(2)
