"""The newest version of one model, in memory: fetched, verified, built beside the live one, swapped.

A swap is the assignment of one reference to an immutable `Live`; whoever took the former keeps it for as long as
it is needed. Nothing is ever loaded into a model that answers. While Redis is away, or a version is damaged, the
former stays live and `problem` says why.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from consumers.loading import blueprint_of, build
from models.capabilities import Model
from pipeline.errors import ConfigError, Corrupt, HeadraceError, NotFound, StoreError
from pipeline.images import ImageInput
from pipeline.inputs import Input
from pipeline.records import as_input
from pipeline.store import Store, from_url
from pipeline.threads import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pipeline.config import SamplerConfig
    from pipeline.metrics import SamplerMetrics
    from pipeline.store import Manifest

BLOCK_MS = 500  # the longest that a follower listens at a stretch, and so the longest that it takes to end
BACKOFF_S = (0.1, 2.0)  # the first and the longest wait before Redis is tried again
STALLED_S = 60.0  # a version that loads for longer is reported

ModelT = TypeVar("ModelT", covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Live(Generic[ModelT]):
    """One version, ready to answer. Nothing in it changes any more."""

    manifest: Manifest
    digest: str  # of the manifest
    model: ModelT
    input: Input
    reads_whole: bool  # texts of any length
    #: digest → bytes of what it was built from: the next one shares most
    objects: Mapping[str, bytes] = field(repr=False)

    def info(self, now_s: float) -> dict[str, Any]:
        """The fields of its `VersionInfo`."""
        manifest = self.manifest
        newest_ms, lag = manifest.newest_timestamp_ms, manifest.metrics.get("lag_records")
        return {
            "model": manifest.model,
            "version": manifest.version,
            "digest": self.digest,
            "watermark": manifest.watermark,
            "freshness_s": None if newest_ms is None else max(0.0, round(now_s - newest_ms / 1000, 3)),
            "lag_records": None if lag is None else int(lag),
        }


def client(url: str) -> Redis:
    """Redis for a sampler: a broken connection is tried once more at once. Waiting is up to the followers."""
    return from_url(url, socket_timeout=5, socket_connect_timeout=2, retry=Retry(NoBackoff(), 1))


def bounded(input: Input, settings: SamplerConfig) -> Input:
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


class Room:
    """Bounds the memory that all served versions take together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[str, int] = {}  # bytes, by model
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, manifest: Manifest) -> Iterator[None]:
        """Counts a version instead of its model's former one; where the context fails, the former one again.

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
        """Frees the memory of a model that is served no more."""
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
        self.live: Live[Model] | None = None
        self.clock = time.monotonic
        self.worker: str | None = None  # "alive", or why nothing is learned; None: its worker ended well
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
        self._listeners: tuple[Callable[[], object], ...] = ()
        self.thread = Background(self._loop, f"follow-{store.model}", self._set)

    @property
    def problem(self) -> str | None:
        """Why the newest version is not the live one."""
        if self.thread.problem is not None:
            return f"{self.thread.problem}, {self._stays}. Start the sampler again."
        if (version := self.stalled) is None:
            return self._problem
        return (
            f"Version {version} has been loaded for more than {STALLED_S:.0f} s, {self._stays}. If that does not "
            "end, see to its model's code and to Redis, and start the sampler again."
        )

    @property
    def stalled(self) -> int | None:
        """The version that has been loading for too long."""
        loading = self._loading  # once: it ends at any moment
        return loading[0] if loading is not None and self.clock() - loading[1] > STALLED_S else None

    def stop(self) -> None:
        """Tells the thread to end: it does within about BLOCK_MS where Redis answers."""
        self._stop.set()

    def wait_for(self, predicate: Callable[[Follower], bool], timeout_s: float) -> bool:
        """Waits for what a swap, a failure or an outage brings; False if it did not come in time."""
        with self._changed:
            return self._changed.wait_for(lambda: predicate(self), timeout_s)

    @contextmanager
    def listening(self, hears: Callable[[], object]) -> Iterator[None]:
        """Calls `hears` on the follower's thread after each change, until the context ends."""
        with self._changed:
            self._listeners = (*self._listeners, hears)
        try:
            yield
        finally:
            with self._changed:
                self._listeners = tuple(other for other in self._listeners if other is not hears)

    def _loop(self) -> None:
        torch.set_num_threads(1)  # loading is copying: more threads would be taken from those that answer
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
        self._see_worker()
        events = self.store.events(last, BLOCK_MS)
        if ends := [e.kind for e in events if e.kind in ("reset", "delete") and e.model == self.store.model]:
            self._forget(ends[-1] == "delete")
        self._metrics.store_up(True)
        problem = self._refused[1] if self._refused else None
        if (self.unreachable_since_s, self._problem) != (None, problem):
            self._set(unreachable_since_s=None, _problem=problem)
        return events[-1].id if events else last

    def _see_worker(self) -> None:
        held = self.store.holding()
        worker = held and (held.problem or "alive")
        if worker != self.worker:
            self._set(worker=worker)

    def _failed(self, error: BaseException) -> None:
        """Reports a turn that failed; the next one tries again. At the end a turn fails as the connection is closed."""
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
        """Serves nothing after a reset or a delete. A Redis that lost its data sends neither: what is live stays."""
        if self.store.head() is None:
            self._room.leave(self.store.model)
            self._set(live=None, _problem=None, _refused=None, deleted=deleted)

    def load(self, manifest: Manifest) -> Live[Model]:
        """A version, ready to answer; it shares what it can with the live one.

        Raises:
            NotFound, Corrupt, ValueError, KeyError, RuntimeError: it cannot be served.
        """
        before = self.live  # once: others than the follower's own thread ask too
        objects = dict(before.objects) if before else {}
        input_ = bounded(as_input(manifest.input), self._settings)
        blueprint = blueprint_of(manifest, self._learner)
        reads_whole = blueprint.reads_whole(blueprint.options.of_version(manifest.options))
        model = build(manifest, self.store.arrays(manifest, "serving", objects), blueprint)
        return Live(manifest, manifest.digest, model, input_, reads_whole, objects)

    def _set(self, **attributes: Any) -> None:
        with self._changed:
            for name, value in attributes.items():
                setattr(self, name, value)
            self._changed.notify_all()
            listeners = self._listeners
        for hears in listeners:
            hears()
