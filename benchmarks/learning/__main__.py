"""What is kept of a stream sorted by class: `python -m benchmarks.learning --data FOLDER`, or one part by name."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.learners.__main__ import say
from benchmarks.learners.data import Set, clothes, digits, photographs, small_digits
from benchmarks.learners.texts import intents
from benchmarks.learning import constant, drift, plots, sure
from benchmarks.learning.runs import BATCH, Run, run
from benchmarks.learning.streams import at_most, domains, news_mixed, pairs, sorted_by_class, split, tiles_mixed
from benchmarks.machine import machine, others
from benchmarks.report import Figure, Findings, keep
from models.registry import BUILTIN
from pipeline import __version__

HERE = Path(__file__).parent
DIGITS_WARP = {"turn_degrees": 15, "shift_pixels": 2, "scale_percent": 10}
CLOTHES_WARP = {"turn_degrees": 5, "shift_pixels": 1, "scale_percent": 5, "mirror": True}
#: a category comes by itself, where `er-ace` would be this with logits
TILES_REPLAY = {
    "strategy": "er",
    "replay_slots": 200,
    "replay_draws": 64,
    "width": 64,
    "average": 0.99,
    "augment": {"shift_pixels": 2, "mirror": True},
    "augment_incoming": False,
}
#: pixels of tiles are sharp: moved by more, they blur
TILES_DREAMS = {
    **TILES_REPLAY,
    "dream_share": 0.75,
    "dream_components": 10,
    "dream_axes": 12,
    "replay_draws": 128,
    "steps": 4,
    "width": 32,
    "hidden": 512,
    "augment": {"shift_pixels": 1, "mirror": True},
}
TILES = "crawl_tiles, a category at a time"
RIVALS = ("tiles-shuffled", "tiles-avalanche-er-200")

REQUESTS = {
    "strategy": "er-ace",
    "logits_weight": 0.1,
    "logits_classes": 150,
    "replay_slots": 500,
    "replay_draws": 100,
    "dropout": 0.3,
    "orders": 5,
    "dim": 128,
    "learning_rate": 5e-4,
    "table_learning_rate": 1e-3,
}


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the table."""

    what: str
    records: Callable[..., Set]
    learner: str
    options: Mapping[str, Any]
    wanted: float | None = None  # final accuracy
    groups: Callable[[Path, Set], Sequence[Sequence[str]]] = lambda data, records: pairs(records.labels)  # in turn
    validation: str | None = None  # what is tried out is judged on this part; None: on `TUNING` training records
    batch: int = BATCH
    above: Sequence[str] = ()  # parts, ours or peers', whose final accuracy is wanted at least


def replaying(slots: int, warp: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "strategy": "er-ace",
        "logits_weight": 0.3,
        "logits_classes": 10,
        "replay_slots": slots,
        "replay_draws": 32,
        "augment": warp,
        "augment_incoming": False,
    }


def dreaming(warp: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "strategy": "dreams",
        "replay_draws": 32,
        "average": 0.99,
        "augment": warp,
        "augment_incoming": False,
    }


def both(slots: int, warp: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """Records and dreams."""
    return {**replaying(slots, warp), "dream_share": 0.5, "average": 0.99, **others}


def as_it_comes(part: Part, **options: Any) -> Part:
    """With the learner's defaults, but for what is compared with them."""
    told = f" with {', '.join(f'{name} = {value}' for name, value in options.items())}" if options else ""
    what = part.what.rpartition(", ")[0]
    return replace(part, what=f"{what}, as it comes{told}", options=options, wanted=None, above=())


def by_domain(data: Path, records: Set) -> Sequence[Sequence[str]]:
    return domains(data)


def singly(data: Path, records: Set) -> Sequence[Sequence[str]]:
    return pairs(records.labels, 1)


def together(data: Path, records: Set) -> Sequence[Sequence[str]]:
    return [sorted(set(records.labels))]


PARTS = {
    "mnist-naive": Part("Split-MNIST, naive", digits, "image-classifier", {"strategy": "naive"}),
    "mnist-replay-200": Part(
        "Split-MNIST, replay memory 200",
        digits,
        "image-classifier",
        {**replaying(200, DIGITS_WARP), "average": 0.99},
        0.975,
    ),
    "mnist-replay-1000": Part(
        "Split-MNIST, replay memory 1000", digits, "image-classifier", replaying(1000, DIGITS_WARP), 0.985
    ),
    "mnist-dreams-200": Part(
        "Split-MNIST, replay memory 200 and dreams", digits, "image-classifier", both(200, DIGITS_WARP, steps=2), 0.975
    ),
    "mnist-dreams-1000": Part(
        "Split-MNIST, replay memory 1000 and dreams",
        digits,
        "image-classifier",
        both(1000, DIGITS_WARP, steps=2),
        0.985,
    ),
    "mnist-analytic": Part("Split-MNIST, no stored data", digits, "image-analytic", {"width": 3900}, 0.993),
    "mnist-analytic-small": Part("Split-MNIST, no stored data, small", digits, "image-analytic", {"width": 285}, 0.98),
    "mnist-dreams": Part(
        "Split-MNIST, a learned generator as the only memory", digits, "image-classifier", dreaming(DIGITS_WARP), 0.97
    ),
    "fashion-replay-200": Part(
        "Split-Fashion-MNIST, replay memory 200", clothes, "image-classifier", replaying(200, CLOTHES_WARP), 0.81
    ),
    "fashion-replay-1000": Part(
        "Split-Fashion-MNIST, replay memory 1000",
        clothes,
        "image-classifier",
        {**replaying(1000, CLOTHES_WARP), "width": 64, "replay_draws": 64, "average": 0.99},
        0.865,
    ),
    "fashion-dreams-200": Part(
        "Split-Fashion-MNIST, replay memory 200 and dreams",
        clothes,
        "image-classifier",
        both(200, CLOTHES_WARP, replay_draws=64),
        0.87,
    ),
    "fashion-dreams-1000": Part(
        "Split-Fashion-MNIST, replay memory 1000 and dreams",
        clothes,
        "image-classifier",
        both(1000, CLOTHES_WARP, replay_draws=64, width=64),
        0.865,
    ),
    "fashion-analytic": Part("Split-Fashion-MNIST, no stored data", clothes, "image-analytic", {"width": 3900}, 0.91),
    "clinc-replay-500": Part(
        "CLINC150 by domain, replay memory 500", intents, "text-classifier", REQUESTS, 0.88, by_domain, "val"
    ),
    "clinc-analytic": Part(
        "CLINC150 by domain, no stored data", intents, "text-analytic", {"width": 4096}, 0.923, by_domain, "val"
    ),
    "tiles-shuffled": Part(
        "crawl_tiles, shuffled, naive", tiles_mixed, "image-classifier", {"strategy": "naive"}, groups=together
    ),
    "tiles-replay-200": Part(
        f"{TILES}, replay memory 200", tiles_mixed, "image-classifier", TILES_REPLAY, above=RIVALS, groups=singly
    ),
    "tiles-dreams-200": Part(
        f"{TILES}, replay memory 200 and dreams",
        tiles_mixed,
        "image-classifier",
        TILES_DREAMS,
        above=RIVALS,
        groups=singly,
    ),
    "tiles-analytic": Part(
        f"{TILES}, no stored data", tiles_mixed, "image-analytic", {"width": 3000}, above=RIVALS, groups=singly
    ),
}


#: what defaults are chosen between
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "-er": {"strategy": "er"},
    "-der": {"strategy": "der++"},
    "-dreams": {"dream_share": 0.5},
    "-slots": {"replay_slots": 15_000},  # for clothes and digits as many bytes as with dreams
}
PARTS |= {
    f"{data}-default{name}": as_it_comes(PARTS[f"{data}-replay-{slots}"], **options)
    for data, slots in (("mnist", 200), ("fashion", 200), ("clinc", 500), ("tiles", 200))
    for name, options in OTHERS.items()
    if name not in ("-dreams", "-slots") or data in ("mnist", "fashion")
}

ORDERS: Mapping[str, Callable[[Path, Set], Sequence[Sequence[str]]]] = {
    "shuffled": together,
    "pairs": lambda data, records: pairs(records.labels),
    "singly": singly,
}
PARTS |= {
    f"{data}-{order}-{batch}": replace(
        part,
        what=f"{what}, {order}, batches of {batch}",
        records=records,
        groups=groups,
        batch=batch,
        wanted=wanted,
    )
    for data, what, records, wanted_singly in (
        ("mnist", "MNIST, the first 10,000", at_most(10_000, digits), 0.96),
        ("fashion", "Fashion-MNIST, the first 10,000", at_most(10_000, clothes), 0.83),
        ("tiles", "crawl_tiles", tiles_mixed, 0.82),
        ("clinc", "CLINC150", intents, 0.9),
    )
    for part in (PARTS[f"{data}-default"],)
    for order, groups in ORDERS.items()
    for batch in (10, 64)
    for wanted in (wanted_singly if (order, batch) == ("singly", 64) else None,)
}

#: what `headrace init` writes, with nothing chosen: data, its records, its learner, what is wanted in any order
AUTO: Sequence[tuple[str, str, Callable[..., Set], str, float | None]] = (
    ("digits", "scikit-learn's digits", small_digits, "image-auto", 0.97),
    ("mnist", "MNIST, the first 10,000", at_most(10_000, digits), "image-auto", None),
    ("fashion", "Fashion-MNIST, the first 10,000", at_most(10_000, clothes), "image-auto", None),
    ("tiles", "crawl_tiles", tiles_mixed, "image-auto", None),
    ("cifar", "CIFAR-10, 10,000", photographs, "image-auto", 0.7),
    ("clinc", "CLINC150", intents, "text-auto", 0.9),
    ("news", "20 Newsgroups, 11,096", news_mixed, "text-auto", 0.72),
)
PARTS |= {
    f"{data}-auto-{order}-{batch}": Part(
        f"{what}, {order}, batches of {batch}",
        records,
        learner,
        {},
        wanted,
        groups,
        "val" if data == "clinc" else None,
        batch,
    )
    for data, what, records, learner, wanted in AUTO
    for order, groups in ORDERS.items()
    for batch in (10, 64)
}


def measured_sure(name: str, data: Path, seeds: int, tuning: bool, peer: float | None) -> Findings:
    return sure.measure(name, data, tuning)


#: what is measured beside streams that are sorted by class
BESIDE: Mapping[str, Callable[[Path, int, bool, float | None], Findings]] = {
    "constant": lambda data, seeds, tuning, peer: constant.measure(),
    "drift": drift.measure,
    **{name: partial(measured_sure, name) for name in sure.CASES},
}


Data = Annotated[Path, typer.Option(help="The folder of the data sets.")]
To = Annotated[Path, typer.Option(help="Where README.md and results.json are written.")]
Seeds = Annotated[int, typer.Option(help="Of weights, order and replay.")]
Threads = Annotated[int, typer.Option(help="Of torch.")]
Tuning = Annotated[bool, typer.Option("--tuning", help="Judge on training records that are not learned.")]


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join([*PARTS, *BESIDE])}; default: all.")] = None,
    data: Data = Path("data"),
    to: To = HERE,
    seeds: Seeds = 5,
    threads: Threads = 1,
    tuning: Tuning = False,
) -> None:
    """Measures and keeps the table, or with --tuning only says what it found."""
    torch.set_num_threads(threads)
    for name in parts or [*PARTS, *BESIDE]:
        if name not in PARTS.keys() | BESIDE.keys():
            raise typer.BadParameter(f"{name} is none of {', '.join([*PARTS, *BESIDE])}.")
        began_s = time.monotonic()
        with others() as taken:
            if name in BESIDE:
                findings = BESIDE[name](data, seeds, tuning, peer_after_the_turn(to))
            else:
                part, runs = PARTS[name], measure(name, data, seeds, tuning)
                findings = Findings(
                    [figure(f"{part.what}: `{part.learner}`", runs, wanted(part, to))],
                    [],
                    {"runs": [one.json() for one in runs]},
                )
        if not tuning:
            versions = {"headrace": __version__, "torch": version("torch"), "threads": str(threads)}
            keep(to, name, findings, {**circumstances(), "versions": versions, **taken})
            plots.write(to)
        say(f"{name}: {time.monotonic() - began_s:.0f} s")


def wanted(part: Part, folder: Path) -> float | None:
    """The final accuracy to reach: the part's own, or the best of those that it is to be above and that are kept."""
    if not part.above:
        return part.wanted
    known = kept(folder)
    finals = [mean_of(known[name]["raw"]["runs"], "final") for name in part.above if name in known]
    return max(finals, default=None)


def peer_after_the_turn(folder: Path) -> float | None:
    """What Avalanche's learner predicts after clothes have turned, where that is kept."""
    found = kept(folder).get("drift-avalanche-er-1000")
    return None if found is None else mean_of(found["raw"]["turns"], "after")


def kept(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text("utf-8"))
    return found


def mean_of(runs: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.mean(run[name] for run in runs)


def circumstances() -> dict[str, Any]:
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()}


def measure(name: str, data: Path, seeds: int, tuning: bool) -> list[Run]:
    """One run a seed."""
    part = PARTS[name]
    learned, test = split(part.records, data, tuning, part.validation)
    runs = []
    for seed in range(seeds):
        stream = sorted_by_class(learned, part.groups(data, learned), seed)
        runs.append(run(BUILTIN[part.learner], part.options, stream, test, seed, part.batch))
        say(f"{name}, seed {seed}: {runs[-1].numbers()}")
    return runs


def figure(what: str, runs: list[Run], wanted: float | None = None) -> Figure:
    """Final accuracy first, then what else there is to know."""
    final = spread([one.final for one in runs])
    mean = {key: statistics.mean(one.numbers()[key] for one in runs) for key in runs[0].numbers()}
    sure = f", calibration error {mean['calibration_error']:.1%}" if "calibration_error" in mean else ""
    found = (
        f"**{final}** (incremental {mean['incremental']:.1%}, forgetting {mean['forgetting']:.1%}, prequential "
        f"{mean['prequential']:.1%}{sure}); {mean['records_per_s']:,.0f} records a second of CPU; state "
        f"{mean['state_bytes'] / 1e6:,.1f} MB, of it stored records {mean['stored_bytes'] / 1e6:.2f} MB; "
        f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
    )
    if wanted is None:
        return Figure(what, found)
    return Figure(what, found, f"≥ {wanted:.1%}", mean["final"] >= wanted)


def spread(values: list[float]) -> str:
    mean = 100 * statistics.mean(values)
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f} %" if len(values) > 1 else f"{mean:.1f} %"


if __name__ == "__main__":
    typer.run(main)
