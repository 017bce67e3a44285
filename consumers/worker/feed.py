"""From the log to batches: poll → decode → join → batch, on threads of their own, while the updates run.

Every record that is read leaves the feed in exactly one `Item`: as a row of a batch, as held out, as skipped, as dead,
or as a label. Records leave in the order in which they were read, unless their labels come later (`joiner`). Until it
leaves, a record is *pending*: a version says so, and the next worker starts with it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch

from consumers.worker.decoding import Dead, Decoded, Decoding
from consumers.worker.joiner import Correction, Joiner, Left
from models.evaluation import is_held_out
from models.learner import Batch, id_digest
from pipeline.errors import RecordError
from pipeline.log import AlignedReader, Reader
from pipeline.records import Example, Label, Partition, Place, Record, RecordDecoder, Skipped
from pipeline.store import Runs
from pipeline.threads import Background

DEPTH = 4  # batches that wait in memory for the learner


@dataclass(slots=True)
class Item:
    """What the worker takes in one step."""

    examples: list[Example] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    corrections: list[Correction] = field(default_factory=list)  # of what was learned up to this batch
    records: list[Record] = field(default_factory=list)  # all of these
    batch: Batch | None = None  # of `examples`; its x is on the device, or on its way
    due_s: float | None = None  # when it must go out, by the feed's clock

    def add(self, one: Left | Dead, hold_out: float) -> None:
        if isinstance(one, Example):
            held_out = hold_out > 0 and is_held_out(one.held_out_by, hold_out)
            (self.held_out if held_out else self.examples).append(one)
            self.records += one.records
        elif isinstance(one, Correction):
            self.corrections.append(one)
            self.records.append(one.label.record)
        else:
            if isinstance(one, Skipped):
                self.skipped.append(one)
            else:
                self.dead.append(one)
            self.records.append(one.record)

    def refuse(self, reasons: Mapping[int, str]) -> None:
        """Turns the rows that a learner refuses into dead ones, before they are learned."""
        kept = [row for row in range(len(self.examples)) if row not in reasons]
        for row, why in reasons.items():
            example = self.examples[row]
            self.dead.append(Dead(example.record, RecordError("label", why), example.label_record))
        self.examples = [self.examples[row] for row in kept]
        if self.batch is not None:
            self.batch = self.batch.rows(kept) if kept else None


class Uplink:
    """Host to device through pinned memory on a stream of its own, so that a copy overlaps with the update before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, x: torch.Tensor) -> torch.Tensor:
        """Starts the copy; `arrive` before use."""
        if self._stream is None:
            return x.to(self._device)
        with torch.cuda.stream(self._stream):
            return x.pin_memory().to(self._device, non_blocking=True)

    def arrive(self, x: torch.Tensor) -> None:
        """Makes the current stream wait for the copies that were sent, and keeps `x` until it has used it."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            x.record_stream(current)


def collate(examples: Sequence[Example], topics: Mapping[str, int], uplink: Uplink) -> Batch:
    """Examples, in order, as one batch; `topics` numbers the model's topics."""
    records = [example.record for example in examples]
    x = np.stack([example.x for example in examples])  # (B, C, H, W) uint8 or (B, L) int32
    origins = np.array([(topics[r.topic], r.partition, r.offset) for r in records], dtype=np.int64)  # (B, 3)
    digests = b"".join(id_digest(example.id) for example in examples)
    ids = np.frombuffer(bytearray(digests), dtype=np.uint8).reshape(-1, 16)  # (B, 16)
    return Batch(
        x=uplink.send(torch.from_numpy(x)),
        labels=[example.label for example in examples],
        origins=torch.from_numpy(origins),
        ids=torch.from_numpy(ids),
        whole={row: torch.from_numpy(each.whole) for row, each in enumerate(examples) if each.whole is not None},
    )


@dataclass(eq=False)
class Feed:
    """Reads, decodes and batches in the background; `take` hands out items in order.

    A batch is closed by its size, or when its first record has waited for `max_wait_ms`.
    """

    reader: Reader | AlignedReader
    decoder: RecordDecoder
    uplink: Uplink
    _: KW_ONLY
    topics: Mapping[str, int]
    batch_size: int
    max_wait_ms: int
    decode_threads: int
    hold_out: float = 0.0  # the share of the records that are not learned
    positions: Mapping[Partition, int]  # where the reader starts
    backlog: Sequence[Record] = ()  # records from before those positions that come first
    joiner: Joiner | None = None  # brings records and labels together, where these are in a topic of their own
    already: Collection[Place] = ()  # records that a version learned ahead of their turn. They are passed over
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._positions = dict(self.positions)  # next offset to read
        self._pending = dict.fromkeys(record.place for record in self.backlog)  # read and not taken, in order
        self._items: queue.Queue[Item | None] = queue.Queue(DEPTH)  # None: the thread has failed
        self._stop = threading.Event()
        self._decode = Decoding(self.decoder, self.decode_threads, self._stop)
        self._thread = Background(self._loop, "feed", lambda: self._put(None))
        self._thread.start()

    def take(self, timeout_s: float) -> Item | None:
        """The next item, or None if there is none in time.

        Raises:
            HeadraceError: whatever ended the reading.
        """
        try:
            item = self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if item is None:
            self._items.put(None)  # for the next call
            self._thread.check()
            return None
        with self._lock:
            for record in item.records:
                del self._pending[record.place]
        if item.batch is not None:
            self.uplink.arrive(item.batch.x)
        return item

    @property
    def partitions(self) -> set[Partition]:
        """Those whose first position is known."""
        with self._lock:
            return set(self._positions)

    def progress(self) -> tuple[dict[Partition, int], Runs]:
        """The next offsets to read, and the records before them that were read and not taken yet, in order."""
        with self._lock:
            return dict(self._positions), Runs.of(self._pending)

    def close(self) -> None:
        """Stops the threads. The next feed reads again what was not taken."""
        self._stop.set()
        self._thread.close()

    def _loop(self) -> None:
        item = self._added(Item(), self.backlog)
        while not self._stop.is_set():
            if item.records and item.due_s is None:
                item.due_s = self.clock() + self.max_wait_ms / 1000
            wait_s = 0.1 if item.due_s is None else min(0.1, max(0.0, item.due_s - self.clock()))
            polled = self.reader.poll(wait_s)
            if polled is not None:
                new = {record.place: record for record in polled.records}
                for place in new.keys() & self.already:
                    del new[place]
                with self._lock:
                    self._pending |= dict.fromkeys(new)
                    self._positions |= polled.positions
                item = self._added(item, list(new.values()))
            if item.due_s is not None and self.clock() >= item.due_s:
                self._close(item)
                item = Item()

    def _added(self, item: Item, records: Sequence[Record]) -> Item:
        """The open item with these records. Each that they fill goes out, and another is opened.

        Raises:
            Exhausted: nothing more is decoded; what was goes out first.
        """
        for one in self._joined(self._decode(records)):
            item.add(one, self.hold_out)
            if len(item.examples) == self.batch_size:
                self._close(item)
                item = Item()
        if self._decode.error is not None:
            if item.records:
                self._close(item)
            raise self._decode.error
        return item

    def _joined(self, some: Iterable[Decoded]) -> Iterator[Left | Dead]:
        """The records that can go on: of these, and of those that waited for them."""
        if self.joiner is None:
            yield from some  # type: ignore[misc]  # labels are decoded for a joiner alone
            return
        for one in some:
            if isinstance(one, Example | Label):
                yield from self.joiner.add(one)
            else:
                yield one
        yield from self.joiner.fallen()

    def _close(self, item: Item) -> None:
        if item.examples:
            # By partition, each in its order: then the lineage of a batch is as short as a run for each of them.
            item.examples.sort(key=lambda example: (example.record.topic, example.record.partition))
            item.batch = collate(item.examples, self.topics, self.uplink)
        self._put(item)

    def _put(self, item: Item | None) -> None:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
