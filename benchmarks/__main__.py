"""Measures what the README claims: `python -m benchmarks`, or one part of it: `python -m benchmarks swaps`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from redis import Redis

from benchmarks import (
    commits as commits_part,
    costs as costs_part,
    latency as latency_part,
    page as page_part,
    swaps as swaps_part,
    throughput as throughput_part,
)
from benchmarks.machine import machine, others, versions
from benchmarks.report import Findings, keep
from benchmarks.serving.measure import measure as measure_serving
from benchmarks.stage import Stage, stage

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False, add_completion=False)
To = Annotated[Path, typer.Option(help="The folder with README.md and results.json, which are written.")]
HERE = Path(__file__).parent


def say(line: str) -> None:
    """Progress, with the time of day."""
    print(f"{datetime.now(UTC):%H:%M:%S}  {line}", flush=True)


def perform(part: str, measure: Callable[[Stage], Findings], to: Path) -> None:
    """Runs one part on servers of its own, and keeps and prints what it found."""
    say(f"{part}: starting Kafka and Redis")
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, stage(Path(folder), say) as place:
        server = Redis.from_url(place.servers.redis.url).info("server")["redis_version"]
        with others() as taken:
            findings = measure(place)
    circumstances = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "versions": versions(server),
        **taken,
    }
    keep(to, part, findings, circumstances)
    for figure in findings.figures:
        say(figure.row(circumstances["date"]))
    for note in findings.notes:
        say(note)
    say(f"{part}: {time.monotonic() - started_s:.0f} s; meanwhile {taken}")


@app.callback(invoke_without_command=True)
def everything(context: typer.Context, to: To = HERE) -> None:
    """All parts, about ten minutes on two cores. Nothing else should run meanwhile."""
    if context.invoked_subcommand is None:
        for part in (throughput, latency, swaps, commits, costs):
            part(to=to)


@app.command()
def throughput(
    records: Annotated[int, typer.Option(help="Learned in each run.", min=10_000)] = 60_000,
    repeats: Annotated[int, typer.Option(help="RAM-fed and Kafka-fed, in turn.", min=1)] = 3,
    threads: Annotated[list[int] | None, typer.Option(help="Of torch; default 1 and 2.")] = None,
    device: Annotated[str, typer.Option(help="Of the learner: cpu, cuda or mps.")] = "cpu",
    to: To = HERE,
) -> None:
    """Kafka-fed of RAM-fed records/s, and where the difference goes."""
    numbers = threads or [1, 2]
    perform(
        "throughput" if device == "cpu" else f"throughput-{device}",
        lambda s: throughput_part.measure(s, records=records, repeats=repeats, threads=numbers, device=device),
        to,
    )


@app.command()
def latency(
    seconds: Annotated[float, typer.Option(help="So long records are published.", min=1)] = 30,
    snapshot_every_s: Annotated[float, typer.Option(help="The worker's cadence.", min=0.01)] = 0.25,
    records: Annotated[int, typer.Option(help="Learned before, to know the full load.", min=5_000)] = 20_000,
    to: To = HERE,
) -> None:
    """Publish → served, seen by an outside client."""
    perform(
        "latency",
        lambda s: latency_part.measure(s, seconds=seconds, snapshot_every_s=snapshot_every_s, records=records),
        to,
    )


@app.command()
def swaps(swaps: Annotated[int, typer.Option(help="How many.", min=20)] = 1000, to: To = HERE) -> None:
    """Hot swaps under steady requests."""
    perform("swaps", lambda s: swaps_part.measure(s, swaps=swaps), to)


@app.command()
def serving(
    rounds: Annotated[int, typer.Option(help="Each server in turn.", min=1)] = 5,
    seconds: Annotated[int, typer.Option(help="Each time.", min=1)] = 5,
    to: To = HERE,
) -> None:
    """Requests/s of single pictures, beside a plain FastAPI handler and LitServe."""
    perform("serving", lambda s: measure_serving(s, rounds=rounds, seconds=seconds), to)


@app.command()
def page(
    seconds: Annotated[float, typer.Option(help="So long versions are looked on.", min=10)] = 60,
    updates_per_s: Annotated[float, typer.Option(help="Versions committed meanwhile.", min=0.1)] = 20,
    to: To = HERE,
) -> None:
    """The page in Chromium: paint, bytes, layout shifts, long tasks, memory."""
    perform("page", lambda s: page_part.measure(s, seconds=seconds, updates_per_s=updates_per_s), to)


@app.command()
def commits(
    slots: Annotated[int, typer.Option(help="Of the replay memory.", min=1)] = 10_000,
    commits: Annotated[int, typer.Option(help="With a full memory, for each learner.", min=2)] = 30,
    updates: Annotated[int, typer.Option(help="Between two commits.", min=1)] = 20,
    to: To = HERE,
) -> None:
    """Bytes moved per commit, and the stall of the updates."""
    perform("commits", lambda s: commits_part.measure(s, slots=slots, commits=commits, updates=updates), to)


@app.command()
def costs(
    blocks: Annotated[int, typer.Option(help="Of 20 updates, with lineage and seeding and without.", min=20)] = 60,
    updates: Annotated[int, typer.Option(help="Learned before a worker is killed.", min=20)] = 400,
    to: To = HERE,
) -> None:
    """What lineage and seeding cost, and a restart with and without a keyframe at the head."""
    perform("costs", lambda s: costs_part.measure(s, blocks=blocks, updates=updates), to)


if __name__ == "__main__":
    app()
