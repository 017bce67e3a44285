"""A user's own decoder that waits at the record b"wait" until it is let through: meanwhile nothing is read."""

from __future__ import annotations

import threading

from pipeline.records import Payload, Record, from_headers

waits, goes_on = threading.Event(), threading.Event()


def decode(record: Record) -> Payload:
    """As the public format has it."""
    if record.value == b"wait":
        waits.set()
        assert goes_on.wait(60)
        return Payload("9999")
    return from_headers(record)
