"""The `headrace` command, in this process where it needs none of its own, on the real Kafka and Redis."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import typer
from redis import Redis
from safetensors import safe_open

from consumers.cli import app as cli
from consumers.cli.command import app
from pipeline.config import KafkaConfig, load
from pipeline.errors import StoreError
from pipeline.log.publisher import Publisher
from pipeline.log.reader import Reader
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store
from tests.consumers.marked import Maker, marked, step
from tests.services import unique

HEADRACE = Path(sys.executable).with_name("headrace")
PATIENCE_S = 60.0
CONFIG = """
[kafka]
bootstrap_servers = "{kafka}"
partitions = 1

[redis]
url = "{redis_url}"

[sampler]
port = 0

[models.{model}]
topics = ["{topic}"]
learner = "tests.consumers.counting:blueprint"
input = {{ kind = "text", max_chars = 16 }}
max_wait_ms = 20
snapshot_every_s = 0.1
lease_s = 0.6
"""
COMMANDS = list(typer.main.get_group(app).commands)


class Done(NamedTuple):
    status: int
    out: str
    err: str

    def json(self) -> Any:
        assert (self.status, self.err) == (0, "")
        return json.loads(self.out)


Headrace = Callable[..., Done]


@pytest.fixture
def folder(kafka: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user is: its headrace.toml has one model, with names that are used nowhere else."""
    names = {"model": unique("model"), "topic": unique("topic")}
    (tmp_path / "headrace.toml").write_text(CONFIG.format(kafka=kafka, redis_url=redis_url, **names), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def headrace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Headrace:
    """Runs a command line as a terminal would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        status = ended.value.code or 0
        assert isinstance(status, int)
        return Done(status, *capsys.readouterr())

    return run


@pytest.fixture
def model(folder: Path) -> str:
    [name] = load(folder / "headrace.toml", {}).models
    return name


@pytest.fixture
def topic(folder: Path, model: str) -> str:
    return load(folder / "headrace.toml", {}).model(model).topics[0]


@pytest.fixture
def maker(redis: Redis, model: str) -> Maker:
    """Makes versions of the model as a worker would; holds its place no more."""
    made = marked(Store(redis, model, model))
    for _ in range(3):
        step(made)
    made.store.release(made.fence)
    return made


def read(config: KafkaConfig, topic: str, count: int) -> list[tuple[bytes | None, dict[str, bytes]]]:
    """The values and headers of the first records."""
    found: list[tuple[bytes | None, dict[str, bytes]]] = []
    with Reader(config, [topic], group="test") as reader:
        while len(found) < count:
            polled = reader.poll(PATIENCE_S)
            assert polled is not None
            found += [(record.value, dict(record.headers)) for record in polled.records]
    return found


def line(done: Done, status: int) -> str:
    """The one sentence or two that a failure is, with nothing else."""
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith("headrace: ")
    assert "Traceback" not in done.err
    return done.err


def test_every_command_has_an_example(headrace: Headrace) -> None:
    for command in COMMANDS:
        done = headrace(command.replace("_", "-"), "--help")
        assert done.status == 0
        assert f"Example: headrace {command.replace('_', '-')}" in done.out


def test_init_writes_a_file_that_holds_and_overwrites_none(headrace: Headrace, tmp_path: Path) -> None:
    assert headrace("init").status == 0
    config = load(tmp_path / "headrace.toml", {})
    assert {"pictures", "messages"} <= config.models.keys()
    text = (tmp_path / "headrace.toml").read_text("utf-8")
    assert text.count("#") > 20
    assert "headrace.toml exists already" in line(headrace("init"), 2)
    assert headrace("init", "other.toml").status == 0
    password = urlsplit(config.redis.url).password
    other = load(tmp_path / "other.toml", {})
    assert len(password or "") > 16
    assert text.count(password or "") == 1
    assert "SASL_PLAIN_PASSWORD" in text
    assert urlsplit(other.redis.url).password != password
    assert (tmp_path / "headrace.toml").stat().st_mode & 0o77 == 0
    assert "no/such.toml" in line(headrace("init", "no/such.toml"), 1)


def test_a_wrong_configuration_is_one_sentence(headrace: Headrace, folder: Path) -> None:
    assert "elsewhere.toml does not exist" in line(headrace("versions", "a", "-c", "elsewhere.toml"), 2)
    file = folder / "headrace.toml"
    file.write_text(f"{file.read_text('utf-8')}\nbatchsize = 3\n", "utf-8")
    message = line(headrace("watch", "--once"), 2)
    assert "batchsize = 3" in message
    assert len(message.splitlines()) == 1
    assert "models.none is not in the configuration" in line(headrace("train", "none", "-c", "/dev/null"), 2)


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Acts on a thread while a command runs here, in the main thread, and ends that by SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of one that comes late

    def acting() -> None:
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with ThreadPoolExecutor(1) as pool:
            acted = pool.submit(acting)
            yield
            acted.result()
    finally:
        signal.signal(signal.SIGTERM, before)


def until(store: Store, true_of: Callable[[Manifest], bool]) -> None:
    """Returns once it is true of the newest version."""
    for _ in range(int(10 * PATIENCE_S)):
        if store.head() is not None and true_of(store.manifest()):
            return
        store.events("$", 100)
    raise AssertionError("no such version came")


def test_train_ends_with_a_snapshot(
    folder: Path, redis: Redis, model: str, topic: str, kafka_config: KafkaConfig, headrace: Headrace
) -> None:
    store = Store(redis, model, model)

    def act() -> None:
        until(store, lambda manifest: True)  # it reads
        with pytest.raises(StoreError, match="Stop it first"):
            store.reset()
        with Publisher(kafka_config) as publisher:
            for value in (b"3", b"\xff"):
                publisher.publish(topic, value)
        until(store, lambda manifest: sum(manifest.counts.values()) == 2)

    with meanwhile(act):
        done = headrace("train", model)
    assert (done.status, done.out) == (0, "")
    assert done.err.startswith(f"{model}: metrics at http://127.0.0.1:")
    assert store.manifest().counts == {"learned": 1, "dead-lettered/undecodable": 1}
    assert store.holder() is None
    [dead] = headrace("dead-letters", "list", topic, "--json").json()
    assert (dead["origin"], dead["model"], dead["reason"]) == (f"{topic}:0:1", model, "undecodable")


def test_train_that_lost_its_lease_ends_with_a_status_of_its_own(
    folder: Path, redis: Redis, model: str, headrace: Headrace
) -> None:
    store = Store(redis, model, model)
    stolen = Event()

    def act() -> None:
        until(store, lambda manifest: True)
        while store.acquire("thief", 60) is None:
            redis.delete(f"headrace:{{{model}}}:model:{model}:lease")
        stolen.wait(PATIENCE_S)

    with meanwhile(act):
        done = headrace("train", model)
        stolen.set()
    assert done.status == 5
    assert "headrace: thief took" in done.err
    assert "Stop this one" in done.err


def test_serve_runs_until_sigterm(
    folder: Path, maker: Maker, model: str, headrace: Headrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HEADRACE__SAMPLER__PORT", address.split(":")[1])

    def act() -> None:
        for _ in range(int(10 * PATIENCE_S)):
            with suppress(OSError), urllib.request.urlopen(f"http://{address}/healthz") as answer:
                assert answer.status == 200
                return
            Event().wait(0.1)
        raise AssertionError("it never answered")

    with meanwhile(act):
        done = headrace("serve")
    assert done.status == 0
    assert address in done.err


def test_versions_and_aliases(headrace: Headrace, maker: Maker, model: str) -> None:
    assert headrace("alias", model, "stable", "2") == (0, f"{model}: stable is version 2.\n", "")
    rows = headrace("versions", model, "--json").json()
    assert [(row["version"], row["aliases"]) for row in rows] == [(3, []), (2, ["stable"]), (1, [])]
    assert rows[0]["digest"] == maker.store.manifest().digest
    assert rows[0]["records"] == 3
    shown = headrace("versions", model).out.splitlines()
    assert len(shown) == 3
    assert shown[1].split()[:2] == ["2", rows[1]["digest"][:12]]
    assert shown[1].endswith("stable")

    assert headrace("alias", model, "stable", "--delete") == (0, f"{model}: stable is removed.\n", "")
    assert "has no alias stable" in line(headrace("alias", model, "stable", "--delete"), 4)
    assert "cannot be an alias" in line(headrace("alias", model, "latest", "2"), 2)
    assert "names no version" in line(headrace("alias", model, "stable", "99"), 4)
    assert headrace("versions", unique("none")).err.endswith("has no version yet.\n")


def test_an_argument_that_is_no_text_is_one_sentence(headrace: Headrace, folder: Path) -> None:
    assert "a\\udcff" in line(headrace("versions", "a\udcff"), 2)


def test_pull_writes_weights_and_manifest(headrace: Headrace, maker: Maker, model: str, folder: Path) -> None:
    assert headrace("pull", model, "2").status == 0
    with safe_open(folder / f"{model}-v2.safetensors", "np") as weights:
        assert weights.get_tensor("first") == [2.0]
        assert weights.metadata()["version"] == "2"
    manifest = (folder / f"{model}-v2.json").read_bytes()
    assert manifest == maker.store.manifest(2).raw
    assert headrace("pull", model, "--to", "mine.safetensors").status == 0
    assert json.loads((folder / "mine.json").read_bytes())["version"] == 3
    assert headrace("pull", model, "--after", "topic:0:2").status == 0
    assert "is no position of a record" in line(headrace("pull", model, "--after", "topic:2"), 2)
    assert "names no version" in line(headrace("pull", model, "golden"), 4)
    assert "no/mine.safetensors" in line(headrace("pull", model, "--to", "no/mine.safetensors"), 1)


def test_pull_and_alias_tell_programs_what_they_did(headrace: Headrace, maker: Maker, model: str, folder: Path) -> None:
    named = maker.store.manifest(2)
    version = {"version": 2, "digest": named.digest}
    assert headrace("alias", model, "stable", "2", "--json").json() == {"model": model, "alias": "stable", **version}
    assert headrace("pull", model, "stable", "--json").json() == {
        "model": model,
        **version,
        "weights": f"{model}-v2.safetensors",
        "manifest": f"{model}-v2.json",
        "metrics": named.metrics,
    }
    assert (folder / f"{model}-v2.json").read_bytes() == named.raw
    removed = {"model": model, "alias": "stable", "version": None, "digest": None}
    assert headrace("alias", model, "stable", "--delete", "--json").json() == removed
    assert "has no alias stable" in line(headrace("alias", model, "stable", "--delete", "--json"), 4)


def test_reset_and_delete_ask_first(
    headrace: Headrace, maker: Maker, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("reset", "delete"):
        asked: list[str] = []

        def refuse(question: str, abort: bool, asked: list[str] = asked) -> None:
            asked.append(question)
            raise typer.Abort

        monkeypatch.setattr(typer, "confirm", refuse)
        assert headrace(command, model).status == 1
        assert "3 versions" in asked[0]
        assert len(maker.store.versions()) == 3
    assert headrace("reset", model, "--yes").out == f"{model} starts anew.\n"
    assert maker.store.head() is None
    assert step(marked(maker.store)) == 4  # numbers are not used again
    assert "Stop it first" in line(headrace("delete", model, "--yes"), 4)


def test_servers_that_do_not_answer_are_reported(headrace: Headrace, folder: Path, model: str, topic: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("HEADRACE__REDIS__URL", f"redis://127.0.0.1:{port}")
        for command in (["versions", model], ["watch", "--once"]):  # `train` waits
            done = headrace(*command)
            assert done.status == 4
            assert "headrace: Redis cannot be reached" in done.err
            assert "Traceback" not in done.err
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("HEADRACE__KAFKA__CREATE_TOPICS", "false")
        message = line(headrace("publish", topic, "-"), 3)
    assert f"--create --topic {topic} --partitions 1" in message
