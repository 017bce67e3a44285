"""Image classifier that cannot forget: a head in closed form over fixed features. No gradient, no stored pictures.

What is known of a picture, u, are wavelet moduli (`wavelets`), or what a frozen `Backbone` makes of it: its features,
or, where `layers` are named, their maps averaged over `CELLS` × `CELLS` places, each layer with length 1. z is u less
its own mean, with length 1, and the head sees random features of it (random projection before a ridge: McDonnell et
al. 2023, "RanPAC"):

    φ(x) = (P z + 1)²,   P ∈ {-1, 1}^{D × d}

A linear function of them is a quadratic one of z, in D random directions. With ReLU in place of the square, which that
paper takes, more records are mistaken, at any D (figures in docs/learners/image-analytic.md).

With `mirror`, five of six features are the mean of φ(x) and that of the mirror image x', and the sixth is half of half
their difference:

    (φ(x) + φ(x')) / 2,   (φ(x) - φ(x')) / 4

To a ridge that is as if whatever tells a picture from its mirror image were a quarter as likely to matter. Wavelets of
x' are those of x in another order, so that it costs no more than another P z. Patches count half as much beside them.

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

import hashlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.analytic import LoggedSums
from models.analytic_learner import AT_ONCE, NOTHING_ELSE, AnalyticLearner, AnalyticModel, AnalyticOptions, Beside, Look
from models.familiarity import FAMILIAR, STEPS, Acquaintance, contrast, distances, projected, signs, whole as sixteenths
from models.images.backbone import Backbone, BackboneOptions, references
from models.images.patches import Patches
from models.images.wavelets import Wavelets
from models.learner import NOTHING, Blueprint, Frozen, Reference, Start, State, module_on, structural
from models.network import pixels

CELLS = 3  # of a side: where maps are averaged
PATCHES, PATCHES_MIRRORED = Fraction(2, 3), Fraction(2, 5)  # of the features, beside wavelets
PATCHES_COUNT = 1 / 2  # beside mirrored wavelets
SIDED, AS_MUCH = Fraction(1, 6), 1 / 2  # of those of wavelets, the share that tells sides apart, and how much it counts


class ImageAnalyticOptions(AnalyticOptions):
    """`width` is D, the number of features: a state of 4 D² bytes."""

    ridge: float | None = Field(None, gt=0)  # λ, in records; none: the one by which the sums promise the least error
    width: int = structural(3000, before=2000, ge=8, le=16_384)
    patches: bool = structural(True, before=False)  # two fifths of the features, beside wavelets
    mirror: bool = structural(True, before=False)  # most features of a picture are those of its mirror image, too
    features: BackboneOptions | None = structural(None)  # what takes the place of the wavelets


class BackboneFeatures(nn.Module):
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
    mirrored: Tensor  # the same for mirror images
    mean: Tensor  # of v, (d + 1,)
    whitener: Tensor  # (d + 1, d + 1)

    def __init__(
        self,
        extractor: Wavelets | BackboneFeatures,
        patches: Patches | None,
        width: int,
        classes: Sequence[str],
        unknown: float,
        mirror: bool,
    ) -> None:
        super().__init__(width, classes, unknown)
        self.extractor, self.patches = extractor, patches
        random = width - (patches.dim if patches else 0)
        order = extractor.mirrored() if mirror and isinstance(extractor, Wavelets) else None
        self._sided = None if order is None else int(random * SIDED)
        random -= self._sided or 0
        self.reads = (width, extractor.dim, random)
        self.register_buffer("projection", signs(random, extractor.dim), persistent=False)
        if order is not None:
            self.register_buffer("mirrored", self.projection[:, order], persistent=False)
        numbers = min(random, FAMILIAR) + 1
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("whitener", torch.zeros(numbers, numbers))

    def look(self, x: Tensor, whole: Mapping[int, Tensor] = NOTHING_ELSE) -> Look:
        pictures = pixels(x)
        u = self.extractor(pictures)
        seen = projected(u, self.projection)  # (B, D)
        v = sixteenths(torch.cat([seen[:, :FAMILIAR].cpu().double(), contrast(pictures)], 1))  # (B, d + 1)
        features = seen.add_(1).square_()
        if self._sided is not None:
            features = both_sides(features, projected(u, self.mirrored).add_(1).square_(), self._sided)
        if self.patches is not None:
            patches = self.patches(x)
            features = torch.cat([features, patches if self._sided is None else patches.mul_(PATCHES_COUNT)], 1)
        features = features.mul_(STEPS).round_().div_(STEPS)
        strange = distances(v.to(self.mean), self.mean, self.whitener)
        return Look(features, self.weight.new_zeros(()), strange, v, torch.zeros(0, 2, dtype=torch.int64))

    def reads_as(self, other: Self) -> bool:
        return super().reads_as(other) and alike(self.extractor, other.extractor)

    def younger(self) -> dict[str, Tensor]:
        return {**super().younger(), "mean": self.mean, "whitener": self.whitener}


class BesidePictures(Beside[ImageAnalytic]):
    """How strange pictures are, and the backbone that never changes."""

    def __init__(self, model: ImageAnalytic, options: ImageAnalyticOptions, device: torch.device) -> None:
        super().__init__(model, options, LoggedSums(options.width, device))
        self._acquaintance = Acquaintance(len(model.mean))
        self._constant = Frozen()
        self._looked: dict[bytes, Tensor] = {}  # digest of a picture → φ (D,), of those of the last `looks`

    def looks(self, x: Tensor) -> Sequence[Look]:
        if not isinstance(self.model.extractor, Wavelets):  # the last bits of a backbone's are a matter of the batch
            return super().looks(x)
        digests = [_digest(picture) for picture in x.cpu()]
        new = [row for row, digest in enumerate(digests) if digest not in self._looked]
        found = [row.clone() for look in super().looks(x[new]) for row in look.features] if new else []
        looked = self._looked | {digests[row]: features for row, features in zip(new, found, strict=True)}
        self._looked = {digest: looked[digest] for digest in digests}
        features = torch.stack([looked[digest] for digest in digests])  # (N, D)
        nothing = self.model.weight.new_zeros(())
        return [
            Look(some, nothing, nothing, nothing, torch.zeros(0, 2, dtype=torch.int64))
            for some in torch.split(features, AT_ONCE)
        ]

    def meet(self, look: Look, y: Tensor, sign: int) -> None:
        self._acquaintance.add(look.v, sign=sign, forgetting=self.options.forgetting)

    def join(self, other: Self, numbers: Tensor) -> None:
        self._acquaintance.merge(other._acquaintance)

    def fit(self) -> None:
        model = self.model
        for buffer, value in zip((model.mean, model.whitener, model.familiar), self._acquaintance.fit(), strict=True):
            buffer.copy_(value)

    def capture(self, state: State) -> State:
        state = State(state.serving, {**state.training, **self._acquaintance.capture()}, state.meta)
        extractor = self.model.extractor
        if isinstance(extractor, Wavelets):
            return state
        constant = {f"extractor.{name}": tensor for name, tensor in extractor.state_dict().items()}
        meta = {**state.meta, "features": extractor.backbone.describe()}
        return State({**state.serving, **self._constant.rows(constant)}, state.training, meta)

    def restore(self, state: State, rest: Callable[[State], None]) -> None:
        rest(state)
        if familiar := {name: t for name, t in state.training.items() if name.startswith("familiar/")}:
            self._acquaintance.restore(familiar)  # versions of before have none
        self._constant.restored()


def untrained(
    options: ImageAnalyticOptions, shape: tuple[int, ...], start: Start, classes: Sequence[str], device: torch.device
) -> ImageAnalytic:
    """Everything but what is learned."""
    extractor: Wavelets | BackboneFeatures
    if options.features is None:
        extractor, most = Wavelets(shape), int(options.width * (PATCHES_MIRRORED if options.mirror else PATCHES))
        patches = Patches(shape, most, halved=not options.mirror) if options.patches else None
    else:
        backbone = Backbone.of_start(options.features, start, "features")
        extractor, patches = BackboneFeatures(backbone, options.features), None
    width, unknown, mirror = options.width, options.unknown, options.mirror
    return module_on(lambda: ImageAnalytic(extractor, patches, width, classes, unknown, mirror), device).eval()


def _digest(picture: Tensor) -> bytes:
    return hashlib.blake2b(picture.contiguous().numpy().tobytes(), digest_size=16).digest()


def both_sides(features: Tensor, mirrored: Tensor, sided: int) -> Tensor:
    """φ of pictures (B, D) and of their mirror images → (B, D + sided): what they have in common, and of the first
    features what they have not."""
    apart = (features[:, :sided] - mirrored[:, :sided]) * (AS_MUCH / 2)
    return torch.cat([features.add_(mirrored).div_(2), apart], 1)


def alike(one: Wavelets | BackboneFeatures, other: Wavelets | BackboneFeatures) -> bool:
    """Whether two extractors of the same size give the same features."""
    if not (isinstance(one, BackboneFeatures) and isinstance(other, BackboneFeatures)):
        return type(one) is type(other)
    ours, theirs = one.state_dict(), other.state_dict()
    return one.backbone.describe() == other.backbone.describe() and all(
        torch.equal(tensor, theirs[name].to(tensor.device)) for name, tensor in ours.items()
    )


def learner(
    options: ImageAnalyticOptions, shape: tuple[int, ...], seed: int, device: torch.device, start: Start = NOTHING
) -> AnalyticLearner[ImageAnalytic]:
    return AnalyticLearner(BesidePictures(untrained(options, shape, start, (), device), options, device), device)


def model(options: ImageAnalyticOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> ImageAnalytic:
    return untrained(options, shape, State({}, {}, meta), meta["classes"], torch.device("cpu"))


def sources(options: ImageAnalyticOptions) -> dict[str, Reference]:
    return references(options.features)


BLUEPRINT = Blueprint(ImageAnalyticOptions, learner, model, "image", sources, started=learner)
