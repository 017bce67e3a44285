"""Texts, whole and as server-sent events: one version writes all of it, and a client that goes away ends the work."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Full
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from consumers.workers import ANSWER_S
from models.capabilities import Sampling
from tests.consumers.answering import STEPS, VERSIONS, commit, serving, stepping
from tests.consumers.marked import Maker
from tests.consumers.running import PATIENCE_S, Running

URL = "/models/voice/complete"
MOST = 600  # bytes
JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def made(redis_url: str) -> Iterator[tuple[Running, dict[str, Maker]]]:
    with serving(redis_url, "voice", max_text_bytes=MOST, max_upload_bytes=20_000, slots=1) as made:
        yield made


@pytest.fixture(scope="module")
def sampler(made: tuple[Running, dict[str, Maker]]) -> Running:
    return made[0]


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Name and data of each, as the standard has it."""
    name = "message"
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)
        else:
            assert line == ""
            name = "message"


def test_a_text_is_streamed_and_the_end_says_who_wrote_it(sampler: Running) -> None:
    ask = {"prompt": "a\nß家🏠", "seed": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "max_bytes": 300}
    wanted = f"🏠家ß\na v{VERSIONS} 7 {Sampling(0.5, 3, 0.9, 300, None)}"
    with sampler.client.stream("POST", URL, json=ask) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert (answer.headers["x-headrace-version"], answer.headers["x-headrace-seed"]) == (str(VERSIONS), "7")
        *pieces, (last, done) = events(answer.iter_lines())
    assert [piece["text"] for _, piece in pieces] == list(wanted)
    assert {name for name, _ in pieces} == {"message"}
    assert last == "done"
    assert (done["model"], done["version"], done["seed"]) == ("voice", VERSIONS, 7)
    assert done["freshness_s"] >= 0
    assert "text" not in done
    whole = sampler.client.post(URL, json=ask, headers=JSON).json()
    assert whole["text"] == wanted
    assert whole.keys() - {"text"} == done.keys()
    query: dict[str, Any] = ask
    assert sampler.client.get(URL, params=query, headers=JSON).json()["text"] == wanted  # as EventSource asks
    assert sampler.client.get(URL, params=query).headers["content-type"].startswith("text/event-stream")


def test_what_is_not_asked_is_the_default(sampler: Running) -> None:
    answer = sampler.client.post(URL, json={}, headers=JSON).json()
    assert answer["text"] == f" v{VERSIONS} {answer['seed']} {Sampling()}"
    assert sampler.client.post(URL, json={}, headers=JSON).json()["seed"] != answer["seed"]
    stopped = sampler.client.post(URL, json={"prompt": "abc", "stop": "ba"}, headers=JSON).json()
    assert stopped["text"] == "c"
    assert sampler.client.post(URL, json={"prompt": "家", "max_bytes": 2}, headers=JSON).json()["text"] == ""


def test_new_texts_share_the_bytes_of_a_request(sampler: Running) -> None:
    three = sampler.client.get("/models/voice/generate?n=3&seed=4").json()
    assert len(three["texts"]) == 3
    assert all(f"max_bytes={MOST // 3}" in text for text in three["texts"])
    assert (three["model"], three["version"], three["seed"]) == ("voice", VERSIONS, 4)
    assert three["texts"][0].split()[1] != three["texts"][1].split()[1]  # their seeds
    [one] = sampler.client.get("/models/voice/generate?seed=4").json()["texts"]
    assert one.split()[1] == three["texts"][0].split()[1]
    refused = sampler.client.get("/models/voice/generate?n=65")
    assert (refused.status_code, refused.json()["error"]) == (422, "invalid")


def test_one_version_writes_the_whole_text(made: tuple[Running, dict[str, Maker]]) -> None:
    sampler, makers = made
    live = sampler.follower("voice").live
    assert live is not None
    version = live.manifest.version
    with stepping() as steps, sampler.client.stream("POST", URL, json={"prompt": steps.prompt}) as answer:
        told = events(answer.iter_lines())
        steps.go()
        assert next(told)[1]["text"] == f"0:v{version} "
        commit(makers["voice"], "voice", version + 1)
        assert sampler.serves("voice", version + 1)
        assert sampler.client.get("/models/voice").json()["standing"]["version"] == version + 1
        steps.go(STEPS - 1)
        *pieces, (name, done) = told
        assert [piece["text"] for _, piece in pieces] == [f"{number}:v{version} " for number in range(1, STEPS)]
        assert (name, done["version"]) == ("done", version)


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_a_client_that_goes_away_ends_the_work_and_frees_its_slot(sampler: Running, accept: str) -> None:
    address = urlsplit(sampler.url)
    for _ in range(6):  # more than there are slots and places
        with stepping() as steps:
            with socket.create_connection((str(address.hostname), address.port or 80), PATIENCE_S) as connection:
                body = json.dumps({"prompt": steps.prompt}).encode()
                head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {len(body)}"
                connection.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body)
                steps.go()
                assert steps.begun.wait(PATIENCE_S)
            assert steps.end_early()
    assert sampler.client.post(URL, json={}, headers=JSON).status_code == 200


def eventually_free(sampler: Running, places: int) -> bool:
    """Whether the sideline comes to have so many free places."""
    for _ in range(int(PATIENCE_S / 0.01)):
        with ExitStack() as held:
            try:
                for number in range(places):
                    held.enter_context(sampler.service.slow_admission.admit(f"client {number}"))
            except Full:
                threading.Event().wait(0.01)
            else:
                return True
    return False


def test_a_text_waits_for_its_slot_and_is_given_up_with_its_client(sampler: Running) -> None:
    with stepping() as steps, sampler.client.stream("POST", URL, json={"prompt": steps.prompt}):
        steps.go()
        assert steps.begun.wait(PATIENCE_S)
        with stepping() as never, sampler.client.stream("POST", URL, json={"prompt": never.prompt}) as waiting:
            assert waiting.status_code == 200  # it is told at once that it will be answered
        assert eventually_free(sampler, 3)  # of four: the first text has one
        with sampler.client.stream("POST", URL, json={"prompt": "next"}) as waiting:
            steps.go(STEPS)
            assert "".join(data.get("text", "") for _, data in events(waiting.iter_lines())).startswith("txen ")
        assert not never.begun.is_set()


def test_a_model_that_fails_is_reported(sampler: Running) -> None:
    told: list[tuple[str, Any]] = []
    with (
        sampler.client.stream("POST", URL, json={"prompt": "fail"}) as answer,
        pytest.raises(httpx.RemoteProtocolError),  # the sampler's log has the traceback
    ):
        told.extend(events(answer.iter_lines()))
    assert told[0] == ("message", {"text": "so far"})
    assert (told[1][0], told[1][1]["error"], len(told)) == ("error", "internal", 2)
    # uvicorn ends the connection after a failure without saying so.
    whole = sampler.client.post(URL, json={"prompt": "fail"}, headers={**JSON, "Connection": "close"})
    assert (whole.status_code, whole.json()["error"]) == (500, "internal")


def test_a_text_has_a_bound_in_time(sampler: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    sideline = sampler.service.sideline

    def passed() -> float:
        return time.monotonic() + ANSWER_S

    with ThreadPoolExecutor(1) as other, stepping() as steps:
        asked = other.submit(sampler.client.post, URL, json={"prompt": steps.prompt}, headers=JSON)
        assert steps.begun.wait(PATIENCE_S)
        monkeypatch.setattr(sideline, "clock", passed)
        whole = asked.result(PATIENCE_S)
        assert (whole.status_code, whole.json()["error"]) == (504, "timeout")
        monkeypatch.undo()
        assert steps.end_early()
    with stepping() as steps, sampler.client.stream("POST", URL, json={"prompt": steps.prompt}) as answer:
        assert steps.begun.wait(PATIENCE_S)
        monkeypatch.setattr(sideline, "clock", passed)
        [(name, told)] = events(answer.iter_lines())
        assert (name, told["error"]) == ("error", "timeout")
        monkeypatch.undo()
        assert steps.end_early()
    while sideline.problem:  # the threads that were given up have ended
        pass
    assert sampler.client.post(URL, json={}, headers=JSON).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"json": {"prompt": "x" * (MOST + 1)}}, 422, "invalid"),
        ({"json": {"prompt": "家" * (MOST // 3 + 1)}}, 422, "invalid"),
        ({"json": {"max_bytes": MOST + 1}}, 422, "invalid"),
        ({"json": {"max_bytes": 0}}, 422, "invalid"),
        ({"json": {"temperature": -1}}, 422, "invalid"),
        ({"content": b'{"temperature": NaN}', "headers": {"Content-Type": "application/json"}}, 422, "invalid"),
        ({"content": b'{"temperature": 1e999}', "headers": {"Content-Type": "application/json"}}, 422, "invalid"),
        ({"content": b'{"prompt": "\\ud800"}', "headers": {"Content-Type": "application/json"}}, 422, "invalid"),
        ({"content": b'{"prompt": "a', "headers": {"Content-Type": "application/json"}}, 422, "invalid"),
        ({"json": {"top_p": 0}}, 422, "invalid"),
        ({"json": {"top_k": -1}}, 422, "invalid"),
        ({"json": {"seed": -1}}, 422, "invalid"),
        ({"json": {"seed": 2**63}}, 422, "invalid"),
        ({"json": {"stop": ""}}, 422, "invalid"),
        ({"json": {"prompts": "x"}}, 422, "invalid"),
        ({"json": ["x"]}, 422, "invalid"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 422, "invalid"),
        ({"content": bytes(20_001)}, 413, "too-large"),
    ],
)
def test_bad_requests_hear_what_is_wrong(sampler: Running, body: dict[str, Any], status: int, error: str) -> None:
    answer = sampler.client.post(URL, **body)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert len(answer.json()["detail"]) > 10


NAMES = ["prompt", "seed", "temperature", "top_k", "top_p", "max_bytes", "stop", "other"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.dictionaries(
        st.sampled_from(NAMES),
        st.one_of(st.text(max_size=9).filter(lambda text: text != "fail"), st.integers(), st.floats(), st.none()),
    ),
    whole=st.booleans(),
)
def test_no_question_makes_the_sampler_fail(sampler: Running, asked: dict[str, Any], whole: bool) -> None:
    content = json.dumps(asked).encode()
    headers = {"Content-Type": "application/json", **(JSON if whole else {})}
    answer = sampler.client.post(URL, content=content, headers=headers)
    assert answer.status_code in (200, 422), (answer.status_code, answer.text)


def test_what_waits_hears_at_once_that_the_sampler_ends(redis_url: str) -> None:
    """And what is worked on has its time."""
    with (
        serving(redis_url, "voice", slots=1) as (at, _),
        ThreadPoolExecutor() as others,
        stepping() as steps,
        at.client.stream("POST", URL, json={"prompt": steps.prompt}) as answer,
    ):
        assert steps.begun.wait(PATIENCE_S)
        waits = others.submit(httpx.post, at.url + URL, json={}, headers=JSON)
        while not at.service.sideline._queue:
            pass
        at.server.should_exit = True
        told = waits.result(PATIENCE_S)
        assert (told.status_code, told.json()["error"], told.headers["retry-after"]) == (503, "ending", "1")
        steps.go(STEPS)
        assert [*events(answer.iter_lines())][-1][0] == "done"
