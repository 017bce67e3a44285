"""Our AdamW against torch's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.network import Head, seeded
from models.optimizer import AdamW

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(6, 5)
        self.head = Head(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.dense(x)))
        return y


def gradients(net: Net, step: int) -> None:
    x = torch.randn(7, 6, generator=torch.Generator("cpu").manual_seed(step))
    net(x).square().sum(1).sub(1).abs().mean().backward()


def test_it_steps_as_torchs_own_to_the_last_bit() -> None:
    ours, theirs = seeded(lambda: Net(3), 0, CPU), seeded(lambda: Net(3), 0, CPU)
    for net in (ours, theirs):
        nn.init.eye_(net.head.weight)
    mine = AdamW(ours, learning_rate=0.01, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    for step in range(20):
        gradients(ours, step)
        gradients(theirs, step)
        mine.step()
        reference.step()
        reference.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_growing_keeps_what_was_learned_and_starts_new_rows_at_zero() -> None:
    net = seeded(lambda: Net(2), 0, CPU)
    nn.init.eye_(net.head.weight)
    optimizer = AdamW(net, learning_rate=0.01, weight_decay=0.0)
    gradients(net, 0)
    optimizer.step()
    before = {name: tensor.clone() for name, tensor in (optimizer.capture() | dict(net.state_dict())).items()}
    x = torch.ones(1, 6)
    logits = net(x).detach()

    net.head.grow(2)
    optimizer.follow()
    after = optimizer.capture() | dict(net.state_dict())
    for name, tensor in before.items():
        rows = after[name][: len(tensor)] if tensor.ndim else after[name]
        assert torch.equal(rows, tensor)
    for name in ("head.weight", "head.bias", "optimizer/head.weight/exp_avg", "optimizer/head.bias/exp_avg_sq"):
        assert len(after[name]) == 4
        assert not after[name][2:].any()
    assert torch.equal(net(x).detach()[:, :2], logits)

    nn.init.ones_(net.head.bias)
    gradients(net, 1)
    optimizer.step()
    assert (net.head.weight[2:] != 0).all()
