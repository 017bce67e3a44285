"""Decoding on threads that are given up where a record comes to no end: a user's decoder may do anything."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from consumers.worker.stalls import STALLED_S
from pipeline.errors import Exhausted, RecordError
from pipeline.records import Example, Label, Record, RecordDecoder, Skipped
from pipeline.threads import Background

LOOK_S = 0.1  # between two looks at a record that is decoded
GIVEN_UP = 8  # threads at most that were given up and have not ended


@dataclass(frozen=True, slots=True)
class Dead:
    """A record that could not be learned, and why."""

    record: Record
    error: RecordError
    label_record: Record | None = None  # as an example's


Decoded = Example | Label | Skipped | Dead


@dataclass(eq=False)
class Decoding:
    """Decodes chunks of records. Each part has a thread, which is given up where a record comes to no end."""

    decoder: RecordDecoder
    threads: int  # parts of a chunk
    stop: threading.Event  # set where nobody wants the rest any more

    def __post_init__(self) -> None:
        self._given_up: list[_Part] = []
        self.error: Exhausted | None = None  # why it decodes no more

    def __call__(self, records: Sequence[Record]) -> list[Decoded]:
        """What becomes of each; of the first ones alone where it was stopped, or has an `error`."""
        share = -(-len(records) // self.threads) or 1
        starts = range(0, len(records), share)
        decoded: list[Decoded] = []
        for part in [_Part(self.decoder, records[start : start + share]) for start in starts]:
            if self.error is None:
                decoded += self._ended(part)
        return decoded

    def _ended(self, part: _Part) -> Iterator[Decoded]:
        while part.lasts():
            if self.stop.is_set():
                return
            if part.give_up_after(STALLED_S):
                yield from part.done
                record, *rest = part.records[len(part.done) :]
                why = f"its decoder did not return within {STALLED_S:.0f} s, and its thread was given up."
                yield Dead(record, RecordError("stalled", why))
                self._given_up = [one for one in [*self._given_up, part] if one.lasts()]
                if len(self._given_up) >= GIVEN_UP:
                    self.error = Exhausted(
                        f"The decoder has not returned from {GIVEN_UP} records, and each keeps a thread: the worker "
                        f"ends, and a new one goes on behind them. Mend the decoder."
                    )
                    return
                part = _Part(self.decoder, rest)
        part.thread.check()
        yield from part.done


class _Part:
    """Records that a thread of their own decodes, in order."""

    def __init__(self, decoder: RecordDecoder, records: Sequence[Record]) -> None:
        self.records = records
        self.done: list[Decoded] = []
        self._decoder = decoder
        self._since_s = time.monotonic()
        self._lock = threading.Lock()
        self._is_given_up = False
        self.thread = Background(self._run, "decode")
        self.thread.start()

    def lasts(self) -> bool:
        """Whether it is at work; waits a little for its end."""
        self.thread.join(LOOK_S)
        return self.thread.is_alive()

    def give_up_after(self, seconds: float) -> bool:
        """Whether the record that it is at took longer, and nothing more of it is wanted."""
        with self._lock:
            self._is_given_up = len(self.done) < len(self.records) and time.monotonic() - self._since_s > seconds
        return self._is_given_up

    def _run(self) -> None:
        for record in self.records:
            try:
                decoded: Decoded = self._decoder(record)
            except RecordError as error:
                decoded = Dead(record, error)
            with self._lock:
                if self._is_given_up:
                    return
                self.done.append(decoded)
                self._since_s = time.monotonic()
