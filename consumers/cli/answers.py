"""Commands that ask the sampler: classify, recognise, generate, interpolate, encode, reconstruct, vary, complete, …

A new one is a function that is given who it `Asks`; its options that others have, too, are in `SHARED`.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consumers.cli.command import (
    DEFAULT_CONFIG,
    LINES,
    After,
    ConfigPath,
    Json,
    load_config,
    print_json,
    print_result,
    printable,
    tell,
)
from pipeline.errors import ConfigError
from pipeline.words import near

if TYPE_CHECKING:
    from pipeline.client import Classified, Pictures, SamplingClient

SHOWN = 5  # classes
SHOWN_CHARACTERS = 60  # of a text
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
#: options that follow a command's own: what they are, and their defaults
SHARED: dict[str, tuple[Any, Any]] = {
    "after": (After, None),
    "url": (Url, None),
    "config": (ConfigPath, DEFAULT_CONFIG),
    "json_": (Json, False),
}
DRAWN = {"output": (Output, None), **SHARED}


@dataclass(frozen=True, slots=True)
class Asks:
    """The sampler that a command asks, and how its answer is wanted."""

    sampler: "SamplingClient"
    json: bool
    sheet: bool = True  # one PNG, and not JSON with single ones


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """A command that asks the sampler, and shows its answer itself."""

    def run(after: list[str] | None, url: str | None, config: Path, json_: bool, **own: Any) -> None:
        with _sampler(url, config) as sampler:
            command(Asks(sampler.after(*after or ()), json_), **own)

    return _command(command, run, SHARED)


def drawing(command: Callable[..., "Pictures"]) -> Callable[..., None]:
    """A command whose answer is pictures."""

    def run(
        output: Path | None, after: list[str] | None, url: str | None, config: Path, json_: bool, **own: Any
    ) -> None:
        with _sampler(url, config) as sampler:
            asks = Asks(sampler.after(*after or ()), json_, _one(output, json_))
            _shown(command(asks, **own), output, json_)

    return _command(command, run, DRAWN)


def _command(
    command: Callable[..., Any], run: Callable[..., None], shared: dict[str, tuple[Any, Any]]
) -> Callable[..., None]:
    """Makes `run` the command of that name, with the options of its function and the shared ones."""
    _, *own = inspect.signature(command).parameters.values()
    of_all = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in shared.items()
    ]
    run.__signature__ = inspect.Signature([*own, *of_all])  # type: ignore[attr-defined]
    run.__name__, run.__doc__, run.__annotations__ = command.__name__, command.__doc__, {}
    return app.command()(run)


@asking
def classify(asks: Asks, model: ModelName, record: RecordArgument) -> None:
    """Classify a picture or a text by the newest version.

    Example: headrace classify pictures cat.png
    """
    _ranked(asks.sampler.classify(model, _record(record)), asks.json)


@asking
def recognise(asks: Asks, model: ModelName, record: RecordArgument) -> None:
    """Classify a picture or a text, or say that it resembles no class.

    Example: headrace recognise faces visitor.jpg
    """
    answer = asks.sampler.recognise(model, _record(record))
    _ranked(answer, asks.json, *["unknown"] * answer.unknown)


@asking
def explain(
    asks: Asks,
    model: ModelName,
    record: RecordArgument,
    label: Annotated[str | None, typer.Option(help="The class to explain; default: the likeliest.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A PNG to write: the heat over it.")] = None,
) -> None:
    """Tell what in a picture or a text speaks for its class, and what against it.

    Example: headrace explain pictures cat.png -o why.png
    """
    answer = asks.sampler.explain(model, _record(record), label=label)
    if output is not None:
        if answer.image is None:
            raise ConfigError(f"{model} reads texts, and -o is for pictures. Leave it out.")
        output.write_bytes(answer.image)
    file = {} if output is None else {"file": str(output)}
    lines = [f"{part.weight:+7.2f}  {printable(part.text.strip())}" for part in answer.parts or ()]
    if answer.heat is not None:
        lines = [" ".join(f"{cell:+6.2f}" for cell in row) for row in answer.heat]
    said = f"{answer.probability:6.1%}  {printable(answer.label)}"
    print_result(asks.json, {**answer.model_dump(mode="json"), **file}, said, *lines)


@asking
def nearest(
    asks: Asks,
    model: ModelName,
    record: RecordArgument,
    n: Annotated[int | None, typer.Option("-n", help="How many; default: 8.", min=1)] = None,
) -> None:
    """Find the learned records that are nearest to a picture or a text; for a drawing, whether it is a copy.

    Example: headrace nearest pictures cat.png -n 3
    """
    answer = asks.sampler.nearest(model, _record(record), n)
    lines = [
        "  ".join(
            filter(None, (f"{one.distance:8.3f}", one.position, one.label and printable(one.label), _text(one.text)))
        )
        for one in answer.records
    ]
    if answer.is_copy is not None:
        lines.append("It is a copy of the first." if answer.is_copy else "It is no copy.")
    print_result(asks.json, answer.model_dump(mode="json"), *lines)


@asking
def generate(
    asks: Asks,
    model: ModelName,
    n: Annotated[int | None, typer.Option("-n", help="How many; default: 16 pictures, or one text.", min=1)] = None,
    label: Label = None,
    seed: Seed = None,
    output: Output = None,
) -> None:
    """Draw new pictures as one PNG, or write new texts.

    Example: headrace generate drawings -n 16 --label cat --seed 7 -o cats.png
    """
    if "complete" not in asks.sampler.answers(model):
        sheet = _one(output, asks.json)
        _shown(asks.sampler.generate(model, n, label=label, seed=seed, sheet=sheet), output, asks.json)
        return
    written = asks.sampler.write(model, n, seed=seed)
    print_result(asks.json, written.model_dump(mode="json"), *(printable(text, LINES) for text in written.texts))


@drawing
def interpolate(
    asks: Asks,
    model: ModelName,
    seed: Seed = None,
    to: Annotated[int | None, typer.Option(help="The seed at the other end; default: any.", min=0)] = None,
    steps: Annotated[int | None, typer.Option(help="Pictures, both ends included; default: 8.", min=2)] = None,
    label: Label = None,
) -> "Pictures":
    """Draw the way from one seed's picture to another's as one PNG.

    Example: headrace interpolate drawings --seed 1 --to 2 -o way.png
    """
    return asks.sampler.interpolate(model, seed, to, steps=steps, label=label, sheet=asks.sheet)


@drawing
def strip(
    asks: Asks,
    model: ModelName,
    n: Annotated[int | None, typer.Option("-n", help="How many codes: the rows; default: 4.", min=1)] = None,
    versions: Annotated[str | None, typer.Option(help="Numbers or aliases, the columns.", metavar="V1,V2,…")] = None,
    last: Annotated[int | None, typer.Option(help="Else so many of the newest; default: 8.", min=1)] = None,
    label: Label = None,
    seed: Seed = None,
) -> "Pictures":
    """Draw a film-strip: the same codes, a row each, by many versions, a column each.

    Example: headrace strip drawings --last 8 --seed 7 -o strip.png
    """
    columns = versions.split(",") if versions else ()
    return asks.sampler.strip(model, n, versions=columns, last=last, label=label, seed=seed, sheet=asks.sheet)


@asking
def encode(asks: Asks, model: ModelName, picture: PictureArgument, label: Label = None) -> None:
    """Print the latent code of a picture, a line for each of its numbers: mean and standard deviation.

    Example: headrace encode drawings seven.png --json
    """
    code = asks.sampler.encode(model, _picture(picture), label=label)
    lines = (f"{mean:.6g} {std:.6g}" for mean, std in zip(code.mean, code.std, strict=True))
    print_result(asks.json, code.model_dump(mode="json"), *lines)


@drawing
def reconstruct(asks: Asks, model: ModelName, picture: PictureArgument, label: Label = None) -> "Pictures":
    """Draw what a model makes of a picture.

    Example: headrace reconstruct drawings seven.png -o again.png
    """
    return asks.sampler.reconstruct(model, _picture(picture), label=label)


@drawing
def vary(
    asks: Asks,
    model: ModelName,
    picture: PictureArgument,
    n: Count = None,
    strength: Annotated[float, typer.Option(help="0: the reconstruction, 1: nothing of it.", min=0, max=1)] = 0.5,
    label: Label = None,
    seed: Seed = None,
) -> "Pictures":
    """Draw variations of a picture as one PNG.

    Example: headrace vary drawings seven.png --strength 0.3 -o sevens.png
    """
    return asks.sampler.vary(model, _picture(picture), n, strength=strength, label=label, seed=seed, sheet=asks.sheet)


@drawing
def restore(
    asks: Asks,
    model: ModelName,
    picture: PictureArgument,
    kind: Annotated[str | None, typer.Option(help="Of damage, such as noise; default: not known.")] = None,
    mask: Annotated[Path | None, typer.Option(help="A picture that is white where pixels are missing.")] = None,
) -> "Pictures":
    """Undo damage to a picture of any size.

    Example: headrace restore photos foggy.jpg --kind fog -o clear.png
    """
    return asks.sampler.restore(model, _picture(picture), kind=kind, mask=mask)


@drawing
def restyle(asks: Asks, model: ModelName, picture: PictureArgument) -> "Pictures":
    """Give a picture of any size the model's style.

    Example: headrace restyle engravings photo.jpg -o engraved.png
    """
    return asks.sampler.restyle(model, _picture(picture))


@asking
def complete(
    asks: Asks,
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The text to go on with, or - for standard input.")] = "",
    seed: Seed = None,
    temperature: Annotated[float, typer.Option(help="0: always the most probable byte.", min=0)] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only the k most probable bytes; 0: all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Only those that together have this probability.", max=1)] = 1.0,
    max_bytes: Annotated[int | None, typer.Option(help="UTF-8; default: 500.", min=1)] = None,
    stop: Annotated[str | None, typer.Option(help="End before this text.")] = None,
) -> None:
    """Go on with a text, shown as it is written.

    Example: headrace complete verses "Shall I compare thee" --temperature 0.8
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    with asks.sampler.complete(
        model,
        text,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_bytes=max_bytes,
        stop=stop,
    ) as pieces:
        if asks.json:
            print_json({**pieces.info.model_dump(mode="json"), "seed": pieces.seed, "text": "".join(pieces)})
            return
        for piece in pieces:
            typer.echo(printable(piece, LINES), nl=False)
            sys.stdout.flush()
        typer.echo()


def _sampler(url: str | None, config: Path) -> "SamplingClient":
    from pipeline.client import SamplingClient

    return SamplingClient(url or load_config(config).sampler)


def _picture(path: Path) -> Path | bytes:
    return sys.stdin.buffer.read() if str(path) == "-" else path


def _record(record: str) -> Path | bytes | str:
    """Returns the path of a file, or else a text. A text that looks like a missing file is refused.

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


def _text(text: str | None) -> str | None:
    return None if text is None else printable(text[:SHOWN_CHARACTERS])


def _ranked(answer: "Classified", json_: bool, *before: str) -> None:
    ranked = (f"{p:6.1%}  {printable(label)}" for label, p in list(answer.probabilities.items())[:SHOWN])
    print_result(json_, answer.model_dump(mode="json"), *before, *ranked)
    if not (json_ or answer.probabilities):
        tell(f"{answer.model} has not learned a class yet.")


def _one(output: Path | None, json_: bool) -> bool:
    """Whether one PNG is wanted, and not JSON with single ones.

    Raises:
        ConfigError: it would go to a terminal.
    """
    if output is None and not json_ and sys.stdout.isatty():
        raise ConfigError("A PNG is not for a terminal. Give -o FILE.png, or --json, or send it on: … > FILE.png.")
    return output is not None or not json_


def _shown(answer: "Pictures", output: Path | None, json_: bool) -> None:
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
    seed = f", seed {about['seed']}" if "seed" in about else ""
    line = f"Wrote {output}: {answer.model}, version {answer.version}{seed}."
    print_result(json_, {**about, "file": str(output)}, line)
