"""Where tensors become arrays: torch on the models' side, raw bytes with a dtype and a shape on the store's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from models.learner import Rows
from pipeline.store import Array, Delta

# The names of safetensors' dtypes.
BITS = {"float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8,)}
NAMES = {getattr(torch, f"{kind}{n}"): f"{kind[0].upper()}{n}" for kind, sizes in BITS.items() for n in sizes}
NAMES |= {torch.bfloat16: "BF16", torch.bool: "BOOL"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


def copied(tensors: Mapping[str, Tensor | Rows]) -> dict[str, Array | Delta]:
    """Copies to host memory what changed, and nothing else: this is all that a snapshot stalls the updates for."""
    return {name: _copy(value) for name, value in tensors.items()}


def _copy(value: Tensor | Rows) -> Array | Delta:
    if isinstance(value, Tensor):
        return array(value.detach().to("cpu", copy=True))
    live = value.tensor.detach()
    if value.changed is None:
        return Delta(len(live), np.arange(len(live)), array(live.to("cpu", copy=True)))
    rows = live.index_select(0, value.changed.to(live.device))  # copies
    return Delta(len(live), value.changed.cpu().numpy(), array(rows.cpu()))


def array(tensor: Tensor) -> Array:
    """A CPU tensor as an array that shares its memory."""
    tensor = tensor.contiguous()
    data = tensor.view(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
    return Array(NAMES[tensor.dtype], tuple(tensor.shape), data)


def tensor(value: Array) -> Tensor:
    """An array as a CPU tensor of its own: arrays from the store are read-only."""
    made = torch.empty(value.shape, dtype=DTYPES[value.dtype])
    if made.numel():
        made.view(-1).view(torch.uint8).numpy()[:] = value.data
    return made


def tensors(values: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: tensor(value) for name, value in values.items()}
