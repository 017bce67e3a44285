"""What happens when a loss or a weight is not finite: back to the last good version, and on without the culprits.

The recorded batches since that version are learned again, now with a look at the whole state after each update. Where
one breaks it, the batch is halved until the records that do so are found; they are left out, and it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from consumers.worker.fold import Fold
from consumers.worker.replay import Replay, joined
from pipeline.errors import Diverged
from pipeline.records import Place
from pipeline.store import Lineage

Row = tuple[Place, ...]  # of a batch: a record, and its label's
Breaks = Callable[[Sequence[Row]], bool]


def recover(
    make_fold: Callable[[], Fold], updates: Sequence[Sequence[Place]], lineage: Lineage, replay: Replay
) -> tuple[Fold, list[Row]]:
    """Returns the state after these updates without the rows that break it, and those rows.

    Args:
        make_fold: makes the fold at the last good version, anew each time.
        lineage: since that version; it has all of the updates but perhaps the last.

    Raises:
        Diverged: more than half of a batch breaks it: the weights are at fault, or the settings.
        OffsetsGone, NotRepeatable: as `Replay.learn`.
    """
    fold, done = make_fold(), 0
    left, found = [joined(update, fold.settings) for update in updates], list[Row]()
    while True:
        done += _learned(fold, left[done:], lineage, replay)
        if done == len(left):
            return fold, found
        fold = make_fold()  # the other is broken
        _learned(fold, left[:done], lineage, replay)
        culprits = _all_culprits(fold, left[done], replay)
        found += culprits
        left[done] = [row for row in left[done] if row not in culprits]
        left = [update for update in left if update]


def _learned(fold: Fold, updates: Sequence[Sequence[Row]], lineage: Lineage, replay: Replay) -> int:
    """Learns the updates up to the first one that breaks the state; how many were good."""
    good = 0
    try:
        for _ in replay.learn(fold, [[place for row in update for place in row] for update in updates], lineage):
            fold.check_finite()
            good += 1
    except Diverged:
        pass
    return good


def _all_culprits(fold: Fold, rows: list[Row], replay: Replay) -> list[Row]:
    """Rows of the fold's next update without which the others do not break it."""
    found: list[Row] = []

    def breaks(some: Sequence[Row]) -> bool:
        return _learned(fold.trial(), [[row for row in rows if row in some]], Lineage(), replay) == 0

    while (left := [row for row in rows if row not in found]) and breaks(left):
        found += _culprits(breaks, left)
        if 2 * len(found) > max(2, len(rows)):
            raise Diverged(
                f"{fold.name}: update {fold.updates} gives numbers that are not finite, whichever of its {len(rows)} "
                f"records are left out. Lower the learning rate, or look at what is published, and start again."
            )
    return found


def _culprits(breaks: Breaks, rows: list[Row]) -> list[Row]:
    """Of rows that break it, those that do so alone, by halving; else a smallest set that does so together."""
    if len(rows) == 1:
        return rows
    halves = [half for half in _halves(rows) if breaks(half)]
    return [row for half in halves for row in _culprits(breaks, half)] if halves else _together(breaks, [], [], rows)


def _together(breaks: Breaks, fixed: list[Row], added: list[Row], rows: list[Row]) -> list[Row]:
    """A smallest set of the rows that breaks it beside those that are fixed (Junker 2004, "QuickXplain").

    Args:
        added: those of `fixed` that nobody has looked at yet.
    """
    if added and breaks(fixed):
        return []
    if len(rows) == 1:
        return rows
    first, second = _halves(rows)
    of_second = _together(breaks, fixed + first, first, second)
    return _together(breaks, fixed + of_second, of_second, first) + of_second


def _halves(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    middle = len(rows) // 2
    return rows[:middle], rows[middle:]
