"""What a worker finds out from records that it never learns, and where that is told."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from consumers.worker.evaluator import Evaluator, accuracy, features, hits_by_class, mean_bytes
from consumers.worker.fold import HELD_OUT, whole
from models.evaluation.drawings import quality
from models.images.backbone import Backbone, BackboneOptions
from models.images.classifier import ImageClassifierOptions
from models.learner import Source
from models.registry import BUILTIN
from pipeline.config import HoldOutConfig
from pipeline.errors import ConfigError
from pipeline.log.publisher import Publisher
from tests.consumers.working import configuration, numbers, publish, verified, working
from tests.device import CPU
from tests.services import Topics, unique

IMAGE = {"kind": "image", "size": 8, "channels": 1}
CLASSIFIER: dict[str, Any] = {
    "learner": "image-classifier",
    "input": IMAGE,
    "options": {"width": 8, "hidden": 8, "replay_draws": 8},
}
VAE: dict[str, Any] = {
    "learner": "image-vae",
    "input": IMAGE,
    "options": {"width": 8, "latent": 4, "label_dim": 4, "replay_draws": 8},
}


def digits(count: int) -> list[tuple[bytes, str]]:
    """scikit-learn's, as PNG."""
    data = load_digits()
    found = []
    for image, label in zip(data.images[:count], data.target, strict=False):
        file = io.BytesIO()
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(file, "PNG")
        found.append((file.getvalue(), str(label)))
    return found


def test_a_classifier_and_a_generator_judged_by_it(kafka: str, redis_url: str, topics: Topics) -> None:
    topic, judge, name = topics(), unique("judge"), unique("drawings")
    hold_out = {"slots": 40, "share": 0.2, "every_s": 0.2, "drawings": 12}
    first = configuration(kafka, redis_url, topic, name=judge, **CLASSIFIER, hold_out=hold_out)
    publish(first, topic, *digits(240))
    with working(first) as run:
        head = run.until(lambda m: sum(m.counts.values()) >= 240 and "held_out_accuracy" in m.metrics)
        run.finish()
    found = head.metrics["held_out_accuracy"]
    assert found is not None
    assert 0 <= found <= 1
    assert run.metric("headrace_held_out_mean", metric="held_out_accuracy") is not None
    assert 25 <= head.counts[HELD_OUT] <= 75
    last = run.store.manifest()
    assert set(last.probes) <= set(last.classes)
    for label, kept in last.probes.items():
        assert 0 <= kept["first"] <= kept["best"] <= 1
        found = run.registry.get_sample_value(
            "headrace_held_out_class_accuracy_ratio", {"model": judge, "class": label}
        )
        assert found == kept["now"]

    held = {place for place, [outcome] in run.outcomes().items() if outcome == HELD_OUT}
    assert len(held) == run.store.manifest().counts[HELD_OUT]
    arrays = run.store.arrays(run.store.manifest(), "training")
    origins = {name: arrays[f"{name}/origins"].numpy()[:, 2].tolist() for name in ("held_out", "memory")}
    size = run.store.manifest().worker["held_out"]["memory"]["size"]
    assert {(topic, 0, offset) for offset in origins["held_out"][:size]} <= held
    learned = origins["memory"][: run.store.manifest().meta["memory"]["size"]]
    assert not {(topic, 0, offset) for offset in learned} & held

    second = configuration(
        kafka, redis_url, topic, name=name, **VAE, hold_out={**hold_out, "features": {"source": judge}}
    )
    with working(second) as run:
        head = run.until(lambda m: "frechet_distance" in m.metrics)
    named = {"held_out_loss", "held_out_bits_per_dimension", "frechet_distance", "precision", "coverage", "density"}
    assert named | {"memorised_share", "nearest_learned_ratio"} <= head.metrics.keys()
    distance = head.metrics["frechet_distance"]
    assert distance is not None
    assert distance > 0


def test_what_is_published_twice_without_an_id_is_held_out_twice(kafka: str, redis_url: str, topics: Topics) -> None:
    topic = topics(partitions=2)
    config = configuration(kafka, redis_url, topic, hold_out={"slots": 40, "share": 0.3, "every_s": 3600})
    sent: dict[tuple[str, int, int], bytes] = {}
    with Publisher(config.kafka) as publisher:
        for value in numbers(range(60), range(60)):
            receipt = publisher.publish(topic, value, partition=len(sent) % 2 if len(sent) < 60 else 0)
            sent[receipt.result(10)] = value
    with working(config) as run:
        run.read(120)
        run.finish()
        outcomes = {place: outcome for place, [outcome] in run.outcomes().items()}
        of_value = {value: {outcomes[place] for place in sent if sent[place] == value} for value in sent.values()}
        assert {frozenset(names) for names in of_value.values()} == {frozenset({"held-out"}), frozenset({"learned"})}
        assert verified(run, config).same


def test_what_was_probed_before_a_restart_counts(kafka: str, redis_url: str, topic: str) -> None:
    hold_out = {"slots": 40, "share": 0.3, "every_s": 0.05}
    config = configuration(kafka, redis_url, topic, **CLASSIFIER, hold_out=hold_out)
    publish(config, topic, *digits(120))
    with working(config) as run:
        run.until(lambda manifest: bool(manifest.probes))
        run.read(120)
        before = run.finish().probes
    publish(config, topic, *digits(240)[120:])
    with working(config) as run:
        head = run.until(lambda m: sum(m.counts.values()) == 240 and "held_out_forgetting" in m.metrics)
    for label, kept in before.items():
        assert head.probes[label]["first"] == kept["first"]
        assert head.probes[label]["best"] >= kept["best"]


def test_drawings_are_compared_by_the_features_of_the_extractor() -> None:
    blueprint = BUILTIN["image-classifier"]
    options = ImageClassifierOptions(width=8, hidden=8)
    state = blueprint.learner(options, (1, 8, 8), 3, CPU).capture()
    source = Source("", whole(state.serving), learner="image-classifier", options=options.model_dump(), shape=(1, 8, 8))
    judge = Backbone.of_sources(BackboneOptions(source="judge"), {"source": source})
    x = torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(raw)))[None] for raw, _ in digits(200)]))
    model = blueprint.model(options, (1, 8, 8), {"classes": []})
    model.load_state_dict(state.serving)
    assert torch.equal(features(judge, x), model.features(x))  # type: ignore[attr-defined]
    same = quality(features(judge, x[:100]), features(judge, x[100:]), features(judge, x[:100]))
    noise = torch.randint(0, 256, x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    other = quality(features(judge, x[:100]), features(judge, x[100:]), features(judge, noise[:100]))
    assert same["frechet_distance"] < other["frechet_distance"]
    assert same["coverage"] > other["coverage"]


def test_it_asks_when_it_is_time() -> None:
    now_s = [100.0]
    evaluator = Evaluator(HoldOutConfig(slots=4, every_s=60), None, clock=lambda: now_s[0])
    assert not evaluator.due(3)
    now_s[0] += 60
    assert evaluator.due(3)
    assert not evaluator.due(0)  # nothing was learned


class Always:
    """Puts every record into its first class."""

    classes = ("a", "b")

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.9, 0.1]]).expand(len(x), 2)


def test_accuracy_is_of_the_labelled_records_also_of_classes_that_are_unknown() -> None:
    x = torch.zeros(300, 1)
    labels = ["a"] * 150 + ["never seen"] * 50 + [None] * 100
    hits = hits_by_class(Always(), x, labels)  # type: ignore[arg-type]
    assert hits == {"a": (150, 150), "never seen": (0, 50)}
    assert accuracy(hits) == pytest.approx(0.75)


def test_bytes_are_those_of_utf_8() -> None:
    texts = ["a", "é", "早上", "🙂x"]
    x = torch.tensor([[ord(c) for c in text] + [0] * (4 - len(text)) for text in texts], dtype=torch.int32)
    assert mean_bytes(x) == np.mean([len(text.encode()) for text in texts])


def test_a_feature_extractor_that_is_not_there_is_named(kafka: str, redis_url: str, topics: Topics) -> None:
    topic = topics()
    hold_out = {"slots": 4, "features": {"source": "nobody"}}
    config = configuration(kafka, redis_url, topic, **VAE, hold_out=hold_out)
    with working(config) as run, pytest.raises(ConfigError, match=r"hold_out\.features\.source = 'nobody'"):
        run.join()
