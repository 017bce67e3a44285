"""Which learned records a record resembles: those in a version's replay memory that are nearest to it.

Distances are Euclidean, in the features that the learner's own head sees. Of a model that draws they are those of the
pixels, so that a copy is told: a drawing that is much nearer to one record than to the records next to it. That is the
test of Carlini et al. 2023, "Extracting training data from diffusion models", with their numbers:

    |x - r_1| < COPY · mean of |x - r_2| … |x - r_{NEXT + 1}|
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.capabilities import Featured, Generator

COPY, NEXT = 0.5, 50
AT_ONCE = 64  # records that are looked at together
#: prefix of the tensors of a memory → where its counters are in a learner's meta
MEMORIES = {
    "memory/": (("memory",), ("memory", "records")),
    "network/memory/": (("network", "memory"), ("network", "memory", "records")),
    "evidence/": (("evidence",),),
}


def memories(meta: Mapping[str, Any]) -> dict[str, int]:
    """Prefix of the tensors of each memory of a version that holds records → how many, as its meta says."""
    sizes = {prefix: max(_size(meta, path) for path in paths) for prefix, paths in MEMORIES.items()}
    return {prefix: size for prefix, size in sizes.items() if size > 0}


def _size(meta: Any, path: tuple[str, ...]) -> int:
    for key in (*path, "size"):
        meta = meta.get(key) if isinstance(meta, Mapping) else None
    return meta if isinstance(meta, int) else 0


@torch.no_grad()
def distances(model: object, x: Tensor, kept: Tensor) -> Tensor:
    """From a record x (1, ...) to kept ones (N, ...) → (N,) float32. To the same record it is 0, to the last bit.

    Kept rows that are no records are features already.

    Raises:
        ValueError: of another model.
    """
    seen = features(model, x)
    if kept.is_floating_point() and kept.shape[1:] != seen.shape[1:]:
        raise ValueError(f"{kept.shape[1]} features of each record are kept, and the model has {seen.shape[1]}")
    found = [(features(model, some) - seen).square().sum(1).sqrt() for some in torch.split(kept, AT_ONCE)]
    far = torch.cat(found).cpu()
    return far.masked_fill((kept == x).flatten(1).all(1), 0.0) if kept.shape[1:] == x.shape[1:] else far


def features(model: object, x: Tensor) -> Tensor:
    """x (B, ...) → (B, D) float32"""
    if x.is_floating_point():
        return x
    if isinstance(model, Generator) or not isinstance(model, Featured):
        return x.flatten(1).float() / 255
    return model.features(x).float()


def spacing(ordered: Tensor) -> float | None:
    """Distances (N,), the least first → the mean of the next `NEXT`; None: there are not two."""
    following = ordered[1 : NEXT + 1]
    return following.mean().item() if len(following) else None
