"""One commit: what changed becomes objects, a manifest and an entry of the history, and then the head.

Tensors become objects under digests. Those that the parent or the keyframe names already are not sent. Retention may
remove others between their upload and the move of the head: those are uploaded again.

A version without training state names its keyframe: the nearest ancestor that has one. The next keyframe's training
state is what changed since that one, however many versions lie between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.errors import Corrupt, Fenced, HeadMoved, NotFound, StoreError
from pipeline.store.codec import Array, Encoded, sha256
from pipeline.store.lineage import Lineage
from pipeline.store.manifest import About, Group, HistoryEntry, Manifest, Part, Ref, TensorEntry
from pipeline.store.objects import Objects, fetch
from pipeline.store.redis import Fence, Keyspace
from pipeline.store.rowlog import Delta, Pieces, RowLog, whole

#: Of what changed: what a commit may send in all, so that it ends below 1.2 with what is not foreseen.
MAY_MOVE = 1.17
Name = tuple[Group, str]  # of a tensor

TRIES = 3  # of uploading again what retention took


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """What becomes a version. Nothing in it is ever written to."""

    about: About
    lineage: Lineage
    serving: Mapping[str, Array | Delta]
    training: Mapping[str, Array | Delta] | None  # None: this version is no keyframe


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit made, and what it cost."""

    version: int
    digest: str
    bytes_changed: int  # of tensors: whole objects with new content, and rows that changed
    bytes_moved: int  # objects, manifest and history, as sent
    keyframe: bool  # whether it holds what training needs, too


@dataclass(slots=True, eq=False)
class _Prepared:
    """A draft that is ready to be sent, and to be sent again where a try fails."""

    draft: Draft
    manifest: Manifest
    history: bytes
    objects: dict[str, Encoded]
    changed: int
    sent: int = 0


@dataclass(eq=False)
class Writer:
    """Commits one version after the other, from the head on.

    A commit that raised is tried again with the same draft. It gives the same version, even if the first try went
    through and only its answer was lost. No other draft can be committed before.
    """

    keys: Keyspace
    objects: Objects
    fence: Fence
    parent: Manifest | None
    keyframe: Manifest | None  # the parent, or the ancestor that it goes back to
    last_version: int  # also where there is no parent: a number is never used twice
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._logs: dict[Name, RowLog] = {}  # where the parent, or for training the keyframe, had a delta
        self._prepared: _Prepared | None = None

    @property
    def next_version(self) -> int:
        """The number of the next commit. Where a draft is waiting to be committed, it is that draft's."""
        return self.last_version + 1

    def commit(self, draft: Draft) -> Committed:
        """Makes the draft the head.

        Raises:
            Fenced: another worker has this model now, or it was reset.
            HeadMoved: the head is not the version that this writer left there.
            StoreUnavailable: try again with the same draft.
            ValueError: a delta does not fit the tensor before it, the first version has no training state, or
                another draft has yet to be committed.
        """
        if self._prepared is None:
            try:
                self._prepared = self._prepare(draft)
            except NotFound:  # a head and its keyframe stay while their writer holds the model
                raise self._lost_lease() from None
        prepared = self._prepared
        if prepared.draft is not draft:
            raise ValueError(f"The draft of version {prepared.manifest.version} has to be committed first.")
        self._send(prepared)
        manifest = prepared.manifest
        self.parent, self.last_version, self._prepared = manifest, manifest.version, None
        if manifest.is_keyframe:
            self.keyframe = manifest
        return Committed(manifest.version, manifest.digest, prepared.changed, prepared.sent, manifest.is_keyframe)

    # --- sending ---

    def _send(self, prepared: _Prepared) -> None:
        manifest = prepared.manifest
        ref = str(manifest.ref)
        prepared.sent += self.objects.put_if_absent(prepared.objects)
        for _ in range(TRIES):
            answer, *missing = self.keys.run(
                "commit",
                self.fence.token,
                manifest.model,
                _text(manifest.parent),
                ref,
                manifest.version,
                _text(manifest.keyframe),
                manifest.raw,
                prepared.history,
            )
            prepared.sent += len(manifest.raw) + len(prepared.history)
            if answer == b"done":
                return
            if answer in (b"fenced", b"moved"):
                raise self._lost_lease()
            digests = [digest.decode() for digest in missing]
            lost = [digest for digest in digests if digest not in prepared.objects]
            if lost:
                raise Corrupt(
                    f"Object {lost[0][:12]}, which version {manifest.version} of {manifest.model} shares with earlier "
                    f"ones, is gone. Give Redis maxmemory-policy noeviction, and restore it from a backup, or start "
                    f"anew with `headrace reset`."
                )
            prepared.sent += self.objects.put_if_absent({digest: prepared.objects[digest] for digest in digests})
        raise StoreError(f"Objects of {ref} are taken as soon as they are uploaded. Check what else writes to Redis.")

    def _lost_lease(self) -> Fenced | HeadMoved:
        if error := self.keys.lost_lease(self.fence):
            return error
        return HeadMoved(
            f"The head of {self.keys.model} is {self.keys.head() or 'gone'}, but this worker left "
            f"{self.parent.ref if self.parent else 'none'} there: Redis came back older than it was, or was changed "
            f"by hand. The worker starts again from what is there."
        )

    # --- preparing ---

    def _prepare(self, draft: Draft) -> _Prepared:
        if draft.training is None and self.keyframe is None:
            raise ValueError("The first version has no training state to go back to. Give it its own.")
        tensors: dict[Name, Array | Delta] = {("serving", name): value for name, value in draft.serving.items()}
        tensors |= {("training", name): value for name, value in (draft.training or {}).items()}
        deltas = {name: value for name, value in tensors.items() if isinstance(value, Delta)}
        # The only step that can fail for a while comes before anything is changed.
        logs = {name: self._log(name, delta) for name, delta in deltas.items()}
        kept = {name: log for name, log in self._logs.items() if name[0] == "training"}
        self._logs = logs if draft.training is not None else kept | logs
        version = self.last_version + 1
        created_ms = int(self.clock() * 1000)
        parent = self.parent.ref if self.parent else None
        history = HistoryEntry(
            version=version,
            parent=parent,
            created_ms=created_ms,
            updates=draft.about.updates,
            counts=draft.about.counts,
            metrics=draft.about.metrics,
            lineage=draft.lineage,
        )
        history_raw = history.model_dump_json(exclude_none=True).encode()

        objects = _New(self.parent, self.keyframe)
        entries: dict[Name, TensorEntry] = {}
        for name, value in tensors.items():
            if isinstance(value, Array):
                parts = objects.add(whole(value))
                entries[name] = TensorEntry(dtype=value.dtype, shape=value.shape, parts=tuple(parts))
        changed = objects.new_bytes
        partial = [delta for delta in deltas.values() if not delta.is_whole]
        changed += sum(delta.values.data.nbytes for delta in partial)
        before = self.parent if draft.training is None else self.keyframe
        overhead = len(history_raw) + (len(before.raw) if before else 0)
        overhead += sum(delta.index_bytes for delta in partial)
        spare = max(0.0, (MAY_MOVE - 1) * changed - overhead)
        tracked_bytes = sum(log.nbytes for log in logs.values())
        for name, delta in deltas.items():
            log = logs[name]
            stored = objects.new_bytes
            objects.add(log.append(delta, int(spare * log.nbytes / max(1, tracked_bytes))))
            changed += objects.new_bytes - stored if delta.is_whole else 0
            entries[name] = log.entry

        manifest = Manifest(
            **dict(draft.about),
            model=self.keys.model,
            family=self.keys.family,
            version=version,
            parent=parent,
            created_ms=created_ms,
            keyframe=self.keyframe.ref if self.keyframe and draft.training is None else None,
            lineage=sha256(history_raw),
            serving={n: entry for (group, n), entry in entries.items() if group == "serving"},
            training={n: entry for (group, n), entry in entries.items() if group == "training"},
        )
        return _Prepared(draft, manifest, history_raw, objects.new, changed)

    def _log(self, name: Name, delta: Delta) -> RowLog:
        """The log that a delta belongs to: a new one for a whole tensor, else the one in memory or the one in Redis."""
        if delta.is_whole:
            return RowLog(delta.values.dtype, delta.values.shape)
        if name in self._logs:
            return self._logs[name]
        group, tensor = name
        before = self.parent if group == "serving" else self.keyframe
        entry = before.tensors(group).get(tensor) if before else None
        if before is None or entry is None:
            raise ValueError(f"There is no {group} tensor {tensor} before this version. Send it whole first.")
        return RowLog.load(entry, fetch(self.objects, self.keys, {tensor: entry}, before.ref))


class _New:
    """The objects of a version that neither the parent nor the keyframe names."""

    def __init__(self, *before: Manifest | None) -> None:
        groups = [group for manifest in before if manifest for group in (manifest.serving, manifest.training)]
        self._named = {part.digest for group in groups for entry in group.values() for part in entry.parts}
        self.new: dict[str, Encoded] = {}

    @property
    def new_bytes(self) -> int:
        return sum(encoded.bytes for encoded in self.new.values())

    def add(self, objects: Pieces) -> list[Part]:
        self.new.update((part.digest, encoded) for part, encoded in objects if part.digest not in self._named)
        return [part for part, _ in objects]


def _text(ref: Ref | None) -> str:
    return str(ref) if ref else ""
