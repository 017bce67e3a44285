"""Two readers as one. They keep step by the timestamps of their records: none runs ahead by more than a chunk or so.

A topic of small records is read a hundred times faster than one of pictures. Whoever joins the two would have to keep
what is read ahead; here it waits in the log.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from statistics import median_low

from pipeline.log.offsets import Jump
from pipeline.log.reader import Polled, Reader
from pipeline.records import Partition

STEADY = 9  # records, of which a few may have clocks of their own
PATIENCE_S = 5.0  # with a reader that has something to come and gives nothing: an open transaction, or no leader


class AlignedReader:
    """Does for a worker what a `Reader` does, over two readers with topics of their own. Their opener closes them.

    Args:
        records: the reader that is waited for where neither has more to come.
        labels: the other reader.
        clock: in seconds; for `PATIENCE_S` alone.
        now: seconds since the epoch; a timestamp that is ahead of it counts as now.
    """

    def __init__(
        self,
        records: Reader,
        labels: Reader,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._readers = (labels, records)
        self._clock = clock
        self._now = now
        self._last_ms: defaultdict[Partition, deque[float]] = defaultdict(lambda: deque(maxlen=STEADY))
        self._gave_s = dict.fromkeys(self._readers, clock())
        first = Polled()
        for reader in self._readers:
            if (polled := reader.poll(0)) is not None:
                first.positions |= polled.positions
        self._first: Polled | None = first

    def poll(self, timeout_s: float) -> Polled | None:
        """The next chunk: of the reader that is behind, if one is; of the first one, where each partition begins.

        Raises:
            OffsetsGone, TopicReplaced, TopicMissing, LogError: as `Reader.poll`.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        behind, ahead = sorted(self._readers, key=lambda reader: self._behind_ms(reader.lag()))
        has_more = any(behind.lag().values())
        polled = self._poll(behind, timeout_s if has_more else 0)
        if polled is not None or (has_more and self._clock() - self._gave_s[behind] < PATIENCE_S):
            return polled
        return self._poll(ahead, timeout_s)

    def read_up_to_ms(self) -> float:
        """The time up to which all has been polled, as far as the brokers have told; -inf where that is not known."""
        lag = self.lag()
        return min(max((self._time_ms(at, lag) for at in lag), default=-math.inf), self._behind_ms(lag))

    def lag(self) -> dict[Partition, int]:
        """As `Reader.lag`, like the rest."""
        return {at: records for reader in self._readers for at, records in reader.lag().items()}

    def firsts(self) -> dict[Partition, int]:
        return {at: offset for reader in self._readers for at, offset in reader.firsts().items()}

    def withheld(self) -> dict[Partition, int]:
        return {at: records for reader in self._readers for at, records in reader.withheld().items()}

    def ahead(self) -> dict[Partition, int]:
        return {at: records for reader in self._readers for at, records in reader.ahead().items()}

    def commit(self, positions: Mapping[Partition, int]) -> None:
        for reader in self._readers:
            reader.commit(positions)

    def commit_number(
        self, text: str, positions: Mapping[Partition, int], timeout_s: float, *, may_doubt: bool = False
    ) -> None:
        """As `Reader.commit_number`, with so much time for each of the two."""
        for reader in self._readers:
            reader.commit_number(text, positions, timeout_s, may_doubt=may_doubt)

    @property
    def reachable(self) -> bool:
        return all(reader.reachable for reader in self._readers)

    @property
    def topic_ids(self) -> dict[str, str]:
        return {topic: id_ for reader in self._readers for topic, id_ in reader.topic_ids.items()}

    @property
    def doubtful(self) -> dict[Partition, range]:
        return {at: offsets for reader in self._readers for at, offsets in reader.doubtful.items()}

    @property
    def again(self) -> dict[Partition, set[int]]:
        return {at: offsets for reader in self._readers for at, offsets in reader.again.items()}

    @property
    def ids_now(self) -> dict[str, str]:
        return {topic: id_ for reader in self._readers for topic, id_ in reader.ids_now.items()}

    @property
    def jumps(self) -> list[Jump]:
        return [jump for reader in self._readers for jump in reader.jumps]

    @property
    def last_number(self) -> str | None:
        return max((reader.last_number for reader in self._readers if reader.last_number), key=int, default=None)

    def _poll(self, reader: Reader, timeout_s: float) -> Polled | None:
        polled = reader.poll(timeout_s)
        if polled is not None:
            self._gave_s[reader] = self._clock()
            now_ms = 1000 * self._now()
            for record in polled.records:
                self._last_ms[Partition(record.topic, record.partition)].append(min(record.timestamp_ms, now_ms))
        return polled

    def _behind_ms(self, lag: Mapping[Partition, int]) -> float:
        """The time of the partition that is furthest behind of those that have more to come; inf where none has."""
        return min((self._time_ms(at, lag) for at, records in lag.items() if records), default=math.inf)

    def _time_ms(self, at: Partition, lag: Mapping[Partition, int]) -> float:
        """That of the last record, or while there is more to come of the middle one of the last few: a few clocks that
        were ahead, and are past by now, lead nobody then."""
        last = self._last_ms.get(at)
        if not last:
            return -math.inf
        return median_low(last) if lag.get(at) else last[-1]
