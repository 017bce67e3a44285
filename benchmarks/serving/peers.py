"""What both peers have: the newest version of the model as a module, a picture's pixels, and an answer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.client import Client
from pipeline.config import load

MODEL = "digits"


class Classifier(Protocol):
    """As `models.capabilities` has it."""

    classes: list[str]

    def classify(self, x: Tensor) -> Tensor: ...


def newest(config: str) -> Classifier:
    """The model, by the configuration's path. On one thread, as in the sampler."""
    torch.set_num_threads(1)
    with Client(load(Path(config), {})) as client:
        model: Classifier = client.pull(MODEL).module()  # type: ignore[assignment]
        return model


def pixels(file: bytes) -> Tensor:
    """A picture file → (1, H, W) uint8."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(file)).convert("L"))[None])


def answer(model: Classifier, probabilities: Tensor) -> dict[str, object]:
    """(K,) → what is answered for one picture."""
    ranked = sorted(zip(model.classes, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])
    return {"label": ranked[0][0], "probability": ranked[0][1], "probabilities": dict(ranked)}
