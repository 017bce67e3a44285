"""AdamW whose state has names, is complete from the first step on, and follows parameters that grow.

Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2; the arithmetic is torch's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.learner import Rows, copy_into
from models.network import widened

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """Updates the parameters of `module` that require a gradient."""

    def __init__(self, module: nn.Module, *, learning_rate: float, weight_decay: float) -> None:
        self._module = module
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._torch = torch.optim.AdamW(
            self._parameters.values(), lr=learning_rate, weight_decay=weight_decay, fused=True
        )
        for parameter in self._parameters.values():
            self._torch.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
            }

    def step(self) -> None:
        """One step on the gradients, which are gone afterwards."""
        self._torch.step()
        self._torch.zero_grad(set_to_none=True)

    def follow(self) -> None:
        """Takes over parameters that were replaced by ones with more rows; moments of new rows are zero."""
        group = self._torch.param_groups[0]
        for name, former in list(self._parameters.items()):
            parameter = self._module.get_parameter(name)
            if parameter is former:
                continue
            state: dict[str, Any] = self._torch.state.pop(former)
            for moment in MOMENTS:
                state[moment] = widened(state[moment], parameter.shape[0] - former.shape[0])
            self._torch.state[parameter] = state
            self._parameters[name] = parameter
        group["params"] = list(self._parameters.values())

    def capture(self) -> dict[str, Tensor]:
        """optimizer/steps (parameters,), optimizer/<parameter>/exp_avg and exp_avg_sq, shaped like the parameter."""
        return {"optimizer/steps": torch.stack([s["step"] for s in self._states()]), **self._moments()}

    def restore(self, state: Mapping[str, Tensor | Rows]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        steps = torch.zeros(len(self._parameters))
        copy_into({"optimizer/steps": steps, **self._moments()}, state)
        for own, step in zip(self._states(), steps, strict=True):
            own["step"].copy_(step)

    def _states(self) -> list[dict[str, Tensor]]:
        return [self._torch.state[parameter] for parameter in self._parameters.values()]

    def _moments(self) -> dict[str, Tensor]:
        return {
            f"optimizer/{name}/{moment}": self._torch.state[parameter][moment]
            for name, parameter in self._parameters.items()
            for moment in MOMENTS
        }
