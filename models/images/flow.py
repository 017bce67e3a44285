"""Image generator: a rectified flow, conditional on the label where there is one.

Liu et al. 2023, "Flow straight and fast"; Lipman et al. 2023, "Flow matching for generative modeling". A picture x is
joined to noise ε ~ N(0, I) by the straight line x_t = (1 - t) ε + t x. An update steps the network v on the mean over
incoming and replayed records, t ~ σ(N(0, 1)) (Esser et al. 2024), of

    |v(x_t, t, c) - (x - ε)|² / (C · H · W)

which is reported too. So at each point v is the mean direction of the lines through it, and following it from noise
leads to pictures. Pixels are in [-1, 1]; with four channels colours are times alpha, so that what cannot be seen is
not learned. Classes come up as in `vae`. What is served is an average of the weights: a stream has no end towards
which a rate could fall.

A drawing follows v from its code, which is the noise ε itself, in `steps` steps of Heun. Where a class is asked for,
it follows v_∅ + `guidance` (v_c - v_∅) (Ho and Salimans 2022), v_∅ of no label, learned of a share `label_dropout` of
the records.

Transfer: `source` names a version of another image-flow. Its average and its classes are where this one begins; blocks
named in `freeze` do not learn. Drawings of the source, drawn once, go on as records: L = L_target + λ L_source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from models.images.flow_network import Velocity
from models.images.generator import DrawingNetwork, SourcedOptions, drawings
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
from models.moving_average import decay_of_records
from models.network import pixels, seeded, served
from models.replaying import ReplayingLearner, weighed

UNDOING = 3  # iterations
BLOCKS = ("time", "stem", "downs", "halves", "middle", "doubles", "joins", "ups", "out")  # what can be frozen
SAME = ("width", "depth", "code")  # a model and its source agree in these


class ImageFlowOptions(SourcedOptions):
    """`width` is the number of channels at the first size, and half of it after that."""

    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_updates: int = Field(200, ge=0)  # over which the rate rises from 0
    clip: float = Field(1.0, gt=0)  # the most that a gradient is long
    width: int = structural(64, ge=1)
    depth: int = structural(1, ge=1, le=256)  # blocks of each size, on the way down and again on the way up
    code: int = structural(128, ge=1)  # numbers that tell of time and class
    label_dropout: float = Field(0.1, ge=0, lt=1)  # share of records that are learned as if they had no label
    average_records: int = Field(10_000, ge=0)  # half-life of the average, at first a tenth of what was seen
    steps: int = Field(8, ge=1)  # of a drawing
    guidance: float = Field(1.5, ge=0)
    max_classes: int = Field(1000, ge=1)  # a label beyond them is dead-lettered
    replay_slots: int = structural(5000, ge=0)
    replay_policy: PolicyName = structural("balanced")  # with it each class weighs the same in an update
    replay_draws: int = Field(16, ge=0)  # records replayed in each update


class ImageFlow(DrawingNetwork):
    """What is served: the network, and how drawings follow it. `shape` is (C, H, W)."""

    def __init__(self, options: ImageFlowOptions, shape: tuple[int, ...], classes: Sequence[str]) -> None:
        super().__init__()
        self.shape, self.latent, self.classes = shape, math.prod(shape), list(classes)
        self.steps, self.guidance = options.steps, options.guidance
        self.velocity = Velocity(shape, len(classes), width=options.width, depth=options.depth, code=options.code)

    def grow(self, classes: int, rng: torch.Generator | None) -> None:
        shape = (classes, self.velocity.conditions.weight.shape[1])
        self.velocity.conditions.grow(torch.zeros(shape) if rng is None else torch.randn(shape, generator=rng))

    def losses(self, x: Tensor, numbers: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x, noise (B, C, H, W), numbers, t (B,) → (B,) mean squares"""
        at = t[:, None, None, None]
        found: Tensor = self.velocity((1 - at) * noise + at * x, t, numbers)
        return (found - (x - noise)).square().flatten(1).mean(1)

    def guided(self, x: Tensor, t: float, numbers: Tensor) -> Tensor:
        """x (B, C, H, W) at the time t, class numbers (B,) → where drawings go, (B, C, H, W)"""
        times = x.new_full((len(x),), t)
        asked: Tensor = self.velocity(x, times, numbers)
        if self.guidance == 1 or bool((numbers == NONE).all()):
            return asked
        free: Tensor = self.velocity(x, times, torch.full_like(numbers, NONE))
        guided: Tensor = free + self.guidance * (asked - free)
        return guided

    def stepped(self, x: Tensor, step: int, numbers: Tensor) -> Tensor:
        """x (B, C, H, W) one step of Heun nearer to a picture; the last step is Euler's"""
        h, t = 1 / self.steps, step / self.steps
        here = self.guided(x, t, numbers)
        there = self.guided(x + h * here, t + h, numbers) if step + 1 < self.steps else here
        return x + 0.5 * h * (here + there)

    @torch.no_grad()
    def shades(self, z: Tensor, numbers: Tensor) -> Tensor:
        x = z.view(-1, *self.shape)
        for step in range(self.steps):
            x = self.stepped(x, step, numbers)
        return apart(x)

    @torch.no_grad()
    def encode(self, x: Tensor, labels: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) uint8 → the noise that is drawn as x, as nearly as it is found, and 0, (B, Z) each.

        Each step is undone by iteration: what leads to x is x less the way that leads from there. Each picture is
        encoded by itself: its bits depend on nothing else.

        Raises:
            KeyError: a label that was never learned.
        """
        device, codes = next(self.parameters()).device, torch.empty(len(x), self.latent)
        for row, number in enumerate(self.numbers(labels)):
            numbers, at = torch.tensor([number], device=device), joined(x[row : row + 1].to(device))
            for step in reversed(range(self.steps)):
                found = at
                for _ in range(UNDOING):
                    found = at - (self.stepped(found, step, numbers) - found)
                at = found
            codes[row] = at.flatten().cpu()
        return codes, torch.zeros_like(codes)


def joined(x: Tensor) -> Tensor:
    """Pixels (B, C, H, W) uint8 → [-1, 1], colours times alpha"""
    shades = pixels(x)
    if x.shape[1] == 4:
        shades[:, :3] *= shades[:, 3:]
    return 2 * shades - 1


def apart(x: Tensor) -> Tensor:
    """The way back, to [0, 1]: colours by alpha"""
    shades = (0.5 * (x + 1)).clamp(0, 1)
    if x.shape[1] == 4:
        shades[:, :3] = (shades[:, :3] / shades[:, 3:].clamp_min(1 / 255)).clamp(0, 1)
    return shades


class ImageFlowLearner(ReplayingLearner[ImageFlow]):
    """Learns an `ImageFlow`: incoming and replayed records in one pass, then one AdamW step."""

    needs_label = False

    def __init__(
        self, options: ImageFlowOptions, shape: tuple[int, ...], seed: int, device: torch.device, start: Start = NOTHING
    ) -> None:
        self.options = options
        network = seeded(lambda: ImageFlow(options, shape, ()), seed, device)
        network.velocity.start()
        memory = ReplayMemory(options.replay_slots, shape, torch.uint8, device, options.replay_policy)
        parts = dict(network.velocity.named_modules())
        options.freeze_in({name: part for name, part in parts.items() if name.split(".")[0] in BLOCKS})
        super().__init__(
            network, options, memory, device, classes=options.max_classes, averaged=True, betas=options.betas
        )
        self._updates = self._seen = 0
        kept = 0 if options.source is None else options.source_samples
        self._sample = {
            "source/x": torch.zeros(kept, *shape, dtype=torch.uint8, device=device),
            "source/y": torch.full((kept,), NONE, device=device),
        }
        self._served, self._kept = Frozen(), Frozen()
        if options.source is not None and not isinstance(start, State):
            self._start_from(start["source"])

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        options, count = self.options, len(batch)
        self._grow(self._labels.new(batch.labels), rng)
        numbers = self._labels.numbers(batch.labels)
        x, y, w = self._rows(batch.x, numbers, rng)
        dropped = torch.rand(len(y), generator=rng) < options.label_dropout
        t = torch.randn(len(y), generator=rng).sigmoid().to(self._device)
        noise = torch.randn(x.shape, generator=rng).to(self._device)
        losses = self._learning.losses(x, y.masked_fill(dropped.to(self._device), NONE), t, noise)
        (w * losses).sum().backward()  # type: ignore[no-untyped-call]
        self._step(count)
        self._memory.add(batch, numbers, rng)
        return Report(losses[:count].detach().mean().item())

    def _rows(self, x: Tensor, numbers: Sequence[int], rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Incoming, replayed and the source's: (N, C, H, W) in [-1, 1], (N,) classes, (N,) weights."""
        options, device = self.options, self._device
        replayed = self._memory.draw(options.replay_draws, rng)
        pictures, y = [x.to(device), replayed.x], [torch.tensor(numbers, device=device), replayed.y]
        w = weighed(torch.cat(y), even=options.replay_policy == "balanced")
        if options.source_weight and len(self._sample["source/x"]):
            rows = torch.randint(options.source_samples, (options.source_draws,), generator=rng).to(device)
            pictures.append(self._sample["source/x"][rows])
            y.append(self._sample["source/y"][rows])
            w = torch.cat([w, w.new_full((len(rows),), options.source_weight / len(rows))])
        return joined(torch.cat(pictures)), torch.cat(y), w

    def _step(self, count: int) -> None:
        options = self.options
        nn.utils.clip_grad_norm_(self._learning.parameters(), options.clip)
        self._updates += 1
        self._seen += count
        self._optimizer.step(min(1.0, self._updates / max(1, options.warmup_updates)))
        self._average.move(decay_of_records(count, min(options.average_records, self._seen / 10)))

    def capture(self) -> State:
        state = super().capture()
        frozen = [name for name, p in self._learning.named_parameters() if not p.requires_grad]
        fixed = {name: self.model.get_parameter(name).detach() for name in frozen}
        serving = {**state.serving, **self._served.rows(fixed)}
        training = {**state.training, **self._kept.rows(self._sample)}
        return State(serving, training, {**state.meta, "updates": self._updates, "seen": self._seen})

    def restore(self, state: State) -> None:
        super().restore(state)
        copy_into(self._sample, {name: t for name, t in state.training.items() if name.startswith("source/")})
        self._updates, self._seen = state.meta["updates"], state.meta["seen"]
        self._served.restored()
        self._kept.restored()

    def _start_from(self, source: Source) -> None:
        """Takes its average, its classes, and a sample of what it draws.

        Raises:
            ValueError: it is no image-flow, or of another shape, or was learned with other structural options.
        """
        shape = self.model.shape
        network = model(self.options.of_source(source, "image-flow", shape, SAME), shape, source.meta)
        copy_into(network.state_dict(), source.tensors)
        self._grow(self._labels.new(network.classes), None)
        for each in (self.model, self._learning):
            copy_into(each.state_dict(), network.state_dict())
        if self.options.source_weight:
            copy_into(self._sample, drawings(network, self.options.source_samples))


model = served(ImageFlow)
BLUEPRINT = Blueprint(
    ImageFlowOptions, ImageFlowLearner, model, "image", ImageFlowOptions.references, started=ImageFlowLearner
)
