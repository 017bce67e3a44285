"""Image generator: a convolutional variational autoencoder, conditional on the label where there is one.

Kingma and Welling 2014, "Auto-encoding variational Bayes"; conditional as in Sohn et al. 2015. With pixels x in
[0, 1], condition c and latent code z, an update minimises the mean over incoming and replayed records of

    -log p(x | z, c) + β · KL(q(z | x, c) ‖ N(0, I)),    z = μ + σ ⊙ ε,  ε ~ N(0, I)

The reported loss has β = 1: the negative evidence lower bound, in nats per record. Likelihoods, summed over pixels:
"bernoulli", -Σ x log p + (1 - x) log(1 - p), the cross-entropy with the pixel as a probability; "gaussian",
Σ ½ ((x - m) / s)² + log s + ½ log 2π with one learned s a channel (σ-VAE, Rybkin et al. 2021). Norms are per record
(GroupNorm), so that a drawing never depends on what else is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.generator import DrawingNetwork
from models.labels import NONE
from models.learner import Batch, Blueprint, Options, Report, module_on, structural
from models.memory import PolicyName, ReplayMemory
from models.network import pixels, seeded
from models.replaying import ReplayingLearner

GROUPS = 8
MIN_LOG_SCALE = math.log(1 / 255)  # a Gaussian is never narrower than one step of a pixel


class ImageVaeOptions(Options):
    """`width` is the number of channels at half the size, and half of it after that."""

    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    beta: float = Field(1.0, ge=0)
    likelihood: Literal["bernoulli", "gaussian"] = structural("bernoulli")
    latent: int = structural(16, ge=1)
    width: int = structural(32, ge=GROUPS, multiple_of=GROUPS)
    label_dim: int = structural(32, ge=1)
    label_dropout: float = Field(0.1, ge=0, lt=1)  # share of records that are learned as if they had no label
    max_classes: int = Field(1000, ge=1)  # a label beyond them is dead-lettered
    replay_slots: int = structural(2000, ge=0)
    replay_policy: PolicyName = structural("reservoir")
    replay_draws: int = Field(96, ge=0)  # records replayed in each update


class Conditions(nn.Module):
    """A vector for "no label" (row 0, begun at zero) and one a class (begun at random, so that it counts at once)."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1 + classes, dim))

    def forward(self, numbers: Tensor) -> Tensor:  # (B,) int64, NONE without a label → (B, dim)
        chosen = F.one_hot(numbers - NONE, len(self.weight)).to(self.weight.dtype)
        return chosen @ self.weight  # a product: its gradient has a fixed order of summation on every device

    def grow(self, rows: Tensor) -> None:
        """Adds a class for each of the rows (K, dim)."""
        with torch.no_grad():
            self.weight = nn.Parameter(torch.cat([self.weight, rows.to(self.weight.device)]))


class ImageVae(DrawingNetwork):
    """The network. `shape` is (C, H, W); H and W are multiples of 4."""

    def __init__(self, options: ImageVaeOptions, shape: tuple[int, ...], classes: Sequence[str]) -> None:
        super().__init__()
        channels, height, width = shape
        if height % 4 or width % 4:
            raise ValueError(f"image-vae needs a height and width that are multiples of 4, not {height} × {width}.")
        self.shape, self.latent = shape, options.latent
        self.classes = list(classes)
        self.likelihood = options.likelihood
        halvings = 2
        while not (height >> halvings) % 2 and not (width >> halvings) % 2 and max(height, width) >> halvings > 8:
            halvings += 1
        narrow, wide = options.width, 2 * options.width
        self.base = (wide, height >> halvings, width >> halvings)
        size = math.prod(self.base)

        self.conditions = Conditions(len(self.classes), options.label_dim)
        widths = [channels, narrow] + [wide] * (halvings - 1)
        self.down = nn.Sequential(*(Down(*pair) for pair in pairwise(widths)))
        self.posterior = nn.Linear(size + options.label_dim, 2 * options.latent)
        self.dense = nn.Linear(options.latent + options.label_dim, size)
        widths = [wide] * (halvings - 1) + [narrow]
        self.up = nn.Sequential(*(Up(*pair) for pair in pairwise(widths)))
        self.out = nn.Conv2d(narrow, 4 * channels, 3, padding=1)
        self.log_scale = nn.Parameter(torch.empty(channels)) if options.likelihood == "gaussian" else None

    def posterior_of(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) in [0, 1], condition (B, D) → μ and log σ² of q(z | x, c), (B, Z) each"""
        maps = self.down(2 * x - 1).flatten(1)
        mean, log_variance = self.posterior(torch.cat([maps, condition], 1)).chunk(2, 1)
        return mean, log_variance.clamp(-12, 8)

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """z (B, Z), condition (B, D) → (B, C, H, W): logits (Bernoulli) or means (Gaussian) of the pixels"""
        maps = F.silu(self.dense(torch.cat([z, condition], 1))).view(-1, *self.base)
        return F.pixel_shuffle(self.out(self.up(maps)), 2)

    def losses(self, x: Tensor, numbers: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) in [0, 1], numbers (B,), noise (B, Z) → (B,) -log p(x | z, c) and (B,) KL, in nats"""
        condition = self.conditions(numbers)
        mean, log_variance = self.posterior_of(x, condition)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        decoded = self.decode(mean + (0.5 * log_variance).exp() * noise, condition)
        if self.log_scale is None:
            pixel_losses = F.binary_cross_entropy_with_logits(decoded, x, reduction="none")
        else:
            log_scale = self.log_scale.clamp_min(MIN_LOG_SCALE)[:, None, None]
            pixel_losses = 0.5 * ((x - decoded) / log_scale.exp()).square() + log_scale + 0.5 * math.log(2 * math.pi)
        return pixel_losses.flatten(1).sum(1), kl

    def shades(self, z: Tensor, numbers: Tensor) -> Tensor:
        """z (B, Z), class numbers (B,) → (B, C, H, W) the mean pictures"""
        decoded = self.decode(z, self.conditions(numbers))
        return decoded.sigmoid() if self.likelihood == "bernoulli" else decoded

    @torch.no_grad()
    def encode(self, x: Tensor, labels: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) uint8 → mean and standard deviation of q(z | x, c), (B, Z) each.

        Raises:
            KeyError: a label that was never learned.
        """
        device = self.dense.weight.device
        condition = self.conditions(torch.tensor(self.numbers(labels), device=device))
        mean, log_variance = self.posterior_of(pixels(x.to(device)), condition)
        return mean.cpu(), (0.5 * log_variance).exp().cpu()

    @torch.no_grad()
    def evaluate(self, x: Tensor, labels: Sequence[str | None]) -> float:
        """Mean of -log p(x | z, c) + KL over records that are not learned, in nats, with the same noise every time.

        A label that was never learned counts as none.
        """
        device = self.dense.weight.device
        numbers = self.numbers([label if label in self.classes else None for label in labels])
        noise = torch.randn(len(x), self.latent, generator=torch.Generator("cpu").manual_seed(0))
        reconstruction, kl = self.losses(pixels(x.to(device)), torch.tensor(numbers, device=device), noise.to(device))
        return (reconstruction + kl).mean().item()


class Down(nn.Module):
    """Halves the picture: convolution, norm, SiLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(GROUPS, after)

    def forward(self, maps: Tensor) -> Tensor:
        return F.silu(self.norm(self.convolution(maps)))


class Up(nn.Module):
    """Doubles the picture: sub-pixel convolution (Shi et al. 2016), norm, SiLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, 4 * after, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, after)

    def forward(self, maps: Tensor) -> Tensor:
        return F.silu(self.norm(F.pixel_shuffle(self.convolution(maps), 2)))


class ImageVaeLearner(ReplayingLearner):
    """Learns an `ImageVae`: incoming and replayed records in one pass, then one AdamW step."""

    needs_label = False
    model: ImageVae

    def __init__(self, network: ImageVae, options: ImageVaeOptions, memory: ReplayMemory, device: torch.device) -> None:
        self.options = options
        super().__init__(
            network,
            memory,
            device,
            max_classes=options.max_classes,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
        )

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        self._grow(self._labels.new(batch.labels), rng)
        numbers = self._labels.numbers(batch.labels)
        replayed = self._memory.draw(self.options.replay_draws, rng)
        x = pixels(torch.cat([batch.x.to(self._device), replayed.x]))  # (B + R, C, H, W)
        y = torch.cat([torch.tensor(numbers, device=self._device), replayed.y])  # (B + R,)
        dropped = torch.rand(len(y), generator=rng) < self.options.label_dropout
        y = y.masked_fill(dropped.to(self._device), NONE)
        noise = torch.randn(len(y), self.options.latent, generator=rng).to(self._device)

        reconstruction, kl = self.model.losses(x, y, noise)
        (reconstruction + self.options.beta * kl).mean().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

        self._memory.add(batch, numbers, rng)
        return Report((reconstruction + kl)[: len(batch)].mean().item())

    def _widen(self, classes: int, rng: torch.Generator | None) -> None:
        shape = (classes, self.options.label_dim)
        self.model.conditions.grow(torch.zeros(shape) if rng is None else torch.randn(shape, generator=rng))


def learner(options: ImageVaeOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> ImageVaeLearner:
    network = seeded(lambda: ImageVae(options, shape, ()), seed, device)
    memory = ReplayMemory(options.replay_slots, shape, torch.uint8, device, options.replay_policy)
    return ImageVaeLearner(network, options, memory, device)


def model(options: ImageVaeOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> ImageVae:
    return module_on(lambda: ImageVae(options, shape, meta["classes"]), torch.device("cpu")).eval()


BLUEPRINT = Blueprint(ImageVaeOptions, learner, model, "image")
