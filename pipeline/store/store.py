"""The snapshot store: immutable versions of one model. The keys are documented in docs/formats.md."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

from redis import Redis

from pipeline.errors import ConfigError, Corrupt, Fenced, HeadMoved, NotFound, StoreError
from pipeline.records import Place
from pipeline.store.codec import Array, sha256
from pipeline.store.manifest import Group, HistoryEntry, Manifest, Ref, TensorEntry
from pipeline.store.objects import Objects, RedisObjects, fetch
from pipeline.store.redis import Event, Fence, Holding, Keyspace
from pipeline.store.rowlog import assemble
from pipeline.store.writer import Writer

AFTER_S = 30.0  # how long a version that accounts for a record is waited for
BLOCK_MS = 1000  # how long one call waits for an event
LATEST = "latest"
ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
DIGEST_PREFIX = re.compile(r"[0-9a-f]{8,64}")
BATCH = 64  # versions that one script removes: Redis serves nobody else meanwhile
HISTORY_BATCH = 256  # entries that are fetched at once


class Store:
    """One model's versions.

    Every method raises `StoreUnavailable` where Redis cannot be reached or takes no writes; the same call can
    succeed later. Every change is one atomic step that may be repeated.

    Args:
        max_bytes: that loading what serving needs of a version may take, or what only training needs.
    """

    def __init__(
        self,
        redis: Redis,
        family: str,
        model: str,
        clock: Callable[[], float] = time.time,
        *,
        max_bytes: float = math.inf,
    ) -> None:
        self._redis = redis
        self._max_bytes = max_bytes
        self._keys = Keyspace(redis, family, model)
        self._objects: Objects = RedisObjects(self._keys)
        self._clock = clock
        self.family, self.model = family, model

    def sibling(self, family: str, model: str) -> Store:
        """Another model's versions in the same Redis."""
        return Store(self._redis, family, model, self._clock, max_bytes=self._max_bytes)

    # --- the writer's lease ---

    def acquire(self, owner: str, lease_s: float) -> Fence | None:
        """Takes the right to write for `lease_s`, or None: another holds it."""
        token = secrets.token_hex(16)
        counter = self._keys.run("acquire", token, owner, _ms(lease_s))
        return None if counter is None else Fence(int(counter), token)

    def renew(self, fence: Fence, lease_s: float, stalled: str | None = None) -> None:
        """Renews the right to write. One that ran out can be renewed as long as nobody else took it.

        Args:
            stalled: what the writer has been at for too long, for whoever watches.

        Raises:
            Fenced: another took it.
            HeadMoved: Redis came back from a time before it was taken.
        """
        if not self._keys.run("renew", fence.token, _ms(lease_s), stalled or ""):
            raise self._lost_lease(fence)

    def release(self, fence: Fence) -> None:
        """Gives up the right to write. Nothing happens if another took it."""
        self._keys.run("renew", fence.token, 0, "")

    def holder(self) -> str | None:
        """Who holds a live lease."""
        holding = self.holding()
        return holding.owner if holding and holding.alive else None

    def holding(self) -> Holding | None:
        """Who has the writer's lease, be it alive or not; None: its holder gave it up."""
        return self._keys.holding()

    def writer(self, fence: Fence, above: int = 0) -> Writer:
        """Returns a writer that commits versions after the current head.

        New version numbers are greater than `above` and than every number used before.

        Raises:
            Corrupt: the head, or the keyframe that it goes back to, is damaged, or of a newer format.
            NotFound: one of them is gone.
        """
        self._keys.register()
        head = self.head()
        parent = self.manifest(head) if head else None
        keyframe = self.keyframe(parent) if parent else None
        last = max(self._keys.last_version(), above)
        return Writer(self._keys, self._objects, fence, parent, keyframe, last, self._clock)

    def retire(self, fence: Fence, keep_last: int, keep_every: int | None = None) -> list[int]:
        """Removes versions, but not the last `keep_last`, one in every `keep_every`, and what an alias names.

        The keyframe that one of these goes back to stays, too. Objects that no version of the family names any more
        are removed with the versions; the history stays.

        Returns:
            The numbers of the versions that were removed.

        Raises:
            Fenced: another took the right to write.
            HeadMoved: Redis came back from a time before it was taken.
        """
        retired: list[int] = []
        while True:
            batch = self._keys.run("retire", fence.token, self.model, keep_last, keep_every or 0, BATCH)
            if batch is None:
                raise self._lost_lease(fence)
            versions, unnamed = batch
            self._drop(unnamed)
            retired += map(int, versions)
            if len(versions) < BATCH:
                return retired

    # --- reading ---

    def head(self) -> Ref | None:
        """The newest version."""
        return self._keys.head()

    def versions(self) -> list[Ref]:
        """All versions that are kept, oldest first."""
        return self._keys.versions()

    def aliases(self) -> dict[str, Ref]:
        """What the aliases name."""
        return self._keys.aliases()

    def resolve(self, name: str) -> Ref:
        """The version that "latest", an alias, a number or at least eight digits of a digest name.

        Raises:
            NotFound: none, or a digest's beginning that fits several.
        """
        if name == LATEST:
            found = [head] if (head := self.head()) else []
        elif name.isascii() and name.isdecimal():
            found = self._keys.versions(name)
        else:
            found = [ref] if (ref := self._keys.alias(name)) else []
        if not found and DIGEST_PREFIX.fullmatch(name):
            found = [ref for ref in self.versions() if ref.digest.startswith(name)]
        if len(found) != 1:
            what = f"{len(found)} versions" if found else "no version"
            raise NotFound(f"{name} names {what} of {self.model}. `headrace versions {self.model}` lists them.")
        return found[0]

    def manifest(self, version: Ref | int | str = LATEST) -> Manifest:
        """A version's manifest, checked against its digest.

        Raises:
            NotFound: as `resolve`.
            Corrupt: it is damaged, or of a newer format.
        """
        ref = version if isinstance(version, Ref) else self.resolve(str(version))
        what = f"The manifest of version {ref.version} of {self.model}"
        raw = self._keys.document(f"manifest:{ref.version}", what)
        if raw is None or (sha256(raw) != ref.digest and not self._keys.keeps(ref)):
            raise NotFound(
                f"Version {ref.version} of {self.model} is not kept any more. "
                f"`headrace versions {self.model}` lists those that are."
            )
        if sha256(raw) != ref.digest:
            raise Corrupt(
                f"{what} has other bytes than were stored. Use another version, or restore Redis from a backup."
            )
        manifest = Manifest.read(raw, what)
        if manifest.version != ref.version:
            raise Corrupt(f"{what} is one of version {manifest.version}. Use another version.")
        return manifest

    def keyframe(self, manifest: Manifest) -> Manifest:
        """The version that holds the training state which this one goes on from: itself, or an ancestor.

        Raises:
            NotFound: the version is not kept any more.
            Corrupt: as `manifest`.
        """
        return self.manifest(manifest.keyframe) if manifest.keyframe else manifest

    def arrays(
        self, manifest: Manifest, group: Group, cache: MutableMapping[str, bytes] | None = None
    ) -> dict[str, Array]:
        """A version's tensors, each object checked against its digest.

        `cache` (digest → object) is read, and afterwards holds exactly this version's objects of the group:
        kept from one version to the next, only what changed is fetched. Arrays are not to be written to.

        Raises:
            ConfigError: they take more than may be loaded; nothing was fetched.
            Corrupt: names tensor and version.
        """
        manifest.check_size(group, self._max_bytes)
        tensors = manifest.tensors(group)
        cached = {} if cache is None else dict(cache)
        objects = cached | fetch(self._objects, self._keys, tensors, manifest.ref, cached)
        if cache is not None:
            cache.clear()
            cache.update((part.digest, objects[part.digest]) for entry in tensors.values() for part in entry.parts)
        return {name: self._assembled(manifest, name, entry, objects) for name, entry in tensors.items()}

    def each(self, manifest: Manifest, group: Group, cached: Mapping[str, bytes]) -> Iterator[tuple[str, Array]]:
        """The same, one tensor after the other: beside what is `cached`, no more than one is in memory.

        Raises:
            ConfigError, Corrupt: as `arrays`.
        """
        manifest.check_size(group, self._max_bytes)
        for name, entry in manifest.tensors(group).items():
            fetched = fetch(self._objects, self._keys, {name: entry}, manifest.ref, cached)
            yield name, self._assembled(manifest, name, entry, ChainMap(fetched, dict(cached)))

    def _assembled(self, manifest: Manifest, name: str, entry: TensorEntry, objects: Mapping[str, bytes]) -> Array:
        try:
            return assemble(entry, objects)
        except Corrupt as error:
            raise Corrupt(f"Tensor {name} of version {manifest.version} of {self.model}: {error}") from None

    def history(self, version: int) -> HistoryEntry:
        """The entry of a version, which outlives it: its `lineage` is what it learned since its parent.

        Raises:
            NotFound: there never was such a version, or not since the last reset.
            Corrupt: the entry is damaged, or of a newer format.
        """
        for entry in self._histories([version]):
            return entry
        raise NotFound(f"There is no version {version} of {self.model}. Its last reset may have removed it.")

    def histories(self, above: int = 0) -> Iterator[HistoryEntry]:
        """The entries of all versions with numbers `above` this one, oldest first. Each is the parent of the next.

        Raises:
            Corrupt: as `history`.
        """
        count = self._keys.entry_count()
        numbers: Sequence[int] = range(above + 1, self._keys.last_version() + 1)
        if len(numbers) > 2 * count + HISTORY_BATCH:  # most of them were never used
            numbers = sorted(number for number in self._keys.entry_numbers() if number > above)
        for start in range(0, len(numbers), HISTORY_BATCH):
            yield from self._histories(numbers[start : start + HISTORY_BATCH])

    def ancestry(self, version: int, batch: int = HISTORY_BATCH) -> Iterator[HistoryEntry]:
        """The entries of a version and of its ancestors. Each is the parent of the one before.

        Args:
            batch: how many are read at first; then twice as many, up to `HISTORY_BATCH`.

        Raises:
            Corrupt: as `history`.
        """
        wanted: int | None = version
        while wanted is not None:
            before = wanted
            for entry in self._histories(range(wanted, max(wanted - batch, 0), -1)):
                if entry.version == wanted:
                    yield entry
                    wanted = entry.parent.version if entry.parent else None
                    if wanted is not None and wanted >= entry.version:  # whoever follows a ring goes round for ever
                        raise Corrupt(f"The history of {self.model} goes from {entry.version} back to {wanted}.")
            if wanted == before:
                return
            batch = min(2 * batch, HISTORY_BATCH)

    def events(self, after_id: str, block_ms: int | None = None) -> list[Event]:
        """What happened in the family after an event ("0": all that is remembered, "$": from now on).

        Waits for up to `block_ms` for the first; None: does not wait.
        """
        return self._keys.events(after_id, block_ms)

    def wait_for(self, places: Sequence[Place], timeout_s: float = AFTER_S) -> None:
        """Returns once the newest version accounts for these records.

        Raises:
            NotFound: none does in time.
        """
        deadline_s, last = time.monotonic() + timeout_s, "0"
        while places and not self._account_for(places):
            if (left_s := deadline_s - time.monotonic()) <= 0:
                missing = ", ".join(map(str, places))
                late = f"No version of {self.model} accounts for {missing} within {timeout_s:.0f} s."
                raise NotFound(f"{late} See that its worker runs.")
            for event in self.events(last, max(1, min(BLOCK_MS, int(1000 * left_s)))):
                last = event.id

    def _account_for(self, places: Sequence[Place]) -> bool:
        head = self.head()
        return head is not None and all(map(self.manifest(head).accounts_for, places))

    # --- administration ---

    def set_alias(self, name: str, version: Ref | int | str) -> Ref:
        """Points an alias at a version.

        Raises:
            ConfigError: the name could be taken for a number, or has odd characters.
            NotFound: there is no such version.
        """
        if not ALIAS.fullmatch(name) or name.isdecimal() or name == LATEST:
            raise ConfigError(
                f"{name!r} cannot be an alias. Use lower-case letters, digits, '.', '_' and '-', not digits "
                f"alone, and not {LATEST!r}, which always is the newest version."
            )
        ref = version if isinstance(version, Ref) else self.resolve(str(version))
        if not self._keys.run("alias", self.model, name, str(ref)):
            raise NotFound(f"Version {ref.version} of {self.model} is not kept any more. Use a newer one.")
        return ref

    def delete_alias(self, name: str) -> None:
        """Removes an alias.

        Raises:
            NotFound: there is none of this name.
        """
        if not self._keys.run("alias", self.model, name, ""):
            raise NotFound(f"{self.model} has no alias {name}. `headrace versions {self.model}` lists them.")

    def reset(self) -> None:
        """Removes every version, alias and the history: the model starts anew. Numbers are not used again.

        Raises:
            StoreError: a worker holds the model.
        """
        self._clear("reset")

    def delete(self) -> None:
        """Removes the model, but no object that another model of its family uses.

        Raises:
            StoreError: a worker holds the model.
        """
        self._clear("delete")
        self._keys.unregister()

    def _clear(self, kind: str) -> None:
        left = BATCH
        while left:
            left, unnamed = self._keys.run("clear", self.model, kind, BATCH)
            if left < 0:
                raise StoreError(f"{self.holder()} holds {self.model}. Stop it first.")
            self._drop(unnamed)

    def _drop(self, unnamed: list[bytes]) -> None:
        """Removes objects that lost their last version."""
        if unnamed:
            self._objects.delete(digest.decode() for digest in unnamed)

    def _histories(self, numbers: Sequence[int]) -> Iterator[HistoryEntry]:
        """The entries that exist. Each is checked against its manifest, where that is kept."""
        for number, (raw, manifest) in zip(numbers, self._keys.entries(numbers), strict=True):
            if raw is None:
                continue
            version = f"version {number} of {self.model}"
            if manifest and Manifest.read(manifest, f"The manifest of {version}").lineage != sha256(raw):
                raise Corrupt(
                    f"The history of {version} has other bytes than were stored. Restore Redis from a backup."
                )
            yield HistoryEntry.read(raw, f"The history of {version}")

    def _lost_lease(self, fence: Fence) -> Fenced | HeadMoved:
        # Without a reason it was given up, or has come back meanwhile: to stop is right in any case.
        return self._keys.lost_lease(fence) or Fenced(f"This worker does not hold {self.model} any more. Stop it.")


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
