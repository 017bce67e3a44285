"""What versions take in Redis, by its own measure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import torch
from redis import Redis
from torch import Tensor

from consumers.bridge import copied
from models.images import analytic as image_analytic
from models.images.analytic import ImageAnalyticOptions
from models.learner import Batch, Learner, update_generator
from models.texts import analytic as text_analytic
from models.texts.counts import TextAnalyticOptions
from pipeline.store.store import Store
from pipeline.texts import TextInput
from tests.models.texts.test_analytic import rows_of
from tests.pipeline.drafts import draft

KEPT = 20


def stored(redis: Redis, family: str, learner: Learner, batches: Iterable[tuple[Tensor, list[str]]]) -> int:
    """Bytes that the last versions take, where each batch is one that holds all of the learner."""
    store = Store(redis, family, "m")
    fence = store.acquire("test", 600)
    assert fence is not None
    writer = store.writer(fence)
    for update, (x, labels) in enumerate(batches):
        origins, ids = torch.zeros(len(x), 3, dtype=torch.int64), torch.zeros(len(x), 16, dtype=torch.uint8)
        learner.learn(Batch(x, labels, origins, ids), update_generator(0, update))
        state = learner.capture()
        serving, training = copied(state.serving), copied(state.training)
        writer.commit(draft(update, serving, training, classes=list(state.meta["classes"]), meta=dict(state.meta)))
        store.retire(fence, KEPT)
    assert len(store.versions()) == KEPT
    return sum(redis.memory_usage(key, samples=0) or 0 for key in redis.scan_iter(f"headrace:{{{family}}}*"))


def test_texts_of_many_classes_take_little_of_redis(redis: Redis, family: str) -> None:
    """20 versions, each a keyframe with 200 texts more; sums alone, stored anew each time, took 410 MB."""
    learner = text_analytic.BLUEPRINT.learner(TextAnalyticOptions(), TextInput().shape, 0, torch.device("cpu"))
    assert stored(redis, family, learner, some_texts(4000, 200)) < 30e6


def test_more_texts_do_not_store_the_sums_anew(redis: Redis, family: str) -> None:
    """A million features and more: the table of 262,144 buckets and 77 classes was stored, and then 55 MB more."""
    learner = text_analytic.BLUEPRINT.learner(TextAnalyticOptions(width=64), TextInput().shape, 0, torch.device("cpu"))
    assert stored(redis, family, learner, some_texts(10_000, 400)) < 40e6


def some_texts(count: int, at_once: int, classes: int = 77) -> Iterator[tuple[Tensor, list[str]]]:
    """Texts of ten words, sorted by class."""
    words = random.Random(7)
    vocabulary = ["".join(words.choices("abcdefghiklmnoprstu", k=words.randint(2, 9))) for _ in range(3000)]
    for first in range(0, count, at_once):
        texts = [" ".join(words.choices(vocabulary, k=10)) for _ in range(at_once)]
        yield rows_of(texts, 120), [f"class {number * classes // count}" for number in range(first, first + at_once)]


def test_pictures_take_little_of_redis(redis: Redis, family: str) -> None:
    """20 versions, each a keyframe with 16 pictures more; the sums alone, stored anew each time, took 720 MB."""
    learner = image_analytic.BLUEPRINT.learner(ImageAnalyticOptions(), (3, 16, 16), 0, torch.device("cpu"))
    x = torch.randint(256, (KEPT, 16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    assert stored(redis, family, learner, [(some, [f"class {n % 10}" for n in range(16)]) for some in x]) < 60e6
