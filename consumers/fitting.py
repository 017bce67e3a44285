"""Whether a model's table of the configuration fits its learner, and what has been learned already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from models.learner import Blueprint, Options, structural_fields
from pipeline.config import ModelConfig, unknown_key
from pipeline.errors import ConfigError, StateMismatch
from pipeline.manifest import Manifest

BOUNDS = {"input.max_bytes", "input.max_pixels"}  # of what is let in; all else of `input` is what has been learned


def validated_options(name: str, settings: ModelConfig, blueprint: Blueprint) -> Options:
    """The learner's own options.

    Raises:
        ConfigError: a line for each that does not fit.
    """
    if settings.input.kind != blueprint.input:
        raise ConfigError(
            f'models.{name}.input.kind = "{settings.input.kind}": {settings.learner} learns from {blueprint.input}s. '
            f'Set it to "{blueprint.input}", or choose another learner.'
        )
    try:
        return blueprint.options(**settings.options)
    except ValidationError as error:
        known = blueprint.options.model_fields
        lines = [
            f"models.{name}.options.{'.'.join(map(str, item['loc']))} = {item['input']!r}: {_fault(item, known)}."
            for item in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None


def _fault(item: ErrorDetails, known: Iterable[str]) -> str:
    if item["type"] != "extra_forbidden":
        return item["msg"]
    return f"{unknown_key(str(item['loc'][-1]), known)}; its learner's options are {', '.join(known)}"


def config_changes(manifest: Manifest, settings: ModelConfig, blueprint: Blueprint) -> dict[str, list[Any]]:
    """What the file says differently from the head: key → [before, now]. The file wins.

    Raises:
        StateMismatch: a change that the learned state cannot follow.
    """
    changes = differences(manifest.config, settings.model_dump(mode="json"))
    options_now = blueprint.options(**settings.options).model_dump(mode="json")
    shaping = structural_fields(blueprint.options)
    # What is younger than the version has its default there.
    defaults = {key: blueprint.options.model_fields[key].get_default(call_default_factory=True) for key in shaping}
    options_before = to_jsonable_python(defaults) | manifest.options
    fixed = {f"options.{key}" for key in shaping if options_before[key] != options_now[key]}
    if "learner" in changes:
        fixed.add("learner")
    if "hold_out" in changes and changes["hold_out"][0]["slots"] not in (0, settings.hold_out.slots):
        fixed.add("hold_out.slots")
    labels = (manifest.config.get("labels") or {}).get("topic")
    if labels is not None and (settings.labels is None or settings.labels.topic != labels):  # its records may wait
        fixed.add("labels.topic")
    if "input" in changes:
        fixed |= {f"input.{key}" for key in differences(*changes["input"])} - BOUNDS
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
