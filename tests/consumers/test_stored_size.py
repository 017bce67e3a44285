"""What versions take in Redis, by its own measure."""

from __future__ import annotations

import random

import torch
from redis import Redis

from consumers.bridge import copied
from models.learner import Batch, update_generator
from models.text_analytic import BLUEPRINT, TextAnalyticOptions
from pipeline.config import TextInput
from pipeline.store import Store
from tests.models.test_text_analytic import rows_of
from tests.pipeline.drafts import draft

TEXTS, CLASSES, AT_ONCE, KEPT = 4000, 77, 200, 20


def test_texts_of_many_classes_take_little_of_redis(redis: Redis, family: str) -> None:
    """20 versions, each a keyframe with 200 texts more; sums alone, stored anew each time, took 410 MB."""
    words = random.Random(7)
    vocabulary = ["".join(words.choices("abcdefghiklmnoprstu", k=words.randint(2, 9))) for _ in range(3000)]
    learner = BLUEPRINT.learner(TextAnalyticOptions(), TextInput().shape, 0, torch.device("cpu"))
    store = Store(redis, family, "m")
    fence = store.acquire("test", 600)
    assert fence is not None
    writer = store.writer(fence)
    for update in range(TEXTS // AT_ONCE):
        numbers = range(update * AT_ONCE, (update + 1) * AT_ONCE)
        some = [" ".join(words.choices(vocabulary, k=10)) for _ in numbers]
        labels = [f"class {number * CLASSES // TEXTS}" for number in numbers]
        origins, ids = torch.zeros(AT_ONCE, 3, dtype=torch.int64), torch.zeros(AT_ONCE, 16, dtype=torch.uint8)
        learner.learn(Batch(rows_of(some, 120), labels, origins, ids), update_generator(0, update))
        state = learner.capture()
        serving, training = copied(state.serving), copied(state.training)
        writer.commit(draft(update, serving, training, classes=list(state.meta["classes"]), meta=dict(state.meta)))
        store.retire(fence, KEPT)
    assert len(store.versions()) == KEPT
    sizes = [redis.memory_usage(key, samples=0) or 0 for key in redis.scan_iter(f"headrace:{{{family}}}*")]
    assert sum(sizes) < 60e6
