"""The text generator: the contract, its loss and its steps against plain torch, lanes, drawing, any language."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.capabilities import Sampling
from models.learner import Batch, update_generator
from models.optimizer import AdamW
from models.texts.generator import BLUEPRINT, TextGeneratorLearner, TextGeneratorModel, TextGeneratorOptions, encoded
from models.texts.ngrams import TAIL
from models.texts.utf8 import Utf8, drawn, held_back
from tests.models.contract import SEED, Case, LearnerContract, same, tensors, texts

SMALL = {"hidden": 8, "embedding": 6, "step_bytes": 256, "bptt_bytes": 64, "replay_windows": 2, "history": 512}
OPTIONS = TextGeneratorOptions.model_validate({**SMALL, "slots": 1 << 12})


def case(**options: object) -> Case:
    return Case(BLUEPRINT, OPTIONS.model_validate({**OPTIONS.model_dump(), **options}), *texts(), has_classes=False)


CASES = {
    "lstm": case(),
    "gru, two layers, tied, network alone": case(cell="gru", layers=2, tied=True, slots=0),
    "averaged": case(average=0.9),
}


class TestContract(LearnerContract):
    @pytest.fixture(params=list(CASES.values()), ids=list(CASES))
    def case(self, request: pytest.FixtureRequest) -> Case:
        assert isinstance(request.param, Case)
        return request.param


def learner(**options: object) -> TextGeneratorLearner:
    found = case(**options).learner()
    assert isinstance(found, TextGeneratorLearner)
    return found


def batch(records: list[str], partitions: list[int] | None = None) -> Batch:
    length = max(map(len, records))
    x = torch.tensor([[ord(c) for c in text] + [0] * (length - len(text)) for text in records], dtype=torch.int32)
    origins = torch.tensor([(0, partition, row) for row, partition in enumerate(partitions or [0] * len(records))])
    return Batch(x, [None] * len(records), origins, torch.zeros(len(records), 16, dtype=torch.uint8))


def learned(ours: TextGeneratorLearner, records: list[str], updates: int) -> TextGeneratorModel:
    for update in range(updates):
        ours.learn(batch(records), update_generator(SEED, update))
    return ours.model


def test_the_losses_and_weights_are_those_of_a_plain_loop() -> None:
    """nn.LSTM, cross-entropy, AdamW; each window of eight begins at the state of the one before it."""
    ours = learner(slots=0, replay_windows=0, dropout=0.0, step_bytes=8, bptt_bytes=8, learning_rate=1e-3)
    embedding, cell, out = nn.Embedding(256, 6), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 256)
    modules = nn.ModuleList([embedding, cell, out])
    for module, own in zip(
        modules, (ours.model.network.embedding, ours.model.network.layers[0], ours.model.network.out), strict=True
    ):
        module.load_state_dict(own.state_dict())
    parameters = list(modules.parameters())
    optimizer = AdamW(modules, learning_rate=1e-3, weight_decay=0.0)
    previous, state = 0, (torch.zeros(1, 1, 8), torch.zeros(1, 1, 8))
    for update, records in enumerate((["to be, or", "not"], ["早上好"])):
        data = b"".join(record.encode() + b"\0" for record in records)
        expected = 0.0
        for start in range(0, len(data), 8):
            targets = torch.tensor(list(data[start : start + 8]))
            inputs = torch.cat([torch.tensor([previous]), targets[:-1]])
            h, state = cell(embedding(inputs)[None], state)
            loss = F.cross_entropy(out(h[0]), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            expected += loss.item() * len(targets)
            previous, state = int(targets[-1]), (state[0].detach(), state[1].detach())
        report = ours.learn(batch(records), update_generator(SEED, update))
        assert report.loss * len(records) == pytest.approx(expected, rel=1e-5)
        assert report.metrics["bits_per_byte"] == pytest.approx(expected / math.log(2) / len(data), rel=1e-5)
    torch.testing.assert_close(ours.model.network.out.weight, out.weight)


@pytest.mark.parametrize("options", [{}, {"slots": 0, "step_bytes": 16, "bptt_bytes": 16}])
def test_a_text_that_repeats_is_soon_no_news_and_is_completed(options: dict[str, object]) -> None:
    ours = learner(hidden=32, learning_rate=0.02, dropout=0.0, **options)
    records = ["a rose is a rose is a rose", "早上好，朋友"]
    losses = [ours.learn(batch(records), update_generator(SEED, update)).loss for update in range(60)]
    assert losses[-1] < 0.25 * losses[0]
    greedy = Sampling(temperature=0, max_bytes=60)
    assert "".join(ours.model.complete("早上", 1, greedy)) == "好，朋友"  # and it ended at the marker
    assert ours.model.evaluate(batch(records).x, [None, None]) < 0.25 * losses[0]


def test_how_a_stream_is_batched_changes_nothing_where_steps_are_bytes() -> None:
    """Each step is predicted and learned before the next, so two updates of whole steps are as good as one."""
    records = ["0123456", "abcdefg", "hijklmn", "opqrstu"]  # 8 bytes each with the marker
    one, two = (learner(step_bytes=8, bptt_bytes=8, replay_windows=0, dropout=0.0) for _ in range(2))
    rng = update_generator(SEED, 0)
    together = one.learn(batch(records), rng).loss
    apart = [two.learn(batch(records[start : start + 2]), rng).loss for start in (0, 2)]
    assert together == pytest.approx(sum(apart) / 2, rel=1e-12)
    assert same(one.capture(), two.capture())


def test_each_partition_is_a_lane_of_its_own() -> None:
    ours = learner(slots=0, replay_windows=0, learning_rate=1e-12)  # lanes alone carry something on
    ours.learn(batch(["to be", "the tide", "or not"], [3, 7, 3]), update_generator(SEED, 0))
    state = ours.capture()
    assert state.meta["lanes"] == [[0, 3], [0, 7]]
    network = ours.model.network
    for row, text in enumerate((b"to be\0or not\0", b"the tide\0")):
        inputs = torch.tensor([0, *text[:-1]])
        _, expected = network(inputs[None], network.zeros(1))
        training = tensors(state)
        torch.testing.assert_close(training["lanes/states"][:, :, row : row + 1], expected)
        assert bytes(training["lanes/tails"][row].tolist()) == text.rjust(TAIL, b"\0")


def test_lanes_are_bounded_and_the_silent_one_is_forgotten() -> None:
    ours = learner(lanes=2)
    for update, partition in enumerate([0, 1, 0, 2]):
        ours.learn(batch(["x"], [partition]), update_generator(SEED, update))
    state = ours.capture()
    assert state.meta["lanes"] == [[0, 0], [0, 2]]
    assert [bytes(tail.tolist()).strip(b"\0") for tail in tensors(state)["lanes/tails"]] == [b"x\0x", b"x"]


def test_the_history_is_a_ring_of_the_last_bytes() -> None:
    ours = learner(history=16, bptt_bytes=4)
    stream = b""
    for update, text in enumerate(["abcdefgh", "ijk", "lmnopqrstuvwxyz0123456789", "é"]):
        ours.learn(batch([text]), update_generator(SEED, update))
        stream += text.encode() + b"\0"
    history = tensors(ours.capture())["history"]
    assert bytes(history.roll(-(len(stream) % 16)).tolist()) == stream[-16:]


def test_slots_are_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="power of two"):
        TextGeneratorOptions(slots=1000)


def test_a_record_is_its_utf8_and_a_marker() -> None:
    assert bytes(encoded(batch(["né🙂"]).x[0]).tolist()) == "né🙂".encode() + b"\0"


@pytest.mark.parametrize("slots", [0, 1 << 12])
def test_a_text_is_whole_characters_whatever_is_drawn(slots: int) -> None:
    """A network that has learned nothing draws bytes at random, so nothing but the mask keeps them UTF-8."""
    model = learner(slots=slots).model
    for seed, most in itertools.product(range(4), (1, 2, 3, 20)):
        pieces = list(model.complete("", seed, Sampling(temperature=50.0, max_bytes=most)))
        assert len("".join(pieces).encode()) <= most
        assert all(pieces)
    hot = Sampling(temperature=50.0, max_bytes=30)  # so that what was learned hardly counts
    long = "".join("".join(model.complete("猫", seed, hot)) for seed in range(12))
    assert any(len(c.encode()) == 4 for c in long)
    assert any(len(c.encode()) == 3 for c in long)


def test_the_distribution_of_the_next_byte_is_the_one_that_is_evaluated() -> None:
    """Over all bytes it sums to one, and along a text its logarithms add up to the loss."""
    model = learned(learner(), ["good morning", "good evening"], 12)
    stream, total = torch.zeros(TAIL, dtype=torch.uint8), 0.0
    for length, byte in enumerate(b"good m\0", start=1):
        with torch.no_grad():
            logits, _ = model.network(stream[-length:].to(torch.int64)[None], model.network.zeros(1))
        log_p = model._next(stream[-TAIL:], F.log_softmax(logits[0, -1:], 1))
        assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
        total -= log_p[byte].item()
        stream = torch.cat([stream, torch.tensor([byte], dtype=torch.uint8)])
    assert model.evaluate(batch(["good m"]).x, [None]) == pytest.approx(total, rel=1e-4)


def test_the_same_seed_gives_the_same_text_and_another_one_another() -> None:
    model = learned(learner(), ["good morning", "where is the library?"], 3)
    first, again, other = ("".join(model.complete("wh", seed, Sampling(max_bytes=40))) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_it_ends_before_the_stop_text_wherever_that_is_cut() -> None:
    ours = learner(hidden=32, learning_rate=0.02, dropout=0.0)
    model = learned(ours, ["say: one two three four"], 60)
    greedy = Sampling(temperature=0, max_bytes=60)
    whole = "".join(model.complete("say:", 0, greedy))
    assert whole == " one two three four"
    for stop in ("three", " t", "our", "x", "four!"):
        pieces = list(model.complete("say:", 0, Sampling(temperature=0, max_bytes=60, stop=stop)))
        assert "".join(pieces) == whole.split(stop)[0]
        assert len(pieces) >= 2  # as they are drawn


def test_held_back_is_what_may_still_become_the_stop_text() -> None:
    for text, stop, expected in (
        ("ab", "abc", 2),
        ("xaba", "abac", 3),
        ("x", "abc", 0),
        ("ab", None, 0),
        ("a", "a", 0),
    ):
        assert held_back(text, stop) == expected


def test_every_allowed_byte_is_one_that_python_decodes() -> None:
    """Python's own strict decoder is the oracle: for every prefix of a character, which bytes may follow?"""
    for lead in range(256):
        assert bool(Utf8().allowed(4)[lead]) == _starts(bytes([lead]))
    for lead in (0xC2, 0xDF, 0xE0, 0xE4, 0xED, 0xEF, 0xF0, 0xF1, 0xF4):
        state = Utf8()
        state.take(lead)
        prefix = bytes([lead])
        while not state.whole:
            mask = state.allowed(1)
            assert [bool(mask[byte]) for byte in range(256)] == [_starts(prefix + bytes([b])) for b in range(256)]
            byte = int(mask.nonzero()[-1])
            state.take(byte)
            prefix += bytes([byte])
        assert len(prefix.decode()) == 1


def _starts(data: bytes) -> bool:
    """Whether more bytes can make one character of these."""
    for tail in (
        b"",
        b"\x80",
        b"\xbf",
        b"\x90",
        b"\x80\x80",
        b"\xbf\xbf",
        b"\x90\x80",
        b"\x80\x80\x80",
        b"\x90\x80\x80",
        b"\xa0\x80",
    ):
        try:
            if len((data + tail).decode()) == 1:
                return True
        except UnicodeDecodeError:
            continue
    return False


def test_room_that_is_too_small_for_a_character_forbids_its_first_byte() -> None:
    for room, lead in ((1, 0xC3), (2, 0xE4), (3, 0xF0)):
        assert not Utf8().allowed(room)[lead]
        assert Utf8().allowed(room + 1)[lead]


def test_drawing_follows_the_distribution_and_its_limits() -> None:
    p = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    log_p = torch.full((256,), -math.inf, dtype=torch.float64)
    log_p[10:14] = p.log()
    generator = torch.Generator().manual_seed(SEED)

    def shares(sampling: Sampling) -> torch.Tensor:
        draws = torch.tensor([drawn(log_p, sampling, generator) for _ in range(1500)])
        return torch.bincount(draws, minlength=14)[10:14] / len(draws)

    for sampling, expected in (
        (Sampling(), p),
        (Sampling(temperature=0.5), p.square() / p.square().sum()),
        (Sampling(top_k=2), torch.tensor([2 / 3, 1 / 3, 0, 0])),
        (Sampling(top_p=0.8), torch.tensor([0.5, 0.25, 0.15, 0.0]) / 0.9),
        (Sampling(temperature=0), torch.tensor([1.0, 0, 0, 0])),
        (Sampling(temperature=5e-324), torch.tensor([1.0, 0, 0, 0])),
        (Sampling(temperature=1e-300), torch.tensor([1.0, 0, 0, 0])),
    ):
        torch.testing.assert_close(shares(sampling), expected.float(), atol=0.04, rtol=0)


def test_dropout_draws_from_the_update_alone() -> None:
    one, again, two = (learner(dropout=0.5, replay_windows=0) for _ in range(3))
    for ours, seed in ((one, 1), (again, 1), (two, 2)):
        for update in range(2):  # the output begins at zero, so the first step changes nothing below it
            ours.learn(batch(["to be, or not to be, that is the question"]), update_generator(seed, update))
    assert same(one.capture(), again.capture())
    assert not torch.equal(one.model.network.embedding.weight, two.model.network.embedding.weight)


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="cell"):
        TextGeneratorOptions.model_validate({"cell": "rnn"})
