"""Any interleaving of writers, hand-overs, crashes, aliases and retention leaves the store whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from pipeline.codec import Encoded, from_numpy
from pipeline.errors import Fenced, NotFound, StoreUnavailable
from pipeline.rowlog import Delta
from pipeline.store import Store
from tests.pipeline.drafts import draft
from tests.services import unique

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

    from pipeline.writer import Draft, Fence, Writer

ROWS = 12
MODELS = ("mother", "daughter")  # of one family
OWNERS = ("first", "second", "third")

Table = NDArray[np.int32]

models = st.sampled_from(MODELS)
owners = st.sampled_from(OWNERS)
aliases = st.sampled_from(["stable", "best"])
changes = st.dictionaries(st.integers(0, ROWS - 1), st.integers(0, 3), max_size=5)
values = st.integers(0, 4)  # few, so that versions and models share objects


@dataclass
class Worker:
    """One process that writes a model, or thinks that it does."""

    fence: Fence
    writer: Writer
    table: Table
    whole: bool  # whether its next delta must hold all rows


@dataclass
class Expected:
    """What a model must look like."""

    versions: dict[int, tuple[int, Table]] = field(default_factory=dict)  # number → value of "w", rows of "t"
    aliases: dict[str, int] = field(default_factory=dict)
    last: int = 0  # the highest number that was ever used
    learned: int = 0


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
        table = versions[max(versions)][1] if versions else np.zeros((ROWS, 2), np.int32)
        self.workers[model, owner] = Worker(fence, store.writer(fence), table.copy(), not versions)
        self.holders[model] = owner

    @rule(model=models, value=values, changed=changes, answered=st.sampled_from([True, True, False]))
    def commit(self, model: str, value: int, changed: dict[int, int], answered: bool) -> None:
        """By whoever may; the answer may be lost, and the commit tried again."""
        worker, expected = self.holder(model), self.expected[model]
        made = self.draft(model, worker, value, changed)
        if not answered:
            self.fails(worker, made, before=False)
        committed = worker.writer.commit(made)
        expected.last += 1
        expected.learned += 1
        expected.versions[expected.last] = (value, worker.table.copy())
        assert committed.version == expected.last

    @rule(model=models, value=values, changed=changes)
    def crash(self, model: str, value: int, changed: dict[int, int]) -> None:
        """Between the upload and the commit: another has to go on from the head."""
        worker = self.holder(model)
        self.fails(worker, self.draft(model, worker, value, changed), before=True)
        del self.workers[model, self.holders.pop(model)]

    @rule(model=models, value=values, changed=changes, meanwhile=st.sampled_from(["expired", "retired"]))
    def commit_what_went_away(self, model: str, value: int, changed: dict[int, int], meanwhile: str) -> None:
        """What was uploaded, or was there already and not sent, goes away before the commit."""
        worker, expected = self.holder(model), self.expected[model]
        made = self.draft(model, worker, value, changed)
        self.fails(worker, made, before=True)
        keys = worker.writer._keys
        upload = keys.upload

        def lose(objects: Mapping[str, Encoded]) -> int:
            sent = upload(objects)
            keys.upload = upload  # type: ignore[method-assign]
            if meanwhile == "expired":
                self.an_hour_passes()
            else:
                self.retire(other, 1, None)
            return sent

        other = MODELS[1 - MODELS.index(model)]
        self.holder(other)
        keys.upload = lose  # type: ignore[method-assign]
        committed = worker.writer.commit(made)
        expected.last += 1
        expected.learned += 1
        expected.versions[expected.last] = (value, worker.table.copy())
        assert committed.version == expected.last

    @rule(model=models, owner=owners, value=values, changed=changes)
    def commit_of_one_who_lost_its_place(self, model: str, owner: str, value: int, changed: dict[int, int]) -> None:
        worker = self.workers.get((model, owner))
        if worker is None or self.holders.get(model) == owner:
            return
        with pytest.raises(Fenced):
            worker.writer.commit(self.draft(model, worker, value, changed))
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
        retired = self.stores[model].retire(worker.fence, keep_last, keep_every)
        assert retired == sorted(expected.versions.keys() - kept)
        expected.versions = {version: expected.versions[version] for version in kept}

    @rule(model=models, name=aliases, back=st.integers(0, 4))
    def set_alias(self, model: str, name: str, back: int) -> None:
        """To one of the newest versions, or to one that is not there any more, or never was."""
        expected = self.expected[model]
        version = expected.last - back
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
        last = self.expected[model].last if kind == "reset" else 0
        self.expected[model] = Expected(last=last)
        self.holders.pop(model, None)

    # --- what must hold ---

    @invariant()
    def every_version_is_readable_with_its_digests(self) -> None:
        for model, expected in self.expected.items():
            store = self.stores[model]
            refs = {ref.version: ref for ref in store.versions()}
            assert refs.keys() == expected.versions.keys()
            assert store.head() == (refs[max(refs)] if refs else None)
            assert {name: ref.version for name, ref in store.aliases().items()} == expected.aliases
            for version, (value, table) in expected.versions.items():
                manifest = store.manifest(refs[version])
                assert manifest.version == version
                arrays = store.arrays(manifest, "training") | store.arrays(manifest, "serving")
                np.testing.assert_array_equal(arrays["w"].numpy(), np.full(3, value))
                np.testing.assert_array_equal(arrays["t"].numpy(), table)

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

    # --- help ---

    def holder(self, model: str) -> Worker:
        if model not in self.holders:
            self.take_over(model, OWNERS[0])
        return self.workers[model, self.holders[model]]

    def draft(self, model: str, worker: Worker, value: int, changed: dict[int, int]) -> Draft:
        for row, new in changed.items():
            worker.table[row] = new
        index = np.arange(ROWS) if worker.whole else np.array(sorted(changed), dtype=np.int64)
        worker.whole = False
        tracked = Delta(ROWS, index, from_numpy(worker.table[index]))
        return draft(self.expected[model].learned, {"w": from_numpy(np.full(3, value))}, {"t": tracked})

    def fails(self, worker: Worker, made: Draft, *, before: bool) -> None:
        """The connection breaks before the head is moved, or before the answer comes."""
        keys = worker.writer._keys
        run = keys.run

        def cut(script: str, *args: str | int | bytes) -> Any:
            if not before:
                run(script, *args)
            raise StoreUnavailable("The connection broke. Try again.")

        keys.run = cut  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable):
            worker.writer.commit(made)
        keys.run = run  # type: ignore[method-assign]


def test_any_interleaving_leaves_the_store_whole(redis: Redis) -> None:
    machine = type("StoresOnRedis", (Stores,), {"redis": redis})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
