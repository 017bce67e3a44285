"""The store on a real Redis: commits, fences, readers, retention, and what happens when things break."""

from __future__ import annotations

import itertools
import math
import re
import runpy
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from redis import Redis

from pipeline.errors import ConfigError, Fenced, NotFound, StoreError, StoreUnavailable
from pipeline.records import Partition, Place
from pipeline.store.codec import Array, from_numpy
from pipeline.store.lineage import Runs
from pipeline.store.manifest import About, Learned, Manifest
from pipeline.store.redis import connect, models
from pipeline.store.rowlog import Delta
from pipeline.store.store import Store
from pipeline.store.writer import Writer
from tests.pipeline.drafts import draft, taken, taken_over, weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORMATS = Path(__file__).resolve().parents[3] / "docs" / "formats.md"


# --- commits ---


def test_a_commit_reads_back(store: Store, writer: Writer) -> None:
    made = writer.commit(draft(0, {"w": weights(1)}, {"m": weights(2)}, worker={"topics": {"digits": 0}}))
    head = store.head()
    assert head is not None
    assert (head.version, head.digest) == (made.version, made.digest) == (1, made.digest)
    manifest = store.manifest()
    assert manifest.digest == made.digest
    assert manifest.parent is None
    assert manifest.created_ms == 1_700_000_000_500
    assert manifest.positions() == {Partition("digits", 0): 1}
    assert manifest.worker == {"topics": {"digits": 0}}
    np.testing.assert_array_equal(store.arrays(manifest, "serving")["w"].numpy(), weights(1).numpy())
    np.testing.assert_array_equal(store.arrays(manifest, "training")["m"].numpy(), weights(2).numpy())
    assert list(store.history(1).lineage.learned()) == [[(Partition("digits", 0), 0)]]
    assert store.history(1).counts == {"learned": 1}


def test_a_manifest_says_all_that_its_draft_says(store: Store, writer: Writer) -> None:
    partition = Partition("digits", 0)
    made = draft(
        0,
        {"w": weights(1)},
        options={"width": 8},
        topic_ids={"digits": "id"},
        pending=Runs.of([Place(partition, 7)]),
        metrics={"loss": 0.5, "accuracy": math.nan},
        meta={"learner": 1},
        worker={"topics": {"digits": 0}},
        probes={"a": {"now": 0.5, "best": 0.75, "first": 0.25, "records": 8}},
        diagnoses={"lr": "lower it"},
        last=(Learned(record="digits:0:1", label="a", predicted="b"),),
    )
    writer.commit(made)
    manifest = store.manifest()
    assert {name: getattr(manifest, name) for name in About.model_fields} == dict(made.about)
    assert all(value or name == "seed" for name, value in made.about)  # so that a field that is lost is seen
    assert manifest.metrics == {"loss": 0.5, "accuracy": None}


def test_the_page_names_every_field_of_a_manifest() -> None:
    section = FORMATS.read_text("utf-8").split("## Manifest\n")[1].split("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?`) \|", section, re.M) for name in re.findall("`(.*?)`", row)}
    assert named == set(Manifest.model_fields)


def test_versions_are_a_chain_of_digests(store: Store, writer: Writer) -> None:
    for update in range(3):
        writer.commit(draft(update, {"w": weights(update)}))
    refs = store.versions()
    assert [ref.version for ref in refs] == [1, 2, 3]
    for parent, ref in itertools.pairwise(refs):
        assert store.manifest(ref).parent == store.history(ref.version).parent == parent


def test_what_did_not_change_is_not_moved(store: Store, writer: Writer) -> None:
    large = from_numpy(np.random.default_rng(0).normal(size=(50_000,)))
    first = writer.commit(draft(0, {"frozen": large, "w": weights(1)}))
    second = writer.commit(draft(1, {"frozen": large, "w": weights(2)}))
    assert first.bytes_moved > first.bytes_changed > large.data.nbytes
    assert second.bytes_changed < 200
    assert second.bytes_moved < 3000


def test_a_replay_memory_moves_what_changed_also_after_a_restart(store: Store) -> None:
    rng = np.random.default_rng(0)
    fence = taken(store)
    writer = store.writer(fence)
    memory = rng.integers(0, 255, (2000, 200), dtype=np.uint8)
    origins = rng.integers(0, 99, (2000, 3))
    index = np.arange(2000)
    for update in range(60):
        training: dict[str, Array | Delta] = {
            "x": Delta(2000, index, from_numpy(memory[index])),
            "origins": Delta(2000, index, from_numpy(origins[index])),
            "adam": from_numpy(rng.normal(size=20_000)),
        }
        made = writer.commit(draft(update, {"w": weights(update)}, training))
        assert made.bytes_moved <= 1.2 * made.bytes_changed
        arrays = store.arrays(store.manifest(), "training")
        np.testing.assert_array_equal(arrays["x"].numpy(), memory)
        np.testing.assert_array_equal(arrays["origins"].numpy(), origins)
        store.retire(fence, keep_last=2)
        index = np.unique(rng.integers(0, 2000, 200))
        memory[index] = rng.integers(0, 255, (len(index), 200), dtype=np.uint8)
        origins[index] = update
        if update == 30:
            writer = store.writer(fence)


def test_a_delta_without_its_tensor_is_refused(writer: Writer) -> None:
    delta = Delta(4, np.array([1]), from_numpy(np.zeros((1, 3), np.float32)))
    with pytest.raises(ValueError, match="Send it whole first"):
        writer.commit(draft(0, {"w": delta}))


def test_uncommitted_objects_have_an_end_and_committed_ones_have_none(
    store: Store, writer: Writer, redis: Redis, family: str
) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    other = store.writer(taken_over(store))
    with pytest.raises(Fenced):
        writer.commit(draft(1, {"w": weights(2)}))
    ends = {key: redis.ttl(key) for key in redis.scan_iter(f"headrace:{{{family}}}:tensor:*")}
    assert sorted(end > 0 for end in ends.values()) == [False, True]
    other.commit(draft(1, {"w": weights(2)}))
    assert all(redis.ttl(key) == -1 for key in ends)


def test_a_writer_whose_parent_was_reset_away_is_fenced(store: Store, redis: Redis) -> None:
    table = weights(1)
    fence = taken(store)
    store.writer(fence).commit(draft(0, {"table": Delta(4, np.arange(4), table)}))
    stale = store.writer(fence)  # goes on from the head, and has yet to fetch the parent's table
    redis.delete(store._keys.key("lease"))  # it ran out
    store.reset()
    with pytest.raises(Fenced, match="reset"):
        stale.commit(draft(1, {"table": Delta(4, np.array([2]), weights(2, rows=1))}))


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    store: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store._keys.run

    def cut(script: str, *args: Any) -> Any:
        run(script, *args)
        raise StoreUnavailable("The connection broke before the answer came. Try again.")

    once = draft(0, {"w": weights(1)})
    with monkeypatch.context() as patch:
        patch.setattr(store._keys, "run", cut)
        with pytest.raises(StoreUnavailable):
            writer.commit(once)
    with pytest.raises(ValueError, match="version 1 has to be committed first"):
        writer.commit(draft(1, {"w": weights(2)}))
    made = writer.commit(once)
    assert [str(ref) for ref in store.versions()] == [f"1:{made.digest}"]
    assert writer.commit(draft(1, {"w": weights(2)})).version == 2


def test_objects_that_went_away_after_the_upload_are_uploaded_again(
    store: Store, writer: Writer, redis: Redis, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = store._objects.put_if_absent

    def expire(objects: Any) -> int:
        sent = put(objects)
        monkeypatch.setattr(store._objects, "put_if_absent", put)
        redis.delete(*redis.scan_iter(f"headrace:{{{family}}}:tensor:*"))
        return sent

    monkeypatch.setattr(store._objects, "put_if_absent", expire)
    made = writer.commit(draft(0, {"w": weights(1)}))
    assert store.arrays(store.manifest(made.version), "serving").keys() == {"w"}


# --- the fence ---


def test_one_worker_at_a_time(store: Store) -> None:
    first = taken(store, "first")
    assert store.acquire("second", 60) is None
    assert store.holder() == "first"
    store.release(first)
    assert store.holder() is None
    second = taken(store, "second")
    assert second.counter == first.counter + 1
    with pytest.raises(Fenced, match="second"):
        store.renew(first, 60)
    with pytest.raises(Fenced):
        store.retire(first, keep_last=1)
    with pytest.raises(Fenced):
        store.writer(first).commit(draft(0, {"w": weights(1)}))
    store.release(first)  # not its own any more: nothing happens
    assert store.holder() == "second"
    assert store.head() is None


def test_a_lease_ends_by_itself_and_can_be_prolonged_until_another_comes(store: Store, redis: Redis) -> None:
    fence = taken(store)
    assert 0 < redis.pttl(store._keys.key("lease")) <= 60_000
    redis.delete(store._keys.key("lease"))  # as if it ran out
    store.renew(fence, 30)
    assert 0 < redis.pttl(store._keys.key("lease")) <= 30_000
    assert store.acquire("other", 60) is None


# --- reading ---


def test_names_of_versions(store: Store, writer: Writer) -> None:
    made = [writer.commit(draft(update, {"w": weights(update)})) for update in range(3)]
    store.set_alias("stable", 2)
    names = {"latest": 3, "stable": 2, "1": 1, made[1].digest: 2, made[1].digest[:8]: 2}
    assert {name: store.resolve(name).version for name in names} == names
    assert store.manifest("stable").digest == made[1].digest
    for name in ("4", "0", "nobody", made[0].digest[:7], "deadbeef", "٣", "9" * 30):
        with pytest.raises(NotFound, match="no version"):
            store.resolve(name)
    store.delete_alias("stable")
    with pytest.raises(NotFound):
        store.delete_alias("stable")


@pytest.mark.parametrize("name", ["latest", "17", "Stable", "a b", "", "a:b", "-a"])
def test_names_that_no_alias_can_have(store: Store, writer: Writer, name: str) -> None:
    writer.commit(draft(0, {"w": weights(1)}))
    with pytest.raises(ConfigError, match="cannot be an alias"):
        store.set_alias(name, 1)


def test_a_model_without_versions(store: Store) -> None:
    assert store.head() is None
    assert store.versions() == []
    with pytest.raises(NotFound):
        store.manifest()
    with pytest.raises(NotFound):
        store.history(1)
    with pytest.raises(NotFound):
        store.set_alias("stable", 1)


def test_a_cache_fetches_only_what_changed(store: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    cache: dict[str, bytes] = {}
    writer.commit(draft(0, {"a": weights(1), "b": weights(2)}))
    store.arrays(store.manifest(), "serving", cache)
    assert len(cache) == 2
    writer.commit(draft(1, {"a": weights(1), "b": weights(3)}))
    manifest = store.manifest()
    fetched: list[str] = []
    get = store._objects.get

    def counted(sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        fetched.extend(sizes)
        return get(sizes)

    monkeypatch.setattr(store._objects, "get", counted)
    arrays = store.arrays(manifest, "serving", cache)
    assert fetched == [manifest.serving["b"].parts[0].digest]
    assert set(cache) == {entry.parts[0].digest for entry in manifest.serving.values()}
    np.testing.assert_array_equal(arrays["b"].numpy(), weights(3).numpy())


def test_what_happened_is_announced_in_order(store: Store, writer: Writer) -> None:
    first = writer.commit(draft(0, {"w": weights(1)}))
    store.set_alias("stable", 1)
    writer.commit(draft(1, {"w": weights(2)}))
    events = store.events("0")
    assert [(event.kind, event.version, event.alias) for event in events] == [
        ("commit", 1, None),
        ("alias", 1, "stable"),
        ("commit", 2, None),
    ]
    assert events[0].digest == first.digest
    assert {event.model for event in events} == {"digits"}
    assert store.events(events[1].id) == events[2:]
    assert store.events(events[2].id, block_ms=1) == []


def test_strangers_read_the_newest_weights(
    store: Store, writer: Writer, redis_url: str, family: str, tmp_path: Path
) -> None:
    table = np.arange(400, dtype=np.float32).reshape(200, 2)
    writer.commit(draft(0, {"w": weights(1), "t": Delta(200, np.arange(200), from_numpy(table))}))
    table[[3, 7]] = 0.5
    changed = Delta(200, np.array([3, 7]), from_numpy(table[[3, 7]]))
    writer.commit(draft(1, {"w": weights(2), "t": changed}))
    program = FORMATS.read_text("utf-8").split("```python\n")[1].split("```")[0]
    program = program.replace("redis://127.0.0.1:6379/0", redis_url).replace('"digits"', f'"{family}"', 1)
    (tmp_path / "pull.py").write_text(program)
    tensors = runpy.run_path(str(tmp_path / "pull.py"))["tensors"]
    np.testing.assert_array_equal(tensors["w"], weights(2).numpy())
    np.testing.assert_array_equal(tensors["t"], table)


# --- retention, reset, delete ---


def test_retention_keeps_what_it_must(store: Store, redis: Redis, family: str) -> None:
    fence = taken(store)
    writer = store.writer(fence)
    frozen = weights(-1)
    for update in range(12):
        writer.commit(draft(update, {"w": weights(update), "frozen": frozen}))
    store.set_alias("stable", 2)
    assert store.retire(fence, keep_last=3, keep_every=5) == [1, 3, 4, 6, 7, 8, 9]
    assert [ref.version for ref in store.versions()] == [2, 5, 10, 11, 12]
    for ref in store.versions():
        assert store.arrays(store.manifest(ref), "serving").keys() == {"w", "frozen"}
    assert len(list(redis.scan_iter(f"headrace:{{{family}}}:tensor:*"))) == 6
    with pytest.raises(NotFound):
        store.manifest(3)
    assert store.history(3).lineage == draft(2, {}).lineage  # outlives the version
    store.delete_alias("stable")
    assert store.retire(fence, keep_last=1) == [2, 5, 10, 11]


def test_retention_goes_on_beyond_one_batch(store: Store) -> None:
    fence = taken(store)
    writer = store.writer(fence)
    for update in range(140):
        writer.commit(draft(update, {"w": weights(update)}))
    assert store.retire(fence, keep_last=2) == list(range(1, 139))


def test_a_version_that_goes_while_it_is_read_is_not_found(store: Store) -> None:
    fence = taken(store)
    writer = store.writer(fence)
    writer.commit(draft(0, {"w": weights(1)}))
    old = store.manifest()
    writer.commit(draft(1, {"w": weights(2)}))
    store.retire(fence, keep_last=1)
    with pytest.raises(NotFound, match="not kept any more"):
        store.arrays(old, "serving")
    with pytest.raises(NotFound, match="not kept any more"):
        store.manifest(old.ref)
    with pytest.raises(NotFound, match="not kept any more"):
        store.set_alias("stable", old.ref)


def test_numbers_are_never_used_again_after_a_reset(store: Store, redis: Redis) -> None:
    fence = taken(store)
    writer = store.writer(fence)
    for update in range(70):
        writer.commit(draft(update, {"w": weights(update)}))
    with pytest.raises(StoreError, match="test holds digits"):
        store.reset()
    store.release(fence)
    store.reset()
    assert (store.head(), store.versions(), store.aliases()) == (None, [], {})
    with pytest.raises(NotFound):
        store.history(1)
    made = store.writer(taken(store)).commit(draft(0, {"w": weights(1)}))
    assert made.version == 71
    assert store.manifest().parent is None
    assert (store.family, "digits") in models(redis)


def test_a_deleted_model_leaves_nothing_but_what_relatives_use(redis: Redis, family: str) -> None:
    stores = {name: Store(redis, family, name) for name in ("parent", "child")}
    for name, store in stores.items():
        fence = taken(store)
        store.writer(fence).commit(draft(0, {"shared": weights(1), name: weights(2 if name == "child" else 3)}))
        store.set_alias("stable", 1)
        store.release(fence)
    stores["parent"].delete()
    assert list(redis.scan_iter(f"headrace:{{{family}}}:model:parent:*")) == []
    assert [name for found, name in models(redis) if found == family] == ["child"]
    assert stores["child"].arrays(stores["child"].manifest(), "serving").keys() == {"shared", "child"}
    assert len(list(redis.scan_iter(f"headrace:{{{family}}}:tensor:*"))) == 2
    stores["child"].delete()
    assert list(redis.scan_iter(f"headrace:{{{family}}}:*")) == [f"headrace:{{{family}}}:events".encode()]


def test_two_workers_that_take_turns_never_fork_the_history(redis_url: str, family: str) -> None:
    """Each commits as long as it may, also while the other takes its place: a hundred times."""
    done: list[tuple[int, str]] = []
    hands: list[str] = []
    ended: list[str] = []  # one that fails ends the other

    def work(owner: str) -> None:
        with connect(redis_url) as client, ExitStack() as at_end:
            at_end.callback(ended.append, owner)
            store = Store(client, family, "digits")
            while not ended and sum(before != after for before, after in itertools.pairwise(hands)) < 100:
                client.delete(store._keys.key("lease"))  # as if the other's had run out
                fence = store.acquire(owner, 60)
                if fence is None:
                    continue
                hands.append(owner)
                writer = store.writer(fence)
                try:
                    for keyframe in (True, False, False):
                        start = len(done)
                        made = writer.commit(draft(start, {"w": weights(start)}, seed=len(owner), keyframe=keyframe))
                        done.append((made.version, made.digest))
                except Fenced:
                    continue

    threads = [threading.Thread(target=work, args=(owner,)) for owner in ("a", "bb")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with connect(redis_url) as client:
        versions = Store(client, family, "digits").versions()
        assert [(ref.version, ref.digest) for ref in versions] == sorted(done)
        assert [ref.version for ref in versions] == list(range(1, len(done) + 1))
        parents = [Store(client, family, "digits").manifest(ref).parent for ref in versions]
        assert parents == [None, *versions[:-1]]
