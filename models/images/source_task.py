"""What a backbone was trained for, kept beside a new task: some of its records, and the head that it had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.images.backbone import CPU, Backbone, head_name, torchvision_network
from models.learner import Source, module_on
from models.network import pixels


class SourceTask:
    """Records of the source and the source's own head. Neither ever changes.

    Args:
        description: JSON of `describe`.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._description = dict(description)
        self._head = module_on(lambda: _head(description), CPU).eval().requires_grad_(False)
        self._records = {"x": torch.zeros(description["shape"], dtype=torch.uint8)}
        self._records["y"] = torch.zeros(description["shape"][0], dtype=torch.int64)
        # Heads of ConvNeXt and MaxViT begin with maps; the features are their means.
        self._takes_maps = any(isinstance(module, nn.Flatten) for module in self._head.modules())

    @classmethod
    def of_sources(cls, architecture: str | None, slots: int, sources: Mapping[str, Source]) -> SourceTask:
        """At most `slots` records, evenly spaced, and the head beside the backbone's weights.

        Args:
            architecture: torchvision's name, with `weights` among the sources; None: `source` is a version.

        Raises:
            ValueError: a version without a replay memory; records that are no pictures with classes of the head.
        """
        if "source_records" in sources:
            records = sources["source_records"].tensors
            x, y = records.get("x"), records.get("y")
        else:
            training, size = sources["source"].training, sources["source"].meta.get("memory", {}).get("size", 0)
            x, y = training.get("memory/x"), training.get("memory/y")
            if x is None or y is None or not size:
                raise ValueError("the source has no replay memory in this version. Name another, or source_records.")
            x, y = x[:size], y[:size]
        if x is None or y is None or x.dim() != 4 or x.dtype != torch.uint8 or y.shape != x.shape[:1]:
            raise ValueError("source_records must hold x (N, C, H, W) uint8 and y (N,) int64, the class numbers.")
        weights = _head_weights(architecture, sources)
        classes, width = weights[list(weights)[-2]].shape[:2]
        if not 0 <= int(y.min()) <= int(y.max()) < classes:
            raise ValueError(f"source_records have classes from {y.min()} to {y.max()}, the source's head {classes}.")
        rows = torch.linspace(0, len(x) - 1, min(len(x), slots)).round().long()
        shape = [len(rows), *x.shape[1:]]
        task = cls({"shape": shape, "architecture": architecture, "classes": classes, "width": width})
        task._head.load_state_dict(weights)
        task._records = {"x": x[rows].clone(), "y": y[rows].to(torch.int64)}
        return task

    def describe(self) -> dict[str, Any]:
        """All but the tensors, JSON."""
        return dict(self._description)

    def tensors(self) -> dict[str, Tensor]:
        """source/x, source/y and those of the head."""
        head = {f"source/head.{name}": tensor for name, tensor in self._head.state_dict().items()}
        return {**{f"source/{name}": tensor for name, tensor in self._records.items()}, **head}

    def to(self, device: torch.device) -> SourceTask:
        """Moves its tensors to a device, in place → itself"""
        self._head.to(device)
        self._records = {name: tensor.to(device) for name, tensor in self._records.items()}
        return self

    def loss(self, backbone: Backbone, draws: int, rng: torch.Generator) -> Tensor:
        """Mean cross-entropy of so many of the records, drawn uniformly with replacement."""
        x, y = self._records["x"], self._records["y"]
        rows = torch.randint(len(x), (draws,), generator=rng).to(x.device)
        features = backbone(pixels(x[rows]))
        logits = self._head(features[..., None, None] if self._takes_maps else features)
        return F.cross_entropy(logits, y[rows])


def _head(description: Mapping[str, Any]) -> nn.Module:
    if description["architecture"] is None:
        return nn.Linear(description["width"], description["classes"])
    network = torchvision_network(description["architecture"], num_classes=description["classes"])
    return network.get_submodule(head_name(network))


def _head_weights(architecture: str | None, sources: Mapping[str, Source]) -> dict[str, Tensor]:
    """Of the head in the weights file, or in the version.

    Raises:
        ValueError: there is none, or one that takes maps which the backbone does not give.
    """
    if architecture is None:
        return {name: sources["source"].tensors[f"head.{name}"] for name in ("weight", "bias")}
    network = module_on(lambda: torchvision_network(architecture), CPU)
    prefix = f"{head_name(network)}."
    if any(isinstance(module, nn.Conv2d) for module in network.get_submodule(prefix[:-1]).modules()):
        raise ValueError(f"source_loss = 'sample' is not for the head of {architecture}. Use 'l2-sp'.")
    tensors = sources["weights"].tensors
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not found:
        raise ValueError(f"the weights have no head ({prefix}*), and source_loss = 'sample' needs it.")
    return found
