"""What in a record speaks for a class, against answers that can be written down."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.explaining import WORDS, edges, left_out, log_odds, occlusion, parts


def codes(text: str, size: int = 64) -> Tensor:
    """(L,) int32, as a text input gives it."""
    return torch.tensor([ord(c) for c in text] + [0] * (size - len(text)), dtype=torch.int32)


def of_middle(x: Tensor) -> Tensor:
    """How bright the 4 × 4 pixels in the middle of pictures are, as log-odds of the second class."""
    bright = x[:, 0, 12:16, 12:16].float().mean((1, 2)) / 255  # (B,)
    return torch.stack([torch.zeros(len(x)), 4 * bright], 1).softmax(1)


def of_words(x: Tensor) -> Tensor:
    """Each "yes" adds 2 to the log-odds of the second class, each "no" takes 1."""
    texts = ["".join(map(chr, row[row != 0].tolist())).split() for row in x]
    scores = torch.tensor([2.0 * text.count("yes") - text.count("no") for text in texts])
    return torch.stack([torch.zeros(len(x)), scores], 1).softmax(1)


def test_what_is_looked_at_speaks_and_the_border_does_not() -> None:
    x = torch.zeros(1, 28, 28, dtype=torch.uint8)
    x[:, 10:18, 10:18] = 255
    x[:, 0:2] = 255  # bright, and looked at by nobody
    heat = occlusion(of_middle, x, 1)
    assert heat.shape == (14, 14)
    assert heat[6:8, 6:8].min() > 0
    assert heat[6:8, 6:8].min() == heat.max()
    away = torch.ones(14, 14, dtype=torch.bool)
    away[5:9, 5:9] = False  # what is covered there reaches the middle
    assert not heat[away].any()
    torch.testing.assert_close(occlusion(of_middle, x, 0), -heat)


def test_a_cell_is_worth_what_the_answer_loses_by_it() -> None:
    x = torch.zeros(1, 28, 28, dtype=torch.uint8)
    x[:, 12:16, 12:16] = 255
    heat = occlusion(of_middle, x, 1)
    lost = torch.zeros(14, 14)
    for row in range(14):
        for column in range(14):
            covered = x.clone()
            covered[:, max(0, 2 * row - 2) : 2 * row + 4, max(0, 2 * column - 2) : 2 * column + 4] = 0
            lost[row, column] = 4 * (1 - covered[0, 12:16, 12:16].float().mean() / 255)
    torch.testing.assert_close(heat, lost, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 40), (4, 15, 3), (3, 29, 31)])
def test_pictures_of_any_shape_are_covered_whole(shape: tuple[int, int, int]) -> None:
    x = torch.arange(shape[0] * shape[1] * shape[2]).remainder(256).to(torch.uint8).view(shape)
    sizes: list[int] = []

    def classify(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return torch.full((len(x), 3), 1 / 3)

    heat = occlusion(classify, x, 2)
    assert heat.shape == (min(14, shape[1]), min(14, shape[2]))
    assert not heat.any()
    assert sum(sizes) == heat.numel() + 1
    assert max(sizes) <= 32
    assert (edges(shape[1])[0], edges(shape[1])[-1]) == (0, shape[1])


def test_a_word_is_worth_what_it_adds() -> None:
    x = codes("  yes or no, no  yes")
    assert parts(x) == ["  ", "yes ", "or ", "no, ", "no  ", "yes"]
    expected = torch.tensor([0.0, 2, 0, 0, -1, 2])
    torch.testing.assert_close(left_out(of_words, x, 1), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(left_out(of_words, x, 0), -expected, atol=1e-4, rtol=0)


def test_a_text_of_one_word_and_a_long_one() -> None:
    torch.testing.assert_close(left_out(of_words, codes("yes"), 1), torch.tensor([2.0]), atol=1e-4, rtol=0)
    long = " ".join(["a"] * 5 * WORDS)
    found = parts(codes(long, 1000))
    assert len(found) == WORDS
    assert "".join(found) == long
    assert parts(codes("今日は good")) == ["今", "日", "は ", "good"]


def test_a_class_that_is_certain_has_finite_odds() -> None:
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    found = log_odds(p, 0)
    assert found.isfinite().all()
    assert found[0] > 20
    assert found[1] < -20
    assert found[2] == 0
    assert log_odds(torch.ones(2, 1), 0).isfinite().all()
