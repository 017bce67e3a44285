"""Texts beyond `max_chars`: what reads texts of any length learns and answers as if `max_chars` were large enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from models.analytic_learner import AnalyticLearner
from models.auto import AutoLearner
from models.learner import Batch, Learner, update_generator
from models.registry import BUILTIN
from models.texts.analytic import hashes, in_pieces, weighed
from tests.models.contract import SEED, same, texts as greetings

SMALL: dict[str, dict[str, Any]] = {
    "text-analytic": {"width": 64, "buckets": 512},
    "text-generator": {"hidden": 8, "embedding": 4, "slots": 1 << 10, "history": 256, "replay_windows": 1},
    "text-auto": {
        "head": {"width": 64, "buckets": 512},
        "network": {"buckets": 512, "dim": 8, "words": False, "replay_slots": 24, "replay_draws": 4},
    },
}
BEGINNING = 8  # code points


def learner(name: str, length: int, **options: Any) -> Any:
    blueprint = BUILTIN[name]
    made = blueprint.options.model_validate({**SMALL[name], **options})
    return blueprint.learner(made, (length,), SEED, torch.device("cpu"))


def points(text: str) -> Tensor:
    return torch.tensor([ord(c) for c in text], dtype=torch.int32)


def padded(texts: Sequence[Tensor], length: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(text[:length], (0, max(0, length - len(text)))) for text in texts])


def batch(texts: Sequence[Tensor], labels: Sequence[str], length: int) -> Batch:
    """As a worker gives it whose `max_chars` is that."""
    numbers = torch.arange(len(texts))
    origins = torch.stack([0 * numbers, 0 * numbers, numbers], 1)
    ids = (numbers[:, None] % 251 + torch.arange(16)).to(torch.uint8)
    whole = {row: text for row, text in enumerate(texts) if len(text) > length}
    return Batch(padded(texts, length), labels, origins, ids, whole)


def some(count: int) -> tuple[list[Tensor], list[str]]:
    x, labels = greetings()
    return [row[row != 0] for row in x[:count]], labels[:count]


def taught(one: Learner, length: int, count: int = 64) -> Any:
    texts, labels = some(count)
    for update, start in enumerate(range(0, count, 8)):
        at = slice(start, start + 8)
        one.learn(batch(texts[at], labels[at], length), update_generator(SEED, update))
    return one


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab Z'.漢é🦉"), min_size=1, max_size=60), st.integers(1, 70))
def test_pieces_have_the_features_of_the_whole(text: str, size: int) -> None:
    """Words and n-grams across a cut among them, wherever it is."""
    x = points(text)
    assert torch.equal(in_pieces(x, 512, size), weighed(hashes(x[None]), 512))


@pytest.mark.parametrize("name", ["text-analytic", "text-generator"])
def test_a_long_text_is_learned_whole(name: str) -> None:
    short, long = (taught(learner(name, length), length) for length in (BEGINNING, 64))
    assert same(short.capture(), long.capture())


@pytest.mark.parametrize("name", SMALL)
def test_who_reads_the_first_characters_alone_is_as_versions_of_before(name: str) -> None:
    """The stored options of these do not say it."""
    options = BUILTIN[name].options.of_version(SMALL[name])
    assert not BUILTIN[name].reads_whole(options)
    assert BUILTIN[name].reads_whole(BUILTIN[name].options())


def test_a_long_text_is_answered_to_whole() -> None:
    one = taught(learner("text-analytic", BEGINNING), BEGINNING)
    for text in some(4)[0]:
        told = one.model.classify(text[None])
        assert torch.equal(told, one.model.classify(padded([text], 64)))
        of_beginning = one.model.classify(padded([text], BEGINNING))
        assert torch.equal(told, of_beginning) == (len(text) <= BEGINNING)


def test_a_long_text_is_taken_out_again() -> None:
    texts, labels = some(64)
    one, other = (learner("text-analytic", BEGINNING) for _ in range(2))
    one.learn(batch(texts, labels, BEGINNING), update_generator(SEED, 0))
    one.forget(batch(texts[40:], labels[40:], BEGINNING))
    other.learn(batch(texts[:40], labels[:40], BEGINNING), update_generator(SEED, 0))
    assert isinstance(one, AnalyticLearner)
    assert torch.equal(one._model.counts, other._model.counts)
    assert torch.equal(one._sums.gram, other._sums.gram)


def test_parts_of_a_batch_keep_their_texts() -> None:
    texts, labels = some(6)
    all_ = batch(texts, labels, BEGINNING)
    assert all_.whole.keys() == {0, 2, 3, 4}
    for part in (all_.take(slice(1, 4)), all_.rows([1, 2, 3])):
        assert {row: len(text) for row, text in part.whole.items()} == {1: len(texts[2]), 2: len(texts[3])}


def test_auto_reads_all_with_its_head_and_the_first_characters_with_its_network() -> None:
    one, alone = learner("text-auto", BEGINNING), learner("text-analytic", BEGINNING)
    for each in (one, alone):  # no class has enough records for evidence
        taught(each, BEGINNING, 16)
    assert torch.equal(one.model.head.counts, alone.model.counts)
    texts, _ = some(4)
    beginnings = learner("text-auto", BEGINNING, head={**SMALL["text-auto"]["head"], "long_texts": "beginning"})
    taught(beginnings, BEGINNING, 16)
    for name, tensor in one.model.network.state_dict().items():
        assert torch.equal(tensor, beginnings.model.network.state_dict()[name]), name
    assert torch.equal(one.model.classify(texts[0][None]), one.model.head.classify(texts[0][None]))


def test_auto_takes_nothing_out_of_which_it_has_the_first_characters_alone() -> None:
    """What its head learned of a text that is corrected has to be all in the replay memory."""
    one = taught(learner("text-auto", BEGINNING), BEGINNING, 16)
    assert isinstance(one, AutoLearner)
    before = one._head.counts.clone()
    texts, labels = some(16)
    ids = batch(texts, labels, BEGINNING).ids
    for row, text in enumerate(texts[:8]):
        corrected = one.correct(bytes(ids[row].tolist()), "en", update_generator(SEED, 9))
        assert corrected == (len(text) < BEGINNING)
    assert one._head.counts.sum() == before.sum()
