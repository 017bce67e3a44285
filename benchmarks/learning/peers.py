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
from typing import Annotated

import numpy as np
import typer

from benchmarks.learners.__main__ import say
from benchmarks.learners.data import Set
from benchmarks.learning.__main__ import HERE, PARTS, figure, write
from benchmarks.learning.runs import Run, of_classes, summary
from benchmarks.learning.streams import Stream
from benchmarks.machine import others

PYTHON = Path(".venv-avalanche/bin/python")


@dataclass(frozen=True, slots=True)
class Peer:
    """One line of the table: a strategy of Avalanche's on the stream of one of our parts."""

    beside: str
    strategy: str
    slots: int
    rate: float  # of SGD
    draws: int = 10


PEERS = {
    f"{data}-avalanche-{strategy}-{slots}": Peer(f"{data}-replay-{slots}", strategy, slots, 0.03)
    for data in ("mnist", "fashion")
    for strategy in ("er", "er-ace")
    for slots in (200, 1000)
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
        learned, test = part.sets(data, tuning)
        with others() as taken:
            runs, versions = learn([part.stream(learned, seed) for seed in range(seeds)], test, peer, python, threads)
        for seed, one in enumerate(runs):
            say(f"{name}, seed {seed}: {one.numbers()}")
        if not tuning:
            versions["threads"] = str(threads)
            write(to, name, figure(f"{part.what}: Avalanche's {peer.strategy}", runs), runs, versions, taken)


def learn(
    streams: Sequence[Stream], test: Set, peer: Peer, python: Path, threads: int
) -> tuple[list[Run], dict[str, str]]:
    """A run for each stream, whose seed is its number, and versions."""
    with tempfile.TemporaryDirectory() as folder:
        for seed, stream in enumerate(streams):
            export(Path(folder) / f"{seed}.npz", stream, test)
        settings = {"slots": peer.slots, "rate": peer.rate, "draws": peer.draws, "threads": threads}
        options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        script = HERE / "avalanche_run.py"
        subprocess.run([python, "-W", "ignore", script, folder, peer.strategy, *options], check=True)
        found = [json.loads((Path(folder) / f"{seed}.json").read_text("utf-8")) for seed in range(len(streams))]
    sizes = [len(of_classes(test, classes)) for classes, _ in streams[0].parts]
    versions = [each.pop("versions") for each in found]
    return [summary(sizes=sizes, **each) for each in found], versions[0]


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
        stretch=np.array([stretch[name] for name in names]),
    )


if __name__ == "__main__":
    typer.run(main)
