"""Sends records, each once: waits for a Kafka that is away, goes on behind one that is refused, and counts."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import TypeVar

from consumers.publish.outgoing import Outgoing, Refused
from pipeline.client import Essence, essence
from pipeline.config import KafkaConfig
from pipeline.errors import LogError, LogUnavailable, RecordError, Stopped, TooLarge
from pipeline.log import Publisher, Receipt
from pipeline.records import Partition, Place

RETRY_S = 1.0
WAIT_S = 2.0  # how long one call waits for Kafka, and so, at the most, an end for the call
END_S = 10.0  # for what is under way when it is to end
NAMED = 20  # refused records that are named one by one

T = TypeVar("T")


@dataclass(slots=True)
class Tally:
    """What became of the records."""

    published: int = 0  # acknowledged
    id: str | None = None  # of the last one
    ends: dict[Partition, int] = field(default_factory=dict)  # the last offset of each partition
    labels: Counter[str] = field(default_factory=Counter)
    turns: int = 0  # times that another label came than before
    before: int = 0  # that an earlier try published
    refused: int = 0
    unknown: int = 0  # that Kafka did not acknowledge in time; it may have them

    @property
    def after(self) -> list[str]:
        """The last position of each partition."""
        return [str(Place(partition, offset)) for partition, offset in sorted(self.ends.items())]

    @property
    def missing(self) -> int:
        """Records that another try has to publish."""
        return self.refused + self.unknown


@dataclass(eq=False)
class Sender:
    """Publishes to one topic, for one thread."""

    kafka: KafkaConfig
    topic: str
    stop: Event  # ends the waiting for a Kafka that is away
    say: Callable[[str], None]
    before: Counter[Essence]  # records that an earlier try published: each is left out as often
    sent: Callable[[Outgoing], None] = lambda _: None  # hears of every record that Kafka has

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._waiting: deque[tuple[Receipt, Outgoing]] = deque()  # for Kafka's word, in order
        self._label: str | None = None  # the one before
        self._publisher = self._connected()

    def send(self, record: Outgoing | Refused) -> None:
        """Hands a record over, unless it is one that was sent before.

        Raises:
            Stopped: Kafka is away, and it is to end.
            LogError: Kafka refuses to take records.
        """
        if isinstance(record, Refused):
            self.refuse(record)
            return
        key = essence(record.headers)
        if self.before[key] > 0:
            self.before[key] -= 1
            self.tally.before += 1
            return
        try:
            self._waiting.append((self._published(record), record))
        except RecordError as error:
            self.refuse(Refused(record.where, error.detail))
        except LogError:  # of an earlier one: nothing goes out behind it
            self._recover()
            self._alone(record)
        self._take_words()

    def refuse(self, record: Refused) -> None:
        self.tally.refused += 1
        if self.tally.refused <= NAMED:
            self.say(str(record))
        elif self.tally.refused == NAMED + 1:
            self.say("Further records that cannot be published are counted alone.")

    def flush(self) -> None:
        """Returns when Kafka has all, or it is to end. Raises as `send`."""
        while self._waiting:
            try:
                self._publisher.flush(WAIT_S)
            except LogUnavailable:
                if self.stop.is_set():
                    return
            except LogError:
                self._recover()
            else:
                self._take_words()

    def close(self) -> None:
        """Ends; what Kafka acknowledges meanwhile still counts."""
        with suppress(LogError):
            self._publisher.close(END_S)
        while self._waiting:
            receipt, record = self._waiting.popleft()
            if receipt.is_done and isinstance(found := _outcome(receipt, 0), Place):
                self._acknowledged(record, found)
            else:
                self.tally.unknown += 1

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, self.stop, self.say)

    def _connected(self) -> Publisher:
        return self._patiently(lambda: Publisher(self.kafka, wait_s=WAIT_S))

    def _reconnect(self) -> None:
        """Opens a new publisher where the old one takes no more."""
        with suppress(LogError):
            self._publisher.close(END_S)
        self._publisher = self._connected()

    def _published(self, record: Outgoing) -> Receipt:
        return self._patiently(lambda: self._publisher.publish(self.topic, record.value, headers=record.headers))

    def _take_words(self) -> None:
        """Counts the oldest records that Kafka has answered."""
        while self._waiting and self._waiting[0][0].is_done:
            if isinstance(found := _outcome(self._waiting[0][0], 0), Place):
                self._acknowledged(self._waiting.popleft()[1], found)
            else:
                self._recover()

    def _recover(self) -> None:
        """Sends again, one by one, what was refused: a batch is refused as a whole, for one of its records."""
        words = [(record, self._patiently(partial(_outcome, receipt, WAIT_S))) for receipt, record in self._waiting]
        self._waiting.clear()
        self._reconnect()
        for record, found in words:
            if isinstance(found, Place):
                self._acknowledged(record, found)
            elif isinstance(found, TooLarge):
                self._alone(record)
            else:
                raise found

    def _alone(self, record: Outgoing) -> None:
        """Sends one record, and waits until Kafka has acknowledged or refused it."""
        try:
            place = self._patiently(partial(self._published(record).place, WAIT_S))
        except TooLarge:
            why = f"larger than {self.topic} takes. Make it smaller, or raise the topic's max.message.bytes."
            self.refuse(Refused(record.where, why))
            self._reconnect()
        except RecordError as error:
            self.refuse(Refused(record.where, error.detail))
        else:
            self._acknowledged(record, place)

    def _acknowledged(self, record: Outgoing, place: Place) -> None:
        self.tally.published += 1
        self.tally.ends[place.partition] = max(place.offset, self.tally.ends.get(place.partition, 0))
        self.tally.id = record.name
        if record.label is not None:
            self.tally.turns += record.label != self._label
            self.tally.labels[record.label] += 1
            self._label = record.label
        self.sent(record)


def _outcome(receipt: Receipt, timeout_s: float) -> Place | LogError:
    """Where a record is in the log, or why Kafka did not take it.

    Raises:
        LogUnavailable: it said nothing yet.
    """
    try:
        return receipt.place(timeout_s)
    except LogUnavailable:
        raise
    except LogError as error:
        return error


def patiently(call: Callable[[], T], stop: Event, say: Callable[[str], None]) -> T:
    """What the call gives, once Kafka answers.

    Raises:
        Stopped: it does not, and it is to end.
    """
    has_said = False
    while True:
        try:
            return call()
        except LogUnavailable as error:
            if stop.is_set():
                raise Stopped(str(error)) from None
            if not has_said:
                say(f"{error} Waiting for it; Ctrl-C ends.")
                has_said = True
            stop.wait(RETRY_S)
