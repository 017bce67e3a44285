"""What image generators share: codes from seeds, drawing one picture at a time, walking between two codes; and what
they start from, a version of another one of the same learner and a backbone that the loss reads."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.images.backbone import Backbone, BackboneOptions, references
from models.labels import Labels
from models.learner import Options, Reference, Source, Start, State, structural
from models.replaying import LabelledNetwork

FEATURES = "features_"  # the first letters of the names of a backbone's references


class DrawingNetwork(LabelledNetwork):
    """A network that draws pictures of `shape` (C, H, W) from codes of `latent` numbers: a `Generator`."""

    shape: tuple[int, ...]
    latent: int

    def shades(self, z: Tensor, numbers: Tensor) -> Tensor:
        """z (B, Z), class numbers (B,) int64, NONE without a label → (B, C, H, W) float32, 0 to 1."""
        raise NotImplementedError

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """N seeds → their codes (N, Z) float32 of N(0, I), each from a random generator of its own."""
        codes = [torch.randn(self.latent, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        return torch.stack(codes) if codes else torch.empty(0, self.latent)

    @torch.no_grad()
    def draw(self, z: Tensor, labels: Sequence[str | None]) -> Tensor:
        """z (N, Z) and labels → (N, C, H, W) uint8. Each is drawn by itself: its bits depend on nothing else.

        Raises:
            KeyError: a label that was never learned.
        """
        numbers = self.numbers(labels)
        if not numbers:
            return torch.empty(0, *self.shape, dtype=torch.uint8)
        device = next(self.parameters()).device
        rows = [
            self.shades(code[None].to(device), torch.tensor([number], device=device))
            for code, number in zip(z, numbers, strict=True)
        ]
        return (255 * torch.cat(rows).clamp(0, 1)).round().to(torch.uint8).cpu()

    def generate(self, seeds: Sequence[int], labels: Sequence[str | None]) -> Tensor:
        """`draw(latents(seeds), labels)`; raises what `draw` raises."""
        return self.draw(self.latents(seeds), labels)

    def numbers(self, labels: Sequence[str | None]) -> list[int]:
        """The class number of each label, NONE for None.

        Raises:
            KeyError: a label that was never learned.
        """
        return Labels(self.classes, len(self.classes)).numbers(labels)


def between(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Codes on the great circle from `start` to `end` (Z,) each, both included → (steps, Z).

    Spherical interpolation (Shoemake 1985; White 2016, "Sampling generative networks"): codes of N(0, I) lie near a
    sphere, and the straight line between two of them leads through its inside, where nothing was learned.
    """
    angle = torch.arccos((start @ end / (start.norm() * end.norm()).clamp_min(1e-12)).clamp(-1, 1))
    t = torch.linspace(0, 1, steps)[:, None]  # (steps, 1)
    if angle.sin() < 1e-4:  # the same direction, or opposite ones: there is no one circle
        return (1 - t) * start + t * end
    return (((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()


class SourcedOptions(Options):
    """What image generators can be told about what they start from."""

    source: str | None = structural(None)  # MODEL or MODEL@VERSION of the same learner
    freeze: tuple[str, ...] = structural(())  # blocks that do not learn, such as "up.0" or "generator.dense"
    source_weight: float = Field(0.0, ge=0)  # λ
    source_samples: int = structural(256, ge=0)  # drawings of the source that are kept
    source_draws: int = Field(16, ge=1)  # of them in each update

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.source is None and self.source_weight:
            raise ValueError("source_weight has no source whose drawings it could weigh. Name one.")
        if self.source is None and self.freeze:
            raise ValueError("freeze has no source: what is frozen would stay random. Name one.")
        return self

    def references(self) -> dict[str, Reference]:
        """For a blueprint's `sources`."""
        return {} if self.source is None else {"source": Reference("version", self.source)}

    def freeze_in(self, blocks: Mapping[str, nn.Module]) -> None:
        """Has the blocks of `freeze` not learn.

        Raises:
            ValueError: there is no such block.
        """
        for name in self.freeze:
            if name not in blocks:
                near = ", ".join(difflib.get_close_matches(name, blocks, 5, 0.0))
                raise ValueError(f"freeze: {name!r} is no block that could be frozen. Near it: {near}.")
            blocks[name].requires_grad_(False)

    def of_source(self, source: Source, learner: str, shape: Sequence[int], same: Sequence[str]) -> Self:
        """The options of the source.

        Args:
            same: names of options in which both agree.

        Raises:
            ValueError: the source is of another learner or shape, or differs in one of these options.
        """
        if source.learner != learner:
            raise ValueError(f"source = {self.source!r} was learned by {source.learner}, not by {learner}.")
        if tuple(source.shape) != tuple(shape):
            raise ValueError(f"source = {self.source!r} draws {source.shape}, and this stream has {shape}.")
        theirs = self.of_version(source.options)
        for option in same:
            there, here = getattr(theirs, option), getattr(self, option)
            if there != here:
                raise ValueError(
                    f"{option} is {there} in source = {self.source!r}, and {here} here. Make them the same."
                )
        return theirs


class FeaturedOptions(SourcedOptions):
    """The same, and a backbone."""

    features: BackboneOptions | None = structural(None)  # whose maps of pictures and drawings are compared

    def references(self) -> dict[str, Reference]:
        named = {FEATURES + name: reference for name, reference in references(self.features).items()}
        return super().references() | named

    def backbone(self, start: Start) -> Backbone | None:
        """The backbone of `features`, if one is named."""
        if self.features is None:
            return None
        if not isinstance(start, State):
            start = {name.removeprefix(FEATURES): s for name, s in start.items() if name.startswith(FEATURES)}
        return Backbone.of_start(self.features, start, "features")


def drawings(network: DrawingNetwork, count: int) -> dict[str, Tensor]:
    """A sample of what a network draws, of all its classes in turn: source/x (N, C, H, W) and source/y (N,)."""
    labels = [network.classes[seed % len(network.classes)] if network.classes else None for seed in range(count)]
    return {"source/x": network.generate(range(count), labels), "source/y": torch.tensor(network.numbers(labels))}
