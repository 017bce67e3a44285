"""The stream of events: what is new comes by itself, and it ends when it must."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from consumers.sampler import app, routes_events, routes_history
from pipeline.records import Partition, Place
from pipeline.store.lineage import LineageBuilder
from tests.consumers.answering import commit, serving


def events(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    """Name and data of each event, as they come."""
    name = ""
    for line in answer.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def test_a_new_version_comes_by_itself_as_models_tells_it(redis_url: str) -> None:
    with serving(redis_url, "eyes", "voice") as (at, makers), at.client.stream("GET", "/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = events(answer)
        assert next(told) == ("service", {"store": "reachable", "problem": None, "models": ["eyes", "voice"]})
        first = [next(told), next(told)]
        assert [(name, state["model"], state["standing"]["version"]) for name, state in first] == [
            ("model", "eyes", 3),
            ("model", "voice", 3),
        ]
        commit(makers["voice"], "voice", 4)
        name, state = next(told)
        assert (name, state["standing"]["version"]) == ("model", 4)
        asked = at.client.get("/models/voice").json()
        assert {**state["standing"], "freshness_s": 0} == {**asked.pop("standing"), "freshness_s": 0}
        assert {key: value for key, value in state.items() if key != "standing"} == asked


def test_it_says_that_it_is_there_where_nothing_is_new(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_events, "ALIVE_S", 0.0)
    with serving(redis_url, "eyes") as (at, _), at.client.stream("GET", "/events") as answer:
        told = events(answer)
        assert [next(told)[0] for _ in range(4)] == ["service", "model", "alive", "alive"]


def test_so_many_streams_are_open_and_no_more(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "STREAMS", 4)
    with serving(redis_url, "eyes") as (at, _), ExitStack() as stack:
        open_ = [events(stack.enter_context(at.client.stream("GET", "/events"))) for _ in range(2)]
        assert [next(told)[0] for told in open_] == ["service", "service"]  # half of them are for one client
        refused = at.client.get("/events")
        assert (refused.status_code, refused.json()["error"]) == (503, "busy")
        assert refused.headers["retry-after"] == "1"


def test_it_ends_when_the_sampler_does_and_after_its_time(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(redis_url, "eyes") as (at, _), at.client.stream("GET", "/events") as answer:
        told = events(answer)
        next(told)
        at.server.should_exit = True
        assert {name for name, _ in told} <= {"model", "alive"}  # and no error at its end
    monkeypatch.setattr(routes_events, "STREAM_S", 0.3)
    with serving(redis_url, "eyes") as (at, _):
        assert at.client.get("/events").text.startswith("retry: 1000\n\nevent: service\n")
        assert at.client.head("/events").headers["content-type"].startswith("text/event-stream")


def test_the_history_tells_figures_and_what_happened(redis_url: str) -> None:
    with serving(redis_url, "drawings") as (at, makers):
        lineage = LineageBuilder()
        lineage.change({"drift": {"update": 3, "reaction": "flush"}})
        lineage.change({"environment": {"torch": ["1", "2"]}})  # which nobody needs to see
        made = makers["drawings"].commit(lineage=lineage.build(), metrics={"prequential_loss": 2.5})
        told = at.client.get("/models/drawings/history").json()
        assert [point["version"] for point in told["points"]] == [1, 2, 3, 4]
        assert told["points"][-1]["metrics"] == {"prequential_loss": 2.5}
        [mark] = told["marks"]
        assert (mark["version"], mark["kind"]) == (made.version, "drift")
        assert mark["what"] == {"update": 3, "reaction": "flush"}
        last = at.client.get("/models/drawings/history", params={"last": 1}).json()
        assert [point["version"] for point in last["points"]] == [4]
        assert at.client.get("/models/nobody/history").status_code == 404


def test_the_log_tells_what_each_version_learned(redis_url: str) -> None:
    with serving(redis_url, "drawings") as (at, makers):
        lineage = LineageBuilder()
        lineage.learned([Place(Partition("pictures", 0), offset) for offset in (4, 6)])
        made = makers["drawings"]
        made.commit(lineage=lineage.build(), watermark={"pictures": {0: 7}})
        made.store.set_alias("stable", 4)
        newest, before = at.client.get("/models/drawings/log", params={"last": 2}).json()
        assert (newest["version"], newest["parent"], newest["aliases"]) == (4, 3, ["stable"])
        assert newest["ranges"] == {"pictures:0": [4, 7, 2]}
        assert before["version"] == 3
        told = at.client.get("/models/drawings/blame", params={"record": "pictures:0:6"}).json()
        assert (told["outcome"], told["version"]) == ("learned", 4)
        assert at.client.get("/models/drawings/blame", params={"record": "pictures"}).status_code == 422


def test_a_curve_has_so_many_points_and_the_last_one(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_history, "POINTS", 2)
    with serving(redis_url, "eyes") as (at, _):
        told = at.client.get("/models/eyes/history").json()
        assert [point["version"] for point in told["points"]] == [1, 3]
