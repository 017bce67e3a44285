"""AdamW whose state has names, is complete from the first step on, and follows parameters that grow.

Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2, by torch's fused kernel: the one
behind `torch.optim.AdamW(fused=True)`, to the same bits. That class itself is not used: it keeps its state under
numbers, creates it late, and importing what it needs costs a starting worker seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.learner import Rows, copy_into
from models.network import widened

BETAS, EPSILON = (0.9, 0.999), 1e-8


class AdamW:
    """Updates the parameters of `module` that require a gradient."""

    def __init__(
        self, module: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float] = BETAS
    ) -> None:
        self._module = module
        self._betas = betas
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._exp_avg = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._exp_avg_sq = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._step = torch.zeros((), dtype=torch.float32, device=next(iter(self._parameters.values())).device)

    @torch.no_grad()
    def step(self, rate_factor: float = 1.0) -> None:
        """One step on the gradients, which are gone afterwards. A parameter without a gradient stays as it is.

        Args:
            rate_factor: of the learning rate, for this step.
        """
        self._step += 1
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        names = list(gradients)
        torch._fused_adamw_(
            [self._parameters[name] for name in names],
            list(gradients.values()),
            [self._exp_avg[name] for name in names],
            [self._exp_avg_sq[name] for name in names],
            [],
            [self._step] * len(names),
            lr=rate_factor * self._learning_rate,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self._weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )
        for name in names:
            self._parameters[name].grad = None

    def follow(self) -> None:
        """Follows parameters that were replaced by ones with more rows. Moments of a new row start at zero."""
        for name, former in self._parameters.items():
            parameter = self._parameters[name] = self._module.get_parameter(name)
            for moments in (self._exp_avg, self._exp_avg_sq):
                moments[name] = widened(moments[name], parameter.shape[0] - former.shape[0])

    def capture(self) -> dict[str, Tensor]:
        """optimizer/step (), optimizer/<parameter>/exp_avg and exp_avg_sq, shaped like the parameter."""
        moments = {"exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq}
        named = {f"optimizer/{name}/{key}": each[name] for name in self._parameters for key, each in moments.items()}
        return {"optimizer/step": self._step, **named}

    def restore(self, state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        copy_into(self.capture(), state)
