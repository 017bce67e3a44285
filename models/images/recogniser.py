"""Image recogniser: classes of which there are few pictures, by closed form over a frozen backbone.

    u(x) = mean over moves v of (pool(M_l(v x)) / |pool(M_l(v x))|)_l

M_l are the maps of a `Backbone`, averaged over `cells` × `cells` parts of the picture, each layer with length 1; with
cells = 0, u is what the backbone's own head would be given. v leaves the picture where it is, or moves it by
`shift_pixels` to one of four sides: strided convolutions see a picture differently when it is moved by less than their
stride (Zhang 2019, "Making convolutional networks shift-invariant again"), and a few pictures of a class are too few
for that to average out. What is computed from u is in `recognition`: nothing is trained, an update adds to counts,
sums and second moments, so that the order of records does not matter.

Without a backbone u are wavelet moduli (`wavelets`) in `PROJECTED` random directions (`familiarity`), with length 1.
Then no source tells what makes pictures of one class differ. So each record is seen `COPIES` times more, warped a
little (`warping`), always in the same ways, and how these differ from it is S₀. A record of which it is asked how
strange it would be had it not been learned must not tell S₀ either: it is judged by that of other records. For that
they are in `FOLDS` parts.

Threshold and sharpness come from up to `calibration_pictures` records of each class, kept as features: those whose ids
have the smallest digests, which is a uniform sample whatever the order (bottom-k, Cohen and Kaplan 2007).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.capabilities import Recogniser
from models.familiarity import projected, signs
from models.images.backbone import Backbone, BackboneOptions, references
from models.images.recognition import FAMILIARITY, NEVER, background, distances, fit, shrunk
from models.images.warping import Warp, warped
from models.images.wavelets import Wavelets
from models.labels import Labels, likeliest
from models.learner import (
    NOTHING,
    Batch,
    Blueprint,
    Frozen,
    Report,
    Rows,
    Source,
    Start,
    State,
    copy_into,
    module_on,
    structural,
)
from models.network import pixels, widened
from models.replaying import Labelled

MAX_DIM = 2048  # of u: covariances are D × D, in double precision
PROJECTED = 512  # of u without a backbone
COPIES, TURN_DEGREES, SCALE_PERCENT, SHIFT = 8, 15, 15, 1 / 14  # the last of a picture's side
FOLDS = 4  # of the records, by their ids
PICTURES = 256  # of a source that go through the backbone at once


class ImageRecogniserOptions(BackboneOptions):
    """What the backbone is, if there is one, and how records are compared."""

    needs_backbone = False

    cells: int = structural(3, ge=0, le=8)  # maps are averaged over so many parts of a side; 0: the backbone's features
    shift_pixels: int = structural(1, ge=0)  # pictures are seen in five places, so far from each other; 0: in one
    source_statistics: bool = structural(True)  # of a version: S₀ and d_0 from its replay memory
    shrinkage: float = structural(2.0, gt=0)  # λ of what a source tells
    prior_records: float = Field(300.0, gt=0)  # ν
    false_rejection: float = Field(0.1, gt=0, lt=0.5)  # share of pictures of known classes that may be called unknown
    calibration_pictures: int = structural(8, ge=2)  # of a class, kept as features
    max_classes: int = Field(1000, ge=1)  # a label beyond them is dead-lettered


class Moduli(nn.Module):
    """Features of pictures of one shape (C, H, W), without a backbone. Buffers are never stored."""

    signs: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.wavelets = Wavelets(shape)
        self.dim = PROJECTED
        self.register_buffer("signs", signs(PROJECTED, self.wavelets.dim), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures (B, C, H, W) float32 in [0, 1] → (B, dim) float32 of length 1"""
        return F.normalize(projected(self.wavelets(pictures), self.signs).float()).to(pictures.device)


class ImageRecogniser(nn.Module, Recogniser):
    """What is served."""

    background_mean: Tensor
    background_whitener: Tensor
    whitener: Tensor
    means: Tensor
    surplus: Tensor
    sharpness: Tensor
    threshold: Tensor

    def __init__(
        self, backbone: Backbone | Moduli, cells: int, shift_pixels: int, relative: bool, classes: Sequence[str]
    ) -> None:
        super().__init__()
        self.classes = list(classes)
        self.backbone = backbone
        self._cells, self.relative = cells, relative
        if isinstance(backbone, Moduli):
            self.dim, self._shift = backbone.dim, 0
        else:
            self.dim, self._shift = sum(backbone.channels) * cells**2 if cells else backbone.width, shift_pixels
        if self.dim > MAX_DIM:
            raise ValueError(f"the backbone gives {self.dim} features, more than {MAX_DIM}: fewer layers or cells do.")
        zero = torch.zeros(())
        if relative:
            self.register_buffer("background_mean", torch.zeros(self.dim))
            self.register_buffer("background_whitener", torch.zeros(self.dim, self.dim))
        self.register_buffer("whitener", torch.eye(self.dim))
        self.register_buffer("means", torch.zeros(len(self.classes), self.dim))
        self.register_buffer("surplus", torch.zeros(len(self.classes)))
        self.register_buffer("sharpness", zero + 1)
        self.register_buffer("threshold", zero + NEVER)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) uint8 → u (B, D) float32"""
        seen = [self._seen(moved) for moved in shifted(pixels(x.to(self.whitener.device)), self._shift)]
        return torch.stack(seen).mean(0)

    def _seen(self, pictures: Tensor) -> Tensor:
        if isinstance(self.backbone, Moduli):
            return self.backbone(pictures)  # type: ignore[no-any-return]
        if not self._cells:
            return F.normalize(self.backbone(pictures))
        pooled = [F.adaptive_avg_pool2d(maps, self._cells).flatten(1) for maps in self.backbone.maps(pictures)]
        return torch.cat([F.normalize(each) for each in pooled], 1)

    def answer(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, D) → log-probabilities (B, K), and (B,) s(u): how little it resembles the nearest class.

        In double precision: a distance is a small difference between large numbers.
        """
        if not self.classes:
            return u.new_zeros(len(u), 0), u.new_full((len(u),), math.inf)
        d = distances(u, self.whitener, self.means) - self.surplus  # (B, K)
        logs = (-0.5 * self.sharpness * d).log_softmax(1).float()
        return logs, d.min(1).values - FAMILIARITY * self.familiar(u)

    def familiar(self, u: Tensor) -> Tensor:
        """u (B, D) → d_0 (B,) float64"""
        if not self.relative:
            return u.new_zeros(len(u), dtype=torch.float64)
        return distances(u, self.background_whitener, self.background_mean[None])[:, 0]

    @torch.no_grad()
    def recognise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) uint8 → probabilities (B, K) float32, and (B,) bool: it resembles none of them."""
        logs, scores = self.answer(self.features(x))
        return logs.exp(), scores > self.threshold


def shifted(x: Tensor, by: int) -> list[Tensor]:
    """x (B, C, H, W), and x moved by so many pixels down, up, right and left; what is uncovered repeats the border."""
    if not by:
        return [x]
    height, width = x.shape[2:]
    wide = F.pad(x, (by, by, by, by), mode="replicate")
    corners = [(by, by), (0, by), (2 * by, by), (by, 0), (by, 2 * by)]
    return [wide[:, :, top : top + height, left : left + width] for top, left in corners]


class ImageRecogniserLearner(Labelled):
    """Counts and sums."""

    needs_label = True
    replay_capacity = replay_size = 0

    def __init__(
        self,
        options: ImageRecogniserOptions,
        shape: tuple[int, ...],
        seed: int,
        device: torch.device,
        start: Start = NOTHING,
    ) -> None:
        model = untrained(options, shape, start, ()).to(device)
        self.options, self.model, self._device = options, model, device
        dim, slots, backbone = model.dim, options.calibration_pictures, model.backbone
        self._labels = Labels(model.classes, options.max_classes)
        if isinstance(backbone, Moduli):  # of warped records, added up: of each fold
            self._within = torch.zeros(FOLDS, dim, dim, dtype=torch.float64, device=device)
        else:
            layers = len(backbone.channels) if options.cells else 1
            # |u|² is the number of layers. Without a source, a tenth of it is within classes, in no direction more.
            self._within = 0.1 * layers / dim * torch.eye(dim, dtype=torch.float64, device=device)
        self._warped = torch.zeros(FOLDS, dtype=torch.int64, device=device)  # records of each fold
        self._counts = torch.zeros(0, dtype=torch.int64, device=device)
        self._sums = torch.zeros(0, dim, dtype=torch.float64, device=device)
        self._moments = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._kept = torch.zeros(0, slots, dim, device=device)
        self._kept_ids = torch.zeros(0, slots, 16, dtype=torch.uint8)
        self._kept_counts = torch.zeros(0, dtype=torch.int64)
        self._served, self._prior = Frozen(), Frozen()
        if model.relative and not isinstance(start, State):
            self._compare_with(start["source"])

    def _compare_with(self, source: Source) -> None:
        """Takes S₀ and d_0 from the replay memory of a version.

        Raises:
            ValueError: it has none.
        """
        size = source.meta.get("memory", {}).get("size", 0)
        if "memory/x" not in source.training or not size:
            raise ValueError(
                "the source has no replay memory in this version, so its statistics are unknown. "
                "Name another, or set source_statistics = false."
            )
        x, y = source.training["memory/x"][:size], source.training["memory/y"][:size]
        u = torch.cat([self.model.features(part) for part in torch.split(x, PICTURES)])
        statistics = background(u, y.to(self._device), self.options.shrinkage)
        self._within = statistics.within
        self.model.background_mean.copy_(statistics.mean)
        self.model.background_whitener.copy_(statistics.whitener)

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        if None in batch.labels:
            raise ValueError("a recogniser was given a record without a label. Drop it: `needs_label` is true.")
        classes = list(self.model.classes)
        self._labels.new(batch.labels)  # raises before anything is learned
        u = self.model.features(batch.x)
        logs, scores = self.model.answer(u)
        unknown = scores > self.model.threshold
        self._grow(self._labels.new(batch.labels))
        numbers = self._labels.numbers(batch.labels)
        self._add(u, numbers, batch.ids)
        if isinstance(self.model.backbone, Moduli):
            self._warp(batch.x, u, batch.ids)
        self._fit()
        return self._report(logs, unknown, numbers, likeliest(logs, classes))

    def _report(self, logs: Tensor, unknown: Tensor, numbers: Sequence[int], predicted: Sequence[str | None]) -> Report:
        """The report of an update. A record of a new class counts as an even guess among all classes of now."""
        even = -math.log(len(self.model.classes))
        old = [row for row, number in enumerate(numbers) if number < logs.shape[1]]
        chances = [even] * (len(numbers) - len(old)) + [logs[row, numbers[row]].item() for row in old]
        metrics = {}
        if old:
            metrics["false_rejections"] = unknown[old].float().mean().item()
        if len(old) < len(numbers):
            new = [row for row, number in enumerate(numbers) if number >= logs.shape[1]]
            metrics["rejections_of_new"] = unknown[new].float().mean().item()
        return Report(-math.fsum(chances) / len(chances), predicted, metrics)

    def _add(self, u: Tensor, numbers: Sequence[int], ids: Tensor) -> None:
        y = torch.tensor(numbers, device=self._device)
        chosen = F.one_hot(y, len(self._counts)).to(torch.float64)  # a product has a fixed order of summation
        self._counts += chosen.sum(0).to(torch.int64)
        self._sums += chosen.T @ u.double()
        self._moments += u.double().T @ u.double()
        for number in set(numbers):
            rows = [row for row, each in enumerate(numbers) if each == number]
            self._keep(number, u[rows], ids[rows])

    def _warp(self, x: Tensor, u: Tensor, ids: Tensor) -> None:
        shift = SHIFT * min(x.shape[2:])
        warp = Warp(turn_degrees=TURN_DEGREES, scale_percent=SCALE_PERCENT, shift_pixels=shift)
        for picture, seen, fold in zip(x, u, self._fold(ids).tolist(), strict=True):
            copies = warped(picture.expand(COPIES, *picture.shape), warp, torch.Generator().manual_seed(0))
            away = (self.model.features(copies) - seen).double()
            if self._is_folded:
                self._within[fold] += away.T @ away / COPIES
                self._warped[fold] += 1
            else:
                self._within += away.T @ away / COPIES

    def _fold(self, ids: Tensor) -> Tensor:
        """ids (B, 16) → which fold (B,) each record is of"""
        return ids[:, -1].long() % FOLDS

    def _keep(self, number: int, u: Tensor, ids: Tensor) -> None:
        """Offers records of one class: those with the smallest digests stay, each once."""
        before, slots = int(self._kept_counts[number]), self._kept.shape[1]
        ids = torch.cat([self._kept_ids[number, :before], ids])
        u = torch.cat([self._kept[number, :before], u])
        rows = {bytes(digest): row for row, digest in reversed(list(enumerate(ids.tolist())))}
        best = [rows[digest] for digest in sorted(rows)[:slots]]
        self._kept_counts[number] = len(best)
        self._kept_ids[number, : len(best)] = ids[best]
        self._kept[number, : len(best)] = u[best]

    def _fit(self) -> None:
        held = (torch.arange(self._kept.shape[1]) < self._kept_counts[:, None]).to(self._device)  # (K, slots)
        kept = self._kept[held]
        found = fit(
            self._counts,
            self._sums,
            self._moments,
            *self._before(),
            kept,
            self._fold(self._kept_ids[held.cpu()]).to(self._device),
            held.nonzero()[:, 0],
            self.model.familiar(kept),
            prior_records=self.options.prior_records,
            false_rejection=self.options.false_rejection,
        )
        for name in ("whitener", "means", "surplus", "sharpness", "threshold"):
            getattr(self.model, name).copy_(getattr(found, name))

    def _before(self) -> tuple[Tensor, Tensor]:
        """S₀ (D, D), and what it is without the records of each fold (F, D, D); F is 0 where that makes no difference
        or is not known."""
        within, shrinkage = self._within, self.options.shrinkage
        if not isinstance(self.model.backbone, Moduli):
            return within, within[:0, None]
        if not self._is_folded:
            return shrunk(within / self._counts.sum(), shrinkage), within[:0, None]
        whole = shrunk(within.sum(0) / self._counts.sum(), shrinkage)
        others = zip(within.sum(0) - within, self._warped.sum() - self._warped, strict=True)
        return whole, torch.stack([shrunk(each / n, shrinkage) if n else whole for each, n in others])

    @property
    def _is_folded(self) -> bool:
        """Whether what S₀ is made of is known of each fold: without a backbone, but not in versions of before."""
        return self._within.dim() == 3

    def _grow(self, labels: Sequence[str]) -> None:
        count = len(labels)
        for name in ("_counts", "_sums", "_kept", "_kept_ids", "_kept_counts"):
            setattr(self, name, widened(getattr(self, name), count))
        self.model.means, self.model.surplus = widened(self.model.means, count), widened(self.model.surplus, count)
        self._labels.add(labels)

    def capture(self) -> State:
        weights = self.model.state_dict()
        constant = {name: value for name, value in weights.items() if name.startswith(("backbone.", "background_"))}
        within, backbone = {"within": self._within}, self.model.backbone
        grows = isinstance(backbone, Moduli)
        training: dict[str, Tensor | Rows] = {**self._statistics(), **(within if grows else self._prior.rows(within))}
        meta = {
            "classes": list(self.model.classes),
            "backbone": None if isinstance(backbone, Moduli) else backbone.describe(),
            "relative": self.model.relative,
        }
        return State({**weights, **self._served.rows(constant)}, training, meta)

    def restore(self, state: State) -> None:
        self._grow(self._labels.beyond(state.meta["classes"]))
        copy_into(self.model.state_dict(), state.serving)
        if "warped" not in state.training:  # of a backbone, and in versions of before
            self._within = self._within.view(-1, *self._within.shape[-2:])[0]
        copy_into({**self._statistics(), "within": self._within}, state.training)
        self._served.restored()
        self._prior.restored()

    def _statistics(self) -> dict[str, Tensor]:
        return {
            "counts": self._counts,
            "sums": self._sums,
            "moments": self._moments,
            "kept/u": self._kept,
            "kept/ids": self._kept_ids,
            "kept/counts": self._kept_counts,
            **({"warped": self._warped} if self._is_folded else {}),
        }


def untrained(
    options: ImageRecogniserOptions, shape: tuple[int, ...], start: Start, classes: Sequence[str]
) -> ImageRecogniser:
    """Everything but what is learned."""
    if isinstance(start, State):
        has_backbone, relative = start.meta["backbone"] is not None, start.meta["relative"]
    else:
        has_backbone, relative = options.has_backbone, options.source is not None and options.source_statistics
    backbone = Backbone.of_start(options, start, "backbone") if has_backbone else Moduli(shape)
    return module_on(
        lambda: ImageRecogniser(backbone, options.cells, options.shift_pixels, relative, classes), torch.device("cpu")
    ).eval()


def model(options: ImageRecogniserOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> ImageRecogniser:
    return untrained(options, shape, State({}, {}, meta), meta["classes"])


BLUEPRINT = Blueprint(
    ImageRecogniserOptions, ImageRecogniserLearner, model, "image", references, started=ImageRecogniserLearner
)
