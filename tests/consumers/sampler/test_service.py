"""The newest version is fetched, verified, built beside the live one and swapped; what goes wrong changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from redis import Redis

from consumers.loading import build
from consumers.sampler.follower import Follower, Live, bounded, client
from consumers.sampler.service import Serving
from models.capabilities import Classifier
from models.learner import Blueprint
from models.registry import BUILTIN
from pipeline.config import SamplerConfig
from pipeline.errors import ConfigError, NotFound
from pipeline.images import ImageInput
from pipeline.local.servers import EmbeddedRedis
from pipeline.metrics import SamplerMetrics
from pipeline.store.codec import from_numpy, sha256
from pipeline.store.manifest import Ref
from pipeline.store.rowlog import whole
from pipeline.store.store import Store
from pipeline.texts import TextInput
from tests.consumers.marked import TEXT, Maker, MarkedLearner, MarkedModel, MarkedOptions, blueprint, marked, step
from tests.consumers.running import PATIENCE_S, configuration

if TYPE_CHECKING:
    from pipeline.config import Config


def _left(options: MarkedOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> MarkedModel:
    """A user's own model that calls sys.exit."""
    if options.frozen > 1:
        raise SystemExit("on purpose")
    return MarkedModel(4096)


leaving = Blueprint(MarkedOptions, MarkedLearner, _left, "text")


@contextmanager
def serving(config: Config, redis: Redis) -> Iterator[tuple[Serving, CollectorRegistry, SimpleQueue[str]]]:
    registry, said = CollectorRegistry(), SimpleQueue[str]()
    serving = Serving(config, redis, SamplerMetrics(registry), said.put)
    serving.start()
    try:
        yield serving, registry, said
    finally:
        serving.close()


def live_at(follower: Follower, version: int) -> Live[Any]:
    assert follower.wait_for(lambda f: f.live is not None and f.live.manifest.version >= version, PATIENCE_S)
    assert follower.live is not None
    return follower.live


def marks(live: Live[Any]) -> list[float]:
    """What both tensors say, in updates."""
    assert isinstance(live.model, Classifier)
    probabilities = live.model.classify(torch.zeros(1, 8, dtype=torch.int32))
    return (probabilities[0, :2] * 1024).tolist()


def test_every_version_is_a_new_model_and_only_what_changed_is_fetched(
    redis: Redis, redis_url: str, family: str
) -> None:
    maker = marked(Store(redis, family, family))
    step(maker)
    with serving(configuration(redis_url, {family: {}}), redis) as (served, registry, _):
        before = live_at(served.follower(family), 1)
        step(maker)
        after = live_at(served.follower(family), 2)
    assert (marks(before), marks(after)) == ([1, 1], [2, 2])
    assert after.manifest.parent == before.manifest.ref
    frozen = after.manifest.serving["frozen"].parts[0].digest
    assert after.objects[frozen] is before.objects[frozen]  # the very same bytes: not fetched
    # Nothing is kept of what the new version does not name ("first" and "last" are equal: one object).
    assert set(after.objects) == {e.parts[0].digest for e in after.manifest.serving.values()}
    assert not set(before.objects) & set(after.objects) - {frozen}
    assert registry.get_sample_value("headrace_swap_seconds_count", {"model": family}) == 2
    assert registry.get_sample_value("headrace_served_version", {"model": family}) == 2


def test_a_damaged_version_is_refused_and_the_next_good_one_is_served(
    redis: Redis, redis_url: str, family: str
) -> None:
    maker = marked(Store(redis, family, family))
    step(maker)
    with serving(configuration(redis_url, {family: {}}), redis) as (served, registry, said):
        follower = served.follower(family)
        live_at(follower, 1)
        # Version 2 names an object that is there before it is uploaded, with one byte that is wrong.
        part, encoded = whole(from_numpy(np.full(1, 2, np.float32)))[0]
        raw = bytearray(encoded.serialized())
        raw[-1] ^= 1
        redis.set(f"headrace:{{{family}}}:tensor:{part.digest}", bytes(raw))
        step(maker)
        assert follower.wait_for(lambda f: f.problem is not None, PATIENCE_S)
        assert follower.live is not None
        assert marks(follower.live) == [1, 1]
        assert follower.problem is not None
        assert "Version 2 cannot be served, version 1 stays live" in follower.problem
        assert part.digest[:12] in follower.problem
        assert said.get(timeout=PATIENCE_S) == f"{family}: {follower.problem}"
        assert registry.get_sample_value("headrace_swap_failures_total", {"model": family}) == 1
        step(maker)
        assert marks(live_at(follower, 3)) == [3, 3]
        assert follower.problem is None


@pytest.mark.parametrize("head", [b"garbage", b"1" * 5000, b"1:", b"\xff:\xff", b"1" * 5000 + b":" + b"0" * 64, b""])
def test_a_damaged_head_is_reported_and_the_next_good_one_is_served(
    redis: Redis, redis_url: str, family: str, head: bytes
) -> None:
    maker = marked(Store(redis, family, family))
    step(maker)
    key = f"headrace:{{{family}}}:model:{family}:head"
    with serving(configuration(redis_url, {family: {}}), redis) as (served, _, _said):
        follower = served.follower(family)
        live_at(follower, 1)
        good: Any = redis.getset(key, head)
        if head:
            assert follower.wait_for(lambda f: f.problem is not None, PATIENCE_S)
            assert "not NUMBER:DIGEST" in (follower.problem or "")
        redis.set(key, good)
        step(maker)
        live_at(follower, 2)
        assert follower.wait_for(lambda f: f.problem is None, PATIENCE_S)


@pytest.mark.parametrize(
    "fields", [{b"no": b"kind"}, {b"kind": b"\xff"}, {b"kind": b"commit", b"version": b"1" * 5000}]
)
def test_a_damaged_event_is_read_over(redis: Redis, redis_url: str, family: str, fields: dict[Any, Any]) -> None:
    maker = marked(Store(redis, family, family))
    redis.xadd(f"headrace:{{{family}}}:events", fields)
    step(maker)
    with serving(configuration(redis_url, {family: {}}), redis) as (served, _, _said):
        follower = served.follower(family)
        live_at(follower, 1)
        redis.xadd(f"headrace:{{{family}}}:events", fields)
        step(maker)
        live_at(follower, 2)
        maker.store.release(maker.fence)
        maker.store.reset()
        assert follower.wait_for(lambda f: f.live is None, PATIENCE_S)
        assert follower.problem is None


def rewritten(redis: Redis, store: Store, **changes: str) -> None:
    """Makes a new head of the present one: texts of the manifest in place of others."""
    manifest = store.manifest()
    text = manifest.raw.decode()
    for before, after in changes.items():
        text, found = re.subn(f'"{before}":[^,}}]+', f'"{before}":{after}', text)
        assert found
    raw = text.replace(f'"version":{manifest.version},', f'"version":{manifest.version + 1},', 1).encode()
    ref = Ref(version=manifest.version + 1, digest=sha256(raw))
    key = f"headrace:{{{store.family}}}:model:{store.model}:"
    redis.set(f"{key}manifest:{ref.version}", raw)
    redis.zadd(f"{key}versions", {str(ref): ref.version})
    redis.set(f"{key}head", str(ref))


@pytest.mark.parametrize("lag", ["1e999", "1e300"])
def test_a_number_that_is_none_is_not_found(redis: Redis, redis_url: str, family: str, lag: str) -> None:
    store = Store(redis, family, family)
    step(marked(store))
    rewritten(redis, store, lag_records=lag)
    with serving(configuration(redis_url, {family: {}}), redis) as (served, _, _said):
        live = live_at(served.follower(family), 2)
        assert live.info(0.0)["lag_records"] == (None if lag == "1e999" else int(1e300))


@pytest.mark.parametrize("name", ["newest_timestamp_ms", "created_ms", "updates", "learned", "0"])
def test_numbers_beyond_all_bounds_are_refused(redis: Redis, redis_url: str, family: str, name: str) -> None:
    store = Store(redis, family, family)
    maker = marked(store)
    step(maker)
    with serving(configuration(redis_url, {family: {}}), redis) as (served, _, _said):
        follower = served.follower(family)
        live_at(follower, 1)
        rewritten(redis, store, **{name: "1" + "0" * 400})
        assert follower.wait_for(lambda f: f.problem is not None, PATIENCE_S)
        assert "Version 2 cannot be served, version 1 stays live" in (follower.problem or "")


SMALL = {"hidden": 8, "embedding": 8, "slots": 1 << 12, "history": 256}
TOO_LARGE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a table": ("text-classifier", {}, {"buckets": 10**12}),
    "a layer": ("text-gru", {}, {"hidden": 10**6}),
    "layers": ("text-generator", SMALL, {"layers": 10**9}),
    "hashed n-grams": ("text-generator", SMALL, {"slots": 1 << 40}),
}


@pytest.mark.parametrize(("learner", "options", "hostile"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_model_is_no_larger_than_what_is_stored_of_it(
    redis: Redis, redis_url: str, family: str, learner: str, options: dict[str, Any], hostile: dict[str, Any]
) -> None:
    maker = Maker(Store(redis, family, family), learner, BUILTIN[learner], {"kind": "text"}, **options)
    maker.commit()
    with serving(configuration(redis_url, {family: {"learner": learner}}), redis) as (served, _, _said):
        follower = served.follower(family)
        live_at(follower, 1)
        maker.commit(options={**options, **hostile})
        assert follower.wait_for(lambda f: f.problem is not None, PATIENCE_S)
        assert re.search("more than the .* bytes that are stored|less than or equal to 256", follower.problem or "")


PICTURE = {"kind": "image", "size": 8, "channels": 1}


def test_bounds_of_a_stored_version_are_within_the_operators(redis: Redis, redis_url: str, family: str) -> None:
    maker = Maker(Store(redis, family, family), "image-classifier", BUILTIN["image-classifier"], PICTURE)
    hostile = {"max_pixels": 10**15, "max_bytes": 10**15}
    maker.commit(input={**PICTURE, **hostile})
    with serving(configuration(redis_url, {}, max_pixels=1000, max_upload_bytes=2000), redis) as (served, _, _said):
        follower = served._follower(family, family)
        follower.thread.start()
        live = live_at(follower, 1)
        assert isinstance(live.input, ImageInput)
        assert (live.input.max_pixels, live.input.max_bytes) == (1000, 2000)
        maker.commit(input={**PICTURE, "size": [100_000, 100_000]})
        assert follower.wait_for(lambda f: f.problem is not None, PATIENCE_S)
        assert "over sampler.max_pixels = 1000" in (follower.problem or "")
        follower.stop()
        follower.thread.join(PATIENCE_S)


def test_texts_of_a_stored_version_are_within_the_operators_bounds() -> None:
    settings = SamplerConfig(max_upload_bytes=2000)
    assert bounded(TextInput(max_chars=2000), settings).max_bytes == 2000
    with pytest.raises(ConfigError, match=r"over sampler\.max_upload_bytes = 2000"):
        bounded(TextInput(max_chars=10**15), settings)


def test_a_model_of_the_users_that_ends_its_process_ends_no_thread(redis: Redis, redis_url: str, family: str) -> None:
    learner = "tests.consumers.sampler.test_service:leaving"
    maker = Maker(Store(redis, family, family), learner, leaving, TEXT)
    step(maker)
    with serving(configuration(redis_url, {family: {"learner": learner}}), redis) as (served, _, _said):
        follower = served.follower(family)
        assert follower.wait_for(lambda f: f.problem is not None, PATIENCE_S)
        assert "SystemExit: on purpose" in (follower.problem or "")
        maker.commit(options={"frozen": 1})
        live_at(follower, 2)


def test_weights_that_do_not_fit_their_manifest_are_refused(redis: Redis, redis_url: str, family: str) -> None:
    maker = marked(Store(redis, family, family))
    step(maker)
    with serving(configuration(redis_url, {family: {}}), redis) as (served, _, _said):
        follower = served.follower(family)
        live_at(follower, 1)
        maker.commit(options={"frozen": 5})
        assert follower.wait_for(lambda f: f.problem is not None, PATIENCE_S)
        assert follower.problem is not None
        assert "size mismatch for frozen" in follower.problem
        assert follower.live is not None
        assert follower.live.manifest.version == 1


@pytest.mark.parametrize("learner", ["text-classifier", "tests.consumers.other:blueprint"])
def test_code_is_not_imported_because_a_manifest_names_it(
    redis: Redis, redis_url: str, family: str, learner: str
) -> None:
    step(marked(Store(redis, family, family)))
    with serving(configuration(redis_url, {family: {"learner": learner}}), redis) as (served, _, _said):
        follower = served.follower(family)
        assert follower.wait_for(lambda f: f.problem is not None, PATIENCE_S)
        assert follower.live is None
        assert follower.problem is not None
        assert "tests.consumers.marked:blueprint, which is not built in" in follower.problem


def test_without_models_in_the_configuration_it_serves_what_it_finds(
    tmp_path: Path,
) -> None:
    with (
        EmbeddedRedis(tmp_path) as server,
        Redis.from_url(server.url) as redis,
        serving(configuration(server.url, {}), redis) as (served, _, said),
    ):
        with pytest.raises(NotFound, match="Known: none yet"):
            served.follower("found")
        step(marked(Store(redis, "family", "found")))
        assert said.get(timeout=PATIENCE_S).startswith("found: Version 1 cannot be served")  # not built in
        assert list(served.followers()) == ["found"]


def test_a_reset_model_is_not_served_any_more_until_it_learns_anew(redis: Redis, redis_url: str, family: str) -> None:
    store = Store(redis, family, family)
    maker = marked(store)
    step(maker)
    step(maker)
    with serving(configuration(redis_url, {family: {}}), redis) as (served, _, _said):
        follower = served.follower(family)
        live_at(follower, 2)
        store.release(maker.fence)
        store.reset()
        assert follower.wait_for(lambda f: f.live is None, PATIENCE_S)
        assert step(marked(store)) == 3
        assert marks(live_at(follower, 3)) == [1, 1]


def test_names_of_models_that_are_none_are_read_over_and_deleted_ones_are_followed_no_more(tmp_path: Path) -> None:
    with (
        EmbeddedRedis(tmp_path) as server,
        Redis.from_url(server.url) as redis,
        serving(configuration(server.url, {}), redis) as (served, _, said),
    ):
        redis.sadd("headrace:models", b"\xff:\xff", "UPPER:UPPER", "alone", "a:b:c")
        maker = marked(Store(redis, "family", "found"))
        step(maker)
        assert said.get(timeout=PATIENCE_S).startswith("found: Version 1 cannot be served")
        assert list(served.followers()) == ["found"]
        follower = served.follower("found")
        maker.store.release(maker.fence)
        maker.store.delete()
        assert follower.wait_for(lambda f: f.deleted, PATIENCE_S)
        follower.thread.join(PATIENCE_S)
        assert not served.followers()
        assert served.problem is None


def test_without_redis_it_keeps_what_it_has_and_catches_up_later(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    server.start()
    try:
        with client(server.url) as redis:
            maker = marked(Store(redis, "model", "model"))
            step(maker)
            with serving(configuration(server.url, {"model": {}}), redis) as (served, registry, said):
                follower = served.follower("model")
                live_at(follower, 1)
                server.stop()
                assert follower.wait_for(lambda f: f.unreachable_since_s is not None, PATIENCE_S)
                assert follower.live is not None
                assert marks(follower.live) == [1, 1]
                assert registry.get_sample_value("headrace_store_up") == 0
                assert "Redis cannot be reached" in said.get(timeout=PATIENCE_S)
                server.start()
                step(maker)
                assert marks(live_at(follower, 2)) == [2, 2]
                assert follower.wait_for(lambda f: f.unreachable_since_s is None, PATIENCE_S)
                assert registry.get_sample_value("headrace_store_up") == 1
                assert said.empty()
                assert registry.get_sample_value("headrace_swap_failures_total", {"model": "model"}) == 0
    finally:
        server.stop()


def test_a_version_is_loaded_from_store_and_blueprint_alone(redis: Redis, family: str) -> None:
    store = Store(redis, family, family)
    maker = marked(store)
    step(maker)
    step(maker)
    model = build(store.manifest(1), store.arrays(store.manifest(1), "serving"), blueprint)
    assert isinstance(model, Classifier)
    assert model.classify(torch.full((1, 8), 2**20, dtype=torch.int32)).tolist() == [[1 / 1024, 1 / 1024, 0.5]]
