"""A stranger's surroundings: a worker that runs as the installed command, and pictures of three kinds of bars.

Nothing here, and nothing in the tests of this folder, imports a line of ours: they hold the public formats.
"""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer
from PIL import Image
from redis import Redis

HEADRACE = str(Path(sys.executable).with_name("headrace"))
PATIENCE_S = 60.0
SIZE = 20
FAMILY = "headrace:{doors}:"
MODEL = f"{FAMILY}model:pictures:"
CONFIG = """
[kafka]
bootstrap_servers = "{kafka}"
partitions = 2

[redis]
url = "{redis_url}"

[models.pictures]
family = "doors"
topics = ["bars"]
learner = "image-classifier"
device = "cpu"
batch_size = 32
snapshot_every_s = 0.3
input = {{ kind = "image", size = {size}, channels = 3 }}
options = {{ width = 8, hidden = 32, learning_rate = 3e-3, replay_slots = 200 }}
"""


def bars(kind: str, rng: np.random.Generator) -> bytes:
    """A PNG of a bright bar, which lies, stands or leans, on a noisy ground."""
    pixels = rng.integers(0, 90, (SIZE, SIZE, 3), dtype=np.uint8)
    at = int(rng.integers(4, SIZE - 6))
    rows, columns = np.indices((SIZE, SIZE))
    inside = abs({"lying": rows - at, "standing": columns - at, "leaning": rows + columns - 2 * at}[kind]) < 2
    pixels[inside] += 160
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a stranger is told: where Kafka, Redis and the metrics are, and the topic."""

    kafka: str
    redis_url: str
    metrics_url: str
    redis: Redis
    topic: str = "bars"
    kinds: tuple[str, ...] = ("lying", "standing", "leaning")
    draw: Callable[[str, np.random.Generator], bytes] = bars

    def manifest(self) -> dict[str, Any]:
        """Of the newest version; empty where there is none."""
        head: Any = self.redis.get(f"{MODEL}head")
        if head is None:
            return {}
        raw: Any = self.redis.get(f"{MODEL}manifest:{head.decode().split(':')[0]}")
        return json.loads(raw)  # type: ignore[no-any-return]

    def until(self, true_of: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first newest version of which it is true; listens to the family's announcements."""
        last, deadline = b"0", time.monotonic() + PATIENCE_S
        while not true_of(manifest := self.manifest()):
            assert time.monotonic() < deadline, f"no such version came; the newest is {manifest}"
            announced: Any = self.redis.xread({f"{FAMILY}events": last}, block=1000)
            last = announced[0][1][-1][0] if announced else last
        return manifest


@pytest.fixture(scope="session")
def pipeline(
    kafka: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory, tied: Callable[[list[str]], list[str]]
) -> Iterator[Pipeline]:
    """A worker process; SIGTERM ends it, and it ends well."""
    folder = tmp_path_factory.mktemp("worker")
    (folder / "headrace.toml").write_text(CONFIG.format(kafka=kafka, redis_url=redis_url, size=SIZE), "utf-8")
    worker = subprocess.Popen(tied([HEADRACE, "train", "pictures"]), cwd=folder, stderr=subprocess.PIPE, text=True)
    assert worker.stderr is not None
    try:
        assert worker.stderr.readline() == "headrace: starting the worker.\n"
        name, _, address = worker.stderr.readline().strip().partition(": metrics at ")
        assert name == "pictures"
        with Redis.from_url(redis_url) as redis:
            yield Pipeline(kafka, redis_url, address, redis)
    finally:
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate(timeout=PATIENCE_S)
    assert (worker.returncode, "Traceback" in said) == (0, False), said


@pytest.fixture(scope="session")
def learned(pipeline: Pipeline) -> Pipeline:
    """600 labelled pictures were published, and learned."""
    rng = np.random.default_rng(0)
    pipeline.until(lambda manifest: manifest)  # the first version says that the topic is being read
    producer = Producer({"bootstrap.servers": pipeline.kafka})
    for number in range(600):
        kind = pipeline.kinds[number % 3]
        producer.produce(pipeline.topic, pipeline.draw(kind, rng), headers={"label": kind.encode()})
    assert producer.flush(PATIENCE_S) == 0
    pipeline.until(lambda manifest: manifest["counts"].get("learned", 0) >= 600)
    return pipeline
