"""Topics that are asked for, and made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipeline.config import KafkaConfig
from pipeline.errors import LogError
from pipeline.log.kafka_client import BATCH_OVERHEAD, connect, missing_topics, translated

TOPIC_EXISTS = 36  # Kafka's error code


def missing_of(config: KafkaConfig, topics: Iterable[str]) -> list[str]:
    """Those that do not exist; none is made by asking.

    Raises:
        LogError: Kafka refuses.
        LogUnavailable: Kafka cannot be reached.
    """
    admin = connect(KafkaAdminClient, config)
    try:
        return _missing(admin, topics)
    except KafkaError as error:
        raise translated(error, config, "describe topics") from error
    finally:
        admin.close()


def ensure_topics(config: KafkaConfig, topics: Iterable[str]) -> None:
    """Creates the topics that do not exist, if `kafka.create_topics` allows it.

    Raises:
        TopicMissing: it does not; the message has the command.
        LogError: Kafka refuses to create one.
        LogUnavailable: Kafka cannot be reached.
    """
    admin = connect(KafkaAdminClient, config)
    try:
        missing = _missing(admin, topics)
        if not missing:
            return
        if not config.create_topics:
            raise missing_topics(config, missing)
        spec = {
            "num_partitions": config.partitions,
            "replication_factor": config.replication_factor,
            "configs": {"max.message.bytes": str(config.max_bytes + BATCH_OVERHEAD)},
        }
        answer = admin.create_topics(dict.fromkeys(missing, spec), raise_errors=False)
        for topic in answer["topics"]:
            if topic["error_code"] not in (0, TOPIC_EXISTS):  # another process may have been faster
                raise LogError(
                    f"Kafka did not create the topic {topic['name']}: {topic['error_message']} "
                    "Change kafka.partitions, kafka.replication_factor or the name, or create it yourself."
                )
        admin.wait_for_topics(missing)
    except KafkaError as error:
        raise translated(error, config, "describe or create topics") from error
    finally:
        admin.close()


def _missing(admin: Any, topics: Iterable[str]) -> list[str]:
    names = list(dict.fromkeys(topics))
    found = {topic["name"] for topic in admin.describe_topics(names) if not topic["error_code"]}
    return [name for name in names if name not in found]
