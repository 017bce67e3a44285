"""Image restorer: a U-Net that learns from whole pictures to undo what it did to them, told which damage or blind.

Records need no label. An update draws a kind of damage for each incoming and each replayed picture x, damages it to y
with the holes m (`degradations`), and minimises the mean over records of

    √(1/n Σ (x - x̂)² + δ²),   x̂ = y' + f(y', m, k),   δ = 0.01

(learned from its own damage, as Pathak et al. 2016 learned inpainting). The root weighs kinds more evenly than the
square would: fog's squared errors are more than ten times those of noise. y' is y with its holes filled by averages of
what lies around them (pull-push, Gortler et al. 1996), so that the network adds what is missing and begins as the
identity. f is a U-Net (Ronneberger et al. 2015) whose skips are sums; residual blocks (He et al. 2016) whose normalised
maps the kind k scales and shifts (FiLM, Perez et al. 2018); and what comes up from a smaller size passes a gate for
each kind. A share `kind_dropout` of the records is learned blind, with a scale, shift and gate of their own. For the
kind "holes" all that is not missing is kept as it is.

Reported: the loss, PSNR and SSIM of x̂ for the incoming records, and the PSNR of y, from the pass that learns, before
the step. What is served is a moving average of the weights (Polyak and Juditsky 1992).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.degradations import KINDS, Damaged, Kind, damaged
from models.image_metrics import psnr, ssim
from models.labels import NONE
from models.learner import Batch, Blueprint, Options, Report, State, copy_into, module_on, structural
from models.memory import PolicyName, ReplayMemory
from models.network import pixels, seeded
from models.replaying import LabelledNetwork, ReplayingLearner

GROUPS = 8
FLOOR = 0.01  # δ: what is nearer than 40 dB pulls less and less
STEP = 0.1  # what the network's last layer is scaled by: a step of Adam moves a pixel by a few units of 1/255, not 100
MIN_SIDE = 16


class ImageRestorerOptions(Options):
    """`width` is the number of channels at full size, twice that at half, and four times that below."""

    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    damages: tuple[Kind, ...] = Field(KINDS, min_length=1)  # the kinds taught, each as often as the others
    kind_dropout: float = Field(0.25, ge=0, le=1)  # share of records that are restored without knowing the kind
    average_records: int = Field(10_000, ge=0)  # half-life of the average that is served
    width: int = structural(24, ge=GROUPS, multiple_of=GROUPS)
    depth: int = structural(3, ge=1, le=4)  # halvings
    replay_slots: int = structural(2000, ge=0)
    replay_policy: PolicyName = structural("reservoir")
    replay_draws: int = Field(32, ge=0)  # records replayed in each update


class Block(nn.Module):
    """Convolution, norm, scale and shift, SiLU, convolution; added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Tensor, film: Tensor) -> Tensor:  # film (B, 2 · width)
        inner: Tensor = self.second(F.silu(told(self.norm(self.first(maps)), film)))
        return maps + inner


def told(maps: Tensor, film: Tensor) -> Tensor:
    """maps (B, D, H, W) scaled and shifted by film (B, 2D)"""
    scale, shift = film[:, :, None, None].chunk(2, 1)
    return maps * (1 + scale) + shift


class ImageRestorer(LabelledNetwork):
    """The network: a `Restorer` of pictures with `channels`, of any size from `MIN_SIDE` on."""

    def __init__(self, options: ImageRestorerOptions, channels: int) -> None:
        super().__init__()
        self.classes = []
        self.kinds: Sequence[str] = options.damages
        self.stride = 2**options.depth
        widths = [options.width * min(2**level, 4) for level in range(options.depth + 1)]
        self.stem = nn.Conv2d(channels + 1, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(Block(width) for width in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.middle = nn.ModuleList([Block(widths[-1]), Block(widths[-1])])
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(Block(width) for width in widths[:-1])
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.out = nn.Conv2d(widths[0], channels, 3, padding=1)
        self._gates = widths[-2::-1]  # of what comes up, from the smallest size on
        self._films = [2 * width for width in (*widths, *widths[::-1], widths[0])]  # of the blocks, and before `out`
        self.film = nn.Linear(1 + len(KINDS), sum(self._films), bias=False)
        self.gate = nn.Linear(1 + len(KINDS), sum(self._gates), bias=False)

    def forward(self, x: Tensor, numbers: Tensor, holes: Tensor) -> Tensor:
        """x (B, C, H, W) in [0, 1], numbers (B,) of `KINDS` or NONE, holes (B, 1, H, W) bool → (B, C, H, W)"""
        height, width = x.shape[2:]
        padding = (0, -width % self.stride, 0, -height % self.stride)
        missing = F.pad(holes.to(x.dtype), padding, mode="reflect")
        filled = fill(F.pad(x, padding, mode="reflect"), 1 - missing)
        kinds = F.one_hot(numbers - NONE, 1 + len(KINDS)).to(x.dtype)
        films = iter(self.film(kinds).split(self._films, 1))
        gates = iter(self.gate(kinds)[:, :, None, None].split(self._gates, 1))

        maps = self.stem(torch.cat([2 * filled - 1, missing], 1))
        skips = []
        for block, down in zip(self.encoder, self.down, strict=True):
            maps = block(maps, next(films))
            skips.append(maps)
            maps = down(maps)
        for block in self.middle:
            maps = block(maps, next(films))
        for block, up, skip in zip(reversed(self.decoder), reversed(self.up), reversed(skips), strict=True):
            maps = block(skip + next(gates) * F.pixel_shuffle(up(maps), 2), next(films))
        restored = (filled + STEP * self.out(F.silu(told(self.norm(maps), next(films)))))[:, :, :height, :width]
        kept = ~holes & (numbers == KINDS.index("holes"))[:, None, None, None]
        return torch.where(kept, x, restored)

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
        device = self.out.weight.device
        missing = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool) if holes is None else holes
        numbers = torch.tensor([NONE if kind is None else KINDS.index(kind) for kind in kinds], device=device)
        rows = [
            self(pixels(picture[None].to(device)), number[None], hole[None].to(device))
            for picture, number, hole in zip(x, numbers, missing, strict=True)
        ]
        return (255 * torch.cat(rows).clamp(0, 1)).round().to(torch.uint8).cpu()


def fill(x: Tensor, known: Tensor) -> Tensor:
    """x (B, C, H, W), known (B, 1, H, W), 0 or 1 → x where it is known, and else what coarser averages of it say.

    Pull: means of 2 × 2, and how much of each was known. Push: the coarser picture stands where the finer is unknown.
    """
    levels = [(x * known, known)]
    while max(levels[-1][0].shape[2:]) > 1:
        levels.append(tuple(F.avg_pool2d(maps, 2, ceil_mode=True) for maps in levels[-1]))  # type: ignore[arg-type]
    sums, weights = levels.pop()
    filled = sums / weights.clamp_min(1e-6)
    for sums, weights in reversed(levels):
        around = F.interpolate(filled, sums.shape[2:], mode="bilinear")
        filled = sums + (1 - weights) * around
    return filled


def losses(x: Tensor, y: Tensor) -> Tensor:
    """x, y (B, C, H, W) → (B,) √(mean (x - y)² + δ²)"""
    return ((x - y).square().flatten(1).mean(1) + FLOOR**2).sqrt()


class ImageRestorerLearner(ReplayingLearner):
    """Learns an `ImageRestorer`: incoming and replayed pictures, damaged afresh, in one pass, then one AdamW step."""

    needs_label = False
    model: ImageRestorer

    def __init__(
        self, network: ImageRestorer, options: ImageRestorerOptions, memory: ReplayMemory, device: torch.device
    ) -> None:
        self.options = options
        super().__init__(
            network,
            memory,
            device,
            max_classes=0,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
        )
        self._learning = network
        self.model = copy.deepcopy(network).requires_grad_(False)
        self._seen = 0

    def refuses(self, labels: Sequence[str | None]) -> Mapping[int, str]:
        return {}

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        count = len(batch)
        replayed = self._memory.draw(self.options.replay_draws, rng)
        x = pixels(torch.cat([batch.x.to(self._device), replayed.x]))  # (B + R, C, H, W)
        y, numbers = self._damaged(x, rng)
        restored = self._learning(y.x, numbers, y.holes)
        loss = losses(x, restored)  # (B + R,)
        loss.mean().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

        self._average(count)
        self._memory.add(batch, [NONE] * count, rng)
        x, shown = x[:count], restored[:count].detach().clamp(0, 1)
        metrics = {"psnr_db": psnr(x, shown), "ssim": ssim(x, shown), "input_psnr_db": psnr(x, y.x[:count])}
        return Report(loss[:count].mean().item(), metrics={name: of.mean().item() for name, of in metrics.items()})

    def _damaged(self, x: Tensor, rng: torch.Generator) -> tuple[Damaged, Tensor]:
        """The pictures damaged, and (B,) what the network is told of it."""
        taught = torch.tensor([KINDS.index(kind) for kind in self.options.damages])
        kinds = taught[torch.randint(len(taught), (len(x),), generator=rng)]
        blind = torch.rand(len(x), generator=rng) < self.options.kind_dropout
        return damaged(x, kinds, rng), kinds.masked_fill(blind, NONE).to(self._device)

    @torch.no_grad()
    def _average(self, records: int) -> None:
        """Its half-life is `average_records`, and a twentieth of what was seen until there is that much."""
        self._seen += records
        half_life = min(self.options.average_records, self._seen / 20)
        moved = 1 - 0.5 ** (records / half_life) if half_life else 1.0
        learned = [parameter.detach() for parameter in self._learning.parameters()]
        torch._foreach_lerp_(list(self.model.parameters()), learned, moved)

    def capture(self) -> State:
        state = super().capture()
        return State(state.serving, {**state.training, **self._raw()}, {**state.meta, "seen": self._seen})

    def restore(self, state: State) -> None:
        super().restore(state)
        copy_into(self._raw(), {name: v for name, v in state.training.items() if name.startswith("learning/")})
        self._seen = state.meta["seen"]

    def _raw(self) -> dict[str, Tensor]:
        """learning/<parameter>: the weights that learn; those that are served are their average"""
        return {f"learning/{name}": tensor for name, tensor in self._learning.state_dict().items()}


def _begun(network: ImageRestorer) -> ImageRestorer:
    """The identity at first, for every kind, and what comes up from smaller sizes comes in from nothing.

    With random gates, noise alone was removed to 24.3 dB after 80 updates, and with these to 24.7 (one seed).
    """
    for last in (network.out, network.gate):
        nn.init.zeros_(last.weight)
    return network


def learner(
    options: ImageRestorerOptions, shape: tuple[int, ...], seed: int, device: torch.device
) -> ImageRestorerLearner:
    if min(shape[1:]) < MIN_SIDE:
        raise ValueError(f"image-restorer needs {MIN_SIDE} pixels on each side, not {shape[1]} × {shape[2]}.")
    network = _begun(seeded(lambda: ImageRestorer(options, shape[0]), seed, device))
    memory = ReplayMemory(options.replay_slots, shape, torch.uint8, device, options.replay_policy)
    return ImageRestorerLearner(network, options, memory, device)


def model(options: ImageRestorerOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> ImageRestorer:
    return module_on(lambda: ImageRestorer(options, shape[0]), torch.device("cpu")).eval()


BLUEPRINT = Blueprint(ImageRestorerOptions, learner, model, "image")
