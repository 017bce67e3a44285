"""An independent recount: reads Redis and Kafka with plain clients, by what docs/formats.md documents.

Imports nothing of headrace, so that no mistake is made twice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, TopicPartition
from numpy.typing import NDArray
from redis import Redis
from safetensors.numpy import load

Place = tuple[str, int, int]  # topic, partition, offset


@dataclass(frozen=True, slots=True)
class Seen:
    """A record of the log."""

    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


@dataclass(slots=True)
class Recount:
    """What was found of one model; right if there are no `problems`."""

    model: str
    versions: int = 0
    newest: int = 0  # number of the head: above `versions` where numbers were left out
    kept: int = 0
    keyframes: int = 0  # of those that are kept
    updates: int = 0
    pending: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    most_pending: int = 0  # in a version that is kept
    problems: list[str] = field(default_factory=list)


def read_log(bootstrap_servers: str, topics: Iterable[str]) -> dict[Place, Seen]:
    """Every committed record of the topics up to their ends of now."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "soak-checker",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.message.max.bytes": 64 << 20,
        }
    )
    try:
        names = set(topics)
        known = {name: topic for name, topic in consumer.list_topics(timeout=30).topics.items() if name in names}
        ends = {}
        for name, topic in known.items():
            for number in topic.partitions:
                ends[name, number] = consumer.get_watermark_offsets(TopicPartition(name, number), timeout=30)
        consumer.assign([TopicPartition(*at, first) for at, (first, _) in ends.items()])
        found: dict[Place, Seen] = {}
        left = set(ends)
        while left:
            message = consumer.poll(30)
            if message is None:
                raise ValueError(f"Kafka gave nothing of {sorted(left)}")
            at = str(message.topic()), int(message.partition() or 0)
            if error := message.error():
                if error.code() != KafkaError._PARTITION_EOF:
                    raise ValueError(str(error))
                left.discard(at)
            elif (offset := int(message.offset() or 0)) < ends[at][1]:
                found[*at, offset] = Seen(message.key(), message.value(), _headers(message))
        return found
    finally:
        consumer.close()


def _headers(message: Any) -> dict[str, bytes]:
    """The first one of each name counts; none where a name is no text."""
    try:
        return {name: value for name, value in reversed(message.headers() or []) if value is not None}
    except SystemError:  # confluent-kafka's
        return {}


def recount(
    redis: Redis,
    family: str,
    model: str,
    wanted: Mapping[Place, str | None],
    letters: Mapping[Place, Seen],
    labels: str | None = None,
) -> Recount:
    """Compares all that a model wrote with what was published.

    Args:
        wanted: every record of the model's topics, with the outcome that it must have; None: it must have one.
        letters: every record of their dead-letter topics.
        labels: the one of these topics that has labels alone.
    """
    prefix = f"headrace:{{{family}}}:model:{model}:"
    report = Recount(model)
    entries = [json.loads(raw) for _, raw in sorted(_hash(redis, prefix + "lineage").items(), key=lambda e: int(e[0]))]
    kept = {ref: _manifest(redis, prefix, ref, report) for ref in _texts(redis.zrange(prefix + "versions", 0, -1))}
    _chain(redis, prefix, entries, kept, report)
    outcomes: dict[Place, str] = {}
    by_number = {manifest["version"]: manifest for manifest in kept.values()}
    counts: Counter[str] = Counter()
    for entry in entries:
        for place, outcome in _outcomes(entry["lineage"], labels):
            if place in outcomes:
                report.problems.append(f"{place} is {outcomes[place]}, and {outcome} in version {entry['version']}")
            outcomes[place] = outcome
            counts[outcome] += 1
        report.updates += len(entry["lineage"]["updates"])
        report.changes = dict(Counter(report.changes) + Counter(k for c in entry["lineage"]["changes"] for k in c))
        if (entry["counts"], entry["updates"]) != (counts, report.updates):
            report.problems.append(f"version {entry['version']} counts {entry['counts']}, its lineage {dict(counts)}")
        if manifest := by_number.get(entry["version"]):
            _standing(manifest, outcomes, wanted, report)
            if (manifest["counts"], manifest["updates"]) != (counts, report.updates):
                report.problems.append(f"version {entry['version']}: manifest and lineage count differently")
    report.outcomes = dict(sorted(counts.items()))
    head = by_number.get(report.newest)
    pending = set(_runs(head["pending"]["partitions"], head["pending"]["runs"], {})) if head else set()
    report.pending = len(pending)
    for place, shall in wanted.items():
        found = outcomes.get(place)
        if place not in pending and (found is None if shall is None else found != shall):
            report.problems.append(f"{place} is {found}, and must be {shall}")
    for place in outcomes.keys() - wanted.keys():
        report.problems.append(f"{place} is {outcomes[place]}, and was never published")
    _letters(model, outcomes, letters, report)
    return report


def weights(redis: Redis, family: str, model: str, tensor: str) -> NDArray[Any]:
    """A serving tensor of the head: its parts, applied in order."""
    prefix = f"headrace:{{{family}}}:"
    number = _texts([redis.get(f"{prefix}model:{model}:head")])[0].split(":")[0]
    entry = json.loads(_bytes(redis.get(f"{prefix}model:{model}:manifest:{number}")))["serving"][tensor]
    whole: NDArray[Any] | None = None
    for part in entry["parts"]:
        raw = _bytes(redis.get(f"{prefix}tensor:{part['digest']}"))
        if hashlib.sha256(raw).hexdigest() != part["digest"]:
            raise ValueError(f"object {part['digest']} has other bytes")
        arrays = load(raw)
        rows = arrays["rows"]
        whole = np.zeros(entry["shape"], rows.dtype) if whole is None else whole
        at: Any = slice(part["first"], part["first"] + len(rows)) if "first" in part else arrays["index"]
        whole[at] = rows
    if whole is None:
        raise ValueError(f"{tensor} has no part")
    return whole


def _manifest(redis: Redis, prefix: str, ref: str, report: Recount) -> dict[str, Any]:
    number, digest = ref.split(":")
    raw = _bytes(redis.get(f"{prefix}manifest:{number}"))
    if hashlib.sha256(raw).hexdigest() != digest:
        report.problems.append(f"version {number}: its manifest does not have the digest {digest}")
    manifest: dict[str, Any] = json.loads(raw)
    entry = _bytes(redis.hget(prefix + "lineage", number))
    if hashlib.sha256(entry).hexdigest() != manifest["lineage"]:
        report.problems.append(f"version {number}: its lineage does not have the digest that the manifest names")
    return manifest


def _chain(
    redis: Redis, prefix: str, entries: list[dict[str, Any]], kept: Mapping[str, dict[str, Any]], report: Recount
) -> None:
    """Numbers rise, each version is the child of the one before, and the last one is the head."""
    head = _texts([redis.get(prefix + "head")])[0]
    refs = {int(ref.split(":")[0]): ref for ref in kept}
    before: dict[str, Any] | None = None
    for entry in entries:
        parent = entry.get("parent")
        if (parent and parent["version"]) != (before and before["version"]):
            report.problems.append(f"version {entry['version']} has the parent {parent}, not {before}")
        if (
            parent
            and parent["version"] in refs
            and refs[parent["version"]] != f"{parent['version']}:{parent['digest']}"
        ):
            report.problems.append(f"version {entry['version']} is the child of another {parent['version']}")
        if (manifest := kept.get(refs.get(entry["version"], ""))) and manifest.get("parent") != parent:
            report.problems.append(f"version {entry['version']}: manifest and lineage name different parents")
        before = entry
    report.versions, report.kept = len(entries), len(kept)
    report.newest = before["version"] if before else 0
    report.keyframes = sum("keyframe" not in manifest for manifest in kept.values())
    if refs.get(report.newest) != head:
        report.problems.append(f"the head is {head}, the last version {refs.get(report.newest)}")
    if int(_bytes(redis.get(prefix + "counter"))) != report.newest:
        report.problems.append("the counter is not at the head")


def _standing(
    manifest: Mapping[str, Any], outcomes: Mapping[Place, str], wanted: Mapping[Place, str | None], report: Recount
) -> None:
    """Up to its watermark every record of the log has an outcome or is pending, and none beyond."""
    pending = list(_runs(manifest["pending"]["partitions"], manifest["pending"]["runs"], {}))
    marks = {(t, int(p)): offset for t, partitions in manifest["watermark"].items() for p, offset in partitions.items()}
    read = {place for place in wanted if place[2] < marks.get(place[:2], 0)}
    report.most_pending = max(report.most_pending, len(pending))
    if len(set(pending)) != len(pending) or outcomes.keys() & set(pending):
        report.problems.append(f"version {manifest['version']}: what is pending has an outcome, or is so twice")
    if read != outcomes.keys() | set(pending):
        apart = sorted(read ^ (outcomes.keys() | set(pending)))
        report.problems.append(f"version {manifest['version']}: {len(apart)} are not accounted for: {apart[:3]}")


def _letters(model: str, outcomes: Mapping[Place, str], letters: Mapping[Place, Seen], report: Recount) -> None:
    """Every dead letter is of a record that is dead-lettered for that reason, and each such record has one."""
    sent: dict[Place, set[str]] = {}
    for letter in letters.values():
        if letter.headers.get("headrace-model") == model.encode():
            topic, partition, offset = _bytes(letter.key).decode().rsplit(":", 2)
            reason = letter.headers["headrace-reason"].decode()
            sent.setdefault((topic, int(partition), int(offset)), set()).add(f"dead-lettered/{reason}")
    dead = {place: {outcome} for place, outcome in outcomes.items() if outcome.startswith("dead-lettered/")}
    for place in dead.keys() | sent.keys():
        if dead.get(place) != sent.get(place):
            report.problems.append(f"{place}: the lineage says {dead.get(place)}, the letters {sent.get(place)}")


def _outcomes(lineage: Mapping[str, Any], labels: str | None) -> Iterator[tuple[Place, str]]:
    """A label behind a record completed it; in an update without records it corrected one."""
    ends: dict[int, int] = {}
    for update in lineage["updates"]:
        places = list(_runs(lineage["partitions"], update, ends))
        of_labels = "corrected" if all(place[0] == labels for place in places) else "joined"
        for place in places:
            yield place, of_labels if place[0] == labels else "learned"
    for outcome, runs in lineage["outcomes"].items():
        for place in _runs(lineage["partitions"], runs, {}):
            yield place, "joined" if place[0] == labels and outcome == "held-out" else outcome


def _runs(partitions: list[Any], runs: list[Any], ends: dict[int, int]) -> Iterator[Place]:
    """`[p, skip, count]`: `count` offsets, `skip` behind the end of this partition's run before."""
    for p, skip, count in runs:
        first = ends.get(p, 0) + skip
        ends[p] = first + count
        topic, number = partitions[p]
        yield from ((topic, number, offset) for offset in range(first, first + count))


def _hash(redis: Redis, key: str) -> dict[bytes, bytes]:
    found: Any = redis.hgetall(key)
    return dict(found)


def _texts(values: Any) -> list[str]:
    return [_bytes(value).decode() for value in values]


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a key is gone")
    return value
