"""Commands about versions: pull, versions, alias, delete, reset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consumers.cli.command import (
    DEFAULT_CONFIG,
    After,
    ConfigPath,
    Json,
    ModelName,
    Yes,
    ask,
    existing_store,
    load_config,
    open_store,
    print_result,
    stranger,
    tell,
)
from pipeline.errors import ConfigError
from pipeline.records import Place
from pipeline.words import counted

app = typer.Typer()


@app.command()
def pull(
    model: ModelName,
    ref: Annotated[str, typer.Argument(help="latest, an alias, a number, or the beginning of a digest.")] = "latest",
    to: Annotated[Path | None, typer.Option(help="The file to write; default MODEL-vN.safetensors.")] = None,
    after: After = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Write a version's weights as one safetensors file, and its manifest as JSON beside it.

    Example: headrace pull pictures stable
    """
    from safetensors.torch import save

    from consumers.bridge import tensors
    from consumers.sampler.weights import essentials

    if to is not None and to.suffix == ".json":
        raise ConfigError(f"--to {to}: the manifest gets that name. Name the weights {to.with_suffix('.safetensors')}.")
    store = existing_store(load_config(config), model)
    store.wait_for([Place.parsed(position) for position in after or ()])
    manifest = store.manifest(ref)
    path = to or Path(f"{model}-v{manifest.version}.safetensors")
    path.write_bytes(save(tensors(store.arrays(manifest, "serving")), essentials(manifest)))
    beside = path.with_suffix(".json")
    beside.write_bytes(manifest.raw)
    written = {
        "model": model,
        "version": manifest.version,
        "digest": manifest.digest,
        "weights": str(path),
        "manifest": str(beside),
        "metrics": manifest.metrics,
    }
    print_result(json_, written, f"Wrote {path} and {beside}.")


@app.command()
def versions(model: ModelName, config: ConfigPath = DEFAULT_CONFIG, json_: Json = False) -> None:
    """List a model's versions, newest first.

    Example: headrace versions pictures --json
    """
    from consumers.cli.watch import kept_versions, version_line

    settings = load_config(config)
    rows = kept_versions(open_store(settings, model))
    print_result(json_, rows, *map(version_line, rows))
    if not (json_ or rows):
        tell(f"{stranger(settings, model)}{model} has no version yet.")


@app.command()
def alias(
    model: ModelName,
    name: Annotated[str, typer.Argument(help="The alias, such as stable.")],
    ref: Annotated[str, typer.Argument(help="The version it names from now on.")] = "latest",
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias instead.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
    json_: Json = False,
) -> None:
    """Name a version; what has a name is never removed.

    Example: headrace alias pictures stable 120
    """
    store = existing_store(load_config(config), model)
    if delete:
        store.delete_alias(name)
    named = None if delete else store.set_alias(name, ref)
    about = {"model": model, "alias": name, "version": named and named.version, "digest": named and named.digest}
    print_result(json_, about, f"{model}: {name} is {f'version {named.version}' if named else 'removed'}.")


@app.command()
def delete(model: ModelName, yes: Yes = False, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Remove a model with all its versions and its lineage.

    Example: headrace delete pictures
    """
    store = existing_store(load_config(config), model)
    ask(f"Delete {model} with {counted(len(store.versions()), 'version')}, aliases and lineage?", yes)
    store.delete()
    typer.echo(f"{model} is deleted.")


@app.command()
def reset(model: ModelName, yes: Yes = False, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Start a model anew: its versions go, and the next worker begins at `start`. Numbers are not used again.

    Example: headrace reset pictures
    """
    store = existing_store(load_config(config), model)
    ask(f"Remove {counted(len(store.versions()), 'version')} of {model} and start anew?", yes)
    store.reset()
    typer.echo(f"{model} starts anew.")
