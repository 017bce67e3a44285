"""Reading a model's history: what each version learned, and what became of one record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain, islice, pairwise
from typing import Any

from pipeline.config import KafkaConfig
from pipeline.log.dead_letters import committed
from pipeline.records import Partition, Place, content_id, id_in
from pipeline.store.changes import Change
from pipeline.store.lineage import LEARNED
from pipeline.store.manifest import HistoryEntry
from pipeline.store.store import HISTORY_BATCH, Store
from pipeline.texts import composed

PENDING, NOT_YET, NOTHING, EARLIER = "pending", "not yet", "nothing there", "earlier"


@dataclass(frozen=True, slots=True)
class Commit:
    """One version in the history. `ranges`: topic:partition → [first, last + 1, records] of what was learned."""

    version: int
    parent: int | None
    digest: str | None  # None: this version is not kept any more
    aliases: tuple[str, ...]
    created_ms: int
    updates: int  # since the beginning, as are
    counts: Mapping[str, int]  # records by outcome,
    since_parent: Mapping[str, int]  # and since the parent
    ranges: Mapping[str, tuple[int, int, int]]
    metrics: Mapping[str, float | None]
    changes: tuple[Change, ...]

    def json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Blame:
    """What became of one record in one model."""

    model: str
    topic: str
    partition: int
    offset: int
    outcome: (
        str  # "learned", "dead-lettered/…", "skipped/…", "held-out", "pending", "not yet", "nothing there" or "earlier"
    )
    version: int | None = None  # the first one that accounts for it
    update: int | None = None  # where it was learned: the update's number

    def json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def commits(store: Store, limit: int | None = None, version: int | None = None) -> list[Commit]:
    """The history, newest version first: `version` (default: the head) and those before it, at most `limit`.

    Costs what it tells: a version's entry, and that of its parent.
    """
    if version is None:
        head = store.head()
        if head is None:
            return []
        version = head.version
    names: dict[int, list[str]] = {}
    for alias, ref in store.aliases().items():
        names.setdefault(ref.version, []).append(alias)
    digests = {ref.version: ref.digest for ref in store.versions()}
    batch = HISTORY_BATCH if limit is None else min(limit + 1, HISTORY_BATCH)
    found: list[Commit] = []
    for entry, parent in islice(pairwise(chain(store.ancestry(version, batch), [None])), limit):
        assert entry is not None  # noqa: S101 - for the type checker: only the last one is followed by None
        before = Counter(parent.counts if parent else {})
        found.append(_commit(entry, before, digests.get(entry.version), tuple(names.get(entry.version, ()))))
    return found


def _commit(entry: HistoryEntry, before: Counter[str], digest: str | None, aliases: tuple[str, ...]) -> Commit:
    ranges: dict[str, tuple[int, int, int]] = {}
    for update in entry.lineage.learned():
        for (topic, number), offset in update:
            first, end, records = ranges.get(f"{topic}:{number}", (offset, offset + 1, 0))
            ranges[f"{topic}:{number}"] = (min(first, offset), max(end, offset + 1), records + 1)
    return Commit(
        version=entry.version,
        parent=entry.parent.version if entry.parent else None,
        digest=digest,
        aliases=aliases,
        created_ms=entry.created_ms,
        updates=entry.updates,
        counts=entry.counts,
        since_parent={name: count - before[name] for name, count in entry.counts.items() if count != before[name]},
        ranges=dict(sorted(ranges.items())),
        metrics=entry.metrics,
        changes=entry.lineage.changes,
    )


def blame(store: Store, partition: Partition, offset: int, most: int | None = None) -> Blame:
    """Says what the model did with one record. Reads back from the head to the version that accounts for it.

    Where the topic was made again, its newest records count.

    Args:
        most: so many versions are read at most; "earlier" is what none of them accounts for.
    """

    def found(outcome: str, version: int | None = None, update: int | None = None) -> Blame:
        return Blame(store.model, *partition, offset, outcome, version, update)

    head, place = store.head(), Place(partition, offset)
    if head is None:
        return found(NOT_YET)
    manifest = store.manifest(head)
    if place in manifest.pending:
        return found(PENDING, head.version)
    if offset >= manifest.positions().get(partition, 0):
        return found(NOT_YET)
    for number, (entry, parent) in enumerate(pairwise(chain(store.ancestry(head.version, 2), [None]))):
        assert entry is not None  # noqa: S101 - for the type checker: only the last one is followed by None
        if number == most:
            return found(EARLIER)
        outcome = entry.lineage.outcome_of(place)
        if outcome == LEARNED:
            within = [place in update for update in entry.lineage.learned()]
            return found(LEARNED, entry.version, (parent.updates if parent else 0) + within.index(True))
        if outcome is not None:
            return found(outcome, entry.version)
        jumps = [change["jump"] for change in entry.lineage.changes if "jump" in change]
        if any("ids" in jump and jump["topic"] == partition.topic for jump in jumps):
            break
    return found(NOTHING)


def places_of(config: KafkaConfig, topic: str, id: str, last: int | None = None) -> Iterator[Place]:
    """Where a topic holds records with this id up to its end of now; nowhere, if it is missing.

    Args:
        id: the producer's own, or the `content_id` of the record.
        last: only of so many records at the end of each partition.

    Raises:
        LogUnavailable, LogError: Kafka cannot be reached, or refuses.
    """
    wanted = composed(id.strip())
    with closing(committed(config, topic, last)) as records:
        for record in records:
            if wanted in (id_in(record), record.value and content_id(record.value)):
                yield record.place
