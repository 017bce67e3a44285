"""Avalanche beside ours: `python -m benchmarks.learning.peers --data FOLDER`, or one part by name.

Each part takes the records of one of ours, in the same order, in batches of the same size, on the same machine. They
are written to a folder; `avalanche_run` learns them in an environment of its own: `make bench-learning-peers` makes it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.learners.__main__ import say
from benchmarks.learners.data import Set, clothes
from benchmarks.learning import drift, plots
from benchmarks.learning.__main__ import HERE, PARTS, REQUESTS, Data, Seeds, Threads, To, Tuning, circumstances, figure
from benchmarks.learning.runs import of_classes, summary, thousands
from benchmarks.learning.streams import middle, sorted_by_class, split, turned, turning
from benchmarks.machine import others
from benchmarks.report import Findings, keep
from models.texts.classifier import TextClassifierOptions
from models.texts.hashing import both, bucket, ngrams, words

PYTHON = Path(".venv-avalanche/bin/python")
Stretched = tuple[Set, Sequence[int]]  # records, and where each stretch ends


@dataclass(frozen=True, slots=True)
class Peer:
    """One line of the table: a strategy of Avalanche's on the streams of one of our parts."""

    beside: str
    strategy: str
    slots: int
    rate: float
    draws: int = 32
    optimizer: str = "SGD"  # of torch

    def __str__(self) -> str:
        return f"Avalanche's {self.strategy} ({self.optimizer} {self.rate:g}, {self.draws} draws)"


#: the better of two on whole streams, judged on training records that are not learned
RATES = {
    ("mnist", "er"): 0.03,
    ("mnist", "er-ace"): 0.03,
    ("fashion", "er"): 0.01,
    ("fashion", "er-ace"): 0.01,
    ("tiles", "er"): 0.01,
    ("tiles", "er-ace"): 0.03,
}
PEERS = {
    f"{data}-avalanche-{strategy}-{slots}": Peer(f"{data}-replay-{slots}", strategy, slots, rate)
    for (data, strategy), rate in RATES.items()
    for slots in (200, 1000)
    if f"{data}-replay-{slots}" in PARTS
}
PEERS |= {  # the best of 0.003, 0.001 and 0.0003 on the validation set, one seed
    f"clinc-avalanche-{strategy}-500": Peer("clinc-replay-500", strategy, 500, rate, 100, "Adam")
    for strategy, rate in (("er", 3e-4), ("er-ace", 1e-3))
}
PEERS["drift-avalanche-er-1000"] = Peer("drift", "er", 1000, 0.03)


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PEERS)}; default: all.")] = None,
    data: Data = Path("data"),
    to: To = HERE,
    seeds: Seeds = 5,
    threads: Threads = 1,
    tuning: Tuning = False,
    python: Annotated[Path, typer.Option(help="Of the environment that has Avalanche.")] = PYTHON,
) -> None:
    """Measures and keeps the table, or with --tuning only says what it found."""
    for name in parts or PEERS:
        if name not in PEERS:
            raise typer.BadParameter(f"{name} is none of {', '.join(PEERS)}.")
        peer = PEERS[name]
        streams, tests = turns(data, seeds, tuning) if peer.beside == "drift" else stretches(peer, data, seeds, tuning)
        with others() as taken, tempfile.TemporaryDirectory() as folder:
            for seed, (records, ends) in enumerate(streams):
                export(Path(folder) / f"{seed}.npz", records, ends, tests)
            learn(folder, peer, python, threads)
            runs = [json.loads((Path(folder) / f"{seed}.json").read_text("utf-8")) for seed in range(seeds)]
        versions, *_ = [run.pop("versions") for run in runs]
        findings = turned_over(peer, runs) if peer.beside == "drift" else sorted_out(peer, runs, tests)
        say(f"{name}: {findings.figures[0].found}")
        if not tuning:
            versions["threads"] = str(threads)
            keep(to, name, findings, {**circumstances(), "versions": versions, **taken})
            plots.write(to)


def stretches(peer: Peer, data: Path, seeds: int, tuning: bool) -> tuple[list[Stretched], list[Set]]:
    """For each seed the records and where each stretch ends; and what judges each stretch."""
    part = PARTS[peer.beside]
    learned, test = split(part.records, data, tuning, part.validation)
    groups = part.groups(data, learned)
    streams = [sorted_by_class(learned, groups, seed) for seed in range(seeds)]
    tests = [of_classes(test, classes) for classes in groups]
    return [(stream.records, [end for _, end in stream.parts]) for stream in streams], tests


def turns(data: Path, seeds: int, tuning: bool) -> tuple[list[Stretched], list[Set]]:
    """The same for clothes that turn."""
    learned, test = split(clothes, data, tuning)
    ends = [middle(len(learned)), len(learned)]
    return [(turning(learned, seed), ends) for seed in range(seeds)], [test, turned(test)]


def sorted_out(peer: Peer, found: Sequence[dict[str, Any]], tests: Sequence[Set]) -> Findings:
    runs = [summary(sizes=[len(test) for test in tests], **one) for one in found]
    what = f"{PARTS[peer.beside].what}: {peer}"
    return Findings([figure(what, runs)], [], {"runs": [run.json() for run in runs]})


def turned_over(peer: Peer, found: Sequence[dict[str, Any]]) -> Findings:
    runs = [drift.turn_of(thousands(one["hits"]), *one["by_part"][-1]) for one in found]
    return Findings(
        [drift.figure(f"replay memory {peer.slots}: {peer}", runs)], [], {"turns": [run.json() for run in runs]}
    )


def export(path: Path, records: Set, ends: Sequence[int], tests: Sequence[Set]) -> None:
    """A stream and what judges each stretch, as `avalanche_run` reads it."""
    names = sorted(set(records.labels))
    np.savez(
        path,
        x=shown(records.x),
        record_bytes=records.x[0].nbytes,
        y=np.array([names.index(label) for label in records.labels]),
        ends=np.array(ends),
        test_x=shown(torch.cat([test.x for test in tests])),
        test_y=np.array([names.index(label) for test in tests for label in test.labels]),
        test_stretch=np.repeat(np.arange(len(tests)), [len(test) for test in tests]),
    )


def shown(x: Tensor) -> NDArray[Any]:
    """Pictures as they are; texts (N, L) as what our text-classifier is told to make of them: for each the numbers of
    its rows of a table, from 1 on, then zeros."""
    if x.dtype == torch.uint8:
        return x.numpy()
    options = TextClassifierOptions.model_validate(REQUESTS)
    hashes, there = both(ngrams(x, range(1, options.orders + 1)), words(x))
    rows: NDArray[Any] = ((bucket(hashes, options.buckets) + 1) * there).int().numpy()
    return rows


def learn(folder: str, peer: Peer, python: Path, threads: int) -> None:
    """Avalanche learns each of the streams in the folder."""
    settings: dict[str, Any] = {"slots": peer.slots, "draws": peer.draws, "optimizer": peer.optimizer}
    settings |= {"rate": peer.rate, "threads": threads}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    subprocess.run([python, HERE / "avalanche_run.py", folder, peer.strategy, *options], check=True)


if __name__ == "__main__":
    typer.run(main)
