"""A TCP proxy between a worker and a server, which cuts, stalls or delays where it is told to."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
CHUNK_BYTES = 64 << 10
SOME = 3  # bytes of an address at the end of an answer that are no chance


@dataclass(eq=False)
class Trap:
    """Where a connection breaks: `after` bytes behind the next `sees` that a client sends.

    Args:
        cut: whether the connection is closed there; else nothing passes any more, in either direction.
        answer: the request passes as a whole, and its answer does not.
    """

    sees: bytes
    after: int = 0
    cut: bool = False
    answer: bool = False
    sprung: threading.Event = field(default_factory=threading.Event)
    link: _Link | None = None  # the connection that was seen to send it
    left: int = 0  # bytes that still pass there


class _Link:
    """One connection, both ways."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.ways = 2  # that are open
        self.asked = False  # since the last answer: what comes next is the beginning of one
        self.tail = b""  # the end of what was sent, for a `sees` that comes in two pieces

    def close(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Listens on a port of its own, and passes on to `port`, both on loopback.

    Args:
        kafka: brokers tell clients where to connect: has them name this proxy instead.
    """

    def __init__(self, port: int, *, kafka: bool = False) -> None:
        self._target = port
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay_s = 0.0  # of every answer
        self._swap = (_address(port), _address(self.port)) if kafka else None
        self._changed = threading.Condition()
        self._links: set[_Link] = set()
        self._held: set[tuple[_Link, bool]] = set()  # and whether upwards: nothing passes there
        self._trap: Trap | None = None
        self._stalled = self._closed = False
        self._threads = [threading.Thread(target=self._accept, name="proxy", daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        """HOST:PORT"""
        return f"{HOST}:{self.port}"

    def arm(self, trap: Trap) -> Trap:
        """Sets a trap, in place of the one before."""
        with self._changed:
            self._trap = trap
        return trap

    def cut(self) -> None:
        """Closes every connection, and lets go of what was held."""
        with self._changed:
            self._trap, self._stalled = None, False
            self._held.clear()
            for link in self._links:
                link.close()
            self._changed.notify_all()

    def stall(self, stalled: bool = True) -> None:
        """From now on nothing passes; or, with False, all that waits and comes does."""
        with self._changed:
            self._stalled = stalled
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((HOST, self._target), 5)
            except OSError:  # the server is away: so is the proxy
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            with self._changed:
                if self._closed:
                    client.close()
                    server.close()
                    return
                self._links.add(link)
            ways = [threading.Thread(target=self._pump, args=(link, up), daemon=True) for up in (True, False)]
            self._threads = [thread for thread in self._threads if thread.is_alive()] + ways
            for thread in ways:
                thread.start()

    def _pump(self, link: _Link, up: bool) -> None:
        source, sink = (link.client, link.server) if up else (link.server, link.client)
        rest = b""
        with suppress(OSError):
            while chunk := source.recv(CHUNK_BYTES):
                if up:
                    chunk = self._sent(link, chunk)
                else:
                    if self._swap:
                        chunk, rest = _swapped(rest + chunk, *self._swap)
                    self._answered(link)
                if not self._may_pass(link, up):
                    break
                sink.sendall(chunk)
                if up:
                    self._spring(link)
        link.close()
        with self._changed:
            link.ways -= 1
            if not link.ways:
                link.client.close()
                link.server.close()
                self._links.discard(link)
                self._held -= {(link, True), (link, False)}

    def _may_pass(self, link: _Link, up: bool) -> bool:
        """Waits until it may; False: the proxy is closed."""
        with self._changed:
            asked, link.asked = link.asked, up
            if asked and not up and self.delay_s:
                self._changed.wait_for(lambda: self._closed, self.delay_s)
            self._changed.wait_for(lambda: self._closed or not (self._stalled or (link, up) in self._held))
            return not self._closed

    def _sent(self, link: _Link, chunk: bytes) -> bytes:
        """What of the chunk passes; the rest never does."""
        with self._changed:
            trap = self._trap
            if trap is None or trap.sprung.is_set():
                return chunk
            if trap.link is None:
                before = len(link.tail)
                sent = link.tail + chunk
                seen = sent.find(trap.sees)
                link.tail = sent[1 - len(trap.sees) :] if len(trap.sees) > 1 else b""
                if seen < 0:
                    return chunk
                trap.link, trap.left = link, max(0, seen - before + trap.after)
                if trap.answer:
                    self._held.add((link, False))
            if trap.answer or trap.link is not link:
                return chunk
            passes, trap.left = chunk[: trap.left], max(0, trap.left - len(chunk))
            return passes

    def _spring(self, link: _Link) -> None:
        """The bytes that pass have passed: from here on it is broken."""
        with self._changed:
            trap = self._trap
            if trap is None or trap.link is not link or trap.answer or trap.left or trap.sprung.is_set():
                return
            if trap.cut:
                link.close()
            else:
                self._held |= {(link, True), (link, False)}
            trap.sprung.set()

    def _answered(self, link: _Link) -> None:
        with self._changed:
            trap = self._trap
            if trap is not None and trap.link is link and trap.answer and not trap.sprung.is_set():
                if trap.cut:
                    link.close()
                trap.sprung.set()


def _address(port: int) -> bytes:
    """As Kafka's protocol has it in every version: the host's bytes, and four of the port."""
    return HOST.encode() + struct.pack(">i", port)


def _swapped(data: bytes, before: bytes, after: bytes) -> tuple[bytes, bytes]:
    """With the one address for the other, and what may be the beginning of one more."""
    data = data.replace(before, after)
    kept = next((n for n in range(min(len(before) - 1, len(data)), SOME, -1) if data.endswith(before[:n])), 0)
    return data[: len(data) - kept], data[len(data) - kept :]
