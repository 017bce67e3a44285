"""What Prometheus sees of a worker and of a sampler. The registry and the clock are passed in.

Counters and histograms are there from the start, at zero, for rate() misses the step from nothing to one. Gauges are
there once they have a value: an accuracy of zero is not the same as none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from pipeline.errors import ConfigError
from pipeline.store.manifest import Manifest
from pipeline.store.writer import Committed
from pipeline.words import said

STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
AGE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60, 300, 3600)
PARTITION = ("topic", "partition")  # labels
BATCH_RECORDS = tuple(2**i for i in range(13))  # 1 … 4096


class Measure:
    """A gauge of one model: it is there once it was set."""

    def __init__(self, gauge: Gauge, model: str) -> None:
        self._gauge, self._model = gauge, model

    def set(self, value: float, *labels: object) -> None:
        self._gauge.labels(self._model, *labels).set(value)

    def __call__(self, values: Mapping[Any, float]) -> None:
        """Sets the value of each label, or of several in a tuple."""
        for labels, value in values.items():
            self.set(value, *(labels if isinstance(labels, tuple) else (labels,)))


class WorkerMetrics:
    """One worker's metrics; every one carries the label `model`. What is a single value has no method here."""

    def __init__(self, registry: CollectorRegistry, model: str, *, clock: Callable[[], float] = time.time) -> None:
        self._is_waited_for = False  # by a call that is made again and again
        self._clock = clock
        self._model = model

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model"], registry=registry).labels(model)

        def gauge(name: str, text: str, *labels: str) -> Measure:
            return Measure(Gauge(name, text, ["model", *labels], registry=registry), model)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, ["model"], buckets=buckets, registry=registry).labels(model)

        text = "Records by outcome; the reason is empty for those that were learned."
        self._records = Counter("headrace_records_total", text, ["model", "outcome", "reason"], registry=registry)
        self._learned = self._records.labels(model, "learned", "")
        self.stuck = gauge("headrace_stalled_seconds", "How long the worker has been at work that takes too long.")
        self.lag = gauge("headrace_lag_records", "Records in the partition that were not yet read.", *PARTITION)
        self.withheld = gauge(
            "headrace_withheld_records",
            "Of the lag, records behind a producer's transaction that has been open for long.",
            *PARTITION,
        )
        self.ahead = counter(
            "headrace_future_records_total", "Records whose timestamps were ahead of the worker's clock."
        )
        self._batch = histogram("headrace_batch_records", "Records of an update.", BATCH_RECORDS)
        self._step = histogram("headrace_step_seconds", "Time of an update, prediction included.", STEP_S)
        self._loss = gauge("headrace_prequential_loss_nats", "Mean loss before learning, recent records.")
        self._accuracy = gauge(
            "headrace_prequential_accuracy_ratio", "Share predicted right before learning, recent records."
        )
        self._means = gauge(
            "headrace_prequential_mean",
            "A learner's own mean before learning, recent records; `metric` names it with its unit.",
            "metric",
        )
        self._held_out = gauge(
            "headrace_held_out_mean",
            "What the model makes of records that it never learns; `metric` names it with its unit.",
            "metric",
        )
        self._held_out_class = gauge(
            "headrace_held_out_class_accuracy_ratio", "Accuracy on the held-out records of a class.", "class"
        )
        self.alarms = counter("headrace_learner_alarms_total", "Alarms of the learner's own; its log says which.")
        self._diagnoses = gauge(
            "headrace_diagnosis_alarms",
            "Whether `kind` tells why the model does badly, as far as that is seen; its log says more.",
            "kind",
        )
        self.drifts = counter("headrace_drift_events_total", "Times that the prequential error rose for good.")
        self.far_above = counter("headrace_loss_alarms_total", "Times that a loss was far above its recent range.")
        self.guarded = counter("headrace_guard_events_total", "Times that a number was not finite, and was undone.")
        self._replay = gauge("headrace_replay_records", "Records in the replay memory.")
        self.pending = gauge("headrace_pending_records", "Records that were read and wait: for room, or a label.")
        self._version = gauge("headrace_head_version", "Number of the newest version that was committed.")
        self._keyframes = counter("headrace_keyframes_total", "Versions that hold all that going on needs.")
        self.headroom = gauge(
            "headrace_keyframe_headroom_records", "Offsets that the log still holds before what a restart needs."
        )
        self.head_moves = counter("headrace_head_moves_total", "Times that the head was not where this worker left it.")
        self._changed = counter("headrace_snapshot_changed_bytes_total", "Bytes that changed between versions.")
        self._moved = counter("headrace_snapshot_moved_bytes_total", "Bytes sent to the store.")
        self._commit = histogram("headrace_snapshot_seconds", "Time from a capture to the new head.", STEP_S)
        self._stall = histogram("headrace_snapshot_stall_seconds", "Time that a capture holds up updates.", STEP_S)
        self._retries = counter("headrace_store_retries_total", "Calls to the store that failed and are retried.")
        self._store_up = gauge("headrace_store_up", "Whether the last call to the store succeeded.")
        self.log_up = gauge("headrace_log_up", "Whether the last read of the log succeeded.")
        self._to_learned = histogram(
            "headrace_publish_to_learned_seconds", "Time from a record's timestamp to its update.", AGE_S
        )

    def updated(
        self,
        step_s: float,
        timestamps_ms: Sequence[int],
        *,
        loss: float,
        accuracy: float | None,
        replay_records: int,
        means: Mapping[str, float],
    ) -> None:
        """One update has learned the records published at `timestamps_ms`."""
        now = self._clock()
        self._learned.inc(len(timestamps_ms))
        self._batch.observe(len(timestamps_ms))
        self._step.observe(step_s)
        self._loss.set(loss)
        if accuracy is not None:
            self._accuracy.set(accuracy)
        self._means(means)
        self._replay.set(replay_records)
        for timestamp_ms in timestamps_ms:
            self._to_learned.observe(_age_s(now, timestamp_ms))

    def outcome(self, name: str) -> None:
        """One record that was not learned: "skipped/unlabelled", "dead-lettered/undecodable"."""
        outcome, _, reason = name.partition("/")
        self._records.labels(self._model, outcome, reason).inc()

    def examined(self, means: Mapping[str, float], probes: Mapping[str, Mapping[str, float]]) -> None:
        """The model was asked what it makes of the records that are held out, and of those of each class."""
        self._held_out(means)
        self._held_out_class({label: kept["now"] for label, kept in probes.items()})

    def diagnosed(self, names: Iterable[str], former: Iterable[str]) -> None:
        """What is wrong with the model now, and what else was before."""
        self._diagnoses({**dict.fromkeys(former, 0), **dict.fromkeys(names, 1)})

    def stalled(self, seconds: float) -> None:
        self._stall.observe(seconds)

    def committed(self, committed: Committed, seconds: float) -> None:
        self._version.set(committed.version)
        if committed.keyframe:
            self._keyframes.inc()
        self._changed.inc(committed.bytes_changed)
        self._moved.inc(committed.bytes_moved)
        self._commit.observe(seconds)

    def retry(self) -> None:
        """A call to the store has failed and will be made again."""
        self._retries.inc()
        self._is_waited_for = True
        self.store_up(False)

    def retried(self) -> None:
        self._is_waited_for = False
        self.store_up(True)

    def store_up(self, up: bool) -> None:
        """Whether the store answers; one that takes no version is not up, whatever else it does."""
        self._store_up.set(up and not self._is_waited_for)


class SamplerMetrics:
    """A sampler's metrics; it serves several models."""

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._newest_ms: dict[str, int] = {}  # model → timestamp of the newest record in the version served

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._requests = histogram("headrace_request_seconds", "Time to answer a request.", STEP_S, "route", "status")
        self._version = gauge("headrace_served_version", "Number of the version in service.", "model")
        text = "Age of the newest record that the version in service has learned."
        self._freshness = gauge("headrace_freshness_seconds", text, "model")
        text = "Time from the timestamp of a version's newest record to the version's service."
        self._to_served = histogram("headrace_publish_to_served_seconds", text, AGE_S, "model")
        text = "Time to fetch, check and build a version that was put in service."
        self._swap = histogram("headrace_swap_seconds", text, STEP_S, "model")
        text = "Versions that could not be fetched or built; the one before stays in service."
        self._failures = Counter("headrace_swap_failures_total", text, ["model"], registry=registry)
        self._store_up = gauge("headrace_store_up", "Whether the last call to the store succeeded.")

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered. `route` is the template of the path, never the path itself."""
        self._requests.labels(route, status).observe(seconds)

    def swapped(self, model: str, manifest: Manifest, seconds: float) -> None:
        """Another version of the model is in service; fetching and building it took `seconds`."""
        self._swap.labels(model).observe(seconds)
        self._failures.labels(model)  # at zero, from the first version on
        self._version.labels(model).set(manifest.version)
        newest_ms, before_ms = manifest.newest_timestamp_ms, self._newest_ms.get(model)
        if newest_ms is None:
            return
        self._newest_ms[model] = newest_ms
        if before_ms is None:
            self._freshness.labels(model).set_function(lambda: _age_s(self._clock(), self._newest_ms[model]))
        elif newest_ms > before_ms:  # what a start finds, or a rollback, was not published just now
            self._to_served.labels(model).observe(_age_s(self._clock(), newest_ms))

    def swap_failed(self, model: str) -> None:
        self._failures.labels(model).inc()

    def store_up(self, up: bool) -> None:
        self._store_up.set(up)


@contextmanager
def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> Iterator[str]:
    """Serves `/metrics` on a thread while the context lasts, and returns its address. Port 0: a free port.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(
            f"metrics: {host}:{port} cannot be bound ({said(error)}). Set another metrics.host or metrics.port."
        ) from None
    shown = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _age_s(now_s: float, timestamp_ms: int) -> float:
    """Never negative: producers' clocks may run ahead, and a histogram's sum may not fall."""
    return max(0.0, now_s - timestamp_ms / 1000)
