"""Drafts of versions for tests, small and each different, and the right to commit them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.records import Partition, Place
from pipeline.store.codec import Array, from_numpy
from pipeline.store.lineage import LineageBuilder
from pipeline.store.manifest import About, watermark_of
from pipeline.store.redis import Fence
from pipeline.store.rowlog import Delta
from pipeline.store.store import Store
from pipeline.store.writer import Draft

if TYPE_CHECKING:
    from redis import Redis

Backup = Mapping[bytes, tuple[bytes, int]]  # key → what DUMP says, time to live in ms or 0


def draft(
    update: int,
    serving: Mapping[str, Array | Delta],
    training: Mapping[str, Array | Delta] | None = None,
    *,
    keyframe: bool = True,
    **fields: Any,
) -> Draft:
    """What a worker would commit after its update number `update`, having learned one record an update."""
    builder = LineageBuilder()
    builder.learned([Place(Partition("digits", 0), update)])
    lineage = fields.pop("lineage", None) or builder.build()
    positions = fields.pop("positions", {Partition("digits", 0): update + 1})
    about = About(
        **{
            "learner": "counting",
            "input": {"kind": "text"},
            "options": {},
            "config": {"family": None},
            "classes": ["a", "b"],
            "seed": 0,
            "updates": update + 1,
            "counts": {"learned": update + 1},
            "watermark": watermark_of(positions),
            "newest_timestamp_ms": 1_700_000_000_000 + update,
            "metrics": {"loss": 0.5},
            "environment": {"device": "cpu", "threads": 1},
            "meta": {},
            "worker": {},
            **fields,
        }
    )
    return Draft(about, lineage, serving, (training or {}) if keyframe else None)


def weights(value: float, rows: int = 4) -> Array:
    return from_numpy(np.full((rows, 3), value, dtype=np.float32))


def taken(store: Store, owner: str = "test") -> Fence:
    fence = store.acquire(owner, 60)
    assert fence is not None
    return fence


def taken_over(store: Store) -> Fence:
    """The fence of another worker, which came when the lease of the first had run out."""
    store._redis.delete(store._keys.key("lease"))
    return taken(store, "other")


def backup(redis: Redis, family: str) -> Backup:
    """All keys of a family as they are now."""
    keys = list(redis.scan_iter(f"headrace:{{{family}}}:*", count=1000))
    pipe = redis.pipeline()
    for key in keys:
        pipe.dump(key)
        pipe.pttl(key)
    found = pipe.execute()
    return {key: (found[2 * n], max(0, found[2 * n + 1])) for n, key in enumerate(keys)}


def restore(redis: Redis, family: str, older: Backup) -> None:
    """Redis comes back older: with these keys of the family, and no others."""
    pipe = redis.pipeline()
    for key in redis.scan_iter(f"headrace:{{{family}}}:*", count=1000):
        pipe.delete(key)
    for key, (value, ttl_ms) in older.items():
        pipe.restore(key, ttl_ms, value)
    pipe.execute()
