"""Generative replay: a memory that keeps no record. Of each class it learns a distribution and draws from that.

Shin et al. 2017, "Continual learning with deep generative replay", with a generator that forgets nothing itself: a
mixture of low-rank Gaussians for each class (Pfülb and Gepperth 2021, "Overcoming catastrophic forgetting with Gaussian
mixture replay"; Richardson and Weiss 2018, "On GANs and GMMs", for how well they draw). Only records of its class touch
it, and running sums have no order. Pixels are in [0, 1]. A record x goes to the component of its class with the nearest
mean μ, which has n records with it and the axes A (Q, D), so that the covariance is about AᵀA; δ = x - μ, w = 1 / n:

    μ ← μ + w δ,    A ← the Q largest axes of the rows of √(1 - w) A and √(w (1 - w)) δ

which is the running mean and covariance but for what has no room in Q axes (incremental PCA: Hall et al. 1998; Ross et
al. 2008). A class begins with one component. With every `SPLIT` records more, while there is room, the component with
the largest n |a|² is halved across its longest axis a (Linde, Buzo and Gray 1980), as a Gaussian is at its mean:

    n / 2 each,   μ ± √(2 / π) a,   a ← √(1 - 2 / π) a

Dreams are drawn from all classes alike and from components by their n: x = μ + zA, z ~ N(0, I), cut to [0, 1].

It lives on the CPU, whatever the device of the learner: its matrices are small, and there are many of them.

`RecordsAndDreams` replays both: few records, as they were, and around them what else their classes looked like.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.labels import NONE
from models.learner import Batch, Rows, copy_into
from models.memory import Changed, Replayed, ReplayMemory
from models.network import pixels, widened

SPLIT = 60  # records
HALF_MEAN, HALF_SCALE = math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi)  # of one half of N(0, 1)


class Dreams:
    """In place of a `ReplayMemory`, for pictures. 4 (1 + Q) D bytes a component, for `components` of each class.

    Args:
        shape: of one record, (C, H, W) uint8; D is its number of values.
        components: the most of each class.
        axes: Q, of each component.
    """

    slots = size = 0  # of records

    def __init__(self, shape: tuple[int, ...], device: torch.device, components: int, axes: int) -> None:
        self._shape, self._device, self._components = shape, device, components
        self._counts = torch.zeros(0, components, dtype=torch.float64)  # n; 0: no such component
        self._means = torch.zeros(0, math.prod(shape))  # (classes · components, D), as are the next
        self._axes = torch.zeros(0, axes, math.prod(shape))  # the longest first
        self._changed = Changed()

    def add(self, batch: Batch, y: Sequence[int], rng: torch.Generator, logits: Tensor | None = None) -> None:
        """Learns the records, one after the other; nothing of it is random."""
        self._grow(1 + max(y) - len(self._counts))
        for x, label in zip(pixels(batch.x.cpu()).flatten(1), y, strict=True):
            row = self._nearest(x, label)
            self._learn(x, row)
            self._split(label)

    def draw(self, count: int, rng: torch.Generator) -> Replayed:
        """Draws dreams; none before there is a class."""
        classes = self._counts[:, 0].nonzero()[:, 0]
        count = count if len(classes) else 0
        y = classes[torch.randint(max(1, len(classes)), (count,), generator=rng)]
        rows = y * self._components + torch.multinomial(self._counts[y], 1, generator=rng)[:, 0]
        z = torch.randn(count, 1, self._axes.shape[1], generator=rng)
        x = self._means[rows] + (z @ self._axes[rows])[:, 0]  # (R, D)
        x = (255 * x.clamp(0, 1)).round_().to(torch.uint8).view(-1, *self._shape)
        return Replayed(x.to(self._device), y.to(self._device), rows)

    def logits(self, slots: Tensor) -> None:
        """Dreams came with none."""

    def remembered(self) -> Collection[bytes]:
        """No record is kept."""
        return ()

    def relabel(self, id_: bytes, y: int) -> None:
        """
        Raises:
            KeyError: always, since no record is kept.
        """
        raise KeyError(id_)

    def flush(self, label: int) -> int:
        """Drops the distribution of a class → how many records it was learned from."""
        dropped = round(self._counts[label].sum().item())
        rows = slice(label * self._components, (label + 1) * self._components)
        for column in self.columns().values():
            column[rows] = 0
        self._changed.add(*range(rows.start, rows.stop))
        return dropped

    def _nearest(self, x: Tensor, label: int) -> int:
        first = label * self._components
        used = max(1, int((self._counts[label] > 0).sum()))
        return first + int((self._means[first : first + used] - x).square().sum(1).argmin())

    def _learn(self, x: Tensor, row: int) -> None:
        self._counts.view(-1)[row] += 1
        w = 1 / self._counts.view(-1)[row].item()
        difference = x - self._means[row]
        self._means[row] += w * difference
        rows = torch.cat([math.sqrt(1 - w) * self._axes[row], math.sqrt(w * (1 - w)) * difference[None]])  # (Q + 1, D)
        # Double, for where pictures span few axes, most numbers are too small for the solver in single precision.
        gram = rows.double() @ rows.double().T
        self._axes[row] = torch.linalg.eigh(gram)[1][:, 1:].float().flip(1).T @ rows
        self._changed.add(row)

    def _split(self, label: int) -> None:
        counts = self._counts[label]  # a view
        used = int((counts > 0).sum())
        if used == self._components or counts.sum() < used * SPLIT:
            return
        first = label * self._components
        spread = counts[:used] * self._axes[first : first + used, 0].square().sum(1)
        old, new = int(spread.argmax()), used
        counts[old] = counts[new] = counts[old] / 2
        old, new = first + old, first + new
        step = HALF_MEAN * self._axes[old, 0]
        self._axes[old, 0] *= HALF_SCALE
        self._axes[new] = self._axes[old]
        self._means[new] = self._means[old] - step
        self._means[old] += step
        self._changed.add(old, new)

    def _grow(self, classes: int) -> None:
        if classes > 0:
            self._changed = Changed()  # tensors of another length are stored whole
            rows = classes * self._components
            self._counts = widened(self._counts, classes)
            self._means, self._axes = widened(self._means, rows), widened(self._axes, rows)

    def columns(self) -> dict[str, Tensor]:
        """The distributions, a row a component: counts, means and axes. Views."""
        return {"counts": self._counts.view(-1), "means": self._means, "axes": self._axes}

    def capture(self) -> dict[str, Rows]:
        """memory/counts, means and axes; all have a row a component."""
        changed = self._changed.take()
        return {f"memory/{name}": Rows(column, changed) for name, column in self.columns().items()}

    def meta(self) -> dict[str, Any]:
        """Counters, as JSON."""
        return {"classes": len(self._counts)}

    def restore(self, meta: Mapping[str, Any], state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        self._grow(meta["classes"] - len(self._counts))
        copy_into(self.columns(), {name.removeprefix("memory/"): value for name, value in state.items()})
        self._changed.take()


class RecordsAndDreams:
    """A replay memory and dreams side by side, both of every record.

    Args:
        share: of what is drawn, that is dreamed.
    """

    def __init__(self, records: ReplayMemory, dreams: Dreams, share: float) -> None:
        self._records, self._dreams, self._share = records, dreams, share
        self.slots = records.slots

    @property
    def size(self) -> int:
        return self._records.size

    def add(self, batch: Batch, y: Sequence[int], rng: torch.Generator, logits: Tensor | None = None) -> None:
        self._records.add(batch, y, rng, logits)
        self._dreams.add(batch, y, rng)

    def draw(self, count: int, rng: torch.Generator) -> Replayed:
        """Records, then dreams, whose slot is `NONE`."""
        dreamed = round(self._share * count)
        records, dreams = self._records.draw(count - dreamed, rng), self._dreams.draw(dreamed, rng)
        slots = torch.full_like(dreams.y, NONE)
        return Replayed(
            torch.cat([records.x, dreams.x]), torch.cat([records.y, dreams.y]), torch.cat([records.slots, slots])
        )

    def logits(self, slots: Tensor) -> tuple[Tensor, Tensor] | None:
        """As a `ReplayMemory` has them; of dreams there are none."""
        found = self._records.logits(slots.clamp_min(0))
        return found and (found[0], found[1] & (slots != NONE)[:, None])

    def remembered(self) -> Collection[bytes]:
        return self._records.remembered()

    def relabel(self, id_: bytes, y: int) -> None:
        """What was learned of the record by the distribution of its former class stays there."""
        self._records.relabel(id_, y)

    def flush(self, label: int) -> int:
        """Drops a class from both; how many records that were."""
        self._dreams.flush(label)
        return self._records.flush(label)

    def columns(self) -> dict[str, Tensor]:
        return {**self._records.columns(), **self._dreams.columns()}

    def capture(self) -> dict[str, Rows]:
        return {**self._records.capture(), **self._dreams.capture()}

    def meta(self) -> dict[str, Any]:
        return {"records": self._records.meta(), "dreams": self._dreams.meta()}

    def restore(self, meta: Mapping[str, Any], state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        dreamed = {f"memory/{name}" for name in self._dreams.columns()}
        self._dreams.restore(meta["dreams"], {name: value for name, value in state.items() if name in dreamed})
        self._records.restore(meta["records"], {name: value for name, value in state.items() if name not in dreamed})


Memory = ReplayMemory | Dreams | RecordsAndDreams  # what a classifier replays the past from
