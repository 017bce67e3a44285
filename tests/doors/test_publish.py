"""The first door: librdkafka publishes, and the lineage in Redis says that these very offsets were learned."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from confluent_kafka import Message, Producer


def learned_offsets(lineage: dict[str, Any]) -> set[tuple[str, int, int]]:
    """(topic, partition, offset) of every record of every update: the runs of docs/formats.md, "Lineage"."""
    found, ends = set(), dict.fromkeys(range(len(lineage["partitions"])), 0)
    for update in lineage["updates"]:
        for partition, skip, count in update:
            first = ends[partition] + skip
            ends[partition] = first + count
            found |= {(*lineage["partitions"][partition], offset) for offset in range(first, first + count)}
    return found


def test_what_any_kafka_client_publishes_is_learned(learned: Any) -> None:
    rng = np.random.default_rng(1)
    delivered: set[tuple[str, int, int]] = set()
    refused: list[str] = []

    def report(error: object, message: Message) -> None:
        place = message.topic(), message.partition(), message.offset()
        (refused.append(str(error)) if error else delivered.add(place))  # type: ignore[arg-type]

    before = learned.manifest()["counts"]["learned"]
    producer = Producer({"bootstrap.servers": learned.kafka, "compression.type": "zstd"})
    for kind in learned.kinds * 10:
        headers = {"content-type": b"image/png", "label": kind.encode(), "id": b"mine"}
        producer.produce(learned.topic, learned.draw(kind, rng), headers=headers, on_delivery=report)
    producer.produce(learned.topic, learned.draw("lying", rng), on_delivery=report)  # nobody says what it is
    producer.flush()
    assert refused == []
    assert len(delivered) == 31

    manifest = learned.until(lambda m: sum(m["counts"].values()) >= before + 31)
    assert manifest["counts"] == {"learned": before + 30, "skipped/unlabelled": 1}
    assert set(manifest["classes"]) == set(learned.kinds)
    history = learned.redis.hgetall("headrace:{doors}:model:pictures:lineage")
    recorded = set().union(*(learned_offsets(json.loads(entry)["lineage"]) for entry in history.values()))
    assert len(recorded) == before + 30
    assert len(delivered & recorded) == 30
    assert {topic: sum(offsets.values()) for topic, offsets in manifest["watermark"].items()} == {"bars": before + 31}
