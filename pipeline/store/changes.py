"""What a lineage records beside its records: each change is one entry `{kind: what happened}` of its list `changes`.

All kinds are listed in `Change`, and in the table of docs/formats.md. A lineage may have kinds and fields of a later
headrace: they are read and kept, and mean nothing here.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from pipeline.log.offsets import Jump, Open, Span

Pair = Annotated[list[Any], Field(min_length=2, max_length=2)]  # before, now
Differences = dict[str, Pair]  # by key; None where there is no value

_Since = TypedDict("_Since", {"from": int})


class Drifted(Open, total=False):
    """The prequential error rose for good."""

    update: int
    reaction: str


class Flushed(Open, total=False):
    """Records left the replay memory, by class."""

    update: int
    records: dict[str, int]


class FarAbove(Open, total=False):
    """A loss was far above its recent range."""

    update: int
    loss: float | None  # None: not finite


class Alarmed(Open, total=False):
    """The learner raised an alarm."""

    update: int
    name: str


class Guarded(Open, total=False):
    """Records that broke the state were taken out."""

    update: int
    records: int


class HeldOutBefore(Open):
    """So many of the held-out records came before the correction that begins with this label."""

    records: int
    before: Annotated[list[Any], Field(min_length=3, max_length=3)]  # topic, partition, offset


class Doubtful(Span):
    """What was read of these offsets may be of a topic that was made again meanwhile."""

    topic: str
    partition: int


class Lost(Open, total=False):
    """Redis came back older: numbers above this one, up to that one, are not used again."""

    above: int
    up_to: int


class HeadDiffered(Open, _Since, total=False):
    """Learned again from a keyframe, the head came out with other weights."""

    differs: dict[str, float | None]  # tensor → largest difference
    environment: Differences
    gone: int  # records that the log does not hold any more


class Change(Open, total=False):
    """All kinds of change; an entry of a lineage has one of them."""

    alarm: Alarmed
    config: Differences  # of the model's configuration
    doubtful: Doubtful
    drift: Drifted
    environment: Differences  # of what learned the versions
    flush: Flushed
    guard: Guarded
    held_out: HeldOutBefore
    jump: Jump  # of a reader, over what is gone
    loss: FarAbove
    lost: Lost
    replayed: HeadDiffered
    sources: dict[str, str]  # what an untrained learner started from: name → digest


#: kinds that learning the same records again makes by itself
MADE_AGAIN = frozenset({"sources", "config", "environment", "replayed", "drift", "flush", "loss", "alarm", "held_out"})
