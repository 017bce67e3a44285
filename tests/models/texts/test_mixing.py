"""N-grams and mixing against loops over single bits, and the tree of bits against plain sums."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.texts.mixing import INPUTS, RUN, SLOWING, Mixer, byte_log_probabilities, nats, tree_logits
from models.texts.ngrams import CONTEXTS, HISTORIES, LONGEST, MOST, ORDERS, TAIL, Histories, Ngrams, contexts, nodes_of

TEXT = "The cat sat; the CAT sat: don't, 猫 sat. The cat's hat sat? ".encode()


def stream(data: bytes) -> Tensor:
    """The bytes after a tail of zeros."""
    return torch.tensor([0] * TAIL + list(data), dtype=torch.uint8)


def partition(values: list[object]) -> list[int]:
    """The number of the first equal value, for each"""
    return [values.index(value) for value in values]


def test_contexts_are_equal_where_what_went_before_is() -> None:
    """Strings cut out of the text by slices and a regular expression are the oracle."""
    found = contexts(stream(TEXT))
    assert found.shape == (len(TEXT), CONTEXTS)
    padded = bytes(TAIL) + TEXT
    expected: list[list[object]] = [[None] * len(TEXT)]
    for order in ORDERS:
        expected.append([padded[end - order : end] for end in range(TAIL, len(padded))])
    words: list[object] = []
    pairs: list[object] = []
    for end in range(TAIL, len(padded)):
        match = re.search(rb"(?:([a-z'\x80-\xff]+)[^a-z'\x80-\xff]+)?([a-z'\x80-\xff]*)\Z", padded[:end].lower())
        assert match
        words.append(match[2])
        pairs.append((match[1] or b"", match[2]))
    for column, values in zip(found.T, [*expected, words, pairs], strict=True):
        assert partition(column.tolist()) == partition(values)


def test_contexts_do_not_look_at_the_byte_itself_nor_depend_on_where_they_are_cut() -> None:
    whole = contexts(stream(TEXT))
    other = stream(TEXT)
    other[-1] = 200
    assert torch.equal(contexts(other)[: len(TEXT)], whole)
    assert torch.equal(contexts(stream(TEXT)[30:]), whole[30:])


def test_nodes_lead_to_the_byte() -> None:
    nodes, bits = nodes_of(torch.tensor([0b10110010], dtype=torch.uint8))
    assert [format(node, "b") for node in nodes[0].tolist()] == ["10110010"[:n].rjust(n + 1, "1") for n in range(8)]
    assert bits[0].tolist() == [1, 0, 1, 1, 0, 0, 1, 0]


def fallen(count: int) -> int:
    return count if count <= 2 else next(2 + n for n, most in enumerate((3, 5, 8, 16, 1000)) if count <= most)


def test_a_piece_is_learned_as_if_its_bits_came_one_by_one() -> None:
    """A dictionary and a loop are the oracle, over two pieces; the table has room for all."""
    ngrams = Ngrams(1 << 18)
    slots: dict[tuple[int, int, int], tuple[int, int, int, float, int]] = {}
    tail = stream(b"")
    for piece in (TEXT[:50], TEXT[50:]):
        data = torch.tensor(list(piece), dtype=torch.uint8)
        tail = torch.cat([tail[-TAIL:], data])
        found = contexts(tail)
        seen, written = ngrams.learn(found, data)
        nodes, bits = nodes_of(data)
        assert written.tolist() == sorted(set(written.tolist()))
        for row in range(len(data)):
            for j in range(8):
                for k in range(CONTEXTS):
                    key = (k, int(found[row, k]), int(nodes[row, j]))
                    zeros, ones, last, p, n = slots.get(key, (0, 0, 0, 0.5, 0))
                    at = 8 * row + j
                    assert seen.history[at, k] == 2 * (zeros * (MOST + 1) + ones) + last
                    assert seen.p[at, k].item() == pytest.approx(p, abs=1e-4)  # 16 bits between pieces
                    assert seen.n[at, k] == n
                    bit = int(bits[row, j])
                    counts = (fallen(zeros), min(ones + 1, MOST)) if bit else (min(zeros + 1, MOST), fallen(ones))
                    slots[key] = (*counts, bit, p + (bit - p) / min(n + 1.5, LONGEST), min(n + 1, int(LONGEST)))


def test_looking_gives_what_was_learned_and_changes_nothing() -> None:
    ngrams = Ngrams(1 << 16)
    data, found = stream(TEXT)[TAIL:], contexts(stream(TEXT))
    assert not ngrams.look(found, nodes_of(data)[0]).n.any()
    ngrams.learn(found, data)
    before = ngrams.table.clone()
    seen = ngrams.look(found, nodes_of(data)[0])
    assert (seen.n >= 1).float().mean() > 0.95  # all but the few that lost their slot
    assert torch.equal(ngrams.table, before)
    again, _ = ngrams.learn(found[:1], data[:1])
    for one, other in zip(again, seen, strict=True):
        assert torch.equal(one, other[:8])


def test_a_small_table_is_overwritten_and_a_check_keeps_strangers_apart() -> None:
    ngrams = Ngrams(64)
    data, found = stream(TEXT)[TAIL:], contexts(stream(TEXT))
    for _ in range(3):
        _, written = ngrams.learn(found, data)
        assert len(written) <= 64
    seen = ngrams.look(found, nodes_of(data)[0])
    assert (seen.n == 0).float().mean() > 0.8  # slots that belong to others say nothing
    assert ngrams.table.shape == (64, 4)


def random_piece(bits: int, seed: int = 0) -> tuple[Histories, Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    n = torch.randint(0, 5, (bits, CONTEXTS), generator=rng)
    seen = Histories(
        torch.randint(0, HISTORIES, (bits, CONTEXTS), generator=rng) * (n > 0),
        torch.rand(bits, CONTEXTS, generator=rng),
        n.to(torch.float32),
    )
    before = torch.randint(0, 256, (bits, 2), generator=rng)
    nodes = torch.randint(1, 256, (bits,), generator=rng)
    return seen, torch.randn(bits, generator=rng), before, nodes, torch.randint(0, 2, (bits,), generator=rng)


def test_the_weights_follow_the_gradient_of_the_coding_cost() -> None:
    """One run: autograd on what every set of weights and the last one would pay is the oracle."""
    mixer = Mixer(0.01, 0.002)
    seen, logits, before, nodes, bits = random_piece(RUN)
    used, inputs, selected = mixer._inputs(seen, logits, before, nodes)
    inputs[:, :CONTEXTS] *= torch.logit(mixer.shares[used], eps=1e-4)
    weights, last = mixer.weights.clone().requires_grad_(), mixer.last.clone().requires_grad_()
    said = torch.einsum("tsi,ti->ts", weights[selected], inputs)
    target = bits.to(torch.float32)
    mixed = (last[nodes] * said.detach()).sum(1)
    costs = F.binary_cross_entropy_with_logits(said, target[:, None].expand_as(said), reduction="sum")
    final = F.binary_cross_entropy_with_logits(mixed, target, reduction="none")
    (costs + final.sum()).backward()  # type: ignore[no-untyped-call]
    assert weights.grad is not None
    assert last.grad is not None

    q = mixer.learn(seen, logits, before, nodes, bits)
    torch.testing.assert_close(nats(q, bits), final.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mixer.weights, weights.detach() - 0.01 * weights.grad)
    torch.testing.assert_close(mixer.last, last.detach() - 0.002 * last.grad)
    assert inputs.shape == (RUN, INPUTS)


def test_predictions_are_from_before_the_run_and_learning_gives_the_same_ones() -> None:
    mixer = Mixer(0.02, 0.002)
    for start in range(3):
        seen, logits, before, nodes, bits = random_piece(RUN, start)
        expected = mixer.probabilities(seen, logits, before, nodes)
        assert torch.equal(mixer.learn(seen, logits, before, nodes, bits), expected)
    seen, logits, before, nodes, bits = random_piece(2 * RUN, 3)
    expected = mixer.probabilities(seen, logits, before, nodes)
    q = mixer.learn(seen, logits, before, nodes, bits)
    torch.testing.assert_close(q[:RUN], expected[:RUN])
    assert (q[RUN:] - expected[RUN:]).abs().max() > 1e-3


def test_the_rate_falls_with_what_was_learned_to_the_least() -> None:
    steps = []
    for learned in (0, 15 * SLOWING, 10**9):
        mixer = Mixer(0.02, 0.004)
        before = mixer.weights.clone()
        mixer.learned.fill_(learned)
        mixer.learn(*random_piece(RUN))
        assert mixer.learned.item() == learned + RUN
        steps.append((mixer.weights - before).norm().item())
    assert steps[1] == pytest.approx(steps[0] / 4, rel=1e-3)
    assert steps[2] == pytest.approx(steps[0] / 5, rel=1e-3)


def test_maps_learn_what_follows_a_history() -> None:
    mixer = Mixer(0.01, 0.002)
    seen, logits, before, nodes, _ = random_piece(RUN)
    seen = seen._replace(history=torch.full_like(seen.history, 7))
    rate = 0.25
    for step in range(200):
        rng = torch.Generator().manual_seed(step)
        mixer.learn(seen, logits, before, nodes, (torch.rand(RUN, generator=rng) < rate).to(torch.int64))
    for k in range(CONTEXTS):
        assert mixer.shares[k * HISTORIES + 7].item() == pytest.approx(rate, abs=0.05)


def test_mixing_is_better_than_what_is_mixed() -> None:
    """The network's logits are noise here and the n-grams know: the text, seen again, costs next to nothing."""
    ngrams, mixer = Ngrams(1 << 16), Mixer(0.01, 0.002)
    data, found = stream(TEXT)[TAIL:], contexts(stream(TEXT))
    nodes, bits = nodes_of(data)
    wide = stream(TEXT).to(torch.int64)
    before = torch.stack([wide[TAIL - 1 : -1], wide[TAIL - 2 : -2]], 1).repeat_interleave(8, 0)
    costs = []
    for number in range(8):
        noise = torch.randn(bits.numel(), generator=torch.Generator().manual_seed(number))
        seen, _ = ngrams.learn(found, data)
        q = mixer.learn(seen, noise, before, nodes.flatten(), bits.flatten())
        costs.append(nats(q, bits.flatten()).sum().item() / math.log(2) / len(data))
    assert costs[0] < 8.5
    assert costs[-1] < 0.4


def test_the_tree_of_bits_is_the_distribution_of_bytes() -> None:
    log_p = torch.randn(5, 256, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    logits = tree_logits(log_p)
    p = log_p.exp()
    for node in (1, 2, 3, 77, 128, 255):
        width = 256 >> (node.bit_length() - 1)
        low = node * width - 256
        half = low + width // 2
        expected = p[:, half : low + width].sum(1).log() - p[:, low:half].sum(1).log()
        torch.testing.assert_close(logits[:, node], expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(byte_log_probabilities(logits[0].sigmoid()).float(), log_p[0], atol=1e-3, rtol=1e-3)
