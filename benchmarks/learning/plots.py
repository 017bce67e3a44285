"""Accuracy over the stream as SVG, drawn from results.json: `python -m benchmarks.learning.plots` draws them again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SETS = {"mnist": "Split-MNIST", "fashion": "Split-Fashion-MNIST", "tiles": "crawl_tiles", "clinc": "CLINC150 by domain"}
COLOURS = (
    "#0f766e",
    "#b45309",
    "#1d4ed8",
    "#be123c",
    "#7c3aed",
    "#4d7c0f",
    "#0e7490",
    "#a16207",
    "#9d174d",
    "#475569",
    "#65a30d",
    "#db2777",
)
WIDTH, TOP, HEIGHT, GAP = 300, 40, 220, 14  # of a panel, in pixels; between two names
NAMES = 210  # pixels for them, to the right of a panel


def write(folder: Path) -> None:
    """Into `NAME.svg` for each set that results.json has runs of over several stretches."""
    results = json.loads((folder / "results.json").read_text("utf-8"))
    for name, title in SETS.items():
        of_set = {part: result["raw"]["runs"] for part, result in results.items() if part.startswith(f"{name}-")}
        parts = {part.removeprefix(f"{name}-"): runs for part, runs in of_set.items() if len(runs[0]["by_part"]) > 1}
        parts = {part: runs for part, runs in parts.items() if not part.startswith("default")}  # many, close together
        if parts:
            (folder / f"{name}.svg").write_text(drawn(title, parts), "utf-8")


def drawn(title: str, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Two panels, means over seeds: all stretches that have come, and the first one alone."""
    panels = {
        "mean over the stretches that have come": {part: series(runs, statistics.mean) for part, runs in parts.items()},
        "the first stretch's classes": {part: series(runs, lambda row: row[0]) for part, runs in parts.items()},
    }
    across = WIDTH + NAMES
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(panels) * across + 50} {TOP + HEIGHT + 40}" '
        f'font-family="sans-serif" font-size="12"><title>{escape(title)}: accuracy after each stretch</title>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (what, found) in enumerate(panels.items()):
        lines += panel(50 + number * across, f"{title}: {what}", found)
    return "\n".join([*lines, "</svg>", ""])


def series(runs: Sequence[Mapping[str, Any]], of: Callable[[Sequence[float]], float]) -> list[float]:
    """Means over seeds, after each stretch."""
    by_seed = [[of(row) for row in run["by_part"]] for run in runs]
    return [statistics.mean(values) for values in zip(*by_seed, strict=True)]


def panel(left: float, title: str, found: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Axes, a line for each part, and its name at the line's end."""
    count = len(next(iter(found.values())))

    def place(stretch: int, share: float) -> tuple[float, float]:
        return left + WIDTH * stretch / (count - 1), TOP + HEIGHT * (1 - share)

    yield f'<text x="{left}" y="20" fill="#333">{escape(title)}</text>'
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = place(0, share)[1]
        yield f'<path d="M{left} {y}h{WIDTH}" stroke="#ddd"/>'
        yield f'<text x="{left - 6}" y="{y + 4}" text-anchor="end" fill="#555">{share:.0%}</text>'
    for stretch in range(count):
        x = place(stretch, 0)[0]
        yield f'<text x="{x}" y="{TOP + HEIGHT + 18}" text-anchor="middle" fill="#555">{stretch + 1}</text>'
    lowest: float = TOP - GAP  # names do not overlap: each is at least so far below the one before
    ordered = sorted(enumerate(found.items()), key=lambda item: -item[1][1][-1])
    for number, (part, values) in ordered:
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join("{:.1f},{:.1f}".format(*place(stretch, value)) for stretch, value in enumerate(values))
        lowest = max(place(0, values[-1])[1], lowest + GAP)
        yield f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'
        name = f"{escape(part)} {values[-1]:.1%}"
        yield f'<text x="{left + WIDTH + 6}" y="{lowest + 4:.1f}" fill="{colour}">{name}</text>'


if __name__ == "__main__":
    write(HERE)
