"""Commands that ask the sampler: classify, recognise, generate, interpolate, encode, reconstruct, vary, complete, …"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consumers.cli.command import DEFAULT_CONFIG, LINES, ConfigPath, Json, load_config, print_json, printable, tell
from pipeline.errors import ConfigError
from pipeline.words import near

if TYPE_CHECKING:
    from pipeline.client import Classified, Pictures, SamplingClient

SHOWN = 5  # classes
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".txt"}  # of what is a file's name

app = typer.Typer()

ModelName = Annotated[str, typer.Argument(help="A model that the sampler serves.", metavar="MODEL")]
RecordArgument = Annotated[str, typer.Argument(help="A file, a text, or - for standard input.", metavar="FILE|TEXT")]
PictureArgument = Annotated[Path, typer.Argument(help="A picture, or - for standard input.", metavar="FILE")]
Count = Annotated[int | None, typer.Option("-n", help="How many; default: 16.", min=1)]
Label = Annotated[str | None, typer.Option(help="A class of the model.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same again; default: any.", min=0)]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The PNG to write; default: standard output, if no terminal.")
]
Url = Annotated[str | None, typer.Option(help="The sampler's address; default: as configured.")]


@app.command()
def classify(
    model: ModelName, record: RecordArgument, url: Url = None, config: ConfigPath = DEFAULT_CONFIG, json_: Json = False
) -> None:
    """Classify a picture or a text by the newest version.

    Example: headrace classify pictures cat.png
    """
    with _sampler(url, config) as sampler:
        _ranked(sampler.classify(model, _record(record)), json_)


@app.command()
def recognise(
    model: ModelName, record: RecordArgument, url: Url = None, config: ConfigPath = DEFAULT_CONFIG, json_: Json = False
) -> None:
    """Classify a picture or a text, or say that it resembles no class.

    Example: headrace recognise faces visitor.jpg
    """
    with _sampler(url, config) as sampler:
        answer = sampler.recognise(model, _record(record))
    if answer.unknown and not json_:
        typer.echo("unknown")
    _ranked(answer, json_)


@app.command()
def generate(
    model: ModelName,
    n: Annotated[int | None, typer.Option("-n", help="How many; default: 16 pictures, or one text.", min=1)] = None,
    label: Label = None,
    seed: Seed = None,
    output: Output = None,
    url: Url = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Draw new pictures as one PNG, or write new texts.

    Example: headrace generate drawings -n 16 --label cat --seed 7 -o cats.png
    """
    with _sampler(url, config) as sampler:
        if "complete" not in sampler.answers(model):
            sheet = _one(output, json_)
            _shown(sampler.generate(model, n, label=label, seed=seed, sheet=sheet), output, json_)
            return
        written = sampler.write(model, n, seed=seed)
    if json_:
        print_json(written.model_dump(mode="json"))
        return
    for text in written.texts:
        typer.echo(printable(text, LINES))


@app.command()
def interpolate(
    model: ModelName,
    seed: Seed = None,
    to: Annotated[int | None, typer.Option(help="The seed at the other end; default: any.", min=0)] = None,
    steps: Annotated[int | None, typer.Option(help="Pictures, both ends included; default: 8.", min=2)] = None,
    label: Label = None,
    output: Output = None,
    url: Url = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Draw the way from one seed's picture to another's as one PNG.

    Example: headrace interpolate drawings --seed 1 --to 2 -o way.png
    """
    with _sampler(url, config) as sampler:
        sheet = _one(output, json_)
        _shown(sampler.interpolate(model, seed, to, steps=steps, label=label, sheet=sheet), output, json_)


@app.command()
def strip(
    model: ModelName,
    n: Annotated[int | None, typer.Option("-n", help="How many codes: the rows; default: 4.", min=1)] = None,
    versions: Annotated[str | None, typer.Option(help="Numbers or aliases, the columns.", metavar="V1,V2,…")] = None,
    last: Annotated[int | None, typer.Option(help="Else so many of the newest; default: 8.", min=1)] = None,
    label: Label = None,
    seed: Seed = None,
    output: Output = None,
    url: Url = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Draw a film-strip: the same codes, a row each, by many versions, a column each.

    Example: headrace strip drawings --last 8 --seed 7 -o strip.png
    """
    columns = versions.split(",") if versions else ()
    with _sampler(url, config) as sampler:
        sheet = _one(output, json_)
        answer = sampler.strip(model, n, versions=columns, last=last, label=label, seed=seed, sheet=sheet)
        _shown(answer, output, json_)


@app.command()
def encode(
    model: ModelName,
    picture: PictureArgument,
    label: Label = None,
    url: Url = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Print the latent code of a picture, a line for each of its numbers: mean and standard deviation.

    Example: headrace encode drawings seven.png --json
    """
    with _sampler(url, config) as sampler:
        code = sampler.encode(model, _picture(picture), label=label)
    if json_:
        print_json(code.model_dump(mode="json"))
        return
    for mean, std in zip(code.mean, code.std, strict=True):
        typer.echo(f"{mean:.6g} {std:.6g}")


@app.command()
def reconstruct(
    model: ModelName,
    picture: PictureArgument,
    label: Label = None,
    output: Output = None,
    url: Url = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Draw what a model makes of a picture.

    Example: headrace reconstruct drawings seven.png -o again.png
    """
    _one(output, json_)
    with _sampler(url, config) as sampler:
        _shown(sampler.reconstruct(model, _picture(picture), label=label), output, json_)


@app.command()
def vary(
    model: ModelName,
    picture: PictureArgument,
    n: Count = None,
    strength: Annotated[float, typer.Option(help="0: the reconstruction, 1: nothing of it.", min=0, max=1)] = 0.5,
    label: Label = None,
    seed: Seed = None,
    output: Output = None,
    url: Url = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Draw variations of a picture as one PNG.

    Example: headrace vary drawings seven.png --strength 0.3 -o sevens.png
    """
    sheet = _one(output, json_)
    with _sampler(url, config) as sampler:
        answer = sampler.vary(model, _picture(picture), n, strength=strength, label=label, seed=seed, sheet=sheet)
        _shown(answer, output, json_)


@app.command()
def restore(
    model: ModelName,
    picture: PictureArgument,
    kind: Annotated[str | None, typer.Option(help="Of damage, such as noise; default: not known.")] = None,
    mask: Annotated[Path | None, typer.Option(help="A picture that is white where pixels are missing.")] = None,
    output: Output = None,
    url: Url = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Undo damage to a picture of any size.

    Example: headrace restore photos foggy.jpg --kind fog -o clear.png
    """
    _one(output, json_)
    with _sampler(url, config) as sampler:
        _shown(sampler.restore(model, _picture(picture), kind=kind, mask=mask), output, json_)


@app.command()
def restyle(
    model: ModelName,
    picture: PictureArgument,
    output: Output = None,
    url: Url = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Give a picture of any size the model's style.

    Example: headrace restyle engravings photo.jpg -o engraved.png
    """
    _one(output, json_)
    with _sampler(url, config) as sampler:
        _shown(sampler.restyle(model, _picture(picture)), output, json_)


@app.command()
def complete(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The text to go on with, or - for standard input.")] = "",
    seed: Seed = None,
    temperature: Annotated[float, typer.Option(help="0: always the most probable byte.", min=0)] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only the k most probable bytes; 0: all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Only those that together have this probability.", max=1)] = 1.0,
    max_bytes: Annotated[int | None, typer.Option(help="UTF-8; default: 500.", min=1)] = None,
    stop: Annotated[str | None, typer.Option(help="End before this text.")] = None,
    url: Url = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Go on with a text, shown as it is written.

    Example: headrace complete verses "Shall I compare thee" --temperature 0.8
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    with (
        _sampler(url, config) as sampler,
        sampler.complete(
            model,
            text,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_bytes=max_bytes,
            stop=stop,
        ) as pieces,
    ):
        if json_:
            print_json({**pieces.standing.model_dump(mode="json"), "seed": pieces.seed, "text": "".join(pieces)})
            return
        for piece in pieces:
            typer.echo(printable(piece, LINES), nl=False)
            sys.stdout.flush()
        typer.echo()


def _sampler(url: str | None, config: Path) -> SamplingClient:
    from pipeline.client import SamplingClient

    return SamplingClient(url or load_config(config).sampler)


def _picture(path: Path) -> Path | bytes:
    return sys.stdin.buffer.read() if str(path) == "-" else path


def _record(record: str) -> Path | bytes | str:
    """What is no file is a text, unless it is written as the name of one.

    Raises:
        ConfigError: there is no such file.
    """
    if record == "-":
        return sys.stdin.buffer.read()
    try:
        path, is_file = Path(record), Path(record).is_file()
    except (OSError, ValueError):  # longer than a path can be
        return record
    if is_file:
        return path
    if record.startswith(("/", "./", "../", "~/")) or (path.suffix.lower() in SUFFIXES and not record.split()[1:]):
        advice = near(path.name, [beside.name for beside in path.parent.glob("*")])
        raise ConfigError(
            f"{record} is no file.{advice} Correct the path; a text that looks like one goes through standard input, -."
        )
    return record


def _ranked(answer: Classified, json_: bool) -> None:
    if json_:
        print_json(answer.model_dump(mode="json"))
        return
    for label, probability in list(answer.probabilities.items())[:SHOWN]:
        typer.echo(f"{probability:6.1%}  {printable(label)}")
    if not answer.probabilities:
        tell(f"{answer.model} has not learned a class yet.")


def _one(output: Path | None, json_: bool) -> bool:
    """Whether one PNG is wanted, and not JSON with single ones.

    Raises:
        ConfigError: it would go to a terminal.
    """
    if output is None and not json_ and sys.stdout.isatty():
        raise ConfigError("A PNG is not for a terminal. Give -o FILE.png, or --json, or send it on: … > FILE.png.")
    return output is not None or not json_


def _shown(answer: Pictures, output: Path | None, json_: bool) -> None:
    """A file and what there is to say about it; or all of it as JSON; or the PNG itself."""
    if output is None:
        if json_:
            print_json(answer.model_dump(mode="json"))
        else:
            sys.stdout.buffer.write(answer.images[0])
            sys.stdout.flush()
        return
    output.write_bytes(answer.images[0])
    about: dict[str, Any] = answer.model_dump(mode="json", exclude={"images"})
    if json_:
        print_json({**about, "file": str(output)})
        return
    seed = f", seed {about['seed']}" if "seed" in about else ""
    typer.echo(f"Wrote {output}: {answer.model}, version {answer.version}{seed}.")
