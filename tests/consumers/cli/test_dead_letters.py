"""`headrace dead-letters …`, in this process, on the real Kafka and Redis."""

from __future__ import annotations

import io
from typing import Any

import pytest
import typer
from PIL import Image
from redis import Redis

from consumers.cli.dead_letters import letters_app
from pipeline.config import KafkaConfig
from pipeline.errors import RecordError
from pipeline.log.dead_letters import dead_letter_topic, publish_dead_letter
from pipeline.log.publisher import Publisher
from pipeline.log.topics import ensure_topics
from pipeline.records import Record
from pipeline.store.store import Store
from tests.consumers.cli import test_cli as shared
from tests.consumers.cli.test_cli import Headrace, line, read
from tests.consumers.marked import marked

folder, headrace, model, topic = shared.folder, shared.headrace, shared.model, shared.topic

PICTURE = io.BytesIO()
Image.new("L", (8, 8), 255).save(PICTURE, "PNG")
#: Offset → value and reason
SENT = {0: (b"one\n\x1b[2J", "label"), 1: (PICTURE.getvalue(), "label"), 2: (b"\xff\x00", "undecodable")}


@pytest.fixture
def letters(folder: object, model: str, topic: str, kafka_config: KafkaConfig) -> list[str]:
    """Three dead letters of the model, and one of another for the same record as the last; their origins."""
    ensure_topics(kafka_config, [topic, dead_letter_topic(topic)])
    with Publisher(kafka_config) as publisher:
        for offset, (value, reason) in SENT.items():
            record = Record(topic, 0, offset, 1_700_000_000_000, b"k", value, (("label", b"\xe9\x1b"),))
            publish_dead_letter(publisher, record, RecordError(reason, "no \x1b[31m\ngood"), model)
        publish_dead_letter(publisher, record, RecordError("empty", "why"), "another")
    return [f"{topic}:0:{offset}" for offset in SENT]


@pytest.fixture
def accounted(redis: Redis, model: str, topic: str) -> None:
    """The model has a version that has read them all."""
    marked(Store(redis, model, model)).commit(watermark={topic: {0: len(SENT)}})


def test_every_command_has_an_example(headrace: Headrace) -> None:
    for name in typer.main.get_group(letters_app).commands:
        done = headrace("dead-letters", name, "--help")
        assert done.status == 0
        assert f"Example: headrace dead-letters {name} " in done.out


def test_list(headrace: Headrace, topic: str, model: str, letters: list[str]) -> None:
    def origins(*arguments: str) -> list[tuple[str, str]]:
        return [(e["origin"], e["model"]) for e in headrace("dead-letters", "list", topic, *arguments, "--json").json()]

    everything = [(origin, model) for origin in letters] + [(letters[2], "another")]
    assert origins() == everything
    assert origins("--limit", "1") == everything[:1]
    assert origins("--model", "another") == everything[3:]
    assert origins("--reason", "label") == everything[:2]
    assert origins("--since", "2026-01-31T12:00:00Z") == everything
    assert origins("--since", "2999-01-31T12:00:00+01:00") == []
    shown = headrace("dead-letters", "list", topic, "--limit", "3").out.splitlines()
    assert shown[0] == f"{letters[0]}  {model}  label: no \\x1b[31m\\ngood"
    assert len(shown) == 4
    assert shown[3] == f"4 dead letters of {topic}, 3 shown."
    assert headrace("dead-letters", "list", f"{topic}.none").out == f"0 dead letters of {topic}.none.\n"
    assert "--since noon is not a time" in line(headrace("dead-letters", "list", topic, "--since", "noon"), 2)


@pytest.mark.parametrize("timestamp_ms", [10**15, -(10**15), 2**63 - 1, -(2**63)])
def test_show_of_a_time_that_is_in_no_calendar(
    headrace: Headrace, topic: str, kafka_config: KafkaConfig, timestamp_ms: int
) -> None:
    ensure_topics(kafka_config, [topic, dead_letter_topic(topic)])
    with Publisher(kafka_config) as publisher:
        record = Record(topic, 0, 0, timestamp_ms, None, b"x")
        publish_dead_letter(publisher, record, RecordError("empty", "why"), "m")
    shown = headrace("dead-letters", "show", topic, f"{topic}:0:0").out
    assert f"published: {timestamp_ms} ms since 1970" in shown


def test_show(headrace: Headrace, topic: str, model: str, letters: list[str], folder: Any) -> None:
    shown = headrace("dead-letters", "show", topic, letters[0]).out
    assert "key: k\n" in shown
    assert "header label: \\xe9\\x1b\n" in shown
    assert "published: 2023-11-1" in shown
    assert shown.endswith("8 bytes:\none\\n\\x1b[2J\n")
    done = headrace("dead-letters", "show", topic, letters[1], "--to", "bad.png")
    assert done.out.endswith(", written to bad.png:\n" + ("@" * 24 + "\n") * 12)
    assert (folder / "bad.png").read_bytes() == PICTURE.getvalue()
    assert f"{letters[2]} is a dead letter of {model}, another." in line(
        headrace("dead-letters", "show", topic, letters[2]), 2
    )
    found = headrace("dead-letters", "show", topic, letters[2], "--model", "another", "--json").json()
    assert (found["reason"], found["bytes"], found["preview"]) == ("empty", 2, "ff 00")
    assert f"{topic}:0:9 is no such dead letter" in line(headrace("dead-letters", "show", topic, f"{topic}:0:9"), 3)
    assert "no/bad.png" in line(headrace("dead-letters", "show", topic, letters[1], "--to", "no/bad.png"), 1)


@pytest.mark.usefixtures("accounted")
def test_requeue_and_drop(
    headrace: Headrace,
    topic: str,
    model: str,
    letters: list[str],
    kafka_config: KafkaConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def refuse(question: str, abort: bool) -> None:
        asked.append(question)
        raise typer.Abort

    monkeypatch.setattr(typer, "confirm", refuse)
    for command, verb in (("requeue", "Requeue"), ("drop", "Drop")):
        assert "Nothing is chosen" in line(headrace("dead-letters", command, topic), 2)
        assert headrace("dead-letters", command, topic, "--reason", "label").status == 1
        assert asked.pop() == f"{verb} 2 dead letters of {topic}?"
        message = line(headrace("dead-letters", command, topic, letters[2], f"{topic}:0:9"), 3)
        assert f"{topic}:0:9 is no such dead letter" in message
        message = line(headrace("dead-letters", command, topic, letters[2], "--reason", "label"), 3)
        assert f"{letters[2]} is no such dead letter" in message
    # Of one letter nothing is asked.
    done = headrace("dead-letters", "requeue", topic, letters[0])
    assert done.status == 0
    assert done.out.splitlines()[0].endswith("  [requeued]")
    assert done.out.splitlines()[1] == f"1 dead letter of {topic} requeued."
    [(value, headers)] = read(kafka_config, topic, 1)
    assert (value, headers["headrace-origin"], headers["headrace-for"]) == (
        SENT[0][0],
        letters[0].encode(),
        model.encode(),
    )
    dropped = headrace("dead-letters", "drop", topic, "--model", model, "--yes", "--json").json()
    assert [(e["origin"], e["resolution"]) for e in dropped] == [(origin, "dropped") for origin in letters[1:]]
    assert headrace("dead-letters", "drop", topic, "--model", model, "--json").json() == []
    assert [e["model"] for e in headrace("dead-letters", "list", topic, "--json").json()] == ["another"]
    became = [e["resolution"] for e in headrace("dead-letters", "list", topic, "--all", "--json").json()]
    assert became == ["requeued", "dropped", "dropped", None]
    # The other model has no version: who knows what it will read by itself?
    message = line(headrace("dead-letters", "requeue", topic, "--all"), 4)
    assert f"The newest version of another does not account for {letters[2]} yet" in message
    assert asked == []
