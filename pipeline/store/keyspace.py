"""The one place that talks to Redis: keys, scripts, objects, and the translation of its errors."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

from redis import Redis, exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import ConfigError, Corrupt, NotFound, StoreError, StoreUnavailable
from pipeline.local.passwords import password_of
from pipeline.store.codec import Encoded, sha256
from pipeline.words import said

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    from pipeline.store.manifest import Ref, TensorEntry

REGISTRY = "headrace:models"  # a set of "family:model"
UNCOMMITTED_S = 3600  # what is uploaded and never committed goes away by itself after this long
DOCUMENT_BYTES = 32 << 20  # of a manifest
TRANSFER_BYTES = 32 << 20  # objects are sent and fetched in batches of about this size

# What Redis says, also from inside a script, where the same command can succeed later.
PASSING = (
    "OOM",
    "MISCONF",
    "READONLY",
    "LOADING",
    "BUSY",
    "NOREPLICAS",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
)
PASSING_TYPES = (
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.ClusterDownError,
    redis_errors.MasterDownError,
    redis_errors.TryAgainError,
)


def connect(url: str) -> Redis:
    """A client with time limits. It repeats a command if the connection breaks: every script can bear it."""
    return from_url(
        url,
        password=password_of(url),
        socket_timeout=30,
        socket_connect_timeout=5,
        health_check_interval=30,
        retry=Retry(NoBackoff(), retries=1),
    )


def from_url(url: str, **settings: Any) -> Redis:
    """A client.

    Raises:
        ConfigError: this is no address of a Redis. It is not repeated: it may hold a password.
    """
    try:
        return Redis.from_url(url, **settings)
    except ValueError:
        raise ConfigError(
            "redis.url cannot be read. Write redis://:PASSWORD@HOST:PORT/0, and what is no letter or digit in the "
            "password as %XX."
        ) from None


@contextmanager
def translated() -> Iterator[None]:
    """Raises redis-py's errors as ours.

    Raises:
        StoreUnavailable: Redis cannot be reached, or does not take writes now.
        StoreError: anything else that it refused.
    """
    try:
        yield
    except (redis_errors.AuthenticationError, redis_errors.AuthorizationError) as error:
        raise StoreError(
            f"Redis refused the credentials: {said(error)}. Give redis.url its password: redis://:PASSWORD@HOST:PORT/0."
        ) from error
    except (redis_errors.ConnectionError, redis_errors.TimeoutError) as error:
        raise StoreUnavailable(
            f"Redis cannot be reached: {said(error)}. See that it runs and that redis.url is right; "
            "`headrace up` starts one on this machine."
        ) from error
    except redis_errors.RedisError as error:
        if isinstance(error, PASSING_TYPES) or any(word in str(error) for word in PASSING):
            raise StoreUnavailable(f"Redis takes no writes: {said(error)}. See to its memory and its disk.") from error
        raise StoreError(
            f"Redis refused a command: {said(error)}. See to its version (6.2 or newer) and to the user's rights."
        ) from error


class Keyspace:
    """One model's keys. All carry the hash tag {family}, so that they lie in one slot of a Redis Cluster."""

    def __init__(self, redis: Redis, family: str, model: str) -> None:
        self.redis = redis
        self.family, self.model = family, model
        self._family = f"headrace:{{{family}}}:"
        self._model = f"{self._family}model:{model}:"
        folder = resources.files("pipeline.store") / "lua"
        common = (folder / "common.lua").read_text("utf-8")
        names = ("acquire", "renew", "commit", "retire", "alias", "clear")
        self._scripts = {
            name: redis.register_script(common + (folder / f"{name}.lua").read_text("utf-8")) for name in names
        }

    def key(self, name: str) -> str:
        """A key of the model."""
        return self._model + name

    def family_key(self, name: str) -> str:
        """A key that the models of the family share."""
        return self._family + name

    def run(self, script: str, *args: str | int | bytes) -> Any:
        """Runs one of the scripts in `lua/`: one atomic step."""
        with translated():
            return self._scripts[script](keys=[self._family, self._model], args=args)

    def register(self) -> None:
        """Makes the model known to those who list models."""
        name = f"{self.family}:{self.model}"
        with translated():
            if not self.redis.sismember(REGISTRY, name):  # at its maxmemory Redis refuses to add what is there, too
                self.redis.sadd(REGISTRY, name)

    def unregister(self) -> None:
        """Takes the model off the list."""
        with translated():
            self.redis.srem(REGISTRY, f"{self.family}:{self.model}")

    def upload(self, objects: Mapping[str, Encoded]) -> int:
        """Stores what is not there yet, for a while: a commit makes it stay. Returns the bytes sent."""
        sent = 0
        for batch in _batches((digest, encoded.bytes) for digest, encoded in objects.items()):
            with translated():
                keys = [self._tensor(digest) for digest in batch]
                pipe = self.redis.pipeline(transaction=False)
                for key in keys:
                    pipe.exists(key)
                there = pipe.execute()
                for digest, key, exists in zip(batch, keys, there, strict=True):
                    if not exists:
                        # Never over one that is there: it would get an end, and may be in use.
                        pipe.set(key, objects[digest].serialized(), ex=UNCOMMITTED_S, nx=True)
                        sent += objects[digest].bytes
                pipe.execute()
        return sent

    def fetch(self, tensors: Mapping[str, TensorEntry], version: Ref, known: Container[str] = ()) -> dict[str, bytes]:
        """The objects of a version's tensors that are not `known`, by digest, each checked against it.

        Raises:
            NotFound: the version was removed meanwhile.
            Corrupt: an object is gone, or its bytes are not those of its digest; names tensor and version.
        """
        parts = {part.digest: (name, part) for name, entry in tensors.items() for part in entry.parts}
        found: dict[str, bytes] = {}
        for batch in _batches((digest, part.bytes) for digest, (_, part) in parts.items() if digest not in known):
            raws = self._beginnings({self._tensor(digest): parts[digest][1].bytes for digest in batch})
            for digest, raw in zip(batch, raws, strict=True):
                if len(raw) != parts[digest][1].bytes or sha256(raw) != digest:
                    raise self._broken(parts[digest][0], version, digest, not raw)
                found[digest] = raw
        return found

    def document(self, name: str, what: str) -> bytes | None:
        """A JSON document of the model's; errors call it `what`.

        Raises:
            Corrupt: it is larger than any that is written.
        """
        [raw] = self._beginnings({self.key(name): DOCUMENT_BYTES})
        if len(raw) > DOCUMENT_BYTES:
            raise Corrupt(f"{what} is larger than {DOCUMENT_BYTES} bytes. Use another version, or restore Redis.")
        return raw or None

    def _beginnings(self, sizes: Mapping[str, int]) -> list[bytes]:
        """Of each key so many bytes and one more, so that what is larger is seen and not fetched; b"" where none is."""
        with translated():
            pipe = self.redis.pipeline(transaction=False)
            for key, size in sizes.items():
                pipe.getrange(key, 0, size)
            return pipe.execute()

    def keeps(self, version: Ref) -> bool:
        """Whether this very version is kept: by its number alone it could be another one."""
        with translated():
            return self.redis.zscore(self.key("versions"), str(version)) is not None

    def _broken(self, tensor: str, version: Ref, digest: str, gone: bool) -> StoreError:
        if not self.keeps(version):
            return NotFound(f"Version {version.version} of {self.model} is not kept any more. Use a newer one.")
        if gone:
            return Corrupt(
                f"Tensor {tensor} of version {version.version} of {self.model}: object {digest[:12]} is gone. "
                f"Use another version, and give Redis maxmemory-policy noeviction."
            )
        return Corrupt(
            f"Tensor {tensor} of version {version.version} of {self.model}: object {digest[:12]} has other bytes "
            f"than were stored. Use another version, or restore Redis from a backup."
        )

    def _tensor(self, digest: str) -> str:
        return f"{self._family}tensor:{digest}"


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
