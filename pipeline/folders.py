"""Folders that headrace makes: what is in them is their user's alone, and one process at a time may have the lock."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import IO


def private(folder: Path) -> None:
    """Makes the folder, and those above it that are missing; nobody but their owner may look into these."""
    if not folder.exists():
        private(folder.parent)
        folder.mkdir(0o700, exist_ok=True)


def locked(path: Path, wait: Callable[[], object]) -> IO[bytes]:
    """The open file, locked until it is closed. While another has the lock, it calls `wait`, which may raise."""
    lock = path.open("wb")
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
            else:
                return lock
    except BaseException:
        lock.close()
        raise
