"""Tensors as objects: safetensors bytes, named by the SHA-256 of those bytes.

An object holds "rows", a run of a tensor's rows, and where they are not adjacent "index", their row numbers.
What is written here is read back by the safetensors library alone, which also judges hostile headers. Writing
is a header in front of the data, so that an object whose digest is known is hashed where it lies, not copied.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from pipeline.errors import Corrupt

#: numpy's dtypes of the names that numpy knows (it has no bfloat16), little-endian.
NUMPY = {
    "BOOL": np.dtype("?"),
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "UI" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
NAMES = {dtype: name for name, dtype in NUMPY.items()}
#: Bytes of one element, by safetensors' name of the dtype.
ITEM_BYTES = {**{name: dtype.itemsize for name, dtype in NUMPY.items()}, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """A tensor without a framework: raw little-endian bytes in C order, never written to."""

    dtype: str  # safetensors' name: "F32", "U8", "I64", "BF16", …
    shape: tuple[int, ...]
    data: NDArray[np.uint8]  # (nbytes,)

    def numpy(self) -> NDArray[Any]:
        """A view of `shape`.

        Raises:
            KeyError: numpy has no such dtype (BF16, F8_*).
        """
        return self.data.view(NUMPY[self.dtype]).reshape(self.shape)


def row_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of one row of a tensor; a scalar is one row."""
    return ITEM_BYTES[dtype] * math.prod(shape[1:])


def from_numpy(values: NDArray[Any]) -> Array:
    """An array that shares the memory of `values` where that is in C order already."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return Array(NAMES[values.dtype], values.shape, data)


def header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, int]:
    """What stands in front of the data of tensors of these dtypes and shapes, in this order; and the data's bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's own padding: data begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text, end


class Encoded:
    """One object, not yet copied to one piece: its digest and its size are known first."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._header, end = header({name: (array.dtype, array.shape) for name, array in arrays.items()})
        self._data = [array.data.data for array in arrays.values()]
        digest = hashlib.sha256(self._header)
        for data in self._data:
            digest.update(data)
        self.digest = digest.hexdigest()
        self.bytes = len(self._header) + end

    def serialized(self) -> bytes:
        return b"".join([self._header, *self._data])


def decode(raw: bytes) -> dict[str, Array]:
    """The arrays of an object.

    Raises:
        Corrupt: this is not a safetensors file, or one with a dtype that is not known here.
    """
    try:
        tensors = deserialize(raw)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise Corrupt(f"An object is not in safetensors' format: {error}. Restore it from a backup.") from None
    arrays = {}
    for name, fields in tensors:
        if fields["dtype"] not in ITEM_BYTES:
            raise Corrupt(f"An object holds {name} as {fields['dtype']}, which is not known here. Upgrade headrace.")
        arrays[name] = Array(fields["dtype"], tuple(fields["shape"]), np.frombuffer(fields["data"], np.uint8))
    return arrays


def sha256(raw: bytes) -> str:
    """The name of these bytes: 64 hexadecimal digits."""
    return hashlib.sha256(raw).hexdigest()
