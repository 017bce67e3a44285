"""Records that are held out: never learned, kept as a bounded sample, so that a model can be asked what it cannot know.

Whether a record is held out depends on its id alone, or on its content where it has none, so that one that is published
twice is held out twice. The sample is kept as the replay memory keeps its own: uniform where nobody needs labels, else
with equal room for each class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from models.labels import Labels
from models.learner import Batch, Rows, update_generator
from models.memory import PolicyName, ReplayMemory

SPARE_CLASSES = 1000  # names of classes beside those of the records that are kept: older ones make room for new ones
PREFIX = "held_out/"


def is_held_out(id_: str, share: float) -> bool:
    """Whether the record of this id, or with content of this digest, belongs to the held-out share of the stream."""
    digest = hashlib.blake2b(id_.encode(), digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "big") < share * 2**64


class HeldOut:
    """A sample of at most `slots` held-out records of `shape`, on the CPU."""

    def __init__(self, slots: int, shape: tuple[int, ...], dtype: torch.dtype, policy: PolicyName, seed: int) -> None:
        self.classes: list[str] = []
        self._labels = Labels(self.classes, slots + SPARE_CLASSES)
        self._memory = ReplayMemory(slots, shape, dtype, torch.device("cpu"), policy, prefix=PREFIX)
        self._seed = seed
        self._seen = 0

    def __len__(self) -> int:
        return self._memory.size

    def add(self, batch: Batch) -> None:
        """Offers the records of a batch; which ones are kept depends on the seed and on what came before."""
        for row, label in enumerate(batch.labels):
            # One by one, so that it does not matter how they were batched; by numbers that no update has.
            one = batch.take(slice(row, row + 1))
            self._memory.add(one, [self._number(label)], update_generator(self._seed, -1 - self._seen))
            self._seen += 1

    def _number(self, label: str | None) -> int:
        """The label's number; a new label beyond all room takes that of the first one that no kept record has."""
        if self._labels.refuses([label]):
            assert label is not None  # noqa: S101 - none is refused
            kept = set(self._memory.columns()["y"].tolist())
            free = next(number for number in range(len(self.classes)) if number not in kept)
            self._labels.rename(free, label)
            self._memory.forget(free)
        self._labels.add(self._labels.new([label]))
        return self._labels.numbers([label])[0]

    def remembered(self) -> Collection[bytes]:
        """The digests of the ids of what is kept."""
        return self._memory.remembered()

    def correct(self, id_: bytes, label: str) -> bool:
        """The record of this id has this label from now on; whether it is kept."""
        found = id_ in self.remembered()
        if found:
            self._memory.relabel(id_, self._number(label))
        return found

    def records(self) -> tuple[Tensor, list[str | None]]:
        """What is kept: x (N, ...) as in `Batch.x`, and the labels."""
        columns = self._memory.columns()
        labels = [None if number < 0 else self.classes[number] for number in columns["y"].tolist()]
        return columns["x"], labels

    def capture(self) -> dict[str, Rows]:
        """held_out/x, y, origins and ids, and what the policy keeps for each slot."""
        return self._memory.capture()

    def meta(self) -> dict[str, Any]:
        """JSON."""
        return {"classes": list(self.classes), "seen": self._seen, "memory": self._memory.meta()}

    def restore(self, meta: Mapping[str, Any], state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        self._memory.restore(meta["memory"], state)
        self._labels.add(meta["classes"])
        self._seen = meta["seen"]
