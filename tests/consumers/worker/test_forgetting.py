"""A stream sorted by class, through Kafka, with a crash in the middle: what each strategy keeps of its beginning."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from consumers.bridge import tensors
from consumers.loading import resolve_blueprint
from models.capabilities import Classifier
from tests.consumers.working import configuration, publish, working

NETWORK = {"width": 8, "hidden": 32, "learning_rate": 3e-3, "replay_slots": 200, "replay_draws": 32}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "naive": ("image-classifier", {**NETWORK, "strategy": "naive"}),
    "er": ("image-classifier", {**NETWORK, "strategy": "er"}),
    "er-ace": ("image-classifier", {**NETWORK, "strategy": "er-ace", "logits_weight": 0.3}),
    "der++": ("image-classifier", {**NETWORK, "strategy": "der++", "logits_weight": 0.3}),
    "dreams": ("image-classifier", {**NETWORK, "strategy": "dreams"}),
    "er-ace, with dreams": ("image-classifier", {**NETWORK, "strategy": "er-ace", "dream_share": 0.5}),
    "analytic": ("image-analytic", {"width": 200}),
}
LEARNED = 1000


def png(values: np.ndarray[Any, np.dtype[np.float64]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray((values * 255 / 16).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_of_the_first_classes(kafka: str, redis_url: str, topic: str, way: str) -> None:
    data = load_digits()
    order = sorted(range(LEARNED), key=lambda row: int(data.target[row]) // 2)
    records = [(png(data.images[row]), str(data.target[row])) for row in order]
    learner, options = WAYS[way]
    table: dict[str, Any] = {
        "learner": learner,
        "options": options,
        "input": {"kind": "image", "size": 8, "channels": 1},
        "batch_size": 10,
        "max_wait_ms": 1000,
    }
    config = configuration(kafka, redis_url, topic, **table)
    with working(config) as run:
        publish(config, topic, *records[: LEARNED // 2])
        run.read(LEARNED // 3)
        run.crash()
    with working(config) as run:
        publish(config, topic, *records[LEARNED // 2 :])
        run.read(LEARNED)
        head = run.finish()
    assert sorted(map(len, run.outcomes().values())) == [1] * LEARNED
    blueprint = resolve_blueprint(learner)
    model = blueprint.model(blueprint.options.model_validate(options), (1, 8, 8), head.meta)
    model.load_state_dict(tensors(run.store.arrays(head, "serving")))
    assert isinstance(model, Classifier)
    x = torch.from_numpy((data.images[LEARNED:] * 255 / 16).astype(np.uint8))[:, None]
    found = [model.classes[k] for k in model.classify(x).argmax(1).tolist()]
    right = np.mean([a == str(b) for a, b in zip(found, data.target[LEARNED:], strict=True)])
    assert right < 0.35 if way == "naive" else right > (0.85 if way == "analytic" else 0.5)
