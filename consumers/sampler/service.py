"""What the routes work with: the models that are served, and the threads that ask them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Full
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry

from consumers.sampler.abilities import Ability
from consumers.sampler.batcher import Batcher, Sideline
from consumers.sampler.follower import BLOCK_MS, Follower, Live, Room
from consumers.sampler.gate import RETRY_AFTER, refusal
from consumers.sampler.outbox import Outbox
from consumers.workers import ANSWER_S, Admission, Broken, Ending, Stalled, Workers
from pipeline.config import Config, KafkaConfig, SamplerConfig
from pipeline.errors import ConfigError, NotFound
from pipeline.log import meant
from pipeline.store import Store, models
from pipeline.threads import Background

if TYPE_CHECKING:
    from redis import Redis

    from pipeline.metrics import SamplerMetrics

DISCOVER_S = 1.0  # how often models are looked for, where the configuration names none

Item = TypeVar("Item")
ModelT = TypeVar("ModelT")
Result = TypeVar("Result")


class Serving:
    """The followers of the models in the configuration. If it names none, of all models in the store."""

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
            follower.thread.start()
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
            follower.thread.join(2 * BLOCK_MS / 1000)

    @property
    def threads(self) -> list[Background]:
        """All that shall run until the end."""
        return [self._discovery, *(follower.thread for follower in self._followers.values())]

    @property
    def problem(self) -> str | None:
        """Why no model is found."""
        ended = self._discovery.problem
        return f"{ended}. No more models are found. Start the sampler again." if ended else self._problem

    def followers(self) -> dict[str, Follower]:
        """By model, in the order of their names."""
        return dict(sorted(self._followers.items()))

    def topics(self, model: str | None = None) -> dict[str, bool]:
        """The topics that the model reads, or that any does: whether they hold labels, and no records."""
        read = [self._read_by(name) for name in (self._followers if model is None else [model])]
        return {topic: labels for topics in read for topic, labels in topics.items()}

    def _read_by(self, model: str) -> dict[str, bool]:
        """As the configuration has it, or else as the newest version does."""
        if (table := self._config.models.get(model)) is not None:
            return {topic: topic not in table.topics for topic in table.read_topics}
        follower = self._followers.get(model)
        live = follower and follower.live
        if not live:
            return {}
        labels = live.manifest.config.get("labels")
        of_labels = labels.get("topic") if isinstance(labels, dict) else None
        return {topic: topic == of_labels for topic in live.manifest.watermark}

    def follower(self, name: str) -> Follower:
        """
        Raises:
            NotFound: there is no such model here.
        """
        follower = self._followers.get(name)
        if follower is None:
            names = ", ".join(sorted(self._followers)) or "none yet"
            raise NotFound(f"There is no model {name} here. Known: {names}.")
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
        """Follows new models, as far as there is room, and stops following deleted ones.

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
            self._followers = {**self._followers, name: follower}
            follower.thread.start()
        if len(found) > most:
            raise ConfigError(
                f"Redis lists at least {len(found)} models, over sampler.max_models = {most}: some are not served. "
                "Raise it, or name models in the configuration."
            )


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with.

    Args:
        admission: of requests from their body's last byte to their answer: this bounds the memory that they take.
        decoders: by kind of record, so that a text does not wait for pictures.
        slow_admission: of those among them that are on the sideline, or wait for it.
        readers: admission of those who wait for the store, on threads that they share with all that is not `async`.
        downloads: admission of downloads of weights.
        publishers: admission of those who publish.
        letters: admission of those who read dead letters, which takes memory.
        streams: admission of streams of events.
        ending: is set when the sampler ends: streams do, too.
        client: the address that asks.
    """

    config: SamplerConfig
    serving: Serving
    batcher: Batcher
    sideline: Sideline
    decoders: Mapping[str, Sideline]
    admission: Admission
    slow_admission: Admission
    readers: Admission
    downloads: Admission
    kafka: KafkaConfig
    outbox: Outbox
    publishers: Admission
    letters: Admission
    streams: Admission
    ending: asyncio.Event
    registry: CollectorRegistry
    clock: Callable[[], float]
    client: str = ""

    @property
    def workers(self) -> list[Workers[Any]]:
        """All that models and decoders run on."""
        return [self.batcher, self.sideline, *self.decoders.values()]

    @property
    def broken(self) -> set[str]:
        """What ended threads that shall run until the end."""
        threads = [*self.serving.threads, *(thread for workers in self.workers for thread in workers.threads)]
        return {thread.problem for thread in threads if thread.problem}

    @property
    def given_up(self) -> int:
        """Threads that never came back."""
        return sum(workers.given_up for workers in self.workers)

    def live(self, model: str, ability: Ability[ModelT]) -> Live[ModelT]:
        """The version that is live now, if it answers that route.

        Raises:
            NotFound: no such model.
            HTTPException: 503 without a version, 409 where the model does something else.
        """
        follower = self.serving.follower(model)
        live = follower.live  # once: a reset may take it away at any moment
        if live is None:
            detail = follower.problem or "It has no version yet; one comes when its worker has learned."
            raise refusal(503, "no-version", f"{model}: {detail}", **RETRY_AFTER)
        return ability.of(live)

    def has_labels(self, topic: str) -> bool:
        """Whether the topic holds labels, and no records.

        Raises:
            HTTPException: 403 where nothing is published, 404 where no model reads the topic.
        """
        if not self.config.publish:
            raise refusal(403, "closed", "This sampler publishes nothing: sampler.publish = false.")
        topics = self.serving.topics()
        if topic not in topics:
            raise refusal(404, "not-found", f"No model reads {topic}. {meant(topic, topics.keys())}")
        return topics[topic]

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Admits one request that publishes.

        Raises:
            HTTPException: 429 where there are too many, or the log takes no more at the moment.
        """
        try:
            with self.publishers.admit(self.client):
                yield
        except Full:
            detail = "The log takes no more at the moment. Try again in a second."
            raise refusal(429, "busy", detail, **RETRY_AFTER) from None

    def check_label(self, live: Live[Any], label: str | None) -> None:
        """
        Raises:
            HTTPException: 422 where the model has not learned that label.
        """
        if label is not None and label not in live.model.classes:
            classes = ", ".join(live.model.classes[:50]) or "none yet"
            raise refusal(422, "label", f"{live.manifest.model} has learned no label {label!r}. Known: {classes}.")

    def bounded(self, name: str, value: int | None, default: int, most: int) -> int:
        """The value that is asked for, or else the default, within what one request may ask for.

        Raises:
            HTTPException: 422 where more is asked than the configuration allows one request.
        """
        if value is not None and value > most:
            raise refusal(422, "invalid", f"{name} = {value}: at most {most} at one time. Ask for less.")
        return value or min(default, most)

    @contextmanager
    def admitted(self, admission: Admission | None = None) -> Iterator[None]:
        """Admits one request that costs memory and computing time.

        Raises:
            HTTPException: 503 where there are too many, or too many of this client.
        """
        try:
            with (admission or self.admission).admit(self.client):
                yield
        except Full:
            raise refusal(503, "busy", "Too many requests at one time. Try again in a second.", **RETRY_AFTER) from None

    async def batched(
        self,
        run: Callable[[Live[ModelT], Sequence[Item]], Sequence[Result]],
        live: Live[ModelT],
        item: Item,
        rows: int = 1,
    ) -> Result:
        """The item's result, computed by the batcher. Raises as `ended`."""
        with ended():
            return await asyncio.wrap_future(self.batcher.submit(self.client, run, live, item, rows))

    async def aside(self, live: Live[Any], work: Callable[[], Result]) -> Result:
        """What the work gives, on the sideline. Raises as `admitted` and `ended`."""
        with self.admitted(self.slow_admission), ended():
            return await asyncio.wrap_future(self.sideline.submit(self.client, live.manifest.model, work))

    async def decoded(self, live: Live[Any], work: Callable[..., Result], *arguments: Any) -> Result:
        """What the work gives, on the threads that read and write such records. Raises as `ended`."""
        with ended():
            decoders = self.decoders[live.input.kind]
            return await asyncio.wrap_future(decoders.submit(self.client, live.manifest.model, work, *arguments))


@contextmanager
def ended() -> Iterator[None]:
    """
    Raises:
        HTTPException: 503 where the model never ends, or the sampler does; 504 where what was asked takes too long.
    """
    try:
        yield
    except Stalled as error:
        raise refusal(503, "stalled", str(error)) from None
    except Broken as error:
        raise refusal(503, "broken", str(error)) from None
    except Ending as error:
        raise refusal(503, "ending", str(error), **RETRY_AFTER) from None
    except TimeoutError:
        raise refusal(504, "timeout", f"It was not done within {ANSWER_S:.0f} s. Ask for less.") from None


async def service_of(request: Request) -> Service:  # what is not async, FastAPI calls on a thread
    """What the routes work with, for the client that asks."""
    client = request.scope["client"]
    service: Service = request.app.state.service_of(client[0] if client else "")
    return service


ServiceOf = Annotated[Service, Depends(service_of)]


async def _reading(service: ServiceOf) -> AsyncIterator[None]:
    """Admits those who wait for the store: it may be slow."""
    with service.admitted(service.readers):
        yield


READS = [Depends(_reading)]
