"""A pretended accelerator, `device = "elsewhere"`: what is on it is computed by the CPU, and kept apart from it.

torch's Python backend (`PrivateUse1`) makes it a device like any other: tensors are created there, moved there and
back, autograd and threads know it. What a GPU refuses, it refuses: an operation on tensors of two devices, but for what
CUDA lets pass (a scalar; indices on the CPU; a copy). So a learner that keeps its model and memory where it was told to
gives the numbers of the CPU, and one that forgets a tensor on the CPU fails here as it would on a GPU. What it cannot
show is anything about a GPU itself: kernels, streams, pinned memory, speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

CPU = torch.device("cpu")
#: operations that may take tensors of both devices
COPIES = ("aten._to_copy", "aten.copy_", "aten._copy_from")
INDEXING = ("aten.index.", "aten.index_put_", "aten._index_put_impl_", "aten.index_put.", "aten._unsafe_index")
#: what it takes and gives of lengths is on the CPU in any case
LENGTHS = "aten._pack_padded_sequence."
#: take no scalar of the CPU either
JOINS = ("aten.cat.", "aten.stack.")
#: operations that make tensors from nothing
FACTORIES: tuple[Any, ...] = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.arange.default,
    torch.ops.aten.arange.start,
    torch.ops.aten.arange.start_step,
    torch.ops.aten.full.default,
    torch.ops.aten.ones.default,
    torch.ops.aten.scalar_tensor.default,
    torch.ops.aten.zeros.default,
)


class Elsewhere(Tensor):
    """A tensor there. `here` is where its numbers really are."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device("elsewhere", 0),
        )
        made.here = here
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"elsewhere: {self.here}"

    def tolist(self) -> Any:
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        leaves = tree_leaves((args, given))
        there = [leaf for leaf in leaves if isinstance(leaf, Elsewhere)]
        to_there = torch.device(given["device"]).type == "elsewhere" if given.get("device") is not None else bool(there)
        if given.get("device") is not None:
            given["device"] = CPU
        _check(func, args, leaves)
        a, k = tree_map(lambda leaf: leaf.here if isinstance(leaf, Elsewhere) else leaf, (args, given))
        found = CELLS.get(func, func)(*a, **k)
        if torch.Tag.inplace_view in func.tags:  # the shape that is seen changes as well
            with no_dispatch():
                func(*args, **given)
        if not to_there:
            return found
        if str(func).startswith(LENGTHS):
            return Elsewhere(found[0]), found[1]
        known = {id(tensor.here): tensor for tensor in there}  # what was changed in place is itself
        return tree_map(lambda leaf: _there(leaf, known), found)


def _there(leaf: Any, known: Mapping[int, Elsewhere]) -> Any:
    if not isinstance(leaf, Tensor) or isinstance(leaf, Elsewhere):
        return leaf
    return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf)


# The CPU has no fused cells, which torch takes for recurrent networks on every other device.


def _lstm_cell(from_x: Tensor, from_h: Tensor, c: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """h, c and the gates (B, 4D): in, forget, cell, out"""
    i, f, g, o = sum((b for b in biases if b is not None), from_x + from_h).chunk(4, 1)
    gates = torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], 1)
    i, f, g, o = gates.chunk(4, 1)
    after = f * c + i * g
    return o * after.tanh(), after, gates


def _lstm_cell_backward(
    dh: Tensor | None, dc: Tensor | None, before: Tensor, after: Tensor, gates: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the sums before the gates, of c, of a bias"""
    i, f, g, o = gates.chunk(4, 1)
    dh, dc = (torch.zeros_like(after) if given is None else given for given in (dh, dc))
    dc = dc + dh * o * (1 - after.tanh() ** 2)
    do, di, df, dg = dh * after.tanh(), dc * g, dc * before, dc * i
    sums = torch.cat([di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)], 1)
    return sums, dc * f, sums.sum(0) if has_bias else None


def _gru_cell(from_x: Tensor, from_h: Tensor, h: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor]:
    """h, and (B, 5D): reset, update, new, the former h, what the reset gate lets through"""
    of_x, of_h = (0 if bias is None else bias for bias in biases or (None, None))
    (rx, zx, nx), (rh, zh, nh) = (from_x + of_x).chunk(3, 1), (from_h + of_h).chunk(3, 1)
    r, z = (rx + rh).sigmoid(), (zx + zh).sigmoid()
    n = (nx + r * nh).tanh()
    return n + z * (h - n), torch.cat([r, z, n, h, nh], 1)


def _gru_cell_backward(dh: Tensor, kept: Tensor, has_bias: bool) -> tuple[Tensor, Tensor, Tensor, Any, Any]:
    """Gradients of what comes from x, of what comes from h, of h, of their biases"""
    r, z, n, h, nh = kept.chunk(5, 1)
    dn = dh * (1 - z) * (1 - n * n)
    dz, dr = dh * (h - n) * z * (1 - z), dn * nh * r * (1 - r)
    of_x, of_h = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    return of_x, of_h, dh * z, of_x.sum(0) if has_bias else None, of_h.sum(0) if has_bias else None


CELLS: Mapping[Any, Callable[..., Any]] = {
    torch.ops.aten._thnn_fused_lstm_cell.default: _lstm_cell,
    torch.ops.aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_cell_backward,
    torch.ops.aten._thnn_fused_gru_cell.default: _gru_cell,
    torch.ops.aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
}


def _check(func: Any, args: tuple[Any, ...], leaves: list[Any]) -> None:
    name = str(func)
    if name.startswith((*COPIES, LENGTHS)):
        return
    if name.startswith(INDEXING):  # indices may be on the CPU; what is indexed, and what is put there, may not
        leaves = [args[0], *args[2:3]]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if any(isinstance(one, Elsewhere) for one in tensors):
        joins = name.startswith(JOINS)
        strays = [one for one in tensors if not isinstance(one, Elsewhere) and (one.dim() or joins)]
        if strays:
            raise RuntimeError(
                f"{name}: expected all tensors to be elsewhere, but one of {strays[0].shape} is on the CPU"
            )


def _made(op: Any) -> Callable[..., Tensor]:
    def make(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> Tensor:
        return Elsewhere(op(*args, device=CPU, **kwargs))

    return make


def _copied(source: Tensor, target: Elsewhere, non_blocking: bool = False) -> Tensor:
    target.here.copy_(source.here if isinstance(source, Elsewhere) else source)
    return target


class _Module:
    """`torch.elsewhere`: what torch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """It has no random numbers of its own."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None: ...


_setup_privateuseone_for_python_backend("elsewhere", backend_module=_Module())
_KERNELS: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call] # registered while it lives
for _factory in FACTORIES:
    _KERNELS.impl(_factory.name(), _made(_factory), "PrivateUse1")
_KERNELS.impl("aten::_copy_from", _copied, "PrivateUse1")

ELSEWHERE = torch.device("elsewhere", 0)
