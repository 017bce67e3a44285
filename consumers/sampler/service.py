"""The newest version of every model, in memory: fetched, verified, built beside the live one, swapped.

A swap is the assignment of one reference to an immutable `Live`; whoever took the former keeps it for as long as
it is needed. Nothing is ever loaded into a model that answers. While Redis is away, or a version is damaged, the
former stays live and `problem` says why.
"""

from __future__ import annotations

import json
import math
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from consumers.loading import blueprint_of, load_model
from pipeline.config import INPUT, Config, ImageInput, TextInput
from pipeline.errors import ConfigError, Corrupt, HeadraceError, NotFound, StoreError
from pipeline.store import Store, from_url, header, models
from pipeline.threads import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from models.capabilities import Model
    from pipeline.config import SamplerConfig
    from pipeline.metrics import SamplerMetrics
    from pipeline.store import Manifest

BLOCK_MS = 500  # the longest that a follower listens at a stretch, and so the longest that it takes to end
BACKOFF_S = (0.1, 2.0)  # the first and the longest wait before Redis is tried again
PIECE_BYTES = 1 << 18  # of a download
STALLED_S = 60.0  # a version that is loaded for longer is told
DISCOVER_S = 1.0  # how often models are looked for, where the configuration names none


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """One version, ready to answer. Nothing in it changes any more."""

    manifest: Manifest
    digest: str  # of the manifest
    model: Model
    input: ImageInput | TextInput
    reads_whole: bool  # texts of any length
    objects: Mapping[str, bytes] = field(
        repr=False
    )  # digest → bytes of what it was built from: the next one shares most


def client(url: str) -> Redis:
    """Redis for a sampler: a broken connection is tried once more at once. Waiting is up to the followers."""
    return from_url(url, socket_timeout=5, socket_connect_timeout=2, retry=Retry(NoBackoff(), 1))


def bounded(input: ImageInput | TextInput, settings: SamplerConfig) -> ImageInput | TextInput:
    """The input of a stored version, within what this sampler lets in.

    Raises:
        ConfigError: its records are larger than that themselves.
    """
    most = {"max_bytes": min(input.max_bytes, settings.max_upload_bytes)}
    size, bound, key = math.prod(input.shape[-2:]), settings.max_pixels, "max_pixels"
    if isinstance(input, ImageInput):
        most["max_pixels"] = min(input.max_pixels, settings.max_pixels)
    else:
        bound, key = settings.max_upload_bytes, "max_upload_bytes"
    if size > bound:
        raise ConfigError(
            f"its records are of shape {input.shape}, over sampler.{key} = {bound}. Raise it to serve it."
        )
    return input.model_copy(update=most)


def essentials(manifest: Manifest) -> dict[str, str]:
    """What a weights file tells about itself: enough to build the model without the manifest."""
    values = {key: getattr(manifest, key) for key in ("learner", "input", "options", "meta", "classes", "watermark")}
    return {
        "model": manifest.model,
        "version": str(manifest.version),
        "digest": manifest.digest,
        **{key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()},
    }


def weights(store: Store, manifest: Manifest, known: Mapping[str, bytes]) -> tuple[Iterator[bytes], int]:
    """What serving needs as a safetensors file in pieces, one tensor in memory at a time, and the file's size.

    Args:
        known: digest → objects that need not be fetched.

    Raises:
        StoreError: the first tensor cannot be read; later ones end the pieces.
    """
    shapes = {name: (entry.dtype, entry.shape) for name, entry in manifest.serving.items()}
    head, size = header(shapes, essentials(manifest))
    arrays = store.each(manifest, "serving", known)
    first = list(islice(arrays, 1))
    pieces = (
        array.data[start : start + PIECE_BYTES].tobytes()
        for _, array in chain(first, arrays)
        for start in range(0, array.data.nbytes, PIECE_BYTES)
    )
    return chain([head], pieces), len(head) + size


class Room:
    """What the versions that are served may take in memory together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[str, int] = {}  # bytes, by model
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, manifest: Manifest) -> Iterator[None]:
        """By a version that takes the place of its model's former one, or not where the context fails.

        Raises:
            ConfigError: there is not so much left.
        """
        model, needed = manifest.model, manifest.loaded_bytes("serving")
        with self._lock:
            before = self._taken.pop(model, 0)
            left = self._most - sum(self._taken.values())
            self._taken[model] = needed if needed <= left else before
        if needed > left:
            raise ConfigError(
                f"Version {manifest.version} of {model} takes {needed} bytes, and the other models leave {left} of "
                f"sampler.max_total_bytes = {self._most}. Raise it, or serve fewer."
            )
        try:
            yield
        except BaseException:
            with self._lock:
                self._taken[model] = before
            raise

    def leave(self, model: str) -> None:
        """It is not served any more."""
        with self._lock:
            self._taken.pop(model, None)


class Follower:
    """Keeps one model's newest version live, on a thread of its own."""

    def __init__(
        self,
        store: Store,
        settings: SamplerConfig,
        room: Room,
        learner: str | None,
        metrics: SamplerMetrics,
        say: Callable[[str], None],
    ) -> None:
        self.store = store
        self._room = room
        self.live: Live | None = None
        self.clock = time.monotonic
        self.deleted = False  # on purpose: nobody waits for a version of it
        self.unreachable_since_s: float | None = None  # Unix time since which Redis does not answer
        self._settings = settings
        self._learner = learner  # what the configuration gives for this model
        self._metrics = metrics
        self._say = say
        self._stop = threading.Event()
        self._problem: str | None = None
        self._loading: tuple[int, float] | None = None  # a version, and since when
        self._refused: tuple[str, str] | None = None  # a version that could not be loaded, and why: it is tried once
        self._changed = threading.Condition()
        self._thread = Background(self._loop, f"follow-{store.model}", self._set)

    def start(self) -> None:
        self._thread.start()

    @property
    def broken(self) -> str | None:
        """What ended the thread: no other version goes live."""
        return self._thread.problem

    @property
    def problem(self) -> str | None:
        """Why the newest version is not the live one."""
        if self.broken is not None:
            return f"{self.broken}, {self._stays}. Start the sampler again."
        if (version := self.stalled) is None:
            return self._problem
        return (
            f"Version {version} has been loaded for more than {STALLED_S:.0f} s, {self._stays}. If that does not "
            "end, see to its model's code and to Redis, and start the sampler again."
        )

    @property
    def stalled(self) -> int | None:
        """The version that it does not come back from."""
        loading = self._loading  # once: it ends at any moment
        return loading[0] if loading is not None and self.clock() - loading[1] > STALLED_S else None

    def stop(self) -> None:
        """Has the thread end, within about BLOCK_MS where Redis answers."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def wait_for(self, predicate: Callable[[Follower], bool], timeout_s: float) -> bool:
        """Waits for what a swap, a failure or an outage brings; False if it did not come in time."""
        with self._changed:
            return self._changed.wait_for(lambda: predicate(self), timeout_s)

    def _loop(self) -> None:
        last, wait_s = "0", BACKOFF_S[0]
        while not self._stop.is_set():
            try:
                last = self._turn(last)
            except BaseException as error:  # noqa: BLE001 - the thread's outermost loop, and it never ends by itself
                self._failed(error)
                self._stop.wait(wait_s)
                wait_s = min(2 * wait_s, BACKOFF_S[1])
            else:
                wait_s = BACKOFF_S[0]

    def _turn(self, last: str) -> str:
        """Puts the head in service and listens a while; gives the last event that was heard."""
        # The head is read at every turn: a missed event costs half a second, not a version.
        self._to_head()
        events = self.store.events(last, BLOCK_MS)
        if ends := [e.kind for e in events if e.kind in ("reset", "delete") and e.model == self.store.model]:
            self._forget(ends[-1] == "delete")
        self._metrics.store_up(True)
        problem = self._refused[1] if self._refused else None
        if (self.unreachable_since_s, self._problem) != (None, problem):
            self._set(unreachable_since_s=None, _problem=problem)
        return events[-1].id if events else last

    def _failed(self, error: BaseException) -> None:
        """A turn came to nothing; another is made, unless the end is what it came to: its connection is closed then."""
        if self._stop.is_set():
            return
        if isinstance(error, StoreError) and error.retriable:
            if self.unreachable_since_s is None:
                self._metrics.store_up(False)
                self._set(unreachable_since_s=time.time())
                self._say(f"{error} {self.store.model}: what is live stays; trying again.")
            return
        problem = str(error) if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
        if problem != self._problem:
            self._set(_problem=problem)
            self._say(f"{self.store.model}: {problem}")

    def _to_head(self) -> None:
        head = self.store.head()
        if head is None:
            return
        self.deleted = False
        if self.live and head.digest == self.live.digest:
            self._refused = None
            return
        if self._refused and head.digest == self._refused[0]:
            return
        started = time.perf_counter()
        self._loading = head.version, self.clock()
        try:
            manifest = self.store.manifest(head)
            with self._room.taken(manifest):
                live = self.load(manifest)
            self._metrics.swapped(self.store.model, live.manifest, time.perf_counter() - started)
        except BaseException as error:
            if isinstance(error, StoreError) and error.retriable:
                raise
            if isinstance(error, NotFound | Corrupt) and self.store.head() != head:
                return  # retention was faster than we; the next turn takes the new head
            self._metrics.swap_failed(self.store.model)
            problem = f"Version {head.version} cannot be served, {self._stays}: {type(error).__name__}: {error}"
            self._set(_problem=problem, _refused=(head.digest, problem))
            self._say(f"{self.store.model}: {problem}")
        else:
            self._set(live=live, _problem=None, _refused=None)
        finally:
            self._loading = None

    @property
    def _stays(self) -> str:
        live = self.live
        return f"version {live.manifest.version} stays live" if live else "nothing is live"

    def _forget(self, deleted: bool) -> None:
        """After a reset or a delete. A Redis that lost its data announces neither, and what is live stays."""
        if self.store.head() is None:
            self._room.leave(self.store.model)
            self._set(live=None, _problem=None, _refused=None, deleted=deleted)

    def load(self, manifest: Manifest) -> Live:
        """A version, ready to answer; it shares what it can with the live one.

        Raises:
            NotFound, Corrupt, ValueError, KeyError, RuntimeError: it cannot be served.
        """
        before = self.live  # once: others than the follower's own thread ask too
        objects = dict(before.objects) if before else {}
        input_ = bounded(INPUT.validate_python(manifest.input), self._settings)
        blueprint = blueprint_of(manifest, self._learner)
        reads_whole = blueprint.reads_whole(blueprint.options.of_version(manifest.options))
        model = load_model(self.store, manifest, blueprint, objects)
        return Live(manifest, manifest.digest, model, input_, reads_whole, objects)

    def _set(self, **attributes: Any) -> None:
        with self._changed:
            for name, value in attributes.items():
                setattr(self, name, value)
            self._changed.notify_all()


class Serving:
    """The followers: of the models in the configuration, or, if it names none, of all in the store."""

    def __init__(self, config: Config, redis: Redis, metrics: SamplerMetrics, say: Callable[[str], None]) -> None:
        self._config = config
        self._redis = redis
        self._room = Room(config.sampler.max_total_bytes)
        self._metrics = metrics
        self._say = say
        self._stop = threading.Event()
        self._discovery = Background(self._discover, "discover")
        self._followers = {name: self._follower(name, config.family(name)) for name in config.models}
        self._problem: str | None = None

    def start(self) -> None:
        for follower in self._followers.values():
            follower.start()
        if not self._config.models:
            self._discovery.start()

    def close(self) -> None:
        """Ends the threads, within about BLOCK_MS where Redis answers."""
        self._stop.set()
        if not self._config.models:
            self._discovery.join(2 * BLOCK_MS / 1000)
        for follower in self._followers.values():
            follower.stop()
        for follower in self._followers.values():
            follower.join(2 * BLOCK_MS / 1000)

    @property
    def broken(self) -> bool:
        """Whether a thread has ended that shall run on."""
        return bool(self._discovery.problem or any(follower.broken for follower in self._followers.values()))

    @property
    def problem(self) -> str | None:
        """Why no model is found."""
        ended = self._discovery.problem
        return f"{ended}. No more models are found. Start the sampler again." if ended else self._problem

    def followers(self) -> dict[str, Follower]:
        """By model, in the order of their names."""
        return dict(sorted(self._followers.items()))

    def follower(self, name: str) -> Follower:
        """
        Raises:
            NotFound: there is no such model here.
        """
        follower = self._followers.get(name)
        if follower is None:
            known = ", ".join(sorted(self._followers)) or "none yet"
            raise NotFound(f"There is no model {name} here. Known: {known}.")
        return follower

    def _follower(self, name: str, family: str) -> Follower:
        learner = self._config.models[name].learner if name in self._config.models else None
        settings = self._config.sampler
        store = Store(self._redis, family, name, max_bytes=settings.max_model_bytes)
        return Follower(store, settings, self._room, learner, self._metrics, self._say)

    def _discover(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
                self._problem = None
            except BaseException as error:  # noqa: BLE001 - the thread's outermost loop, and it never ends by itself
                if self._stop.is_set():
                    return
                if self._problem is None:
                    self._say(f"{error} Models are looked for again.")
                self._problem = f"{error} Models are looked for again."
            self._stop.wait(DISCOVER_S)

    def _look(self) -> None:
        """Follows what is new, as far as there is room, and no longer what was deleted.

        Raises:
            ConfigError: there are more than may be served.
        """
        found = {name: family for family, name in models(self._redis)}
        for name, follower in self._followers.items():
            if follower.deleted and name not in found:
                follower.stop()
                self._followers = {other: one for other, one in self._followers.items() if other != name}
        new, most = [name for name in found if name not in self._followers], self._config.sampler.max_models
        for name in new[: max(0, most - len(self._followers))]:
            follower = self._follower(name, found[name])
            follower.start()
            self._followers = {**self._followers, name: follower}
        if len(found) > most:
            raise ConfigError(
                f"Redis lists at least {len(found)} models, over sampler.max_models = {most}: some are not served. "
                "Raise it, or name models in the configuration."
            )
