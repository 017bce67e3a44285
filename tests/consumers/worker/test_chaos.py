"""Servers die, connections break, answers come late, Redis is full: a worker waits, says so, and goes on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from benchmarks.soak.checker import read_log, recount
from benchmarks.soak.proxy import Proxy
from pipeline.config import Config
from pipeline.local.servers import EmbeddedKafka, EmbeddedRedis
from pipeline.store.redis import connect
from pipeline.store.store import Store
from tests.consumers.running import Running, running
from tests.consumers.working import PATIENCE_S, Working, configuration, publish, working
from tests.services import unique

EACH = 24  # records at a time
LATE_S = 0.6  # beyond what a worker waits for an answer: 30 s, but for TIMES
TIMES = "socket_timeout=0.3&socket_connect_timeout=0.3"
MODEL: dict[str, Any] = {
    "learner": "text-classifier",
    "input": {"kind": "text", "max_chars": 16},
    "options": {"buckets": 64, "dim": 8, "replay_slots": 32, "replay_draws": 8},
    "keep_last": 1000,
    "keyframe_every": 2,
}


# kafka-python forgets the sockets of connections that fail.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def forgotten(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Has them collected here."""
    caplog.set_level(logging.CRITICAL, "kafka")  # its messages would keep them
    yield
    gc.collect()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """One that may be harmed."""
    with EmbeddedKafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """One that may be harmed."""
    with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


class Checked:
    """A worker and its sampler; what is published, and what has become of it."""

    def __init__(self, run: Working, sampler: Running, direct: Config) -> None:
        self.run, self.sampler, self.direct = run, sampler, direct
        self.published = 0

    def publish(self) -> None:
        """So many records more, of two classes."""
        texts = [(f"text {number}", f"{number % 2}") for number in range(self.published, self.published + EACH)]
        publish(self.direct, self.run.name, *[(text.encode(), label) for text, label in texts])
        self.published += EACH

    def answers(self) -> int:
        """The version that the sampler answers with; whether it is ready to."""
        answer = self.sampler.client.post(f"/models/{self.run.name}/classify", content=b"text 1")
        assert answer.status_code == 200, answer.text
        assert self.sampler.client.get("/readyz").status_code == 200
        version: int = answer.json()["version"]
        return version

    def told(self, *words: str) -> None:
        """Returns once the worker has said so."""
        self.run.waits(lambda: any(all(word in line for word in words) for line in self.run.said))

    def catches_up(self) -> None:
        """Returns once all that was published is in the version that the sampler answers with."""
        assert self.sampler.serves(self.run.name, self.run.read(self.published).version)


@contextmanager
def checked(config: Config, direct: Config) -> Iterator[Checked]:
    """A worker and a sampler under `config` that have begun; at the end every record was learned once."""
    service = config.model_copy(update={"sampler": config.sampler.model_copy(update={"port": 0})})
    with working(config) as run, running(service) as sampler:
        run.store = Store(connect(direct.redis.url), direct.family(run.name), run.name)
        both = Checked(run, sampler, direct)
        both.publish()
        both.catches_up()
        yield both
        run.finish()
    log = read_log(direct.kafka.bootstrap_servers, [run.name])
    with Redis.from_url(direct.redis.url) as redis:
        found = recount(redis, run.name, run.name, dict.fromkeys(log, "learned"), {})
    assert (found.problems, found.pending, found.outcomes) == ([], 0, {"learned": both.published})
    assert run.metric("headrace_store_up") == 1
    assert run.metric("headrace_log_up") == 1


def test_kafka_is_killed_and_started_again(broker: EmbeddedKafka, redis_url: str) -> None:
    config = configuration(broker.bootstrap_servers, redis_url, unique("text"), **MODEL)
    with checked(config, config) as both:
        both.publish()  # and nothing waits until it is learned
        assert broker.process is not None
        broker.process.kill()
        broker.stop()
        both.run.waits(lambda: both.run.metric("headrace_log_up") == 0)
        assert both.answers()
        broker.start()
        both.publish()
        both.catches_up()
        both.run.waits(lambda: both.run.metric("headrace_log_up") == 1)


def test_redis_is_killed_and_started_again(broker: EmbeddedKafka, store: EmbeddedRedis) -> None:
    config = configuration(broker.bootstrap_servers, store.url, unique("text"), **MODEL, lease_s=0.5)
    with checked(config, config) as both:
        assert store.process is not None
        store.process.kill()
        store.stop()
        both.publish()
        both.told("Redis cannot be reached", "learning goes on")
        both.run.waits(lambda: both.run.metric("headrace_store_up") == 0)
        both.run.learns(both.published)
        assert both.answers()
        store.start()
        both.catches_up()
        assert both.answers() == both.run.store.manifest().version


@contextmanager
def no_memory(store: EmbeddedRedis, redis: Redis) -> Iterator[None]:
    redis.config_set("maxmemory", 1)
    yield
    redis.config_set("maxmemory", 0)


@contextmanager
def no_disk(store: EmbeddedRedis, redis: Redis) -> Iterator[None]:
    """Its last dump failed: a folder is in the way."""
    redis.config_set("save", "3600 1")
    (store.folder / "dump.rdb").mkdir()
    redis.bgsave()
    while redis.info("persistence")["rdb_last_bgsave_status"] != "err":
        pass
    yield
    (store.folder / "dump.rdb").rmdir()
    redis.config_set("save", "")


@pytest.mark.parametrize(("full", "word"), [(no_memory, "OOM"), (no_disk, "MISCONF")])
def test_redis_takes_no_writes(
    broker: EmbeddedKafka, store: EmbeddedRedis, full: Callable[[EmbeddedRedis, Redis], Any], word: str
) -> None:
    config = configuration(broker.bootstrap_servers, store.url, unique("text"), **MODEL, lease_s=0.5)
    with checked(config, config) as both, Redis.from_url(store.url) as redis:
        with full(store, redis):
            before = both.answers()
            both.publish()
            both.told("Redis takes no writes", "its memory and its disk")
            both.run.waits(lambda: both.run.metric("headrace_store_up") == 0)
            both.run.learns(both.published)
            assert both.answers() == before
        both.catches_up()


def test_connections_break_and_answers_come_late(broker: EmbeddedKafka, store: EmbeddedRedis) -> None:
    topic = unique("text")
    direct = configuration(broker.bootstrap_servers, store.url, topic, **MODEL)
    with Proxy(broker.port, kafka=True) as log, Proxy(store.port) as proxy:
        url = f"redis://{proxy.address}/0?{TIMES}"
        with checked(configuration(log.address, url, topic, **MODEL, lease_s=0.5), direct) as both:
            for _ in range(10):
                both.publish()
                proxy.cut()
                log.cut()
                assert both.answers()
            both.catches_up()

            log.delay_s = LATE_S
            both.publish()
            both.catches_up()
            log.delay_s = 0

            proxy.delay_s = LATE_S
            both.publish()
            both.told("Redis cannot be reached", "Timeout")
            both.run.waits(lambda: both.run.metric("headrace_store_up") == 0)
            both.run.learns(both.published)
            assert both.sampler.follower(topic).wait_for(lambda f: f.unreachable_since_s is not None, PATIENCE_S)
            assert both.answers()
            proxy.delay_s = 0
            both.catches_up()


def test_a_worker_that_starts_while_kafka_is_away_waits_for_it(broker: EmbeddedKafka, redis_url: str) -> None:
    config = configuration(broker.bootstrap_servers, redis_url, unique("text"), **MODEL)
    broker.stop()
    with working(config) as run:
        run.waits(lambda: any("Kafka" in line for line in run.said))
        broker.start()
        run.waits(lambda: run.metric("headrace_log_up"))
        publish(config, run.name, (b"text", "0"))
        assert run.read(1).counts == {"learned": 1}
