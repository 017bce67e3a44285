"""Commands about what made a version: log, show, blame, verify."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from consumers.cli.command import (
    DEFAULT_CONFIG,
    LINES,
    ConfigPath,
    Json,
    ModelName,
    err,
    existing_store,
    load_config,
    moment,
    open_store,
    print_result,
    printable,
    stranger,
    tell,
)
from consumers.worker.kernels import choose
from pipeline.errors import ConfigError, NotFound, NotRepeatable
from pipeline.words import counted, near

if TYPE_CHECKING:
    from pipeline.store import Blame, Commit

app = typer.Typer()

Version = Annotated[
    str, typer.Argument(help="MODEL, or MODEL@VERSION: a number, an alias, a digest.", metavar="MODEL[@VERSION]")
]


@app.command()
def log(
    model: ModelName,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", help="At most so many, the newest first.", min=1)
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """The history of a model, like `git log`: every version there ever was, and what it learned.

    Example: headrace log pictures -n 3
    """
    from pipeline.store import commits

    settings = load_config(config)
    found = commits(open_store(settings, model), limit)
    text = printable("\n\n".join(map(_commit_text, found)), LINES)
    print_result(json_, [commit.json() for commit in found], *[text] * bool(found))
    if not (json_ or found):
        tell(f"{stranger(settings, model)}{model} has no version yet.")


@app.command()
def show(version: Version, config: ConfigPath = DEFAULT_CONFIG, json_: Json = False) -> None:
    """All about one version: what it learned since its parent, and under which settings.

    Example: headrace show pictures@stable
    """
    from pipeline.store import commits

    model, ref = _split(version)
    store = existing_store(load_config(config), model)
    try:
        manifest = store.manifest(ref)
    except NotFound:
        retired = commits(store, 1, int(ref)) if ref.isascii() and ref.isdecimal() else []
        if not retired:
            raise
        print_result(json_, retired[0].json(), printable(_commit_text(retired[0]), LINES))  # what stays for good
        return
    [commit] = commits(store, 1, manifest.version)
    size = {
        group: sum(part.bytes for entry in tensors.values() for part in entry.parts)
        for group, tensors in (("serving", manifest.serving), ("training", manifest.training))
    }
    lines = {
        "learner": manifest.learner,
        "classes": f"{len(manifest.classes)}: {', '.join(manifest.classes[:20])}" if manifest.classes else "none",
        "state": f"{size['serving']:,} bytes to serve, {size['training']:,} more to go on learning",
        "keyframe": "this version" if manifest.keyframe is None else f"version {manifest.keyframe.version}",
        "read up to": "  ".join(f"{at.topic}:{at.number}@{offset}" for at, offset in manifest.positions().items()),
        "pending": counted(sum(1 for _ in manifest.pending), "record"),
        "seed": manifest.seed,
        "code": "  ".join(f"{key} {value}" for key, value in manifest.environment.items()),
        "options": "  ".join(f"{key}={value}" for key, value in manifest.options.items()),
    }
    if manifest.probes:
        each = (f"{label} {kept['now']:.1%} (best {kept['best']:.1%})" for label, kept in manifest.probes.items())
        lines["held out"] = "  ".join(each)
    facts = [f"{name:<10} {value}" for name, value in (*lines.items(), *manifest.diagnoses.items())]
    about = {**commit.json(), "manifest": manifest.model_dump(mode="json")}
    print_result(json_, about, printable("\n".join([_commit_text(commit), *facts]), LINES))


@app.command()
def blame(
    place: Annotated[str | None, typer.Argument(help="TOPIC:PARTITION:OFFSET of a record.")] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="The producer's name of a record: topics are searched.")
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """What became of a record: the first version that learned it, or why none did, for each model of its topic.

    Example: headrace blame pictures:0:1234
    """
    from pipeline.records import Partition, Place
    from pipeline.store import blame as blamed, places_of

    settings = load_config(config)
    if (place is None) == (id_ is None):
        raise ConfigError("Name one record: headrace blame TOPIC:PARTITION:OFFSET, or headrace blame --id ID.")
    read = sorted({topic for table in settings.models.values() for topic in table.read_topics})
    topic, number, offset = ("", 0, 0) if place is None else _parsed(place)
    if id_ is not None:
        places = [found for topic in read for found in places_of(settings.kafka, topic, id_)]
    else:
        places = [Place(Partition(topic, number), offset)]
    found = [
        blamed(open_store(settings, name), partition, offset)
        for partition, offset in places
        for name, table in settings.models.items()
        if partition.topic in table.read_topics
    ]
    print_result(json_, [one.json() for one in found], *(printable(_blame_text(one), LINES) for one in found))
    if not (json_ or found):
        tell(
            f"No model of {config} reads {topic} (read: {', '.join(read) or 'nothing'}).{near(topic, read)}"
            if id_ is None
            else f"No record of the topics {', '.join(read)} has the id {id_}."
        )


@app.command()
def verify(
    version: Version,
    start: Annotated[str | None, typer.Option("--from", help="The version to begin at; default: from nothing.")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Learn a version again from the log, and compare every bit. Status 0: they are the same.

    Example: headrace verify pictures@stable --from 40
    """
    model, ref = _split(version)
    settings = load_config(config)
    table, store = settings.model(model), open_store(settings, model)
    target = store.manifest(ref)
    deterministic = bool(target.environment.get("deterministic"))
    choose(model, table.model_copy(update={"deterministic": deterministic}), os.environ)

    from consumers.loading import resolve_blueprint
    from consumers.worker.fold import Recipe
    from consumers.worker.replay import Replay, environment_text, gaps_text
    from consumers.worker.sources import Sources
    from consumers.worker.verify import verify as verified
    from consumers.worker.worker import pick_device
    from pipeline.log import Fetcher

    keyframe = store.keyframe(store.manifest(start)) if start is not None else None
    with Fetcher(settings.kafka) as fetcher, Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("learning again", total=None)
        result = verified(
            store,
            Recipe(model, table, resolve_blueprint(table.learner), pick_device(table.device)),
            Replay(fetcher, target.topic_ids),
            Sources(store, settings.family),
            target,
            keyframe,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    since = "nothing" if result.start is None else f"version {result.start}"
    done = f"{counted(result.updates, 'update')}, {counted(result.records, 'record')}"
    what = f"{model} {result.version}, learned again from {since} ({done})"
    same = f"{what}, is the same to the last bit: state {result.stored[:12]}."
    print_result(json_, result.json(), *[same] * result.same)
    if not result.same:
        why = (
            f"Equal bits are promised in the same environment alone: {environment_text(result.environment)}."
            if result.environment
            else "The environment is the same: look for a learner or decoder whose code has changed."
        )
        raise NotRepeatable(f"{what}, differs: {gaps_text(result.differs)}. {why}")


def _split(version: str) -> tuple[str, str]:
    model, _, ref = version.partition("@")
    return model, ref or "latest"


def _parsed(text: str) -> tuple[str, int, int]:
    topic, number, offset = [*text.rsplit(":", 2), "", ""][:3]
    if not (topic and number.isdecimal() and offset.isdecimal()):
        raise ConfigError(f"{text!r} is no place of a record. Write TOPIC:PARTITION:OFFSET, such as pictures:0:1234.")
    return topic, int(number), int(offset)


def _commit_text(commit: Commit) -> str:
    digest = f" ({commit.digest[:12]})" if commit.digest else " (not kept any more)"
    lines = [f"version {commit.version}{digest}" + "".join(f"  {alias}" for alias in commit.aliases)]
    lines.append(f"parent     {commit.parent if commit.parent is not None else 'none'}")
    lines.append(f"time       {moment(commit.created_ms)}")
    records = ", ".join(f"{count:+,} {name}" for name, count in commit.since_parent.items()) or "none"
    lines.append(
        f"records    {records}; {commit.counts.get('learned', 0):,} learned in all, {counted(commit.updates, 'update')}"
    )
    ranges = "  ".join(f"{at} {first}..{end - 1} ({n})" for at, (first, end, n) in commit.ranges.items())
    lines += [f"ranges     {ranges}"] if ranges else []
    shown: dict[str, Any] = {name: value for name, value in commit.metrics.items() if value is not None}
    lines.append("metrics    " + "  ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    for change in commit.changes:
        for name, value in change.items():
            lines.append(f"{name:<10} {value}")
    return "\n".join(lines)


def _blame_text(one: Blame) -> str:
    where = f"{one.topic}:{one.partition}:{one.offset}"
    words = {
        "not yet": "has not been read yet",
        "pending": "has been read and is not learned yet",
        "nothing there": "is no record: a gap, or before the model's start",
    }.get(one.outcome)
    if words is None:
        words = f"{one.outcome}: version {one.version}" + (f", update {one.update}" if one.update is not None else "")
    return f"{where}  {one.model}: {words}"
