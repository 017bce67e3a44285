"""The store on a Redis Cluster: a server that refuses a command on keys of two slots. One node has all the slots."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest
from redis import Redis, RedisCluster

from pipeline.errors import NotFound
from pipeline.local.server import is_free
from pipeline.local.servers import EmbeddedRedis
from pipeline.store.codec import from_numpy
from pipeline.store.redis import connect, models
from pipeline.store.rowlog import Delta
from pipeline.store.store import Store
from tests.pipeline.drafts import draft, taken, taken_over, weights

BUS = 10_000  # a node listens to others on its port and this
SLOTS = 16_384
START_S = 30.0


class Node(EmbeddedRedis):
    """One node."""

    title = "Redis Cluster"

    def _command(self) -> Sequence[str]:
        return [*super()._command(), "--cluster-enabled", "yes"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a node that serves."""
    ports = random.SystemRandom()
    while not all(map(is_free, (port := ports.randrange(20_000, 32_768 - BUS), port + BUS))):
        pass  # both below those of outgoing connections
    with Node(tmp_path_factory.mktemp("cluster"), port) as server:
        with Redis.from_url(server.url) as client:
            client.cluster("ADDSLOTS", *range(SLOTS))
            until = time.monotonic() + START_S
            while client.cluster("INFO")["cluster_state"] != "ok":
                assert time.monotonic() < until
        yield server.url


def test_each_step_stays_in_one_slot(node: str, family: str) -> None:
    with connect(node) as client:
        store, relative = Store(client, family, "digits"), Store(client, family, "fork")
        live(store)
        keys = set(client.scan_iter(count=1000)) - {b"headrace:models"}
        assert {bytes(key).rpartition(b":")[2] for key in keys} >= {
            b"head",
            b"lease",
            b"keyframes",
            b"aliases",
            b"refs",
        }
        assert {client.cluster("KEYSLOT", key) for key in keys} == {client.cluster("KEYSLOT", f"{{{family}}}")}
        assert (family, "digits") in models(client)
        end(store, relative)
        assert (family, "fork") not in models(client)


def live(store: Store) -> None:
    """What a worker, samplers and people do; leaves versions 2, 3 (stable) and 5, and the worker in its place."""
    fence = taken(store, "first")
    store.renew(fence, 60)
    writer = store.writer(fence, above=1)
    table = np.zeros((50, 4), np.float32)
    changed = np.arange(50)
    for update in range(4):
        table[changed] = update
        tracked = Delta(50, changed, from_numpy(table[changed]))
        writer.commit(draft(update, {"w": weights(update)}, {"t": tracked}, keyframe=update != 1))
        changed = np.array([update, 7]) if update < 2 else np.array([40 + update])
        changed.sort()
    assert store.set_alias("stable", 3).version == 3
    assert store.retire(fence, keep_last=1) == [4]
    assert {name: ref.version for name, ref in store.aliases().items()} == {"stable": 3}
    assert [ref.version for ref in store.versions()] == [2, 3, 5]
    assert [entry.version for entry in store.histories()] == [2, 3, 4, 5]
    manifest = store.manifest("stable")
    np.testing.assert_array_equal(store.arrays(manifest, "serving")["w"].numpy(), weights(1).numpy())
    assert store.arrays(store.keyframe(manifest), "training")["t"].shape == (50, 4)
    kinds = [event.kind for event in store.events("0", block_ms=1)]
    assert kinds == ["commit"] * 4 + ["alias", "retire"]
    assert store.acquire("second", 60) is None


def end(store: Store, relative: Store) -> None:
    """A reset, and a relative that comes and goes; leaves version 6."""
    store.delete_alias("stable")
    store.release(taken_over(store))
    assert store.holder() is None
    other = taken(relative)
    relative.writer(other).commit(draft(0, {"w": weights(3)}))
    relative.release(other)
    store.reset()
    with pytest.raises(NotFound):
        store.resolve("latest")
    fence = taken(store)
    assert store.writer(fence).commit(draft(0, {"w": weights(3)}, {"t": weights(4)})).version == 6
    store.release(fence)
    relative.delete()
    np.testing.assert_array_equal(store.arrays(store.manifest(), "serving")["w"].numpy(), weights(3).numpy())


def test_a_cluster_client_does_the_same(node: str, family: str) -> None:
    cluster: Any = RedisCluster.from_url(node)
    try:
        store = Store(cast("Redis", cluster), family, "digits")
        live(store)
        end(store, Store(cast("Redis", cluster), family, "fork"))
    finally:
        cluster.close()
