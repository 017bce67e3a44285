"""The sampler as a service: who may write, when it is ready, what an outage, a taken port and a signal do."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from consumers.serving import Follower, Live
from pipeline.errors import ConfigError
from pipeline.local import EmbeddedRedis
from pipeline.process import tied
from pipeline.store import Store
from tests.consumers.marked import marked, step
from tests.consumers.running import PATIENCE_S, configuration, running
from tests.services import unique

TOKEN = "a token of the tests"


def test_with_a_token_only_its_holder_writes(redis_url: str, redis: Redis, family: str) -> None:
    step(marked(Store(redis, family, family)))
    url = f"/models/{family}/aliases/stable"
    with running(configuration(redis_url, {family: {}}, host="0.0.0.0", token=TOKEN)) as at:  # noqa: S104
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer é"}):
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            answer = at.client.put(url, json={"version": 1}, headers=raw)
            assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert at.client.delete(url).status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert at.client.put(url, json={"version": 1}, headers=right).status_code == 204
        assert at.client.get("/models", headers={"Host": "any.example"}).status_code == 200


def test_beyond_loopback_without_a_token_nobody_writes(redis_url: str, redis: Redis, family: str) -> None:
    step(marked(Store(redis, family, family)))
    with running(configuration(redis_url, {family: {}}, host="0.0.0.0")) as at:  # noqa: S104
        answer = at.client.put(f"/models/{family}/aliases/stable", json={"version": 1})
        assert (answer.status_code, answer.json()["error"]) == (403, "read-only")
        assert at.said == ["0.0.0.0 is not loopback and sampler.token is not set: the routes that write are closed."]


def test_it_is_ready_when_every_model_has_a_version(redis_url: str, redis: Redis, family: str) -> None:
    with running(configuration(redis_url, {family: {}})) as at:
        answer = at.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {
            "ready": False,
            "store": "reachable",
            "problem": None,
            "models": {family: {"version": None, "problem": None}},
        }
        step(marked(Store(redis, family, family)))
        assert at.serves(family, 1)
        answer = at.client.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (200, True)


class Vanishing:
    """A follower whose version is there when it is first looked at, and not any more the second time."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._lives = [follower.live]

    @property
    def live(self) -> Live | None:
        return self._lives.pop() if self._lives else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._follower, name)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/readyz"),
        ("GET", "/models"),
        ("GET", "/models/{}"),
        ("POST", "/models/{}/classify"),
        ("GET", "/models/{}/generate?n=1"),
        ("GET", "/models/{}/strip?n=1"),
        ("GET", "/models/{}/versions/1/weights"),
    ],
)
def test_a_reset_at_any_moment_fails_no_request(
    redis_url: str, redis: Redis, family: str, method: str, path: str
) -> None:
    step(marked(Store(redis, family, family)))
    with running(configuration(redis_url, {family: {}})) as at:
        assert at.serves(family, 1)
        follower: Any = Vanishing(at.follower(family))
        at.service.serving._followers[family] = follower
        answer = at.client.request(method, path.format(family), content=b"x" if method == "POST" else None)
        assert answer.status_code == 200, answer.text
        at.service.serving._followers[family] = follower._follower


def test_a_model_that_was_deleted_is_not_waited_for(redis_url: str, redis: Redis, family: str) -> None:
    other = unique("other")
    makers = [marked(Store(redis, name, name)) for name in (family, other)]
    for maker in makers:
        step(maker)
    with running(configuration(redis_url, {family: {}, other: {}})) as at:
        assert at.serves(family, 1)
        assert at.serves(other, 1)
        makers[0].store.release(makers[0].fence)
        makers[0].store.delete()
        assert at.follower(family).wait_for(lambda f: f.deleted, PATIENCE_S)
        answer = at.client.get("/readyz")
        assert (answer.status_code, list(answer.json()["models"])) == (200, [other])
        assert at.client.post(f"/models/{family}/classify", content=b"x").status_code == 503
        step(marked(Store(redis, family, family)))
        assert at.serves(family, 1)
        assert sorted(at.client.get("/readyz").json()["models"]) == sorted([family, other])


def test_a_sampler_that_cannot_ask_models_is_not_ready(redis_url: str, redis: Redis, family: str) -> None:
    step(marked(Store(redis, family, family)))
    with running(configuration(redis_url, {family: {}})) as at:
        assert at.serves(family, 1)
        assert at.client.get("/readyz").status_code == 200
        at.service.batcher.close()
        answer = at.client.get("/readyz")
        assert answer.status_code == 503
        assert "thread that models run on" in answer.json()["problem"]


def test_without_redis_it_answers_and_says_so(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        with Redis.from_url(server.url) as redis:
            maker = marked(Store(redis, "model", "model"))
            step(maker)
        with running(configuration(server.url, {"model": {}})) as at:
            assert at.serves("model", 1)
            server.stop()
            assert at.follower("model").wait_for(lambda f: f.unreachable_since_s is not None, PATIENCE_S)
            ready = at.client.get("/readyz")
            assert ready.status_code == 200
            assert ready.json()["store"].startswith("unreachable since 20")
            answer = at.client.post("/models/model/classify", content=b"x")
            assert (answer.status_code, answer.json()["version"]) == (200, 1)
            stored = at.client.get("/models/model/versions")
            assert (stored.status_code, stored.json()["error"]) == (503, "store")
            assert stored.headers["retry-after"] == "1"


def test_a_port_that_is_taken_is_an_error_that_says_so(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = configuration(redis_url, {}, port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="Set another"), running(config):
            pass


PROGRAM = """
import sys
from consumers.sampler import serve
from tests.consumers.running import configuration
serve(configuration(sys.argv[1], {"model": {}}))
"""


def test_a_signal_ends_the_process_cleanly(redis_url: str) -> None:
    command = [sys.executable, "-c", PROGRAM, redis_url]
    with (
        subprocess.Popen(tied(command), stderr=subprocess.PIPE, text=True) as terminated,
        subprocess.Popen(tied(command), stderr=subprocess.PIPE, text=True) as interrupted,
        subprocess.Popen(tied(command), stderr=subprocess.PIPE, text=True) as hung_up,
        httpx.Client(timeout=PATIENCE_S) as client,  # its connections stay open
    ):
        for process, number in zip(
            (terminated, interrupted, hung_up), (signal.SIGTERM, signal.SIGINT, signal.SIGHUP), strict=True
        ):
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("The sampler answers at http://127.0.0.1:")
            assert client.get(f"{line.split()[-1]}/healthz").json() == {"status": "alive"}
            process.send_signal(number)
            _, rest = process.communicate(timeout=PATIENCE_S)
            assert (process.returncode, rest) == (0, f"headrace: ending, by {number.name}.\n")
