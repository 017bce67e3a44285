"""What a served model can do. Each protocol is a route of the sampler; a model has as many of them as it likes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class Model(Protocol):
    """What is served: an `nn.Module` that knows its class names. What else it can do, the protocols below say."""

    classes: list[str]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


@runtime_checkable
class Classifier(Protocol):
    """A model that puts records into classes."""

    classes: list[str]

    def classify(self, x: Tensor) -> Tensor:
        """x (B, ...) as in `Batch.x` → probabilities (B, K) float32 in the order of `classes`; K may be 0."""


@runtime_checkable
class Recogniser(Classifier, Protocol):
    """A classifier that knows when a record resembles none of its classes. A subclass needs `recognise` alone."""

    def classify(self, x: Tensor) -> Tensor:
        return self.recognise(x)[0]

    def recognise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, ...) as in `Batch.x` → probabilities (B, K) float32, and (B,) bool: it resembles none of them."""


@runtime_checkable
class Linear(Classifier, Protocol):
    """A classifier of texts whose scores are sums over what is in a text."""

    def contributions(self, x: Tensor) -> Tensor:
        """x (L,) a text → (n, K) what each of its n code points adds to the score of each class."""
        ...


@runtime_checkable
class Featured(Protocol):
    """A model that tells what it makes of records."""

    def features(self, x: Tensor) -> Tensor:
        """x (B, ...) as in `Batch.x` → (B, D): records that it takes for alike are near each other."""
        ...


@runtime_checkable
class Evaluated(Protocol):
    """A model with a likelihood."""

    def evaluate(self, x: Tensor, labels: Sequence[str | None]) -> float:
        """Mean loss in nats per record on records that are not learned, with fixed random numbers."""


@runtime_checkable
class Generator(Protocol):
    """A model that draws new pictures from latent codes."""

    classes: list[str]

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """N seeds → their codes (N, Z) float32 on the CPU, of N(0, I)."""

    def draw(self, z: Tensor, labels: Sequence[str | None]) -> Tensor:
        """z (N, Z) and labels → (N, C, H, W) uint8 on the CPU. A row depends on its own code and label alone.

        Raises:
            KeyError: a label that the model has never learned.
        """

    def generate(self, seeds: Sequence[int], labels: Sequence[str | None]) -> Tensor:
        """`draw(latents(seeds), labels)`, bit for bit; raises what `draw` raises."""


@runtime_checkable
class Autoencoder(Generator, Protocol):
    """A generator that also finds the code of a picture: what it draws from that code is a reconstruction."""

    def encode(self, x: Tensor, labels: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) uint8 → mean and standard deviation of its code, (B, Z) float32 each, on the CPU.

        Raises:
            KeyError: a label that the model has never learned.
        """


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a text is drawn, byte by byte."""

    temperature: float = 1.0  # 0: always the most probable byte
    top_k: int = 0  # only the k most probable bytes; 0: all
    top_p: float = 1.0  # only the most probable bytes that together have this probability (Holtzman et al. 2020)
    max_bytes: int = 500
    stop: str | None = None  # ends before this text


@runtime_checkable
class TextGenerator(Protocol):
    """A model that goes on with a text."""

    def complete(self, prompt: str, seed: int, sampling: Sampling) -> Iterator[str]:
        """What follows the prompt, in pieces, as they are drawn: whole characters, and never the prompt itself.

        It ends at `max_bytes`, before the stop text, or where the model ends the record. The same prompt, seed and
        sampling give the same text.
        """


@runtime_checkable
class Restorer(Protocol):
    """A model that undoes damage to pictures."""

    kinds: Sequence[str]  # of damage: "holes", "noise", …

    def restore(self, x: Tensor, kinds: Sequence[str | None], holes: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) uint8, any H and W from 16 pixels on, and the kind of damage of each, None where it is not
        known → (B, C, H, W) uint8 on the CPU.

        Args:
            holes: (B, 1, H, W) bool, the pixels that are missing; None: none are.

        Raises:
            KeyError: a kind that the model was not taught.
        """


@runtime_checkable
class Restyler(Protocol):
    """A model that gives a picture another style."""

    def restyle(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) uint8, any H and W from 16 pixels on → the same shape, uint8 on the CPU."""
