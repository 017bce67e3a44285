"""The text classifier alone: hashing against plain Python, the table's gradient and step against the equations."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from models.learner import update_generator
from models.registry import BUILTIN
from models.text_classifier import BASE, MIX, HashTable, RowRms, TextClassifierOptions, ngrams
from tests.models.contract import GREETINGS, SEED, Case, texts

BLUEPRINT = BUILTIN["text-classifier"]
TEXTS = st.lists(st.text(st.characters(min_codepoint=1, codec="utf-8"), max_size=12), min_size=1, max_size=5)


def padded(some: list[str], length: int) -> torch.Tensor:
    return torch.tensor([[ord(c) for c in text] + [0] * (length - len(text)) for text in some], dtype=torch.int32)


def signed(value: int) -> int:
    """As 64 bits with a sign."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def buckets_of(text: str, orders: int, buckets: int) -> list[int]:
    """The hash of every n-gram, one at a time, shorter ones first."""
    found = []
    for n in range(1, orders + 1):
        for start in range(len(text) - n + 1):
            value = 0
            for c in text[start : start + n]:
                value = signed(value * BASE + ord(c) + 1)
            value = signed((value + n) * MIX)
            value = signed((value ^ (value >> 29)) * BASE)
            found.append((value >> 31) % buckets)
    return found


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(1, 5), st.integers(0, 3))
def test_every_ngram_of_every_text_is_hashed_once(some: list[str], orders: int, padding: int) -> None:
    rows, starts = ngrams(padded(some, 12 + padding), orders, 1000)
    ends = [*starts.tolist()[1:], len(rows)]
    for text, start, end in zip(some, starts.tolist(), ends, strict=True):
        assert rows[start:end].tolist() == buckets_of(text, orders, 1000)


def test_hashes_spread_over_the_table() -> None:
    points = torch.arange(1, 20_001).view(-1, 4)
    rows, _ = ngrams(points, 4, 1 << 10)
    counts = torch.bincount(rows, minlength=1 << 10).double()  # 50,000 n-grams over 1,024 buckets
    expected = len(rows) / (1 << 10)
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi_squared - 1023) < 6 * math.sqrt(2 * 1023)


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
    optimizer = RowRms(table, learning_rate=0.1)
    moments, counts, weight = [0.0] * 5, [0] * 5, [[0.0, 0.0] for _ in range(5)]
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
    torch.testing.assert_close(table.weight.data, torch.tensor(weight), rtol=1e-3, atol=1e-5)
    assert not table.weight[[0, 2, 4]].any()


def test_scripts_are_told_apart_and_an_empty_text_is_a_text() -> None:
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
    options = TextClassifierOptions(buckets=4096, dim=4, replay_slots=0)
    case = Case(BLUEPRINT, options, *texts())
    ours = case.learner()
    ours.capture()
    case.learn(ours, range(1))
    changed = ours.capture().serving["table.weight"].changed  # type: ignore[union-attr]
    seen = {row for some in GREETINGS.values() for text in some[:2] for row in buckets_of(text, 4, 4096)}
    assert set(changed.tolist()) <= seen  # type: ignore[union-attr]
    assert len(changed) > 50  # type: ignore[arg-type]
