"""What one client can hold back: connections without requests, bodies that do not come, answers that are not read."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from redis import Redis
from safetensors.torch import load

from consumers.sampler import app as sampler, connections, gate
from pipeline.local.servers import EmbeddedRedis
from pipeline.store.store import Store
from tests.consumers.marked import NAME, TEXT, Maker, blocking, blueprint, marked, step
from tests.consumers.running import PATIENCE_S, Running, configuration, running
from tests.services import unique

SIZE = 8 << 20  # of the weights, in numbers: more than sockets hold


def opened(at: Running, request: str) -> socket.socket:
    """A connection on which a request was begun."""
    address = urlsplit(at.url)
    connection = socket.create_connection((address.hostname or "", address.port or 0), PATIENCE_S)
    connection.sendall(request.replace("\n", "\r\n").encode())
    return connection


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture(scope="module")
def name(redis_url: str) -> str:
    name = unique("model")
    with Redis.from_url(redis_url) as redis:
        step(Maker(Store(redis, name, name), NAME, blueprint, TEXT, frozen=SIZE))
    return name


@pytest.fixture
def at(redis_url: str, name: str) -> Iterator[Running]:
    """It believes `X-Forwarded-For` from here, so that one test can be many clients."""
    with running(configuration(redis_url, {name: {}}, max_batch=1, proxies=["127.0.0.1"])) as at:
        assert at.serves(name, 1)
        yield at


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """What is closed after the test."""
    with ExitStack() as stack:
        yield stack


def answers(at: Running, name: str) -> None:
    """Also to a new connection: one that stays open may be let go."""
    assert httpx.get(f"{at.url}/healthz").status_code == 200
    assert httpx.post(f"{at.url}/models/{name}/classify", content=b"x").status_code == 200


BEGUN = {
    "nothing": "",
    "a header": "GET /models HTTP/1.1\nHost: localhost\nX-A: ",
    "a second request": "GET /healthz HTTP/1.1\nHost: localhost\n\nGET /models HTTP/1.1\nHost: ",
}


@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN)
def test_connections_that_ask_for_nothing_keep_nobody_out(
    at: Running, name: str, held: ExitStack, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS", 20)
    silent = [held.enter_context(opened(at, begun)) for _ in range(60)]
    answers(at, name)
    for connection in silent[:30]:
        connection.settimeout(PATIENCE_S)
        while not is_closed(connection):
            pass


def test_a_silent_connection_is_closed(at: Running, held: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENT_S", 0.2)
    assert is_closed(held.enter_context(opened(at, BEGUN["a header"])))


ENDLESS = {
    "an address": "GET /",
    "a header": "GET /models HTTP/1.1\nHost: localhost\nX-A: ",
    "a second head": "GET /healthz HTTP/1.1\nHost: localhost\n\nGET /models HTTP/1.1\nX-A: ",
    "a chunk's extension": "POST /models HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\n1;",
    "a trailer": "POST /models HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\n0\nX-A: ",
}


@pytest.mark.parametrize("begun", ENDLESS.values(), ids=ENDLESS)
def test_what_is_no_body_is_bounded(at: Running, held: ExitStack, begun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENT_S", 3600.0)  # which would close it, too
    connection = held.enter_context(opened(at, begun))
    for _ in range(100):
        with suppress(OSError):  # it is closed
            connection.sendall(b"a" * 10_000)
    with suppress(OSError):
        while connection.recv(1000):
            pass
    assert is_closed(connection)


def test_health_is_answered_where_nothing_else_is(at: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "REQUESTS", 0)
    assert [httpx.get(f"{at.url}{path}").status_code for path in ("/models", "/healthz")] == [503, 200]


POST = "POST /models/{}/classify HTTP/1.1\nHost: localhost\nContent-Type: {}\nContent-Length: 1000\n\na"
CHUNKED = "POST /models/{}/classify HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\n1\na\n"


@pytest.mark.parametrize("request_", [POST.format("{}", "text/plain"), POST.format("{}", "application/json"), CHUNKED])
def test_bodies_that_do_not_come_keep_nobody_out(at: Running, name: str, held: ExitStack, request_: str) -> None:
    for _ in range(50):  # places are 4
        held.enter_context(opened(at, request_.format(name)))
    answers(at, name)


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "multipart/form-data; boundary=b"])
@pytest.mark.parametrize(
    "path", ["POST /models/{}/classify", "PUT /models/{}/aliases/stable", "POST /models/{}/complete"]
)
def test_every_body_has_its_time(
    at: Running, name: str, held: ExitStack, path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BODY_S", 0.2)
    request = f"{path} HTTP/1.1\nHost: localhost\nContent-Type: {kind}\nContent-Length: 1000\n\n-"
    connection = held.enter_context(opened(at, request.format(name)))
    assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_what_bodies_hold_is_bounded(at: Running, name: str, held: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODIES", 2)
    most = 10 << 20
    head = f"POST /models/{name}/classify HTTP/1.1\nHost: localhost\nContent-Length: {most}\n\n"
    connections = [held.enter_context(opened(at, head)) for _ in range(2)]
    for connection in connections:
        with suppress(OSError):  # it may be refused while it is sent
            connection.sendall(bytes(most - 1))
    refused, _, _ = select.select(connections, [], [], PATIENCE_S)
    assert refused[0].recv(100).startswith(b"HTTP/1.1 503 ")
    assert at.client.get("/healthz").status_code == 200


def test_weights_come_piece_by_piece_and_are_the_same(at: Running, name: str) -> None:
    answer = at.client.get(f"/models/{name}/versions/1/weights")
    tensors = load(answer.content)
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        "first": (1,),
        "frozen": (SIZE,),
        "last": (1,),
    }
    assert tensors["first"].item() == tensors["last"].item() == 1


WEIGHTS = "GET /models/{}/versions/1/weights HTTP/1.1\nHost: localhost\nX-Forwarded-For: {}\n\n"


def test_who_does_not_read_weights_keeps_nobody_out(at: Running, name: str, held: ExitStack) -> None:
    def asked(client: str) -> httpx.Response:
        with at.client.stream("GET", f"/models/{name}/versions/1/weights", headers={"X-Forwarded-For": client}) as told:
            if told.status_code != 200:
                told.read()
            return told

    for client in ("10.0.0.1", "10.0.0.2"):
        for _ in range(sampler.DOWNLOADS // 2):
            assert held.enter_context(opened(at, WEIGHTS.format(name, client))).recv(100).startswith(b"HTTP/1.1 200 ")
        refused = asked(client)
        assert (refused.status_code, refused.json()["error"], refused.headers["retry-after"]) == (503, "busy", "1")
    assert asked("10.0.0.3").status_code == 503  # all places are taken
    answers(at, name)


@pytest.mark.parametrize(("proxies", "is_another"), [([], False), (["127.0.0.0/8"], True), (["10.0.0.1"], False)])
def test_who_asks_is_believed_from_proxies_alone(
    redis_url: str, name: str, held: ExitStack, proxies: list[str], is_another: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with running(configuration(redis_url, {name: {}}, proxies=proxies)) as at:
        assert at.serves(name, 1)
        for _ in range(sampler.DOWNLOADS // 2):
            held.enter_context(opened(at, WEIGHTS.format(name, "10.0.0.1"))).recv(100)
        status = held.enter_context(opened(at, WEIGHTS.format(name, "10.0.0.2"))).recv(100)[:13]
        assert status == (b"HTTP/1.1 200 " if is_another else b"HTTP/1.1 503 ")
        held.close()


def test_who_does_not_read_is_let_go(at: Running, name: str, held: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SEND_S", 0.2)
    for _ in range(sampler.DOWNLOADS // 2):
        held.enter_context(opened(at, WEIGHTS.format(name, "127.0.0.1"))).recv(100)
    while at.client.get(f"/models/{name}/versions/1/weights").status_code == 503:
        pass


ASKED = {
    "with a body": "POST /models/{}/classify HTTP/1.1\nHost: localhost\nContent-Length: 1\n\nx",
    "without": "GET /models/{}/generate HTTP/1.1\nHost: localhost\n\n",
}


@pytest.mark.parametrize("request_", ASKED.values(), ids=ASKED)
def test_what_is_asked_by_who_has_gone_is_not_worked_on(
    redis_url: str, redis: Redis, held: ExitStack, request_: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hung = unique("hung")
    step(Maker(Store(redis, hung, hung), "tests.consumers.marked:blocking", blocking, TEXT))
    with running(configuration(redis_url, {hung: {"learner": "tests.consumers.marked:blocking"}}, max_batch=2)) as at:
        assert at.serves(hung, 1)
        held.enter_context(opened(at, request_.format(hung)))
        while "at work" not in capfd.readouterr().out:
            pass
        queue, counted = at.service.batcher._queue, at.client.get("/metrics").text.count('status="499"')
        with ExitStack() as gone:
            for number in range(1, 4):  # half of the places are of one client
                gone.enter_context(opened(at, request_.format(hung)))
                while len(queue) < number:
                    pass
        while not all(task.future.cancelled() for task in queue):
            pass
        while at.client.get("/metrics").text.count('status="499"') == counted:
            pass


def test_who_asks_a_store_that_hangs_keeps_nobody_from_what_is_live(tmp_path: Path, held: ExitStack) -> None:
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as redis:
        step(marked(Store(redis, "m", "m")))
        with running(configuration(server.url, {"m": {}}, proxies=["127.0.0.1"])) as at:
            assert at.serves("m", 1)
            assert server.process is not None
            server.process.send_signal(signal.SIGSTOP)
            held.callback(server.process.send_signal, signal.SIGCONT)
            for client in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
                for _ in range(sampler.READERS):
                    request = f"GET /models/m/versions HTTP/1.1\nHost: localhost\nX-Forwarded-For: {client}\n\n"
                    held.enter_context(opened(at, request))
            while at.service.readers._held.total() < sampler.READERS:
                pass
            answer = at.client.get("/models/m/versions/1")
            assert (answer.status_code, answer.json()["error"]) == (503, "busy")
            answers(at, "m")
            assert at.client.get("/metrics").status_code == 200
            server.process.send_signal(signal.SIGCONT)
            while at.client.get("/models/m/versions").status_code != 200:
                pass
