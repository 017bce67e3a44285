"""Replay memory: a bounded sample of the past, on the model's device. No operation costs more with more slots.

Which record takes which slot is the business of a policy. `Reservoir` keeps every record of the stream with equal
probability (Vitter 1985, "Random sampling with a reservoir", algorithm R). `Balanced` is class-balancing reservoir
sampling (Chrysakis and Moens 2020, "Online continual learning from imbalanced data", algorithm 1): classes get equal
room where the stream has enough of them, and each class's share is a uniform sample of that class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.labels import NONE
from models.learner import Batch, Rows, copy_into

PolicyName = Literal["reservoir", "balanced"]
NO_ID = b""  # of a slot that holds no record


class Changed:
    """Which rows were written since the last `take`; before the first one, all of them."""

    def __init__(self) -> None:
        self._rows: set[int] | None = None

    def add(self, *rows: int) -> None:
        if self._rows is not None:
            self._rows.update(rows)

    def take(self) -> Tensor | None:
        rows, self._rows = self._rows, set()
        return None if rows is None else torch.tensor(sorted(rows), dtype=torch.int64)


class Policy(ABC):
    """Chooses slots. `slot` may write down what it chose: the caller stores the record."""

    @abstractmethod
    def slot(self, label: int, chance: float) -> int | None:
        """The slot for the next record of the stream, or None; `chance` is uniform in [0, 1)."""

    def relabel(self, slot: int, label: int) -> None:  # noqa: B027 - to most policies it makes no difference
        """The record in this slot is of another class from now on."""

    @abstractmethod
    def flush(self, label: int, moved: Mapping[int, int], size: int) -> None:
        """A class was dropped. Records of others `moved` (from → to) into its slots; the first `size` are used."""

    def meta(self) -> dict[str, Any]:
        """Counters, as JSON."""
        return {}

    def capture(self) -> dict[str, Rows]:
        """What it keeps for each slot."""
        return {}

    @abstractmethod
    def restore(self, meta: Mapping[str, Any], y: Tensor, tensors: Mapping[str, Tensor | Rows]) -> None: ...


class Reservoir(Policy):
    """The t-th record of the stream is kept with probability N / t, in a slot chosen uniformly.

    After a flush t is scaled by the share of the memory that stayed, as if the class had never come.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._used = 0
        self._seen = 0

    def slot(self, label: int, chance: float) -> int | None:
        self._seen += 1
        if self._used < self._slots:
            self._used += 1
            return self._used - 1
        slot = int(chance * self._seen)
        return slot if slot < self._slots else None

    def flush(self, label: int, moved: Mapping[int, int], size: int) -> None:
        self._seen = round(self._seen * size / self._used)
        self._used = size

    def meta(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def restore(self, meta: Mapping[str, Any], y: Tensor, tensors: Mapping[str, Tensor | Rows]) -> None:
        self._seen = meta["seen"]
        self._used = len(y)


class Balanced(Policy):
    """A full memory takes a slot from the largest class, until the record's own class has been the largest.

    From then on the class is *full* and keeps a reservoir of its own: of n_c records seen, one is kept with
    probability m_c / n_c, where m_c is the class's number of slots. Records without a label are one class. Each
    class has a list of its slots and each slot its index in that list, so that a slot is found, taken and given in
    O(1); finding the largest class, for a record of a class that is not full, is O(classes).
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._used = 0
        self._members: dict[int, list[int]] = {}  # class → its slots
        self._owner = [NONE] * slots  # slot → class
        self._index_in_class = torch.zeros(slots, dtype=torch.int64)  # slot → its index in the list of its class
        self._seen: dict[int, int] = {}  # class → records of the stream
        self._full: set[int] = set()
        self._changed = Changed()

    def slot(self, label: int, chance: float) -> int | None:
        self._seen[label] = self._seen.get(label, 0) + 1
        members = self._members.setdefault(label, [])
        if self._used < self._slots:
            slot = self._used
            self._used += 1
            self._append(label, slot)
            return slot
        if label not in self._full:
            largest = max(self._members, key=lambda name: len(self._members[name]))
            self._full.add(label if len(members) == len(self._members[largest]) else largest)
        if label in self._full:
            choice = int(chance * self._seen[label])
            return members[choice] if choice < len(members) else None
        slot = self._members[largest][int(chance * len(self._members[largest]))]
        self._remove(slot)
        self._append(label, slot)
        return slot

    def relabel(self, slot: int, label: int) -> None:
        """As if the record had come with this label: it counts as seen of that class, and of the other no more."""
        before = self._owner[slot]
        self._seen[before] -= 1
        self._seen[label] = self._seen.get(label, 0) + 1
        self._members.setdefault(label, [])
        self._remove(slot)
        self._append(label, slot)
        if not self._members[before]:
            self._full.discard(before)  # a reservoir of no slots would never take a record again

    def flush(self, label: int, moved: Mapping[int, int], size: int) -> None:
        self._seen[label] = 0
        self._full.discard(label)
        self._members[label].clear()
        for slot, hole in moved.items():
            owner, index = self._owner[slot], int(self._index_in_class[slot])
            self._owner[hole], self._index_in_class[hole], self._members[owner][index] = owner, index, hole
        self._changed.add(*moved.values())
        self._used = size

    def _append(self, label: int, slot: int) -> None:
        members = self._members[label]
        self._owner[slot] = label
        self._index_in_class[slot] = len(members)
        self._changed.add(slot)
        members.append(slot)

    def _remove(self, slot: int) -> None:
        members, index = self._members[self._owner[slot]], int(self._index_in_class[slot])
        last = members.pop()
        if last != slot:
            members[index] = last
            self._index_in_class[last] = index
            self._changed.add(last)

    def meta(self) -> dict[str, Any]:
        return {"seen_of_class": [[label, seen] for label, seen in self._seen.items()], "full": sorted(self._full)}

    def capture(self) -> dict[str, Rows]:
        return {"place": Rows(self._index_in_class, self._changed.take())}

    def restore(self, meta: Mapping[str, Any], y: Tensor, tensors: Mapping[str, Tensor | Rows]) -> None:
        """Rebuilds the lists of slots from the stored indices. It costs O(slots), once."""
        copy_into({"place": self._index_in_class}, tensors)
        self._changed.take()
        self._seen = dict(meta["seen_of_class"])
        self._full = set(meta["full"])
        self._used = len(y)
        self._owner[: self._used] = y.tolist()
        self._members = {label: [] for label in self._seen}
        for slot in torch.argsort(self._index_in_class[: self._used], stable=True).tolist():
            self._members[self._owner[slot]].append(slot)


POLICIES: Mapping[PolicyName, type[Reservoir] | type[Balanced]] = {"reservoir": Reservoir, "balanced": Balanced}


class Replayed(NamedTuple):
    """Records drawn from the memory."""

    x: Tensor  # (R, ...) as in `Batch.x`
    y: Tensor  # (R,) int64 class numbers
    slots: Tensor  # (R,) int64


def records_of(id_: bytes, columns: Mapping[str, Tensor], classes: Sequence[str]) -> Batch:
    """The records of an id (16 bytes) in the columns of a memory."""
    rows = (columns["ids"].cpu() == torch.tensor(list(id_), dtype=torch.uint8)).all(1).nonzero().squeeze(1)
    labels = [classes[number] for number in columns["y"].cpu()[rows].tolist()]
    return Batch(columns["x"][rows], labels, columns["origins"].cpu()[rows], columns["ids"].cpu()[rows])


class ReplayMemory:
    """Preallocated slots, each with the record, its class, where it came from and its id.

    Args:
        slots: the most records that are kept; 0 keeps none.
        shape: of one record.
        dtype: of one record.
        logits: of so many classes the logits that a record came with are kept; 0: of none.
        prefix: of its names in a state.
    """

    def __init__(
        self,
        slots: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        policy: PolicyName | Policy,
        logits: int = 0,
        prefix: str = "memory/",
    ) -> None:
        self._prefix = prefix
        self.slots = slots
        self.size = 0
        self._device = device
        self._policy: Policy = POLICIES[policy](slots) if isinstance(policy, str) else policy
        self._changed = Changed()
        self._ids: list[bytes] = []  # slot → id, as in the column
        #: and back; of what was published twice under one id, a set. (Garbage collection would look at a million sets.)
        self._slots_of: dict[bytes, int | set[int]] = {}
        self._columns = {
            "x": torch.zeros(slots, *shape, dtype=dtype, device=device),
            "y": torch.full((slots,), NONE, dtype=torch.int64, device=device),
            "origins": torch.zeros(slots, 3, dtype=torch.int64, device=device),
            "ids": torch.zeros(slots, 16, dtype=torch.uint8, device=device),
        }
        if logits:
            self._columns["logits"] = torch.zeros(slots, logits, device=device)
            self._columns["known"] = torch.zeros(slots, dtype=torch.int64, device=device)  # classes when it came

    def add(self, batch: Batch, y: Sequence[int], rng: torch.Generator, logits: Tensor | None = None) -> None:
        """Offers the records of a batch, in order, one random number each; with logits (B, K), where they are kept."""
        if not self.slots:
            return
        chances = torch.rand(len(batch), generator=rng, dtype=torch.float64).tolist()
        taken: dict[int, int] = {}  # slot → row of the batch: the last record that takes a slot has it
        for row, (label, chance) in enumerate(zip(y, chances, strict=True)):
            slot = self._policy.slot(label, chance)
            if slot is not None:
                taken[slot] = row
        if not taken:
            return
        self.size = max(self.size, max(taken) + 1)  # slots fill from the first to the last
        self._changed.add(*taken)
        ids = _split(batch.ids)
        self._ids += [NO_ID] * (self.size - len(self._ids))
        for slot, row in taken.items():
            self._index(slot, ids[row])
        slots = torch.tensor(list(taken), device=self._device)
        rows = torch.tensor(list(taken.values()))
        values = {"x": batch.x, "y": torch.tensor(y), "origins": batch.origins, "ids": batch.ids}
        if logits is not None and "logits" in self._columns:
            width = self._columns["logits"].shape[1]
            values["logits"] = F.pad(logits[:, :width], (0, max(0, width - logits.shape[1])))
            values["known"] = torch.full((len(batch),), min(width, logits.shape[1]))
        for name, value in values.items():
            self._columns[name][slots] = value[rows.to(value.device)].to(self._device)

    def remembered(self) -> Collection[bytes]:
        """The ids, 16 bytes each, of the records that are kept. A view."""
        return self._slots_of.keys()

    def relabel(self, id_: bytes, y: int) -> None:
        """The record of this id, one of `remembered`, is of class y; where it is kept twice, both are."""
        found = self._slots_of[id_]
        for slot in sorted(found) if isinstance(found, set) else [found]:  # in an order that outlives a restart
            self._policy.relabel(slot, y)
            self._columns["y"][slot] = y
            self._changed.add(slot)

    def forget(self, label: int) -> None:
        """Resets how many records of a class were seen. It has none left, and its number goes to another class."""
        self._policy.flush(label, {}, self.size)

    def flush(self, label: int) -> int:
        """Drops the records of a class; how many that were.

        The last records of others move into their slots, so that what is free stays last: no more than are dropped.
        """
        gone = (self._columns["y"][: self.size] == label).tolist()
        size = self.size - sum(gone)
        if size == self.size:
            return 0
        holes = [slot for slot in range(size) if gone[slot]]
        last = [slot for slot in range(size, self.size) if not gone[slot]]
        for column in self._columns.values():
            column[holes] = column[last]
        moved = [self._ids[slot] for slot in last]
        for slot in [*holes, *range(size, self.size)]:
            self._drop_index(slot)
        del self._ids[size:]
        for slot, id_ in zip(holes, moved, strict=True):
            self._index(slot, id_)
        self._changed.add(*holes)
        self._policy.flush(label, dict(zip(last, holes, strict=True)), size)
        self.size = size
        return sum(gone)

    def _index(self, slot: int, id_: bytes) -> None:
        self._drop_index(slot)
        self._ids[slot] = id_
        found = self._slots_of.setdefault(id_, slot)
        if isinstance(found, set):
            found.add(slot)
        elif found != slot:
            self._slots_of[id_] = {found, slot}

    def _drop_index(self, slot: int) -> None:
        id_, self._ids[slot] = self._ids[slot], NO_ID
        found = self._slots_of.get(id_)
        if isinstance(found, set):
            found.discard(slot)
        if found == slot or found == set():
            del self._slots_of[id_]

    def draw(self, count: int, rng: torch.Generator) -> Replayed:
        """Draws uniformly, with replacement (without it a draw would cost O(slots)); never more than there are."""
        count = min(count, self.size)
        slots = torch.randint(max(self.size, 1), (count,), generator=rng).to(self._device)
        return Replayed(self._columns["x"][slots], self._columns["y"][slots], slots)

    def logits(self, slots: Tensor) -> tuple[Tensor, Tensor] | None:
        """slots (R,) → the logits (R, L) that these records came with, and (R, L) bool: which of them there are."""
        if "logits" not in self._columns:
            return None
        kept = self._columns["logits"][slots]
        return kept, torch.arange(kept.shape[1], device=kept.device) < self._columns["known"][slots][:, None]

    def columns(self) -> dict[str, Tensor]:
        """What is kept, a row a record: x, y, origins and ids. Views."""
        return {name: column[: self.size] for name, column in self._columns.items()}

    def capture(self) -> dict[str, Rows]:
        """memory/x, y, origins and ids, and what the policy keeps for each slot; all have a row a slot."""
        changed = self._changed.take()
        columns = {name: Rows(column, changed) for name, column in self._columns.items()}
        return {f"{self._prefix}{name}": rows for name, rows in (columns | self._policy.capture()).items()}

    def meta(self) -> dict[str, Any]:
        """Counters, as JSON."""
        return {"size": self.size, **self._policy.meta()}

    def restore(self, meta: Mapping[str, Any], state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        tensors = {name.removeprefix(self._prefix): value for name, value in state.items()}
        copy_into(self._columns, {name: tensors.pop(name) for name in self._columns if name in tensors})
        self._changed.take()
        self.size = meta["size"]
        self._policy.restore(meta, self._columns["y"][: self.size], tensors)
        self._ids, self._slots_of = [NO_ID] * self.size, {}
        for slot, id_ in enumerate(_split(self._columns["ids"][: self.size].cpu())):
            self._index(slot, id_)


def _split(ids: Tensor) -> list[bytes]:
    """(N, 16) uint8 on the CPU → N times 16 bytes."""
    whole = ids.numpy().tobytes()
    return [whole[at : at + 16] for at in range(0, len(whole), 16)]
