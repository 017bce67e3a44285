"""What the tests of `headrace publish` and `headrace label` share: a configuration, the command, what a topic holds."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from consumers.cli import app as cli
from pipeline.config import KafkaConfig
from pipeline.log.reader import Reader
from pipeline.records import Record
from tests.services import unique

HEADRACE = str(Path(sys.executable).with_name("headrace"))
PATIENCE_S = 60.0
CONFIG = """
[kafka]
bootstrap_servers = "{kafka}"
partitions = 1
max_bytes = 100_000

[models.pictures]
topics = ["{topic}"]
learner = "image-analytic"
input = {{ kind = "image", size = 8, max_bytes = 50_000 }}

[models.drawings]
topics = ["{topic}", "{texts}"]
learner = "image-vae"
input = {{ kind = "image", size = 8 }}

[models.joined]
topics = ["joined-{topic}"]
learner = "text-analytic"
input = {{ kind = "text" }}
labels = {{ topic = "labels-{topic}" }}
"""


class Done(NamedTuple):
    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Headrace = Callable[..., Done]


class Surroundings:
    """Where a user is: in a folder with a configuration."""

    def __init__(
        self, folder: Path, kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        (folder / "headrace.toml").write_text(CONFIG.format(kafka=kafka, topic=topic, texts=unique("t")), "utf-8")
        monkeypatch.chdir(folder)

    def run(self, *arguments: str, stdin: bytes = b"") -> Done:
        """Runs a command line in this process, with standard input as given."""
        self._monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
        with standard_input(stdin), pytest.raises(SystemExit) as ended:
            cli.main()
        return Done(int(ended.value.code or 0), *self._capsys.readouterr())


@contextmanager
def standard_input(content: bytes) -> Iterator[None]:
    """A pipe that holds it, and is closed."""
    before = os.dup(0)
    out, into = os.pipe()
    os.write(into, content)
    os.close(into)
    os.dup2(out, 0)
    os.close(out)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


class Log:
    """What a topic holds, read by a reader of its own."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config

    def read(self, topic: str, at_least: int = 0) -> list[Record]:
        """All records, once there are so many."""
        found: list[Record] = []
        with Reader(self._config, [topic], group="test") as reader:
            while len(found) < at_least or any(reader.lag().values()):
                polled = reader.poll(PATIENCE_S)
                assert polled is not None, f"{len(found)} of {at_least} records came"
                found += polled.records
        return found

    def values(self, topic: str, at_least: int = 0) -> list[bytes]:
        return [bytes(record.value or b"") for record in self.read(topic, at_least)]

    def labels(self, topic: str) -> Counter[str | None]:
        named = [dict(record.headers).get("label") for record in self.read(topic)]
        return Counter(None if label is None else label.decode() for label in named)


def png(seed: int, side: int = 8) -> bytes:
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def eventually(condition: Callable[[], bool]) -> None:
    """Asks again until it holds; a bound in place of for ever."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S * 10)):
        if condition():
            return
        pause.wait(0.1)
    raise AssertionError("it never came true")
