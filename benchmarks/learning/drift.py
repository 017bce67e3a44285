"""A stream that turns: clothes, from the middle on turned by 90° and inverted, through a `Fold` from RAM."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.learners.__main__ import say
from benchmarks.learners.data import Set, accuracy, batches, clothes
from benchmarks.learning.runs import BATCH, CPU
from benchmarks.learning.streams import split, turned, turning
from benchmarks.report import Figure, Findings
from consumers.worker.fold import Fold
from models.registry import BUILTIN
from pipeline.config import ModelConfig
from pipeline.records import Example, Record
from pipeline.store.changes import Drifted

TOPIC = "clothes"
AFTER = 5000  # records after the turn whose predictions count
BEYOND = 0.05
REPLAYING = {"strategy": "er", "replay_slots": 1000, "replay_draws": 32, "average": 0.95}
#: what learns and its options, and its table `drift`
WAYS: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = (
    ("image-classifier", REPLAYING, {"reaction": "alarm"}),
    ("image-classifier", REPLAYING, {"reaction": "boost"}),
    ("image-classifier", REPLAYING, {"reaction": "flush"}),
    ("image-analytic", {"width": 2000}, {"reaction": "alarm"}),
    ("image-analytic", {"width": 2000}, {"reaction": "boost", "boost_factor": 16}),
)


def measure(data: Path, seeds: int, tuning: bool, peer: float | None) -> Findings:
    """What follows the turn, by reaction.

    Args:
        peer: what another library's learner predicts after the turn; `BEYOND` more is wanted.
    """
    learned, test = split(clothes, data, tuning)
    figures, raw = [], {}
    for learner, options, drift in WAYS:
        told = f"`{learner}`, `{drift['reaction']}`"
        turns = []
        for seed in range(seeds):
            turns.append(turn(learner, options, drift, learned, test, seed))
            say(f"drift, {told}, seed {seed}: {turns[-1].json()}")
        stored = options.get("replay_slots")
        figures.append(figure(f"replay memory {stored}: {told}" if stored else f"no stored data: {told}", turns, peer))
        raw[told] = [one.json() for one in turns]
    return Findings(figures, [], raw)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one pass came to. Accuracies are shares."""

    before: float  # prequential, over the last 1,000 records before the turn
    after: float  # prequential, over the `AFTER` records from the turn on
    kept: float  # at the end, on test pictures as in the first half
    learned: float  # at the end, on test pictures as in the second half
    drifts: list[Drifted]  # as the lineage has them

    def json(self) -> dict[str, Any]:
        return asdict(self)


def turn(
    learner: str, options: Mapping[str, Any], drift: Mapping[str, Any], records: Set, test: Set, seed: int
) -> Turn:
    """Learns the records once, in batches of `BATCH`, with this table `drift` of the configuration."""
    table = {"topics": [TOPIC], "learner": learner, "options": options, "seed": seed, "drift": drift}
    settings = ModelConfig.model_validate({**table, "input": {"kind": "image", "size": 28, "channels": 1}})
    fold = Fold(TOPIC, settings, BUILTIN[learner], CPU)
    by_thousand = []
    for batch in batches(turning(records, seed), BATCH):
        rows = zip(batch.origins[:, 2].tolist(), batch.x.numpy(), batch.labels, strict=True)
        fold.learn(batch, [Example(Record(TOPIC, 0, at, 0, None, None), x, label, str(at)) for at, x, label in rows])
        if fold.updates * BATCH % 1000 == 0:
            by_thousand.append(fold.prequential.accuracy or 0.0)
    drifts = [change["drift"] for change in fold.lineage.build().changes if "drift" in change]
    return turn_of(by_thousand, accuracy(fold.learner.model, test), accuracy(fold.learner.model, turned(test)), drifts)


def turn_of(by_thousand: Sequence[float], kept: float, learned: float, drifts: Sequence[Drifted] = ()) -> Turn:
    """From the prequential accuracy of each thousand records."""
    middle = len(by_thousand) // 2
    after = sum(by_thousand[middle : middle + AFTER // 1000]) / (AFTER // 1000)
    return Turn(by_thousand[middle - 1], after, kept, learned, list(drifts))


def figure(what: str, turns: Sequence[Turn], peer: float | None = None) -> Figure:
    """A line of the table."""
    before, after, kept, learned = (
        statistics.mean(getattr(one, name) for one in turns) for name in ("before", "after", "kept", "learned")
    )
    what = f"Fashion-MNIST, turned and inverted from the middle on, {what}"
    found = (
        f"**{after:.1%}** of the {AFTER:,} records after the turn ({before:.1%} of the 1,000 before it); at the end "
        f"{kept:.1%} of the test pictures as in the first half, {learned:.1%} as in the second; "
        f"{len(turns)} seed{'s' if len(turns) > 1 else ''}"
    )
    if peer is None:
        return Figure(what, found)
    return Figure(what, found, f"≥ {peer + BEYOND:.1%}", after >= peer + BEYOND)
