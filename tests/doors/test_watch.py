"""The second door: a plain HTTP scrape, read with Prometheus's own parser."""

from __future__ import annotations

import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


def test_any_prometheus_can_scrape_a_worker(learned: Any) -> None:
    with urllib.request.urlopen(learned.metrics_url) as answer:  # noqa: S310 - the worker told the address
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    ours = {name: family for name, family in families.items() if name.startswith("headrace_")}
    assert len(ours) >= 15
    assert all(family.documentation for family in ours.values())

    def value(name: str, **labels: str) -> float:
        family = ours[name.removesuffix("_total").removesuffix("_count").removesuffix("_sum")]
        [found] = [s.value for s in family.samples if s.name == name and s.labels == {"model": "pictures", **labels}]
        return float(found)

    learned_records = value("headrace_records_total", outcome="learned", reason="")
    assert learned_records >= 600
    assert learned_records == value("headrace_batch_records_sum")
    assert learned_records == value("headrace_publish_to_learned_seconds_count")
    assert value("headrace_step_seconds_count") == value("headrace_batch_records_count") >= 600 / 32
    assert 0 < value("headrace_step_seconds_sum") < value("headrace_publish_to_learned_seconds_sum")
    assert value("headrace_prequential_accuracy_ratio") > 0.5
    assert 0 < value("headrace_prequential_loss_nats") < 2
    assert value("headrace_replay_records") == 200
    assert 1 <= value("headrace_head_version") <= learned.manifest()["version"]
    assert value("headrace_snapshot_moved_bytes_total") > value("headrace_head_version") * 1000
    assert [value("headrace_lag_records", topic="bars", partition=p) for p in "01"] == [0, 0]
    assert (value("headrace_store_up"), value("headrace_log_up")) == (1, 1)
