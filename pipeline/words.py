"""How messages speak: near names, plural forms, and other people's errors inside our sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import datetime
from difflib import get_close_matches

NUMBERED = re.compile(r"^\[Err(?:or|no) -?\d+\] ")  # as kafka-python and Python tell their errors
NAMED = re.compile(r"^\w+Error: ")
BOOTSTRAP = re.compile(r"^Unable to bootstrap from .*", re.DOTALL)  # kafka-python's where no broker answers in time
CONNECTING = re.compile(r"Error -?\d+ connecting to (\S+?)\.? (.+)", re.DOTALL)  # as redis-py does


def near(word: str, names: Iterable[str]) -> str:
    """ " Did you mean NAME?", where a known name is near; else nothing."""
    found = get_close_matches(word, list(names), 1, 0.7)
    return f" Did you mean {found[0]}?" if found else ""


def counted(number: int, noun: str) -> str:
    """ "1 record", "2,000 records"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def milliseconds(text: str) -> int | None:
    """Since the epoch, of an ISO 8601 time with its zone; None: it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if moment.tzinfo is None else int(moment.timestamp() * 1000)


def said(error: BaseException) -> str:
    """What a library's error says, as a part of a sentence: without numbers for programmers, and with no full stop."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return os.strerror(error.errno) if error.errno > 0 else error.strerror.partition(" (while ")[0]
    text = NUMBERED.sub("", str(error)).removesuffix(": None")
    text = CONNECTING.sub(r"\1: \2", BOOTSTRAP.sub("no answer", NAMED.sub("", text)))
    return text.rstrip(" .") or type(error).__name__
