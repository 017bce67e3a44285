"""Topics by name: those that are missing are made, but none by a producer's typo."""

from __future__ import annotations

from collections.abc import Iterable, Set
from difflib import get_close_matches
from typing import Any

from kafka import KafkaAdminClient

from pipeline.config import Config, KafkaConfig
from pipeline.errors import LogError, TopicMissing
from pipeline.log.connection import BATCH_OVERHEAD, connected, missing_topics

TOPIC_EXISTS = 36  # Kafka's error code


def ensure_topics(config: KafkaConfig, topics: Iterable[str]) -> None:
    """Creates the topics that do not exist, if `kafka.create_topics` allows it.

    Raises:
        TopicMissing: it does not; the message has the command.
        LogError: Kafka refuses to create one.
        LogUnavailable: Kafka cannot be reached.
    """
    with connected(KafkaAdminClient, config, "describe or create topics") as admin:
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


def refuse_typo(config: Config, topic: str, *, of_labels: bool = False) -> None:
    """Refuses a topic that nobody would read: a producer would make it by a typo.

    Raises:
        TopicMissing: it does not exist, and models read other topics, or `of_labels`, and not this one.
        LogError: Kafka refuses, or cannot be reached.
    """
    tables = [table for table in config.models.values() if table.labels is not None or not of_labels]
    read = {name for table in tables for name in table.read_topics}
    if not read or topic in read:
        return
    with connected(KafkaAdminClient, config.kafka, "describe topics") as admin:
        missing = _missing(admin, [topic])
    if missing:
        raise TopicMissing(
            f"There is no topic {topic}, and no model of the configuration reads it. {meant(topic, read)} To make it "
            "all the same, give --new-topic, or new_topic=True to the client."
        )


def meant(topic: str, read: Set[str]) -> str:
    """Which of the topics that are read may be meant by this one."""
    near = get_close_matches(topic, sorted(read), 1)
    named = ", ".join(sorted(read)[:5]) + (" …" if len(read) > 5 else "")
    return f"Did you mean {near[0]}?" if near else f"Models read: {named or 'nothing'}."


def _missing(admin: Any, topics: Iterable[str]) -> list[str]:
    """The topics that do not exist. Asking makes none."""
    names = list(dict.fromkeys(topics))
    found = {topic["name"] for topic in admin.describe_topics(names) if not topic["error_code"]}
    return [name for name in names if name not in found]
