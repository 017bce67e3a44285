"""Closes connections that ask for nothing, so that there is always room for those that ask."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 1024  # beyond them those that have been silent longest are closed
SILENT_S = 10.0  # how long a connection may be without a whole request, or with an answer that is not taken


class Patient(H11Protocol):
    """One connection. uvicorn itself waits for ever for a first request, and for the headers of any."""

    _silent_since: float
    _watching: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._silent_since = self.loop.time()
        self._watch()
        if len(self.connections) > CONNECTIONS:
            silent: list[Any] = [one for one in self.connections if isinstance(one, Patient) and not one.busy]
            min(silent, key=lambda one: one._silent_since, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._watching.cancel()

    @property
    def busy(self) -> bool:
        """Whether it is answering a request. A client that takes no more of its answer does not count."""
        return self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()

    def _watch(self) -> None:
        now = self.loop.time()
        if self.busy:
            self._silent_since = now
        elif now - self._silent_since > SILENT_S:
            self.transport.abort()
            return
        self._watching = self.loop.call_later(SILENT_S / 10, self._watch)
