"""The text classifier alone: the table's gradient and step against the equations."""

from __future__ import annotations

import copy
import math

import torch
from torch.nn import functional as F

from models.classifier import ClassifierLearner
from models.learner import update_generator
from models.registry import BUILTIN
from models.texts.classifier import HashTable, RowRms, TextClassifier, TextClassifierOptions
from models.texts.hashing import Found
from tests.models.contract import GREETINGS, SEED, Case, texts
from tests.models.hashed import ngrams_of, padded, words_of

BLUEPRINT = BUILTIN["text-classifier"]


def test_the_gradient_of_the_touched_rows_is_the_tables() -> None:
    table = HashTable(50, 3)
    table.weight.data = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    rows, starts = torch.tensor([4, 9, 4, 4, 30, 9, 2]), torch.tensor([0, 3, 3, 5])  # the second bag is empty
    out = table(rows, starts)
    weights = torch.arange(12.0).view(4, 3)
    (out * weights).sum().backward()

    dense = table.weight.detach().clone().requires_grad_()
    reference = F.embedding_bag(rows, dense, starts, mode="mean")
    (reference * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(out, reference)
    assert table.touched is not None
    assert table.values is not None
    assert dense.grad is not None
    assert table.touched.tolist() == [2, 4, 9, 30]
    assert table.values.grad is not None
    torch.testing.assert_close(table.values.grad, dense.grad[[2, 4, 9, 30]])


def test_a_row_steps_as_its_equation_says_and_others_stay() -> None:
    table = HashTable(5, 2)
    table.weight.data = torch.zeros(5, 2)
    served = copy.deepcopy(table)
    optimizer = RowRms(table, learning_rate=0.1, served=served, average=0.15)
    moments, counts, weight, mean = [0.0] * 5, [0] * 5, [[0.0, 0.0] for _ in range(5)], torch.zeros(5, 2)
    for step, touched in enumerate([[1], [1, 3], [3], [1]]):
        out = table(torch.tensor(touched), torch.tensor([0]))
        g = [2.0 + step, -1.0]
        (out[0] * torch.tensor(g)).sum().backward()
        optimizer.step()
        for row in touched:
            scaled = [value / len(touched) for value in g]  # the mean over the bag
            counts[row] += 1
            moments[row] = 0.999 * moments[row] + 0.001 * sum(value**2 for value in scaled) / 2
            scale = math.sqrt(moments[row] / (1 - 0.999 ** counts[row])) + 1e-8
            weight[row] = [w - 0.1 * value / scale for w, value in zip(weight[row], scaled, strict=True)]
            decay = min(0.15, counts[row] / (9 + counts[row]))  # of the row's own updates
            mean[row] = decay * mean[row] + (1 - decay) * torch.tensor(weight[row])
    torch.testing.assert_close(table.weight.data, torch.tensor(weight), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(served.weight.data, mean, rtol=1e-3, atol=1e-5)
    assert not torch.equal(served.weight, table.weight)
    assert not table.weight[[0, 2, 4]].any()
    assert not served.weight[[0, 2, 4]].any()


def test_scripts_are_distinguished_and_an_empty_text_is_a_text() -> None:
    options = TextClassifierOptions(buckets=4096, dim=16, replay_draws=8)
    case = Case(BLUEPRINT, options, *texts())
    ours = case.learned(30)
    unseen = {"en": "good library to you", "zh": "非常早上", "ru": "где увидимся", "ar": "صباح جزيلا"}
    x = padded([*unseen.values(), ""], 32)
    p = ours.model.classify(x)  # type: ignore[attr-defined]
    assert [ours.model.classes[k] for k in p.argmax(1)[:-1]] == list(unseen)
    assert p.isfinite().all()
    batch = Case(BLUEPRINT, options, padded(["", "a"], 32), ["en", "en"]).batch(0, 2)
    assert math.isfinite(ours.learn(batch, update_generator(SEED, 99)).loss)


def test_a_commit_names_the_rows_that_were_seen_and_no_others() -> None:
    options = TextClassifierOptions(buckets=4096, dim=4, replay_slots=0, words=False)
    case = Case(BLUEPRINT, options, *texts())
    ours = case.learner()
    ours.capture()
    case.learn(ours, range(1))
    changed = ours.capture().serving["table.weight"].changed  # type: ignore[union-attr]
    seen = {
        (row >> 31) % 4096 for some in GREETINGS.values() for text in some[:2] for row in ngrams_of(text, range(1, 5))
    }
    assert set(changed.tolist()) <= seen  # type: ignore[union-attr]
    assert len(changed) > 50  # type: ignore[arg-type]


def test_replayed_texts_lose_a_part_and_incoming_ones_nothing() -> None:
    options = TextClassifierOptions(buckets=4096, dim=4, words=True, dropout=0.4)
    case = Case(BLUEPRINT, options, *texts())
    ours = case.learner()
    assert isinstance(ours, ClassifierLearner)
    whole = ours.model.found(case.x)
    shown = ours._shown(case.x, 100, update_generator(SEED, 0))
    assert isinstance(shown, Found)
    assert torch.equal(shown.hashes, whole.hashes)
    assert torch.equal(shown.there[:100], whole.there[:100])
    assert not (shown.there & ~whole.there).any()
    kept = shown.there[100:].sum() / whole.there[100:].sum()
    assert abs(kept.item() - 0.6) < 0.02


def test_words_are_read_where_they_are_asked_for() -> None:
    x = padded(["where is it"], 16)
    with_words = TextClassifier(TextClassifierOptions(buckets=64, dim=4, orders=2, words=True), (8,), ()).found(x)
    found = with_words.hashes[with_words.there].tolist()
    assert found == [*ngrams_of("where is it", range(1, 3)), *words_of("where is it")]
