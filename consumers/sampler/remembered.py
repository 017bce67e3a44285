"""The learned records that a version still has: those of its replay memory, read from the store and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from consumers.bridge import tensors
from models.labels import NONE
from models.nearest import memories
from pipeline.errors import Corrupt, NotFound
from pipeline.records import Partition, Place

if TYPE_CHECKING:
    from pipeline.inputs import Input
    from pipeline.store import Manifest, Store

COLUMNS = ("x", "y", "origins")  # of what a memory holds
MOST_BYTES = 256 << 20  # of the records that one answer looks at
LAST_POINT = 0x10FFFF  # of Unicode


@dataclass(frozen=True, slots=True)
class Remembered:
    """Records that a model has learned, and where they came from."""

    x: Tensor  # (N, ...) as in `Batch.x`, or (N, D) features of records that are not kept
    labels: Sequence[str | None]
    positions: Sequence[Place | None]
    count: int  # of records in the memory, of which N are here


def keeps_records(manifest: Manifest) -> bool:
    """Whether this version, or the keyframe that it goes back to, has any."""
    return bool(memories(manifest.meta))


def remembered(store: Store, manifest: Manifest, input: Input) -> Remembered:
    """Those of a version, or of the keyframe that it goes back to.

    Raises:
        StoreError: they cannot be read, or are not what they should be.
    """
    keyframe = store.keyframe(manifest)
    sizes = memories(keyframe.meta)
    named = {prefix + column for prefix in sizes for column in COLUMNS}
    wanted = {name: entry for name, entry in keyframe.training.items() if name in named}
    if named - wanted.keys():
        raise _corrupt(keyframe, f"{min(named - wanted.keys())} is missing")
    found = tensors(store.arrays(keyframe.model_copy(update={"training": wanted}), "training"))
    each = [_memory(keyframe, prefix, size, found, input) for prefix, size in sizes.items()]
    if len({(x.dtype, x.shape[1:]) for x, _, _ in each}) > 1:
        raise _corrupt(keyframe, "its memories hold records of several shapes")
    if not each:
        raise NotFound(f"The replay memory of version {keyframe.version} of {keyframe.model} is empty yet. Ask later.")
    x, y, origins = map(torch.cat, zip(*each, strict=True))
    step = -(-x.nbytes // MOST_BYTES)  # spread evenly, where there is too much
    labels = [_label(keyframe, number) for number in y[::step].tolist()]
    topics = _topics(keyframe)
    return Remembered(x[::step], labels, [_position(topics, *origin) for origin in origins[::step].tolist()], len(x))


def _memory(
    manifest: Manifest, prefix: str, size: int, found: dict[str, Tensor], input: Input
) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, ...), y (N,) and origins (N, 3) of one memory."""
    x, y, origins = (found[prefix + column] for column in COLUMNS)
    is_record = (x.dtype, x.shape[1:]) == (getattr(torch, input.dtype), torch.Size(input.shape))
    is_feature = (x.dtype, x.dim()) == (torch.float32, 2)
    others = (y.dtype, y.dim(), origins.dtype, origins.shape[1:]) == (torch.int64, 1, torch.int64, torch.Size([3]))
    if not (others and (is_record or is_feature)) or not size <= min(len(x), len(y), len(origins)):
        raise _corrupt(manifest, f"{prefix}x, y and origins do not fit each other and its input")
    x = x[:size]
    if input.kind == "text" and is_record and (int(x.min()) < 0 or int(x.max()) > LAST_POINT):
        raise _corrupt(manifest, f"{prefix}x holds what is no text")
    return x, y[:size], origins[:size]


def _label(manifest: Manifest, number: int) -> str | None:
    if not NONE <= number < len(manifest.classes):
        raise _corrupt(manifest, "it names classes that there are not")
    return None if number == NONE else manifest.classes[number]


def _topics(manifest: Manifest) -> dict[int, str]:
    """Number in origins → topic."""
    stored: Any = manifest.worker.get("topics")
    found = stored.items() if isinstance(stored, dict) else ()
    return {number: topic for topic, number in found if isinstance(number, int)}


def _position(topics: dict[int, str], topic: int, partition: int, offset: int) -> Place | None:
    return Place(Partition(topics[topic], partition), offset) if topic in topics else None


def _corrupt(manifest: Manifest, what: str) -> Corrupt:
    return Corrupt(
        f"The replay memory of version {manifest.version} of {manifest.model} is damaged: {what}. "
        "Use another version, or restore Redis from a backup."
    )
