"""Image generator: a convolutional variational autoencoder, conditional on the label where there is one.

Kingma and Welling 2014, "Auto-encoding variational Bayes"; conditional as in Sohn et al. 2015. With pixels x in
[0, 1], condition c and latent code z, an update minimises the mean over incoming and replayed records of

    -log p(x | z, c) + w_u β · KL(q(z | x, c) ‖ N(0, I)) + f · ½ Σ_l |φ_l(x) - φ_l(x̂)|²,    z = μ + σ ⊙ ε,  ε ~ N(0, I)

The reported loss is the first two terms with w = β = 1: the negative evidence lower bound, in nats per record.
Likelihoods, summed over pixels: "bernoulli", -Σ x log p + (1 - x) log(1 - p), the cross-entropy with the pixel as a
probability; "gaussian", Σ ½ ((x - m) / s)² + log s + ½ log 2π with one learned s a channel (σ-VAE, Rybkin et al. 2021).
Norms are per record (GroupNorm), so that a drawing never depends on what else is drawn.

A drawing is decoded from z = m_c + L_c ε, with m_c and L_c L_cᵀ the moving mean and covariance of the codes of records
with its condition (`code_moments`): where z is, not where it should be. What is given and told as a code is ε.

A few hundred records are too few updates for a picture to come of them. So until there were `young_updates`, each
batch is followed by updates of replayed records alone, one for every two records that came.

w_u rises from 0 to 1 over the first `kl_warmup_updates` (Bowman et al. 2016; Sønderby et al. 2016), so that codes are
of use before they are dear. φ_l are the maps of a frozen backbone, x̂ the decoded picture (perceptual VAE: Hou et al.
2017; as a likelihood of features, Larsen et al. 2016, f is one over its variance). Only training knows the backbone.

Transfer: `source` names a version of another image-vae. Its weights and classes are where this one begins; blocks
named in `freeze` do not learn. Drawings of the source, drawn once, go on as records: L = L_target + λ L_source.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.images.backbone import Backbone
from models.images.code_moments import CodeMoments
from models.images.generator import DrawingNetwork, FeaturedOptions, drawings
from models.labels import NONE
from models.learner import (
    NOTHING,
    Batch,
    Blueprint,
    Frozen,
    Report,
    Source,
    Start,
    State,
    copy_into,
    structural,
)
from models.memory import PolicyName, ReplayMemory
from models.moving_average import PREFIX, decay_of_updates
from models.network import pixels, seeded, served
from models.replaying import ReplayingLearner, weighed

GROUPS = 8
MIN_LOG_SCALE = math.log(1 / 255)  # a Gaussian is never narrower than one step of a pixel
BLOCKS = ("down", "posterior", "dense", "up", "out")  # what can be frozen, whole or in parts: classes always learn
SAME = ("likelihood", "latent", "width", "label_dim")  # a model and its source agree in these
RECORDS_A_STEP = 2  # while it is young


class ImageVaeOptions(FeaturedOptions):
    """`width` is the number of channels at half the size, and half of it after that."""

    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    beta: float = Field(1.0, ge=0)
    kl_warmup_updates: int = Field(0, ge=0)  # over which the KL term's factor rises from 0; 0: it is there at once
    young_updates: int = Field(300, ge=0)  # until then there is one for every two records, of replayed ones alone
    average: float = structural(0.0, ge=0, lt=1)  # d: 0.99 is the last hundred updates; 0: what learns is served
    likelihood: Literal["bernoulli", "gaussian"] = structural("bernoulli")
    latent: int = structural(16, ge=1)
    width: int = structural(32, ge=GROUPS, multiple_of=GROUPS)
    label_dim: int = structural(32, ge=1)
    label_dropout: float = Field(0.1, ge=0, lt=1)  # share of records that are learned as if they had no label
    max_classes: int = Field(1000, ge=1)  # a label beyond them is dead-lettered
    replay_slots: int = structural(2000, ge=0)
    replay_policy: PolicyName = structural("balanced")  # with it each class weighs the same in an update
    replay_draws: int = Field(96, ge=0)  # records replayed in each update
    feature_weight: float = Field(1.0, ge=0)  # f


class Conditions(nn.Module):
    """A vector for "no label" (row 0, at first zero) and one a class (at first random, so that it counts at once)."""

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
        self.codes = CodeMoments(len(self.classes), options.latent)
        widths = [channels, narrow] + [wide] * (halvings - 1)
        self.down = nn.Sequential(*(down(*pair) for pair in pairwise(widths)))
        self.posterior = nn.Linear(size + options.label_dim, 2 * options.latent)
        self.dense = nn.Linear(options.latent + options.label_dim, size)
        widths = [wide] * (halvings - 1) + [narrow]
        self.up = nn.Sequential(*(up(*pair) for pair in pairwise(widths)))
        self.out = nn.Conv2d(narrow, 4 * channels, 3, padding=1)
        self.log_scale = nn.Parameter(torch.empty(channels)) if options.likelihood == "gaussian" else None

    def grow(self, classes: int, rng: torch.Generator | None) -> None:
        shape = (classes, self.conditions.weight.shape[1])
        self.conditions.grow(torch.zeros(shape) if rng is None else torch.randn(shape, generator=rng))
        self.codes.grow(classes)

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
        decoded, kl, _ = self.reconstructed(x, numbers, noise)
        return self.surprise(x, decoded), kl

    def reconstructed(self, x: Tensor, numbers: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, H, W) in [0, 1], numbers (B,), noise (B, Z) → what z is decoded to, (B,) KL, and z (B, Z)"""
        condition = self.conditions(numbers)
        mean, log_variance = self.posterior_of(x, condition)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        z = mean + (0.5 * log_variance).exp() * noise
        return self.decode(z, condition), kl, z

    def surprise(self, x: Tensor, decoded: Tensor) -> Tensor:
        """x (B, C, H, W) in [0, 1] and what `decode` gave → (B,) -log p(x | z, c) in nats"""
        if self.log_scale is None:
            pixel_losses = F.binary_cross_entropy_with_logits(decoded, x, reduction="none")
        else:
            log_scale = self.log_scale.clamp_min(MIN_LOG_SCALE)[:, None, None]
            pixel_losses = 0.5 * ((x - decoded) / log_scale.exp()).square() + log_scale + 0.5 * math.log(2 * math.pi)
        return pixel_losses.flatten(1).sum(1)

    def picture(self, decoded: Tensor) -> Tensor:
        """What `decode` gave → the mean pictures, of the same shape"""
        return decoded.sigmoid() if self.likelihood == "bernoulli" else decoded

    def shades(self, z: Tensor, numbers: Tensor) -> Tensor:
        """Codes ε (B, Z), class numbers (B,) → (B, C, H, W) the mean pictures"""
        return self.picture(self.decode(self.codes.placed(z, numbers), self.conditions(numbers)))

    @torch.no_grad()
    def encode(self, x: Tensor, labels: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) uint8 → mean and standard deviation of ε where z is of q(z | x, c), (B, Z) each.

        Raises:
            KeyError: a label that was never learned.
        """
        device = self.dense.weight.device
        numbers = torch.tensor(self.numbers(labels), dtype=torch.int64, device=device)
        mean, log_variance = self.posterior_of(pixels(x.to(device)), self.conditions(numbers))
        mean, deviation = self.codes.standardised(mean, (0.5 * log_variance).exp(), numbers)
        return mean.cpu(), deviation.cpu()

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


def down(before: int, after: int) -> nn.Module:
    """Halves the picture."""
    convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
    return nn.Sequential(OrderedDict(convolution=convolution, norm=nn.GroupNorm(GROUPS, after), silu=nn.SiLU()))


def up(before: int, after: int) -> nn.Module:
    """Doubles the picture by a sub-pixel convolution (Shi et al. 2016)."""
    convolution, shuffle = nn.Conv2d(before, 4 * after, 3, padding=1), nn.PixelShuffle(2)
    norm = nn.GroupNorm(GROUPS, after)
    return nn.Sequential(OrderedDict(convolution=convolution, shuffle=shuffle, norm=norm, silu=nn.SiLU()))


class ImageVaeLearner(ReplayingLearner[ImageVae]):
    """Learns an `ImageVae`: incoming and replayed records in one pass, then one AdamW step."""

    needs_label = False

    def __init__(
        self, options: ImageVaeOptions, shape: tuple[int, ...], seed: int, device: torch.device, start: Start = NOTHING
    ) -> None:
        self.options = options
        network = seeded(lambda: ImageVae(options, shape, ()), seed, device)
        memory = ReplayMemory(options.replay_slots, shape, torch.uint8, device, options.replay_policy)
        options.freeze_in({name: part for name, part in network.named_modules() if name.split(".")[0] in BLOCKS})
        super().__init__(network, options, memory, device, classes=options.max_classes, averaged=options.average > 0)
        self.model.codes = network.codes  # one for both: they are of the codes of the one that is served
        self._updates = 0
        features = options.backbone(start)
        self._features = features and features.to(device)
        self._sample: dict[str, Tensor] = {}
        if options.source is not None and (kept := options.source_samples):
            self._sample["source/x"] = torch.zeros(kept, *shape, dtype=torch.uint8, device=device)
            self._sample["source/y"] = torch.full((kept,), NONE, device=device)
        self._served, self._kept = Frozen(), Frozen()
        if options.source is not None and not isinstance(start, State):
            self._start_from(start["source"])

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        options, count = self.options, len(batch)
        self._grow(self._labels.new(batch.labels), rng)
        numbers = self._labels.numbers(batch.labels)
        x, y = batch.x.to(self._device), torch.tensor(numbers, device=self._device)
        found = self._learn(x, y, options.replay_draws, rng)
        self._memory.add(batch, numbers, rng)
        young = count // RECORDS_A_STEP if self._memory.size and options.replay_draws else 0
        for _ in range(min(young, options.young_updates - self._updates)):
            self._learn(x[:0], y[:0], options.replay_draws, rng)
        means = torch.stack([each[:count].detach().mean() for each in found.values()]).tolist()
        metrics = dict(zip(found, means, strict=True))
        return Report(metrics.pop("loss"), metrics=metrics)

    def _learn(self, x: Tensor, y: Tensor, draws: int, rng: torch.Generator) -> dict[str, Tensor]:
        """One step on incoming records x (B, C, H, W) of the classes (B,) and as many replayed ones; what was found of
        all of them before."""
        options = self.options
        replayed = self._memory.draw(draws, rng)
        pictures, classes = [x, replayed.x], [y, replayed.y]
        target = len(y) + len(replayed.y)
        if self._sample and options.source_weight:
            rows = torch.randint(options.source_samples, (options.source_draws,), generator=rng).to(self._device)
            pictures.append(self._sample["source/x"][rows])
            classes.append(self._sample["source/y"][rows])
        x, y = pixels(torch.cat(pictures)), torch.cat(classes)  # (N, C, H, W), (N,): incoming, replayed, the source's
        dropped = torch.rand(len(y), generator=rng) < options.label_dropout
        y = y.masked_fill(dropped.to(self._device), NONE)
        noise = torch.randn(len(y), options.latent, generator=rng).to(self._device)

        surprise, kl, distance, z = self._terms(self._learning, x, y, noise)
        warmth = min(1.0, self._updates / options.kl_warmup_updates) if options.kl_warmup_updates else 1.0  # w_u
        losses = surprise + warmth * options.beta * kl + options.feature_weight * distance  # (N,)
        even = options.replay_policy == "balanced"
        loss = (weighed(torch.cat(classes[:2]), even=even) * losses[:target]).sum()
        if len(losses) > target:
            loss = loss + options.source_weight * losses[target:].mean()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.model is not self._learning:
            with torch.no_grad():  # replayed records too: the moments of old classes follow the encoder
                surprise, kl, distance, z = self._terms(self.model, x[:target], y[:target], noise[:target])
        self._step()
        self.model.codes.add(z.detach()[:target], y[:target])
        found = {"loss": surprise + kl, "kl_nats": kl}
        return found if self._features is None else {**found, "feature_distance": distance}

    def _terms(self, network: ImageVae, x: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (N, C, H, W), y (N,), noise (N, Z) → -log p, KL and the features' distance, (N,) each, and z (N, Z)"""
        decoded, kl, z = network.reconstructed(x, y, noise)
        surprise, distance = network.surprise(x, decoded), torch.zeros_like(kl)
        if self._features is not None:
            distance = self._feature_distances(self._features, x, network.picture(decoded))
        return surprise, kl, distance, z

    def _step(self) -> None:
        self._optimizer.step()
        self._average.move(decay_of_updates(self.options.average, self._updates))
        self._updates += 1

    @staticmethod
    def _feature_distances(backbone: Backbone, x: Tensor, decoded: Tensor) -> Tensor:
        """Pictures (N, C, H, W) and their reconstructions → (N,) ½ Σ_l |φ_l(x) - φ_l(x̂)|²"""
        pairs = zip(backbone.maps(x), backbone.maps(decoded), strict=True)
        return torch.stack([0.5 * (one - other).square().flatten(1).sum(1) for one, other in pairs]).sum(0)

    def capture(self) -> State:
        state = super().capture()
        frozen = [name for name, p in self._learning.named_parameters() if not p.requires_grad]
        fixed = {name: self.model.get_parameter(name).detach() for name in frozen}
        serving = {**state.serving, **self._served.rows(fixed)}
        training = {**state.training, **self._kept.rows(self._constants())}
        features = {} if self._features is None else {"features": self._features.describe()}
        return State(serving, training, {**state.meta, **features})

    def restore(self, state: State) -> None:
        super().restore(state)
        kept = {k: v for k, v in state.training.items() if not k.startswith(("optimizer/", "memory/", PREFIX))}
        copy_into(self._constants(), kept)
        self._updates = int(self._optimizer.capture()["optimizer/step"])  # exact to 2²⁴, when all is long warm
        self._served.restored()
        self._kept.restored()

    def _constants(self) -> dict[str, Tensor]:
        """What training needs and never changes: source/x and y, features/<entry of the backbone's state dict>."""
        features = {} if self._features is None else self._features.state_dict()
        return {**self._sample, **{f"features/{name}": tensor for name, tensor in features.items()}}

    def _start_from(self, source: Source) -> None:
        """Takes its weights, its classes, and a sample of what it draws.

        Raises:
            ValueError: it is no image-vae, or of another shape, or was learned with other structural options.
        """
        shape = self.model.shape
        network = model(self.options.of_source(source, "image-vae", shape, SAME), shape, source.meta)
        copy_into(network.state_dict(), source.tensors)
        self._grow(self._labels.new(network.classes), None)
        for each in (self.model, self._learning):
            copy_into(each.state_dict(), network.state_dict())
        if self._sample:
            copy_into(self._sample, drawings(network, self.options.source_samples))


model = served(ImageVae)
BLUEPRINT = Blueprint(
    ImageVaeOptions, ImageVaeLearner, model, "image", ImageVaeOptions.references, started=ImageVaeLearner
)
