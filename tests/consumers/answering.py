"""Models that answer what the sampler can be asked, each as simply as it can be told apart, and a sampler of them.

`eyes` recognises, restores and restyles; `voice` writes; both show the version that answers. `drawings` is the real
image-vae. Tests import `serving` and the pictures; models are loaded by their import path.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from redis import Redis
from torch import Tensor

from consumers.loading import resolve_blueprint
from models.capabilities import Sampling
from models.learner import Batch, Blueprint, Options, Report, State
from pipeline.store.store import Store
from tests.consumers.marked import Maker
from tests.consumers.running import PATIENCE_S, Running, configuration, running
from tests.services import unique

COLOURS = {"kind": "image", "size": 8, "channels": 3}
GREY = {"kind": "image", "size": 8, "channels": 1}
VAE = {"width": 8, "latent": 4, "label_dim": 4, "replay_slots": 16, "replay_draws": 8}
TABLES: dict[str, dict[str, Any]] = {
    "eyes": {"learner": "tests.consumers.answering:eyes", "input": COLOURS},
    "voice": {"learner": "tests.consumers.answering:voice", "input": {"kind": "text"}},
    "drawings": {"learner": "image-vae", "input": GREY, "options": VAE},
}
VERSIONS = 3  # of each; `drawings` knows "left" from the first on, "right" from the second

STEPS = 1000  # pieces of a text that goes on step by step


class Steps:
    """Lets `voice` go on piece by piece, where the prompt is this one; `given` pieces so far."""

    def __init__(self) -> None:
        self.prompt = unique("step")
        self.begun, self.ended = threading.Event(), threading.Event()
        self.given = 0
        self._turns: queue.Queue[None] = queue.Queue()

    def go(self, pieces: int = 1) -> None:
        for _ in range(pieces):
            self._turns.put(None)

    def pieces(self, mark: int) -> Iterator[str]:
        self.begun.set()
        try:
            for number in range(STEPS):
                self._turns.get(timeout=PATIENCE_S)
                self.given += 1
                yield f"{number}:v{mark} "
        finally:
            self.ended.set()

    def end_early(self) -> bool:
        """Whether it ends before its end, when it may go on."""
        for _ in range(STEPS // 4):
            self.go()
            if self.ended.wait(0.02):
                return self.given < STEPS
        return False


STEPPING: dict[str, Steps] = {}


@contextmanager
def stepping() -> Iterator[Steps]:
    """A prompt of its own; afterwards it may go on to its end, so that no thread waits."""
    steps = Steps()
    STEPPING[steps.prompt] = steps
    try:
        yield steps
    finally:
        steps.go(STEPS)


class Marked(torch.nn.Module):
    """A model that knows how many updates made it."""

    mark: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mark", torch.zeros(1))
        self.classes = ["dark", "bright"]


class Eyes(Marked):
    """Sees how bright a picture is; what is in between it does not know."""

    kinds = ("holes", "negative")

    def recognise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bright = x.float().mean((1, 2, 3)) / 255  # (B,)
        return torch.stack([1 - bright, bright], 1), (bright - 0.5).abs() < 0.2

    def classify(self, x: Tensor) -> Tensor:
        return self.recognise(x)[0]

    def restore(self, x: Tensor, kinds: Sequence[str | None], holes: Tensor | None = None) -> Tensor:
        """Fills holes with 200, turns a negative round."""
        x = torch.stack([255 - one if kind == "negative" else one for one, kind in zip(x, kinds, strict=True)])
        return x if holes is None else torch.where(holes, 200, x).to(torch.uint8)

    def restyle(self, x: Tensor) -> Tensor:
        """A mirror."""
        return x.flip(-1)


class Voice(Marked):
    """Says the prompt backwards, then how it was asked; "fail" fails, and those in `STEPPING` go on step by step."""

    def complete(self, prompt: str, seed: int, sampling: Sampling) -> Iterator[str]:
        if prompt == "fail":
            yield "so far"
            raise RuntimeError("on purpose")
        if prompt in STEPPING:
            yield from STEPPING[prompt].pieces(int(self.mark))
            return
        text = f"{prompt[::-1]} v{int(self.mark)} {seed} {sampling}"
        size = 0
        for character in text.partition(sampling.stop)[0] if sampling.stop else text:
            size += len(character.encode())
            if size > sampling.max_bytes:
                return
            yield character


class AnsweringLearner:
    """Counts its updates."""

    needs_label = False
    replay_capacity = 0
    replay_size = 0

    def __init__(self, made: type[Marked], *_: Any) -> None:
        self.model = made()

    def refuses(self, labels: Sequence[str | None]) -> dict[int, str]:
        return {}

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        self.model.mark += 1
        return Report(loss=0.0)

    def capture(self) -> State:
        return State(dict(self.model.state_dict()), {})

    def restore(self, state: State) -> None:
        self.model.load_state_dict(state.serving)


def _blueprint(made: type[Marked], kind: str) -> Blueprint:
    def model(options: Options, shape: tuple[int, ...], meta: Mapping[str, Any]) -> Marked:
        return made()

    return Blueprint(Options, partial(AnsweringLearner, made), model, kind)


eyes = _blueprint(Eyes, "image")
voice = _blueprint(Voice, "text")


def maker(redis: Redis, family: str, name: str) -> Maker:
    """Makes versions of one of the models above."""
    table = TABLES[name]
    blueprint = resolve_blueprint(table["learner"])
    return Maker(Store(redis, family, name), table["learner"], blueprint, table["input"], **table.get("options", {}))


def commit(made: Maker, name: str, number: int) -> None:
    """One update, one version."""
    if name == "voice":
        made.learn(torch.zeros(1, 256, dtype=torch.int32), [None])
    else:
        x = torch.zeros(2, *made.learner.model.shape if name == "drawings" else (3, 8, 8), dtype=torch.uint8)  # type: ignore[attr-defined]
        x[0, :, :, :4] = x[1, :, :, 4:] = 255
        made.learn(x, ["left", "right" if number > 1 else "left"])
    made.commit()


@contextmanager
def serving(redis_url: str, *names: str, **sampler: Any) -> Iterator[tuple[Running, dict[str, Maker]]]:
    """A sampler of these models, three versions each, and the makers of their next ones."""
    families = {name: unique(name) for name in names}
    tables = {name: {**TABLES[name], "family": families[name]} for name in names}
    with Redis.from_url(redis_url) as redis:
        makers = {name: maker(redis, families[name], name) for name in names}
        for name, made in makers.items():
            for number in range(1, VERSIONS + 1):
                commit(made, name, number)
        with running(configuration(redis_url, tables, **sampler)) as at:
            assert all(at.serves(name, VERSIONS) for name in names)
            yield at, makers


def photo(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    """(H, W, C) uint8: each pixel tells its place."""
    rows, columns = np.indices((height, width))
    pixels = np.stack([rows % 256, columns % 256, (rows + columns) % 256, 255 - rows % 256], 2)[..., :channels]
    return np.squeeze(pixels.astype(np.uint8))


def file(pixels: NDArray[np.uint8], form: str = "PNG", **settings: Any) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **settings)
    return buffer.getvalue()


def seen(content: bytes) -> NDArray[np.uint8]:
    """The pixels of a PNG: (H, W) or (H, W, C) uint8."""
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    return np.asarray(image)
