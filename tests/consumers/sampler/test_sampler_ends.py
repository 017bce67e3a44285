"""A signal ends the sampler cleanly and in time, whatever is at work."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from redis import Redis

from pipeline.process import tied
from pipeline.store.store import Store
from tests.consumers.marked import TEXT, UNENDING, Maker, blocking, lingering, step, unending
from tests.consumers.running import PATIENCE_S

FORM = {"Content-Type": "multipart/form-data; boundary=-", "Upgrade": "websocket", "Connection": "Upgrade"}
MARKED = "tests.consumers.marked:"


PROGRAM = """
import sys
from consumers.sampler.app import serve
from tests.consumers.running import configuration
serve(configuration(sys.argv[1], {"model": {}}))
"""


BLOCKING = """
import sys
from consumers.sampler import app as sampler, batcher
from tests.consumers.running import configuration
url, name, learner, limit_s, *most = sys.argv[1:]
batcher.STALLED_S = batcher.ANSWER_S = float(limit_s)
sampler.GIVEN_UP = int(most[0]) if most else sampler.GIVEN_UP
sampler.serve(configuration(url, {name: {"learner": learner}}))
"""


@pytest.mark.parametrize("path", ["classify", "strip?versions=1"])
def test_a_signal_ends_it_while_a_model_is_at_work(redis_url: str, redis: Redis, family: str, path: str) -> None:
    """On the thread that batches, and beside it."""
    maker = Maker(Store(redis, family, family), f"{MARKED}blocking", blocking, TEXT)
    step(maker)
    command = [sys.executable, "-c", BLOCKING, redis_url, family, f"{MARKED}blocking", "1000"]
    with (
        subprocess.Popen(tied(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        httpx.Client(timeout=PATIENCE_S) as client,
        ThreadPoolExecutor(1) as other,
    ):
        assert process.stderr is not None
        assert process.stdout is not None
        url = process.stderr.readline().split()[-1]
        while client.get(f"{url}/readyz").status_code != 200:
            pass
        method = "POST" if path == "classify" else "GET"
        step(maker)
        target = f"{url}/models/{family}/{path}"
        asked = other.submit(httpx.request, method, target, content=b"x", timeout=PATIENCE_S)
        assert process.stdout.readline() == "at work\n"
        client.post(f"{url}/models/{family}/classify", content=b"--x", headers=FORM)
        with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 0), PATIENCE_S) as connection:
            connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
            connection.recv(100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert asked.result(PATIENCE_S).json()["error"] == "ending"
        assert process.stderr.read() == "headrace: ending, by SIGTERM.\n"  # clients can make it say nothing


@contextmanager
def sampler(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A sampler that is ready, and who asks it."""
    with subprocess.Popen(tied(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            while client.get("/readyz").status_code != 200:
                pass
            yield process, client


@pytest.mark.parametrize("path", ["classify", "strip?versions=1"])
def test_a_signal_ends_it_after_a_thread_was_given_up(redis_url: str, redis: Redis, family: str, path: str) -> None:
    maker = Maker(Store(redis, family, family), f"{MARKED}blocking", blocking, TEXT)
    step(maker)
    step(maker)
    command = [sys.executable, "-c", BLOCKING, redis_url, family, f"{MARKED}blocking", "0"]
    with sampler(command) as (process, client):
        method = "POST" if path == "classify" else "GET"
        told = [client.request(method, f"/models/{family}/{path}", content=b"x").json()["error"] for _ in range(2)]
        assert told == ["stalled", "stalled"]
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (0, "headrace: ending, by SIGTERM.\n")


def test_it_ends_where_too_many_threads_were_given_up(redis_url: str, redis: Redis, family: str) -> None:
    """So that whoever started it starts it anew: until then each keeps a thread, and a new one takes its place."""
    maker = Maker(Store(redis, family, family), f"{MARKED}blocking", blocking, TEXT)
    step(maker)
    step(maker)
    command = [sys.executable, "-c", BLOCKING, redis_url, family, f"{MARKED}blocking", "0", "2"]
    with sampler(command) as (process, client):
        assert client.post(f"/models/{family}/classify", content=b"x").json()["error"] == "stalled"
        assert client.get("/healthz").status_code == 200
        assert client.get(f"/models/{family}/strip?versions=1").json()["error"] == "stalled"
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 10
    assert said.startswith("headrace: 2 threads came to no end at a model or a record: the sampler ends, so that it is")


def test_a_signal_ends_it_while_a_version_is_loaded(redis_url: str, redis: Redis, family: str) -> None:
    step(Maker(Store(redis, family, family), f"{MARKED}unending", unending, TEXT, frozen=UNENDING))
    command = [sys.executable, "-c", BLOCKING, redis_url, family, f"{MARKED}unending", "1000"]
    with subprocess.Popen(tied(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert said.splitlines()[1:] == ["headrace: ending, by SIGTERM."]


def test_a_signal_ends_it_whatever_thread_a_model_has_started(redis_url: str, redis: Redis, family: str) -> None:
    step(Maker(Store(redis, family, family), f"{MARKED}lingering", lingering, TEXT))
    command = [sys.executable, "-c", BLOCKING, redis_url, family, f"{MARKED}lingering", "1000"]
    with subprocess.Popen(tied(command), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        while httpx.get(f"{url}/readyz").status_code != 200:
            pass
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (0, "headrace: ending, by SIGTERM.\n")


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
