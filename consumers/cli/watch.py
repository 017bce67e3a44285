"""What `headrace watch`, `headrace versions` and the demo show: read from manifests, so it works from anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from consumers.cli.command import LINES, moment, printable
from pipeline.errors import NotFound
from pipeline.store import Holding, Manifest, Store
from pipeline.words import counted


@dataclass(frozen=True, slots=True)
class Row:
    """One model at one moment. None: not known (yet), or it does not apply."""

    model: str
    version: int | None = None
    records: int = 0  # learned since its first version
    records_per_s: float | None = None  # between the two newest versions seen
    lag_records: int | None = None
    loss: float | None = None  # prequential, mean over the last 1,000 records, in nats
    accuracy: float | None = None  # prequential, over the last 1,000 records
    held_out: float | None = None  # accuracy, or a generator's loss in nats, on records that are never published
    freshness_s: float | None = None  # age of the newest learned record
    skipped: int = 0  # records that were not learned, and
    dead_lettered: int = 0  # records that could not be, since its first version
    worker: Holding | None = None  # who holds the writer's lease; None: its worker ended well
    diagnoses: Mapping[str, str] = field(default_factory=dict)  # why it does badly, if it does, and what to do

    def json(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> list[str]:
        """The row as texts, in the order of `COLUMNS`."""
        return [cell(self) for cell in COLUMNS.values()]

    def warnings(self) -> list[str]:
        """What is wrong with the model, a line each."""
        problem = self.worker.problem if self.worker is not None and self.worker.alive else None
        lines = [problem] if problem else []
        return [f"{self.model}: {line}" for line in (*lines, *self.diagnoses.values())]

    def state(self) -> str:
        if self.worker is None:
            return "–" if self.version is None else "none"
        if self.worker.alive:
            return "alive" if self.worker.stalled is None else "stalled"
        return f"dead {_number(self.worker.seen_s, '{:,.0f} s')}"


#: by heading
COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "version": lambda row: _number(row.version),
    "records": lambda row: f"{row.records:,}",
    "records/s": lambda row: _number(row.records_per_s, "{:,.0f}"),
    "lag": lambda row: _number(row.lag_records, "{:,}"),
    "loss": lambda row: _number(row.loss, "{:.3f}"),
    "accuracy": lambda row: _number(row.accuracy, "{:.1%}"),
    "held out": lambda row: _number(row.held_out, "{:.1%}" if row.accuracy is not None else "{:.2f} nats"),
    "freshness": lambda row: _number(row.freshness_s, "{:.1f} s"),
    "skipped": lambda row: _number(row.skipped or None, "{:,}"),
    "dead letters": lambda row: _number(row.dead_lettered or None, "{:,}"),
    "worker": Row.state,
}


class Heads:
    """Turns the newest manifests into rows; remembers the manifests before, for rates."""

    def __init__(self) -> None:
        self._before: dict[str, Manifest] = {}
        self._rates: dict[str, float] = {}

    def row(
        self,
        model: str,
        manifest: Manifest | None,
        now_s: float,
        held_out: float | None = None,
        worker: Holding | None = None,
    ) -> Row:
        """The model now; `worker`: who holds its writer's lease."""
        if manifest is None:
            return Row(model, worker=worker)
        before = self._before.get(model)
        if before is None or before.version != manifest.version:
            self._before[model] = manifest
            if before is not None and manifest.created_ms > before.created_ms:
                learned = manifest.counts.get("learned", 0) - before.counts.get("learned", 0)
                self._rates[model] = 1000 * learned / (manifest.created_ms - before.created_ms)
        newest_ms = manifest.newest_timestamp_ms
        lag = manifest.metrics.get("lag_records")
        return Row(
            model=model,
            version=manifest.version,
            records=manifest.counts.get("learned", 0),
            records_per_s=self._rates.get(model),
            lag_records=None if lag is None else int(lag),
            loss=manifest.metrics.get("prequential_loss"),
            accuracy=manifest.metrics.get("prequential_accuracy"),
            held_out=held_out,
            freshness_s=None if newest_ms is None else max(0.0, now_s - newest_ms / 1000),
            skipped=_counted(manifest, "skipped/"),
            dead_lettered=_counted(manifest, "dead-lettered/"),
            worker=worker,
            diagnoses=manifest.diagnoses,
        )

    def look(self, stores: Mapping[str, Store]) -> list[Row]:
        """A row for each model, as Redis has it now."""
        rows = []
        for name, store in stores.items():
            head, manifest = store.head(), None
            with suppress(NotFound):  # the model was deleted meanwhile
                manifest = store.manifest(head) if head else None
            rows.append(self.row(name, manifest, time.time(), worker=store.holding()))
        return rows


def table(rows: Iterable[Row], caption: str | None = None) -> Table:
    # Text, for rich reads marks such as [red] in a str, and a class may be named [/red].
    shown = Table(caption=None if caption is None else Text(printable(caption, LINES)), caption_justify="left")
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        shown.add_row(*row.cells())
    return shown


def plain(row: Row) -> str:
    """The row as one line for logs and pipes."""
    named: Mapping[str, str] = dict(zip(COLUMNS, row.cells(), strict=True))
    return "  ".join(f"{name} {value}" for name, value in named.items() if value != "–")


def kept_versions(store: Store) -> list[dict[str, Any]]:
    """A model's versions, newest first, as JSON."""
    names: dict[int, list[str]] = {}
    for alias, named in store.aliases().items():
        names.setdefault(named.version, []).append(alias)
    rows = []
    for ref in reversed(store.versions()):
        with suppress(NotFound):  # a worker has retired it meanwhile
            manifest = store.manifest(ref)
            row = {
                "version": ref.version,
                "digest": ref.digest,
                "created_ms": manifest.created_ms,
                "records": manifest.counts.get("learned", 0),
                **manifest.metrics,
                "aliases": names.get(ref.version, []),
            }
            rows.append(row)
    return rows


def version_line(row: Mapping[str, Any]) -> str:
    """One of `kept_versions` for people."""
    when = moment(row["created_ms"])
    loss = _number(row.get("prequential_loss"), "loss {:.3f}")
    accuracy = _number(row.get("prequential_accuracy"), "accuracy {:.1%}")
    parts = (
        f"{row['version']:>6}",
        row["digest"][:12],
        when,
        counted(row["records"], "record").rjust(18),
        loss,
        accuracy,
    )
    return "  ".join([part for part in (*parts, *row["aliases"]) if part != "–"])


def _counted(manifest: Manifest, outcome: str) -> int:
    return sum(count for name, count in manifest.counts.items() if name.startswith(outcome))


def _number(value: float | None, form: str = "{}") -> str:
    return "–" if value is None else form.format(value)
