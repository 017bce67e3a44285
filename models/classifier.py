"""What image and text classifiers share: the head that grows, the update with experience replay, the state.

The loss of an update is

    L = mean CE(incoming) + mean CE(replayed)

(experience replay; Chaudhry et al. 2019, "On tiny episodic memories in continual learning"). Both parts go through
the network in one pass. Nothing in it depends on the other rows of the pass or on chance, so that its logits of the
incoming records, from before the update, are the prequential prediction as well: evaluation costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.learner import Batch, Options, Report, structural
from models.memory import PolicyName, ReplayMemory
from models.network import Head
from models.replaying import LabelledNetwork, ReplayingLearner


class ClassifierOptions(Options):
    """What every classifier can be told."""

    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    max_classes: int = Field(1000, ge=1)  # a label beyond them is dead-lettered
    replay_slots: int = structural(2000, ge=0)
    replay_policy: PolicyName = structural("balanced")
    replay_draws: int = Field(16, ge=0)  # records replayed in each update


class ClassifierNetwork(LabelledNetwork):
    """Features, and a head with one row a class."""

    def __init__(self, width: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = list(classes)
        self.head = Head(width, len(self.classes))

    def features(self, x: Tensor) -> Tensor:
        """x (B, ...) as in `Batch.x` → (B, D) float32"""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) → logits (B, K)"""
        logits: Tensor = self.head(self.features(x))
        return logits

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """x (B, ...) as in `Batch.x` → probabilities (B, K) float32 in the order of `classes`."""
        logits: Tensor = self(x.to(self.head.weight.device))
        return logits.softmax(1)


class ClassifierLearner(ReplayingLearner):
    """Learns a `ClassifierNetwork` with cross-entropy, AdamW and experience replay."""

    needs_label = True
    model: ClassifierNetwork

    def __init__(
        self, network: ClassifierNetwork, options: ClassifierOptions, memory: ReplayMemory, device: torch.device
    ) -> None:
        self.options = options
        self._learning = network  # a subclass may serve another one
        super().__init__(
            network,
            memory,
            device,
            max_classes=options.max_classes,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
        )

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        if None in batch.labels:
            raise ValueError("a classifier was given a record without a label. Drop it: `needs_label` is true.")
        known = list(self.model.classes)
        self._grow(self._labels.new(batch.labels), rng)
        numbers = self._labels.numbers(batch.labels)
        replayed = self._memory.draw(self.options.replay_draws, rng)
        x = torch.cat([batch.x.to(self._device), replayed.x])  # (B + R, ...)
        y = torch.cat([torch.tensor(numbers, device=self._device), replayed.y])  # (B + R,)

        logits = self._learning(self._shown(x, rng))  # (B + R, K)
        losses = F.cross_entropy(logits, y, reduction="none")
        incoming = losses[: len(batch)].mean()
        loss = incoming + losses[len(batch) :].mean() if len(replayed.y) else incoming
        self._loss(loss, rng).backward()  # type: ignore[no-untyped-call]
        answers = self._answers(x[: len(batch)], logits[: len(batch)].detach())
        self._step()

        self._memory.add(batch, numbers, rng)
        return Report(F.cross_entropy(answers, y[: len(batch)]).item(), self._predicted(answers, known))

    def _shown(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """What the network learns in place of the incoming and replayed records."""
        return x

    def _loss(self, loss: Tensor, rng: torch.Generator) -> Tensor:
        """What is minimised, from the loss of the incoming and replayed records."""
        return loss

    def _answers(self, x: Tensor, logits: Tensor) -> Tensor:
        """The served model's logits of the incoming records, where those of the network that learns are given."""
        return logits

    def _step(self) -> None:
        self._optimizer.step()

    def _widen(self, classes: int, rng: torch.Generator | None) -> None:
        self.model.head.grow(classes)

    @staticmethod
    def _predicted(logits: Tensor, known: Sequence[str]) -> list[str | None]:
        """What was known before the update is all that can have been predicted."""
        if not known:
            return [None] * len(logits)
        return [known[number] for number in logits[:, : len(known)].argmax(1).tolist()]
