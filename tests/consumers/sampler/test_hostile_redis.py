"""What is stored asks its reader for more than it may have: it is refused before it is fetched; the rest goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from redis import Redis

from consumers.bridge import copied
from pipeline.client.client import Client
from pipeline.errors import ConfigError
from pipeline.local.servers import EmbeddedRedis
from pipeline.store.redis import DOCUMENT_BYTES, MODELS, REGISTRY, models
from pipeline.store.store import Store
from tests.consumers.marked import NAME, TEXT, Maker, blueprint, marked, step
from tests.consumers.running import PATIENCE_S, Running, configuration, running
from tests.consumers.working import configuration as learning, publish, working

MOST = 10 << 20  # bytes of a model
LARGE = bytes(40 << 20)


def sent(redis: Redis) -> int:
    """Bytes that Redis has sent to anybody so far."""
    stats: Any = redis.info("stats")
    return int(stats["total_net_output_bytes"])


def many(maker: Maker, entries: int) -> int:
    """A version of which so many tensors are one object of a megabyte; the version's number."""
    one = torch.zeros(1 << 18)
    tensors = {name: torch.zeros(1) for name in ("first", "last")} | {f"same {n}": one for n in range(entries)}
    return maker.commit(serving=copied({**tensors, "frozen": torch.zeros(4096)})).version


def is_refused(at: Running, name: str, words: str) -> bool:
    """Whether the newest version of it is, in these words, while the first one stays live."""
    follower = at.follower(name)
    assert follower.wait_for(lambda f: words in (f.problem or ""), PATIENCE_S), follower.problem
    return bool(at.client.post(f"/models/{name}/classify", content=b"x").json()["version"] == 1)


def test_one_object_that_is_many_tensors_is_counted_as_often(redis: Redis, redis_url: str, family: str) -> None:
    maker = marked(Store(redis, family, family))
    step(maker)
    with running(configuration(redis_url, {family: {}}, max_model_bytes=MOST)) as at:
        assert at.serves(family, 1)
        before = sent(redis)
        version = many(maker, 100)
        assert is_refused(at, family, f"Version {version} of {family} takes 105")
        assert sent(redis) - before < 1 << 20  # nothing of it was fetched
        told = at.client.get(f"/models/{family}/versions/{version}/weights").json()
        assert "over sampler.max_model_bytes = 10485760. Raise it" in told["detail"]
        assert at.client.get(f"/models/{family}/versions/1/weights").status_code == 200
        many(maker, 4)  # as good versions may do
        assert is_refused(at, family, "Unexpected key(s) in state_dict")  # which is seen once it is fetched


def test_all_models_together_have_a_bound(redis: Redis, redis_url: str, family: str) -> None:
    """A version that leaves gives room to others."""
    makers = {
        name: Maker(Store(redis, name, name), NAME, blueprint, TEXT, frozen=1 << 18) for name in (family, "other")
    }
    for maker in makers.values():
        step(maker)
    needed = makers[family].store.manifest().loaded_bytes("serving")
    config = configuration(redis_url, {name: {} for name in makers}, max_total_bytes=needed * 3 // 2)
    with running(config) as at:
        followers = [at.follower(name) for name in makers]
        for follower in followers:
            assert follower.wait_for(lambda f: f.live is not None or f.problem is not None, PATIENCE_S)
        [served] = [follower for follower in followers if follower.live]
        [refused] = [follower for follower in followers if not follower.live]
        assert f"takes {needed} bytes, and the other models leave {needed * 3 // 2 - needed} of" in str(refused.problem)
        assert step(makers[served.store.model]) == 2  # takes the place of its own former one
        assert at.serves(served.store.model, 2)
        served.store.release(makers[served.store.model].fence)
        served.store.delete()
        assert served.wait_for(lambda f: f.live is None, PATIENCE_S)
        step(makers[refused.store.model])
        assert at.serves(refused.store.model, 2)


def test_who_pulls_has_the_same_bound(redis: Redis, redis_url: str, family: str) -> None:
    many(marked(Store(redis, family, family)), 100)
    with Client(configuration(redis_url, {family: {}}, max_model_bytes=MOST)) as client:
        before = sent(redis)
        with pytest.raises(ConfigError, match=f"Version 1 of {family} takes 105.*Raise it to load it"):
            client.pull(family)
        assert sent(redis) - before < 1 << 20


def test_who_learns_on_has_the_same_bound(kafka: str, redis_url: str, topic: str) -> None:
    config = learning(kafka, redis_url, topic)
    with working(config) as run:
        publish(config, topic, b"1")
        run.read(1)
        run.finish()
    small = config.model_copy(update={"sampler": config.sampler.model_copy(update={"max_model_bytes": 100})})
    with working(small) as run, pytest.raises(ConfigError, match=r"over sampler\.max_model_bytes = 100\. Raise it"):
        run.join()


@pytest.mark.parametrize("what", ["object", "manifest"])
def test_what_is_larger_than_it_may_be_is_not_fetched(redis: Redis, redis_url: str, family: str, what: str) -> None:
    store = Store(redis, family, family)
    maker = marked(store)
    step(maker)
    with running(configuration(redis_url, {family: {}})) as at:
        assert at.serves(family, 1)
        at.follower(family).stop()  # it is to see the next version once that is damaged
        at.follower(family).thread.join(PATIENCE_S)
        version = step(maker)
        part = store.manifest(version).serving["first"].parts[0]
        name = f"tensor:{part.digest}" if what == "object" else f"model:{family}:manifest:{version}"
        redis.set(f"headrace:{{{family}}}:{name}", LARGE)
    before = sent(redis)
    with running(configuration(redis_url, {family: {}})) as at:
        words = "other bytes than were stored" if what == "object" else f"larger than {DOCUMENT_BYTES} bytes"
        assert at.follower(family).wait_for(lambda f: words in (f.problem or ""), PATIENCE_S)
    assert sent(redis) - before < (1 << 20) + (0 if what == "object" else DOCUMENT_BYTES)


def test_a_list_of_a_million_models_is_followed_as_far_as_there_is_room(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as redis:
        step(marked(Store(redis, "first", "first")))
        with running(configuration(server.url, {}, max_models=3)) as at:
            while "first" not in at.service.serving.followers():
                pass
            for start in range(0, 1_000_000, 100_000):
                redis.sadd(REGISTRY, *(f"family:model-{n}" for n in range(start, start + 100_000)))
            while not at.service.serving.problem:
                pass
            ready = at.client.get("/readyz").json()
            assert f"Redis lists at least {MODELS} models, over sampler.max_models = 3" in ready["problem"]
            assert "first" in ready["models"]
            assert len(ready["models"]) == 3
            threads = [thread.name for thread in threading.enumerate()]
            assert sum(name.startswith(("follow-first", "follow-model-")) for name in threads) == 3
            assert len(models(redis)) <= MODELS
