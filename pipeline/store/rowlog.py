"""Tensors of which a few rows change, as a log of parts: a commit sends little more than what changed.

A tensor is its parts applied in order. A commit appends a part with the rows that changed; a part of which no
row is the newest any more is dropped from the list. What is left of old parts would pile up, so a commit also
*rescues* some of their live rows into its own part, within what it may spend: the cleaner of a log-structured
file system (Rosenblum & Ousterhout 1992), with rows for blocks and parts for segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Corrupt
from pipeline.store.codec import ITEM_BYTES, Array, Encoded, decode, from_numpy, row_bytes
from pipeline.store.manifest import Part, TensorEntry

CHUNK_BYTES = 16 << 20  # the most of one object
SEGMENTS = 16  # parts of a tracked tensor that is written whole,
SEGMENT_BYTES = 64 << 10  # if they are at least so large
WHOLE = 1.15  # rows are written all together if those that changed are more than 1/WHOLE of them
STORED = 2.0  # cleaning begins when more than this times N rows are stored,
PARTS = 64  # or in more parts than this
EMPTY_ROWS = 1 << 16  # rows without bytes that a tensor may have
INDEX_DTYPES = ("U16", "U32")  # of row numbers
MAX_PARTS = 128  # beyond it the smallest parts are merged, whatever it costs: they are small


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """Only these rows of a tensor changed since the previous commit."""

    rows: int  # N, of the whole tensor
    index: NDArray[np.int64]  # (K,) ascending
    values: Array  # (K, ...)

    @property
    def is_whole(self) -> bool:
        """Whether it holds every row: it needs no earlier ones then."""
        return len(self.index) == self.rows

    @property
    def index_bytes(self) -> int:
        """What the row numbers take in an object."""
        return len(self.index) * _index_dtype(self.rows).itemsize


Pieces = list[tuple[Part, Encoded]]


def whole(array: Array, chunk_bytes: int = CHUNK_BYTES) -> Pieces:
    """A tensor as runs of adjacent rows, an object each."""
    if not array.shape:
        return [_plain(array, 0)]
    rows = _matrix(array)
    step = max(1, chunk_bytes // max(1, rows.shape[1]))
    return [
        _plain(_array(array.dtype, array.shape, rows[first : first + step]), first)
        for first in range(0, max(1, len(rows)), step)
    ]


def segment_bytes(nbytes: int) -> int:
    """The size of the parts of a tracked tensor that is written whole: small, to die one after the other."""
    return min(CHUNK_BYTES, max(SEGMENT_BYTES, nbytes // SEGMENTS))


def assemble(entry: TensorEntry, objects: Mapping[str, bytes]) -> Array:
    """A tensor from its objects, without a copy where it is in one piece.

    Raises:
        Corrupt: they do not make a tensor of this dtype and shape.
    """
    if len(entry.parts) == 1 and entry.parts[0].first == 0:
        array = _decoded(objects, entry.parts[0], 0).get("rows")
        if array is None or (array.dtype, array.shape) != (entry.dtype, entry.shape):
            raise _mismatch(0)
        return array
    rows = _empty(entry, objects)
    is_there = np.zeros(len(rows), np.bool_)  # (N,), and nothing wider: a row may be one byte
    for index, values in _parts(entry, objects):
        rows[index] = values
        is_there[index] = True
    _check_whole(is_there)
    return Array(entry.dtype, entry.shape, rows.reshape(-1))


class RowLog:
    """The writer's side of one tensor: a copy of it, and which part holds each row's newest value."""

    def __init__(self, dtype: str, shape: tuple[int, ...], rows: NDArray[np.uint8] | None = None) -> None:
        """The log of a tensor of which nothing is known yet: its first delta must be whole."""
        self._dtype, self._shape = dtype, shape
        self._parts: list[Part] = []
        self._rows = np.empty((shape[0], row_bytes(dtype, shape)), np.uint8) if rows is None else rows  # (N, row bytes)
        self._owner = np.full(len(self._rows), -1, np.int64)  # (N,) number of a part
        self._sizes = np.empty(0, np.int64)  # (parts,) rows stored in each

    @classmethod
    def load(cls, entry: TensorEntry, objects: Mapping[str, bytes]) -> RowLog:
        """The log that a manifest describes.

        Raises:
            Corrupt: as `assemble`.
        """
        log = cls(entry.dtype, entry.shape, _empty(entry, objects))
        log._parts = list(entry.parts)
        log._sizes = np.zeros(len(entry.parts), np.int64)
        for number, (index, values) in enumerate(_parts(entry, objects)):
            log._rows[index] = values
            log._owner[index] = number
            log._sizes[number] = len(values)
        _check_whole(log._owner >= 0)
        return log

    @property
    def entry(self) -> TensorEntry:
        """The tensor as its manifest describes it."""
        return TensorEntry(dtype=self._dtype, shape=self._shape, parts=tuple(self._parts))

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def append(self, delta: Delta, spare_bytes: int) -> Pieces:
        """Applies a delta; at most `spare_bytes` of other rows go along. Returns the objects to store.

        Raises:
            ValueError: the delta does not fit the tensor.
        """
        self._check(delta)
        if len(delta.index) == 0:
            return []
        number = len(self._parts)
        self._rows[delta.index] = _matrix(delta.values)
        self._owner[delta.index] = number
        if len(delta.index) * WHOLE >= len(self._rows):
            return self._rewrite()
        rescued = self._rescued(len(delta.index), spare_bytes // max(1, self._rows.shape[1]))
        index = np.union1d(delta.index, rescued)
        step = max(1, CHUNK_BYTES // max(1, self._rows.shape[1]))
        objects = [self._scattered(index[start : start + step]) for start in range(0, len(index), step)]
        self._owner[index] = number + np.arange(len(index)) // step
        self._parts += [part for part, _ in objects]
        self._sizes = np.append(self._sizes, np.bincount(np.arange(len(index)) // step))
        self._drop_dead()
        return objects

    def _rewrite(self) -> Pieces:
        array = Array(self._dtype, self._shape, self._rows.reshape(-1))
        objects = whole(array, segment_bytes(self.nbytes))
        self._parts = [part for part, _ in objects]
        starts = [part.first or 0 for part in self._parts]
        self._sizes = np.diff([*starts, len(self._rows)])
        self._owner = np.repeat(np.arange(len(starts)), self._sizes)
        return objects

    def _rescued(self, changed: int, max_rows: int) -> NDArray[np.int64]:
        """Live rows of old parts that go along, so that those parts die: (R,)."""
        live = np.bincount(self._owner, minlength=len(self._parts) + 1)[:-1]  # (parts,), the new one aside
        alive = np.flatnonzero(live)
        live, sizes = live[alive], self._sizes[alive]
        parts, stored = len(alive) + 1, int(sizes.sum()) + changed
        least = 2 * self.nbytes // CHUNK_BYTES  # parts that a large tensor has in any case
        many, halfway = parts - least - PARTS, (MAX_PARTS - PARTS) // 2
        if parts > MAX_PARTS + least:
            # Many at once: then a row is merged a few times in its life, as in a log-structured merge tree.
            victims = np.argsort(live, kind="stable")[: many - halfway]
            max_rows = int(live[victims].sum())
        else:
            excess = stored - STORED * len(self._rows)
            order = np.argsort(live / sizes if excess > 0 and many < halfway else live, kind="stable")
            left = excess - np.cumsum([0, *(sizes - live)[order]])  # without the first 0, 1, 2, … of them
            victims = order[: max(0, many, int((left > 0).sum()))]
        rank = np.full(len(self._parts) + 1, len(victims))  # of a part among the victims
        rank[alive[victims]] = np.arange(len(victims))
        ranks = rank[self._owner]  # (N,)
        rows = np.flatnonzero(ranks < len(victims))
        return rows[np.argsort(ranks[rows], kind="stable")][:max_rows]

    def _drop_dead(self) -> None:
        alive = np.flatnonzero(np.bincount(self._owner, minlength=len(self._parts)))
        self._owner = np.searchsorted(alive, self._owner)
        self._parts = [self._parts[number] for number in alive]
        self._sizes = self._sizes[alive]

    def _scattered(self, index: NDArray[np.int64]) -> tuple[Part, Encoded]:
        small = index.astype(_index_dtype(len(self._rows)))
        rows = _array(self._dtype, self._shape, self._rows[index])
        encoded = Encoded({"rows": rows, "index": from_numpy(small)})
        return Part(digest=encoded.digest, bytes=encoded.bytes), encoded

    def _check(self, delta: Delta) -> None:
        index, values = delta.index, delta.values
        if (delta.rows, values.dtype, values.shape) != (
            self._shape[0],
            self._dtype,
            (len(index), *self._shape[1:]),
        ):
            raise ValueError(
                f"A delta of {delta.rows} rows, values {values.dtype} {values.shape}, does not fit "
                f"the tensor {self._dtype} {self._shape}. Send it whole."
            )
        if len(index) and (index[0] < 0 or index[-1] >= delta.rows or (np.diff(index) <= 0).any()):
            raise ValueError(f"The rows of a delta must be ascending numbers below {delta.rows}.")


def _empty(entry: TensorEntry, objects: Mapping[str, bytes]) -> NDArray[np.uint8]:
    """Where a tensor's rows go: (N, row bytes)."""
    _check_size(entry, objects)
    return np.empty((entry.shape[0] if entry.shape else 1, row_bytes(entry.dtype, entry.shape)), np.uint8)


def _parts(
    entry: TensorEntry, objects: Mapping[str, bytes]
) -> Iterator[tuple[slice | NDArray[np.int64], NDArray[np.uint8]]]:
    """Of each part which rows it holds, and these: (K, row bytes)."""
    rows = entry.shape[0] if entry.shape else 1
    for number, part in enumerate(entry.parts):
        arrays = _decoded(objects, part, number)
        values = arrays.get("rows")
        if values is None or values.dtype != entry.dtype or values.shape[1:] != entry.shape[1:]:
            raise _mismatch(number)
        matrix = _matrix(values)
        if part.first is not None:
            if part.first + len(matrix) > rows:
                raise _mismatch(number)
            yield slice(part.first, part.first + len(matrix)), matrix
            continue
        numbers = arrays.get("index")
        if numbers is None or numbers.dtype not in INDEX_DTYPES or numbers.shape != (len(matrix),):
            raise _mismatch(number)
        index = numbers.numpy().astype(np.int64)
        if (index >= rows).any():
            raise _mismatch(number)
        yield index, matrix


def _check_whole(is_there: NDArray[np.bool_]) -> None:
    """
    Raises:
        Corrupt: a row is in no part.
    """
    if not is_there.all():
        raise Corrupt("Rows are in none of the tensor's parts. Use another version.")


def _decoded(objects: Mapping[str, bytes], part: Part, number: int) -> dict[str, Array]:
    """The arrays of a part.

    Raises:
        Corrupt: it holds more than rows and their numbers: it may be large, and be named by many tensors.
    """
    arrays = decode(objects[part.digest])
    if arrays.keys() - {"rows", "index"}:
        raise _mismatch(number)
    return arrays


def _check_size(entry: TensorEntry, objects: Mapping[str, bytes]) -> None:
    """
    Raises:
        Corrupt: the tensor is larger than what there is of it; a manifest can ask for any size.
    """
    if entry.dtype not in ITEM_BYTES:
        raise Corrupt(f"Its dtype {entry.dtype} is not known here. Upgrade headrace.")
    rows = entry.shape[0] if entry.shape else 1
    there = sum(len(objects[part.digest]) for part in entry.parts)
    if rows * row_bytes(entry.dtype, entry.shape) > there or rows > there + EMPTY_ROWS:
        raise Corrupt(f"Its shape {list(entry.shape)} needs more than the {there} bytes that there are.")
    if len(entry.parts) > 2 * MAX_PARTS + 4 * there // CHUNK_BYTES:
        raise Corrupt(f"It has {len(entry.parts)} parts, which are more than its rows need.")


def _mismatch(number: int) -> Corrupt:
    return Corrupt(f"Part {number} is not of the dtype and shape that the manifest names. Use another version.")


def _index_dtype(rows: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if rows <= 1 << 16 else np.uint32)


def _matrix(array: Array) -> NDArray[np.uint8]:
    """The rows as bytes: (N, row bytes)."""
    return array.data.reshape(array.shape[0] if array.shape else 1, row_bytes(array.dtype, array.shape))


def _array(dtype: str, shape: tuple[int, ...], rows: NDArray[np.uint8]) -> Array:
    """Some rows (K, row bytes) of a tensor of this shape, as (K, ...)."""
    return Array(dtype, (len(rows), *shape[1:]), rows.reshape(-1))


def _plain(array: Array, first: int) -> tuple[Part, Encoded]:
    encoded = Encoded({"rows": array})
    return Part(digest=encoded.digest, bytes=encoded.bytes, first=first), encoded
