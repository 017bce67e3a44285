"""The sampler: always the newest version of every model, over HTTP.

The files `routes_*.py` have the routes, one file a topic. `gate.py` decides who is let in. `follower.py` swaps
versions. `batcher.py` runs forward passes. A new route is a row in `abilities.py` and a function in a file of routes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import threading
import time
from collections import ChainMap
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from threading import Event
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from consumers import sampler
from consumers.sampler import routes_classes
from consumers.sampler.batcher import Batcher, Sideline
from consumers.sampler.connections import CONNECTIONS, Patient
from consumers.sampler.direct import Direct
from consumers.sampler.examples import add_examples
from consumers.sampler.follower import client
from consumers.sampler.gate import ERRORS, MOVED, Access, Gate, tell_errors
from consumers.sampler.outbox import Outbox
from consumers.sampler.service import Service, Serving
from consumers.stopping import stopping
from consumers.workers import Admission
from pipeline import __version__
from pipeline.errors import ConfigError, Exhausted
from pipeline.metrics import SamplerMetrics
from pipeline.records import KINDS
from pipeline.threads import Background
from pipeline.words import said

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from redis import Redis

    from pipeline.config import Config

#: a file a topic, each with its `router` and its `EXAMPLES`
ROUTES = [
    import_module(f"consumers.sampler.{module.name}")
    for module in iter_modules(sampler.__path__)
    if module.name.startswith("routes_")
]
ADMITTED_PER_BATCH = 4  # requests admitted at one time, in full batches
ADMITTED_PER_SLOT = 4  # of those that take long, worked on or waiting
GARBAGE = 20_000, 20, 20  # objects between two looks for garbage, which took a third of a request's time
CLIENTS = 1024  # of which one is known again
END_S = 5.0  # from the signal to the end of the process, whatever is at work
GRACE_S = 3  # how long requests that are worked on get of these
READERS = 24  # who wait for the store at one time; threads are 40
DOWNLOADS = 8  # of weights, at one time: each has one tensor in memory
PUBLISHERS = 8  # who publish at one time
LETTERS = 4  # who read dead letters at one time
STREAMS = 128  # of events, at one time
LAST_S = 1.0  # how long what still computes then gets: its answer reaches nobody
LOGGERS = ("uvicorn.error", "python_multipart.multipart")
GIVEN_UP = 8  # threads that never came back: more are not replaced, by this process
THREADS = ("decode", "sideline", "inference", "follow-")  # where models and decoders run


def create_app(
    config: Config,
    redis: Redis,
    registry: CollectorRegistry,
    *,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The ASGI application. Its threads run from start-up to shutdown; `app.state.service` has the parts."""
    metrics = SamplerMetrics(registry, clock=clock)
    settings = config.sampler
    service = Service(
        settings,
        Serving(config, redis, metrics, say),
        Batcher(max_rows=settings.max_batch, threads=settings.threads),
        Sideline("sideline", slots=settings.slots, threads=settings.threads),
        {kind: Sideline("decode", slots=input_.decoders, threads=1) for kind, input_ in KINDS.items()},
        Admission(ADMITTED_PER_BATCH * settings.max_batch),
        Admission(ADMITTED_PER_SLOT * settings.slots),
        Admission(READERS),
        Admission(DOWNLOADS),
        config.kafka,
        Outbox(config.kafka),
        Admission(PUBLISHERS),
        Admission(LETTERS),
        Admission(STREAMS),
        asyncio.Event(),
        registry,
        clock,
    )

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        for workers in service.workers:
            workers.start()
        service.serving.start()
        yield
        service.serving.close()
        for workers in service.workers:
            workers.close()
        service.outbox.close()
        redis.close()

    # No /docs: its page runs a third party's scripts, which could write here. /openapi.json has what it shows.
    app = FastAPI(title="headrace sampler", version=__version__, lifespan=running, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.service_of = lru_cache(CLIENTS)(lambda client: replace(service, client=client))
    for part in ROUTES:
        app.include_router(part.router, responses={**MOVED, **ERRORS})
    document = app.openapi()  # made once, and kept
    schemes = {"token": {"type": "http", "scheme": "bearer"}, "password": {"type": "http", "scheme": "basic"}}
    document["components"]["securitySchemes"] = schemes
    add_examples(document, dict(ChainMap(*(part.EXAMPLES for part in ROUTES))))
    document["security"] = [{"token": []}, {"password": []}, {}]
    app.add_middleware(Direct, routes=routes_classes.router.routes)
    app.add_middleware(Gate, config=settings, access=Access(settings), metrics=metrics)
    tell_errors(app)
    return app


def _has_failed(record: logging.LogRecord) -> bool:
    """Whether a request failed. Clients can provoke all other lines of these libraries at will."""
    return record.exc_info is not None


class _Server(uvicorn.Server):
    """Ends once `stop` is set, but not before it has started: what was started is ended in order."""

    def __init__(self, config: uvicorn.Config, service: Service, stop: Event, say: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service = service
        self._say = say
        self._said: set[str] = set()
        self._stop = stop
        self.exhausted: Exhausted | None = None

    @property
    def status(self) -> int:
        """Of the process."""
        return 0 if self.exhausted is None else self.exhausted.exit_status

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to `stop`."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Whether to end, asked ten times a second. Says it when a thread has failed."""
        broken = self._service.broken
        for line in broken - self._said:
            self._say(f"{line}. Start the sampler again.")
        self._said |= broken
        if self.exhausted is None and self._service.given_up >= GIVEN_UP:
            self.exhausted = Exhausted(
                f"{self._service.given_up} threads came to no end at a model or a record: the sampler ends, so that "
                f"it is started anew. Mend the models that /readyz named."
            )
            self._stop.set()
        return self._stop.is_set() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers at once whoever waits for a turn, and ends streams of events; what is worked on has its time."""
        self._service.ending.set()
        self._service.sideline.close()
        for decoders in self._service.decoders.values():
            decoders.close()
        await super().shutdown(sockets)


def open_server(config: Config, say: Callable[[str], None], stop: Event | None = None) -> tuple[_Server, socket.socket]:
    """A server that is not yet run, and the socket that it listens on: `server.run([listener])`.

    Raises:
        ConfigError: the address cannot be bound.
    """
    settings = config.sampler
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        raise ConfigError(
            f"sampler: {settings.host}:{settings.port} cannot be bound ({said(error)}). "
            f"Set another sampler.host or sampler.port."
        ) from None
    # For all that it accepts: asyncio does it only for sockets that name their protocol, and without it each answer
    # waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_has_failed)
    app = create_app(config, client(config.redis.url), CollectorRegistry(), say=say)
    if closed := Access(settings).closed:
        say(f"{settings.host} is not loopback and sampler.token is not set: {closed}.")
    options = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        loop="uvloop",
        http=Patient,
        ws="none",
        timeout_graceful_shutdown=GRACE_S,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=[str(proxy) for proxy in settings.proxies],
    )
    return _Server(options, app.state.service, stop or Event(), say), listener


def _to_stderr(line: str) -> None:
    with suppress(OSError):  # whoever read it is gone: no reason for a thread to end
        print(line, file=sys.stderr, flush=True)


def serve(
    config: Config, say: Callable[[str], None] = _to_stderr, listens: Callable[[str], None] = lambda url: None
) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP, then ends, and the process within END_S. Call it from the main thread.

    Args:
        say: takes one-line messages for people.
        listens: takes the address once it is bound.

    Raises:
        ConfigError: the address cannot be bound.
    """
    before, ended = {thread.ident for thread in threading.enumerate()}, Event()
    with stopping() as stop:
        server, listener = open_server(config, say, stop)
        watchdog = Background(lambda: _end_in_time(server, stop, ended), "end-in-time")
        watchdog.start()
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        say(f"The sampler answers at {url}")
        gc.collect()
        gc.freeze()  # what lives until the end: else looks for garbage walk through all of it
        gc.set_threshold(*GARBAGE)
        listens(url)
        with listener:
            server.run([listener])
        if server.exhausted is not None:
            say(f"headrace: {server.exhausted}")
    _leave(server, before)
    ended.set()
    watchdog.close()


def _end_in_time(server: _Server, stop: Event, ended: Event) -> None:
    """Ends the process where something hangs, such as the store."""
    stop.wait()
    if not ended.wait(END_S):
        sys.stdout.flush()
        os._exit(server.status)


def _leave(server: _Server, before: set[int | None]) -> None:
    """Ends the process at once if a thread started since then still works: the interpreter would wait for it."""
    deadline = time.monotonic() + LAST_S
    started = [thread for thread in threading.enumerate() if thread.ident not in before]
    left = [thread for thread in started if thread.name.startswith(THREADS) or not thread.daemon]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in left):
        sys.stdout.flush()
        os._exit(server.status)
