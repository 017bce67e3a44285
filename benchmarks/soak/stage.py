"""Where the soak takes place: servers, topics, a proxy before each server for each worker, and the workers."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kafka import KafkaAdminClient
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.soak import traffic, workers
from benchmarks.soak.proxy import Proxy
from pipeline.config import Config, validate
from pipeline.local.servers import Local
from pipeline.log.dead_letters import dead_letter_topic
from pipeline.log.publisher import Publisher, Receipt
from pipeline.log.topics import ensure_topics

POLL_S = 0.01
PATIENCE_S = 180.0
COUNTS = {"learner": f"{workers.COUNTING}:blueprint", "decoder": "benchmarks.soak.traffic:numbered"}
NUMBERS: dict[str, Any] = {"kind": "text", "max_chars": 16}
IMAGE = {"kind": "image", "size": traffic.SIDE, "channels": 1, "max_bytes": traffic.MAX_BYTES}
TEXT = {"kind": "text", "max_chars": 32, "max_bytes": traffic.MAX_BYTES}
SMALL = {"width": 8, "replay_slots": 64, "replay_draws": 8}
BOTH = [traffic.PICTURES, traffic.TEXTS]
TOPICS = [*BOTH, traffic.LABELS]

MODELS: dict[str, dict[str, Any]] = {
    "pictures": {
        "learner": "image-classifier",
        "topics": [traffic.PICTURES],
        "input": IMAGE,
        "options": {**SMALL, "hidden": 8},
        "keyframe_every": 3,
    },
    "drawings": {
        "learner": "image-vae",
        "topics": [traffic.PICTURES],
        "input": IMAGE,
        "options": {**SMALL, "latent": 4, "label_dim": 4},
    },
    "texts": {
        "learner": "text-classifier",
        "topics": [traffic.TEXTS],
        "input": TEXT,
        "options": {"buckets": 256, "dim": 8, "replay_slots": 64, "replay_draws": 8},
        "keyframe_every": 5,
    },
    "joined": {
        "learner": "text-classifier",
        "topics": [traffic.TEXTS],
        "labels": {"topic": traffic.LABELS, "window_s": 3600},
        "input": TEXT,
        "options": {"buckets": 256, "dim": 8, "replay_slots": 16_384, "replay_draws": 8},  # all can be corrected
        "keyframe_every": 4,
    },
    "counts": {**COUNTS, "topics": BOTH, "input": NUMBERS, "keyframe_every": 4},
    "hands": {**COUNTS, "topics": BOTH, "input": NUMBERS, "keyframe_every": 2},  # for the changes of hands
}
WANTED = {
    "pictures": traffic.LABELLED,
    "drawings": traffic.ALL,
    "texts": traffic.LABELLED,
    "joined": traffic.JOINED,
    "counts": traffic.COUNTED,
    "hands": traffic.COUNTED,
}
OFTEN: dict[str, Any] = {
    "batch_size": 16,
    "max_wait_ms": 50,
    "snapshot_every_updates": 4,
    "snapshot_every_s": 0.2,
    "keep_last": 50,
    "lease_s": 0.5,
}


class Stage:
    """Servers and traffic, until the context ends."""

    def __init__(self, folder: Path, numbers: int, device: str, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self._where = {"device": device, "deterministic": device == "cuda"}
        self.servers = Local(folder)
        self.workers: dict[str, Handle] = {}
        self.published: list[Receipt] = []
        self.strange: dict[tuple[str, int, int], str | None] = {}  # published otherwise: place → kind, None: any
        self._numbers = numbers
        self._next = itertools.count()
        self._owed: deque[traffic.Sent] = deque()  # labels
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.servers)
            self.redis = stack.enter_context(Redis.from_url(self.servers.redis.url))
            kafka, redis = self.servers.kafka.port, self.servers.redis.port
            for name in MODELS:
                log_proxy = stack.enter_context(Proxy(kafka, kafka=True))
                store_proxy = stack.enter_context(Proxy(redis))
                config = self.config(log_proxy.address, f"redis://{store_proxy.address}/0")
                self.workers[name] = Handle(self, name, config, log_proxy, store_proxy)
            self.direct = self.config(self.servers.kafka.bootstrap_servers, self.servers.redis.url)
            ensure_topics(self.direct.kafka, TOPICS)
            self._limit_letters()
            self._publisher = stack.enter_context(Publisher(self.direct.kafka, wait_s=PATIENCE_S))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.workers.values():
            handle.end()
        self._stack.__exit__(kind, error, trace)

    def _limit_letters(self) -> None:
        """Dead-letter topics that do not take all that the topics take."""
        admin = KafkaAdminClient(bootstrap_servers=self.servers.kafka.bootstrap_servers)
        limit = {"max.message.bytes": str(traffic.LETTER_BYTES)}
        spec = {"num_partitions": traffic.PARTITIONS, "replication_factor": 1, "configs": limit}
        try:
            admin.create_topics({dead_letter_topic(topic): spec for topic in TOPICS}, wait_for_metadata=True)
        finally:
            admin.close()

    def config(self, bootstrap_servers: str, redis_url: str) -> Config:
        """As seen through these addresses."""
        tables = {
            name: {**OFTEN, **self._where, "options": {"numbers": self._numbers}, **table}
            for name, table in MODELS.items()
        }
        return validate(
            {
                "kafka": {"bootstrap_servers": bootstrap_servers, "partitions": traffic.PARTITIONS},
                "redis": {"url": redis_url},
                "sampler": {"port": 0},
                "models": tables,
            },
            "soak",
        )

    def publish(self, numbers: int) -> None:
        """The labels that are owed, and so many records to each topic; a label comes before its text, or is owed."""
        while True:
            try:
                owed = self._owed.popleft()
            except IndexError:  # all are taken, by this thread or another
                break
            self._publish(traffic.LABELS, owed)
        for number in itertools.islice(self._next, numbers):
            if label := traffic.label(number):
                if number % 2:
                    self._publish(traffic.LABELS, label)
                else:
                    self._owed.append(label)
            self._publish(traffic.PICTURES, traffic.picture(number))
            self._publish(traffic.TEXTS, traffic.text(number))

    def _publish(self, topic: str, sent: traffic.Sent) -> None:
        at_ms = int(1000 * (time.time() + sent.ahead_s))
        self.published.append(
            self._publisher.publish(topic, sent.value, key=sent.key, headers=sent.headers, timestamp_ms=at_ms)
        )

    def number(self) -> int:
        """One for a record that is published by another way."""
        return next(self._next)

    def head(self, model: str) -> int:
        """Number of the newest version, 0: none; waits while Redis is away."""
        while True:
            try:
                ref: Any = self.redis.get(f"headrace:{{{model}}}:model:{model}:head")
            except RedisError:
                time.sleep(POLL_S)
            else:
                return int(ref.split(b":")[0]) if ref else 0

    def owner(self, model: str) -> str | None:
        """Who holds the lease."""
        prefix = f"headrace:{{{model}}}:model:{model}:"
        alive: Any = self.redis.exists(prefix + "lease")
        owner: Any = self.redis.hget(prefix + "fence", "owner") if alive else None
        return owner.decode() if owner else None


@dataclass(eq=False)
class Handle:
    """One model's worker: the process of now, its configuration, and the proxies before its servers."""

    stage: Stage
    name: str
    config: Config
    kafka: Proxy
    redis: Proxy
    process: ForkServerProcess | None = None
    starts: int = 0
    ended: Counter[int] = field(default_factory=Counter)  # by itself, by status

    def start(self) -> ForkServerProcess:
        """A new process, in the place of one that has ended."""
        self.starts += 1
        log = self.stage.folder / f"{self.name}.log"
        self.process = workers.start(self.config, self.name, log, f"{self.name}-{self.starts}")
        return self.process

    def kill(self) -> None:
        """kill -9, and the proxies as if nothing had been."""
        assert self.process is not None
        self.process.kill()
        self.process.join()
        if self.process.exitcode != -signal.SIGKILL:
            self.ended[self.process.exitcode or 0] += 1
        self.kafka.cut()
        self.redis.cut()

    def until(self, true: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
        """Whether it becomes true in time, while the process lives."""
        assert self.process is not None
        deadline = time.monotonic() + patience_s
        while not true():
            if time.monotonic() >= deadline or not self.process.is_alive():
                return False
            time.sleep(POLL_S)
        return True

    def end(self) -> int | None:
        """SIGTERM; the exit status."""
        if self.process is None:
            return None
        self.process.terminate()
        self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Calls all at once, each on a thread of its own; raises what the first raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures: list[Future[Any]] = [pool.submit(call) for call in calls]
        return [future.result() for future in futures]


class Ticker:
    """Progress: counts up from several threads, and tells."""

    def __init__(self, total: int, what: str, say: Callable[[str], None]) -> None:
        self._total, self._what, self._say = total, what, say
        self._lock = threading.Lock()
        self._started_s = time.monotonic()
        self.done = 0

    def tick(self) -> None:
        with self._lock:
            self.done += 1
            if self.done % max(1, self._total // 20) == 0 or self.done == self._total:
                self._say(f"{self.done}/{self._total} {self._what} in {time.monotonic() - self._started_s:.0f} s")
