"""What every kafka-python client of ours has in common: its settings, and the translation of its errors."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import AuthorizationError, KafkaConfigurationError, KafkaError

from pipeline.config import KafkaConfig
from pipeline.errors import ConfigError, LogError, LogUnavailable, TopicMissing
from pipeline.log.batches import PartitionRecords
from pipeline.log.kafka_network import REFUSALS, Untrusted, network
from pipeline.words import near, said

CONNECT_MS = 10_000
BATCH_OVERHEAD = 1 << 20  # bytes that key, headers and framing may take beside a value of `max_bytes`
RECONNECT_MS = 1_000  # kafka-python's own 30 s would keep a worker idle long after a broker is back

# What delivery, order and watermarks rest on.
OURS = {
    "acks",
    "auto_offset_reset",
    "bootstrap_servers",
    "enable_auto_commit",
    "enable_idempotence",
    "group_id",
    "isolation_level",
    "kafka_client",
    "key_deserializer",
    "key_serializer",
    "transactional_id",
    "value_deserializer",
    "value_serializer",
}


def connect(client: Any, config: KafkaConfig, **ours: Any) -> Any:
    """A connected `client`, a class of kafka-python (which has no types); passes `config.client` through.

    A consumer gives our records (see `pipeline.log.batches`).

    Raises:
        ConfigError: a key of `config.client` is not known or not free, or its value does not fit.
        LogUnavailable: no broker answers.
        LogError: the broker refuses.
    """
    known = set().union(*(kind.DEFAULT_CONFIG for kind in (KafkaAdminClient, KafkaConsumer, KafkaProducer)))
    for key in config.client:
        if key in OURS:
            raise ConfigError(f"kafka.client.{key} is set by headrace and cannot be changed. Remove it.")
        if key not in known:
            raise ConfigError(
                f"kafka.client.{key} is not a setting of kafka-python.{near(key, known)} Correct or remove it."
            )
    settings = {"bootstrap_timeout_ms": CONNECT_MS, "reconnect_backoff_max_ms": RECONNECT_MS, **ours, **config.client}
    with ExitStack() as on_failure:

        def closing(**of_client: Any) -> Any:
            """The client's thread and sockets; a constructor that raises leaves them open."""
            made = network(**of_client)
            on_failure.callback(made.close)
            return made

        try:
            connected = client(
                bootstrap_servers=config.bootstrap_servers.split(","),
                kafka_client=closing,
                **{key: value for key, value in settings.items() if key in client.DEFAULT_CONFIG},
            )
        except (KafkaConfigurationError, ValueError, TypeError, RuntimeError) as error:  # all for bad values
            raise ConfigError(
                f"kafka.client does not fit ({said(error)}). Correct the setting that it names."
            ) from error
        except KafkaError as error:
            raise translated(error, config, "connect") from error
        on_failure.pop_all()
        if client is KafkaConsumer:
            connected._fetcher.PartitionRecords = partial(
                PartitionRecords, most_bytes=config.max_bytes + BATCH_OVERHEAD
            )
        return connected


def translated(error: KafkaError, config: KafkaConfig, doing: str) -> LogError:
    """Our error for kafka-python's: LogUnavailable where trying again may help."""
    what = f"Kafka at {config.bootstrap_servers} could not {doing} ({said(error)})."
    if error.retriable:
        return LogUnavailable(
            f"{what} See that it runs and that kafka.bootstrap_servers is right; "
            "`headrace up` starts one on this machine."
        )
    if isinstance(error, (*REFUSALS, Untrusted, AuthorizationError)):
        return LogError(f"{what} See that kafka.client has the right credentials and certificates, and their rights.")
    return LogError(f"{what} The broker's log says why.")


def missing_topics(config: KafkaConfig, topics: Iterable[str]) -> TopicMissing:
    """The error for topics that do not exist."""
    names = list(topics)
    commands = "\n".join(
        f"  kafka-topics.sh --bootstrap-server {config.bootstrap_servers} --create --topic {name} "
        f"--partitions {config.partitions} --replication-factor {config.replication_factor}"
        for name in names
    )
    return TopicMissing(
        f"{', '.join(names)} cannot be read: no such topic at {config.bootstrap_servers}. "
        f"Set kafka.create_topics = true, or run:\n{commands}"
    )
