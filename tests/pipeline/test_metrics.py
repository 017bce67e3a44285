from __future__ import annotations

import re
import socket
import threading
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import ConfigError
from pipeline.metrics import SamplerMetrics, WorkerMetrics, serve_metrics
from pipeline.records import Partition
from pipeline.store.manifest import Manifest
from pipeline.store.writer import Committed

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Metric

NOW_S = 1_700_000_000.0
NOW_MS = 1_700_000_000_000


def scraped(address: str) -> dict[str, Metric]:
    with urlopen(address) as response:  # noqa: S310 - an address of our own
        return {family.name: family for family in text_string_to_metric_families(response.read().decode())}


def samples(families: dict[str, Metric]) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names) → value"""
    return {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in families.values()
        for s in family.samples
    }


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def worker(registry: CollectorRegistry) -> WorkerMetrics:
    """One that has gone through everything a worker does."""
    metrics = WorkerMetrics(registry, "digits", clock=lambda: NOW_S)
    metrics.updated(0.02, [NOW_MS - 300, NOW_MS - 700], loss=1.5, accuracy=0.75, replay_records=2, means={})
    metrics.alarms.inc()
    metrics.updated(0.03, [NOW_MS + 5000], loss=1.25, accuracy=None, replay_records=3, means={"psnr_db": 21.5})
    metrics.outcome("skipped/unlabelled")
    metrics.outcome("skipped/unlabelled")
    metrics.outcome("dead-lettered/too-large")
    metrics.lag({Partition("digits", 0): 7, Partition("digits", 1): 8})
    metrics.lag({Partition("digits", 0): 5})
    metrics.drifts.inc()
    metrics.stalled(0.004)
    metrics.log_up.set(True)
    metrics.retry()
    metrics.store_up(True)
    assert not registry.get_sample_value("headrace_store_up", {"model": "digits"})  # as long as a version waits
    metrics.retried()
    metrics.withheld({Partition("digits", 0): 4})
    metrics.ahead.inc(2)
    metrics.committed(Committed(12, "ab" * 32, bytes_changed=1000, bytes_moved=1100, keyframe=True), 0.2)
    return metrics


def sampler(registry: CollectorRegistry) -> SamplerMetrics:
    """One that has gone through everything a sampler does."""
    metrics = SamplerMetrics(registry, clock=lambda: NOW_S)
    metrics.answered("/models/{model}/classify", 200, 0.012)
    metrics.answered("/models/{model}/classify", 422, 0.001)
    metrics.swapped("digits", manifest(3, NOW_MS - 3_600_000), 0.2)
    metrics.swapped("digits", manifest(4, NOW_MS - 400), 0.1)
    metrics.swap_failed("digits")
    metrics.store_up(False)
    return metrics


def manifest(version: int, newest_timestamp_ms: int | None) -> Manifest:
    fields: dict[str, Any] = {"version": version, "newest_timestamp_ms": newest_timestamp_ms}
    return Manifest.model_construct(**fields)  # the others play no part


def test_a_scrape_of_a_worker(registry: CollectorRegistry) -> None:
    worker(registry)
    with serve_metrics(registry, "127.0.0.1", 0) as address:
        values = samples(scraped(address))
    expected = {
        ("headrace_records_total", "digits", "learned", ""): 3,
        ("headrace_records_total", "digits", "skipped", "unlabelled"): 2,
        ("headrace_records_total", "digits", "dead-lettered", "too-large"): 1,
        ("headrace_lag_records", "digits", "0", "digits"): 5,
        ("headrace_lag_records", "digits", "1", "digits"): 8,
        ("headrace_batch_records_count", "digits"): 2,
        ("headrace_batch_records_sum", "digits"): 3,
        ("headrace_step_seconds_sum", "digits"): 0.05,
        ("headrace_prequential_loss_nats", "digits"): 1.25,
        ("headrace_prequential_accuracy_ratio", "digits"): 0.75,
        ("headrace_replay_records", "digits"): 3,
        ("headrace_drift_events_total", "digits"): 1,
        ("headrace_head_version", "digits"): 12,
        ("headrace_snapshot_changed_bytes_total", "digits"): 1000,
        ("headrace_snapshot_moved_bytes_total", "digits"): 1100,
        ("headrace_snapshot_seconds_sum", "digits"): 0.2,
        ("headrace_snapshot_stall_seconds_sum", "digits"): 0.004,
        ("headrace_store_retries_total", "digits"): 1,
        ("headrace_prequential_mean", "psnr_db", "digits"): 21.5,
        ("headrace_learner_alarms_total", "digits"): 1,
        ("headrace_store_up", "digits"): 1,
        ("headrace_withheld_records", "digits", "0", "digits"): 4,
        ("headrace_future_records_total", "digits"): 2,
        ("headrace_log_up", "digits"): 1,
        ("headrace_publish_to_learned_seconds_count", "digits"): 3,
        ("headrace_publish_to_learned_seconds_bucket", "0.25", "digits"): 1,  # the one from the future
        ("headrace_publish_to_learned_seconds_bucket", "0.5", "digits"): 2,
    }
    assert {key: values[key] for key in expected} == pytest.approx(expected)
    assert values["headrace_publish_to_learned_seconds_sum", "digits"] == pytest.approx(0.3 + 0.7, abs=1e-6)


def test_a_scrape_of_a_sampler(registry: CollectorRegistry) -> None:
    sampler(registry)
    with serve_metrics(registry, "127.0.0.1", 0) as address:
        values = samples(scraped(address))
    expected = {
        ("headrace_request_seconds_sum", "/models/{model}/classify", "200"): 0.012,
        ("headrace_request_seconds_count", "/models/{model}/classify", "422"): 1,
        ("headrace_served_version", "digits"): 4,
        ("headrace_freshness_seconds", "digits"): 0.4,
        ("headrace_swap_seconds_count", "digits"): 2,
        ("headrace_swap_seconds_sum", "digits"): 0.3,
        ("headrace_swap_failures_total", "digits"): 1,
        # What was an hour old when the sampler started has not taken an hour to be served.
        ("headrace_publish_to_served_seconds_count", "digits"): 1,
        ("headrace_publish_to_served_seconds_sum", "digits"): 0.4,
        ("headrace_store_up",): 0,
    }
    assert {key: values[key] for key in expected} == pytest.approx(expected, abs=1e-6)


def test_freshness_grows_between_swaps_and_a_rollback_is_not_news(registry: CollectorRegistry) -> None:
    now_s = [NOW_S]
    metrics = SamplerMetrics(registry, clock=lambda: now_s[0])
    for version, age_ms in ((1, 2000), (2, 1000), (1, 2000)):
        metrics.swapped("digits", manifest(version, NOW_MS - age_ms), 0.1)
    metrics.swapped("empty", manifest(1, None), 0.1)
    now_s[0] += 10
    labels = {"model": "digits"}
    assert registry.get_sample_value("headrace_freshness_seconds", labels) == pytest.approx(12)
    assert registry.get_sample_value("headrace_publish_to_served_seconds_count", labels) == 1
    assert registry.get_sample_value("headrace_freshness_seconds", {"model": "empty"}) is None


@pytest.mark.parametrize("make", [worker, sampler])
def test_names_follow_the_conventions(registry: CollectorRegistry, make: Callable[..., object]) -> None:
    """Units in names, `_total` on counters alone, a sentence of help: prometheus.io/docs/practices/naming."""
    make(registry)
    for family in registry.collect():
        assert re.fullmatch(
            r"headrace(_[a-z]+)+_(seconds|bytes|records|ratio|nats|version|up|events|retries|failures|alarms|moves)"
            r"|headrace_(records|keyframes|(prequential|held_out)_mean|(freshness|request|step|swap|snapshot)_seconds)",
            family.name,
        ), family.name
        assert re.fullmatch(r"[A-Z].*\.", family.documentation)
        for sample in family.samples:
            assert sample.name.startswith("headrace_")
            assert sample.name.endswith("_total") == (family.type == "counter" and not sample.name.endswith("_created"))


def test_what_has_no_value_yet_is_not_zero(registry: CollectorRegistry) -> None:
    metrics = WorkerMetrics(registry, "faces", clock=lambda: NOW_S)
    metrics.updated(0.02, [NOW_MS], loss=1.5, accuracy=None, replay_records=1, means={})
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert "headrace_prequential_loss_nats" in names
    assert not names & {"headrace_prequential_accuracy_ratio", "headrace_head_version", "headrace_store_up"}
    assert {"headrace_drift_events_total", "headrace_snapshot_seconds_count"} <= names


def test_two_workers_do_not_share_anything() -> None:
    one, two = CollectorRegistry(), CollectorRegistry()
    worker(one)
    WorkerMetrics(two, "digits")
    name, labels = "headrace_drift_events_total", {"model": "digits"}
    assert (one.get_sample_value(name, labels), two.get_sample_value(name, labels)) == (1, 0)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} cannot be bound"),
            serve_metrics(CollectorRegistry(), "127.0.0.1", port),
        ):
            pass


def test_closing_frees_the_port_and_ends_the_thread() -> None:
    before = threading.active_count()
    with serve_metrics(CollectorRegistry(), "127.0.0.1", 0) as address:
        port = int(address.split(":")[2].split("/")[0])
        assert threading.active_count() > before
    assert threading.active_count() == before
    with serve_metrics(CollectorRegistry(), "127.0.0.1", port):
        pass
