"""The sets as records in RAM, and a stream of them. The folder is an argument; nothing of it is kept in the project."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from models.capabilities import Classifier, Model
from models.learner import Batch, Learner, Report, update_generator
from models.network import pixels

NEAR = 10 / 255  # root of the mean squared difference, colours times alpha: nearer tiles are variants of each other


@dataclass(frozen=True, slots=True)
class Set:
    """Records with labels."""

    x: Tensor  # (N, C, H, W) uint8, or texts (N, L) int32
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int] | Tensor) -> Set:
        """These records, in this order."""
        numbers = [int(row) for row in rows]
        return Set(self.x[numbers], [self.labels[number] for number in numbers])

    def shuffled(self, seed: int) -> Set:
        """The same records in random order."""
        return self.take(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)))


def clothes(data: Path, part: str = "train") -> Set:
    """Fashion-MNIST (Xiao et al. 2017): 28 × 28, grey, ten classes; `part` is train or test."""
    return _npz(data / "fashion_mnist" / f"{part}.npz")


def digits(data: Path, part: str = "train") -> Set:
    """MNIST: 28 × 28, grey, ten classes; `part` is train or test."""
    return _npz(data / "mnist" / f"{part}.npz")


def photographs(data: Path, part: str = "train") -> Set:
    """A part of CIFAR-10 (Krizhevsky 2009): 10,000 and 2,000 pictures of 32 × 32, RGB, ten classes."""
    with np.load(data / "cifar10_part" / f"{part}.npz") as arrays:
        x = torch.from_numpy(arrays["x"])
        return Set(x if x.shape[1] == 3 else x.permute(0, 3, 1, 2).contiguous(), [str(y) for y in arrays["y"]])


def small_digits(data: Path, part: str = "train") -> Set:
    """scikit-learn's 1,797 digits of 8 × 8, grey: 1,437 to learn, and every fifth to hold back."""
    found = load_digits()
    rows = [row for row in range(len(found.target)) if (row % 5 == 0) == (part == "test")]
    x = torch.from_numpy(found.images * 255 / 16).to(torch.uint8)[:, None]
    return Set(x[rows], [str(found.target[row]) for row in rows])


def tiles(data: Path) -> Set:
    """Dungeon Crawl's tiles of CC0: 5,518 pictures of 32 × 32, RGBA, seven categories."""
    with np.load(data / "crawl_tiles" / "tiles32_rgba.npz") as arrays:
        names = arrays["classes"].tolist()
        return Set(torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).contiguous(), [names[k] for k in arrays["y"]])


def tiles_apart(data: Path, part: str = "train") -> Set:
    """Tiles to learn (train), and about a tenth to hold back (test).

    Many tiles are variants of each other (marble_wall1, marble_wall2; the same monster in two releases). Tiles whose
    file names agree in their letters stay together, by the hash of those letters; and what is learned has lost every
    tile that is `NEAR` one that is held back, whatever its name.
    """
    records = tiles(data)
    with np.load(data / "crawl_tiles" / "tiles32_rgba.npz") as arrays:
        names = [re.sub(r"[^a-z]+", " ", Path(path).stem.lower()).strip() for path in arrays["paths"].tolist()]
    drawn = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    held = torch.tensor([int.from_bytes(digest, "big") % 10 == 0 for digest in drawn])
    if part == "test":
        return records.take(held.nonzero()[:, 0])
    x = pixels(records.x)
    flat = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1).flatten(1)
    nearest = torch.cdist(flat, flat[held]).amin(1) / flat.shape[1] ** 0.5
    return records.take((~held & (nearest > NEAR)).nonzero()[:, 0])


def shakespeare(data: Path) -> bytes:
    """The works, one after the other: 1,115,394 bytes."""
    return (data / "tinyshakespeare" / "data" / "tinyshakespeare" / "input.txt").read_bytes()


def _npz(path: Path) -> Set:
    with np.load(path) as arrays:
        return Set(torch.from_numpy(arrays["x"])[:, None].contiguous(), [str(int(y)) for y in arrays["y"]])


def batches(records: Set, batch_size: int = 64, first: int = 0) -> Iterator[Batch]:
    """The records in order, as a worker would give them to its learner; `first` of the stream came before them."""
    for start in range(0, len(records), batch_size):
        rows = range(start, min(start + batch_size, len(records)))
        ids = b"".join(hashlib.blake2b(str(first + row).encode(), digest_size=16).digest() for row in rows)
        yield Batch(
            x=records.x[rows.start : rows.stop],
            labels=records.labels[rows.start : rows.stop],
            origins=torch.tensor([(0, 0, first + row) for row in rows]),
            ids=torch.frombuffer(bytearray(ids), dtype=torch.uint8).view(-1, 16),
        )


def learn(
    learner: Learner, records: Set, *, batch_size: int = 64, seed: int = 0, first_update: int = 0
) -> Iterator[Report]:
    """One pass over the records: an update for each batch, and what it tells."""
    for update, batch in enumerate(batches(records, batch_size), start=first_update):
        yield learner.learn(batch, update_generator(seed, update))


def accuracy(model: Model, records: Set) -> float:
    """Share of the records that the model puts into their class."""
    return answered(model, records)[1].float().mean().item()


def calibration_error(model: Model, records: Set, bins: int = 15) -> float:
    """The mean gap between how sure answers are and how often they are right (ECE: Guo et al. 2017)."""
    sure, right = answered(model, records)
    bin_of = (sure * bins).ceil().long()
    gaps = torch.zeros(bins + 1, dtype=torch.float64).index_add_(0, bin_of, sure - right.double())
    return (gaps.abs().sum() / len(records)).item()


def answered(model: Model, records: Set) -> tuple[Tensor, Tensor]:
    """How sure the model is of each record (N,) float64, and whether it is right (N,) bool."""
    assert isinstance(model, Classifier)
    parts = [records.x[start : start + 500] for start in range(0, len(records), 500)]
    sure, best = torch.cat([model.classify(part).cpu() for part in parts]).double().max(1)
    names = [model.classes[k] for k in best.tolist()]
    return sure, torch.tensor([name == label for name, label in zip(names, records.labels, strict=True)])
