"""Image classifier on a network that was trained elsewhere: new top layers, and what becomes of the old ones.

    f(x) = head(top(LayerNorm(φ(x)))),   top: for each of `top_layers` dense → ReLU

φ is a `Backbone`: its features, or the maps of the named `layers` on a grid of at most `grid` × `grid` places. It
stays as it is, or it learns from a named layer on, or one more block from the top every so many updates (Howard and
Ruder 2018, "Universal language model fine-tuning", 3.3: gradual unfreezing), with a learning rate of its own. What it
knew stays in the loss:

    L = L_source + λ · L_target,   L_target = mean CE(incoming) + mean CE(replayed)

with L_source = mean CE of the source's own head h on records of the source, h(φ(x_s)) and y_s ("sample"), or
½ ‖w - w₀‖², the pull of what learns of φ to the weights w₀ that it came with ("l2-sp"; Li et al. 2018, "Explicit
inductive bias for transfer learning with convolutional networks", eq. 2), or nothing ("none").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.classifier import ClassifierLearner, ClassifierNetwork, OwnUpdate
from models.images.backbone import CPU, Backbone, BackboneOptions, head_name, references, resized, torchvision_network
from models.images.warping import WarpedOptions
from models.learner import NOTHING, Blueprint, Frozen, Reference, Source, Start, State, copy_into, module_on, structural
from models.network import pixels, seeded
from models.optimizer import AdamW

PREFIX = "backbone.network."  # of the backbone's weights in the state dict
FOREVER = 1 << 62  # updates
BLOCKS = 4  # a network with fewer children than this is opened further, to be unfrozen block by block


class ImageTransferOptions(BackboneOptions, WarpedOptions):
    """`learning_rate` and `weight_decay` are those of the top; the backbone's weights are never decayed."""

    top_layers: tuple[int, ...] = structural((256,))
    grid: int = structural(4, ge=1)  # places a side of each of the `layers`, where there are any
    backbone_learning_rate: float = Field(1e-4, gt=0)
    unfreeze_from: str | None = structural(None)  # a module of the backbone: it and what follows it learn
    unfreeze_every_updates: int = structural(0, ge=0)  # one more block from the top learns; 0: none ever
    source_loss: Literal["none", "sample", "l2-sp"] = structural("none")
    source_records: str | None = structural(None)  # a .safetensors file with x (N, C, H, W) uint8 and y (N,) int64
    source_slots: int = structural(500, ge=1)  # of the source's records are kept
    source_draws: int = Field(16, ge=1)  # of them in each update
    target_weight: float = Field(1.0, gt=0)  # λ

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        thaws = self.unfreeze_from is not None or self.unfreeze_every_updates > 0
        if self.unfreeze_from is not None and self.unfreeze_every_updates:
            raise ValueError("unfreeze_from and unfreeze_every_updates are two ways to unfreeze. Choose one.")
        if self.source_loss != "none" and not thaws:
            raise ValueError(f"source_loss = {self.source_loss!r} is a constant while nothing is unfrozen. Unfreeze.")
        if self.weights is not None and self.source_loss == "sample" and self.source_records is None:
            raise ValueError("source_loss = 'sample' needs source_records beside weights: they hold no pictures.")
        if self.source_records is not None and self.source_loss != "sample":
            raise ValueError("source_records are for source_loss = 'sample'.")
        return self


class ImageTransfer(ClassifierNetwork):
    """The network. Whoever builds it sets `backbone`, whose weights come from elsewhere."""

    backbone: Backbone

    def __init__(self, options: ImageTransferOptions, size: int, classes: Sequence[str]) -> None:
        widths = [size, *options.top_layers]
        super().__init__(widths[-1], classes)
        dense: list[nn.Module] = [nn.LayerNorm(size)]
        for before, after in pairwise(widths):
            dense += [nn.Linear(before, after), nn.ReLU()]
        self.top = nn.Sequential(*dense)
        self.grid = options.grid if options.layers else None

    def features(self, x: Tensor) -> Tensor:
        return self.top(features_of(self.backbone, pixels(x), self.grid))  # type: ignore[no-any-return]


def features_of(backbone: Backbone, pictures: Tensor, grid: int | None) -> Tensor:
    """pictures (B, C, H, W) → features (B, D) of a backbone; with `grid`, its maps at most that wide and high, flat."""
    if grid is None:
        return backbone(pictures)  # type: ignore[no-any-return]
    maps = backbone.maps(pictures)
    return torch.cat([resized(m, min(grid, m.shape[2]), min(grid, m.shape[3])).flatten(1) for m in maps], 1)


def width(backbone: Backbone, options: ImageTransferOptions, shape: tuple[int, ...]) -> int:
    """D, the number of features that a backbone gives of a picture of this shape (C, H, W)."""
    blank = torch.zeros(1, *shape, device=backbone.mean.device)
    with torch.no_grad():
        return features_of(backbone, blank, options.grid if options.layers else None).shape[1]


class FineTuning(OwnUpdate):
    """What of the backbone learns, and from when on: with optimisers of its own, and with the source in the loss.

    Args:
        network: the one that learns, with all of its backbone frozen.
        served: the one that is served: an average, or the same.
        task: the source's, where its loss is a sample's.
    """

    def __init__(
        self, options: ImageTransferOptions, network: ImageTransfer, served: ImageTransfer, task: SourceTask | None
    ) -> None:
        self._options, self._network, self._served, self._task = options, network, served, task
        self._updates = 0
        self._thawed: dict[str, list[str]] = {}  # block → its entries in the state dict of the backbone's network
        self._optimizers: dict[str, AdamW] = {}  # block → of its weights
        self._start: dict[str, Tensor] = {}  # w₀ of all that will ever learn, by name
        if options.source_loss == "l2-sp":
            backbone = network.backbone.network
            ever = {entry for entries in due(options, backbone, FOREVER).values() for entry in entries}
            self._start = {name: p.detach().clone() for name, p in backbone.named_parameters() if name in ever}
        self._frozen = {"backbone": Frozen(), "start": Frozen(), "source": Frozen()}
        self._thaw()

    def loss(self, loss: Tensor, rng: torch.Generator) -> Tensor:
        loss = self._options.target_weight * loss
        if self._task is not None:
            loss = loss + self._task.loss(self._network.backbone, self._options.source_draws, rng)
        for name, start in self._start.items():
            weight = self._network.backbone.network.get_parameter(name)
            if weight.requires_grad:
                loss = loss + 0.5 * (weight - start).square().sum()
        return loss

    def step(self, rate_factor: float) -> None:
        for optimizer in self._optimizers.values():
            optimizer.step(rate_factor)

    def learned(self) -> None:
        self._updates += 1
        self._thaw()

    def _thaw(self) -> None:
        """Unfreezes the blocks that are due after so many updates. They learn from the next update on."""
        backbone = self._network.backbone
        for block, entries in due(self._options, backbone.network, self._updates).items():
            if block in self._thawed:
                continue
            backbone.thaw(entries)
            if self._served is not self._network:
                self._served.backbone.thaw(entries)
                self._served.requires_grad_(False)
            self._thawed[block] = entries
            learns = {key: p for key, p in backbone.network.named_parameters() if key in entries}
            # The parameters themselves are shared; in a module's own name there can be no dot.
            group = nn.ParameterDict({key.replace(".", "/"): p for key, p in learns.items()})
            rate = self._options.backbone_learning_rate
            self._optimizers[block] = AdamW(group, learning_rate=rate, weight_decay=0.0)

    def capture(self, state: State) -> State:
        learns = {f"{PREFIX}{entry}" for entries in self._thawed.values() for entry in entries}
        weights = self._served.state_dict()
        frozen = {key: w for key, w in weights.items() if key.startswith(PREFIX) and key not in learns}
        serving = {**state.serving, **self._frozen["backbone"].rows(frozen)}
        training = {**state.training, **self._moments(), **self._frozen["start"].rows(self._starts())}
        meta = {**state.meta, "backbone": self._served.backbone.describe(), "batches": self._updates}
        if self._task is not None:
            training |= self._frozen["source"].rows(self._task.tensors())
            meta["source_task"] = self._task.describe()
        return State(serving, training, meta)

    def restore(self, state: State, rest: Callable[[State], None]) -> None:
        self._updates = state.meta["batches"]
        self._thaw()
        rest(state)
        ours = {**self._moments(), **self._starts(), **(self._task.tensors() if self._task else {})}
        theirs = ("optimizer/", "memory/", "learning/", "evidence/")
        copy_into(ours, {k: v for k, v in state.training.items() if not k.startswith(theirs)})
        for frozen in self._frozen.values():
            frozen.restored()

    def _moments(self) -> dict[str, Tensor]:
        """backbone/<block>/step, backbone/<block>/<parameter>/exp_avg and exp_avg_sq"""
        return {
            f"backbone/{block}/{key.removeprefix('optimizer/')}": tensor
            for block, optimizer in self._optimizers.items()
            for key, tensor in optimizer.capture().items()
        }

    def _starts(self) -> dict[str, Tensor]:
        return {f"start/{name}": tensor for name, tensor in self._start.items()}


def blocks(network: nn.Module) -> dict[str, list[str]]:
    """The blocks of a network, from shallow to deep, each with its entries in the state dict.

    They are its children; where they are few, the largest is opened, until there are enough. What belongs to an opened
    module itself, such as a transformer's class token, is a block of its own.
    """
    names = _children(network)
    while len(names) < BLOCKS and (opened := [name for name in names if _children(network.get_submodule(name))]):
        largest = max(opened, key=lambda name: sum(p.numel() for p in network.get_submodule(name).parameters()))
        at, inner = names.index(largest), _children(network.get_submodule(largest))
        names[at : at + 1] = [f"{largest}.{child}" for child in inner]
    found: dict[str, list[str]] = {}
    for entry in network.state_dict():
        found.setdefault(next((name for name in names if entry.startswith(f"{name}.")), entry), []).append(entry)
    return found


def _children(module: nn.Module) -> list[str]:
    """Names of the children that have weights."""
    return [name for name, child in module.named_children() if child.state_dict()]


def due(options: ImageTransferOptions, network: nn.Module, updates: int) -> dict[str, list[str]]:
    """What of a backbone's network learns after so many updates: block → its entries in the state dict.

    Raises:
        ValueError: `unfreeze_from` is no module with weights.
    """
    if options.unfreeze_from is not None:
        name, entries = options.unfreeze_from, list(network.state_dict())
        first = next((i for i, entry in enumerate(entries) if entry.startswith(f"{name}.")), None)
        if first is None:
            raise ValueError(
                f"unfreeze_from = {name!r} is no module with weights. Blocks are {', '.join(blocks(network))}."
            )
        return {name: entries[first:]}
    if not options.unfreeze_every_updates:
        return {}
    return dict(list(reversed(blocks(network).items()))[: updates // options.unfreeze_every_updates])


class SourceTask:
    """What a backbone was trained for: records of the source, and the source's own head. Neither ever changes.

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


def learner(
    options: ImageTransferOptions, shape: tuple[int, ...], seed: int, device: torch.device, start: Start = NOTHING
) -> ClassifierLearner[ImageTransfer]:
    backbone, task = Backbone.of_start(options, start, "backbone"), source_task(options, start)
    size = width(backbone, options, shape)
    network = seeded(lambda: ImageTransfer(options, size, ()), seed, device)
    network.backbone = backbone.to(device)
    return ClassifierLearner(
        network,
        options,
        options.memory(shape, torch.uint8, device),
        device,
        shown=options.shown(),
        part=lambda served: FineTuning(options, network, served, task and task.to(device)),
    )


def source_task(options: ImageTransferOptions, start: Start) -> SourceTask | None:
    """The source's task, if it is used."""
    if options.source_loss != "sample":
        return None
    if isinstance(start, State):
        return SourceTask(start.meta["source_task"])
    return SourceTask.of_sources(options.architecture, options.source_slots, start)


def model(options: ImageTransferOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> ImageTransfer:
    backbone = Backbone.described(meta["backbone"])
    for entries in due(options, backbone.network, meta["batches"]).values():
        backbone.thaw(entries)  # what has learned is in full precision
    backbone.requires_grad_(False)
    size = width(backbone, options, shape)
    network = module_on(lambda: ImageTransfer(options, size, meta["classes"]), torch.device("cpu"))
    network.backbone = backbone
    return network.eval()


def sources(options: ImageTransferOptions) -> dict[str, Reference]:
    found = references(options)
    if options.source_records is not None:
        found["source_records"] = Reference("file", options.source_records)
    return found


BLUEPRINT = Blueprint(ImageTransferOptions, learner, model, "image", sources, started=learner)
