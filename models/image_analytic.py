"""Image classifier that cannot forget: a head in closed form over fixed features. No gradient, no stored pictures.

What is known of a picture, u, are wavelet moduli (`wavelets`), or what a frozen `Backbone` makes of it: its features,
or, where `layers` are named, their maps averaged over `CELLS` × `CELLS` places, each layer with length 1. z is u less
its own mean, with length 1, and the head sees random features of it (random projection before a ridge: McDonnell et
al. 2023, "RanPAC"):

    φ(x) = (P z + 1)²,   P ∈ {-1, 1}^{D × d}

A linear function of them is a quadratic one of z, in D random directions. With ReLU in place of the square, which that
paper takes, more records are mistaken, at any D (figures in docs/image-analytic.md).

P's signs come from a hash of their places, so that they are the same everywhere and are never stored. Less its mean,
since what a backbone gives is mostly above 0: otherwise what all pictures have in common would be most of P z in a row
of P whose signs do not add up to 0. With length 1, so that contrast does not count. Nothing of it is fitted to the
stream, whose beginning would then decide what features are.

z is rounded to whole units, so that P z is exact, whatever order a processor adds in. φ is rounded to multiples of
1/16, so that the sums of its products are exact. So what is learned of a record does not depend on its batch (over a
backbone: as far as what the backbone makes of it does not).

The head is solved from sums over all records (`analytic`) now and then (`analytic_learner`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.analytic_learner import AnalyticLearner, AnalyticModel, AnalyticOptions
from models.backbone import Backbone, BackboneOptions, references
from models.learner import Blueprint, Frozen, Reference, Source, State, module_on, structural
from models.network import pixels
from models.wavelets import Wavelets

CELLS = 3  # of a side: where maps are averaged
UNITS = 1 << 16  # of 1, to which z is rounded: ±z added up in units stay below 2²⁴, as floats are whole, for d < 60,000
STEPS = 16  # of 1, to which φ is
MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))  # SplitMix64's finaliser (Steele et al. 2014)


class ImageAnalyticOptions(AnalyticOptions):
    """`width` is D, the number of random features: a state of 2 D² bytes."""

    width: int = structural(2000, ge=8, le=16_384)
    features: BackboneOptions | None = structural(None)  # what takes the place of the wavelets


class Seen(nn.Module):
    """What a frozen backbone makes of pictures: its features, or means of the maps of its layers."""

    def __init__(self, backbone: Backbone, options: BackboneOptions) -> None:
        super().__init__()
        self.backbone, self.maps = backbone, bool(options.layers)
        self.dim = sum(backbone.channels) * CELLS**2 if self.maps else backbone.width

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures (B, C, H, W) float32 in [0, 1] → (B, d) float32"""
        if not self.maps:
            return self.backbone(pictures)  # type: ignore[no-any-return]
        pooled = [F.adaptive_avg_pool2d(maps, CELLS).flatten(1) for maps in self.backbone.maps(pictures)]
        return torch.cat([F.normalize(each) for each in pooled], 1)


class ImageAnalytic(AnalyticModel):
    """Pictures are (B, C, H, W) uint8, of the shape that `extractor` is for."""

    projection: Tensor

    def __init__(self, extractor: Wavelets | Seen, width: int, classes: Sequence[str]) -> None:
        super().__init__(width, classes)
        self.extractor = extractor
        self.reads = (width, extractor.dim)
        self.register_buffer("projection", signs(width, extractor.dim), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        u = self.extractor(pixels(x)).cpu().double()  # not every device has double precision
        z = F.normalize(u - u.mean(1, keepdim=True))  # (B, d)
        units = (z * UNITS).round().to(self.projection)
        projected = (units @ self.projection.T).div_(UNITS).add_(1)  # (B, D)
        return projected.square_().mul_(STEPS).round_().div_(STEPS)


class ImageAnalyticLearner(AnalyticLearner):
    """Over a backbone it has a model from `begin` or `restore` on: before, there is nothing to build."""

    _model: ImageAnalytic
    options: ImageAnalyticOptions

    def __init__(self, options: ImageAnalyticOptions, shape: tuple[int, ...], device: torch.device) -> None:
        self.options, self._device = options, device
        self._constant = Frozen()
        if options.features is None:
            self._build(Wavelets(shape))

    def begin(self, sources: Mapping[str, Source]) -> None:
        features = self.options.features
        if features is not None:
            self._build(Seen(Backbone.begun(features, sources), features))

    def merge(self, other: Self) -> None:
        if not alike(self._model.extractor, other._model.extractor):
            raise ValueError("only learners over the same backbone can be merged.")
        super().merge(other)

    def capture(self) -> State:
        state = super().capture()
        extractor = self._model.extractor
        if isinstance(extractor, Wavelets):
            return state
        constant = {f"extractor.{name}": tensor for name, tensor in extractor.state_dict().items()}
        meta = {**state.meta, "features": extractor.backbone.describe()}
        return State({**state.serving, **self._constant.rows(constant)}, state.training, meta)

    def restore(self, state: State) -> None:
        features = self.options.features
        if features is not None:
            self._build(Seen(Backbone.described(state.meta["features"]), features))
        super().restore(state)
        self._constant.restored()

    def _build(self, extractor: Wavelets | Seen) -> None:
        """Everything but what is learned."""
        network = module_on(lambda: ImageAnalytic(extractor, self.options.width, ()), self._device)
        super().__init__(network.eval(), self.options, self._device)


def signs(rows: int, columns: int) -> Tensor:
    """(rows, columns) float32 of -1 and 1: the highest bit of a hash of each place."""
    places = torch.arange(rows * columns, dtype=torch.int64)
    mixed = places * (0x9E3779B97F4A7C15 - (1 << 64))
    mixed = (mixed ^ ((mixed >> 30) & ((1 << 34) - 1))) * MIX[0]
    mixed = (mixed ^ ((mixed >> 27) & ((1 << 37) - 1))) * MIX[1]
    mixed = mixed ^ ((mixed >> 31) & ((1 << 33) - 1))
    return torch.where(mixed < 0, -1.0, 1.0).view(rows, columns)


def alike(one: Wavelets | Seen, other: Wavelets | Seen) -> bool:
    """Whether two of the same size give the same."""
    if not (isinstance(one, Seen) and isinstance(other, Seen)):
        return type(one) is type(other)
    ours, theirs = one.state_dict(), other.state_dict()
    return one.backbone.describe() == other.backbone.describe() and all(
        torch.equal(tensor, theirs[name].to(tensor.device)) for name, tensor in ours.items()
    )


def learner(
    options: ImageAnalyticOptions, shape: tuple[int, ...], seed: int, device: torch.device
) -> ImageAnalyticLearner:
    return ImageAnalyticLearner(options, shape, device)


def model(options: ImageAnalyticOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> ImageAnalytic:
    features = options.features
    extractor = Wavelets(shape) if features is None else Seen(Backbone.described(meta["features"]), features)
    return module_on(lambda: ImageAnalytic(extractor, options.width, meta["classes"]), torch.device("cpu")).eval()


def sources(options: ImageAnalyticOptions) -> dict[str, Reference]:
    return {} if options.features is None else references(options.features)


BLUEPRINT = Blueprint(ImageAnalyticOptions, learner, model, "image", sources)
