"""Everything that talks to Redis but the objects: keys, scripts, reads, and the translation of its errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from typing import Any

from redis import Redis, exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.config import NAME
from pipeline.errors import ConfigError, Corrupt, Fenced, HeadMoved, StoreError, StoreUnavailable
from pipeline.local.passwords import password_of
from pipeline.store.manifest import Ref
from pipeline.words import said

REGISTRY = "headrace:models"  # a set of "family:model"
DOCUMENT_BYTES = 32 << 20  # of a manifest
MODELS = 10_000  # that are listed
EVENTS = 20_000  # that are read at once: about twice as many as are remembered
MILLISECONDS = re.compile(rb"[0-9]{1,15}")

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


def _asked(call: Callable[..., Any], *args: Any) -> Any:
    """What Redis answers to this call. Raises as `translated`."""
    with translated():
        return call(*args)


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write one model: a counter for people, a random token for Redis."""

    counter: int
    token: str


@dataclass(frozen=True, slots=True)
class Holding:
    """Who has the writer's lease, whether it lasts, and when its holder gave its last sign of life."""

    owner: str
    alive: bool
    seen_s: float | None  # ago, by the clock of Redis; None: it is of an older headrace
    stalled: str | None = None  # what it has been at for too long

    @property
    def problem(self) -> str | None:
        """Why nothing is learned."""
        if not self.alive:
            return "its worker has died. Start it again, or see why nobody does."
        return self.stalled and f"its worker has been at {self.stalled} for too long, and learns nothing."


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a family. `version` and `digest` are None where none is meant."""

    id: str  # of the stream's entry
    kind: str  # commit, alias, retire, reset, delete
    model: str
    version: int | None
    digest: str | None
    alias: str | None


class Keyspace:
    """One model's keys. All carry the hash tag {family}, so that they lie in one slot of a Redis Cluster."""

    def __init__(self, redis: Redis, family: str, model: str) -> None:
        self.redis = redis
        self.family, self.model = family, model
        self._family = f"headrace:{{{family}}}:"
        self._model = f"{self._family}model:{model}:"
        folder = resources.files("pipeline.store") / "lua"
        common = (folder / "common.lua").read_text("utf-8")
        names = ("acquire", "renew", "commit", "retire", "alias", "clear", "drop")
        self._scripts = {
            name: redis.register_script(common + (folder / f"{name}.lua").read_text("utf-8")) for name in names
        }

    def key(self, name: str) -> str:
        return self._model + name

    def family_key(self, name: str) -> str:
        """A key that the models of the family share."""
        return self._family + name

    def run(self, script: str, *args: str | int | bytes) -> Any:
        """Runs one of the scripts in `lua/`: one atomic step."""
        return _asked(self._scripts[script], [self._family, self._model], args)

    def register(self) -> None:
        name = f"{self.family}:{self.model}"
        if not _asked(self.redis.sismember, REGISTRY, name):  # at its maxmemory it refuses to add what is there, too
            _asked(self.redis.sadd, REGISTRY, name)

    def unregister(self) -> None:
        _asked(self.redis.srem, REGISTRY, f"{self.family}:{self.model}")

    # --- the writer's lease ---

    def holding(self) -> Holding | None:
        """Who has the writer's lease, be it alive or not; None: its holder gave it up."""
        with translated():
            pipe = self.redis.pipeline(transaction=False)
            pipe.hmget(self.key("fence"), ["owner", "seen_ms", "stalled"])
            pipe.exists(self.key("lease"))
            (owner, seen_ms, stalled), alive = pipe.execute()
            now: Any = self.redis.time()  # not in a pipeline: a cluster's takes no command without a key
        if owner is None:
            return None
        seen_s = None
        if seen_ms is not None and MILLISECONDS.fullmatch(seen_ms):
            seen_s = max(0.0, now[0] + now[1] / 1e6 - int(seen_ms) / 1e3)
        return Holding(_text(owner), bool(alive), seen_s, _text(stalled) if stalled else None)

    def lost_lease(self, fence: Fence) -> Fenced | HeadMoved | None:
        """Why a worker may not write any more; None: it may."""
        fields = _asked(self.redis.hmget, self.key("fence"), "counter", "token", "owner")
        held = _asked(self.redis.exists, self.key("lease"))
        counter, token, owner = (None if value is None else _text(value) for value in fields)
        if token == fence.token:
            return None
        if held:
            return Fenced(f"{owner} took {self.model} from this worker and goes on from the head. Stop this one.")
        if _number(counter or "0") < fence.counter and (counter or not self._was_deleted()):
            return HeadMoved(
                f"Redis knows of {counter or 0} workers of {self.model} so far, but this one is number "
                f"{fence.counter}: Redis came back older than it was, or empty, or was changed by hand. The worker "
                f"starts again from what is there."
            )
        return Fenced(
            f"{self.model} is not held by this worker any more, nor by another: one held it meanwhile, or it was "
            f"reset or deleted. Start the worker again if it shall go on from what is there."
        )

    def _was_deleted(self) -> bool:
        """Else there is nothing of the model because Redis came back empty."""
        events = _asked(self.redis.xrange, self.family_key("events"))
        ours = {b"kind": b"delete", b"model": self.model.encode()}
        return any(ours.items() <= fields.items() for _, fields in events)

    # --- versions ---

    def head(self) -> Ref | None:
        ref = _asked(self.redis.get, self.key("head"))
        return Ref.parse(ref) if ref else None

    def versions(self, number: str | None = None) -> list[Ref]:
        """The kept versions, oldest first: all of them, or those with this number."""
        low, high = ("-inf", "+inf") if number is None else (number, number)
        return [Ref.parse(ref) for ref in _asked(self.redis.zrangebyscore, self.key("versions"), low, high)]

    def keeps(self, version: Ref) -> bool:
        """Whether this very version is kept: by its number alone it could be another one."""
        return _asked(self.redis.zscore, self.key("versions"), str(version)) is not None

    def aliases(self) -> dict[str, Ref]:
        aliases = _asked(self.redis.hgetall, self.key("aliases"))
        return {_text(name): Ref.parse(ref) for name, ref in sorted(aliases.items())}

    def alias(self, name: str) -> Ref | None:
        ref = _asked(self.redis.hget, self.key("aliases"), name)
        return Ref.parse(ref) if ref else None

    def last_version(self) -> int:
        """The highest number that was ever used; 0 before the first."""
        return _number(_text(_asked(self.redis.get, self.key("counter")) or b"0"))

    def document(self, name: str, what: str) -> bytes | None:
        """A JSON document of the model; errors call it `what`.

        Raises:
            Corrupt: it is larger than any that is written.
        """
        raw: bytes = _asked(self.redis.getrange, self.key(name), 0, DOCUMENT_BYTES)
        if len(raw) > DOCUMENT_BYTES:
            raise Corrupt(f"{what} is larger than {DOCUMENT_BYTES} bytes. Use another version, or restore Redis.")
        return raw or None

    # --- what happened ---

    def entries(self, numbers: Sequence[int]) -> list[tuple[bytes | None, bytes | None]]:
        """Of each of these versions its entry in the history, and its manifest where that is kept."""
        entries = _asked(self.redis.hmget, self.key("lineage"), [str(number) for number in numbers])
        manifests = _asked(self.redis.mget, [self.key(f"manifest:{number}") for number in numbers])
        return list(zip(entries, manifests, strict=True))

    def entry_count(self) -> int:
        return int(_asked(self.redis.hlen, self.key("lineage")))

    def entry_numbers(self) -> list[int]:
        """The numbers of the versions in the history, in no order."""
        return [_number(_text(number)) for number in _asked(self.redis.hkeys, self.key("lineage"))]

    def events(self, after_id: str, block_ms: int | None) -> list[Event]:
        """What happened in the family after an event; waits for the first for up to `block_ms`."""
        streams = _asked(self.redis.xread, {self.family_key("events"): after_id}, EVENTS, block_ms)
        return [_event(id_, fields) for _, entries in streams or () for id_, fields in entries]


def models(redis: Redis) -> list[tuple[str, str]]:
    """Every (family, model) that a worker ever took, sorted; of more than MODELS, some of them."""
    with translated():
        members = set(islice(redis.sscan_iter(REGISTRY, count=MODELS), MODELS))
    pairs = (_text(member).partition(":") for member in members)
    return sorted((family, model) for family, _, model in pairs if re.match(NAME, family) and re.match(NAME, model))


def _event(id_: bytes, fields: dict[bytes, bytes]) -> Event:
    """A field that is damaged is as one that is not there: nobody can go on reading at the next one otherwise."""
    text = {key: _text(value) for key, value in fields.items()}
    version = text.get(b"version", "")
    return Event(
        id=id_.decode(),
        kind=text.get(b"kind", ""),
        model=text.get(b"model", ""),
        version=int(version) if re.fullmatch("[0-9]{1,18}", version) else None,
        digest=text.get(b"digest") or None,
        alias=text.get(b"alias") or None,
    )


def _text(raw: bytes) -> str:
    """Whatever its bytes are."""
    return raw.decode(errors="replace")


def _number(text: str) -> int:
    """
    Raises:
        Corrupt: it is no number of a version or of a worker.
    """
    if re.fullmatch("[0-9]{1,15}", text):  # of more digits Lua has no exact numbers
        return int(text)
    raise Corrupt(f"Redis counts {text[:80]!r}, which is no number. Restore Redis from a backup.")
