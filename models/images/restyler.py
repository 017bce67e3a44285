"""Image restyler: a network that gives any picture the style of a stream, in one pass.

Johnson, Alahi and Fei-Fei 2016, "Perceptual losses for real-time style transfer and super-resolution". Records with the
label `style_label` are styles, all others contents. φ_l are the maps of a frozen `Backbone`, φ_0 the colours themselves
and a constant one, x̂ = x + f(x) the restyled picture; an update minimises the mean over incoming and replayed contents

    c C(x̂, x) + s S(x̂) + v TV(x̂) + 10 · mean (x̂ - clamp(x̂))²
    C = Σ_p a_p |φ_L(x̂)_p - φ_L(x)_p|² / Σ_p a_p |φ_L(x)_p|²,   L the deepest of the maps
    S = mean_l |G_l(x̂) - Ḡ_l|² / (|Ḡ_l|² + |G_l(x)|²),   G_l(x) = Σ_p a_p φ_l(x)_p φ_l(x)_pᵀ / Σ_p a_p
    TV = mean |x̂_p - x̂_q| over neighbours p, q (Rudin, Osher and Fatemi 1992, anisotropic)

a is the picture's alpha, averaged to the size of the maps (guided Gram matrices: Gatys et al. 2017, "Controlling
perceptual factors in neural style transfer"), 1 where there is none: what is transparent has no style, and stays as it
is, as does alpha itself.

Ḡ is the mean Gram matrix of the styles, of all until there were `style_window`, then one whose past fades. One network
has one style, and for it the mean is all there is to know: E|G - G_s|² over styles s is |G - E G_s|² and a constant, so
that targets drawn from a memory of styles would have the same gradient, only noisier. Contents have a replay memory.
Until a style is learned S is left out: the network, which begins as the identity, goes on reproducing contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.images.backbone import Backbone, BackboneOptions, references
from models.labels import NONE
from models.learner import NOTHING, Batch, Blueprint, Frozen, Report, Start, State, copy_into, structural
from models.memory import PolicyName, ReplayMemory
from models.network import Normed, Residual, pixels, seeded, served
from models.replaying import LabelledNetwork, ReplayingLearner

MIN_SIDE = 16
EXCESS = 10.0  # weight of what is beyond black and white


class ImageRestylerOptions(BackboneOptions):
    """`width` is the number of channels at full size; each halving doubles it."""

    style_label: str = "style"
    content_weight: float = Field(1.0, ge=0)  # c
    style_weight: float = Field(40.0, ge=0)  # s
    variation_weight: float = Field(0.1, ge=0)  # v
    style_window: int = Field(10_000, ge=1)  # styles that the mean of their Gram matrices remembers
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    width: int = structural(16, ge=1)
    depth: int = structural(2, ge=1, le=4)  # halvings
    blocks: int = structural(3, ge=1, le=256)  # residual ones, at the smallest size
    replay_slots: int = structural(1000, ge=0)
    replay_policy: PolicyName = structural("reservoir")
    replay_draws: int = Field(8, ge=0)  # contents replayed in each update


def block(width: int) -> Residual:
    """Two units, added to what came in. Each map of each record is normalised alone (Ulyanov et al. 2016)."""
    first, second = Normed(width, width, width), Normed(width, width, width)
    return Residual(first=first, relu=nn.ReLU(inplace=True), second=second)


class ImageRestyler(LabelledNetwork):
    """The network: a `Restyler` of pictures with the channels of `shape`, of any size from `MIN_SIDE` on."""

    def __init__(self, options: ImageRestylerOptions, shape: tuple[int, ...], classes: Sequence[str]) -> None:
        super().__init__()
        self.classes, channels = list(classes), shape[0]
        self.colours = channels - (channels in (2, 4))  # the others are alpha
        self.stride = 2**options.depth
        widths = [options.width * 2**level for level in range(options.depth + 1)]
        steps = list(pairwise(widths))
        self.stem = Normed(self.colours + 1, widths[0], widths[0], kernel=5)
        self.down = nn.ModuleList(Normed(a, b, b, stride=2) for a, b in steps)
        self.middle = nn.Sequential(*(block(widths[-1]) for _ in range(options.blocks)))
        self.up = nn.ModuleList(Normed(b, a, a) for a, b in reversed(steps))
        self.out = nn.Conv2d(widths[0], self.colours, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [0, 1] → (B, C, H, W), colours not clamped"""
        colour, alpha = x[:, : self.colours], opacity(x, self.colours)
        shown = torch.cat([2 * (colour * alpha + 0.5 * (1 - alpha)) - 1, alpha], 1)
        height, width = x.shape[2:]
        maps = F.pad(shown, (0, -width % self.stride, 0, -height % self.stride), mode="reflect")
        maps = torch.relu_(self.stem(maps))
        for unit in self.down:
            maps = torch.relu_(unit(maps))
        maps = self.middle(maps)
        for unit in self.up:
            maps = torch.relu_(unit(F.interpolate(maps, scale_factor=2.0, mode="nearest")))
        changed = colour + self.out(maps)[:, :, :height, :width] * (alpha > 0)
        return torch.cat([changed, x[:, self.colours :]], 1)

    @torch.no_grad()
    def restyle(self, x: Tensor) -> Tensor:
        """A `Restyler`'s answer, on the CPU. Each picture is restyled by itself: its bits depend on nothing else."""
        if not len(x):
            return x.cpu()
        device = self.out.weight.device
        restyled = torch.cat([self(pixels(picture[None].to(device))) for picture in x])
        return (255 * restyled.clamp(0, 1)).round().to(torch.uint8).cpu()


def opacity(x: Tensor, colours: int) -> Tensor:
    """Alpha (B, 1, H, W) of pictures; 1 where they have none."""
    return x[:, colours:] if x.shape[1] > colours else torch.ones_like(x[:, :1])


def gram(maps: Tensor, alpha: Tensor) -> Tensor:
    """maps (B, c, h, w), alpha (B, 1, h, w) → G (B, c, c)"""
    flat, weights = maps.flatten(2), alpha.flatten(2)
    return (flat * weights) @ flat.transpose(1, 2) / weights.sum(2, keepdim=True).clamp_min(1e-6)


def style_loss(grams: Sequence[Tensor], contents: Sequence[Tensor], styles: Sequence[Tensor]) -> Tensor:
    """G_l(x̂) and G_l(x) (B, c, c), Ḡ_l (c, c) of each layer → S (B,)"""
    layers = [
        (g - s).square().sum((1, 2)) / (s.square().sum() + c.square().sum((1, 2)))
        for g, c, s in zip(grams, contents, styles, strict=True)
    ]
    return torch.stack(layers).mean(0)


def content_loss(maps: Tensor, content: Tensor, alpha: Tensor) -> Tensor:
    """φ_L of restyled pictures and of contents (B, c, h, w), alpha (B, 1, h, w) → C (B,)"""
    apart = (alpha * (maps - content).square()).flatten(1).sum(1)
    return apart / (alpha * content.square()).flatten(1).sum(1).clamp_min(1e-6)


def variation(x: Tensor) -> Tensor:
    """x (B, C, H, W) → TV (B,)"""
    across, along = (x[..., 1:] - x[..., :-1]).abs(), (x[..., 1:, :] - x[..., :-1, :]).abs()
    return across.flatten(1).mean(1) + along.flatten(1).mean(1)


class ImageRestylerLearner(ReplayingLearner[ImageRestyler]):
    """Learns an `ImageRestyler`: one AdamW step a batch."""

    needs_label = False

    def __init__(
        self,
        options: ImageRestylerOptions,
        shape: tuple[int, ...],
        seed: int,
        device: torch.device,
        start: Start = NOTHING,
    ) -> None:
        if min(shape[1:]) < MIN_SIDE:
            raise ValueError(f"image-restyler needs {MIN_SIDE} pixels on each side, not {shape[1]} × {shape[2]}.")
        self.options = options
        network = seeded(lambda: ImageRestyler(options, shape, ()), seed, device)
        nn.init.zeros_(network.out.weight)  # it begins as the identity
        memory = ReplayMemory(options.replay_slots, shape, torch.uint8, device, options.replay_policy)
        super().__init__(network, options, memory, device, classes=0, averaged=False)
        self._frozen = Frozen()
        self._backbone = Backbone.of_start(options, start, "features").to(device)
        widths = [network.colours + 1, *self._backbone.channels]
        self._styles = [torch.zeros(width, width, device=device) for width in widths]  # Ḡ_l
        self._styles_seen = torch.zeros((), dtype=torch.int64)

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        shown = [label == self.options.style_label for label in batch.labels]
        styles, rows = ([row for row, style in enumerate(shown) if style == wanted] for wanted in (True, False))
        incoming = batch.x[rows].to(self._device)
        x = pixels(torch.cat([incoming, self._memory.draw(self.options.replay_draws, rng).x]))  # (I + R, C, H, W)
        report = self._step(x, len(rows) or len(x)) if len(x) else Report(0.0)
        if styles:
            self._add_styles(pixels(batch.x[styles].to(self._device)))
        if rows:
            contents = Batch(batch.x[rows], [None] * len(rows), batch.origins[rows], batch.ids[rows])
            self._memory.add(contents, [NONE] * len(rows), rng)
        return report

    def _step(self, x: Tensor, count: int) -> Report:
        """One step on these contents, and what it was like for the first `count` of them."""
        options, colours = self.options, self.model.colours
        restyled = self.model(x)
        with torch.no_grad():
            content = [self._colours(x), *self._backbone.maps(x)]
        maps = [self._colours(restyled), *self._backbone.maps(restyled)]
        alphas = self._opacities(x, maps)
        colour = restyled[:, :colours]
        excess = (colour - colour.clamp(0, 1)).square().flatten(1).mean(1)
        found = {"content_loss": content_loss(maps[-1], content[-1], alphas[-1])}
        losses = options.content_weight * found["content_loss"] + EXCESS * excess  # (I + R,)
        losses = losses + options.variation_weight * variation(colour)
        if self._styles_seen:
            grams, before = ([gram(m, a) for m, a in zip(each, alphas, strict=True)] for each in (maps, content))
            found["style_loss"] = style_loss(grams, before, self._styles)
            losses = losses + options.style_weight * found["style_loss"]
        losses.mean().backward()
        self._optimizer.step()
        means = torch.stack([each[:count].detach().mean() for each in (losses, *found.values())]).tolist()
        return Report(means[0], metrics=dict(zip(found, means[1:], strict=True)))

    @torch.no_grad()
    def _add_styles(self, x: Tensor) -> None:
        """Moves the mean Gram matrices to those of styles (B, C, H, W), by their share of what is remembered."""
        maps = [self._colours(x), *self._backbone.maps(x)]
        self._styles_seen += len(x)
        share = len(x) / min(int(self._styles_seen), max(self.options.style_window, len(x)))
        for mean, each, alpha in zip(self._styles, maps, self._opacities(x, maps), strict=True):
            mean.lerp_(gram(each, alpha).mean(0), share)

    def _colours(self, x: Tensor) -> Tensor:
        """φ_0: (B, C, H, W) → (B, colours + 1, H, W)"""
        return torch.cat([x[:, : self.model.colours], torch.ones_like(x[:, :1])], 1)

    def _opacities(self, x: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Alpha of pictures at the size of each of the maps."""
        alpha = opacity(x, self.model.colours)
        return [F.adaptive_avg_pool2d(alpha, (each.shape[2], each.shape[3])) for each in maps]

    def capture(self) -> State:
        state = super().capture()
        features = {f"features/{name}": tensor for name, tensor in self._backbone.state_dict().items()}
        training = {**state.training, **self._statistics(), **self._frozen.rows(features)}
        return State(state.serving, training, {**state.meta, "features": self._backbone.describe()})

    def restore(self, state: State) -> None:
        super().restore(state)
        features = {f"features/{name}": tensor for name, tensor in self._backbone.state_dict().items()}
        kept = {k: v for k, v in state.training.items() if not k.startswith(("optimizer/", "memory/"))}
        copy_into({**self._statistics(), **features}, kept)
        self._frozen.restored()

    def _statistics(self) -> dict[str, Tensor]:
        """style/seen (), style/<layer> (c, c)"""
        return {"style/seen": self._styles_seen, **{f"style/{k}": mean for k, mean in enumerate(self._styles)}}


model = served(ImageRestyler)
BLUEPRINT = Blueprint(
    ImageRestylerOptions, ImageRestylerLearner, model, "image", references, started=ImageRestylerLearner
)
