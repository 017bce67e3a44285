"""Avalanche beside ours: `python -m benchmarks.learning.peers --data FOLDER`, or one part by name.

Each part takes the records of one of ours, in the same order, in batches of the same size, on the same machine. They
are written to a folder; `avalanche_run` learns them in an environment of its own: `make bench-learning-peers` makes it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.learners.__main__ import say
from benchmarks.learners.data import Set
from benchmarks.learning import plots
from benchmarks.learning.__main__ import HERE, PARTS, circumstances, figure
from benchmarks.learning.runs import of_classes, summary
from benchmarks.learning.streams import Stream, sorted_by_class, split
from benchmarks.machine import others
from benchmarks.report import Findings, keep

PYTHON = Path(".venv-avalanche/bin/python")


@dataclass(frozen=True, slots=True)
class Peer:
    """One line of the table: a strategy of Avalanche's on the stream of one of our parts."""

    beside: str
    strategy: str
    slots: int
    rate: float  # of SGD
    draws: int = 32

    def __str__(self) -> str:
        return f"Avalanche's {self.strategy} (SGD {self.rate:g}, {self.draws} draws)"


PEERS = {
    f"{data}-avalanche-{strategy}-{slots}": Peer(f"{data}-replay-{slots}", strategy, slots, 0.03)
    for data in ("mnist", "fashion", "tiles")
    for strategy in ("er", "er-ace")
    for slots in (200, 1000)
    if f"{data}-replay-{slots}" in PARTS
}


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PEERS)}; default: all.")] = None,
    data: Annotated[Path, typer.Option(help="The folder of the data sets.")] = Path("data"),
    to: Annotated[Path, typer.Option(help="Where README.md and results.json are written.")] = HERE,
    seeds: Annotated[int, typer.Option(help="Of weights, order and replay.")] = 5,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    tuning: Annotated[bool, typer.Option("--tuning", help="Judge on training records that are not learned.")] = False,
    python: Annotated[Path, typer.Option(help="Of the environment that has Avalanche.")] = PYTHON,
) -> None:
    """Measures and keeps the table, or with --tuning only says what it found."""
    for name in parts or PEERS:
        if name not in PEERS:
            raise typer.BadParameter(f"{name} is none of {', '.join(PEERS)}.")
        peer = PEERS[name]
        part = PARTS[peer.beside]
        learned, test = split(part.records, data, tuning)
        groups = part.groups(data, learned)
        with others() as taken, tempfile.TemporaryDirectory() as folder:
            for seed in range(seeds):
                export(Path(folder) / f"{seed}.npz", sorted_by_class(learned, groups, seed), test)
            found = learn(folder, peer, python, threads)
        sizes = [len(of_classes(test, classes)) for classes in groups]
        versions = [one.pop("versions") for one in found]
        runs = [summary(sizes=sizes, **one) for one in found]
        for seed, run in enumerate(runs):
            say(f"{name}, seed {seed}: {run.numbers()}")
        if not tuning:
            findings = Findings([figure(f"{part.what}: {peer}", runs)], [], {"runs": [run.json() for run in runs]})
            told = {**versions[0], "threads": str(threads)}
            keep(to, name, findings, {**circumstances(), "versions": told, **taken})
            plots.write(to)


def export(path: Path, stream: Stream, test: Set) -> None:
    """The stream and what judges it, as `avalanche_run` reads it."""
    names = sorted(set(stream.records.labels))
    stretch = {name: number for number, (classes, _) in enumerate(stream.parts) for name in classes}
    np.savez(
        path,
        x=stream.records.x.numpy(),
        y=np.array([names.index(label) for label in stream.records.labels]),
        ends=np.array([end for _, end in stream.parts]),
        test_x=test.x.numpy(),
        test_y=np.array([names.index(label) for label in test.labels]),
        test_stretch=np.array([stretch[label] for label in test.labels]),
    )


def learn(folder: str, peer: Peer, python: Path, threads: int) -> list[dict[str, Any]]:
    """What Avalanche came to on each of the streams in the folder."""
    settings = {"slots": peer.slots, "rate": peer.rate, "draws": peer.draws, "threads": threads}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    subprocess.run([python, HERE / "avalanche_run.py", folder, peer.strategy, *options], check=True)
    return [json.loads(path.read_text("utf-8")) for path in sorted(Path(folder).glob("*.json"))]


if __name__ == "__main__":
    typer.run(main)
