"""Image classifier that cannot forget: a head in closed form over fixed features. No gradient, no stored pictures.

Features are wavelet moduli behind a random projection (`wavelets`). The head is solved from sums over all records
(`analytic`) now and then (`analytic_learner`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from models.analytic_learner import AnalyticLearner, AnalyticModel, AnalyticOptions
from models.learner import Blueprint, module_on, structural
from models.network import pixels
from models.wavelets import Wavelets


class ImageAnalyticOptions(AnalyticOptions):
    """`width` is D, the number of random features: a state of 2 D² bytes."""

    ridge: float = Field(1e-5, gt=0)  # λ
    width: int = structural(2000, ge=8, le=16_384)


class ImageAnalytic(AnalyticModel):
    """Pictures of `shape` (C, H, W)."""

    def __init__(self, shape: tuple[int, ...], width: int, classes: Sequence[str]) -> None:
        super().__init__(width, classes)
        self.wavelets = Wavelets(shape, width)
        self.reads = (width, self.wavelets.dim)

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.wavelets(pixels(x))
        return found


def learner(options: ImageAnalyticOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> AnalyticLearner:
    network = module_on(lambda: ImageAnalytic(shape, options.width, ()), device)
    return AnalyticLearner(network, options, device)


def model(options: ImageAnalyticOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> ImageAnalytic:
    return module_on(lambda: ImageAnalytic(shape, options.width, meta["classes"]), torch.device("cpu")).eval()


BLUEPRINT = Blueprint(ImageAnalyticOptions, learner, model, "image")
