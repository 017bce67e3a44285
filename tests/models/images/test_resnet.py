"""The slim ResNet: the contract, its size against the paper's, a block by hand, accuracy."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.images.resnet import BLUEPRINT, ImageResnet, ImageResnetOptions, ResnetBlock, learner
from models.learner import update_generator
from models.network import seeded
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, digits

SMALL = ImageResnetOptions(width=4, replay_slots=24, replay_draws=4)


class TestContract(LearnerContract):
    @pytest.fixture
    def case(self) -> Case:
        return Case(BLUEPRINT, SMALL, *digits())


def test_it_has_the_size_of_the_slim_resnet_18() -> None:
    network = seeded(lambda: ImageResnet(ImageResnetOptions(), (3, 32, 32), [str(c) for c in range(10)]), SEED, CPU)
    convolutions = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d)]
    assert len([part for part in convolutions if part.kernel_size == (3, 3)]) == 17  # and the head: 18
    assert len(convolutions) == 20
    assert sum(p.numel() for p in network.parameters()) == 1_094_750  # as Lopez-Paz and Ranzato's, batch norm for ours
    assert network.blocks(torch.zeros(1, 3, 32, 32)).shape == (1, 160, 4, 4)


@pytest.mark.parametrize(("before", "stride"), [(8, 1), (4, 2)])
def test_a_block_is_two_convolutions_and_the_way_round_them(before: int, stride: int) -> None:
    block = seeded(lambda: ResnetBlock(before, 8, stride=stride), SEED, CPU)
    x = torch.randn(2, before, 6, 6, generator=torch.Generator().manual_seed(0))
    weights = block.state_dict()
    y = F.group_norm(F.conv2d(x, weights["first.0.weight"], stride=stride, padding=1), 4)
    y = F.group_norm(F.conv2d(y.relu(), weights["second.0.weight"], padding=1), 4)
    around = x
    if before != 8:
        around = F.group_norm(F.conv2d(x, weights["around.0.weight"], stride=stride), 4)
    torch.testing.assert_close(block(x), (y + around).relu())


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 33, 47)])
def test_any_size_and_number_of_channels(shape: tuple[int, ...]) -> None:
    ours = learner(SMALL.model_copy(update={"learning_rate": 4e-3}), shape, SEED, CPU)
    x = torch.randint(256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Case(BLUEPRINT, SMALL, x, ["a", "b"]).batch(0, 2)
    losses = [ours.learn(batch, update_generator(SEED, update)).loss for update in range(16)]
    assert losses[0] == pytest.approx(torch.tensor(2.0).log().item())  # two new classes, a head of zeros
    assert losses[-1] < losses[0] / 2


def test_one_pass_over_the_digits_is_enough() -> None:
    options = ImageResnetOptions(width=8, learning_rate=4e-3, replay_draws=8)
    one = Case(BLUEPRINT, options, *digits(16))
    ours = one.learner()
    for update in range(45):
        ours.learn(one.batch(32 * update, 32), update_generator(SEED, update))
    chosen = ours.model.classify(one.x[1500:]).argmax(1).tolist()  # type: ignore[attr-defined]
    assert sum(ours.model.classes[k] == y for k, y in zip(chosen, one.labels[1500:], strict=True)) / 297 > 0.7
