"""A kind of record that headrace does not know: one class and one registration, from the configuration to a version."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.config import Config, validate
from pipeline.errors import ConfigError
from pipeline.log.publisher import Publisher
from pipeline.records import KINDS
from tests.consumers.rows import RowInput
from tests.consumers.working import configuration, working

ROWS: dict[str, Any] = {"learner": "tests.consumers.rows:blueprint", "input": {"kind": "row", "fields": 3}}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "row", RowInput)


def test_rows_of_json_go_from_the_topic_into_versions(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, **ROWS, hold_out={"slots": 4, "share": 0.3})
    with Publisher(config.kafka) as publisher:
        for number in range(20):
            publisher.publish(topic, f"[{number}, 1, 0.5]".encode(), headers=[("content-type", b"application/json")])
        publisher.publish(topic, b"[1, 2]")
        publisher.publish(topic, b"[1, 2, 3]", headers=[("content-type", b"text/plain")])
        publisher.publish(topic, b"no JSON")
        publisher.flush(20.0)
    with working(config) as run:
        head = run.read(23)
        before = run.finish()
    learned, held_out = head.counts["learned"], head.counts["held-out"]
    assert learned + held_out == 20
    assert held_out > 0
    assert head.counts["dead-lettered/undecodable"] == 2
    assert head.counts["dead-lettered/content-type"] == 1
    assert head.input == {"kind": "row", "fields": 3, "max_bytes": 1 << 16}
    total = run.store.arrays(before, "serving")["total"].numpy()
    np.testing.assert_array_equal(total[1:], [learned, learned / 2])
    with working(config) as again:  # goes on from the version
        again.finish()
        assert np.array_equal(again.store.arrays(again.store.manifest(), "serving")["total"].numpy(), total)


def test_its_table_is_checked_as_any_other() -> None:
    def table(**input: object) -> Config:
        return validate({"models": {"m": {"topics": ["t"], "learner": "l", "input": input}}}, "test")

    assert table(kind="row", fields=3).models["m"].input == RowInput(fields=3)
    with pytest.raises(ConfigError, match=r"models\.m\.input\.fields is required"):
        table(kind="row")
    with pytest.raises(ConfigError, match=r"models\.m\.input\.field = 3: there is no such key\. Did you mean fields"):
        table(kind="row", fields=3, field=3)
    with pytest.raises(ConfigError, match="none of 'image', 'text', 'row'"):
        table(kind="rows")
