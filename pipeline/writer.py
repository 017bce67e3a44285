"""One commit: what changed becomes objects, a manifest and a line of the history, and then the head.

1. The tensors become objects under digests; what the parent names already is left out.
2. The new objects are uploaded with an end (a crash: they go away by themselves).
3. One script checks the fence, the parent and that every object is there, and moves the head. Objects that
   retention took in between are uploaded again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.codec import Array, Encoded, sha256
from pipeline.errors import Corrupt, Fenced, NotFound, StoreError
from pipeline.lineage import Lineage, Runs
from pipeline.manifest import Group, HistoryEntry, Manifest, Part, TensorEntry
from pipeline.rowlog import Delta, Objects, RowLog, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.keyspace import Keyspace
    from pipeline.log import Partition

#: Of what changed: what a commit may send in all, so that it ends below 1.2 with what is not foreseen.
MAY_MOVE = 1.17
Name = tuple[Group, str]  # of a tensor

TRIES = 3  # of uploading again what retention took


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write one model: a counter for people, a random token for Redis."""

    counter: int
    token: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Draft:
    """What becomes a version. The fields are those of `Manifest`; nothing in it is ever written to.

    The dicts are JSON; numbers that are not finite become null.
    """

    learner: str
    input: dict[str, Any]
    options: dict[str, Any]
    config: dict[str, Any]
    classes: list[str]
    seed: int
    updates: int
    counts: dict[str, int]
    positions: Mapping[Partition, int]
    newest_timestamp_ms: int | None
    metrics: Mapping[str, float]
    environment: dict[str, Any]
    meta: dict[str, Any]
    worker: dict[str, Any]
    lineage: Lineage
    serving: Mapping[str, Array | Delta]
    training: Mapping[str, Array | Delta] | None  # None: this version is no keyframe
    topic_ids: dict[str, str] = field(default_factory=dict)
    pending: Runs = field(default_factory=Runs)


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit made, and what it cost."""

    version: int
    digest: str
    bytes_changed: int  # of tensors: whole objects with new content, and rows that changed
    bytes_moved: int  # objects, manifest and history, as sent


@dataclass(slots=True, eq=False)
class _Prepared:
    """A draft that is ready to be sent, as often as it takes."""

    draft: Draft
    manifest: Manifest
    history: bytes
    objects: dict[str, Encoded]
    changed: int
    sent: int = 0


class Writer:
    """Commits one version after the other, from the head on.

    A commit that raised is tried again with the same draft and gives the same version, also if the first try
    went through and only its answer was lost. No other draft can be committed before.
    """

    def __init__(
        self,
        keys: Keyspace,
        fence: Fence,
        parent: Manifest | None,
        last_version: int,
        clock: Callable[[], float],
    ) -> None:
        self._keys = keys
        self._fence = fence
        self._parent = parent
        self._last_version = last_version  # also where there is no parent: a number is never used twice
        self._clock = clock
        self._logs: dict[Name, RowLog] = {}  # of (group, name), where the last commit had a delta
        self._prepared: _Prepared | None = None

    def commit(self, draft: Draft) -> Committed:
        """Makes the draft the head.

        Raises:
            Fenced: another worker has this model now.
            StoreUnavailable: try again with the same draft.
            StoreError: the head is not the version that this writer left there.
            ValueError: a delta does not fit the parent's tensor, or another draft has yet to be committed.
        """
        if self._prepared is None:
            try:
                self._prepared = self._prepare(draft)
            except NotFound as error:
                # A head stays while its writer holds the model: another one took it and removed this parent.
                raise Fenced(f"{error} {self._keys.model} was taken from this worker, or reset: stop it.") from None
        prepared = self._prepared
        if prepared.draft is not draft:
            raise ValueError(f"The draft of version {prepared.manifest.version} has to be committed first.")
        self._send(prepared)
        manifest = prepared.manifest
        self._parent, self._last_version, self._prepared = manifest, manifest.version, None
        return Committed(manifest.version, manifest.digest, prepared.changed, prepared.sent)

    # --- sending ---

    def _send(self, prepared: _Prepared) -> None:
        manifest = prepared.manifest
        parent = str(manifest.parent) if manifest.parent else ""
        ref = str(manifest.ref)
        prepared.sent += self._keys.upload(prepared.objects)
        for _ in range(TRIES):
            answer, *rest = self._keys.run(
                "commit",
                self._fence.token,
                manifest.model,
                parent,
                ref,
                manifest.version,
                manifest.raw,
                prepared.history,
            )
            prepared.sent += len(manifest.raw) + len(prepared.history)
            if answer == b"done":
                return
            if answer == b"fenced":
                raise Fenced(
                    f"Another worker took {manifest.model}: version {manifest.version} is refused. "
                    f"Stop this one; the other goes on from the head."
                )
            if answer == b"moved":
                raise StoreError(
                    f"The head of {manifest.model} is {rest[0].decode() or 'gone'}, but this worker went on "
                    f"from {parent or 'nothing'}: Redis came back older. Start the worker again."
                )
            missing = [digest.decode() for digest in rest]
            lost = [digest for digest in missing if digest not in prepared.objects]
            if lost:
                raise Corrupt(
                    f"Object {lost[0][:12]}, which {parent} names, is gone. "
                    f"Give Redis maxmemory-policy noeviction, and start the worker again."
                )
            prepared.sent += self._keys.upload({digest: prepared.objects[digest] for digest in missing})
        raise StoreError(f"Objects of {ref} are taken as soon as they are uploaded. Check what else writes to Redis.")

    # --- preparing ---

    def _prepare(self, draft: Draft) -> _Prepared:
        tensors: dict[Name, Array | Delta] = {("serving", name): value for name, value in draft.serving.items()}
        tensors |= {("training", name): value for name, value in (draft.training or {}).items()}
        deltas = {name: value for name, value in tensors.items() if isinstance(value, Delta)}
        # The only step that can fail for a while comes before anything is changed.
        self._logs = {name: self._log(name, delta) for name, delta in deltas.items()}
        version = self._last_version + 1
        created_ms = int(self._clock() * 1000)
        parent = self._parent.ref if self._parent else None
        history = HistoryEntry(
            version=version,
            parent=parent,
            created_ms=created_ms,
            updates=draft.updates,
            counts=draft.counts,
            metrics=dict(draft.metrics),
            lineage=draft.lineage,
        )
        history_raw = history.model_dump_json(exclude_none=True).encode()

        objects = _Objects(self._parent)
        entries: dict[Name, TensorEntry] = {}
        for name, value in tensors.items():
            if isinstance(value, Array):
                parts = objects.add(whole(value))
                entries[name] = TensorEntry(dtype=value.dtype, shape=value.shape, parts=tuple(parts))
        changed = objects.new_bytes
        partial = [delta for delta in deltas.values() if not delta.is_whole]
        changed += sum(delta.values.data.nbytes for delta in partial)
        overhead = len(history_raw) + (len(self._parent.raw) if self._parent else 0)
        overhead += sum(delta.index_bytes for delta in partial)
        spare = max(0.0, (MAY_MOVE - 1) * changed - overhead)
        tracked_bytes = sum(log.nbytes for log in self._logs.values())
        for name, delta in deltas.items():
            log = self._logs[name]
            before = objects.new_bytes
            objects.add(log.append(delta, int(spare * log.nbytes / max(1, tracked_bytes))))
            changed += objects.new_bytes - before if delta.is_whole else 0
            entries[name] = log.entry

        watermark: dict[str, dict[int, int]] = {}
        for (topic, number), offset in sorted(draft.positions.items()):
            watermark.setdefault(topic, {})[number] = offset
        manifest = Manifest(
            model=self._keys.model,
            family=self._keys.family,
            version=version,
            parent=parent,
            created_ms=created_ms,
            learner=draft.learner,
            input=draft.input,
            options=draft.options,
            config=draft.config,
            classes=draft.classes,
            seed=draft.seed,
            updates=draft.updates,
            counts=draft.counts,
            watermark=watermark,
            topic_ids=draft.topic_ids,
            pending=draft.pending,
            newest_timestamp_ms=draft.newest_timestamp_ms,
            metrics=dict(draft.metrics),
            environment=draft.environment,
            meta=draft.meta,
            worker=draft.worker,
            lineage=sha256(history_raw),
            serving={n: entry for (group, n), entry in entries.items() if group == "serving"},
            training={n: entry for (group, n), entry in entries.items() if group == "training"},
        )
        return _Prepared(draft, manifest, history_raw, objects.new, changed)

    def _log(self, name: Name, delta: Delta) -> RowLog:
        """The log that a delta belongs to: a new one for a whole tensor, the one at hand, or the parent's."""
        if delta.is_whole:
            return RowLog(delta.values.dtype, delta.values.shape)
        if name in self._logs:
            return self._logs[name]
        group, tensor = name
        entry = self._parent.tensors(group).get(tensor) if self._parent else None
        if entry is None:
            raise ValueError(f"The parent has no {group} tensor {tensor}. Send it whole first.")
        return RowLog.load(entry, self._keys.fetch({tensor: entry}, self._last_version))


class _Objects:
    """The objects of a version, apart those that the parent does not name."""

    def __init__(self, parent: Manifest | None) -> None:
        entries = [*parent.serving.values(), *parent.training.values()] if parent else []
        self._known = {part.digest for entry in entries for part in entry.parts}
        self.new: dict[str, Encoded] = {}

    @property
    def new_bytes(self) -> int:
        return sum(encoded.bytes for encoded in self.new.values())

    def add(self, objects: Objects) -> list[Part]:
        self.new.update((part.digest, encoded) for part, encoded in objects if part.digest not in self._known)
        return [part for part, _ in objects]
