"""Any interleaving of writers, hand-overs, crashes, aliases, retention and backups leaves the store whole."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from pipeline.errors import Fenced, HeadMoved, NotFound, StoreUnavailable
from pipeline.store.codec import Encoded, from_numpy
from pipeline.store.manifest import Ref
from pipeline.store.rowlog import Delta
from pipeline.store.store import Store
from tests.pipeline.drafts import backup, draft, restore
from tests.services import unique

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis import Redis

    from pipeline.store.redis import Fence
    from pipeline.store.writer import Committed, Draft, Writer
    from tests.pipeline.drafts import Backup

ROWS = 12
MODELS = ("mother", "daughter")  # of one family
OWNERS = ("first", "second", "third")

Table = NDArray[np.int32]

models = st.sampled_from(MODELS)
owners = st.sampled_from(OWNERS)
aliases = st.sampled_from(["stable", "best"])
changes = st.dictionaries(st.integers(0, ROWS - 1), st.integers(0, 3), max_size=5)
values = st.integers(0, 4)  # few, so that versions and models share objects
keyframes = st.sampled_from([True, False, False])  # whether a version holds training state


@dataclass
class Worker:
    """One process that writes a model, or thinks that it does."""

    fence: Fence
    writer: Writer
    table: Table
    unkept: set[int]  # rows that changed since the keyframe
    first: bool  # whether there is nothing to go on from: all rows have to be sent


@dataclass
class Made:
    """What a version must hold."""

    value: int  # of "w"
    table: Table  # of "s", which serves
    kept: Table  # of "t", which only going on learning needs, at the keyframe
    keyframe: int  # the number of the version that holds it


@dataclass
class Expected:
    """What a model must look like."""

    versions: dict[int, Made] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    history: list[int] = field(default_factory=list)  # numbers, also of versions that are not kept

    @property
    def head(self) -> Made:
        return self.versions[max(self.versions)]


class Stores(RuleBasedStateMachine):
    """The machine; `redis` is set by the test."""

    redis: Redis

    @initialize()
    def begin(self) -> None:
        self.family = unique("family")
        self.stores = {model: Store(self.redis, self.family, model) for model in MODELS}
        self.expected = {model: Expected() for model in MODELS}
        self.workers: dict[tuple[str, str], Worker] = {}
        self.holders: dict[str, str] = {}  # model → who may write
        self.noted = dict.fromkeys(MODELS, 0)  # in Kafka: the number of the newest try to commit
        self.digests: dict[tuple[str, int], str] = {}  # of all versions that ever were
        self.older: tuple[Backup, dict[str, Expected]] | None = None

    def teardown(self) -> None:
        for key in self.redis.scan_iter(f"headrace:{{{self.family}}}:*", count=1000):
            self.redis.delete(key)

    # --- what happens ---

    @rule(model=models, owner=owners)
    def take_over(self, model: str, owner: str) -> None:
        """The lease of whoever holds the model ran out, and another took it and goes on from the head."""
        store, versions = self.stores[model], self.expected[model].versions
        self.redis.delete(f"headrace:{{{self.family}}}:model:{model}:lease")
        fence = store.acquire(owner, 60)
        assert fence is not None
        # What was not in the head is learned again, from the keyframe on.
        table = self.expected[model].head.table if versions else np.zeros((ROWS, 2), np.int32)
        kept = self.expected[model].head.kept if versions else table
        unkept = set(np.flatnonzero((table != kept).any(axis=1)).tolist())
        writer = store.writer(fence, above=self.noted[model])
        self.workers[model, owner] = Worker(fence, writer, table.copy(), unkept, not versions)
        self.holders[model] = owner

    @rule(
        model=models, value=values, changed=changes, keyframe=keyframes, answered=st.sampled_from([True, True, False])
    )
    def commit(self, model: str, value: int, changed: dict[int, int], keyframe: bool, answered: bool) -> None:
        """By whoever may; the answer may be lost, and the commit tried again."""
        worker = self.holder(model)
        made = self.draft(model, worker, value, changed, keyframe)
        if not answered:
            self.fails(worker, made, before=False)
        self.committed(model, worker, made, value)

    @rule(model=models, value=values, changed=changes, keyframe=keyframes, before=st.booleans())
    def crash(self, model: str, value: int, changed: dict[int, int], keyframe: bool, before: bool) -> None:
        """Between the upload and the move of the head, or right after it: another has to go on from the head."""
        worker = self.holder(model)
        made = self.draft(model, worker, value, changed, keyframe)
        self.fails(worker, made, before=before)
        if not before:
            self.committed(model, worker, made, value)  # asks what became of it: it was made once
        del self.workers[model, self.holders.pop(model)]

    @rule(model=models, value=values, changed=changes, keyframe=keyframes, gone=st.sampled_from(["expired", "retired"]))
    def commit_what_went_away(self, model: str, value: int, changed: dict[int, int], keyframe: bool, gone: str) -> None:
        """What was uploaded, or was there already and not sent, goes away before the commit."""
        worker = self.holder(model)
        made = self.draft(model, worker, value, changed, keyframe)
        self.fails(worker, made, before=True)
        stored = worker.writer.objects
        put = stored.put_if_absent

        def lose(objects: Mapping[str, Encoded]) -> int:
            sent = put(objects)
            stored.put_if_absent = put  # type: ignore[method-assign]
            if gone == "expired":
                self.an_hour_passes()
            else:
                self.retire(other, 1, None)
            return sent

        other = MODELS[1 - MODELS.index(model)]
        self.holder(other)
        stored.put_if_absent = lose  # type: ignore[method-assign]
        self.committed(model, worker, made, value)

    @rule(model=models, owner=owners, value=values, changed=changes)
    def commit_of_one_who_lost_its_lease(self, model: str, owner: str, value: int, changed: dict[int, int]) -> None:
        worker = self.workers.get((model, owner))
        if worker is None or self.holders.get(model) == owner:
            return
        with pytest.raises((Fenced, HeadMoved)):  # the second one after a delete, which counts workers anew
            worker.writer.commit(self.draft(model, worker, value, changed, True))
        del self.workers[model, owner]

    @rule(model=models, keep_last=st.integers(1, 3), keep_every=st.sampled_from([None, None, 3]))
    def retire(self, model: str, keep_last: int, keep_every: int | None) -> None:
        worker, expected = self.holder(model), self.expected[model]
        newest = sorted(expected.versions)[-keep_last:]
        kept = {
            version
            for version in expected.versions
            if version in newest
            or version in expected.aliases.values()
            or (keep_every is not None and version % keep_every == 0)
        }
        kept |= {expected.versions[version].keyframe for version in kept}
        retired = self.stores[model].retire(worker.fence, keep_last, keep_every)
        assert retired == sorted(expected.versions.keys() - kept)
        expected.versions = {version: expected.versions[version] for version in kept}

    @rule(model=models, name=aliases, back=st.integers(0, 4))
    def set_alias(self, model: str, name: str, back: int) -> None:
        """To one of the newest versions, or to one that is not there any more, or never was."""
        expected = self.expected[model]
        version = self.noted[model] - back
        if version in expected.versions:
            self.stores[model].set_alias(name, version)
            expected.aliases[name] = version
        else:
            with pytest.raises(NotFound):
                self.stores[model].set_alias(name, version)

    @rule(model=models, name=aliases)
    def delete_alias(self, model: str, name: str) -> None:
        if self.expected[model].aliases.pop(name, None) is not None:
            self.stores[model].delete_alias(name)
        else:
            with pytest.raises(NotFound):
                self.stores[model].delete_alias(name)

    @rule()
    def an_hour_passes(self) -> None:
        """What was uploaded and never committed goes away."""
        for key in self.redis.scan_iter(f"headrace:{{{self.family}}}:tensor:*", count=1000):
            if self.redis.ttl(key) != -1:
                self.redis.delete(key)

    @rule(model=models, kind=st.sampled_from(["reset", "delete"]))
    def start_anew(self, model: str, kind: str) -> None:
        self.redis.delete(f"headrace:{{{self.family}}}:model:{model}:lease")
        getattr(self.stores[model], kind)()
        self.expected[model] = Expected()
        self.holders.pop(model, None)

    @rule()
    def back_up(self) -> None:
        self.older = (backup(self.redis, self.family), deepcopy(self.expected))

    @precondition(lambda self: self.older is not None)
    @rule(value=values)
    def come_back_older(self, value: int) -> None:
        """Redis; whoever holds a model is told, and another goes on from what is there."""
        assert self.older is not None
        restore(self.redis, self.family, self.older[0])
        self.expected = deepcopy(self.older[1])
        for model, owner in self.holders.items():
            worker = self.workers[model, owner]
            parent = worker.writer.parent
            if (parent.ref if parent else None) != self.stores[model].head():
                with pytest.raises((HeadMoved, Fenced)):
                    worker.writer.commit(self.draft(model, worker, value, {}, True))
        self.workers, self.holders = {}, {}
        for store in self.stores.values():
            self.redis.delete(store._keys.key("lease"))

    # --- what must hold ---

    @invariant()
    def every_version_is_readable_with_its_digests(self) -> None:
        for model, expected in self.expected.items():
            store = self.stores[model]
            refs = {ref.version: ref for ref in store.versions()}
            assert refs.keys() == expected.versions.keys()
            assert store.head() == (refs[max(refs)] if refs else None)
            assert {name: ref.version for name, ref in store.aliases().items()} == expected.aliases
            for version, made in expected.versions.items():
                manifest = store.manifest(refs[version])
                assert manifest.version == version
                serving = store.arrays(manifest, "serving")
                np.testing.assert_array_equal(serving["w"].numpy(), np.full(3, made.value))
                np.testing.assert_array_equal(serving["s"].numpy(), made.table)
                keyframe = store.keyframe(manifest)
                assert keyframe.version == made.keyframe
                np.testing.assert_array_equal(store.arrays(keyframe, "training")["t"].numpy(), made.kept)

    @invariant()
    def the_history_is_one_chain(self) -> None:
        for model, expected in self.expected.items():
            entries = list(self.stores[model].histories())
            assert [entry.version for entry in entries] == expected.history
            refs = [Ref(version=number, digest=self.digests[model, number]) for number in expected.history]
            assert [entry.parent for entry in entries] == [None, *refs][: len(refs)]
            assert set(self.stores[model].versions()) <= set(refs)

    @invariant()
    def every_object_is_counted_and_none_is_orphaned(self) -> None:
        counts: Counter[str] = Counter()
        for store in self.stores.values():
            for ref in store.versions():
                manifest = store.manifest(ref)
                entries = [*manifest.serving.values(), *manifest.training.values()]
                counts.update({part.digest for entry in entries for part in entry.parts})
        prefix = f"headrace:{{{self.family}}}:"
        refs: Any = self.redis.hgetall(f"{prefix}refs")
        assert {digest.decode(): int(count) for digest, count in refs.items()} == counts
        lasting = {
            key.decode().removeprefix(f"{prefix}tensor:")
            for key in self.redis.scan_iter(f"{prefix}tensor:*", count=1000)
            if self.redis.ttl(key) == -1
        }
        assert lasting == counts.keys()

    @invariant()
    def every_version_without_training_names_its_keyframe(self) -> None:
        for store in self.stores.values():
            manifests = [store.manifest(ref) for ref in store.versions()]
            named = {str(manifest.ref): str(manifest.keyframe) for manifest in manifests if manifest.keyframe}
            stored: Any = self.redis.hgetall(store._keys.key("keyframes"))
            assert {ref.decode(): keyframe.decode() for ref, keyframe in stored.items()} == named

    # --- help ---

    def holder(self, model: str) -> Worker:
        if model not in self.holders:
            self.take_over(model, OWNERS[0])
        return self.workers[model, self.holders[model]]

    def draft(self, model: str, worker: Worker, value: int, changed: dict[int, int], keyframe: bool) -> Draft:
        """The next version of a worker, which notes its number."""
        for row, new in changed.items():
            worker.table[row] = new
        worker.unkept |= changed.keys()
        keyframe = keyframe or worker.first
        served = range(ROWS) if worker.first else sorted(changed)
        kept = range(ROWS) if worker.first else sorted(worker.unkept)
        worker.first = False
        if keyframe:
            worker.unkept = set()
        self.noted[model] = max(self.noted[model], worker.writer.next_version)
        return draft(
            len(self.expected[model].history),
            {"w": from_numpy(np.full(3, value)), "s": rows(worker.table, served)},
            {"t": rows(worker.table, kept)},
            keyframe=keyframe,
        )

    def committed(self, model: str, worker: Worker, made: Draft, value: int) -> Committed:
        """Commits the draft of whoever may."""
        expected, number = self.expected[model], worker.writer.next_version
        committed = worker.writer.commit(made)
        assert committed.version == number
        assert (model, number) not in self.digests
        assert committed.keyframe == (made.training is not None)
        self.digests[model, number] = committed.digest
        table = worker.table.copy()
        before = (table, number) if committed.keyframe else (expected.head.kept, expected.head.keyframe)
        expected.versions[number] = Made(value, table, *before)
        expected.history.append(number)
        return committed

    def fails(self, worker: Worker, made: Draft, *, before: bool) -> None:
        """The connection breaks before the head is moved, or before the answer comes."""
        keys = worker.writer.keys
        run = keys.run

        def cut(script: str, *args: str | int | bytes) -> Any:
            if not before:
                run(script, *args)
            raise StoreUnavailable("The connection broke. Try again.")

        keys.run = cut  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable):
            worker.writer.commit(made)
        keys.run = run  # type: ignore[method-assign]


def rows(table: Table, numbers: Iterable[int]) -> Delta:
    """These rows of the table."""
    index = np.array(list(numbers), dtype=np.int64)
    return Delta(ROWS, index, from_numpy(table[index]))


def test_any_interleaving_leaves_the_store_whole(redis: Redis) -> None:
    machine = type("StoresOnRedis", (Stores,), {"redis": redis})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
