"""Passwords that this user's `headrace local` has made up: commands of the same user find them by the port.

Each is in a file that only its user reads, for as long as the server runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.folders import private
from pipeline.local.artefacts import cache_folder

LOOPBACK = ("127.0.0.1", "localhost")


@contextmanager
def remembered(port: int, password: str, environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Lets `password_of` find the password of the Redis with this port, until the context or this process ends."""
    file = _file(port, environ)
    private(file.parent)
    file.unlink(missing_ok=True)
    file.touch(0o600)
    file.write_text(f"{os.getpid()} {password}", "utf-8")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def password_of(url: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The remembered password of the Redis at this address, if that runs and the address has none of its own."""
    with suppress(OSError, ValueError):  # no such file, an address that is none, a process that is gone
        at = urlsplit(url)
        if at.scheme == "redis" and at.hostname in LOOPBACK and at.password is None:
            pid, _, password = _file(at.port or 6379, environ).read_text("utf-8").partition(" ")
            os.kill(int(pid), 0)
            return password
    return None


def _file(port: int, environ: Mapping[str, str]) -> Path:
    return cache_folder(environ) / f"redis-{port}"
