"""A learner whose weights say how many updates made them, in two tensors, so that a mix of two versions is seen.

It is a user's own learner too: the tests load it by its import path. `Maker` commits versions as a worker would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from consumers.bridge import copied
from models.learner import (
    NOTHING,
    Batch,
    Blueprint,
    Learner,
    Options,
    Report,
    Start,
    State,
    structural,
    update_generator,
)
from pipeline.records import as_input
from pipeline.store.lineage import LineageBuilder
from pipeline.store.manifest import About
from pipeline.store.store import Store
from pipeline.store.writer import Committed, Draft

NAME = "tests.consumers.marked:blueprint"
TEXT = {"kind": "text", "max_chars": 8}


class MarkedOptions(Options):
    """The size of what never changes, as a frozen backbone does not."""

    frozen: int = structural(4096, ge=1)


class MarkedModel(torch.nn.Module):
    """Classifies and draws; every answer shows the marks of both tensors, the record, and nothing else."""

    first: Tensor
    last: Tensor

    def __init__(self, frozen: int) -> None:
        super().__init__()
        for name, size in (("first", 1), ("frozen", frozen), ("last", 1)):
            self.register_buffer(name, torch.zeros(size))
        self.classes = ["first", "last", "record"]

    def classify(self, x: Tensor) -> Tensor:
        """x (B, L) → (B, 3): the marks / 1024, and the record's first character / 2^21; all exact in float32."""
        marks = torch.cat([self.first, self.last]).expand(len(x), 2) / 1024
        return torch.cat([marks, x[:, :1].float() / 2**21], 1)

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """(N, 1): the seeds modulo 251."""
        return torch.tensor([[float(seed % 251)] for seed in seeds])

    def draw(self, z: Tensor, labels: Sequence[str | None]) -> Tensor:
        """(N, 1, 2, 2) uint8: the marks, the code, the label."""
        shown = [0 if label is None else 1 + self.classes.index(label) for label in labels]
        pixels = [[self.first.item(), self.last.item(), s, k] for s, k in zip(z[:, 0].tolist(), shown, strict=True)]
        return (torch.tensor(pixels) % 256).to(torch.uint8).reshape(-1, 1, 2, 2)

    def generate(self, seeds: Sequence[int], labels: Sequence[str | None]) -> Tensor:
        return self.draw(self.latents(seeds), labels)

    def evaluate(self, x: Tensor, labels: Sequence[str | None]) -> float:
        return 0.0


class MarkedLearner:
    """Counts its updates."""

    needs_label = False
    replay_capacity = 0
    replay_size = 0

    def __init__(self, options: MarkedOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
        self.model = MarkedModel(options.frozen).to(device)

    def refuses(self, labels: Sequence[str | None]) -> dict[int, str]:
        return {}

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        self.model.first += 1
        self.model.last += 1
        return Report(loss=0.0)

    def capture(self) -> State:
        return State(dict(self.model.state_dict()), {})

    def restore(self, state: State) -> None:
        self.model.load_state_dict(state.serving)


def _model(options: MarkedOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> MarkedModel:
    return MarkedModel(options.frozen)


blueprint = Blueprint(MarkedOptions, MarkedLearner, _model, "text")


class BlockingModel(MarkedModel):
    """Comes to no end; says when it is at work."""

    def classify(self, x: Tensor) -> Tensor:
        print("at work", flush=True)
        threading.Event().wait()
        return x

    def generate(self, seeds: Sequence[int], labels: Sequence[str | None]) -> Tensor:
        return self.classify(torch.empty(0))


def _blocking(options: MarkedOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> MarkedModel:
    return BlockingModel(options.frozen)


blocking = Blueprint(MarkedOptions, MarkedLearner, _blocking, "text")


def _lingering(options: MarkedOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> MarkedModel:
    """Has a thread of its own, which the interpreter would wait for."""
    threading.Thread(target=threading.Event().wait, name="a user's own").start()
    return MarkedModel(options.frozen)


lingering = Blueprint(MarkedOptions, MarkedLearner, _lingering, "text")


def _unending(options: MarkedOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> MarkedModel:
    if options.frozen == UNENDING:
        print("at work", flush=True)
        threading.Event().wait()
    return MarkedModel(options.frozen)


UNENDING = 7  # of `frozen`: it is never loaded
unending = Blueprint(MarkedOptions, MarkedLearner, _unending, "text")


class Maker:
    """Makes versions of one model: `learn` as often as wanted, then `commit`."""

    def __init__(
        self,
        store: Store,
        learner: str,
        blueprint: Blueprint,
        input: Mapping[str, Any],
        start: Start = NOTHING,
        /,
        **options: Any,
    ) -> None:
        self.store = store
        self._name = learner
        self._input = as_input(input)
        self._options = blueprint.options(**options)
        self.learner: Learner = blueprint.build(self._options, self._input.shape, 0, torch.device("cpu"), start)
        fence = store.acquire("test", 60)
        assert fence is not None
        self.fence = fence
        self._writer = store.writer(fence)
        self._updates = 0

    def learn(self, x: Tensor, labels: Sequence[str | None]) -> None:
        """One update on these records."""
        batch = Batch(x, labels, torch.zeros(len(x), 3, dtype=torch.int64), torch.zeros(len(x), 16, dtype=torch.uint8))
        self.learner.learn(batch, update_generator(0, self._updates))
        self._updates += 1

    def commit(self, **changed: Any) -> Committed:
        """A version of what was learned so far; `changed` are fields of the draft, or of what it says."""
        state = self.learner.capture()
        lineage = changed.pop("lineage", None) or LineageBuilder().build()
        serving, training = (
            changed.pop(group, None) or copied(getattr(state, group)) for group in ("serving", "training")
        )
        fields: dict[str, Any] = {
            "learner": self._name,
            "input": self._input.model_dump(mode="json"),
            "options": self._options.model_dump(mode="json"),
            "config": {},
            "classes": list(self.learner.model.classes),
            "seed": 0,
            "updates": self._updates,
            "counts": {"learned": self._updates},
            "watermark": {"topic": {0: self._updates}},
            "newest_timestamp_ms": int(time.time() * 1000),
            "metrics": {"loss": 0.5, "lag_records": 7.0},
            "environment": {},
            "meta": dict(state.meta),
            "worker": {},
        }
        return self._writer.commit(Draft(About(**{**fields, **changed}), lineage, serving, training))


def marked(store: Store) -> Maker:
    """A maker of versions of the learner above."""
    return Maker(store, NAME, blueprint, TEXT)


def step(maker: Maker) -> int:
    """One update, one version; returns its number, which is the mark that its answers show."""
    maker.learn(torch.zeros(1, 8, dtype=torch.int32), [None])
    return maker.commit().version
