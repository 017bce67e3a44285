"""The recurrent text classifier: its bytes against Python's, its pooling against a loop, answers that stand alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.learner import update_generator
from models.texts.gru import BLUEPRINT, END, TextGru, TextGruOptions, learner, symbols
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, texts

SMALL = TextGruOptions(dim=8, hidden=12, replay_slots=24, replay_draws=4)
CASES = {
    "both ways": SMALL,
    "one way, two layers, no memory": SMALL.model_copy(update={"bidirectional": False, "layers": 2, "replay_slots": 0}),
    "averaged": SMALL.model_copy(update={"average": 0.9}),
}
TEXTS = st.lists(st.text(st.characters(min_codepoint=1, codec="utf-8"), max_size=12), min_size=1, max_size=5)


class TestContract(LearnerContract):
    @pytest.fixture(params=list(CASES.values()), ids=list(CASES))
    def case(self, request: pytest.FixtureRequest) -> Case:
        x, labels = texts()
        return Case(BLUEPRINT, request.param, x[:, :9], labels)  # short: every byte is a step


def padded(some: list[str], length: int) -> Tensor:
    return torch.tensor([[ord(c) for c in text] + [0] * (length - len(text)) for text in some], dtype=torch.int32)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(0, 3))
def test_bytes_are_those_of_utf_8(some: list[str], padding: int) -> None:
    found, counts = symbols(padded(some, 12 + padding))
    for text, row, count in zip(some, found.tolist(), counts.tolist(), strict=True):
        assert row[: count - 1] == list(text.encode())
        assert set(row[count - 1 :]) == {END}
    assert found.shape[1] == counts.max()


def trained(**options: object) -> TextGru:
    case = Case(BLUEPRINT, SMALL.model_copy(update=options), *texts())
    network = case.learned(12).model
    assert isinstance(network, TextGru)
    return network


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_features_are_those_of_one_step_after_the_other(bidirectional: bool) -> None:
    """GRU by its equations (as torch numbers the gates: reset, update, new), and attention, for one text."""
    network = trained(bidirectional=bidirectional)
    values = dict(network.gru.named_parameters())
    text = "wo ist 图书馆? 🙂"
    embedded = network.embedding(torch.tensor([*text.encode(), END]))  # (T, dim)
    ways = []
    for suffix, order in (("_l0", 1), ("_l0_reverse", -1))[: 1 + bidirectional]:
        h, found = torch.zeros(12), []
        for x in embedded[::order] if order > 0 else embedded.flip(0):
            gi = values["weight_ih" + suffix] @ x + values["bias_ih" + suffix]
            gh = values["weight_hh" + suffix] @ h + values["bias_hh" + suffix]
            reset, update = (gi + gh)[:24].sigmoid().chunk(2)
            h = (1 - update) * torch.tanh(gi[24:] + reset * gh[24:]) + update * h
            found.append(h)
        ways.append(torch.stack(found[::order]))
    states = torch.cat(ways, 1)  # (T, D)
    keys = torch.tanh(F.linear(states, network.keys.weight, network.keys.bias))
    expected = (keys @ network.query).softmax(0) @ states
    torch.testing.assert_close(network.features(padded([text], 32))[0], expected)
    assert network.query.abs().max() > 0


@pytest.mark.parametrize("bidirectional", [True, False])
def test_an_answer_depends_on_its_own_text_alone(bidirectional: bool) -> None:
    """Up to rounding: a product of matrices may be summed in another order for another number of rows."""
    network = trained(bidirectional=bidirectional, layers=2)
    some = ["", "a", "good morning", "увидимся завтра", "图书馆在哪里 and a long tail of more words", "🙂"]
    together = network.classify(padded(some, 64))
    for row, text in enumerate(some):
        for length in (max(len(text), 1), 64):
            alone = network.classify(padded([text], length))[0]
            torch.testing.assert_close(alone, together[row], rtol=0, atol=2e-6)
    others = network.classify(padded(["something else", *some[1:]], 64))
    torch.testing.assert_close(others[1:], together[1:], rtol=0, atol=2e-6)


def test_weights_come_from_the_seed_and_recurrent_ones_are_orthogonal() -> None:
    network = learner(SMALL, (8,), SEED, CPU).model
    assert isinstance(network, TextGru)
    for gate in network.gru.get_parameter("weight_hh_l0_reverse").chunk(3):
        torch.testing.assert_close(gate @ gate.T, torch.eye(12))
    assert not network.query.any()
    assert 0.8 < network.embedding.weight.std() < 1.2


def test_scripts_are_distinguished() -> None:
    case = Case(BLUEPRINT, SMALL.model_copy(update={"replay_draws": 8}), *texts())
    ours = case.learner()
    for update in range(30):
        ours.learn(case.batch(8 * update), update_generator(SEED, update))
    unseen = {"en": "good library to you", "zh": "非常早上", "ru": "где увидимся", "ar": "صباح جزيلا"}
    p = ours.model.classify(padded(list(unseen.values()), 32))  # type: ignore[attr-defined]
    assert [ours.model.classes[k] for k in p.argmax(1)] == list(unseen)


def test_a_long_text_is_read_in_pieces_each_from_the_first_state_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """So no gradient goes back further than a piece; pieces that are shorter, or those of others, change nothing."""
    network = trained()
    some = ["wo ist 图书馆? 🙂", "", "late", "a rather long text"]
    whole, counts = symbols(padded(some, 20))
    monkeypatch.setattr("models.texts.gru.PIECE", 5)
    states = network.states(whole, counts)
    monkeypatch.undo()
    for text, count in enumerate(counts.tolist()):
        for first in range(0, count, 5):
            piece = whole[text : text + 1, first : min(first + 5, count)]
            alone = network.states(piece, torch.tensor([piece.shape[1]]))
            torch.testing.assert_close(states[text : text + 1, first : first + piece.shape[1]], alone)
