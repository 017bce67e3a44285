"""What the learners reach on real data: `python -m benchmarks.learners --data FOLDER`, or one part of it by name."""

from __future__ import annotations

import importlib
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.machine import machine, others
from benchmarks.report import Findings, keep
from pipeline import __version__

HERE = Path(__file__).parent
#: modules of this package, each with `measure(data, sheets, say) -> Findings`; those of KEEPING take a folder as well
PARTS = ("classifiers", "transfer", "recognition", "texts", "writers", "vae", "gan", "restoration", "style")
KEEPING = ("gan",)


def say(line: str) -> None:
    """Progress, with the time of day."""
    print(f"{datetime.now(UTC):%H:%M:%S}  {line}", flush=True)


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}; default: all.")] = None,
    data: Annotated[Path, typer.Option(help="The folder of the data sets.")] = Path("data"),
    to: Annotated[Path, typer.Option(help="Where README.md, results.json and the sheets are written.")] = HERE,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 2,
    kept: Annotated[Path | None, typer.Option(help=f"Where {', '.join(KEEPING)} keeps learners and goes on.")] = None,
) -> None:
    """Measures and keeps the table. Nothing else should run meanwhile."""
    torch.set_num_threads(threads)
    for part in parts or PARTS:
        if part not in PARTS:
            raise typer.BadParameter(f"{part} is none of {', '.join(PARTS)}.")
        started_s, started_cpu_s = time.monotonic(), time.process_time()
        with others() as taken:
            folders = (kept,) if part in KEEPING else ()
            findings: Findings = importlib.import_module(f"benchmarks.learners.{part}").measure(data, to, say, *folders)
        circumstances = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": machine(),
            "versions": {"headrace": __version__, "torch": version("torch"), "threads": str(threads)},
            **taken,
        }
        keep(to, part, findings, circumstances)
        for figure in findings.figures:
            say(figure.row(circumstances["date"]))
        for note in findings.notes:
            say(note)
        say(f"{part}: {time.monotonic() - started_s:.0f} s, {time.process_time() - started_cpu_s:.0f} s of CPU")


if __name__ == "__main__":
    typer.run(main)
