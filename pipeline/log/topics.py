"""Topics by name: no producer makes one by a typo."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from pipeline.errors import TopicMissing
from pipeline.log.admin import missing_of

if TYPE_CHECKING:
    from collections.abc import Set

    from pipeline.config import Config


def refuse_typo(config: Config, topic: str, *, of_labels: bool = False) -> None:
    """Lets a producer make no topic that nobody would read.

    Raises:
        TopicMissing: it does not exist, and models read other topics, or `of_labels`, and not this one.
        LogError: Kafka refuses, or cannot be reached.
    """
    tables = [table for table in config.models.values() if table.labels is not None or not of_labels]
    read = {name for table in tables for name in table.read_topics}
    if read and topic not in read and missing_of(config.kafka, [topic]):
        raise TopicMissing(
            f"There is no topic {topic}, and no model of the configuration reads it. {meant(topic, read)} To make it "
            "all the same, give --new-topic, or new_topic=True to the client."
        )


def meant(topic: str, read: Set[str]) -> str:
    """Which of the topics that are read may be meant by this one."""
    near = get_close_matches(topic, sorted(read), 1)
    named = ", ".join(sorted(read)[:5]) + (" …" if len(read) > 5 else "")
    return f"Did you mean {near[0]}?" if near else f"Models read: {named or 'nothing'}."
