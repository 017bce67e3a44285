"""Commands that send: publish, label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consumers.cli.command import DEFAULT_CONFIG, ConfigPath, Json, load_config, print_result, tell, valid_topic
from consumers.stopping import stopping
from pipeline.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from consumers.publish.publishing import Publishing

app = typer.Typer()

NewTopic = Annotated[bool, typer.Option("--new-topic", help="Make the topic, also where no model reads it.")]

STDIN = "-"
WAIT_S = 2.0


@app.command()
def publish(
    topic: Annotated[str, typer.Argument(help="The topic.", callback=valid_topic)],
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders (sub-folders are labels), .jsonl files, or - for texts on standard input."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The label of every record.")] = None,
    id_: Annotated[str | None, typer.Option("--id", help="The id of the one record; else the digest of it.")] = None,
    follow: Annotated[Path | None, typer.Option(help="Publish what is dropped into this folder, until Ctrl-C.")] = None,
    in_order: Annotated[bool, typer.Option("--in-order", help="Folders label after label, not shuffled.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order of what is shuffled.")] = 0,
    repeat: Annotated[int, typer.Option(help="Publish all so many times.", min=1)] = 1,
    again: Annotated[
        bool, typer.Option("--again", help="Publish also what a try before published that ended early.")
    ] = False,
    new_topic: NewTopic = False,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Publish pictures and texts.

    Where it ended early, the same command goes on: nothing is published twice.

    Example: headrace publish pictures ./photos
    """
    settings = load_config(config)
    named = sources or []
    if bool(named) == (follow is not None):
        raise ConfigError(
            "Nothing to publish, or two things at once. Give files and folders, or - , or --follow FOLDER."
        )
    if STDIN in named and len(named) > 1:
        raise ConfigError("Standard input goes alone. Publish the files by a command of their own.")
    if follow is not None and (id_ is not None or repeat > 1):
        raise ConfigError("--follow takes neither --id nor --repeat: its records come one by one. Leave them out.")
    if named == [STDIN] and repeat > 1:
        raise ConfigError("Standard input can be read once. Leave --repeat out, or publish a .jsonl file.")

    from consumers.publish.publishing import Publishing, records
    from consumers.publish.records import Way

    way = Way(settings.kafka.max_bytes, _named("label", label), None if in_order else seed)
    with stopping() as stop:
        run = Publishing(settings, topic, way, stop, tell, id=_named("id", id_), again=again, new_topic=new_topic)
        if follow is not None:
            run.follow(follow)
        elif named == [STDIN]:
            run.lines()
        else:
            run.files([Path(source) for source in named], repeat)
    print_result(json_, {"topic": topic, **run.json()}, f"{records(run.tally.published)} published to {topic}.")
    if follow is None:
        _tell_end(run, stop.status)


@app.command()
def label(
    topic: Annotated[str, typer.Argument(help="A model's topic of labels.", callback=valid_topic)],
    id_: Annotated[str, typer.Argument(metavar="ID", help="The id of the record.")],
    label: Annotated[str, typer.Argument(help="Its label, or the one that replaces it.")],
    new_topic: NewTopic = False,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Publish the label of a record that was published without one, or under a wrong one.

    Example: headrace label answers photo-17 cat
    """
    settings = load_config(config)
    _named("id", id_)
    text = str(_named("label", label))

    from consumers.publish.publishing import impatient
    from consumers.publish.sending import patiently
    from consumers.publish.unlearned import labels_warning
    from pipeline.client import Client

    patient = settings.model_copy(update={"kafka": impatient(settings.kafka)})
    is_published = False
    with stopping() as stop, Client(patient) as client:
        receipt = patiently(lambda: client.publish_label(topic, id_, text, new_topic=new_topic), stop, tell)
        if warning := labels_warning(settings, topic):
            tell(warning)
        patiently(lambda: receipt.result(WAIT_S), stop, tell)
        is_published = True
    if not is_published:
        raise typer.Exit(stop.status)
    print_result(json_, {"topic": topic, "id": id_, "label": text}, f"{id_} is {text}: published to {topic}.")


def _named(kind: str, text: str | None) -> str | None:
    """A label or an id as it is published.

    Raises:
        ConfigError: it can be none.
    """
    from consumers.publish.outgoing import named

    try:
        return None if text is None else named(kind, text)
    except RecordError as error:
        raise ConfigError(f"{error.detail[0].upper()}{error.detail[1:]}") from None


def _tell_end(run: Publishing, interrupted: int) -> None:
    """What to do next, for people; ends with a status where not all is published."""
    from consumers.publish.publishing import advice, records

    tally = run.tally
    if tally.before:
        tell(f"{records(tally.before)} had been published before, and were left out.")
    if tally.labels and run.is_shown:
        tell(advice(tally))
    if run.is_ended:
        tell("It ended early. The same command publishes the rest.")
    if tally.missing:
        typer.secho(
            f"headrace: {records(tally.missing)} not published. Mend what is named above, and give the same command: "
            "it publishes these alone.",
            fg="red",
            err=True,
        )
    if run.is_ended or tally.missing:
        raise typer.Exit(interrupted if run.is_ended else RecordError.exit_status)
