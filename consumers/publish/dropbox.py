"""Publishes files that are dropped into a folder: each once, as soon as it is whole. Older files are left out."""

from __future__ import annotations

import errno
import fcntl
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from consumers.publish.folders import listing
from consumers.publish.outgoing import PLAIN, Outgoing, Refused, from_file, shown
from consumers.publish.records import Way
from pipeline.errors import ConfigError, RecordError
from pipeline.folders import private
from pipeline.images import ImageInput
from pipeline.records import input_array

POLL_S = 0.5
SHARE = 20  # times as long as a look takes, it waits for the next one: a large folder on a slow disk is left in peace
LOOKS = 4  # that find a file as it was, before it is taken
LEASES = hasattr(fcntl, "F_SETLEASE")  # Linux tells whether somebody is writing

#: Changes with whatever is written under a name: its time in ns, its size, and which file it is.
Signature = tuple[int, int, int]


@dataclass(eq=False)
class Dropbox:
    """Follows a folder."""

    folder: Path
    way: Way
    say: Callable[[str], None]
    memory: Path | None  # a file that remembers what was published, for the next start. None: nothing is remembered
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise ConfigError(
                f"{shown(self.folder)} is not a folder. Create it, or name the one that files are dropped into."
            )
        self._say = _once(self.say)
        self._took_s = 0.0  # the last look
        self._looks: dict[str, int] = {}  # that found a file as it is
        self._taken: dict[str, Signature] = {}  # what needs no further look
        self._found: dict[str, tuple[Signature, str | None]] = {}
        self._look()
        if self.memory is not None and self.memory.exists():
            before = _remembered(self.memory)
            self._taken = {path: at for path, (at, _) in self._found.items() if before.get(path) == at}
            self.memory.unlink()  # it is written anew, without what is gone
        else:
            self._taken = {path: at for path, (at, _) in self._found.items()}
            if self._taken:
                self._say(
                    f"{shown(self.folder)}: what was there already ({len(self._taken):,} of them) is not published. "
                    "`headrace publish` of the folder does that."
                )
        self._remember(self._taken)

    def records(self, stop: Event) -> Iterator[Outgoing | Refused | None]:
        """Until `stop`: what was dropped, once nobody writes to it and it has stayed the same for `LOOKS` looks.

        A picture has to be whole, too. An empty file is waited for. A file that changes later is a new record. None
        says that nothing more is there for now.
        """
        while not stop.wait(max(POLL_S, SHARE * self._took_s)):
            before = self._found
            self._look()
            yield None
            for path, (signature, label) in self._found.items():
                is_same = path in before and before[path][0] == signature
                self._looks[path] = self._looks.get(path, 0) + 1 if is_same else 0
                if self._taken.get(path) != signature and self._looks[path] >= LOOKS and signature[1]:
                    yield from self._take(Path(path), signature, label)
            self._looks = {path: looks for path, looks in self._looks.items() if path in self._found}

    def sent(self, record: Outgoing) -> None:
        """Kafka has it."""
        self._remember({record.where: self._taken[record.where]})

    def _look(self) -> None:
        began_s = self.clock()
        self._found = {}
        for entry in listing(self.folder, self._say):
            if isinstance(entry, Refused):
                self._say(str(entry))
            elif signature := _signature(Path(entry.path)):
                self._found[entry.path] = signature, entry.label
        self._took_s = self.clock() - began_s

    def _take(self, path: Path, signature: Signature, label: str | None) -> Iterator[Outgoing | Refused]:
        if _is_written(path):
            return
        self._taken[str(path)] = signature
        try:
            record = from_file(path, label if self.way.label is None else self.way.label, self.way.limit)
        except RecordError as error:
            yield Refused(str(path), error.detail)
            return
        if _signature(path) != signature:
            return  # it was read while it changed: it is looked at again
        if _is_whole(record):
            yield record
        else:
            self._say(f"{shown(path)}: no whole picture yet. It is looked at again when it changes.")

    def _remember(self, files: dict[str, Signature]) -> None:
        if self.memory is None:
            return
        try:
            private(self.memory.parent)
            with self.memory.open("a", encoding="utf-8") as lines:
                lines.writelines(f"{json.dumps([path, *signature])}\n" for path, signature in files.items())
        except OSError as error:
            self._say(f"{self.memory}: {error.strerror}. The next start will not know what was published.")


def _signature(path: Path) -> Signature | None:
    try:
        found = path.stat()
    except OSError:  # taken away meanwhile
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _is_written(path: Path) -> bool:
    """Whether a process has the file open to write to it, as far as the system tells."""
    if not LEASES:
        return False
    try:
        with path.open("rb") as file:
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # ignored: a writer that comes is no news
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # which is for files that nobody writes to
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:  # others: not our file, or a file system without leases
        return error.errno == errno.EAGAIN
    return False


def _is_whole(record: Outgoing) -> bool:
    if record.content_type == PLAIN:
        return True
    try:
        input_array(record.value, ImageInput(max_bytes=len(record.value)))
    except RecordError as error:
        return error.reason != "undecodable"
    return True


def _remembered(memory: Path) -> dict[str, Signature]:
    """The files that an earlier start published or found, by path. An unfinished line is left out."""
    found = {}
    for line in memory.read_text("utf-8", errors="replace").splitlines():
        try:
            path, *signature = json.loads(line)
            found[path] = signature
        except (ValueError, TypeError):
            continue
    return {path: (at[0], at[1], at[2]) for path, at in found.items() if len(at) == 3}


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Says no line twice."""
    said: set[str] = set()

    def first(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return first
