"""Each kind of thread is made to fail, and whoever needs it is told: no thread ends silently."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Never

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from rich.console import Console

from consumers.demo import data as demo_data, demo
from consumers.processes import Processes
from consumers.sampler.batcher import Batcher, Sideline
from consumers.sampler.follower import Follower
from consumers.sampler.service import Serving
from consumers.worker.committer import Committer, Lease, Snapshot
from consumers.worker.decoding import Decoding
from consumers.worker.stalls import Stalls
from consumers.workers import Workers
from pipeline.config import KafkaConfig
from pipeline.log.offsets import TopicWatch
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Reader
from pipeline.metrics import WorkerMetrics
from pipeline.records import Example, Record, RecordDecoder
from pipeline.store.store import Store
from tests.consumers.marked import marked, step
from tests.consumers.running import Running, configuration as sampler_configuration, running
from tests.consumers.working import PATIENCE_S, configuration, numbers, publish, working
from tests.services import unique

Patch = pytest.MonkeyPatch


class Mistake(Exception):
    """Of ours, on purpose."""


def mistake(*_: Any, **__: Any) -> Never:
    raise Mistake("on purpose")


# A worker: what ends one of its threads ends its process, with that message.


def test_a_reader_tells_whoever_polls(kafka_config: KafkaConfig, topic: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(TopicWatch, "look", mistake)
    with Reader(kafka_config, [topic], group="g", refresh_s=0.05) as reader:
        reader.poll(0)  # where the partition begins
        for _ in range(2):
            with pytest.raises(Mistake):
                reader.poll(PATIENCE_S)
        with pytest.raises(Mistake):
            reader.commit_number("1", {}, PATIENCE_S)


def test_a_reader_that_nobody_asks_any_more_tells_at_its_end(
    kafka_config: KafkaConfig, topic: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(TopicWatch, "look", mistake)
    reader = Reader(kafka_config, [topic], group="g", refresh_s=0.05)
    reader._thread.join(PATIENCE_S)
    with pytest.raises(Mistake):
        reader.close()


@pytest.mark.parametrize(
    ("owner", "method"),
    [(Reader, "_fetch"), (Committer, "_commit"), (Stalls, "look"), (RecordDecoder, "__call__"), (Decoding, "__call__")],
    ids=["reader", "committer", "lease", "decoder", "feed"],
)
def test_a_worker_ends_with_what_ended_its_thread(
    kafka: str, redis_url: str, topic: str, monkeypatch: Patch, owner: type, method: str
) -> None:
    config = configuration(kafka, redis_url, topic, lease_s=0.3)
    monkeypatch.setattr(owner, method, mistake)
    publish(config, topic, *numbers(range(10)))
    with working(config) as run:
        with pytest.raises(Mistake):
            run.join()
        assert run.store.holder() is None


def test_a_decoder_that_leaves_ends_the_worker(kafka: str, redis_url: str, topic: str, monkeypatch: Patch) -> None:
    def leave(decoder: RecordDecoder, record: Record) -> Example:
        raise SystemExit("a user's own code")

    monkeypatch.setattr(RecordDecoder, "__call__", leave)
    config = configuration(kafka, redis_url, topic)
    publish(config, topic, b"1")
    with working(config) as run, pytest.raises(SystemExit, match="a user's own code"):
        run.join()


def test_a_lease_that_nobody_checks_any_more_tells_at_its_end(redis: Redis, family: str) -> None:
    store, looked = Store(redis, family, "m"), threading.Event()
    fence = store.acquire("test", 60)
    assert fence is not None

    def look() -> None:
        looked.set()
        mistake()

    lease = Lease(store, fence, 0.03, WorkerMetrics(CollectorRegistry(), "m"), look)
    with pytest.raises(Mistake), lease:
        assert looked.wait(PATIENCE_S)
    assert store.holder() is None


def test_a_committer_that_has_failed_says_so_at_each_call(
    kafka_config: KafkaConfig, redis: Redis, family: str, topic: str, monkeypatch: Patch
) -> None:
    store, metrics = Store(redis, family, "m"), WorkerMetrics(CollectorRegistry(), "m")
    fence = store.acquire("test", 60)
    assert fence is not None
    monkeypatch.setattr(Committer, "_commit", mistake)
    nothing: Any = None
    with (
        Reader(kafka_config, [topic], group="g") as reader,
        Publisher(kafka_config) as letters,
        Committer(store, fence, 0, reader, letters, metrics, print) as committer,
    ):
        committer.submit(Snapshot(nothing, {}, 1, None))
        with pytest.raises(Mistake):
            committer.finish(PATIENCE_S)
        with pytest.raises(Mistake):
            committer.check()


def test_a_transaction_tells_what_ended_it(kafka_config: KafkaConfig, monkeypatch: Patch) -> None:
    with Publisher(kafka_config, transactional_id=unique("transactions")) as publisher:
        monkeypatch.setattr(publisher._producer, "begin_transaction", mistake)
        with pytest.raises(Mistake), publisher.transaction():
            pass


# A sampler: what waited is answered, and /readyz says that it has to be started again.


def not_ready(at: Running, *words: str) -> None:
    ready = at.client.get("/readyz")
    assert ready.status_code == 503
    for word in ("has ended by Mistake: on purpose", "Start the sampler again", *words):
        assert word in ready.text
    while not any("has ended by Mistake: on purpose. Start the sampler again." in line for line in at.said):
        pass


@pytest.mark.parametrize("threads", [Batcher, Sideline], ids=["inference", "decode"])
def test_a_thread_that_models_run_on_answers_who_waits(
    redis: Redis, redis_url: str, family: str, monkeypatch: Patch, threads: type[Workers[Any]]
) -> None:
    step(marked(Store(redis, family, family)))
    with running(sampler_configuration(redis_url, {family: {}})) as at:
        assert at.serves(family, 1)
        monkeypatch.setattr(threads, "_take", mistake)
        for _ in range(2):  # who waited, and who comes later
            answer = at.client.post(f"/models/{family}/classify", content=b"x")
            assert (answer.status_code, answer.json()["error"]) == (503, "broken")
            assert "has ended by Mistake: on purpose" in answer.json()["detail"]
        not_ready(at)


def test_the_watch_over_stalls_is_missed(redis: Redis, redis_url: str, family: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Workers, "_too_late", mistake)
    step(marked(Store(redis, family, family)))
    with running(sampler_configuration(redis_url, {family: {}})) as at:
        assert at.serves(family, 1)
        for workers in at.service.workers:
            workers._watch.join(PATIENCE_S)
        not_ready(at, "stalls")
        assert at.client.post(f"/models/{family}/classify", content=b"x").status_code == 503


def test_a_follower_that_has_ended_is_reported(redis: Redis, redis_url: str, family: str, monkeypatch: Patch) -> None:
    maker = marked(Store(redis, family, family))
    step(maker)
    with running(sampler_configuration(redis_url, {family: {}})) as at:
        assert at.serves(family, 1)
        for name in ("_turn", "_failed"):  # the second one: else it goes on
            monkeypatch.setattr(Follower, name, mistake)
        assert at.follower(family).wait_for(lambda follower: follower.thread.error is not None, PATIENCE_S)
        not_ready(at, f"follow-{family}", "version 1 stays live")
        assert at.client.post(f"/models/{family}/classify", content=b"x").status_code == 200


def test_a_discovery_that_has_ended_is_reported(redis_url: str, monkeypatch: Patch) -> None:
    with running(sampler_configuration(redis_url, {})) as at:
        monkeypatch.setattr(at.service.serving, "_say", mistake)
        monkeypatch.setattr(Serving, "_look", mistake)
        at.service.serving._discovery.join(PATIENCE_S)
        not_ready(at, "discover", "No more models are found")


# What runs other processes.


def test_a_log_that_cannot_be_written_ends_who_started_the_process(tmp_path: Path) -> None:
    with Processes(tmp_path / "headrace.toml", mistake) as started:
        started.start("one", "--version")
        started._children["one"].log.join(PATIENCE_S)
        with pytest.raises(Mistake):
            started.check()


def test_the_demo_ends_where_nothing_is_published(
    tmp_path: Path, kafka: str, redis_url: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(demo_data, "digit_stream", mistake)
    monkeypatch.setattr(Processes, "start", lambda *_: None)
    monkeypatch.setattr(demo.Demo, "_wait_for_workers", lambda *_: None)
    run = demo.Demo(tmp_path, None, kafka, redis_url, Console(), threading.Event())
    with pytest.raises(Mistake):
        run.run()
