"""One learner over one stream: what it knows after every stretch, what it predicted, what it keeps, how fast it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.learners.data import Set, accuracy, batches, calibration_error
from benchmarks.learning.streams import Stream
from models.learner import Blueprint, Learner, Rows, update_generator

BATCH = 10
STORED = ("memory/x", "evidence/x")  # tensors of records
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Run:
    """What one pass over a stream came to. Accuracies are shares of the test records."""

    final: float  # over all classes, after the stream
    incremental: float  # mean, over the stretches, of that over all classes that have come (Rebuffi et al. 2017)
    forgetting: float  # mean, over all stretches but the last, of the best accuracy there was less the last one
    prequential: float  # over all records, each predicted before it was learned
    records_per_s: float  # of CPU time
    stored_bytes: int  # of pictures and texts
    state_bytes: int  # of everything
    by_part: Sequence[Sequence[float]]  # after each stretch, over the classes of each that has come
    by_thousand: Sequence[float]  # prequential, of each thousand records
    calibration_error: float | None = None  # of the final answers, where they are ours

    def json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def numbers(self) -> dict[str, float]:
        """All but the series, and what is not known."""
        return {name: value for name, value in self.json().items() if isinstance(value, int | float)}


def run(
    blueprint: Blueprint, options: Mapping[str, Any], stream: Stream, test: Set, seed: int, batch_size: int = BATCH
) -> Run:
    """Learns the stream once, in batches of so many."""
    shape = tuple(stream.records.x.shape[1:])
    learner: Learner = blueprint.learner(blueprint.options.model_validate(options), shape, seed, CPU)
    hits: list[bool] = []
    spent_s, update, start = 0.0, 0, 0
    by_part: list[list[float]] = []
    for number, (_, end) in enumerate(stream.parts):
        part = stream.records.take(range(start, end))
        began_s = time.process_time()
        for batch in batches(part, batch_size, start):
            report = learner.learn(batch, update_generator(seed, update))
            assert report.predicted is not None
            hits += map(lambda a, b: a == b, report.predicted, batch.labels)
            update += 1
        spent_s += time.process_time() - began_s
        state = learner.capture()  # what is asked is a version
        by_part.append(
            [accuracy(learner.model, of_classes(test, classes)) for classes, _ in stream.parts[: number + 1]]
        )
        start = end
    tensors = {
        name: value.tensor if isinstance(value, Rows) else value
        for name, value in {**state.serving, **state.training}.items()
    }
    return summary(
        by_part,
        [len(of_classes(test, classes)) for classes, _ in stream.parts],
        hits,
        spent_s,
        stored_bytes=sum(tensor.nbytes for name, tensor in tensors.items() if name.endswith(STORED)),
        state_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        calibration_error=calibration_error(learner.model, test),
    )


def summary(
    by_part: Sequence[Sequence[float]],
    sizes: Sequence[int],
    hits: Sequence[bool],
    spent_s: float,
    *,
    stored_bytes: int,
    state_bytes: int,
    calibration_error: float | None = None,
) -> Run:
    """What it came to.

    `by_part` is as in `Run`, `sizes` the number of test records of each stretch's classes, `hits` whether each record
    was predicted before it was learned.
    """
    overall = [sum(a * n for a, n in zip(row, sizes, strict=False)) / sum(sizes[: len(row)]) for row in by_part]
    last = by_part[-1]
    best = [max(row[number] for row in by_part[:-1] if len(row) > number) for number in range(len(last) - 1)]
    return Run(
        final=overall[-1],
        incremental=sum(overall) / len(overall),
        forgetting=sum(b - a for b, a in zip(best, last[:-1], strict=True)) / max(1, len(best)),
        prequential=sum(hits) / len(hits),
        records_per_s=len(hits) / spent_s,
        by_part=by_part,
        by_thousand=thousands(hits),
        stored_bytes=stored_bytes,
        state_bytes=state_bytes,
        calibration_error=calibration_error,
    )


def thousands(hits: Sequence[bool]) -> list[float]:
    """The share of each thousand."""
    each = [hits[start : start + 1000] for start in range(0, len(hits), 1000)]
    return [sum(some) / len(some) for some in each]


def of_classes(records: Set, classes: Sequence[str]) -> Set:
    return records.take([row for row, label in enumerate(records.labels) if label in classes])
