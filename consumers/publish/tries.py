"""A try of publishing: a file remembers where it started until all is published, so that the next one can go on."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from pipeline.client import Mark
from pipeline.closing import Closing
from pipeline.folders import private

FOLDER = Path(".headrace/publish")


def file_of(topic: str, servers: str, sources: Iterable[str], suffix: str) -> Path:
    """The file that remembers what is published from these sources to a topic."""
    named = [servers, *(source if source == "-" else str(Path(source).absolute()) for source in sources)]
    digest = hashlib.blake2b(json.dumps(named).encode(), digest_size=8).hexdigest()
    return FOLDER / f"{topic[:100]}-{digest}{suffix}"


class Try(Closing):
    """One try. Only one process at a time has it.

    Raises:
        OSError: the file cannot be written, or another process is at it.
    """

    def __init__(self, path: Path) -> None:
        private(path.parent)
        self._path = path
        self._file: BinaryIO = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            self.start = _mark(self._file.read())  # of one that ended early
        except BlockingIOError:
            self._file.close()
            raise OSError("another process publishes the same at this moment.") from None
        except BaseException:
            self._file.close()
            raise

    def keep(self, mark: Mark) -> None:
        """Remembers where it started, until it is done."""
        self._file.truncate(0)
        self._file.write(mark.model_dump_json().encode())
        self._file.flush()

    def done(self) -> None:
        """Nothing is left for another try."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets another process have it."""
        self._file.close()


def _mark(raw: bytes) -> Mark | None:
    try:
        return Mark.model_validate_json(raw)
    except ValidationError:
        return None
