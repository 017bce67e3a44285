"""Closes connections that ask for nothing, so that there is always room for those that ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from starlette.requests import ClientDisconnect
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTIONS = 1024  # beyond them those that have been silent longest are closed
SILENT_S = 10.0  # how long a connection may be without a whole request, or with an answer that is not taken
SEND_S = 30.0  # how long a client may take to take the next piece of an answer
HEAD_BYTES = 16 << 10  # of what is not yet a whole head, or between two pieces of a body
PRESENCE = "presence"  # in the state of a request


class Presence:
    """Whether the client of a connection is there. What is worked on for one that has gone is cancelled."""

    def __init__(self) -> None:
        self._working: set[asyncio.Task[Any]] = set()
        self._gone = False

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around the work of the present task.

        Raises:
            ClientDisconnect: the client has gone.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        if self._gone:
            raise ClientDisconnect
        self._working.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._gone:
                raise
            task.uncancel()
            raise ClientDisconnect from None
        finally:
            self._working.discard(task)

    def leave(self) -> None:
        """The client has gone."""
        self._gone = True
        for task in self._working:
            task.cancel()


def presence(scope: Scope) -> Presence:
    """Of the client that sent a request."""
    found: Presence = scope["state"][PRESENCE]
    return found


class Patient(HttpToolsProtocol):
    """One connection. uvicorn itself waits for ever for a first request, for the headers of any, and for a reader."""

    _silent_since: float
    _unread_since: float | None = None  # since when the client takes nothing of its answer
    _unparsed = 0  # bytes since the last whole head or piece of a body
    _watching: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._presence = Presence()
        self._silent_since = self.loop.time()
        self._watch()
        if len(self.connections) > CONNECTIONS:
            silent: list[Any] = [one for one in self.connections if isinstance(one, Patient) and not one.busy]
            min(silent, key=lambda one: one._silent_since, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._presence.leave()
        super().connection_lost(exc)
        self._watching.cancel()

    def data_received(self, data: bytes) -> None:
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too large.")

    def on_headers_complete(self) -> None:
        self._unparsed = 0
        self.scope["state"][PRESENCE] = self._presence
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        self._silent_since = self.loop.time()  # an answer may take less time than lies between two looks
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None

    @property
    def busy(self) -> bool:
        """Whether it is answering a request. A client that takes no more of its answer does not count."""
        return self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()

    def _watch(self) -> None:
        now = self.loop.time()
        if self.busy:
            self._silent_since = now
        if now - self._silent_since > SILENT_S or now - (self._unread_since or now) > SEND_S:
            self.transport.abort()
            return
        self._watching = self.loop.call_later(SILENT_S / 10, self._watch)
