"""A user's own learner, as small as they come: the nearest class mean behind a random projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.learner import Batch, Blueprint, Options, Report, State, copy_into, module_on, structural
from models.network import widened


class MeansOptions(Options):
    """`dim` is what records are projected to."""

    dim: int = structural(16, ge=1)


class Means(nn.Module):
    """Projection (D, pixels), sums of the projected records (K, D), counts (K,)."""

    projection: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, pixels: int, dim: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = list(classes)
        self.register_buffer("projection", torch.empty(dim, pixels))
        self.register_buffer("sums", torch.empty(len(classes), dim))
        self.register_buffer("counts", torch.empty(len(classes)))

    def project(self, x: Tensor) -> Tensor:  # (B, C, H, W) → (B, D)
        return x.flatten(1).float() / 255 @ self.projection.T

    def classify(self, x: Tensor) -> Tensor:
        means = self.sums / self.counts[:, None]  # (K, D)
        distances = (self.project(x)[:, None] - means).square().sum(2)  # (B, K)
        return (-distances).softmax(1)


class MeansLearner:
    """Adds every record to its class's sum."""

    needs_label = True
    replay_capacity = 0
    replay_size = 0

    def __init__(self, options: MeansOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
        pixels = torch.Size(shape).numel()
        self.model = module_on(lambda: Means(pixels, options.dim, ()), device)
        generator = torch.Generator("cpu").manual_seed(seed)
        self.model.projection.copy_(torch.randn(options.dim, pixels, generator=generator))

    def refuses(self, labels: Sequence[str | None]) -> Mapping[int, str]:
        return {}

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        if None in batch.labels:
            raise ValueError("a record has no label. Drop it.")
        labels = [str(label) for label in batch.labels]
        known = list(self.model.classes)
        p = self.model.classify(batch.x)  # (B, K)
        predicted = [known[k] for k in p.argmax(1)] if known else [None] * len(batch)
        hits = [p[row, known.index(label)] for row, label in enumerate(labels) if label in known]
        self._grow([label for label in dict.fromkeys(labels) if label not in known])
        rows = torch.tensor([self.model.classes.index(label) for label in labels], device=batch.x.device)
        self.model.sums.index_add_(0, rows, self.model.project(batch.x))
        self.model.counts.index_add_(0, rows, torch.ones(len(rows), device=rows.device))
        loss = -torch.stack(hits).clamp_min(1e-6).log().mean().item() if hits else 0.0
        return Report(loss, predicted)

    def capture(self) -> State:
        return State(dict(self.model.state_dict()), {}, {"classes": list(self.model.classes)})

    def restore(self, state: State) -> None:
        self._grow(state.meta["classes"][len(self.model.classes) :])
        copy_into(self.model.state_dict(), state.serving)

    def _grow(self, labels: Sequence[str]) -> None:
        self.model.classes.extend(labels)
        self.model.sums = widened(self.model.sums, len(labels))
        self.model.counts = widened(self.model.counts, len(labels))


def model(options: MeansOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> Means:
    return module_on(lambda: Means(torch.Size(shape).numel(), options.dim, meta["classes"]), torch.device("cpu"))


blueprint = Blueprint(MeansOptions, MeansLearner, model, "image")
