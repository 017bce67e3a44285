"""Text classifiers on CLINC150 in one shuffled pass, and what the seam costs a recurrent network."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.learners.data import Set, batches, learn
from benchmarks.report import Figure, Findings
from models import river_classifier, text_classifier, text_gru
from models.capabilities import Classifier
from models.learner import Blueprint, Learner, Rows, update_generator

LENGTH, BATCH, SEED = 144, 64, 0  # characters (the longest text has 136), records, of stream and weights
CPU = torch.device("cpu")
#: what each is, its blueprint and its options, which were chosen on training records alone
RUNS: Mapping[str, tuple[Blueprint, Mapping[str, Any]]] = {
    "text-classifier": (text_classifier.BLUEPRINT, {}),
    "text-gru": (text_gru.BLUEPRINT, {}),
    "text-gru, 64 replayed": (text_gru.BLUEPRINT, {"replay_draws": 64}),
    "river naive Bayes": (river_classifier.BLUEPRINT, {"parameters": {"alpha": 0.02}}),
    "river logistic regression": (
        river_classifier.BLUEPRINT,
        {
            "classifier": "river.linear_model.LogisticRegression",
            "features": "tfidf",
            "parameters": {"optimizer": {"class": "river.optim.SGD", "lr": 5.0}},
        },
    ),
}
PAIRS, UPDATES = 7, 40  # of learner and plain loop; in each


def intents(data: Path, part: str = "train") -> Set:
    """CLINC150 (Larson et al. 2019): English requests with one of 150 intents; `part` is train, val or test."""
    pairs = json.loads((data / "clinc150" / "data_full.json").read_text("utf-8"))[part]
    x = torch.zeros(len(pairs), LENGTH, dtype=torch.int32)
    for row, (text, _) in enumerate(pairs):
        x[row, : len(text)] = torch.tensor([ord(c) for c in text])
    return Set(x, [label for _, label in pairs])


def made(blueprint: Blueprint, options: Mapping[str, Any]) -> Learner:
    """An untrained learner."""
    return blueprint.learner(blueprint.options.model_validate(options), (LENGTH,), SEED, CPU)


def accuracy(learner: Learner, records: Set) -> float:
    """Of the live model on records that it has not learned."""
    model, hits = learner.model, 0
    assert isinstance(model, Classifier)
    for batch in batches(records, 500):
        found = [model.classes[k] for k in model.classify(batch.x).argmax(1).tolist()]
        hits += sum(a == b for a, b in zip(found, batch.labels, strict=True))
    return hits / len(records)


def one_pass(blueprint: Blueprint, options: Mapping[str, Any], train: Set, test: Set) -> dict[str, float]:
    """Learns the stream once: final and prequential accuracy, records/s and per second of CPU, megabytes of state."""
    learner, hits, started, started_cpu = made(blueprint, options), 0, time.perf_counter(), time.process_time()
    for report, batch in zip(learn(learner, train, batch_size=BATCH), batches(train, BATCH), strict=True):
        assert report.predicted is not None
        hits += sum(a == b for a, b in zip(report.predicted, batch.labels, strict=True))
    taken_s, taken_cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    state = learner.capture()
    values = (*state.serving.values(), *state.training.values())
    tensors = [value.tensor if isinstance(value, Rows) else value for value in values]
    return {
        "final": accuracy(learner, test),
        "prequential": hits / len(train),
        "records_per_s": len(train) / taken_s,
        "records_per_cpu_s": len(train) / taken_cpu_s,
        "state_mb": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
    }


def pairs(train: Set) -> list[float]:
    """The learner's speed over that of a plain torch loop, in alternated pairs; neither replays.

    The loop has the same network and the same kernel for AdamW. It predicts each batch, and then learns it.
    """
    options = {"replay_slots": 0}
    learner = made(text_gru.BLUEPRINT, options)
    warm = list(learn(learner, train.take(range(3000)), batch_size=BATCH))  # every class is known from here on
    names = list(learner.model.classes)
    network = text_gru.TextGru(text_gru.TextGruOptions.model_validate(options), names)
    network.load_state_dict(learner.model.state_dict())  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=1e-4, fused=True)
    stream = list(batches(train.take(range(3000, 3000 + UPDATES * BATCH)), BATCH))
    numbers = {name: number for number, name in enumerate(names)}
    targets = [torch.tensor([numbers[str(label)] for label in batch.labels]) for batch in stream]

    def plain() -> None:
        for batch, y in zip(stream, targets, strict=True):
            with torch.no_grad():
                network(batch.x).argmax(1).tolist()
            optimizer.zero_grad()
            loss = F.cross_entropy(network(batch.x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()

    def ours() -> None:
        for update, batch in enumerate(stream, start=len(warm)):
            learner.learn(batch, update_generator(SEED, update))

    def seconds(run: Callable[[], None]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    plain()
    return [1 / (seconds(ours) / seconds(plain)) for _ in range(PAIRS)]


def measure(data: Path, sheets: Path, say: Callable[[str], None]) -> Findings:
    """One pass for each, and the pairs."""
    train, test = intents(data).shuffled(SEED), intents(data, "test")
    figures, raw = [], {}
    for name, (blueprint, options) in RUNS.items():
        found = raw[name] = one_pass(blueprint, options, train, test)
        told = (
            f"{found['final']:.1%} held out, {found['prequential']:.1%} prequential, {found['records_per_s']:,.0f} "
            f"records/s, {found['state_mb']:.1f} MB"
        )
        say(f"{name}: {told}")
        figures.append(Figure(f"CLINC150, one shuffled pass: {name}", told))
    ratios = pairs(train)
    ratio = statistics.median(ratios)
    told = f"{ratio:.2f} (median of {PAIRS} alternated pairs, {min(ratios):.2f}–{max(ratios):.2f})"
    figures.append(Figure("text-gru fed from RAM / the same network in a plain loop", told, "≥ 0.95", ratio >= 0.95))
    notes = [
        "150 intents, 15,000 texts of a few words, 4,500 held out; chance is 0.7 %.",
        "A network over bytes must learn to spell first: one pass over so few texts is too little for it.",
        "River is Python throughout and its time grows with the number of classes.",
    ]
    return Findings(figures, notes, {"runs": raw, "ratios": ratios})
