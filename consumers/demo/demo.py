"""The demo: two live streams, three workers and a sampler on this machine, watched while they learn.

Everything that a user would start by hand is started as the command that they would type.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.live import Live

from consumers.cli.watch import Heads, Row, plain, table
from consumers.demo import data as demo_data
from consumers.loading import build, resolve_blueprint
from consumers.processes import Processes
from consumers.sampler.pictures import grid, png
from models.capabilities import Classifier, Evaluated, Generator, Model
from models.learner import Blueprint
from pipeline.config import Config, load
from pipeline.errors import NotFound, Stopped
from pipeline.folders import private
from pipeline.local import Local, free_port, is_free
from pipeline.log import Publisher, Reader, ensure_topics
from pipeline.records import input_array
from pipeline.store import Manifest, Ref, Store, connect
from pipeline.texts import TextInput
from pipeline.threads import Background

DIGITS_PER_S = 150.0
TEXTS_PER_S = 120.0
AHEAD_S = 10.0  # how far a stream may run ahead of its slowest reader: no machine is too slow for the demo
SHEET_EVERY_S = 10.0
SAY_EVERY_S = 5.0  # where there is no terminal

CONFIG = """\
# Written by `headrace demo`; read it to see what the demo runs. It is written anew at every start.
[kafka]
bootstrap_servers = "{kafka}"

[redis]
url = "{redis}"

[sampler]
port = {port}

[models.digits]
topics = ["digits"]
learner = "image-classifier"
batch_size = 32
max_wait_ms = 250
keep_last = 8
input = {{ kind = "image", size = 16, channels = 1 }}

[models.languages]
topics = ["messages"]
learner = "text-classifier"
batch_size = 32
max_wait_ms = 250
keep_last = 8
input = {{ kind = "text", max_chars = 200 }}

[models.drawings]
topics = ["digits"]
learner = "image-vae"
batch_size = 16
max_wait_ms = 250
keep_last = 8
input = {{ kind = "image", size = 16, channels = 1 }}
"""


@dataclass(slots=True)
class Exam:
    """A model's result on what is held out: accuracy (0–1), or a generator's loss (nats per record)."""

    x: torch.Tensor
    labels: list[str]
    first: float | None = None  # at the beginning of this run
    last: float | None = None
    resumed: bool = False  # the model had learned before this run
    version: int = 0

    def take(self, model: Model) -> float:
        if isinstance(model, Evaluated):
            return model.evaluate(self.x, self.labels)
        assert isinstance(model, Classifier)  # noqa: S101 - for the type checker: the demo has no third kind
        if not model.classes:
            return 0.0
        chosen: list[int] = model.classify(self.x).argmax(1).tolist()
        hits = [model.classes[k] == label for k, label in zip(chosen, self.labels, strict=True)]
        return sum(hits) / len(hits)


def loaded(store: Store, ref: Ref, blueprint: Blueprint) -> tuple[Manifest, Model]:
    """Loads a version, or the newest one if that version was retired meanwhile: its worker goes on learning.

    Raises:
        NotFound: the model was deleted.
    """
    while True:
        try:
            manifest = store.manifest(ref)
            return manifest, build(manifest, store.arrays(manifest, "serving"), blueprint)
        except NotFound:
            newer = store.head()
            if newer is None or newer == ref:
                raise
            ref = newer


@dataclass(frozen=True, slots=True)
class Margin:
    """What a run must show: `gain` over its beginning, or, where it went on from before, a loss of at most `slack`."""

    gain: float
    slack: float
    lower_is_better: bool

    def result(self, name: str, exam: Exam) -> tuple[bool, str]:
        """Whether the run shows it, and a sentence that says so."""
        if exam.first is None or exam.last is None:
            return False, f"{name}: no version was made."
        rule = f"may fall by {self.slack:.0%}" if exam.resumed else f"asked for {self.gain:+.0%}"
        if self.lower_is_better:
            change = (exam.first - exam.last) / abs(exam.first)
            figures = f"held-out loss {exam.first:.1f} → {exam.last:.1f} nats ({change:+.0%} better; {rule})"
        else:
            change = exam.last - exam.first
            figures = f"held-out accuracy {exam.first:.1%} → {exam.last:.1%} ({rule})"
        passed = change >= (-self.slack if exam.resumed else self.gain)
        return passed, f"{name}: {figures}: {'passed' if passed else 'FAILED'}."


MARGINS = {
    "digits": Margin(gain=0.60, slack=0.03, lower_is_better=False),
    "languages": Margin(gain=0.40, slack=0.05, lower_is_better=False),
    "drawings": Margin(gain=0.25, slack=0.03, lower_is_better=True),
}


@dataclass(slots=True)
class Demo:
    """One run of the demo in `folder`."""

    folder: Path
    seconds: float | None
    kafka: str | None
    redis: str | None
    console: Console
    stop: Event
    _read: dict[str, int] = field(default_factory=dict)  # records of each topic, up to where its slowest reader is

    def run(self) -> int:
        """The exit status: 0 if what is held out came out better by the margins (or the run was ended by hand)."""
        private(self.folder)
        with ExitStack() as stack:
            kafka, redis = self._servers(stack)
            config = self._config(kafka, redis)
            client = connect(config.redis.url)
            stores = {name: Store(client, config.family(name), name) for name in config.models}
            heads = {name: store.head() for name, store in stores.items()}
            check = stack.enter_context(self._running(config, stores))
            return self._watch(config, stores, heads, check)

    # --- what runs ---

    def _servers(self, stack: ExitStack) -> tuple[str, str]:
        if self.kafka and self.redis:
            return self.kafka, self.redis
        password = secrets.token_urlsafe(16)
        servers = stack.enter_context(Local(self.folder / "servers", password=password, say=self._say, stop=self.stop))
        return self.kafka or servers.kafka.bootstrap_servers, self.redis or servers.redis.url

    def _config(self, kafka: str, redis: str) -> Config:
        self._toml.touch(0o600)  # it has the password
        self._toml.write_text(
            CONFIG.format(kafka=kafka, redis=redis, port=8080 if is_free(8080) else free_port()), "utf-8"
        )
        return load(self._toml, {})

    @contextlib.contextmanager
    def _running(self, config: Config, stores: Mapping[str, Store]) -> Iterator[Callable[[], None]]:
        """Publishers, workers and the sampler, and what raises once one of them has failed.

        All are ended at the end, the workers with a snapshot.
        """
        ensure_topics(config.kafka, ["digits", "messages"])
        ending = Event()

        def check() -> None:
            started.check()
            publishing.check()

        publishing = Background(lambda: _publish(config, self._read, ending), "publish")
        with (
            self._log.open("a", 1, "utf-8") as log,
            Processes(self._toml, lambda line: print(line, file=log)) as started,
        ):
            try:
                started.start_all(config)
                self._wait_for_workers(stores, started)
                publishing.start()
                self._say(f"The sampler answers at http://{config.sampler.host}:{config.sampler.port}")
                yield check
            finally:
                ending.set()
                publishing.close()

    def _wait_for_workers(self, stores: Mapping[str, Store], started: Processes) -> None:
        """Importing torch takes them a while on two cores; a stream that ran ahead would only show up as lag."""
        self._say("Starting three workers and the sampler…")
        while not all(store.holder() for store in stores.values()) and not self.stop.wait(0.2):
            started.check()
        if self.stop.is_set():
            raise Stopped("The demo was ended before its workers had started.")

    @property
    def _toml(self) -> Path:
        return self.folder / "headrace.toml"

    @property
    def _log(self) -> Path:
        return self.folder / "demo.log"

    # --- what is shown ---

    def _watch(
        self, config: Config, stores: Mapping[str, Store], starts: Mapping[str, Ref | None], check: Callable[[], None]
    ) -> int:
        torch.set_num_threads(1)
        exams = _exams(config)
        for name, exam in exams.items():
            self._first(config, stores[name], starts[name], exam)
        heads, rows = Heads(), [Row(name) for name in exams]
        began_s = sheet_s = said_s = time.monotonic()
        live = Live(table(rows), console=self.console, auto_refresh=False) if self.console.is_terminal else None
        with live or contextlib.nullcontext():
            while not self.stop.wait(1.0):
                check()
                rows = [self._row(config, stores[name], name, exam, heads) for name, exam in exams.items()]
                self._read |= read_by_all(config, stores)
                elapsed = time.monotonic() - began_s
                if live is not None:
                    caption = (
                        f"{elapsed:.0f} s · sampler at http://{config.sampler.host}:{config.sampler.port} · Ctrl-C ends"
                    )
                    live.update(table(rows, caption), refresh=True)
                elif time.monotonic() - said_s >= SAY_EVERY_S:
                    said_s = time.monotonic()
                    for row in rows:
                        self._say(f"{elapsed:3.0f} s  {plain(row)}")
                if time.monotonic() - sheet_s >= SHEET_EVERY_S:
                    sheet_s = time.monotonic()
                    self._sheet(config, stores["drawings"])
                if self.seconds is not None and elapsed >= self.seconds:
                    break
        self._sheet(config, stores["drawings"])
        return self._summary(exams)

    def _first(self, config: Config, store: Store, ref: Ref | None, exam: Exam) -> None:
        """The exam before anything of this run is learned: by the head that it starts from, or untrained."""
        settings = config.model(store.model)
        blueprint = resolve_blueprint(settings.learner)
        if ref is None:
            options = blueprint.options(**settings.options)
            exam.first = exam.take(
                blueprint.learner(options, settings.input.shape, settings.seed, torch.device("cpu")).model
            )
        else:
            exam.resumed = True
            exam.first = exam.take(loaded(store, ref, blueprint)[1])

    def _row(self, config: Config, store: Store, name: str, exam: Exam, heads: Heads) -> Row:
        ref = store.head()
        manifest: Manifest | None = None
        if ref is not None:
            if ref.version == exam.version:
                manifest = store.manifest(ref)
            else:
                manifest, model = loaded(store, ref, resolve_blueprint(config.model(name).learner))
                exam.version, exam.last = manifest.version, exam.take(model)
        return heads.row(name, manifest, time.time(), exam.last, store.holding())

    def _sheet(self, config: Config, store: Store) -> None:
        """Ten labels, eight drawings each, from the newest version."""
        ref = store.head()
        if ref is None:
            return
        manifest, model = loaded(store, ref, resolve_blueprint(config.model("drawings").learner))
        assert isinstance(model, Generator)  # noqa: S101 - for the type checker
        labels: list[str | None] = [*sorted(model.classes)] or [None]
        drawn = model.generate(
            [seed for _ in labels for seed in range(8)], [label for label in labels for _ in range(8)]
        )
        sheet = Image.open(io.BytesIO(png(grid(drawn.numpy(), columns=8))))
        path = self.folder / "drawings" / f"v{manifest.version:06}.png"
        path.parent.mkdir(exist_ok=True)
        sheet.resize((4 * sheet.width, 4 * sheet.height), Image.Resampling.NEAREST).save(path)
        if not self.console.is_terminal:
            self._say(f"drew {path}")

    def _summary(self, exams: dict[str, Exam]) -> int:
        results = [MARGINS[name].result(name, exam) for name, exam in exams.items()]
        for _, sentence in results:
            self._say(sentence)
        self._say(
            f"Drawings are in {self.folder / 'drawings'}, the log is {self._log}. The next run goes on from here."
        )
        if self.seconds is None or self.stop.is_set():
            return 0
        return 0 if all(passed for passed, _ in results) else 1

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def _exams(config: Config) -> dict[str, Exam]:
    digits, texts = demo_data.digits().held_out, demo_data.texts().held_out
    exams = {}
    for name, settings in config.models.items():
        split = texts if isinstance(settings.input, TextInput) else digits
        arrays = [input_array(sample.value, settings.input) for sample in split]
        exams[name] = Exam(torch.from_numpy(np.stack(arrays)), [sample.label for sample in split])
    return exams


@dataclass(slots=True)
class Stream:
    """A topic that is filled at `per_s` records a second, but not beyond what is read of it."""

    per_s: float
    samples: Iterator[demo_data.Sample]
    already: int  # how many records the topic held before
    sent: int = 0
    _due: float = 0.0

    def due(self, elapsed_s: float, read: int) -> int:
        """How many to send now, `elapsed_s` after the last time; `read`: of the topic, by its slowest reader."""
        self._due = min(self._due + self.per_s * elapsed_s, max(read - self.already, 0) + self.per_s * AHEAD_S)
        return max(int(self._due) - self.sent, 0)


def read_by_all(config: Config, stores: Mapping[str, Store]) -> dict[str, int]:
    """How many records of each topic its slowest reader has read, where each has a version."""
    read: dict[str, int] = {}
    for name, store in stores.items():
        head = store.head()
        positions = store.manifest(head).positions() if head else {}
        for topic in config.model(name).topics:
            count = sum(offset for at, offset in positions.items() if at.topic == topic)
            read[topic] = min(read.get(topic, count), count)
    return read


def _publish(config: Config, read: Mapping[str, int], ending: Event) -> None:
    """Both streams at their rates, until `ending`."""
    rng = random.Random(os.urandom(16))  # noqa: S311 - not a secret; a new stream at every start
    digits, messages = (_records(config, topic) for topic in ("digits", "messages"))
    streams = {
        "digits": Stream(DIGITS_PER_S, demo_data.digit_stream(demo_data.digits(), rng, already=digits), digits),
        "messages": Stream(TEXTS_PER_S, demo_data.text_stream(demo_data.texts(), rng, already=messages), messages),
    }
    with Publisher(config.kafka) as publisher:
        last_s = time.monotonic()
        while not ending.wait(0.05):
            now_s = time.monotonic()
            for topic, stream in streams.items():
                for sample in islice(stream.samples, stream.due(now_s - last_s, read.get(topic, 0))):
                    headers = [("content-type", sample.content_type.encode()), ("label", sample.label.encode())]
                    publisher.publish(topic, sample.value, headers=headers)
                    stream.sent += 1
            last_s = now_s


def _records(config: Config, topic: str) -> int:
    """How many records the topic was ever given."""
    with Reader(config.kafka, [topic], start="latest", group="headrace-demo") as reader:
        polled = reader.poll(30)
        return sum(polled.positions.values()) if polled else 0
