"""The shortest way to an answer gives what the framework's way gives."""

from __future__ import annotations

import pytest
from redis import Redis

from pipeline.store.store import Store
from tests.consumers.marked import marked, step
from tests.consumers.running import Running, configuration, running
from tests.services import unique

AFTER = "?after=topic:0:0"  # goes the framework's way
ASKED = {
    "a text": ("classify", b"x", "text/plain"),
    "json": ("classify", b'{"text": "x"}', "application/json"),
    "no text": ("classify", b"\xff", "text/plain"),
    "no json": ("classify", b"{", "application/json"),
    "another ability": ("recognise", b"x", "text/plain"),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_both_ways_answer_the_same(redis_url: str, redis: Redis, asked: tuple[str, bytes, str]) -> None:
    route, content, kind = asked
    name = unique("model")
    step(marked(Store(redis, name, name)))
    with running(configuration(redis_url, {name: {}})) as at:
        assert at.serves(name, 1)
        short, long = (
            at.client.post(f"/models/{name}/{route}{query}", content=content, headers={"Content-Type": kind})
            for query in ("", AFTER)
        )
        assert short.status_code == long.status_code
        assert _without_age(short.json()) == _without_age(long.json())
        assert {*short.headers} == {*long.headers}
        _is_counted(at, route, short.status_code)


@pytest.mark.parametrize("path", ["none/classify", "none/classify/", "none/classify/more", "none/nothing"])
def test_what_is_not_there_is_missed_alike(redis_url: str, path: str) -> None:
    with running(configuration(redis_url, {"some": {}})) as at:
        short, long = (at.client.post(f"/models/{path}{query}", content=b"x") for query in ("", "?a=b"))
        assert (short.status_code, short.text) == (long.status_code, long.text)


def _without_age(answer: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in answer.items() if key != "freshness_s"}


def _is_counted(at: Running, route: str, status: int) -> None:
    """Both, under the route's own name."""
    label = f'route="/models/{{model}}/{route}",status="{status}"'
    assert f"{label}}} 2.0" in at.client.get("/metrics").text
