"""`headrace log, show, blame, verify`, in this process, on the real Kafka and Redis and a worker's versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.log.publisher import Publisher
from pipeline.log.topics import ensure_topics
from pipeline.store.redis import connect
from pipeline.store.store import Store
from tests.consumers.cli import test_cli as shared
from tests.consumers.cli.test_cli import Headrace, line
from tests.consumers.working import working

folder, headrace, model, topic = shared.folder, shared.headrace, shared.model, shared.topic


@pytest.fixture
def history(folder: Path, model: str, topic: str) -> list[int]:
    """The numbers of two versions: texts that are numbers, one of them no text, one without a value; one with an id."""
    config = load(folder / "headrace.toml", {})
    ensure_topics(config.kafka, [topic])
    versions = []
    for texts in ([b"0", b"\xff", b"1"], [None, b"2"]):
        with Publisher(config.kafka) as publisher:
            for text in texts:
                headers = [("id", b"two")] if text == b"2" else []
                publisher.publish(topic, text, key=b"k", headers=headers)
        with working(config) as run:
            run.read(3 if texts[0] else 5)
            versions.append(run.finish().version)
    return versions


def test_the_history_is_listed(headrace: Headrace, history: list[int], model: str, topic: str) -> None:
    newest, *_, oldest = found = headrace("log", model, "--json").json()
    assert (newest["version"], newest["counts"]) == (
        history[-1],
        {"learned": 3, "dead-lettered/undecodable": 1, "skipped/tombstone": 1},
    )
    assert oldest["parent"] is None
    assert sum(commit["since_parent"].get("learned", 0) for commit in found) == 3
    shown = headrace("log", model, "-n", "1").out
    assert shown.startswith(f"version {history[-1]} ({newest['digest'][:12]})\n")
    assert f"{topic}:0 4..4 (1)" in headrace("log", model).out
    assert headrace("log", "nothing-yet").status == 0


def test_a_version_is_shown(headrace: Headrace, history: list[int], model: str, topic: str) -> None:
    shown = headrace("show", f"{model}@{history[0]}").out
    assert "learner    tests.consumers.counting:blueprint" in shown
    assert f"read up to {topic}:0@3" in shown
    assert headrace("show", model, "--json").json()["manifest"]["version"] == history[-1]
    assert "99 names no version" in line(headrace("show", f"{model}@99"), 4)


def test_a_version_that_is_not_kept_is_still_shown(
    headrace: Headrace, history: list[int], folder: Path, model: str
) -> None:
    config = load(folder / "headrace.toml", {})
    store = Store(connect(config.redis.url), model, model)
    fence = store.acquire("test", 60)
    assert fence is not None
    store.retire(fence, keep_last=1)
    assert "(not kept any more)" in headrace("show", f"{model}@{history[0]}").out
    assert headrace("show", f"{model}@{history[0]}", "--json").json()["digest"] is None


def test_records_are_blamed(headrace: Headrace, history: list[int], model: str, topic: str) -> None:
    [one] = headrace("blame", f"{topic}:0:0", "--json").json()
    assert (one["model"], one["outcome"], one["version"]) == (model, "learned", history[0])
    assert "dead-lettered/undecodable" in headrace("blame", f"{topic}:0:1").out
    assert "has not been read yet" in headrace("blame", f"{topic}:0:99").out
    by_id = headrace("blame", "--id", "two").out
    assert by_id.startswith(f"{topic}:0:4  {model}: learned: version {history[1]}, update ")
    assert "No record" in headrace("blame", "--id", "three").err
    assert "TOPIC:PARTITION:OFFSET" in line(headrace("blame", "no-place"), 2)
    assert "Name one record" in line(headrace("blame"), 2)


def test_a_version_is_verified(headrace: Headrace, history: list[int], folder: Path, model: str) -> None:
    told = headrace("verify", model)
    assert told.status == 0
    assert "is the same to the last bit" in told.out
    found = headrace("verify", f"{model}@{history[1]}", "--from", str(history[0]), "--json").json()
    assert (found["same"], found["start"], found["records"]) == (True, history[0], 1)
    toml = folder / "headrace.toml"
    toml.write_text(
        toml.read_text("utf-8").replace("max_wait_ms = 20", 'decoder = "tests.consumers.counting:from_words"')
    )
    assert "cannot be any more" in line(headrace("verify", model), 8)
