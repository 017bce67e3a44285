"""Every error that headrace raises on purpose: one small tree.

The message is one sentence on what happened and one on what the operator can do. `retriable` says whether the same
call can succeed later with nothing changed here; `exit_status` is what a command ends with.
"""


class HeadraceError(Exception):
    """Base of the tree: catch this to catch everything that headrace raises on purpose."""

    retriable = False
    exit_status = 1


class ConfigError(HeadraceError):
    """The configuration is wrong: names the key, the value and the fix."""

    exit_status = 2


class RecordError(HeadraceError):
    """A record that cannot be learned; it goes to the dead-letter topic and the worker goes on.

    `reason` is a short constant slug (a metric label and a lineage entry): "undecodable", "too-large", "label", …
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class LogError(HeadraceError):
    """Kafka refused, or does not hold what was asked for."""

    exit_status = 3


class LogUnavailable(LogError):
    """Kafka cannot be reached, or pushes back for longer than allowed."""

    retriable = True


class TooLarge(LogError):
    """The topic takes no record of this size."""


class TopicMissing(LogError):
    """The topic does not exist, and the configuration does not allow creating it."""


class OffsetsGone(LogError):
    """The offsets after the watermark are not in the topic any more, or not yet: going on would be a silent jump."""


class TopicReplaced(OffsetsGone):
    """A topic was deleted and made again: its offsets name other records than those that were learned."""


class StoreError(HeadraceError):
    """The snapshot store refused, or does not hold what was asked for."""

    exit_status = 4


class StoreUnavailable(StoreError):
    """Redis cannot be reached, or refuses writes for lack of memory or disk."""

    retriable = True


class NotFound(StoreError):
    """No such model, version or alias."""


class Corrupt(StoreError):
    """A stored object does not match its digest, or is of a format that this code does not read."""


class HeadMoved(StoreError):
    """The head is not the version that this worker left there: Redis came back older than it was."""


class Fenced(StoreError):
    """Another worker holds this model now; this one may not write any more."""

    exit_status = 5


class StateMismatch(HeadraceError):
    """The configuration does not fit the learned state."""

    exit_status = 6


class Diverged(HeadraceError):
    """A loss or a weight is not a finite number."""

    exit_status = 7


class NotRepeatable(HeadraceError):
    """Learning again what a lineage records did not give what it gave the first time, or cannot be done."""

    exit_status = 8


class SamplerError(HeadraceError):
    """The sampler refused what was asked, or failed at it; `reason` is its constant slug: "wrong-kind", "label", …"""

    exit_status = 9

    def __init__(self, message: str, reason: str = "sampler") -> None:
        super().__init__(message)
        self.reason = reason


class SamplerUnavailable(SamplerError):
    """The sampler cannot be reached, is busy, has no version yet, or broke off."""

    retriable = True


class Exhausted(HeadraceError):
    """So many threads were given up, each at code of a user's that does not return, that only a new process helps."""

    exit_status = 10


class Stopped(HeadraceError):
    """Whoever runs this was asked to end, before what was waited for came."""
