"""Each line of docs/learners/diagnoses.md: what provokes it, and that what is well is not told."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from models.acquainted import AcquaintedModel
from models.auto import ImageAutoOptions
from models.diagnosis import DIAGNOSES, SOME, LastLabels, Layer, Measured, diagnose
from models.images.classifier import ImageClassifierOptions
from models.learner import Batch, Learner, Source, update_generator
from models.registry import BUILTIN
from models.texts.encoder import TextEncoderLearner, TextEncoderOptions
from tests.models.contract import texts
from tests.models.encoders import save_encoder

TABLE = Path(__file__).parents[2] / "docs" / "learners" / "diagnoses.md"
WELL = Measured(
    records=2000,
    classes=4,
    kind="image",
    last=1000,
    changes=760,
    random=750.0,
    largest=0.25,
    accuracy=0.9,
    replay_draws=16,
    counts={"learned": 2000, "skipped/unlabelled": 900, "joined": 5000},
    layers=(Layer("dense", 128, 100),),
)
ILL = {
    "unlearned": replace(WELL, counts={"learned": 900, "skipped/unlabelled": 1100}),
    "one-class": replace(WELL, classes=1, changes=0, random=0.0, largest=1.0, accuracy=1.0),
    "many-classes": replace(WELL, classes=1999, largest=0.001),
    "in-order": replace(WELL, changes=3),
    "silent-units": replace(WELL, layers=(Layer("dense", 128, 100), Layer("other", 128, 115))),
    "cut-texts": replace(WELL, kind="text", cut=0.5, most=256),
    "at-chance": replace(WELL, accuracy=0.27),
    "few-records": replace(WELL, records=300, classes=5),
}


def test_what_is_well_is_not_reported() -> None:
    assert diagnose(WELL) == {}
    for ordered in (replace(WELL, changes=3, replay_draws=None), replace(WELL, last=SOME - 1, changes=3, random=47.0)):
        assert diagnose(ordered) == {}  # its learner does not mind; or that may be chance
    lopsided = replace(WELL, largest=0.97, accuracy=0.97, changes=58, random=58.2)
    assert diagnose(lopsided) == {}
    assert diagnose(replace(WELL, records=0, classes=0, last=0, changes=0, random=0.0, largest=0.0, counts={})) == {}


@pytest.mark.parametrize("name", DIAGNOSES)
def test_each_is_said_in_a_sentence_with_what_to_do(name: str) -> None:
    found = diagnose(ILL[name])
    assert list(found) == [name]
    assert re.fullmatch(r"[^.]+(\.[^ .]+)*[^.]*\. .+\.", found[name]), found[name]
    assert f"| `{name}` |" in TABLE.read_text("utf-8")


def test_the_words_of_some() -> None:
    assert diagnose(ILL["in-order"])["in-order"].startswith("One class at a time: 3 of the last 1,000 records")
    assert "Publish shuffled" in diagnose(ILL["in-order"])["in-order"]
    assert "raise options.replay_draws = 16" in diagnose(ILL["in-order"])["in-order"]
    assert diagnose(ILL["few-records"])["few-records"].startswith("300 records of 5 classes, 60 of each: expect about ")
    assert diagnose(ILL["cut-texts"])["cut-texts"].startswith("50% of the texts are longer than input.max_chars = 256")
    silent = replace(WELL, layers=(Layer("dense", 128, 128),))
    assert diagnose(silent)["silent-units"].startswith("all units of dense are silent")


def test_the_table_names_no_other() -> None:
    assert set(re.findall(r"^\| `([a-z-]+)` \|", TABLE.read_text("utf-8"), re.MULTILINE)) == set(DIAGNOSES)


def recent(labels: str) -> LastLabels:
    found = LastLabels()
    for start in range(0, len(labels), 10):
        part = labels[start : start + 10]
        found.add(torch.zeros(len(part), 1), list(part))
    return found


def test_what_is_looked_back_at() -> None:
    sorted_by_class = recent("a" * 500 + "b" * 500 + "c" * 500)
    assert (len(sorted_by_class), sorted_by_class.changes, sorted_by_class.largest) == (1000, 1, 0.5)
    assert sorted_by_class.random == pytest.approx(999 * 2 / 3)
    mixed = recent("abc" * 100)
    assert mixed.changes == 299
    assert mixed.random == pytest.approx(299 * 2 / 3)
    assert recent("").random == 0
    nobody = LastLabels()
    nobody.add(torch.zeros(2, 1), [None, None])
    assert (len(nobody), nobody.largest) == (0, 0.0)


def taught(name: str, options: object) -> tuple[Learner, LastLabels]:
    learner = BUILTIN[name].learner(options, (1, 8, 8), 0, torch.device("cpu"))
    seen = LastLabels()
    for update in range(SOME // 16):
        x = torch.randint(0, 256, (16, 1, 8, 8), generator=torch.Generator().manual_seed(update), dtype=torch.uint8)
        batch = Batch(x, ["a", "b"] * 8, torch.zeros(16, 3, dtype=torch.int64), torch.zeros(16, 16, dtype=torch.uint8))
        learner.learn(batch, update_generator(0, update))
        seen.add(batch.x, batch.labels)
    return learner, seen


@pytest.mark.parametrize(
    ("name", "options", "within"),
    [
        ("image-classifier", ImageClassifierOptions(slope=0.0), ""),
        ("image-auto", ImageAutoOptions(network=ImageClassifierOptions(slope=0.0)), "network."),
    ],
)
def test_silent_units_are_found_and_nothing_is_changed(name: str, options: object, within: str) -> None:
    learner, seen = taught(name, options)
    model = cast(nn.Module, learner.model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    [layer] = seen.layers(model)
    assert (layer.units, diagnose(replace(WELL, layers=[layer]))) == (128, {})
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    model.state_dict()[f"{within}dense.bias"].fill_(-1e6)
    [layer] = seen.layers(model)
    assert layer.silent == 128
    assert "silent-units" in diagnose(replace(WELL, layers=[layer]))


def test_units_of_a_network_that_knows_the_unknown_are_seen() -> None:
    learner, seen = taught("image-classifier", ImageClassifierOptions(slope=0.0, unknown=0.05))
    assert isinstance(learner.model, AcquaintedModel)
    cast(nn.Module, learner.model.inner).state_dict()["dense.bias"].fill_(-1e6)
    [layer] = seen.layers(learner.model)
    assert (layer.units, layer.silent) == (128, 128)


def test_units_above_a_sentence_encoder_are_seen(tmp_path: Path) -> None:
    """Its head reads embeddings, and what is looked back at are texts."""
    save_encoder(tmp_path)
    options = TextEncoderOptions(folder=str(tmp_path), top_layers=[8], replay_draws=4)
    x, labels = texts()
    files = {file.name: file.read_bytes() for file in tmp_path.glob("*.json")}
    source = Source("0", load_file(tmp_path / "model.safetensors"), files=files)
    learner = TextEncoderLearner(options, tuple(x.shape[1:]), 0, torch.device("cpu"), {"folder": source})
    seen = LastLabels()
    for update in range(SOME // 16):
        rows = slice(16 * update, 16 * update + 16)
        nothing = torch.zeros(16, 3, dtype=torch.int64), torch.zeros(16, 16, dtype=torch.uint8)
        learner.learn(Batch(x[rows], labels[rows], *nothing), update_generator(0, update))
        seen.add(x[rows], labels[rows])
    assert learner.model.top is not None
    learner.model.top.state_dict()["layers.0.bias"].fill_(-1e6)
    [layer] = seen.layers(learner.model)
    assert (layer.name, layer.units, layer.silent) == ("top's last layer", 8, 8)


def test_too_few_records_tell_nothing_of_units() -> None:
    learner, seen = taught("image-classifier", ImageClassifierOptions())
    few = LastLabels()
    few.add(torch.zeros(SOME - 1, 1, 8, 8, dtype=torch.uint8), ["a"] * (SOME - 1))
    assert few.layers(learner.model) == []
    assert seen.layers(object()) == []
