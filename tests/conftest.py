"""A real Kafka and a real Redis: started when the first test asks for one, stopped at the end or on Ctrl-C."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

with warnings.catch_warnings():  # kafka-python reads its schemas with what Python 3.11 and 3.12 call deprecated
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    from kafka import KafkaAdminClient

import pytest
from redis import Redis

from pipeline.config import KafkaConfig
from pipeline.local import EmbeddedKafka, EmbeddedRedis
from tests.services import Topics, unique


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
