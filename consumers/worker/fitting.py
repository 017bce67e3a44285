"""Whether a model's table of the configuration fits its learner, and what has been learned already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from models.learner import Blueprint, Options, structural_fields
from pipeline.config import ModelConfig, unknown_key
from pipeline.errors import ConfigError, StateMismatch
from pipeline.store import Manifest

UNSHAPED = {"max_bytes", "max_pixels"}  # bounds of what is let in; all else of `input` is what has been learned


def validated_options(
    name: str, settings: ModelConfig, blueprint: Blueprint, shaped: Mapping[str, Any] | None = None
) -> Options:
    """Validates the learner's own options. Where the file sets none, those apply that a version was `shaped` by.

    Raises:
        ConfigError: a line for each that does not fit.
    """
    if settings.input.kind != blueprint.input:
        raise ConfigError(
            f'models.{name}.input.kind = "{settings.input.kind}": {settings.learner} learns from {blueprint.input}s. '
            f'Set it to "{blueprint.input}", or choose another learner.'
        )
    try:
        options: Options = blueprint.options(**_over(shaped or {}, settings.options))
        return options
    except ValidationError as error:
        lines = [
            f"models.{name}.options.{'.'.join(map(str, item['loc']))} = {item['input']!r}: "
            f"{_fault(item, _beside(blueprint.options, item['loc']))}."
            for item in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None


def _beside(options: type[Options], loc: Sequence[int | str]) -> Iterable[str]:
    """The names of the options there are where one stands."""
    for part in loc[:-1]:
        options = options.within().get(str(part), options)
    return options.model_fields


def _fault(item: ErrorDetails, names: Iterable[str]) -> str:
    if item["type"] != "extra_forbidden":
        return item["msg"]
    return f"{unknown_key(str(item['loc'][-1]), names)}; its learner's options are {', '.join(names)}"


def shape_of(manifest: Manifest, blueprint: Blueprint) -> dict[str, Any]:
    """The structural options of a version, whatever their defaults are by now."""
    options = blueprint.options.of_version(manifest.options).model_dump(mode="json")
    shaped: dict[str, Any] = {}
    for key in structural_fields(blueprint.options):
        *outer, name = key.split(".")
        reduce(lambda inner, part: inner.setdefault(part, {}), outer, shaped)[name] = _at(options, key)
    return shaped


def _at(options: Mapping[str, Any], key: str) -> Any:
    """The value under a key with dots."""
    return reduce(lambda inner, name: inner[name], key.split("."), options)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """What is above, and where that is silent, what is below."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _over(below[key], above[key])
    return merged


def settled(settings: ModelConfig, manifest: Manifest) -> ModelConfig:
    """The settings; where they are silent on how records are read, a version's records are read as they were."""
    given, before = settings.input, manifest.config["input"]
    if given.kind != before["kind"]:
        return settings
    silent = before.keys() & set(type(given).model_fields) - given.model_fields_set - UNSHAPED
    read = {**{key: before[key] for key in silent}, **given.model_dump(exclude_unset=True)}
    return settings.model_copy(update={"input": type(given).model_validate(read)})


def config_changes(manifest: Manifest, settings: ModelConfig, blueprint: Blueprint) -> dict[str, list[Any]]:
    """Where the file differs from the head: key → [before, now]. The file wins.

    Raises:
        StateMismatch: a change that the learned state cannot follow.
    """
    settings = settled(settings, manifest)
    changes = differences(manifest.config, settings.model_dump(mode="json"))
    if "learner" in changes:
        raise mismatch(manifest, "learner changed.")
    shaped = shape_of(manifest, blueprint)
    options = validated_options(manifest.model, settings, blueprint, shaped).model_dump(mode="json")
    fixed = {f"options.{key}" for key in structural_fields(blueprint.options) if _at(shaped, key) != _at(options, key)}
    if "hold_out" in changes and changes["hold_out"][0]["slots"] not in (0, settings.hold_out.slots):
        fixed.add("hold_out.slots")
    labels = (manifest.config.get("labels") or {}).get("topic")
    if labels is not None and (settings.labels is None or settings.labels.topic != labels):  # its records may wait
        fixed.add("labels.topic")
    if "input" in changes:
        fixed |= {f"input.{key}" for key in differences(*changes["input"]).keys() - UNSHAPED}
    if fixed:
        raise mismatch(manifest, f"{', '.join(sorted(fixed))} changed.")
    return changes


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """key → [before, now], None where there is none."""
    keys = sorted(before.keys() | now.keys())
    return {key: [before.get(key), now.get(key)] for key in keys if before.get(key) != now.get(key)}


def mismatch(manifest: Manifest, why: str) -> StateMismatch:
    """The error for a version that the configuration does not fit, with the choices."""
    return StateMismatch(
        f"models.{manifest.model}: {why} Version {manifest.version} cannot follow. Put the old value back, "
        f"start anew with `headrace reset {manifest.model}`, or give the model another name."
    )
