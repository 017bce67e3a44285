"""The seam between a stream and what learns from it.

`Learner` has five members beside its sizes, and each is there because the commit needs it: `refuses` keeps out of an
update what would break it; `learn` is one update and nothing else (one batch, one optimiser step, predictions made
before it); `capture` and `restore` are the two halves of a version; `model` is the part that serving needs. What is
*not* here is as deliberate. There is no `predict`: it belongs to the model, since a sampler that never trains must be
able to call it. There is no `save(path)`: bytes, digests and Redis belong to the store. There is no generator kept
inside: the random numbers of an update come from (seed, update number), so that randomness is a function of the
update and never hidden state. And there is no `fit`: the stream does not end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Literal, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from torch import Tensor, nn
from typing_extensions import TypeVar  # with a default

from models.capabilities import Model


class Options(BaseModel):
    """Base of every learner's options; unknown keys are errors.

    A field marked by `structural` decides the shape of the learned state: it cannot change once a version exists.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of_version(cls, stored: Mapping[str, Any]) -> Self:
        """Options of a stored version. One that is younger than the version gets the value that held before it came."""
        extras = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
        before = {
            name: extra["before"] for name, extra in extras.items() if isinstance(extra, dict) and "before" in extra
        }
        within = {name: inner.of_version(stored[name]) for name, inner in cls.within().items() if name in stored}
        return cls(**{**before, **stored, **within})

    @classmethod
    def within(cls) -> dict[str, type[Options]]:
        """The options that have options of their own."""
        kinds = {name: info.annotation for name, info in cls.model_fields.items()}
        return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Options)}


def structural(default: Any, *, before: Any = None, **constraints: Any) -> Any:
    """A pydantic `Field` whose value decides the shape of the learned state.

    Args:
        before: what versions have that are older than the option, where that is not its default.
    """
    extra: JsonDict = {"structural": True} if before is None else {"structural": True, "before": before}
    return Field(default, json_schema_extra=extra, **constraints)


def structural_fields(options: type[Options]) -> frozenset[str]:
    """Names of the options that cannot change once a version exists; of options within options with a dot between."""
    extras = {name: info.json_schema_extra for name, info in options.model_fields.items()}
    own = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("structural")}
    within = {f"{name}.{key}" for name, inner in options.within().items() for key in structural_fields(inner)}
    return frozenset(own | within)


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch in the order in which it is learned. Nothing in it is ever written to."""

    x: Tensor  # images (B, C, H, W) uint8, or texts (B, L) int32 Unicode code points, zero-padded
    labels: Sequence[str | None]  # B
    origins: Tensor  # (B, 3) int64 on the CPU: index into the topics of the model, partition, offset
    ids: Tensor  # (B, 16) uint8 on the CPU: `id_digest` of the record's id
    #: row → a text that is longer than x, all of it: (n,) int32 on the CPU; for learners that read texts of any length
    whole: Mapping[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: slice) -> Batch:
        """These records alone."""
        return self.rows(range(len(self))[rows])

    def rows(self, rows: Sequence[int]) -> Batch:
        """These records alone, in this order."""
        some = list(rows)
        labels = [self.labels[row] for row in some]
        whole = {number: self.whole[row] for number, row in enumerate(some) if row in self.whole}
        return Batch(self.x[some], labels, self.origins[some], self.ids[some], whole)


def id_digest(id_: str) -> bytes:
    """A record's id as `Batch.ids` holds it: its blake2b-128."""
    return hashlib.blake2b(id_.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Report:
    """What one update saw, computed with the weights from *before* the update (prequential)."""

    loss: float  # mean over the incoming records, in nats
    predicted: Sequence[str | None] | None = None  # B; None for learners that do not classify
    metrics: Mapping[str, float] = field(default_factory=dict)  # further means over the incoming records, by name
    alarms: Sequence[str] = ()  # what an operator should look at; reported once, when it starts
    logs: Tensor | None = None  # (B, K) of a classifier: logarithms of probabilities, new classes among them


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor of which only the rows in `changed` were written since the last capture.

    It lets a commit copy and move 300 slots of a replay memory instead of all 10,000. `tensor` is the live tensor, so
    it must be copied before the next update. `Frozen` gives the rows of what never changes.
    """

    tensor: Tensor  # (N, ...)
    changed: Tensor | None  # (K,) int64, sorted, unique; None: all of them


def tensor(value: Tensor | Rows) -> Tensor:
    """All rows of what `capture` gives."""
    return value.tensor if isinstance(value, Rows) else value


class Frozen:
    """Tensors that never change. `capture` gives them whole once; later it names no changed row, and no commit copies
    them again."""

    def __init__(self) -> None:
        self._given = False

    def rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor | Rows]:
        """What `capture` gives of these tensors. Scalars have no rows: they are given as they are."""
        changed = torch.empty(0, dtype=torch.int64) if self._given else None
        self._given = True
        return {name: Rows(tensor, changed) if tensor.dim() else tensor for name, tensor in tensors.items()}

    def restored(self) -> None:
        """Call it in `restore`: the store has these tensors already."""
        self._given = True


@dataclass(frozen=True, slots=True)
class State:
    """Everything a learner is. `serving` + `meta` are enough to build the model; `training` to go on learning."""

    serving: Mapping[str, Tensor | Rows]
    training: Mapping[str, Tensor | Rows]
    meta: Mapping[str, Any] = field(default_factory=dict)  # JSON: class names, counters


@dataclass(frozen=True, slots=True)
class Reference:
    """What a learner starts from, as its options name it."""

    kind: Literal["file", "folder", "version"]
    name: str  # a path, or MODEL or MODEL@VERSION of the same store


@dataclass(frozen=True, slots=True)
class Source:
    """What a reference led to. It is needed once, where a model has no version yet: state holds all from then on."""

    digest: str  # of the file, of all files of the folder, or of the version's manifest
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # of a file; of a version, what serving needs
    training: Mapping[str, Tensor] = field(default_factory=dict)  # of a version
    files: Mapping[str, bytes] = field(default_factory=dict)  # of a folder: its small files by name
    learner: str | None = None  # of a version, as are the rest
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


class Learner(Protocol):
    """Learns from batches, one update each. See the module's docstring for why it is this small."""

    @property
    def needs_label(self) -> bool:
        """Whether records without a label are skipped."""

    @property
    def replay_capacity(self) -> int:
        """The most records that the replay memory holds; 0: there is none."""

    @property
    def replay_size(self) -> int:
        """Records in the replay memory."""

    @property
    def model(self) -> Model:
        """The live model, changed in place by `learn`; read it only between updates."""

    def refuses(self, labels: Sequence[str | None]) -> Mapping[int, str]:
        """Row → reason, for the rows that `learn` must not see: the worker dead-letters them and drops them first.

        It takes all labels of a batch, since two new ones may compete for the last free class, and it depends on what
        was learned before: ask on the thread that learns, right before `learn`.
        """

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        """One update. Reads `batch`, never writes to it; draws random numbers from `rng` (on the CPU) alone.

        Raises:
            ValueError: the batch holds a label that `refuses` names. Nothing was learned.
        """

    def capture(self) -> State:
        """Returns the state, as views on the live tensors, and starts to track changed rows anew.

        `Rows.changed` names the rows written since the last `capture` or `restore`; before the first, it is None.
        """

    def restore(self, state: State) -> None:
        """Takes the state of a learner with the same options. Tensors are copied.

        Raises:
            ValueError: a tensor is missing, or of another shape: its message names it.
        """


@runtime_checkable
class Correcting(Protocol):
    """A learner that can replace the label of a record which it remembers."""

    def remembered(self) -> Collection[bytes]:
        """The ids, 16 bytes each, of the records in the replay memory. A view: read it only between updates."""

    def correct(self, id_: bytes, label: str, rng: torch.Generator) -> bool:
        """Gives the record of this id (16 bytes) another label from now on; False: it is not in the replay memory.

        A class that is new may need random numbers, from `rng` alone.

        Raises:
            ValueError: `refuses` names the label, and the record is there. Nothing was changed.
        """


@runtime_checkable
class Reacting(Protocol):
    """A classifier that can learn faster for a while, after a drift."""

    def scale_learning_rate(self, factor: float) -> None:
        """From the next update on its rates are so many times its own. No part of its state: the caller keeps it."""


@runtime_checkable
class Flushing(Protocol):
    """A classifier that can forget what it replays of a class, after a drift."""

    @property
    def replays(self) -> bool:
        """Whether there is anything that can be flushed."""

    def flush(self, label: str) -> int:
        """Drops the records of a class from the replay memory; how many that were.

        Raises:
            KeyError: no record with this label was learned.
        """


Of = TypeVar("Of", bound=Options, default=Any)
#: what a learner is built from: where there is no version yet, what its options name, by the names of the blueprint's
#: `sources`; else the state that is restored next
Start = Mapping[str, Source] | State
NOTHING: Start = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Blueprint(Generic[Of]):
    """How a family of models is built: one entry of the registry. `Of` are its options."""

    options: type[Of]
    #: (options, x shape without the batch, e.g. (1, 28, 28) or (256,), seed, device) → an untrained learner
    learner: Callable[[Of, tuple[int, ...], int, torch.device], Learner]
    #: (options, x shape, meta of a captured state) → an untrained model on the CPU, ready for `load_state_dict`
    model: Callable[[Of, tuple[int, ...], Mapping[str, Any]], Model]
    #: the kind of record that it learns from: "image" or "text"
    input: str
    #: options → what the learner starts from, by name
    sources: Callable[[Of], Mapping[str, Reference]] = field(default=lambda options: {})
    #: options → whether it reads texts of any length (`Batch.whole`), and its model x (B, n) with any n
    reads_whole: Callable[[Of], bool] = field(default=lambda options: False)
    #: in place of `learner`, where a learner starts from something: it is given what that is, too
    started: Callable[[Of, tuple[int, ...], int, torch.device, Start], Learner] | None = None

    def build(
        self, options: Of, shape: tuple[int, ...], seed: int, device: torch.device, start: Start = NOTHING
    ) -> Learner:
        """A learner, complete: it can learn, or be restored from the state that it was built from.

        Raises:
            ValueError: it cannot have records of this shape, or a source or state does not fit: the message names it.
        """
        if self.started is not None:
            return self.started(options, shape, seed, device, start)
        if start and not isinstance(start, State):
            raise ValueError("its blueprint names sources, and has no factory that takes them: give it `started`.")
        return self.learner(options, shape, seed, device)


def update_generator(seed: int, update: int) -> torch.Generator:
    """The random numbers of one update: a CPU generator that is a function of (model seed, update number)."""
    digest = hashlib.blake2b(f"{seed}:{update}".encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)


def move(state: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """The same tensors on another device."""
    return {name: tensor.to(device) for name, tensor in state.items()}


M = TypeVar("M", bound=nn.Module)


def module_on(build: Callable[[], M], device: torch.device) -> M:
    """A module whose default initialisers leave the global random numbers as they were."""
    # Not on the device "meta": its first use imports sympy, two seconds of every process.
    with torch.random.fork_rng(devices=[]):
        return build().to(device)


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether a type has each value of another one; double precision has the whole numbers that sums come to."""
    same_kind = wide.is_floating_point == narrow.is_floating_point
    return torch.promote_types(wide, narrow) == wide and (same_kind or wide == torch.float64)


def copy_into(targets: Mapping[str, Tensor], source: Mapping[str, Tensor | Rows]) -> None:
    """Copies every tensor of `source` into the one of the same name.

    Raises:
        ValueError: a tensor is missing, has no target, or is of another shape, or of a type of which the target's does
            not hold every value; nothing is written then. Former versions had sums in narrower types.
    """
    tensors = {name: tensor(value) for name, value in source.items()}
    if missing := sorted(targets.keys() ^ tensors.keys()):
        raise ValueError(f"{missing[0]} is in only one of the stored state and this learner. Restore with its options.")
    for name, target in targets.items():
        found = tensors[name]
        if found.shape != target.shape or not holds(target.dtype, found.dtype):
            raise ValueError(
                f"{name} is {tuple(found.shape)} {found.dtype} in the stored state and {tuple(target.shape)} "
                f"{target.dtype} in this learner. Restore with the options and input that it was learned with."
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
