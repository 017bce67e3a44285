"""Which changes of a model's table a version can follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consumers.worker.fitting import config_changes, settled, shape_of, validated_options
from models.learner import Options, structural, structural_fields
from models.registry import BUILTIN
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, StateMismatch
from pipeline.store.manifest import Manifest
from pipeline.texts import TextInput


def settings(learner: str, **options: Any) -> ModelConfig:
    kind: dict[str, Any] = {"kind": BUILTIN[learner].input}
    kind |= {"max_chars": 16} if kind["kind"] == "text" else {"size": 16, "channels": 1}
    return ModelConfig.model_validate({"topics": ["t"], "learner": learner, "input": kind, "options": options})


def version(made: ModelConfig, without: set[str]) -> Manifest:
    """Of the time before these options were there."""
    options = BUILTIN[made.learner].options(**made.options).model_dump(mode="json", exclude=without)
    some: dict[str, Any] = {"model": "m", "version": 3, "options": options, "config": made.model_dump(mode="json")}
    return Manifest.model_construct(**some)


@pytest.mark.parametrize("learner", ["image-classifier", "image-gan", "image-vae", "text-classifier", "text-generator"])
def test_an_option_that_is_younger_than_a_version_has_its_default_there(learner: str) -> None:
    made = settings(learner)
    without = set(structural_fields(BUILTIN[learner].options))
    assert config_changes(version(made, without), made, BUILTIN[learner]) == {}


def test_a_younger_option_cannot_be_another_one_for_it_either() -> None:
    now = settings("text-classifier", average=0.9)
    with pytest.raises(StateMismatch, match=r"options\.average changed"):
        config_changes(version(settings("text-classifier"), {"average"}), now, BUILTIN["text-classifier"])


class Older(Options):
    """Of a learner of before."""

    width: int = structural(8)


class Newer(Options):
    """The same, later: another default, and an option that versions of before do not have."""

    width: int = structural(16)
    look: str = structural("new", before="old")


def test_where_the_file_is_silent_a_version_keeps_what_shaped_it() -> None:
    silent = settings("image-analytic")
    newer = replace(BUILTIN["image-analytic"], options=Newer)
    manifest = version(silent, set()).model_copy(update={"options": Older().model_dump()})
    shaped = shape_of(manifest, newer)
    assert shaped == {"width": 8, "look": "old"}
    assert validated_options("m", silent, newer, shaped) == Newer(width=8, look="old")
    assert validated_options("m", silent, newer) == Newer()
    assert config_changes(manifest, silent, newer) == {}
    with pytest.raises(StateMismatch, match=r"options\.look, options\.width changed"):
        config_changes(manifest, settings("image-analytic").model_copy(update={"options": Newer().model_dump()}), newer)


def test_where_the_file_is_silent_on_records_a_version_reads_them_as_it_did() -> None:
    made = settings("text-analytic")
    older, learner = version(made, set()), BUILTIN["text-analytic"]
    silent = made.model_copy(update={"input": TextInput(max_bytes=99)})
    assert silent.input.shape != (16,)
    assert settled(silent, older).input == TextInput(max_chars=16, max_bytes=99)
    assert config_changes(older, silent, learner) == {
        "input": [made.input.model_dump(), TextInput(max_chars=16, max_bytes=99).model_dump()]
    }
    with pytest.raises(StateMismatch, match=r"input\.max_chars changed"):
        config_changes(older, made.model_copy(update={"input": TextInput(max_chars=2000)}), learner)


def test_options_within_options_shape_a_version_too() -> None:
    made, auto = settings("image-auto", head={"width": 64}), BUILTIN["image-auto"]
    manifest = version(made, set())
    assert config_changes(manifest, settings("image-auto"), auto) == {"options": [{"head": {"width": 64}}, {}]}
    silent = validated_options("m", settings("image-auto"), auto, shape_of(manifest, auto))
    assert silent.model_dump()["head"]["width"] == 64
    for fixed, options in (("head.width", {"head": {"width": 65}}), ("network.width", {"network": {"width": 8}})):
        with pytest.raises(StateMismatch, match=rf"options\.{fixed} changed"):
            config_changes(manifest, settings("image-auto", **options), auto)
    free = settings("image-auto", head={"width": 64}, network={"learning_rate": 0.1})
    assert "options" in config_changes(manifest, free, auto)


def test_a_mistyped_option_within_options_gets_the_near_one() -> None:
    with pytest.raises(ConfigError, match=r"options\.network\.replay_slot .*replay_slots"):
        validated_options("m", settings("image-auto", network={"replay_slot": 3}), BUILTIN["image-auto"])
