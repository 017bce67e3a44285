"""Evaluates a model now and then on records that it never learns: accuracy, likelihood, quality of its drawings.

It runs between two updates, on the thread that learns: `every_s` says how often. What it finds stands in the metrics
and in the next versions' manifests. It is no part of the learned state: learning again does not ask again.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from consumers.worker.fold import Fold
from consumers.worker.sources import Sources
from models.capabilities import Classifier, Evaluated, Generator
from models.evaluation import NEIGHBOURS, Retention, bits_per_dimension, quality
from models.images import Backbone, BackboneOptions, references
from models.network import pixels
from pipeline.config import HoldOutConfig
from pipeline.errors import ConfigError
from pipeline.records import Example, Place

CHUNK = 128  # records of one pass
LEARNED = 1000  # records learned last, which drawings are compared with


def feature_extractor_of(name: str, settings: HoldOutConfig, sources: Sources, device: torch.device) -> Backbone | None:
    """The frozen network whose features drawings are judged by, where one is configured.

    Raises:
        ConfigError: there is no such network.
    """
    if not settings.features:
        return None
    where = f"models.{name}.hold_out.features"
    try:
        options = BackboneOptions.model_validate(settings.features)
        return Backbone.of_sources(options, sources.find(references(options), where)).to(device)
    except ValidationError as error:
        raise ConfigError(f"{where}: {error.errors()[0]['msg']}.") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


@dataclass(eq=False)
class Evaluator:
    """Asks a model now and then about records that it never learns."""

    settings: HoldOutConfig
    extractor: Backbone | None  # of the features by which drawings are judged; None: they are not
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._examined_s = self.clock()
        self._examined_updates = 0
        self._learned: deque[tuple[Place, NDArray[np.uint8]]] = deque(maxlen=LEARNED if self.extractor else 0)
        self.retention = Retention()

    def learned(self, examples: Iterable[Example]) -> None:
        self._learned.extend((example.record.place, example.x) for example in examples)

    def unlearned(self, places: Collection[Place]) -> None:
        """The records of these places were not, as it turned out."""
        kept = [one for one in self._learned if one[0] not in places]
        self._learned.clear()
        self._learned.extend(kept)

    def due(self, updates: int) -> bool:
        """Whether it is time, and the model has learned since it was asked last."""
        waited = self.clock() - self._examined_s >= self.settings.every_s
        return waited and updates != self._examined_updates

    def examine(self, fold: Fold) -> dict[str, float]:
        """What there is to say of the model at this moment, by name with the unit; empty while nothing is held out."""
        self._examined_s, self._examined_updates = self.clock(), fold.updates
        if fold.held_out is None or not len(fold.held_out):
            return {}
        x, labels = fold.held_out.records()
        found: dict[str, float] = {}
        model = fold.learner.model
        if isinstance(model, Classifier) and any(labels):
            hits = hits_by_class(model, x, labels)
            found["held_out_accuracy"] = accuracy(hits)
            learned = {label: counts for label, counts in hits.items() if label in model.classes}
            found |= self.retention.probed(learned)
        if isinstance(model, Evaluated):
            starts = range(0, len(x), CHUNK)
            chunks = [(x[at : at + CHUNK], labels[at : at + CHUNK]) for at in starts]
            nats = sum(len(some) * model.evaluate(some, theirs) for some, theirs in chunks) / len(x)
            found["held_out_loss"] = nats
            if fold.settings.input.kind == "image":
                found["held_out_bits_per_dimension"] = bits_per_dimension(nats, math.prod(x.shape[1:]))
            else:
                found["held_out_bits_per_byte"] = nats / math.log(2) / mean_bytes(x)
        if isinstance(model, Generator) and self.extractor is not None and self._learned and len(x) > NEIGHBOURS:
            found |= self._judged(self.extractor, model, x, labels)
        return found

    def _judged(
        self, extractor: Backbone, model: Generator, x: Tensor, labels: Sequence[str | None]
    ) -> Mapping[str, float]:
        count = self.settings.drawings
        asked = [labels[number % len(labels)] for number in range(count)]
        drawn = model.generate(range(count), [label if label in model.classes else None for label in asked])
        learned = torch.from_numpy(np.stack([x for _, x in self._learned]))
        return quality(*(features(extractor, some) for some in (x, learned, drawn)))


def hits_by_class(model: Classifier, x: Tensor, labels: Sequence[str | None]) -> dict[str, tuple[int, int]]:
    """Label → (records that are put into their class, records), of those with a label."""
    rows = [row for row, label in enumerate(labels) if label is not None]
    right: Counter[str] = Counter()
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        probabilities = model.classify(x[some])  # (B, K)
        if probabilities.shape[1]:
            found = [model.classes[number] for number in probabilities.argmax(1).tolist()]
            right.update(label for row, label in zip(some, found, strict=True) if label == labels[row])
    return {label: (right[label], count) for label, count in Counter(label for label in labels if label).items()}


def accuracy(hits: Mapping[str, tuple[int, int]]) -> float:
    """Share of the records that are put into their class."""
    return sum(right for right, _ in hits.values()) / sum(count for _, count in hits.values())


@torch.no_grad()
def features(extractor: Backbone, x: Tensor) -> Tensor:
    """x (N, C, H, W) uint8 → (N, D) float32 on the CPU."""
    device = next(extractor.parameters()).device
    return torch.cat([extractor(pixels(some.to(device))).cpu() for some in torch.split(x, CHUNK)])


def mean_bytes(x: Tensor) -> float:
    """Texts (N, L) of code points → their mean length in UTF-8."""
    lengths = 1 + (x > 0x7F).int() + (x > 0x7FF).int() + (x > 0xFFFF).int()
    return ((x != 0) * lengths).sum().item() / len(x)
