"""Drafts of versions for tests, small and each different, and the right to commit them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.codec import Array, from_numpy
from pipeline.lineage import LineageBuilder
from pipeline.log import Partition
from pipeline.rowlog import Delta
from pipeline.store import Store
from pipeline.writer import Draft, Fence


def draft(
    update: int,
    serving: Mapping[str, Array | Delta],
    training: Mapping[str, Array | Delta] | None = None,
    **fields: Any,
) -> Draft:
    """What a worker would commit after its update number `update`, having learned one record an update."""
    builder = LineageBuilder()
    builder.learned([(Partition("digits", 0), update)])
    return Draft(
        **{
            "learner": "counting",
            "input": {"kind": "text"},
            "options": {},
            "config": {"family": None},
            "classes": ["a", "b"],
            "seed": 0,
            "updates": update + 1,
            "counts": {"learned": update + 1},
            "positions": {Partition("digits", 0): update + 1},
            "newest_timestamp_ms": 1_700_000_000_000 + update,
            "metrics": {"loss": 0.5},
            "environment": {"device": "cpu", "threads": 1},
            "meta": {},
            "worker": {},
            "lineage": builder.build(),
            "serving": serving,
            "training": training or {},
            **fields,
        }
    )


def weights(value: float, rows: int = 4) -> Array:
    return from_numpy(np.full((rows, 3), value, dtype=np.float32))


def taken(store: Store, owner: str = "test") -> Fence:
    fence = store.acquire(owner, 60)
    assert fence is not None
    return fence
