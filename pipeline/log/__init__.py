"""The log: Kafka through kafka-python, and nothing else.

Topics, one publisher, readers by offsets, dead letters and labels that come late.
"""

from pipeline.log.aligned import AlignedReader
from pipeline.log.dead_letters import (
    DeadLetter,
    dead_letter_topic,
    publish_dead_letter,
    read_dead_letters,
    resolve as resolve_dead_letters,
)
from pipeline.log.fetcher import Fetcher
from pipeline.log.publisher import Publisher, Receipt
from pipeline.log.reader import Reader
from pipeline.log.topics import ensure_topics, meant, refuse_typo

__all__ = [
    "AlignedReader",
    "DeadLetter",
    "Fetcher",
    "Publisher",
    "Reader",
    "Receipt",
    "dead_letter_topic",
    "ensure_topics",
    "meant",
    "publish_dead_letter",
    "read_dead_letters",
    "refuse_typo",
    "resolve_dead_letters",
]
