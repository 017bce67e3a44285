"""The objects that tensors are made of: bytes under the SHA-256 of those bytes, written once and never changed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Protocol

from pipeline.errors import Corrupt, NotFound, StoreError
from pipeline.store.codec import Encoded, sha256
from pipeline.store.manifest import Ref, TensorEntry
from pipeline.store.redis import Keyspace, translated

UNCOMMITTED_S = 3600  # what is uploaded and never committed goes away by itself after this long
TRANSFER_BYTES = 32 << 20  # objects are sent and fetched in batches of about this size


class Objects(Protocol):
    """Where the objects of a family lie. Each method takes many of them, so that a commit costs few round trips.

    No object that a commit needs is ever deleted under it. Redis counts how many versions name each object. The commit
    script checks, in the step that counts them and moves the head, that every object is there; what is missing is
    uploaded again. `delete` spares what is counted, in one step with looking. So a deletion comes before the commit,
    which then sees it, or after it, and then does nothing.
    """

    def put_if_absent(self, objects: Mapping[str, Encoded]) -> int:
        """Stores the objects that are not there. They go away by themselves unless a commit names them soon.

        Returns:
            The bytes that were sent.
        """

    def get(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        """Each object by its digest: as many bytes as given here and one more, so that a larger one is seen and not
        fetched. Of an object that is not there b""."""

    def delete(self, digests: Iterable[str]) -> None:
        """Removes the objects that no version names."""

    def list(self) -> Iterator[str]:
        """The digests of all objects, in no order."""


class RedisObjects:
    """Objects as strings in Redis."""

    def __init__(self, keys: Keyspace) -> None:
        self._redis, self._keys = keys.redis, keys

    def put_if_absent(self, objects: Mapping[str, Encoded]) -> int:
        sent = 0
        for batch in _batches((digest, encoded.bytes) for digest, encoded in objects.items()):
            with translated():
                keys = [self._key(digest) for digest in batch]
                pipe = self._redis.pipeline(transaction=False)
                for key in keys:
                    pipe.exists(key)
                there = pipe.execute()
                for digest, key, exists in zip(batch, keys, there, strict=True):
                    if not exists:
                        # Never over one that is there: it would get a TTL, and may be in use.
                        pipe.set(key, objects[digest].serialized(), ex=UNCOMMITTED_S, nx=True)
                        sent += objects[digest].bytes
                pipe.execute()
        return sent

    def get(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        for batch in _batches(sizes.items()):
            with translated():
                pipe = self._redis.pipeline(transaction=False)
                for digest in batch:
                    pipe.getrange(self._key(digest), 0, sizes[digest])
                found = pipe.execute()
            yield from zip(batch, found, strict=True)

    def delete(self, digests: Iterable[str]) -> None:
        self._keys.run("drop", *digests)

    def list(self) -> Iterator[str]:
        prefix = self._key("")
        with translated():
            for key in self._redis.scan_iter(prefix + "*", count=1000):
                yield key.decode().removeprefix(prefix)

    def _key(self, digest: str) -> str:
        return self._keys.family_key(f"tensor:{digest}")


def fetch(
    objects: Objects,
    keys: Keyspace,
    tensors: Mapping[str, TensorEntry],
    version: Ref,
    cached: Container[str] = (),
) -> dict[str, bytes]:
    """The objects of a version's tensors that are not `cached`, by digest, each checked against it.

    Raises:
        NotFound: the version was removed meanwhile.
        Corrupt: an object is gone, or its bytes are not those of its digest; names tensor and version.
    """
    parts = {part.digest: (name, part.bytes) for name, entry in tensors.items() for part in entry.parts}
    found: dict[str, bytes] = {}
    for digest, raw in objects.get({digest: size for digest, (_, size) in parts.items() if digest not in cached}):
        name, size = parts[digest]
        if len(raw) != size or sha256(raw) != digest:
            raise _broken(keys, name, version, digest, not raw)
        found[digest] = raw
    return found


def _broken(keys: Keyspace, tensor: str, version: Ref, digest: str, gone: bool) -> StoreError:
    if not keys.keeps(version):
        return NotFound(f"Version {version.version} of {keys.model} is not kept any more. Use a newer one.")
    what = f"Tensor {tensor} of version {version.version} of {keys.model}: object {digest[:12]}"
    if gone:
        return Corrupt(f"{what} is gone. Use another version, and give Redis maxmemory-policy noeviction.")
    return Corrupt(f"{what} has other bytes than were stored. Use another version, or restore Redis from a backup.")


def _batches(sizes: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    batch: list[str] = []
    total = 0
    for digest, size in sizes:
        batch.append(digest)
        total += size
        if total >= TRANSFER_BYTES:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
