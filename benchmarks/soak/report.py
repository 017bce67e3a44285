"""The soak's findings: soak.json, and soak.md for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = (
    "model",
    "starts",
    "versions",
    "newest",
    "updates",
    "learned",
    "dead-lettered",
    "skipped",
    "labels",
    "most pending",
    "learned again",
)


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """Writes both files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "soak.md").write_text("\n".join(_page(found)) + "\n", "utf-8")


def _page(found: Mapping[str, Any]) -> list[str]:
    kills, hands, strange = found["kills"], found["hands"], found["strange"]
    told = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [
        "# The soak",
        "",
        "Written by `make soak`: workers of six models learn from two topics of three partitions, one of them with",
        "labels and corrections from a third topic. They are killed with `kill -9` at random moments, some of them",
        "inside a commit, where a proxy cuts or stalls the connection to Redis or Kafka at a random byte. Two workers",
        "of one model take the lease from each other. Servers are killed, cut off, slow, and full. Then a checker that",
        "shares no code with headrace (`soak/checker.py`) recounts every record from what is in Redis and Kafka, and",
        "`verify` learns every model again from nothing.",
        "",
        f"**{'Passed' if not found['problems'] else 'FAILED'}**: {len(found['problems'])} problems. {found['date']}, "
        f"{found['machine']}, {found['seconds']} s, seed {found['seed']}; {told}.",
        "",
        f"- {sum(kills.values())} kills: " + ", ".join(f"{count} {kind}" for kind, count in kills.items()) + ".",
        f"- {sum(hands.values())} changes of hands: " + ", ".join(f"{n} {kind}" for kind, n in hands.items()) + ".",
        "- Beside them came, from other producers: " + ", ".join(f"{n} × {what}" for what, n in strange.items()) + ";",
        "  pictures that are none, timestamps 50 minutes ahead, records whose dead letters are too large.",
        "- Outages, which every worker lived through: Redis killed, Kafka killed, connections cut 20 times, answers",
        "  30 s late, Redis without memory and without disk.",
        f"- {found['records']} records published. The sampler answered {found['sampler']['requests']} requests "
        f"meanwhile; {found['sampler']['failed']} failed.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(_row(found, name) for name in found["models"]),
        "",
        "*Newest* is above *versions* where numbers were noted and never committed. *Most pending*: records that one",
        "kept version had read and not yet learned; a worker that started there began with them. *Labels*: joined, and",
        "corrections of what was learned.",
        *(f"\nPROBLEM: {problem}" for problem in found["problems"][:50]),
    ]


def _row(found: Mapping[str, Any], name: str) -> str:
    model, verified = found["models"][name], found["verified"][name]
    sums = [
        sum(count for outcome, count in model["outcomes"].items() if outcome.split("/")[0] in kinds)
        for kinds in (("learned",), ("dead-lettered",), ("skipped",), ("joined", "corrected"))
    ]
    same = f"the same bits: {verified['learned'][:12]}" if verified["same"] else "DIFFERENT"
    numbers = [found["starts"][name], model["versions"], model["newest"], model["updates"], *sums]
    return f"| {name} | {' | '.join(f'{n:,}' for n in numbers)} | {model['most_pending']} | {same} |"
