"""The sampler as a service: who may write, when it is ready, what an outage and a taken port do."""

from __future__ import annotations

import base64
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from consumers.sampler import follower as serving
from consumers.sampler.batcher import STALLED_S
from consumers.sampler.follower import Follower, Live
from consumers.workers import ANSWER_S
from pipeline.client.sampling import SamplingClient
from pipeline.errors import ConfigError
from pipeline.local.servers import EmbeddedRedis
from pipeline.store.store import Store
from tests.consumers.marked import NAME, TEXT, UNENDING, Maker, blocking, blueprint, marked, step, unending
from tests.consumers.running import PATIENCE_S, configuration, running
from tests.services import unique

TOKEN = "a token of the tests"
MARKED = "tests.consumers.marked:"


BEARER = {"Authorization": f"Bearer {TOKEN}"}
PASSWORD = {"Authorization": "Basic " + base64.b64encode(f"anybody:{TOKEN}".encode()).decode()}
WRONG = ("Bearer wrong", TOKEN, "Bearer é", "Basic wrong", "Basic " + base64.b64encode(b"no colon").decode(), "")
READ = ("/", "/models", "/models/{}", "/models/{}/versions", "/models/{}/versions/1/weights", "/openapi.json")
EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize(
    ("host", "settings", "open_"),
    [
        ("127.0.0.1", {}, "all"),
        ("127.0.0.1", {"token": TOKEN}, "read"),
        (EVERYWHERE, {"token": TOKEN}, "health"),
        (EVERYWHERE, {"token": TOKEN, "open_reading": True}, "read"),
        (EVERYWHERE, {}, "health"),
        (EVERYWHERE, {"open_reading": True}, "read"),
    ],
)
def test_who_may_read_and_who_may_write(
    redis_url: str, redis: Redis, family: str, host: str, settings: dict[str, Any], open_: str
) -> None:
    step(marked(Store(redis, family, family)))
    write = f"/models/{family}/aliases/stable"
    refused = 401 if "token" in settings else 403
    with running(configuration(redis_url, {family: {}}, host=host, **settings)) as at:
        assert at.serves(family, 1)
        for path in ("/healthz", "/readyz", "/metrics"):
            assert at.client.get(path).status_code == 200
        for path in READ:
            answer = at.client.get(path.format(family))
            assert answer.status_code == (refused if open_ == "health" else 200)
        answer = at.client.post(f"/models/{family}/classify", content=b"x")
        assert answer.status_code == (refused if open_ == "health" else 200)
        answer = at.client.put(write, json={"version": 1})
        assert answer.status_code == (204 if open_ == "all" else refused)
        if open_ != "all":  # what was published is not for everybody
            assert at.client.get("/topics/topic/dead-letters").status_code == refused
            for route in ("nearest", "find"):
                assert at.client.post(f"/models/{family}/{route}", content=b"x").status_code == refused
        if "token" not in settings:
            closed = {
                "all": [],
                "read": ["the routes that write are closed"],
                "health": ["all but its health is closed"],
            }
            assert [line.partition("not set: ")[2].rstrip(".") for line in at.said] == closed[open_]
            return
        assert answer.headers["www-authenticate"] == 'Bearer, Basic realm="headrace"'
        for given in WRONG:
            raw = [(b"Authorization", given.encode("latin-1"))]
            assert at.client.put(write, json={"version": 1}, headers=raw).status_code == 401
            assert at.client.delete(write, headers=raw).status_code == 401
        for headers in (BEARER, PASSWORD):
            assert at.client.put(write, json={"version": 1}, headers=headers).status_code == 204
            assert at.client.get("/models", headers=headers).status_code == 200
        with SamplingClient(at.url, TOKEN) as asked:
            assert "classify" in asked.answers(family)


@pytest.mark.parametrize("host", ["127.0.0.1", EVERYWHERE])
def test_its_name_is_always_checked(redis_url: str, host: str) -> None:
    with running(configuration(redis_url, {}, host=host, token=TOKEN, hosts=["Sampler", "sampler.example"])) as at:
        for name in ("evil.example", "127.0.0.1.evil.example", "127.1", "2130706433", "", "localhost.evil.example"):
            answer = at.client.get("/healthz", headers={"Host": name})
            assert (answer.status_code, answer.json()["error"]) == (421, "host")
        with socket.create_connection(("127.0.0.1", int(at.url.rpartition(":")[2])), PATIENCE_S) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 421"
        for name in ("localhost:1", "127.0.0.1", "[::1]:8080", "sampler:8080", "SAMPLER.example"):
            assert at.client.get("/healthz", headers={"Host": name}).status_code == 200
        assert at.client.get("/healthz", headers={"Host": "10.1.2.3"}).status_code == (
            421 if host != EVERYWHERE else 200
        )


def test_pages_of_other_sites_neither_write_nor_ask(redis_url: str, redis: Redis, family: str) -> None:
    step(marked(Store(redis, family, family)))
    with running(configuration(redis_url, {family: {}})) as at:
        assert at.serves(family, 1)
        write, ask = f"/models/{family}/aliases/stable", f"/models/{family}/classify"
        for origin in ("https://evil.example", "null", "", "http://127.0.0.1:1"):
            headers = {"Origin": origin}
            for answer in (
                at.client.put(write, json={"version": 1}, headers=headers),
                at.client.delete(write, headers=headers),
                at.client.post(ask, content=b"x", headers=headers),
            ):
                assert (answer.status_code, answer.json()["error"]) == (403, "origin")
        own = {"Origin": at.url}
        assert at.client.put(write, json={"version": 1}, headers=own).status_code == 204
        assert at.client.post(ask, content=b"x", headers=own).status_code == 200


def test_every_answer_is_what_it_says_and_in_no_frame(redis_url: str, redis: Redis, family: str) -> None:
    step(marked(Store(redis, family, family)))
    with running(configuration(redis_url, {family: {}})) as at:
        assert at.serves(family, 1)
        paths = ("/", "/models", "/nowhere", "/healthz", f"/models/{family}/generate", f"/models/{family}/versions/1")
        for path in paths:
            headers = at.client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "script-src 'unsafe-inline'" not in headers["content-security-policy"]
            head = at.client.head(path)
            assert (head.status_code, head.content) == (at.client.get(path).status_code, b"")


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
    def live(self) -> Live[Any] | None:
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


def test_a_model_that_never_returns_keeps_no_other_from_its_answers(
    redis_url: str, redis: Redis, family: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hung = unique("hung")
    step(marked(Store(redis, family, family)))
    step(Maker(Store(redis, hung, hung), f"{MARKED}blocking", blocking, TEXT))
    tables: dict[str, dict[str, Any]] = {family: {}, hung: {"learner": f"{MARKED}blocking"}}
    with running(configuration(redis_url, tables)) as at, ThreadPoolExecutor(2) as others:
        assert at.serves(family, 1)
        assert at.serves(hung, 1)
        batcher = at.service.batcher
        first = others.submit(at.client.post, f"/models/{hung}/classify", content=b"x")
        while "at work" not in capfd.readouterr().out:
            pass
        waits = others.submit(at.client.post, f"/models/{family}/classify", content=b"x")
        batcher.clock = lambda: time.monotonic() + STALLED_S  # so long has passed
        for answer in (first.result(PATIENCE_S), at.client.post(f"/models/{hung}/classify", content=b"x")):
            assert (answer.status_code, answer.json()["error"]) == (503, "stalled")
        batcher.clock = time.monotonic
        assert waits.result(PATIENCE_S).status_code == 200
        assert at.client.get(f"/models/{family}/generate").status_code == 200
        ready = at.client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["problem"].startswith(f"{hung} has been at one piece of work")


def test_a_model_that_never_returns_on_the_sideline_keeps_no_other_from_its_slots(
    redis_url: str, redis: Redis, family: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hung = unique("hung")
    for name, learner, blueprint_ in ((family, NAME, blueprint), (hung, f"{MARKED}blocking", blocking)):
        maker = Maker(Store(redis, name, name), learner, blueprint_, TEXT)
        step(maker)
        step(maker)
    tables: dict[str, dict[str, Any]] = {family: {}, hung: {"learner": f"{MARKED}blocking"}}
    with running(configuration(redis_url, tables, slots=1)) as at, ThreadPoolExecutor(2) as others:
        assert at.serves(family, 2)
        assert at.serves(hung, 2)
        sideline = at.service.sideline
        first = others.submit(at.client.get, f"/models/{hung}/strip?versions=1")
        while "at work" not in capfd.readouterr().out:
            pass
        sideline.clock = lambda: time.monotonic() + ANSWER_S  # so long has passed
        late = first.result(PATIENCE_S)
        assert (late.status_code, late.json()["error"]) == (504, "timeout")
        sideline.clock = time.monotonic
        again = at.client.get(f"/models/{hung}/strip?versions=1")
        assert (again.status_code, again.json()["error"]) == (503, "stalled")
        assert at.client.get(f"/models/{family}/strip?versions=1").status_code == 200
        ready = at.client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["problem"].startswith(f"{hung} has been at one piece of work")


def test_a_version_that_is_never_loaded_is_reported(
    redis_url: str, redis: Redis, family: str, capfd: pytest.CaptureFixture[str]
) -> None:
    learner = f"{MARKED}unending"
    store = Store(redis, family, family)
    maker = Maker(store, learner, unending, TEXT)
    step(maker)
    with running(configuration(redis_url, {family: {"learner": learner}})) as at:
        assert at.serves(family, 1)
        store.release(maker.fence)
        version = step(Maker(store, learner, unending, TEXT, frozen=UNENDING))
        while "at work" not in capfd.readouterr().out:
            pass
        follower = at.follower(family)
        assert follower.problem is None
        follower.clock = lambda: time.monotonic() + serving.STALLED_S
        told = at.client.get("/readyz").json()["models"][family]["problem"]
        assert told.startswith(f"Version {version} has been loaded for more than 60 s, version 1 stays live.")
        assert at.client.get(f"/models/{family}").json()["problem"] == told
        assert at.client.get("/readyz").status_code == 503  # which has it started anew
        assert at.client.post(f"/models/{family}/classify", content=b"x").status_code == 200


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


def test_an_end_while_redis_hangs_says_nothing_of_it(tmp_path: Path) -> None:
    """Neither of the models that the configuration names, nor of those that are looked for."""
    with EmbeddedRedis(tmp_path) as server:
        assert server.process is not None
        named: dict[str, dict[str, Any]] = {"model": {}, "other": {}}
        for models in (named, {}):
            with running(configuration(server.url, models)) as at:
                assert at.client.get("/readyz").json()["store"] == "reachable"
                server.process.send_signal(signal.SIGSTOP)
                service = at.service
            for follower in service.serving.followers().values():
                follower.thread.join(PATIENCE_S)
            service.serving.close()
            server.process.send_signal(signal.SIGCONT)
            assert at.said == []


def test_a_port_that_is_taken_is_an_error_that_says_so(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = configuration(redis_url, {}, port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="Set another"), running(config):
            pass
