"""What each code point adds to a score: together it is the score, and each feature's part is where the feature is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.learner import Batch, update_generator
from models.texts.analytic import BLUEPRINT, TextAnalytic, TextAnalyticOptions
from models.texts.contributions import shared_out, spans

LENGTH = 96
LEARNED = (
    ("good day to you", "en"),
    ("guten Tag", "de"),
    ("доброе утро", "ru"),
    ("早上好", "zh"),
    ("Good morning!", "en"),
)


def codes(text: str) -> Tensor:
    return torch.tensor([ord(c) for c in text] + [0] * (LENGTH - len(text)), dtype=torch.int32)


@pytest.fixture(scope="module")
def model() -> TextAnalytic:
    options = TextAnalyticOptions(width=64, buckets=256)  # features share places, as in a large one they seldom do
    learner = BLUEPRINT.build(options, (LENGTH,), 0, torch.device("cpu"))
    x, labels = torch.stack([codes(text) for text, _ in LEARNED]), [label for _, label in LEARNED]
    for update in range(4):
        count = len(labels)
        batch = Batch(x, labels, torch.zeros(count, 3, dtype=torch.int64), torch.zeros(count, 16, dtype=torch.uint8))
        learner.learn(batch, update_generator(0, update))
    learner.capture()
    found = learner.model
    assert isinstance(found, TextAnalytic)
    return found


@pytest.mark.parametrize(
    "text", ["good day", "Guten Morgen, Tag!", "утро day 早上好 don't", "x", "?!", "a b c d " * 11]
)
def test_together_they_are_the_score(model: TextAnalytic, text: str) -> None:
    look = model.look(codes(text)[None])
    assert look.trust is not None
    score = model.sharpness * (look.scores(model.weight, model.bias) - look.trust * model.bias) + look.prior  # (1, K)
    found = model.contributions(codes(text))
    assert found.shape == (len(text), len(model.classes))
    expected = (score - score.mean(1, keepdim=True))[0].double()
    torch.testing.assert_close(found.sum(0), expected, atol=1e-4, rtol=1e-4)


def test_a_word_that_was_learned_of_a_class_speaks_for_it(model: TextAnalytic) -> None:
    found = model.contributions(codes("guten xyzzy"))[:, model.classes.index("de")]
    assert found[:5].sum() > 2 * found[6:].sum().abs()


def test_spans_are_where_words_and_ngrams_are() -> None:
    text = torch.tensor([ord(c) for c in "it's ok"])
    first, behind = spans(text, (3, 4))
    assert list(zip(first.tolist(), behind.tolist(), strict=True))[:4] == [(0, 4), (5, 7)] * 2
    grams = {(max(0, i), min(7, i + n)) for n in (3, 4) for i in range(-1, 9 - n)}
    assert set(zip(first[4:].tolist(), behind[4:].tolist(), strict=True)) == grams
    assert len(first) == 4 + 7 + 6


def test_a_feature_is_shared_out_where_it_is() -> None:
    each = torch.tensor([[6.0], [1.0]])
    occurring, first, behind = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 3]), torch.tensor([3, 2, 4])
    found = shared_out(each, occurring, first, behind, 5)
    assert found[:, 0].tolist() == [1, 2, 1, 3, 0]
