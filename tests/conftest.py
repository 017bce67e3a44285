"""A real Kafka and a real Redis: started when the first test asks for one, stopped at the end or on Ctrl-C."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

with warnings.catch_warnings():  # kafka-python reads its schemas with what Python 3.11 and 3.12 call deprecated
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    from kafka import KafkaAdminClient

import pytest
from redis import ConnectionPool, Redis

from pipeline import process
from pipeline.config import KafkaConfig
from pipeline.local.servers import EmbeddedKafka, EmbeddedRedis
from tests.services import Topics, unique

pytest.register_assert_rewrite("models.checks")  # before a test imports it: its assertions say what they compared

# Whoever starts the tests may ignore these (nohup, a job in the background), and what they start would, too.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

# Of torch, here and in what tests start: they run beside each other, and its tensors are tiny.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Files that take long begin first, so that what ends last is short; the longest of them are the first.
LONG = (
    "test_demo.py",
    "test_types.py",
    "test_readme.py",
    "test_chaos.py",
    "test_local.py",
    "test_verify.py",
    "test_standby.py",
    "test_dead_letters.py",
    "test_log_security.py",
    "test_log_ends.py",
    "test_keyframes.py",
    "test_ends.py",
    "test_store_stateful.py",
    "test_image_gan.py",
    "test_every_learner.py",
    "test_worker_kill.py",
    "test_swaps.py",
    "test_image_restorer.py",
    "test_sampler_service.py",
    "test_page.py",
    "test_packaging.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long files first."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out whole files, and tests/doors as one: its tests share a worker that has learned."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/doors" if file.startswith("tests/doors/") else file

    return Files(config, log)


@pytest.fixture(autouse=True)
def _connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends the connections to Redis that a test opened: an error that it caught may keep its clients for long."""
    pools: list[ConnectionPool] = []
    begin = ConnectionPool.__init__

    def noted(pool: ConnectionPool, *args: Any, **settings: Any) -> None:
        begin(pool, *args, **settings)
        pools.append(pool)

    monkeypatch.setattr(ConnectionPool, "__init__", noted)
    yield
    for pool in pools:
        pool.disconnect(inuse_connections=False)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a broker for the whole run."""
    with EmbeddedKafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server.bootstrap_servers


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis for the whole run; its keys are shared, so tests use `family` or names of their own."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="session")
def tied() -> Callable[[list[str]], list[str]]:
    """What makes a command one that ends with the tests, also where they are killed."""
    return process.tied


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client whose answers are bytes."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def family() -> str:
    """A name for keys that no other test has."""
    return unique("family")


@pytest.fixture
def kafka_config(kafka: str) -> KafkaConfig:
    """The running broker; topics that are created have one partition."""
    return KafkaConfig(bootstrap_servers=kafka, partitions=1)


@pytest.fixture(scope="session")
def topics(kafka: str) -> Iterator[Topics]:
    """Makes topics: `topics()` or `topics(partitions=3)`."""
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    try:
        yield Topics(admin)
    finally:
        admin.close()


@pytest.fixture
def topic(topics: Topics) -> str:
    """A new, empty topic of one partition."""
    return topics()
