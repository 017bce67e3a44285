"""Bounds the memory that a stored version makes its reader allocate.

Options come with a version, and a width of a billion is a few bytes. A model is built from them before its weights
are compared with theirs, so what it makes on the way is counted, and refused before it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

TIMES = 4  # the bytes that are stored: a model may make some of its tensors twice
SPARE_BYTES = 64 << 20  # and what belongs to no weight
ITEM_BYTES = 4  # of an element, as most are


class Metered(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which this thread can make new tensors of bounded size: a few times the stored bytes.

    Raises:
        ValueError: a tensor would be more; it is not made.
    """

    def __init__(self, stored_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stored = stored_bytes
        self._left = TIMES * stored_bytes + SPARE_BYTES

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        size = args[0] if args else ()
        if isinstance(size, list | tuple) and all(isinstance(side, int) for side in size):
            self._take(math.prod(size))
        elif isinstance(size, int):
            self._take(size)
        return func(*args, **(kwargs or {}))

    def _take(self, elements: int) -> None:
        self._left -= elements * ITEM_BYTES
        if self._left < 0:
            raise ValueError(f"its options describe a model of more than the {self._stored} bytes that are stored")
