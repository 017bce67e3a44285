"""The image classifiers on Fashion-MNIST, one pass without replay, and their speed beside a plain loop of torch."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.learners.data import Set, accuracy, batches, clothes, learn
from benchmarks.pairs import alternated
from benchmarks.report import Figure, Findings
from models.classifier import ClassifierLearner, ClassifierNetwork
from models.images import classifier as image_classifier, resnet as image_resnet
from models.learner import Blueprint, update_generator

CPU = torch.device("cpu")
BATCH = 32
SEEDS = 3
WANTED_ACCURACY = 0.88
WANTED_SPEED = 0.95
PAIRS = 7
#: tuned on the last 5,000 records of the training set
OPTIONS: Mapping[str, Any] = {"learning_rate": 2e-3, "average": 0.998, "replay_slots": 0}
BLUEPRINTS: Mapping[str, Blueprint] = {"CNN": image_classifier.BLUEPRINT, "slim ResNet-18": image_resnet.BLUEPRINT}


def measure(data: Path, sheets: Path, say: Callable[[str], None]) -> Findings:
    """Accuracy on the test set after one pass, for the CNN with three seeds, and records/s."""
    train, test = clothes(data), clothes(data, "test")
    figures: list[Figure] = []
    raw: dict[str, Any] = {}
    for name, blueprint in BLUEPRINTS.items():
        runs = []
        for seed in range(SEEDS if name == "CNN" else 1):
            runs.append(run(blueprint, train.shuffled(seed), test, seed))
            say(f"{name}, seed {seed}: {runs[-1]}")
        raw[name] = runs
        figures.append(_accuracy(name, runs))
    for name, options, records in (
        ("CNN", {"average": 0.0}, 6400),
        ("CNN, averaged", {}, 6400),
        ("slim ResNet-18", {"average": 0.0}, 640),
    ):
        blueprint = BLUEPRINTS[name.split(",")[0]]
        shares = speeds(blueprint, {**OPTIONS, **options}, train.take(range(records)))
        share = statistics.median(ours / theirs for ours, theirs in shares)
        rates = [statistics.median(rates) for rates in zip(*shares, strict=True)]
        say(f"{name}: {rates[0]:.0f} records/s, plain torch {rates[1]:.0f}, {share:.3f} of it")
        raw[f"{name}, records/s"] = shares
        what = f"{name}: records/s of the learner fed from RAM, of a plain torch loop that predicts first too"
        found = f"{rates[0]:.0f}, {rates[1]:.0f}: {share:.2f} of it (median of {PAIRS} alternated pairs)"
        figures.append(Figure(what, found, f"≥ {WANTED_SPEED}", share >= WANTED_SPEED))
    notes = [
        f"Fashion-MNIST, shuffled, every record in one update, batches of {BATCH}, no replay, no augmentation.",
        "`served` is the average of the weights (`average = 0.998`), `learning` the weights that it follows.",
        "Learning rate, batch size and average were chosen on the last 5,000 records of the training set.",
    ]
    return Findings(figures, notes, raw)


def run(blueprint: Blueprint, train: Set, test: Set, seed: int) -> dict[str, float]:
    """One pass: accuracies on the test set of the served weights and of those that learn, and records/s."""
    options = blueprint.options.model_validate(OPTIONS)
    learner = blueprint.learner(options, tuple(train.x.shape[1:]), seed, CPU)
    started_s = time.perf_counter()
    for _ in learn(learner, train, batch_size=BATCH, seed=seed):
        pass
    rate = len(train) / (time.perf_counter() - started_s)
    state = learner.capture()
    weights = {name: value for name, value in state.training.items() if name.startswith("learning/")}
    model = blueprint.model(options, tuple(train.x.shape[1:]), state.meta)
    assert isinstance(model, ClassifierNetwork)
    assert isinstance(learner, ClassifierLearner)
    model.load_state_dict({name.removeprefix("learning/"): value for name, value in weights.items()})
    return {"served": accuracy(learner.model, test), "learning": accuracy(model, test), "records_per_s": rate}


def speeds(blueprint: Blueprint, options: Mapping[str, Any], records: Set) -> list[tuple[float, float]]:
    """Records/s of CPU time of the learner and of a plain loop over the same records, in alternated pairs."""
    made = blueprint.options.model_validate(options)
    learner = blueprint.learner(made, tuple(records.x.shape[1:]), 0, CPU)
    given = list(batches(records, BATCH))
    network = blueprint.model(made, tuple(records.x.shape[1:]), {"classes": [str(k) for k in range(10)]})
    assert isinstance(network, ClassifierNetwork)

    def ours() -> None:
        for update, batch in enumerate(given):
            learner.learn(batch, update_generator(0, update))

    seconds = alternated(ours, partial(plain, network, records, options), PAIRS)
    return [(len(records) / ours_s, len(records) / theirs_s) for ours_s, theirs_s in seconds]


def plain(network: ClassifierNetwork, records: Set, options: Mapping[str, Any]) -> None:
    """A loop without headrace: it predicts, learns, and averages where that is asked."""
    y = torch.tensor([int(label) for label in records.labels])
    optimizer = torch.optim.AdamW(network.parameters(), lr=options["learning_rate"], weight_decay=1e-4, fused=True)
    average = copy.deepcopy(network).requires_grad_(False)
    hits, loss_sum = 0, 0.0
    for start in range(0, len(records), BATCH):
        inputs, labels = records.x[start : start + BATCH], y[start : start + BATCH]
        logits = network(inputs)
        loss = F.cross_entropy(logits, labels)
        answers = logits.detach()
        if options["average"]:
            with torch.no_grad():
                answers = average(inputs)
        hits += int((answers.argmax(1) == labels).sum())
        loss_sum += loss.item()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if options["average"]:
            weights = [parameter.detach() for parameter in network.parameters()]
            torch._foreach_lerp_(list(average.parameters()), weights, 1 - options["average"])


def _accuracy(name: str, runs: list[dict[str, float]]) -> Figure:
    served, learning = ([100 * run[key] for run in runs] for key in ("served", "learning"))
    rate = statistics.median(run["records_per_s"] for run in runs)
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
    found = f"{_spread(served)} % served, {_spread(learning)} % learning ({seeds}); {rate:.0f} records/s"
    what = f"{name}, Fashion-MNIST, one pass, no replay: accuracy on the test set"
    if name != "CNN":
        return Figure(what, found)
    return Figure(what, found, f"≥ {WANTED_ACCURACY:.0%}", statistics.mean(served) >= 100 * WANTED_ACCURACY)


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
