"""How sure the answers of every classifier are, with default options: on its test set, and on what is like nothing
that it learned.

The calibration error of novel inputs is that of the test set and as many novel inputs, of which no answer is right.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.learners.__main__ import say
from benchmarks.learners.data import Set, accuracy, answered, batches, calibration_error, clothes, digits
from benchmarks.learners.texts import LENGTH, intents
from benchmarks.learning.runs import CPU
from benchmarks.learning.streams import pairs, sorted_by_class
from benchmarks.report import Figure, Findings
from consumers.demo import data as demo_data
from consumers.worker.sources import read_folder
from models.capabilities import Recogniser
from models.learner import Learner, Rows, Source, Start, update_generator
from models.registry import BUILTIN
from tests.models.encoders import save_encoder

BATCH, TESTED, NOVEL = 64, 2000, 300  # records
WANTED = 0.05  # of the calibration error
UNKNOWN = {"unknown": 0.05}  # of the networks and river, where it is 0 by default; it changes nothing that is learned
LANGUAGES = ("de", "fr", "ru")


@dataclass(frozen=True, slots=True)
class Case:
    """What one classifier learns, and how much of it."""

    learner: str
    what: str
    records: Callable[..., Set]
    count: int
    options: Mapping[str, Any]
    classes: int | None = None  # the first so many; None: all
    orders: Sequence[str] = ("shuffled", "singly")


CASES: Mapping[str, Case] = {
    f"sure-{case.learner}": case
    for case in (
        Case("image-auto", "Fashion-MNIST", clothes, 3000, {}),
        Case("image-analytic", "Fashion-MNIST", clothes, 4000, {}),
        Case("image-classifier", "Fashion-MNIST", clothes, 10_000, UNKNOWN),
        Case("image-resnet", "Fashion-MNIST", clothes, 4000, UNKNOWN),
        Case("image-transfer", "Fashion-MNIST over MNIST", clothes, 10_000, {**UNKNOWN, "source": "digits"}),
        Case("image-recogniser", "Fashion-MNIST", clothes, 300, {}),
        Case("text-auto", "CLINC150", intents, 6000, {}),
        Case("text-analytic", "CLINC150", intents, 15_000, {}),
        Case("text-classifier", "CLINC150", intents, 15_000, UNKNOWN),
        Case("text-gru", "CLINC150", intents, 15_000, UNKNOWN, orders=("shuffled",)),
        Case("text-encoder", "CLINC150, 15 intents, over a random BERT of two layers", intents, 1500, UNKNOWN, 15),
        Case("river-classifier", "CLINC150", intents, 6000, UNKNOWN),
    )
}  # fmt: skip


def measure(name: str, data: Path, tuning: bool) -> Findings:
    """One classifier, in its orders: one pass each."""
    case = CASES[name]
    train, test = of_case(case, case.records(data).shuffled(0)), of_case(case, case.records(data, "test").shuffled(0))
    held = range(max(0, len(train) - TESTED), len(train)) if tuning else None
    test = train.take(held) if held else test.take(range(min(TESTED, len(test))))
    train = train.take(range(min(case.count, held.start if held else len(train))))
    figures, raw = [], {}
    for order in case.orders:
        groups = pairs(train.labels, 1 if order == "singly" else len(set(train.labels)))
        found = judged(learned(case, data, sorted_by_class(train, groups, 0).records), test, novel(data, test))
        say(f"{name}, {order}: {found}")
        what = f"{case.what}, {len(train):,}, {order}, batches of {BATCH}: `{case.learner}`"
        figures.append(figure(what, found))
        raw[order] = found
    return Findings(figures, [], raw)


def of_case(case: Case, records: Set) -> Set:
    classes = sorted(set(records.labels))[: case.classes]
    return records.take([row for row, label in enumerate(records.labels) if label in classes])


def learned(case: Case, data: Path, records: Set) -> Learner:
    """The learner after one pass over the records. A version was made of it, so that it answers as one does."""
    blueprint, shape = BUILTIN[case.learner], tuple(records.x.shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        options, start = dict(case.options), started(case, data, Path(folder))
        if case.learner == "text-encoder":
            options["folder"] = folder
        learner = blueprint.build(blueprint.options.model_validate(options), shape, 0, CPU, start)
    for update, batch in enumerate(batches(records, BATCH)):
        learner.learn(batch, update_generator(0, update))
    learner.capture()
    return learner


def started(case: Case, data: Path, folder: Path) -> Start:
    """What a learner over something else starts from."""
    if case.learner == "text-encoder":
        save_encoder(folder)
        return {"folder": read_folder(folder)}
    if "source" not in case.options:
        return {}
    inner = Case("image-classifier", "MNIST", digits, 10_000, {})
    state = learned(inner, data, digits(data).take(range(inner.count))).capture()
    options = BUILTIN[inner.learner].options().model_dump()
    serving, training = plain(state.serving), plain(state.training)
    return {"source": Source("", serving, training, {}, inner.learner, options, (1, 28, 28), state.meta)}


def plain(tensors: Mapping[str, Tensor | Rows]) -> dict[str, Tensor]:
    return {name: value.tensor if isinstance(value, Rows) else value for name, value in tensors.items()}


def novel(data: Path, test: Set) -> dict[str, Tensor]:
    """Inputs (`NOVEL`, ...) of the test set's shape that are of none of its classes, by kind."""
    rng = torch.Generator().manual_seed(0)
    if test.x.dtype == torch.uint8:
        shape = (NOVEL, *test.x.shape[1:])
        blank = (torch.arange(NOVEL) % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(shape)
        noise = torch.randint(256, shape, dtype=torch.uint8, generator=rng)
        return {"digits": digits(data, "test").x[:NOVEL], "noise": noise, "blank": blank}
    split = demo_data.texts()
    languages = {
        language: points([each.value.decode() for each in split.published if each.label == language][:NOVEL])
        for language in LANGUAGES
    }
    letters = torch.randint(ord("a"), ord("z") + 1, (NOVEL, 40), generator=rng)
    letters[torch.rand(letters.shape, generator=rng) < 1 / 6] = ord(" ")
    drawn = ["".join(map(chr, row)) for row in letters.tolist()]
    return {**languages, "letters": points(drawn), "blank": points([" "] * NOVEL)}


def points(texts: Sequence[str]) -> Tensor:
    """(B, LENGTH) int32"""
    return torch.tensor([[*map(ord, text[:LENGTH]), *[0] * (LENGTH - len(text))] for text in texts], dtype=torch.int32)


def judged(learner: Learner, test: Set, others: Mapping[str, Tensor]) -> dict[str, Any]:
    """What it knows, how sure it is of that, and what it makes of the others."""
    model: Any = learner.model
    bare = getattr(model, "inner", model)  # without `unknown`
    strange = Set(torch.cat([*others.values()]), [""] * sum(map(len, others.values())))
    both = Set(torch.cat([test.x, strange.x]), [*test.labels, *strange.labels])
    return {
        "right": accuracy(bare, test),
        "calibration_error": calibration_error(bare, test),
        "with_unknown": calibration_error(model, test),
        "with_novel": calibration_error(model, both),
        "without_unknown_with_novel": calibration_error(bare, both),
        "known_unknown": unknown(model, test.x),
        "novel_unknown": {kind: unknown(model, x) for kind, x in others.items()},
        "sure_of_novel": answered(model, strange)[0].mean().item(),
        "sure_of_novel_without": answered(bare, strange)[0].mean().item(),
    }


def unknown(model: Recogniser, x: Tensor) -> float:
    """The share that is called unknown."""
    return torch.cat([model.recognise(some)[1].cpu() for some in torch.split(x, BATCH)]).float().mean().item()


def figure(what: str, found: Mapping[str, Any]) -> Figure:
    novel = ", ".join(f"{kind} {share:.1%}" for kind, share in found["novel_unknown"].items())
    told = (
        f"calibration error **{found['calibration_error']:.1%}** ({found['right']:.1%} right); with `unknown` "
        f"{found['with_unknown']:.1%}, with novel inputs among them {found['with_novel']:.1%} (without `unknown` "
        f"{found['without_unknown_with_novel']:.1%}); called unknown: {found['known_unknown']:.1%} of the test set, "
        f"{novel}"
    )
    return Figure(what, told, f"≤ {WANTED:.1%}", found["calibration_error"] <= WANTED)
