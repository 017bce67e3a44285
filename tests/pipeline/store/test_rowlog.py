"""Row logs: whatever changes in whatever order, the parts make the tensor, and stay few and small."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from pipeline.errors import Corrupt
from pipeline.store import rowlog
from pipeline.store.codec import Encoded, from_numpy
from pipeline.store.manifest import Part, TensorEntry
from pipeline.store.rowlog import Delta, RowLog, assemble, segment_bytes, whole

Rows = NDArray[Any]


class Tracked:
    """A row log beside the plain array that it must equal, and a store that holds what the log names."""

    def __init__(self, values: Rows) -> None:
        self.values = values.copy()
        self.store: dict[str, bytes] = {}
        entry = self._keep(whole(from_numpy(values), segment_bytes(values.nbytes)))
        dtype = from_numpy(values).dtype
        self.log = RowLog.load(TensorEntry(dtype=dtype, shape=values.shape, parts=tuple(entry)), self.store)

    def commit(self, index: NDArray[np.int64], values: Rows, spare_bytes: int) -> int:
        """Returns the bytes of the objects that were made."""
        self.values[index] = values
        objects = self.log.append(Delta(len(self.values), index, from_numpy(values)), spare_bytes)
        self._keep(objects)
        named = {part.digest for part in self.log.entry.parts}
        self.store = {digest: raw for digest, raw in self.store.items() if digest in named}
        return sum(encoded.bytes for _, encoded in objects)

    def check(self) -> None:
        np.testing.assert_array_equal(assemble(self.log.entry, self.store).numpy(), self.values)

    def reload(self) -> None:
        """As after a restart."""
        self.log = RowLog.load(self.log.entry, self.store)

    @property
    def stored_rows(self) -> int:
        """Rows in all parts; objects have headers, so a little more than there are."""
        return sum(part.bytes for part in self.log.entry.parts) // (self.values.nbytes // len(self.values))

    def _keep(self, objects: list[tuple[Part, Encoded]]) -> list[Part]:
        self.store.update((part.digest, encoded.serialized()) for part, encoded in objects)
        return [part for part, _ in objects]


commits = st.lists(
    st.tuples(st.sets(st.integers(0, 29)), st.integers(0, 200), st.booleans(), st.integers(0, 3)), max_size=30
)


@given(commits, st.sampled_from([(30,), (30, 3), (30, 2, 2)]), st.integers(1, 4), st.integers(2, 6))
@settings(max_examples=200)
def test_any_deltas_with_any_budget_read_back_equal(
    steps: list[tuple[set[int], int, bool, int]], shape: tuple[int, ...], parts: int, more: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:  # limits so low that all branches are taken
        patch.setattr(rowlog, "PARTS", parts)
        patch.setattr(rowlog, "MAX_PARTS", parts + more)
        patch.setattr(rowlog, "SEGMENT_BYTES", 32)
        patch.setattr(rowlog, "CHUNK_BYTES", 64)
        tracked = Tracked(np.arange(np.prod(shape), dtype=np.int16).reshape(shape))
        for changed, spare_bytes, restart, value in steps:
            index = np.array(sorted(changed), dtype=np.int64)
            values = np.full((len(index), *shape[1:]), value, dtype=np.int16)
            tracked.commit(index, values, spare_bytes)
            if restart:
                tracked.reload()
            tracked.check()


Pattern = Callable[[np.random.Generator, int, int], Iterator[NDArray[np.int64]]]


def uniform(rng: np.random.Generator, rows: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """As a reservoir overwrites."""
    while True:
        yield np.unique(rng.integers(0, rows, batch))


def zipf(rng: np.random.Generator, rows: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """As words overwrite an embedding table."""
    while True:
        yield np.unique((rng.zipf(1.3, batch) - 1) % rows)


def ring(rng: np.random.Generator, rows: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """As a queue overwrites."""
    at = 0
    while True:
        yield np.sort(np.arange(at, at + batch) % rows)
        at += batch


def hot_and_cold(rng: np.random.Generator, rows: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """One row in each part that nothing overwrites for long keeps the part alive."""
    cold = 2 * batch
    while True:
        yield np.unique(np.append(rng.integers(0, 2 * batch, batch - 1), cold))
        cold = 2 * batch + (cold + 1) % (rows - 2 * batch)


@pytest.mark.parametrize(
    ("pattern", "batch", "stored"), [(uniform, 300, 2.6), (zipf, 3000, 2.9), (ring, 300, 1.2), (hot_and_cold, 300, 2.2)]
)
def test_a_long_run_moves_little_and_stores_little(pattern: Pattern, batch: int, stored: float) -> None:
    rng = np.random.default_rng(0)
    rows, row_bytes = 10_000, 64
    tracked = Tracked(rng.integers(0, 255, (rows, row_bytes), dtype=np.uint8))
    indices = pattern(rng, rows, batch)
    for _ in range(400):
        index = next(indices)
        changed = 2 * index.size * row_bytes  # as much again in tensors that are not tracked
        moved = tracked.commit(index, rng.integers(0, 255, (index.size, row_bytes), np.uint8), int(0.15 * changed))
        # What changed, what was spared, 2 bytes of row number for each row of 64 bytes, a header.
        assert moved <= (index.size * row_bytes + 0.15 * changed) * (1 + 2 / row_bytes) + 200
        assert len(tracked.log.entry.parts) <= rowlog.MAX_PARTS
        assert tracked.stored_rows <= stored * rows  # headers and row numbers counted in
    tracked.check()


def test_commits_of_one_row_keep_the_parts_few_and_merge_seldom() -> None:
    rng = np.random.default_rng(0)
    rows, row_bytes, commits = 5_000, 64, 2_000
    tracked = Tracked(rng.integers(0, 255, (rows, row_bytes), dtype=np.uint8))
    moved = 0
    for _ in range(commits):
        row = rng.integers(0, 255, (1, row_bytes), dtype=np.uint8)
        moved += tracked.commit(rng.integers(0, rows, 1), row, spare_bytes=0)
        assert len(tracked.log.entry.parts) <= rowlog.MAX_PARTS
    tracked.check()
    # A row is merged about log_33(commits) times: not each time with all that is there.
    assert moved <= 4 * commits * (row_bytes + 200)


def test_nothing_changed_moves_nothing() -> None:
    tracked = Tracked(np.zeros((10, 2), dtype=np.float32))
    before = tracked.log.entry
    assert tracked.commit(np.empty(0, np.int64), np.empty((0, 2), np.float32), 10**6) == 0
    assert tracked.log.entry == before


def test_nearly_all_rows_are_written_as_runs() -> None:
    tracked = Tracked(np.zeros((100, 2), dtype=np.float32))
    tracked.commit(np.arange(10, 100), np.ones((90, 2), np.float32), 0)
    assert [part.first for part in tracked.log.entry.parts] == [0]
    tracked.check()


def test_a_large_delta_is_several_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowlog, "CHUNK_BYTES", 1024)
    tracked = Tracked(np.zeros((100, 16), dtype=np.float32))
    tracked.commit(np.arange(0, 100, 2), np.ones((50, 16), np.float32), 0)
    assert max(part.bytes for part in tracked.log.entry.parts) <= 1024 + 300
    tracked.check()


def test_a_whole_delta_needs_no_earlier_tensor() -> None:
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    log = RowLog("F32", (10, 2))
    objects = log.append(Delta(10, np.arange(10), from_numpy(values)), 0)
    store = {part.digest: encoded.serialized() for part, encoded in objects}
    np.testing.assert_array_equal(assemble(log.entry, store).numpy(), values)


@pytest.mark.parametrize(
    ("rows", "index", "values"),
    [
        (10, [1, 2], np.zeros((2, 3), np.float32)),
        (10, [1, 2], np.zeros((2, 2), np.float64)),
        (10, [1, 2], np.zeros((1, 2), np.float32)),
        (11, [1, 2], np.zeros((2, 2), np.float32)),
        (10, [2, 1], np.zeros((2, 2), np.float32)),
        (10, [1, 1], np.zeros((2, 2), np.float32)),
        (10, [-1, 1], np.zeros((2, 2), np.float32)),
        (10, [1, 10], np.zeros((2, 2), np.float32)),
    ],
)
def test_a_delta_that_does_not_fit_is_refused(rows: int, index: list[int], values: Rows) -> None:
    tracked = Tracked(np.zeros((10, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="delta"):
        tracked.log.append(Delta(rows, np.array(index), from_numpy(values)), 0)


@given(st.sampled_from([(), (0,), (1,), (7,), (7, 3), (0, 3), (3, 0)]), st.integers(1, 40))
def test_a_tensor_in_runs_reads_back_equal(shape: tuple[int, ...], chunk_bytes: int) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    objects = whole(from_numpy(values), chunk_bytes)
    entry = TensorEntry(dtype="F32", shape=shape, parts=tuple(part for part, _ in objects))
    array = assemble(entry, {part.digest: encoded.serialized() for part, encoded in objects})
    assert array.shape == shape
    np.testing.assert_array_equal(array.numpy(), values)


@pytest.mark.parametrize(
    ("shape", "dtype", "tensors", "first"),
    [
        ((4, 2), "F32", {"other": np.zeros((4, 2), np.float32)}, 0),
        ((4, 2), "F32", {"rows": np.zeros((4, 2), np.float64)}, 0),
        ((4, 2), "F32", {"rows": np.zeros((3, 2), np.float32)}, 0),  # a row is in no part
        ((4, 2), "F32", {"rows": np.zeros((4, 3), np.float32)}, 1),
        ((4, 2), "F32", {"rows": np.zeros((4, 2), np.float32)}, 1),
        ((4, 2), "F32", {"rows": np.zeros((4, 2), np.float32)}, None),
        ((2, 2), "F32", {"rows": np.zeros((2, 2), np.float32), "index": np.array([0, 2], np.uint16)}, None),
        ((2, 2), "F32", {"rows": np.zeros((2, 2), np.float32), "index": np.array([0, -1], np.int64)}, None),
        ((2, 2), "F32", {"rows": np.zeros((2, 2), np.float32), "index": np.array([0], np.uint16)}, None),
    ],
)
def test_objects_that_do_not_make_the_tensor_are_refused(
    shape: tuple[int, ...], dtype: str, tensors: dict[str, Rows], first: int | None
) -> None:
    encoded = Encoded({name: from_numpy(values) for name, values in tensors.items()})
    part = Part(digest=encoded.digest, bytes=encoded.bytes, first=first)
    entry = TensorEntry(dtype=dtype, shape=shape, parts=(part,))
    with pytest.raises(Corrupt):
        assemble(entry, {encoded.digest: encoded.serialized()})


def of(rows: Rows, shape: tuple[int, ...], copies: int = 1, dtype: str = "F32") -> tuple[TensorEntry, dict[str, bytes]]:
    """A tensor of that shape, as a manifest may say, of one object that is named so many times."""
    [(part, encoded)] = whole(from_numpy(rows))
    return TensorEntry(dtype=dtype, shape=shape, parts=(part,) * copies), {part.digest: encoded.serialized()}


@pytest.mark.parametrize(
    ("shape", "copies", "dtype"),
    [
        ((1_500_000_000, 0), 2, "F32"),
        ((1_500_000_000,), 2, "F32"),
        ((1, 10**12), 2, "F32"),
        ((3, 10**9, 10**9), 2, "F32"),
        ((10**18, 10**18), 2, "F32"),
        ((2, 4), 100_000, "F32"),
        ((2, 4), 2, "F1"),
    ],
)
def test_a_tensor_is_no_larger_than_what_there_is_of_it(shape: tuple[int, ...], copies: int, dtype: str) -> None:
    rows = np.zeros((1000, 0) if 0 in shape else (2, 4), np.float32)
    entry, objects = of(rows, shape, copies, dtype)
    for read in (assemble, RowLog.load):
        with pytest.raises(Corrupt):
            read(entry, objects)


def test_a_tensor_of_many_small_rows_takes_little_more_than_its_bytes() -> None:
    values = np.zeros(4 << 20, np.uint8)
    objects = whole(from_numpy(values), 1 << 20)
    entry = TensorEntry(dtype="U8", shape=values.shape, parts=tuple(part for part, _ in objects))
    stored = {part.digest: encoded.serialized() for part, encoded in objects}
    tracemalloc.start()
    try:
        assert assemble(entry, stored).data.tobytes() == values.tobytes()
        assert tracemalloc.get_traced_memory()[1] < 4 * values.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("index", [np.zeros((2, 1), np.uint16), np.zeros(2, np.float32), np.zeros(2, np.int64)])
def test_row_numbers_of_another_kind_are_refused(index: Rows) -> None:
    rows = np.zeros((2, 1), np.float32)
    first = whole(from_numpy(rows))[0]
    odd = Encoded({"rows": from_numpy(rows), "index": from_numpy(index)})
    entry = TensorEntry(dtype="F32", shape=(2, 1), parts=(first[0], Part(digest=odd.digest, bytes=odd.bytes)))
    stored = {first[0].digest: first[1].serialized(), odd.digest: odd.serialized()}
    with pytest.raises(Corrupt, match="Part 1 is not of the dtype"):
        assemble(entry, stored)
