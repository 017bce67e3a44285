"""Text classifiers on CLINC150 in one shuffled pass, and what the seam costs a recurrent network."""

from __future__ import annotations

import copy
import gzip
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from river import feature_extraction, naive_bayes
from torch import nn
from torch.nn import functional as F

from benchmarks.learners.data import Set, accuracy, batches, learn
from benchmarks.pairs import alternated
from benchmarks.report import Figure, Findings
from consumers.worker.sources import read_folder
from models.classifier import ClassifierNetwork
from models.learner import Batch, Blueprint, Learner, Rows, update_generator
from models.texts import (
    classifier as text_classifier,
    encoder as text_encoder,
    gru as text_gru,
    river as river_classifier,
)
from models.texts.gru import strings
from tests.models.encoders import save_encoder

NEWS = 2000  # characters: what `max_chars` is by default
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


def news(data: Path, part: str = "train") -> Set:
    """A part of 20 Newsgroups, whole texts of up to `NEWS` characters; train or test."""
    with gzip.open(data / "news20_part" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
        pairs = [(found["text"][:NEWS], found["label"]) for found in map(read, lines)]
    x = torch.zeros(len(pairs), NEWS, dtype=torch.int32)
    for row, (text, _) in enumerate(pairs):
        x[row, : len(text)] = torch.tensor([ord(c) for c in text])
    return Set(x, [str(label) for _, label in pairs])


def read(line: str) -> dict[str, Any]:
    """A line of JSON; a tenth of these have backslashes that are no JSON, and count as they stand."""
    escaped = re.sub(r"\\([\"\\/bfnrtu]?)", lambda found: found[0] if found[1] else r"\\", line)
    return dict(json.loads(escaped, strict=False))


def made(blueprint: Blueprint, options: Mapping[str, Any]) -> Learner:
    """An untrained learner."""
    start = {"folder": read_folder(Path(options["folder"]))} if "folder" in options else {}
    return blueprint.build(blueprint.options.model_validate(options), (LENGTH,), SEED, CPU, start)


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
        "final": accuracy(learner.model, test),
        "prequential": hits / len(train),
        "records_per_s": len(train) / taken_s,
        "records_per_cpu_s": len(train) / taken_cpu_s,
        "state_mb": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
    }


def pairs(train: Set) -> dict[str, list[float]]:
    """Each learner's records a second of CPU over those of a plain loop, in alternated pairs; neither replays.

    A plain loop has the same network or classifier and the same optimiser. It predicts each batch, and then learns it.
    """
    before, stream = train.take(range(3000)), list(batches(train.take(range(3000, 3000 + UPDATES * BATCH)), BATCH))
    texts = [text for batch in stream for text in strings(batch.x)]
    labels = [str(label) for batch in stream for label in batch.labels]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        save_encoder(Path(folder))
        for name, blueprint, options in (
            ("text-classifier", text_classifier.BLUEPRINT, {"replay_slots": 0}),
            ("text-gru", text_gru.BLUEPRINT, {"replay_slots": 0}),
            ("text-encoder", text_encoder.BLUEPRINT, {"replay_slots": 0, "folder": folder}),
            ("river naive Bayes", river_classifier.BLUEPRINT, {}),
        ):
            learner = made(blueprint, options)
            for _ in learn(learner, before, batch_size=BATCH):  # every class is known from here on
                pass
            if isinstance(learner, river_classifier.RiverLearner):
                plain = partial(plain_river, river_pipeline(before), texts, labels)
            else:
                plain = partial(plain_torch, copy.deepcopy(learner), stream)
            seconds = alternated(partial(ours, learner, stream), plain, PAIRS)
            found[name] = [theirs_s / ours_s for ours_s, theirs_s in seconds]
    return found


def ours(learner: Learner, stream: Sequence[Batch]) -> None:
    """The seam: a generator for each update, predictions, the report."""
    for update, batch in enumerate(stream):
        learner.learn(batch, update_generator(SEED, update))


def plain_torch(owner: Learner, stream: Sequence[Batch]) -> None:
    """The network of a learner, in the loop that one writes without headrace."""
    model = owner.model
    top = model.top if isinstance(model, text_encoder.TextEncoder) else model
    assert isinstance(top, ClassifierNetwork)
    embed = model.embed if isinstance(model, text_encoder.TextEncoder) else nn.Identity()
    rate = 1e-2 if isinstance(top, text_gru.TextGru) else 3e-3
    dense = [parameter for parameter in top.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(dense, rate, weight_decay=1e-4, fused=True)
    table = text_classifier.RowRms(top.table, 1e-2) if isinstance(top, text_classifier.TextClassifier) else None
    numbers = {name: number for number, name in enumerate(top.classes)}
    for batch in stream:
        y = torch.tensor([numbers[str(label)] for label in batch.labels])
        x = embed(batch.x)
        with torch.no_grad():
            top(x).argmax(1).tolist()
        optimizer.zero_grad()
        loss = F.cross_entropy(top(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if table is not None:
            table.step()
        loss.item()


def river_pipeline(before: Set) -> Any:
    """River's own pipeline, which has learned the same records; its vocabulary has no bound."""
    pipeline: Any = feature_extraction.BagOfWords(ngram_range=(1, 2)) | naive_bayes.MultinomialNB()  # type: ignore[no-untyped-call]
    for text, label in zip(strings(before.x), before.labels, strict=True):
        pipeline.learn_one(text, label)
    return pipeline


def plain_river(pipeline: Any, texts: Sequence[str], labels: Sequence[str]) -> None:
    for text, label in zip(texts, labels, strict=True):
        pipeline.predict_proba_one(text)
        pipeline.learn_one(text, label)


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
    for name, each in ratios.items():
        ratio = statistics.median(each)
        told = f"{ratio:.2f} (median of {PAIRS} alternated pairs, {min(each):.2f}–{max(each):.2f})"
        say(f"{name}: {told}")
        what = f"{name} fed from RAM / a plain loop that predicts first too, records a second of CPU"
        figures.append(Figure(what, told, "≥ 0.95", ratio >= 0.95))
    notes = [
        "150 intents, 15,000 texts of a few words, 4,500 held out; chance is 0.7 %.",
        "A network over bytes must learn to spell first: one pass over so few texts is too little for it.",
        "River is Python throughout and its time grows with the number of classes.",
        "The plain loops: the same network and optimisers in torch; for text-encoder, a BERT of two layers, 16 wide; "
        "for river, its own pipeline, whose vocabulary has no bound and whose classes are names.",
    ]
    return Findings(figures, notes, {"runs": raw, "ratios": ratios})
