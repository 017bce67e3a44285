"""Which learned records a record resembles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.nearest import COPY, distances, memories, spacing


class Corner:
    """Looks at one pixel alone."""

    classes = ("dark", "bright")

    def features(self, x: Tensor) -> Tensor:
        return x[:, 0, :1, 0].float()


class Draws(Corner):
    """Compares drawings by their pixels, whatever it makes of pictures."""

    def latents(self, seeds: object) -> None: ...

    def draw(self, z: object, labels: object) -> None: ...

    def generate(self, seeds: object, labels: object) -> None: ...


def kept() -> Tensor:
    """100 pictures of noise."""
    return torch.randint(256, (100, 1, 4, 4), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def test_a_learned_record_is_nearest_to_itself() -> None:
    for model in (Corner(), Draws(), object()):
        for row in (0, 63, 99):
            far = distances(model, kept()[row : row + 1], kept())
            assert far[row] == 0


def test_distances_are_of_what_the_model_sees() -> None:
    x = kept()[:1]
    expected = (kept()[:, 0, 0, 0].float() - x[0, 0, 0, 0].float()).abs()
    expected[0] = 0
    assert torch.equal(distances(Corner(), x, kept()), expected)
    pixels = ((kept().float() - x.float()) / 255).square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(distances(Draws(), x, kept()), pixels)


def test_kept_features_are_compared_with_those_of_the_record() -> None:
    x = torch.full((1, 1, 4, 4), 7, dtype=torch.uint8)
    assert torch.equal(distances(Corner(), x, torch.tensor([[7.0], [10.0]])), torch.tensor([0.0, 3.0]))
    with pytest.raises(ValueError, match="2 features of each record are kept, and the model has 1"):
        distances(Corner(), x, torch.zeros(3, 2))


def test_a_copy_differs_from_a_new_picture() -> None:
    """Of noise every picture is as far from the next as from any other, so that only a copy is near."""
    records = kept()
    near = records[5:6].clone()
    near[0, 0, 0, 0] ^= 3
    new = 255 - records[5:6].roll(1, 3)
    for x, is_copy in ((records[5:6], True), (near, True), (new, False)):
        ordered, _ = distances(Draws(), x, records).sort()
        usual = spacing(ordered)
        assert usual is not None
        assert (ordered[0].item() < COPY * usual) == is_copy
    assert spacing(torch.tensor([1.0])) is None


def test_memories_are_found_in_what_a_learner_tells() -> None:
    assert memories({"memory": {"size": 3}}) == {"memory/": 3}
    assert memories({"memory": {"records": {"size": 4}, "dreams": {"classes": 2}}}) == {"memory/": 4}
    auto = {"head": {}, "network": {"memory": {"size": 5}}, "evidence": {"size": 2}}
    assert memories(auto) == {"network/memory/": 5, "evidence/": 2}
    for none in ({}, {"memory": {"size": 0}}, {"memory": 7}, {"memory": {"size": "9"}}, {"evidence": None}):
        assert memories(none) == {}
