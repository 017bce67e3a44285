"""What the neural learners share: weights from a generator of their own, pictures as floats, rows that grow."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.learner import M, Of, module_on


def seeded(build: Callable[[], M], seed: int, device: torch.device) -> M:
    """A module with weights that are a function of the seed: He-normal matrices, zero biases, norms of one.

    Numbers are drawn on the CPU, so that they are the same on every device. Parameters of other kinds of module are
    zero (He et al. 2015, "Delving deep into rectifiers", eq. 10, for the variance 2 / fan-in).
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    module = module_on(build, device)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if isinstance(part, nn.GroupNorm | nn.LayerNorm) and name == "weight":
                    parameter.fill_(1.0)
                elif isinstance(part, nn.Conv2d | nn.Linear) and name == "weight":
                    std = math.sqrt(2 / parameter[0].numel())
                    parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
                else:
                    parameter.zero_()
    return module


def served(
    network: Callable[[Of, tuple[int, ...], Sequence[str]], M],
) -> Callable[[Of, tuple[int, ...], Mapping[str, Any]], M]:
    """A blueprint's `model`, of a network of (options, shape, class names)."""

    def model(options: Of, shape: tuple[int, ...], meta: Mapping[str, Any]) -> M:
        return module_on(lambda: network(options, shape, meta["classes"]), torch.device("cpu")).eval()

    return model


def root(x: Tensor) -> Tensor:
    """√x, rounded to the nearest: the last bit of MKL's, which torch takes, depends on the processor's maker."""
    return x.double().sqrt().to(x) if x.device.type == "cpu" else x.sqrt()


def pixels(x: Tensor) -> Tensor:
    """x (B, C, H, W) uint8 → float32 in [0, 1]."""
    return x.to(torch.float32).mul_(1 / 255)


def widened(rows: Tensor, count: int) -> Tensor:
    """`count` more rows of zeros below `rows`."""
    return torch.cat([rows, rows.new_zeros(count, *rows.shape[1:])])


class Normed(nn.Sequential):
    """Convolution and norm; the norm's offset would make a bias of the convolution idle."""

    def __init__(self, before: int, after: int, groups: int, *, kernel: int = 3, stride: int = 1) -> None:
        convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        super().__init__(convolution, nn.GroupNorm(groups, after))


class Residual(nn.Sequential):
    """Parts one after the other; what comes out is added to what came in."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__(OrderedDict(parts))

    def forward(self, maps: Tensor) -> Tensor:
        update: Tensor = super().forward(maps)  # type: ignore[no-untyped-call]
        return maps + update


class Head(nn.Module):
    """A linear layer with one row a class; a new class is a new row of zeros, which changes no other logit."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        self.bias = nn.Parameter(torch.empty(classes))

    def forward(self, features: Tensor) -> Tensor:  # (B, D) → (B, K)
        return nn.functional.linear(features, self.weight, self.bias)

    def grow(self, classes: int) -> None:
        """Adds as many classes."""
        with torch.no_grad():
            self.weight = nn.Parameter(widened(self.weight, classes))
            self.bias = nn.Parameter(widened(self.bias, classes))
