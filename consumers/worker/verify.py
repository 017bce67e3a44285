"""Proof of a version: learns again from the log what its lineage records, and compares every bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from consumers.bridge import array
from consumers.worker.environment import environment, use_deterministic
from consumers.worker.fitting import differences, mismatch, shape_of
from consumers.worker.fold import Recipe, whole
from consumers.worker.replay import Replay, at_version, changed, differing, recorded, use_threads
from consumers.worker.sources import Sources
from pipeline.errors import NotRepeatable
from pipeline.store import Array, Change, Group, HistoryEntry, Manifest, Store


@dataclass(frozen=True, slots=True)
class Verification:
    """What came out. `differs`: what is not the same to the last bit, with the largest absolute difference."""

    model: str
    version: int
    start: int | None  # the version that learning again began at; None: from nothing
    versions: int
    updates: int
    records: int
    stored: str  # digest of the state as it was stored,
    learned: str  # and as it was learned again
    differs: Mapping[str, float | None]  # None: no number
    environment: Mapping[str, list[Any]]  # what is not as it was at some time on the way: key → [then, now]

    @property
    def same(self) -> bool:
        """To the last bit."""
        return not self.differs

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "same": self.same}


def verify(
    store: Store,
    recipe: Recipe,
    replay: Replay,
    sources: Sources,
    target: Manifest,
    start: Manifest | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Learns again all that made `target`, from the version `start` or from nothing.

    Runs with the numbers of threads that the versions were learned with, and leaves torch with the last of them.
    `progress` gets updates done and in all.

    Raises:
        StateMismatch: the configuration names another learner.
        OffsetsGone: the log does not hold what was learned any more; start from a later version.
        ConfigError: what the model started from is gone; start from a version.
        NotRepeatable: the history has a gap, or a record does not decode any more.
    """
    if target.learner != recipe.settings.learner:
        raise mismatch(target, f"learner = {recipe.settings.learner!r}, and it was learned by {target.learner!r}.")
    first = start.version if start else 0
    then, threads = recorded(target, recipe.settings), target.environment["threads"]
    changes = [change for entry in _between(store, start, target) for change in entry.lineage.changes]
    for change in reversed(changes):
        then = changed(then, {key: [now, before] for key, (before, now) in change.get("config", {}).items()})
        threads = change.get("environment", {}).get("threads", [threads])[0]
        if "jump" in change and "ids" in change["jump"]:
            replay.topic_ids[change["jump"]["topic"]] = change["jump"]["ids"][0]
    if start is not None:
        fold = at_version(recipe._replace(settings=then), store, start, replay)
    else:
        shaped = shape_of(target, recipe.blueprint)
        fold = sources.fold(recipe._replace(settings=then), shaped, recorded_sources(store))
    fold.lineage.build()
    use_threads(threads)
    use_deterministic(bool(target.environment.get("deterministic")))
    first_update, first_counts = fold.updates, fold.counts["learned"]
    versions = 0
    for entry in _between(store, start, target):
        fold = replay.entries(fold, [entry])
        versions += 1
        progress(fold.updates - first_update, target.updates - first_update)
    differs: dict[str, float | None] = {}
    stored: dict[str, Array] = {}
    live: dict[str, Array] = {}
    groups: tuple[Group, ...] = ("serving", "training") if target.is_keyframe else ("serving",)
    for group in groups:
        arrays = store.arrays(target, group)
        differs |= differing(fold, arrays, group)
        stored |= arrays
        state = fold.capture()
        live |= {name: array(value.detach().cpu()) for name, value in whole(getattr(state, group)).items()}
    books = {**fold.books(), "counts": dict(fold.counts), "updates": fold.updates, "meta": dict(state.meta)}
    shall = {**target.worker, "counts": target.counts, "updates": target.updates, "meta": target.meta}
    differs |= dict.fromkeys(differences(shall, json.loads(json.dumps(books))))
    return Verification(
        model=store.model,
        version=target.version,
        start=first or None,
        versions=versions,
        updates=fold.updates - first_update,
        records=fold.counts["learned"] - first_counts,
        stored=_digest(stored),
        learned=_digest(live),
        differs=differs,
        environment=_changed_environment(changes, target, environment(recipe.device)),
    )


def recorded_sources(store: Store) -> Mapping[str, str]:
    """Digests of what the model started from, as its first version recorded them."""
    first = next(iter(store.histories()), None)
    changes = first.lineage.changes if first else ()
    return next((change["sources"] for change in changes if "sources" in change), {})


def _changed_environment(changes: Sequence[Change], target: Manifest, now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Where any of the versions was learned otherwise than here; their numbers of threads are followed."""
    then = dict(target.environment)
    found = differences(then, now)
    for change in reversed(changes):
        then |= {key: before for key, (before, _) in change.get("environment", {}).items()}
        found = {**differences({**then, "threads": now["threads"]}, now), **found}
    return found


def _between(store: Store, start: Manifest | None, target: Manifest) -> Iterator[HistoryEntry]:
    """The history after `start` up to `target`, in order and without a gap."""
    before = start.version if start else None
    for entry in store.histories(above=before or 0):
        if entry.version > target.version:
            break
        if (entry.parent.version if entry.parent else None) != before:
            raise NotRepeatable(
                f"The history of {store.model} has a gap before version {entry.version}. "
                f"Name a version after it: `headrace verify {store.model} --from {entry.version}`."
            )
        before = entry.version
        yield entry
    if before != target.version:
        raise NotRepeatable(
            f"The history of {store.model} does not lead from version {before} to version {target.version}. "
            f"Name a version of `headrace log {store.model}` that came before it."
        )


def _digest(arrays: Mapping[str, Array]) -> str:
    """Of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.data.data)
    return digest.hexdigest()
