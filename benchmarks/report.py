"""What the benchmarks found: figures in results.json, and as one table in README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results: written by `make bench` -->", "<!-- end of results -->"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    what: str
    found: str
    wanted: str = ""
    reached: bool | None = None  # None: nothing is asked for

    def row(self, date: str) -> str:
        wanted = self.wanted if self.reached is None else f"{self.wanted} {'✓' if self.reached else '✗'}"
        return f"| {self.what} | {self.found} | {wanted} | {date} |"


@dataclass(frozen=True, slots=True)
class Findings:
    """One benchmark's figures, what they mean in sentences, and every number that they were made of."""

    figures: list[Figure]
    notes: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)


def keep(folder: Path, part: str, findings: Findings, circumstances: Mapping[str, Any]) -> None:
    """Writes one benchmark's findings into results.json, and the table of all of them into README.md."""
    path, readme = folder / "results.json", folder / "README.md"
    results = json.loads(path.read_text("utf-8")) if path.exists() else {}
    results[part] = {**circumstances, **asdict(findings)}
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    before, _, rest = readme.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{_table(results)}\n{END}{after}", "utf-8")


def _table(results: Mapping[str, Any]) -> str:
    """The table; below it each benchmark's notes, and machine and versions, once where they are the same."""
    lines = ["| | measured | wanted | date |", "|---|---|---|---|"]
    lines += [Figure(**figure).row(result["date"]) for result in results.values() for figure in result["figures"]]
    for part, result in results.items():
        if result["notes"]:
            lines += ["", f"**{part.capitalize()}.** {' '.join(result['notes'])}"]
    circumstances: dict[str, list[str]] = {}
    for part, result in results.items():
        told = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        circumstances.setdefault(f"{result['machine']}; {told}", []).append(part)
    for told, parts in circumstances.items():
        lines += ["", f"Machine and versions ({', '.join(parts)}): {told}."]
    return "\n".join(lines)
