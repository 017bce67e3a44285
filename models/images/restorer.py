"""Image restorer: for each kind of damage a network that undoes it, and one that tells which; learned without labels.

Records need no label. An update draws a kind of damage k for each incoming and each replayed picture x, damages it to y
with the holes m (`degradations`), and minimises the mean over records of

    √(1/n Σ (x - x̂)² + δ²),   x̂ = y' + f_k(y', m),   δ = 0.01

(learned from its own damage, as Pathak et al. 2016 learned inpainting). The root lets a picture that is little damaged
count as much as one that is much: the gradient of its square would be dominated by the latter. y' is y with its holes
filled smoothly from what lies around them (pull-push, Gortler et al. 1996, relaxed), so that a network adds what is
missing and begins as the identity. f_k is a plain residual network without norms (EDSR: Lim et al. 2017) that stays at
full size, where drawn pictures have their edges; blocks (He et al. 2016) see further by dilated convolutions (Yu and
Koltun 2016). For the kind "holes" all that is not missing is kept as it is.

Kinds share no weight. In one network they got into each other's way (figures in docs), and so nothing that is learned
of one kind is lost to another. A record passes through one of the networks: eight take the time of one.

Blind, the kind is that which a small classifier q(k | y, m) finds likeliest; it learns from the same records, by
cross-entropy. Reported: the loss, PSNR and SSIM of x̂ for the incoming records, the PSNR of y, and how often the kind
was recognised, from the pass that learns, before the step. What is served is a moving average of the weights (Polyak
and Juditsky 1992).

PSNR = -10 log₁₀ (1/n Σ (x - y)²) dB for pictures in [0, 1]. SSIM as Wang, Bovik, Sheikh and Simoncelli 2004, "Image
quality assessment: from error visibility to structural similarity", eq. 13, with their Gaussian window of 11 × 11 and
σ = 1.5, at the places where all of it lies within the picture, channel by channel; the mean of all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.images.degradations import KINDS, Damaged, Kind, damaged
from models.labels import NONE
from models.learner import Batch, Blueprint, Options, Report, State, structural
from models.memory import PolicyName, ReplayMemory
from models.moving_average import decay_of_records
from models.network import Residual, pixels, root, seeded, served
from models.replaying import LabelledNetwork, ReplayingLearner

FLOOR = 0.01  # δ: what is nearer than 40 dB pulls less and less
STEP = 0.1  # what a network's last layer is scaled by: a step of Adam moves a pixel by a few units of 1/255, not 100
MIN_SIDE = 16
DILATIONS = (1, 2, 4)  # of the blocks, over and over
SIDE, SIGMA = 11, 1.5  # of the window of SSIM, pixels
C1, C2 = 0.01**2, 0.03**2
#: that of the error of rounding to 8 bits, 1/12 of a squared step: what is closer counts as this close, since equal
#: pictures have no finite PSNR and no mean would survive one
MOST_DB = 58.92
RELAXATIONS = 8  # of what is put into holes, at each size


class ImageRestorerOptions(Options):
    """`depth` is the number of blocks of each kind's network, `width` that of channels."""

    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    damages: tuple[Kind, ...] = Field(KINDS, min_length=1)  # the kinds taught, each as often as the others
    average_records: int = Field(10_000, ge=0)  # half-life of the average, at first a twentieth of what was seen
    width: int = structural(24, ge=1)
    depth: int = structural(4, ge=1, le=256)
    replay_slots: int = structural(2000, ge=0)
    replay_policy: PolicyName = structural("reservoir")
    replay_draws: int = Field(32, ge=0)  # records replayed in each update


def dilated(width: int, dilation: int) -> Residual:
    """Convolution, ReLU, convolution; added to what came in."""
    first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
    return Residual(first=first, relu=nn.ReLU(), second=nn.Conv2d(width, width, 3, padding=1))


class RestoringNetwork(nn.Sequential):
    """f_k: maps (B, C + 1, H, W) → what is to be added (B, C, H, W)"""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        blocks = [dilated(width, DILATIONS[number % len(DILATIONS)]) for number in range(depth)]
        stem, out = nn.Conv2d(channels + 1, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        super().__init__(OrderedDict(stem=stem, blocks=nn.Sequential(*blocks), out=out))


class DamageClassifier(nn.Module):
    """q: maps (B, C + 1, H, W) → (B, kinds) logits"""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = (channels + 1, width, 2 * width, 4 * width)
        self.halved = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1], len(KINDS))

    def forward(self, maps: Tensor) -> Tensor:
        for halved in self.halved:
            maps = F.relu(halved(maps))
        logits: Tensor = self.out(maps.mean((2, 3)))
        return logits


class ImageRestorer(LabelledNetwork):
    """The networks: a `Restorer` of pictures with the channels of `shape`, of any size from `MIN_SIDE` on."""

    _taught: Tensor  # (K,) int64, indices of `KINDS`

    def __init__(self, options: ImageRestorerOptions, shape: tuple[int, ...], classes: Sequence[str]) -> None:
        super().__init__()
        self.classes, channels = list(classes), shape[0]
        self.kinds: Sequence[str] = options.damages
        self.register_buffer("_taught", torch.tensor([KINDS.index(kind) for kind in self.kinds]), persistent=False)
        self.networks = nn.ModuleDict(
            {kind: RestoringNetwork(channels, options.width, options.depth) for kind in KINDS}
        )
        self.recogniser = DamageClassifier(channels, options.width)

    def forward(self, x: Tensor, numbers: Tensor, holes: Tensor) -> Tensor:
        """x (B, C, H, W) in [0, 1], numbers (B,) of `KINDS`, holes (B, 1, H, W) bool → (B, C, H, W)"""
        missing = holes.to(x.dtype)
        filled = fill(x, 1 - missing)
        maps, restored = seen(filled, missing), filled.clone()
        for number in sorted(set(numbers.tolist())):
            rows = (numbers == number).nonzero()[:, 0]
            restored[rows] = filled[rows] + STEP * self.networks[KINDS[number]](maps[rows])
        kept = ~holes & (numbers == KINDS.index("holes"))[:, None, None, None]
        return torch.where(kept, x, restored)

    def diagnose(self, x: Tensor, holes: Tensor) -> Tensor:
        """x (B, C, H, W) in [0, 1], holes (B, 1, H, W) bool → (B, len(KINDS)) logits, -∞ for what is not taught"""
        untaught = torch.ones(len(KINDS), dtype=torch.bool, device=x.device).index_fill(0, self._taught, False)
        logits: Tensor = self.recogniser(seen(x, holes.to(x.dtype)))
        return logits.masked_fill(untaught, -torch.inf)

    @torch.no_grad()
    def restore(self, x: Tensor, kinds: Sequence[str | None], holes: Tensor | None = None) -> Tensor:
        """A `Restorer`'s answer, on the CPU. Each picture is restored by itself: its bits depend on nothing else.

        Raises:
            KeyError: a kind that was not taught.
        """
        for kind in kinds:
            if kind is not None and kind not in self.kinds:
                raise KeyError(f"{kind} is no damage that this model was taught: {', '.join(self.kinds)}.")
        if not len(x):
            return x.cpu()
        missing = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool) if holes is None else holes
        rows = [self._restored(*row) for row in zip(x[:, None], kinds, missing[:, None], strict=True)]
        return (255 * torch.cat(rows).clamp(0, 1)).round().to(torch.uint8).cpu()

    def _restored(self, x: Tensor, kind: str | None, holes: Tensor) -> Tensor:
        """One picture (1, C, H, W) uint8 → float32"""
        x, holes = pixels(x.to(self._taught.device)), holes.to(self._taught.device)
        number = self.diagnose(x, holes).argmax(1) if kind is None else self._taught.new_tensor([KINDS.index(kind)])
        restored: Tensor = self(x, number, holes)
        return restored


def seen(x: Tensor, missing: Tensor) -> Tensor:
    """What networks are given: x (B, C, H, W) from -1 to 1, and missing (B, 1, H, W), 0 or 1.

    Channels last in memory: of 24 channels, oneDNN convolves them in 34 to 59 % of the time on one core.
    """
    return torch.cat([2 * x - 1, missing], 1).contiguous(memory_format=torch.channels_last)


def fill(x: Tensor, there: Tensor) -> Tensor:
    """x (B, C, H, W), known (B, 1, H, W), 0 or 1 → x where it is known, and else what lies around it, smoothly.

    Pull: means of 2 × 2, and how much of each was known. Push: the coarser picture stands where the finer is unknown,
    and is relaxed towards Laplace's equation, under which each missing pixel is the mean of its four neighbours
    (multigrid: Brandt 1977). On 128 tiles with holes that is 1.3 dB and 0.06 of SSIM above no relaxation.
    """
    levels = [(x * there, there)]
    while max(levels[-1][0].shape[2:]) > 1:
        levels.append(tuple(F.avg_pool2d(maps, 2, ceil_mode=True) for maps in levels[-1]))  # type: ignore[arg-type]
    sums, weights = levels.pop()
    filled = sums / weights.clamp_min(1e-6)
    for sums, weights in reversed(levels):
        filled = sums + (1 - weights) * F.interpolate(filled, sums.shape[2:], mode="bilinear")
        for _ in range(RELAXATIONS):
            near = F.pad(filled, (1, 1, 1, 1), mode="replicate")
            across, along = near[:, :, :-2, 1:-1] + near[:, :, 2:, 1:-1], near[:, :, 1:-1, :-2] + near[:, :, 1:-1, 2:]
            filled = sums + (1 - weights) * (across + along) / 4
    return filled


def losses(x: Tensor, y: Tensor) -> Tensor:
    """x, y (B, C, H, W) → (B,) √(mean (x - y)² + δ²)"""
    return root((x - y).square().flatten(1).mean(1) + FLOOR**2)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """x, y (B, C, H, W) in [0, 1] → (B,) dB, at most `MOST_DB`."""
    return (-10 * (x - y).square().flatten(1).mean(1).log10()).clamp_max(MOST_DB)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """x, y (B, C, H, W) in [0, 1], no side below 11 → (B,), 1 for equal pictures."""
    count, channels = x.shape[:2]
    offsets = torch.arange(SIDE, dtype=x.dtype, device=x.device) - SIDE // 2
    window = (-0.5 * (offsets / SIGMA).square()).exp()
    window = window / window.sum()
    maps = torch.cat([x, y, x * x, y * y, x * y]).flatten(0, 1)[:, None]  # (5BC, 1, H, W)
    means = F.conv2d(F.conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))  # the window is a product
    x1, y1, xx, yy, xy = means.view(5, count, channels, *means.shape[2:])  # (B, C, H - 10, W - 10) each
    squares, product = x1 * x1 + y1 * y1, x1 * y1
    similarity: Tensor = (2 * product + C1) * (2 * (xy - product) + C2) / ((squares + C1) * (xx + yy - squares + C2))
    return similarity.flatten(1).mean(1)


class ImageRestorerLearner(ReplayingLearner[ImageRestorer]):
    """Learns an `ImageRestorer`: incoming and replayed pictures, damaged afresh, in one pass, then one AdamW step."""

    needs_label = False

    def __init__(self, options: ImageRestorerOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
        if min(shape[1:]) < MIN_SIDE:
            raise ValueError(f"image-restorer needs {MIN_SIDE} pixels on each side, not {shape[1]} × {shape[2]}.")
        self.options = options
        network = identical_at_first(seeded(lambda: ImageRestorer(options, shape, ()), seed, device))
        memory = ReplayMemory(options.replay_slots, shape, torch.uint8, device, options.replay_policy)
        super().__init__(network, options, memory, device, classes=0, averaged=True)
        self._seen = 0

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        count = len(batch)
        replayed = self._memory.draw(self.options.replay_draws, rng)
        x = pixels(torch.cat([batch.x.to(self._device), replayed.x]))  # (B + R, C, H, W)
        y, numbers = self._damaged(x, rng)
        restored, logits = self._learning(y.x, numbers, y.holes), self._learning.diagnose(y.x, y.holes)
        loss = losses(x, restored)  # (B + R,)
        (loss.mean() + F.cross_entropy(logits, numbers)).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

        self._seen += count
        self._average.move(decay_of_records(count, min(self.options.average_records, self._seen / 20)))
        self._memory.add(batch, [NONE] * count, rng)
        x, shown = x[:count], restored[:count].detach().clamp(0, 1)
        metrics = {"psnr_db": psnr(x, shown), "ssim": ssim(x, shown), "input_psnr_db": psnr(x, y.x[:count])}
        metrics["kind_accuracy"] = (logits.argmax(1) == numbers)[:count].float()
        return Report(loss[:count].mean().item(), metrics={name: of.mean().item() for name, of in metrics.items()})

    def _damaged(self, x: Tensor, rng: torch.Generator) -> tuple[Damaged, Tensor]:
        """The pictures damaged, and (B,) by which of `KINDS`."""
        taught = torch.tensor([KINDS.index(kind) for kind in self.options.damages])
        kinds = taught[torch.randint(len(taught), (len(x),), generator=rng)]
        return damaged(x, kinds, rng), kinds.to(self._device)

    def capture(self) -> State:
        state = super().capture()
        return State(state.serving, state.training, {**state.meta, "seen": self._seen})

    def restore(self, state: State) -> None:
        super().restore(state)
        self._seen = state.meta["seen"]


def identical_at_first(network: ImageRestorer) -> ImageRestorer:
    """Makes each network, and each of its blocks, the identity.

    With random blocks, noise alone was removed to 25.5 dB after 180 updates, and with these to 26.1 (one seed).
    """
    for name, weight in network.networks.named_parameters():
        if name.endswith(("second.weight", "out.weight")):
            nn.init.zeros_(weight)
    return network


model = served(ImageRestorer)
BLUEPRINT = Blueprint(ImageRestorerOptions, ImageRestorerLearner, model, "image")
