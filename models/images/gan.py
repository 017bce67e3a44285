"""Image generator: a generative adversarial network for small streams, conditional where there are labels.

Goodfellow et al. 2014; by default with the loss of R3GAN (Huang et al. 2024) and its advice: residual blocks that begin
as the identity (Fixup, Zhang et al. 2019), no batch norm, Adam without momentum. The loss and its penalties are in
`gan_losses`, what the discriminator is shown in `augmentation`. With weights w of the rows (below), an update

1. draws x̂ = G(z, c) for the conditions of the incoming and the replayed records x,
2. steps the discriminator on Σ w [L_D(D(T x, c), D(T' x̂, c)) + m L_D(D(T x, c), D(T x, c')) + γ/2 (R1 + R2)], T
   and T' augmentations, m = `matching`, c' another class than c (no such term without a label),
3. steps the generator on Σ w L_G(D(T x, c), D(T" x̂, c)), with the discriminator of 2,
4. moves the average of the generator, which is what is served, towards it.

The reported loss is the mean of L_D over the incoming records, in step 2, before anything has moved. It is no
likelihood: near 0.69 (relativistic) the two are even. The discriminator adds to its score the product of its features
with a vector of the class (Miyato and Koyama 2018). The term with c' is Reed et al.'s 2016 ("Generative adversarial
text to image synthesis"): a real picture under another label is as wrong as a drawn one, so that the vectors learn from
the first update on what tells classes apart, and not only once drawings confuse them. It is the same features times
another vector: next to nothing. Classes come up as in `vae`.

Transfer: `source` names a version of another image-gan. Its weights, its discriminator and its classes are where this
one begins; blocks named in `freeze` do not learn. A sample of the source's own drawings, drawn once, goes on as rows
with the weight λ = `source_weight`: L = L_target + λ L_source, for both sides, penalties included.

Frozen features: with `features`, the discriminator sees maps of a backbone instead of pixels (projected GAN, Sauer et
al. 2021); `gan_networks` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from models.images.augmentation import Augmentation, augmented
from models.images.gan_losses import LossName, Spread, discriminator_losses, generator_losses, gradient_penalties
from models.images.gan_networks import Discriminator, ImageGan, Pixels, Projected, identical_at_first
from models.images.generator import FeaturedOptions, drawings
from models.labels import NONE, Labels
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
    structural,
)
from models.memory import PolicyName, ReplayMemory
from models.moving_average import MovingAverage, decay_of_records
from models.network import pixels, seeded, served
from models.optimizer import AdamW
from models.replaying import Replaying, weighed

SAME = ("latent", "width", "depth", "hidden", "label_dim")  # a model and its source agree in these


class ImageGanOptions(FeaturedOptions):
    """`width` is the number of channels at half of the size; there are half as many at the full one, twice below."""

    learning_rate: float = Field(2e-3, gt=0)
    betas: tuple[float, float] = (0.0, 0.99)
    loss: LossName = "relativistic"
    matching: float = Field(0.3, ge=0)  # m, of real pictures under another label
    penalty: float = Field(0.1, ge=0)  # γ, of R1 and R2
    penalty_every: int = Field(4, ge=1)  # one row of so many has penalties, that much heavier, in turn
    augmentation: tuple[Augmentation, ...] = ()
    latent: int = structural(64, ge=1)
    width: int = structural(32, ge=1)
    depth: int = structural(1, ge=0, le=256)  # blocks of each size
    hidden: int = structural(128, ge=1)  # features of the discriminator
    label_dim: int = structural(32, ge=1)
    label_dropout: float = Field(0.1, ge=0, lt=1)  # share of records that are learned as if they had no label
    average_records: int = Field(10_000, ge=0)  # half-life of the average, at first a tenth of what was seen
    collapse_share: float = Field(0.4, ge=0)  # of the real pictures' spread, below which the alarm is raised
    max_classes: int = Field(1000, ge=1)  # a label beyond them is dead-lettered
    replay_slots: int = structural(2000, ge=0)
    replay_policy: PolicyName = structural("balanced")  # with it each class weighs the same in an update
    replay_draws: int = Field(16, ge=0)  # records replayed in each update


class ImageGanLearner(Replaying):
    """Learns an `ImageGan`: a step of the discriminator, then one of the generator, whose average is `model`."""

    needs_label = False

    def __init__(
        self, options: ImageGanOptions, shape: tuple[int, ...], seed: int, device: torch.device, start: Start = NOTHING
    ) -> None:
        self.options = options
        backbone = options.backbone(start)
        projected = backbone and Projected(backbone, shape, 2 * options.width, seed, device)
        views = projected or Pixels(shape)
        self.generator = identical_at_first(seeded(lambda: _network(options, shape, ()), seed, device))
        self._average = MovingAverage(self.generator)
        self.model = self._average.model
        self._shape, self._device, self._views = shape, device, views
        self._memory = ReplayMemory(options.replay_slots, shape, torch.uint8, device, options.replay_policy)
        self._labels = Labels(self.model.classes, options.max_classes)
        self._spread = Spread()
        self._updates = self._seen = 0
        kept = 0 if options.source is None else options.source_samples
        self._sample = {
            "source/x": torch.zeros(kept, *shape, dtype=torch.uint8, device=device),
            "source/y": torch.full((kept,), NONE, device=device),
        }
        self._served, self._fixed = Frozen(), Frozen()
        sizes = {"width": options.width, "depth": options.depth, "hidden": options.hidden}
        build = partial(Discriminator, views.shapes, 0, whole=isinstance(views, Pixels), **sizes)
        discriminator = identical_at_first(seeded(build, seed + 1, device))
        self._networks: dict[str, Any] = {"generator": self.generator, "discriminator": discriminator}
        blocks = {f"{part}.{name}": m for part, each in self._networks.items() for name, m in each.named_modules()}
        options.freeze_in({name: m for name, m in blocks.items() if not name.endswith((".", ".conditions"))})
        settings: dict[str, Any] = {"learning_rate": options.learning_rate, "betas": options.betas, "weight_decay": 0.0}
        self._optimizers = {part: AdamW(network, **settings) for part, network in self._networks.items()}
        if options.source is not None and not isinstance(start, State):
            self._start_from(start["source"])

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        options, count = self.options, len(batch)
        self._grow(self._labels.new(batch.labels), rng)
        numbers = self._labels.numbers(batch.labels)
        real, y, w = self._rows(batch.x, numbers, rng)
        z = torch.randn(len(y), options.latent, generator=rng).to(self._device)
        other = self._others(y, rng)

        drawn = self.generator(z, y)  # (N, C, H, W)
        with torch.no_grad():
            real_views = self._views(augmented(real, options.augmentation, rng))
            drawn_views = self._views(augmented(drawn, options.augmentation, rng))
        losses, penalties = self._step_discriminator(real_views, drawn_views, y, other, w)

        with torch.no_grad():
            real_scores = self._networks["discriminator"](real_views, y)
        drawn_scores = self._networks["discriminator"](self._views(augmented(drawn, options.augmentation, rng)), y)
        generator_loss = generator_losses(options.loss, real_scores, drawn_scores)  # (N,)
        self._step("generator", (w * generator_loss).sum())

        self._updates += 1
        self._seen += count
        self._average.move(decay_of_records(count, min(options.average_records, self._seen / 10)))
        self._spread.update(real, drawn.detach(), y)
        self._memory.add(batch, numbers, rng)
        loss = losses[:count].mean().item()
        metrics = {"discriminator_loss": loss, "generator_loss": generator_loss[:count].mean().item()}
        if self._spread.share is not None:
            metrics["spread_share"] = self._spread.share
        if penalties is not None:
            metrics["gradient_penalty"] = penalties.mean().item()
        alarms = ("collapse",) if self._spread.collapsed(options.collapse_share) else ()
        return Report(loss, metrics=metrics, alarms=alarms)

    def _rows(self, x: Tensor, numbers: Sequence[int], rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Incoming, replayed and the source's: (N, C, H, W) in [-1, 1], (N,) classes, some dropped, (N,) weights."""
        replayed = self._memory.draw(self.options.replay_draws, rng)
        pictures = [x.to(self._device), replayed.x]
        y = [torch.tensor(numbers, device=self._device), replayed.y]
        w = weighed(torch.cat(y), even=self.options.replay_policy == "balanced")
        if self.options.source_weight and len(self._sample["source/x"]):
            rows = torch.randint(len(self._sample["source/x"]), (self.options.source_draws,), generator=rng)
            rows = rows.to(self._device)
            pictures.append(self._sample["source/x"][rows])
            y.append(self._sample["source/y"][rows])
            w = torch.cat([w, w.new_full((len(rows),), self.options.source_weight / len(rows))])
        dropped = torch.rand(len(w), generator=rng) < self.options.label_dropout
        return 2 * pixels(torch.cat(pictures)) - 1, torch.cat(y).masked_fill(dropped.to(self._device), NONE), w

    def _others(self, y: Tensor, rng: torch.Generator) -> Tensor:
        """Classes (N,) → another one for each, every other one as likely; NONE where there is none."""
        classes = len(self.model.classes)
        if classes < 2:
            return torch.full_like(y, NONE)
        steps = torch.randint(1, classes, y.shape, generator=rng).to(y.device)
        return torch.where(y == NONE, NONE, (y + steps) % classes)

    def _step_discriminator(
        self, real: Sequence[Tensor], drawn: Sequence[Tensor], y: Tensor, other: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Views of both, classes and other ones → (N,) losses before the step, R1 + R2 of the rows whose turn it is."""
        options, discriminator = self.options, self._networks["discriminator"]
        h = discriminator.features([torch.cat(pair) for pair in zip(real, drawn, strict=True)])  # (2N, V, hidden)
        scores = discriminator.scores(torch.cat([h, h[: len(y)]]), torch.cat([y, y, other]))
        true, fake, wrong = scores.chunk(3)
        losses = discriminator_losses(options.loss, true, fake)
        mismatched = discriminator_losses(options.loss, true, wrong) * (other != NONE)
        total, penalties = (w * (losses + options.matching * mismatched)).sum(), None
        turn = slice(self._updates % options.penalty_every, None, options.penalty_every)
        if options.penalty > 0 and len(y[turn]):
            views = [torch.cat([a[turn], b[turn]]).requires_grad_() for a, b in zip(real, drawn, strict=True)]
            slopes = gradient_penalties(discriminator(views, y[turn].repeat(2)), views)
            penalties = slopes.view(2, -1).sum(0)
            total = total + 0.5 * options.penalty * options.penalty_every * (w[turn] * penalties).sum()
        self._step("discriminator", total)
        return losses, penalties

    def _step(self, part: str, loss: Tensor) -> None:
        """One step of this network alone: the other one's weights get no gradient."""
        parameters = [p for p in self._networks[part].parameters() if p.requires_grad]
        loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        self._optimizers[part].step()

    def capture(self) -> State:
        weights, served, learning = self._weights(), self.model.state_dict(), self._learning()
        serving: dict[str, Tensor | Rows] = dict(served)
        serving |= self._served.rows({name: t for name, t in served.items() if f"generator/{name}" not in learning})
        training: dict[str, Tensor | Rows] = {**weights, **self._moments()}
        training |= self._fixed.rows({name: t for name, t in weights.items() if name not in learning} | self._sample)
        meta = {
            "classes": list(self.model.classes),
            "memory": self._memory.meta(),
            "spread": self._spread.meta(),
            "updates": self._updates,
            "seen": self._seen,
            "features": self._views.backbone.describe() if isinstance(self._views, Projected) else None,
        }
        return State(serving, {**training, **self._memory.capture()}, meta)

    def restore(self, state: State) -> None:
        self._grow(self._labels.beyond(state.meta["classes"]), None)
        copy_into(self.model.state_dict(), state.serving)
        memory = {name: value for name, value in state.training.items() if name.startswith("memory/")}
        rest = {name: value for name, value in state.training.items() if name not in memory}
        copy_into({**self._weights(), **self._moments(), **self._sample}, rest)
        self._memory.restore(state.meta["memory"], memory)
        self._spread.restore(state.meta["spread"])
        self._updates, self._seen = state.meta["updates"], state.meta["seen"]
        self._served.restored()
        self._fixed.restored()

    def _weights(self) -> dict[str, Tensor]:
        modules = {**self._networks, "views": self._views}
        return {f"{part}/{name}": t for part, module in modules.items() for name, t in module.state_dict().items()}

    def _moments(self) -> dict[str, Tensor]:
        return {f"{part}/{name}": t for part, each in self._optimizers.items() for name, t in each.capture().items()}

    def _learning(self) -> set[str]:
        """Names of the weights that learn; the others never change."""
        named = {part: network.named_parameters() for part, network in self._networks.items()}
        return {f"{part}/{name}" for part, each in named.items() for name, p in each if p.requires_grad}

    def _grow(self, labels: Sequence[str], rng: torch.Generator | None) -> None:
        """Adds classes with random vectors; without `rng` they are about to be replaced."""
        if not labels:
            return
        for network, width in (("generator", self.options.label_dim), ("discriminator", self.options.hidden)):
            shape = (len(labels), width)
            rows = torch.zeros(shape) if rng is None else torch.randn(shape, generator=rng)
            self._networks[network].conditions.grow(rows)
            self._optimizers[network].follow()
        self._average.follow()
        self._labels.add(labels)

    def _start_from(self, source: Source) -> None:
        """Takes the source's average, classes and drawings, and its discriminator if the features are the same.

        Raises:
            ValueError: it is no image-gan, or of another shape, or was learned with other structural options.
        """
        theirs = self.options.of_source(source, "image-gan", self._shape, SAME)
        network = model(theirs, self._shape, source.meta)
        network.load_state_dict(source.tensors)
        self._grow(self._labels.new(network.classes), None)
        for target in (self.model, self.generator):
            copy_into(target.state_dict(), network.state_dict())
        discriminator = self._networks["discriminator"].state_dict()
        if self.options.features == theirs.features:
            copy_into(discriminator, {key: source.training[f"discriminator/{key}"] for key in discriminator})
            views = self._views.state_dict()
            copy_into(views, {key: source.training[f"views/{key}"] for key in views})
        copy_into(self._sample, drawings(network, len(self._sample["source/y"])))


def _network(options: ImageGanOptions, shape: tuple[int, ...], classes: Sequence[str]) -> ImageGan:
    return ImageGan(
        shape, classes, latent=options.latent, label_dim=options.label_dim, width=options.width, depth=options.depth
    )


model = served(_network)
BLUEPRINT = Blueprint(
    ImageGanOptions, ImageGanLearner, model, "image", ImageGanOptions.references, started=ImageGanLearner
)
