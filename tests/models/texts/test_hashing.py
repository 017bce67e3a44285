"""Hashes of n-grams and words beside plain Python, one at a time."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings, strategies as st

from models.texts.hashing import both, edged, ngrams, words
from tests.models.hashed import ngrams_of, padded, words_of

TEXTS = st.lists(st.text(st.characters(min_codepoint=1, codec="utf-8"), max_size=12), min_size=1, max_size=5)
SENTENCES = st.lists(st.text("abB'1 ,.-éя語\u00a0~", max_size=40), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(1, 5), st.integers(0, 3))
def test_every_ngram_of_every_text_is_hashed_once(some: list[str], orders: int, padding: int) -> None:
    rows, starts = ngrams(padded(some, 12 + padding), range(1, orders + 1)).rows(1000)
    ends = [*starts.tolist()[1:], len(rows)]
    for text, start, end in zip(some, starts.tolist(), ends, strict=True):
        assert rows[start:end].tolist() == [(value >> 31) % 1000 for value in ngrams_of(text, range(1, orders + 1))]


@settings(deadline=None, max_examples=100)
@given(SENTENCES, st.integers(0, 3))
def test_every_word_and_pair_of_words_is_hashed_once(some: list[str], padding: int) -> None:
    found = words(padded(some, 40 + padding))
    for row, text in enumerate(some):
        assert found.hashes[row][found.there[row]].tolist() == words_of(text)


def test_a_text_has_a_space_at_both_ends() -> None:
    x = edged(padded(["ab", "", "abcd"], 4))
    assert x.tolist() == [[32, 97, 98, 32, 0, 0], [32, 32, 0, 0, 0, 0], [32, 97, 98, 99, 100, 32]]


def test_what_is_in_a_text_does_not_depend_on_the_others() -> None:
    some = ["where is the library", "", "good morning to you, and to all of the others who are here with us today"]
    together = padded(some, 80)
    found = both(words(together), ngrams(together, (3, 5)))
    for row, text in enumerate(some):
        alone = padded([text], max(len(text), 3))
        found_alone = both(words(alone), ngrams(alone, (3, 5)))
        assert set(found.hashes[row][found.there[row]].tolist()) == set(found_alone.hashes[found_alone.there].tolist())


def test_hashes_spread_over_the_table() -> None:
    points = torch.arange(1, 20_001).view(-1, 4)
    rows, _ = ngrams(points, range(1, 5)).rows(1 << 10)
    counts = torch.bincount(rows, minlength=1 << 10).double()  # 50,000 n-grams over 1,024 buckets
    expected = len(rows) / (1 << 10)
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi_squared - 1023) < 6 * math.sqrt(2 * 1023)
