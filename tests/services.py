"""Names on the servers that the tests share: fresh ones for each test, so that none sees another's."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Topics:
    """Makes topics that no other test knows."""

    admin: Any  # kafka.KafkaAdminClient, which has no types

    def __call__(self, partitions: int = 1, settings: Mapping[str, str] | None = None) -> str:
        """A new, empty topic; it keeps records of any age, however long the tests run."""
        configs = {"retention.ms": "-1", **(settings or {})}
        name = unique("topic")
        spec = {"num_partitions": partitions, "replication_factor": 1, "configs": configs}
        self.admin.create_topics({name: spec}, wait_for_metadata=True)
        return name


def unique(prefix: str) -> str:
    """A name that nothing has yet."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"
