"""What a version is, as JSON: its parent, its state as tensors under digests, what made it. See docs/formats.md.

A version's digest is the SHA-256 of the very bytes of its manifest. As those name the parent's digest, the
history is a chain of hashes: whoever knows a version's digest knows all that came before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from pipeline.errors import ConfigError, Corrupt
from pipeline.records import POSITION, Partition, Place
from pipeline.store.codec import ITEM_BYTES, sha256
from pipeline.store.lineage import Int64, Lineage, Runs

FORMAT = 1

Group = Literal["serving", "training"]

PROBED = ("now", "best", "first", "records")  # accuracies on held-out records of a class, and how many there are
REF = re.compile(rb"([0-9]{1,18}):([0-9a-f]{64})")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _probed(kept: dict[str, int | float]) -> dict[str, int | float]:
    if missing := [name for name in PROBED if name not in kept]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return kept


Size = Annotated[int, Field(ge=0, lt=2**63)]
Probe = Annotated[dict[str, int | float], AfterValidator(_probed)]
Metric = Annotated[float | None, AfterValidator(_finite)]  # None: not a number; 1e999 is none


class Immutable(BaseModel):
    """Base of what is stored: values never change, fields of a later headrace are ignored."""

    model_config = ConfigDict(frozen=True)


class Ref(Immutable):
    """A version, named so that it cannot be taken for another one. As text: "17:9f2c…"."""

    version: Int64
    digest: str

    def __str__(self) -> str:
        return f"{self.version}:{self.digest}"

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """The reference that `text` is.

        Raises:
            Corrupt: it is none.
        """
        if found := REF.fullmatch(text):
            return cls(version=int(found[1]), digest=found[2].decode())
        raise Corrupt(f"Redis names a version {text[:80]!r}, which is not NUMBER:DIGEST. Restore Redis from a backup.")


class Part(Immutable):
    """One object of a tensor: rows from `first` on, or (None) rows whose numbers are in the object."""

    digest: str
    bytes: Size  # of the object
    first: Size | None = None


class TensorEntry(Immutable):
    """A tensor is its parts, applied in order: where rows are in several of them, the last one counts."""

    dtype: str
    shape: tuple[Size, ...]
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        """Of the tensor, once it is loaded; 0 for a dtype that is not known here: it is never loaded."""
        return ITEM_BYTES.get(self.dtype, 0) * math.prod(self.shape)


class Stored(Immutable):
    """Base of the JSON documents in Redis."""

    format: int = FORMAT

    @classmethod
    def read(cls, raw: bytes, what: str) -> Self:
        """The document in these bytes; errors call it `what`.

        Raises:
            Corrupt: of a newer format, or damaged.
        """
        try:
            written = Stored.model_validate_json(raw).format
            if written > FORMAT:
                raise Corrupt(
                    f"{what} is of format {written}; this code reads up to {FORMAT}. "
                    f"Upgrade headrace, use an older version, or start anew with `headrace reset`."
                )
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Corrupt(f"{what} is damaged at {where!r}: {first['msg']}. Use another version.") from None


class Learned(Immutable):
    """One of the last records that a version learned."""

    record: str = Field(pattern=f"^{POSITION.pattern}$")  # topic:partition:offset
    label: str | None = None
    predicted: str | None = None  # before it was learned; None: nothing was known yet, or it is no classifier


class About(Stored):
    """What a version is, but for its place in the history and its tensors: a draft says it, and the manifest keeps it.

    The dicts without types are JSON; numbers that are not finite become null.
    """

    learner: str
    input: dict[str, Any]
    options: dict[str, Any]
    config: dict[str, Any]
    classes: list[str]
    seed: int
    updates: Int64
    counts: dict[str, Int64]  # records by outcome, of the model's whole life
    watermark: dict[str, dict[Int64, Int64]]  # topic → partition → next offset to read
    topic_ids: dict[str, str] = {}  # topic → Kafka's id of it: one that was made again has another
    pending: Runs = Runs()  # what was read, in order, and is neither learned nor given up yet
    newest_timestamp_ms: Int64 | None = None  # of all learned records
    metrics: dict[str, Metric]
    environment: dict[str, Any]  # headrace, torch, python, device, threads, processor, kernels
    meta: dict[str, Any]  # the learner's own
    worker: dict[str, Any]  # the worker's own: what it needs to go on
    probes: dict[str, Probe] = {}  # by class
    diagnoses: dict[str, str] = {}  # what is wrong, by name: what is seen, and what to do
    last: tuple[Learned, ...] = ()  # of what was learned since the parent


class Named(Stored):
    """Which version it is, of which model. In front of `About` in the JSON of a manifest."""

    model: str
    family: str
    version: Int64
    parent: Ref | None = None
    created_ms: Int64


class Manifest(About, Named):
    """One version of a model."""

    keyframe: Ref | None = None  # None: training is in here; else the ancestor that learning goes on from
    lineage: str  # SHA-256 of the version's entry in the history
    serving: dict[str, TensorEntry]
    training: dict[str, TensorEntry]

    _raw: bytes | None = PrivateAttr(None)

    @classmethod
    def read(cls, raw: bytes, what: str) -> Self:
        """The manifest in these bytes; errors call it `what`.

        Raises:
            Corrupt: of a newer format, or damaged.
        """
        manifest = super().read(raw, what)
        manifest._raw = raw
        return manifest

    @property
    def raw(self) -> bytes:
        """The bytes as stored."""
        if self._raw is None:
            self._raw = self.model_dump_json(exclude_none=True).encode()
        return self._raw

    @property
    def digest(self) -> str:
        """Of the version."""
        return sha256(self.raw)

    @property
    def ref(self) -> Ref:
        """Number and digest."""
        return Ref(version=self.version, digest=self.digest)

    @property
    def is_keyframe(self) -> bool:
        """Whether it holds what training needs, too."""
        return self.keyframe is None

    def tensors(self, group: Group) -> dict[str, TensorEntry]:
        """What serving needs, or what only going on learning needs."""
        return self.serving if group == "serving" else self.training

    def loaded_bytes(self, group: Group) -> int:
        """What loading takes: all tensors, also those that share objects, and each object once."""
        entries = self.tensors(group).values()
        objects = {part.digest: part.bytes for entry in entries for part in entry.parts}
        return sum(entry.nbytes for entry in entries) + sum(objects.values())

    def check_size(self, group: Group, most: float) -> None:
        """Checks what loading takes before anything is fetched: many tensors may name one object.

        Raises:
            ConfigError: it takes more than `most` bytes.
        """
        if (needed := self.loaded_bytes(group)) > most:
            raise ConfigError(
                f"Version {self.version} of {self.model} takes {needed} bytes, over sampler.max_model_bytes = {most}. "
                "Raise it to load it."
            )

    def accounts_for(self, place: Place) -> bool:
        """Whether the record has its outcome in this version. One that waits for its label has none."""
        return place.offset < self.positions().get(place.partition, 0) and place not in self.pending

    def positions(self) -> dict[Partition, int]:
        """The watermark: the next offset to read of each partition."""
        return {
            Partition(topic, number): offset
            for topic, offsets in self.watermark.items()
            for number, offset in offsets.items()
        }


def watermark_of(positions: Mapping[Partition, int]) -> dict[str, dict[int, int]]:
    """The next offsets to read, by topic and partition."""
    watermark: dict[str, dict[int, int]] = {}
    for (topic, number), offset in sorted(positions.items()):
        watermark.setdefault(topic, {})[number] = offset
    return watermark


class HistoryEntry(Stored):
    """The entry of a version in the history. It stays when retention has removed the manifest."""

    version: Int64
    parent: Ref | None = None
    created_ms: Int64
    updates: Int64
    counts: dict[str, Int64]
    metrics: dict[str, Metric]
    lineage: Lineage
