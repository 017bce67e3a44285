"""Publishing: every record once, in order per partition, acknowledged by all replicas in sync."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from kafka import KafkaProducer
from kafka.errors import (
    InvalidProducerEpochError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerFencedError,
    RecordListTooLargeError,
    UnknownError,
)

from pipeline.config import KafkaConfig
from pipeline.errors import LogError, LogUnavailable, RecordError, TooLarge
from pipeline.log.batches import RECORD_OVERHEAD
from pipeline.log.connection import BATCH_OVERHEAD, connect, translated
from pipeline.records import Partition, Place
from pipeline.threads import Background

TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)  # for a topic, or for its files
TRANSACTION_MS = 20_000  # readers wait for an open transaction: the broker ends one that was left so long


class Receipt:
    """What becomes of a published record."""

    __slots__ = ("_config", "_future")

    def __init__(self, future: Any, config: KafkaConfig) -> None:
        self._future = future
        self._config = config

    @property
    def is_done(self) -> bool:
        """Whether `result` has not to wait."""
        return bool(self._future.is_done)

    def result(self, timeout_s: float) -> tuple[str, int, int]:
        """Its topic, partition and offset, once Kafka has acknowledged it.

        Raises:
            TooLarge: it, or one that went with it, is larger than the topic takes.
            LogUnavailable: not in time.
            LogError: Kafka refused it.
        """
        try:
            metadata = self._future.get(timeout_s)
        except KafkaError as error:
            ours = translated(error, self._config, "acknowledge a record")
            raise (TooLarge(str(ours)) if isinstance(error, TOO_LARGE) else ours) from error
        return metadata.topic, metadata.partition, metadata.offset

    def place(self, timeout_s: float) -> Place:
        """The same, as one value; as text it is what `?after=` takes. Raises as `result`."""
        topic, partition, offset = self.result(timeout_s)
        return Place(Partition(topic, partition), offset)


class Publisher:
    """Idempotent, acks=all, compressed; for use from any thread.

    What waits for the broker is bounded by `max_buffered_bytes`: beyond it `publish` waits, at most `wait_s`.
    Once the broker has refused a record, every call says so: what follows it may not overtake it.

    Where a record may be there twice, one that is not `idempotent` outlives what a topic refuses (see `publish`).

    With a `transactional_id` all is published in `transaction` blocks, and it is the only publisher with that
    id from now on: an earlier one can commit no more, and what it left open is aborted.
    """

    def __init__(
        self,
        config: KafkaConfig,
        *,
        linger_ms: int = 10,
        max_buffered_bytes: int = 64 << 20,
        wait_s: float = 30.0,
        idempotent: bool = True,
        transactional_id: str | None = None,
    ) -> None:
        self._config = config
        self._max_buffered_bytes = max_buffered_bytes
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._buffered_bytes = 0
        self._failure: KafkaError | None = None
        self._instead: deque[Callable[[], object]] = deque()  # of records that were too large
        self._producer = connect(
            KafkaProducer,
            config,
            acks="all",
            enable_idempotence=idempotent,
            compression_type="gzip",  # the one codec that every client reads without further packages
            batch_size=64 << 10,
            linger_ms=linger_ms,
            max_request_size=config.max_bytes + BATCH_OVERHEAD,
            max_block_ms=int(wait_s * 1000),
            delivery_timeout_ms=(1 << 31) - 1,  # what waits for a broker stays; `flush` and `publish` say how long
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_MS,
        )
        if transactional_id is not None:
            try:
                self._answered(self._producer.init_transactions, f"begin transactions as {transactional_id}")
            except BaseException:
                self.close(0)
                raise

    def publish(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Iterable[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
        partition: int | None = None,
        instead: Callable[[], object] | None = None,
    ) -> Receipt:
        """Takes a record; its receipt says when it is safe. A record with a key and None as value is a tombstone.

        Args:
            instead: what `flush` does where the topic does not take a record of this size; else that is a failure.

        Raises:
            RecordError: its value is larger than `kafka.max_bytes`, or all of it than that and a megabyte.
            LogUnavailable: Kafka did not make room in time, or the topic does not exist.
            LogError: an earlier record was refused.
        """
        size = len(value or b"")
        if size > self._config.max_bytes:
            raise RecordError(
                "too-large",
                f"a record of {size} bytes for {topic} exceeds kafka.max_bytes = {self._config.max_bytes}. "
                "Make it smaller, or raise the limit here and in the topic's max.message.bytes.",
            )
        size += RECORD_OVERHEAD
        self._reserve(size, topic)
        try:
            future = self._producer.send(topic, value, key, list(headers), partition, timestamp_ms)
        except KafkaTimeoutError as error:
            self._release(size)
            raise LogUnavailable(
                f"Kafka at {self._config.bootstrap_servers} did not name {topic} within {self._wait_s} s. "
                "See that it runs and that the topic exists; `ensure_topics` creates it."
            ) from error
        except BaseException as error:
            self._release(size)
            if isinstance(error, MessageSizeTooLargeError):
                raise RecordError("too-large", f"a record for {topic}, with its key and headers: {error}.") from None
            if isinstance(error, KafkaError):
                raise self._translated(error, f"take a record for {topic}") from error
            raise
        future.add_callback(self._release, size)
        future.add_errback(self._refused, size, instead)
        return Receipt(future, self._config)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes one transaction: what is published inside can be read once the block ends, or never if it raises.

        A publisher whose transaction failed is of no further use.

        Raises:
            LogUnavailable: Kafka does not answer in time.
            LogError: Kafka refuses, or another publisher took over the transactional id.
        """
        self._answered(self._producer.begin_transaction, "begin a transaction")
        try:
            yield
            self.flush(self._wait_s)
        except BaseException:
            with suppress(LogError):  # else the broker aborts it, after TRANSACTION_MS
                self._answered(self._producer.abort_transaction, "abort a transaction")
            raise
        self._answered(self._producer.commit_transaction, "commit a transaction")

    @property
    def buffered_bytes(self) -> int:
        """What waits for Kafka's acknowledgement."""
        with self._changed:
            return self._buffered_bytes

    def flush(self, timeout_s: float) -> None:
        """Waits until Kafka has acknowledged all that was published, or what was to be published instead.

        Raises:
            LogUnavailable: not in time.
            LogError: a record was refused.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            try:
                self._producer.flush(max(0.0, until_s - time.monotonic()))
            except UnknownError:  # kafka-python's where a batch was too large and goes in halves now
                continue
            except KafkaError as error:
                raise translated(error, self._config, "acknowledge all records in time") from error
            with self._changed:
                self._raise_failure()
            if not self._instead:
                return
            self._instead.popleft()()

    def close(self, timeout_s: float = 10.0) -> None:
        """Sends the records that wait, and ends.

        Raises:
            LogUnavailable: Kafka did not acknowledge all in time; what it did not may be lost.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            try:
                self._producer.close(max(0.0, until_s - time.monotonic()))
            except UnknownError:  # as in `flush`
                continue
            except KafkaError as error:
                self._producer._sender.force_close()  # which kafka-python leaves running, with its connections
                self._producer._sender.join(timeout_s)
                raise translated(error, self._config, "acknowledge the last records") from error
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self.flush(self._wait_s)
        finally:
            self.close()

    def _reserve(self, size: int, topic: str) -> None:
        with self._changed:
            self._raise_failure()
            # A record larger than the whole bound goes alone.
            if not self._changed.wait_for(
                lambda: not self._buffered_bytes or self._buffered_bytes + size <= self._max_buffered_bytes,
                self._wait_s,
            ):
                raise LogUnavailable(
                    f"Kafka at {self._config.bootstrap_servers} took no record of {topic} "
                    f"for {self._wait_s} s, and {self._buffered_bytes} bytes wait already. "
                    "See that it runs and keeps up, then try again."
                )
            self._buffered_bytes += size

    def _release(self, size: int, _: object = None) -> None:
        with self._changed:
            self._buffered_bytes -= size
            self._changed.notify_all()

    def _refused(self, size: int, instead: Callable[[], object] | None, error: KafkaError) -> None:
        with self._changed:
            if instead is not None and isinstance(error, TOO_LARGE):
                self._instead.append(instead)
            else:
                self._failure = self._failure or error
        self._release(size)

    def _raise_failure(self) -> None:
        if self._failure is not None:  # never LogUnavailable: no later call of this publisher can succeed
            raise LogError(str(self._translated(self._failure, "take a record"))) from self._failure

    def _answered(self, call: Callable[[], None], doing: str) -> None:
        """Makes a call that kafka-python would wait in without end where no broker answers."""
        thread = Background(call, "transaction")
        thread.start()
        thread.join(self._wait_s)
        try:
            if thread.is_alive():
                raise KafkaTimeoutError(f"no answer in {self._wait_s} s")
            thread.check()
        except KafkaError as error:
            raise self._translated(error, doing) from error

    def _translated(self, error: KafkaError, doing: str) -> LogError:
        causes = (error, *error.args)  # what comes after the first failure is a KafkaError that carries it
        if any(isinstance(cause, ProducerFencedError | InvalidProducerEpochError) for cause in causes):
            return LogError(
                f"Another process took over the transactions of this one, which could not {doing}. "
                "See what the other did, then try again."
            )
        return translated(error, self._config, doing)
