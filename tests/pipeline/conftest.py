"""A store of one model, empty, on the Redis that all tests share."""

from __future__ import annotations

import pytest
from redis import Redis

from pipeline.store.store import Store
from pipeline.store.writer import Writer


@pytest.fixture
def store(redis: Redis, family: str) -> Store:
    return Store(redis, family, "digits", clock=lambda: 1_700_000_000.5)


@pytest.fixture
def writer(store: Store) -> Writer:
    fence = store.acquire("test", 60)
    assert fence is not None
    return store.writer(fence)
