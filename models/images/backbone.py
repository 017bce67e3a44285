"""A network that was trained elsewhere, as features: torchvision's architectures, or a classifier of the project's own.

A learner that uses one mixes `BackboneOptions` into its options, gives `references(options)` to its blueprint's
`sources`, and calls `Backbone.of_start(options, start, key)` where it is built. From then on the weights are in its
state, and `describe()` is in its `meta`, under the key: of that the same architecture is built where no file is.

Everything is frozen unless a learner says `thaw`: evaluation mode, no gradient for the weights (there may be one for
the pictures: where neither they nor a weight ask for it, torch keeps nothing for a backward pass). What a picture
goes through first:

- *Channels.* Grey is repeated for a colour network; colour becomes luminance (Rec. 601) for a grey one. Alpha is
  composited over the network's mean colour (ImageNet's; for own networks mid-grey), so that what is transparent says
  nothing; a network that learned alpha is given opaque pictures where there is none.
- *Size.* A torchvision network is given what there is, enlarged (bilinear) until the shorter side is `side`, or the
  least of 32, 64, 96, 128 and 224 that it takes; one that takes nothing below 224, such as a ViT, is given 224 × 224
  exactly. An own network's features are those of the size that it learned; its maps are of any size.
- *Range.* torchvision: (x - mean) / standard deviation of ImageNet. Own: as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.images import classifier as image_classifier, resnet as image_resnet
from models.learner import Options, Reference, Source, Start, State, module_on, structural

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights expect
LUMINANCE = (0.299, 0.587, 0.114)
SIDES = (32, 64, 96, 128, 224)
HEADS = ("fc", "classifier", "heads", "head")
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # further heads of GoogLeNet and Inception, for training alone
CPU = torch.device("cpu")

#: what learned it → its options, and its network; each has `blocks`, convolutions for any size, and `encode`
OWN: Mapping[str, tuple[type[Options], Callable[..., nn.Module]]] = {
    "image-classifier": (image_classifier.ImageClassifierOptions, image_classifier.ImageClassifier),
    "image-resnet": (image_resnet.ImageResnetOptions, image_resnet.ImageResnet),
}

_found: ContextVar[dict[str, Tensor] | None] = ContextVar("_found", default=None)  # maps of the pass of this thread


class BackboneOptions(Options):
    """Which network, and where its weights come from: `architecture` and `weights`, or `source`.

    They count as structural: state holds the weights, and other ones would be another model.
    """

    #: whether the learner cannot do without
    needs_backbone: ClassVar[bool] = True

    architecture: str | None = structural(None)  # a name of torchvision's: vgg16, resnet18, convnext_tiny, vit_b_16
    weights: str | None = structural(None)  # a local file: .safetensors, or .pth with a state dict alone
    source: str | None = structural(None)  # MODEL or MODEL@VERSION: an image-classifier or image-resnet
    layers: tuple[str, ...] = structural(())  # modules whose output `maps` gives; none: the last of each size
    side: int = structural(0, ge=0)  # torchvision: smaller pictures are enlarged to it; 0: to the least possible
    half: bool = structural(False)  # keeps what is frozen in bfloat16

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.source is not None and (self.weights is not None or self.architecture is not None):
            raise ValueError("source names a version, which knows its architecture and weights. Drop one or the other.")
        if self.architecture is not None and self.weights is None:
            raise ValueError("architecture has no weights, and an untrained backbone knows nothing. Name a local file.")
        if self.weights is not None and self.architecture is None:
            raise ValueError("weights are numbers alone. Name their architecture too, as torchvision does.")
        if self.needs_backbone and not self.has_backbone:
            raise ValueError("a backbone is needed: architecture and weights, or source.")
        if self.side and self.source is not None:
            raise ValueError("side is for torchvision's networks: a version is given pictures of the size it learned.")
        return self

    @property
    def has_backbone(self) -> bool:
        """Whether the options name a backbone."""
        return self.weights is not None or self.source is not None


def references(options: BackboneOptions | None) -> dict[str, Reference]:
    """What `Backbone.of_sources` needs, for a blueprint's `sources`; empty without a backbone."""
    if options is None or not options.has_backbone:
        return {}
    if options.weights is not None:
        return {"weights": Reference("file", options.weights)}
    return {"source": Reference("version", str(options.source))}


class Backbone(nn.Module):
    """The network without its head.

    Args:
        description: JSON of `describe`, or its first fields: then the rest is found by trying.

    Raises:
        ValueError: torchvision is not installed, or knows no such architecture or layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        self._description = dict(description)
        self._own = description["architecture"] is None
        self.network = _without_head(_built(description))
        for module in self.network.modules():
            if hasattr(module, "inplace"):
                module.inplace = False  # type: ignore[assignment]  # maps that are handed out stay as they are
        mean, std = (0.5, 1.0) if self._own else (MEAN, STD)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()
        if "width" not in description:
            self._description |= self._tried()
        #: D, the number of features
        self.width: int = self._description["width"]
        #: names of the modules that give the maps, and the channels of each
        self.layers: list[str] = list(self._description["layers"])
        self.channels: list[int] = list(self._description["channels"])
        for name in self.layers:
            self._body.get_submodule(name).register_forward_hook(partial(_keep, name))
        if description["half"]:
            self.network.to(torch.bfloat16)
            for module in self.network.modules():
                if next(module.parameters(recurse=False), None) is not None:
                    module.register_forward_pre_hook(_cast)

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> Backbone:
        """Builds the architecture that `describe` gave, on the CPU. Its weights are to be loaded next."""
        return module_on(lambda: cls(description), CPU)

    @classmethod
    def of_sources(cls, options: BackboneOptions, sources: Mapping[str, Source]) -> Backbone:
        """Builds the network that the options name, with its weights, on the CPU.

        Raises:
            ValueError: the source does not fit: names the tensor, or says what it is instead.
        """
        backbone = cls.described(_described(options, sources))
        source = sources["source" if options.source is not None else "weights"]
        _load(backbone.network, source.tensors)
        return backbone

    @classmethod
    def of_start(cls, options: BackboneOptions, start: Start, key: str) -> Backbone:
        """Builds the network of a learner that starts: as its state's meta describes it under this key, or as
        `of_sources` does."""
        return cls.described(start.meta[key]) if isinstance(start, State) else cls.of_sources(options, start)

    def describe(self) -> dict[str, Any]:
        """All but the weights, JSON."""
        return dict(self._description)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) float32 in [0, 1], C from 1 to 4 → features (B, D) float32"""
        size = self._description["shape"][1:] if self._own else self._size(x)
        run = self.network.encode if self._own else self.network
        return run(self._prepared(x, size)).float()  # type: ignore[no-any-return, operator]

    def maps(self, x: Tensor) -> list[Tensor]:
        """x (B, C, H, W) float32 in [0, 1] → maps (B, c, h, w) float32 of each of `layers`, from shallow to deep.

        Tokens of a transformer are put back into their places; what is no token of a place is dropped.
        """
        found = self._passed(self._prepared(x, tuple(x.shape[2:]) if self._own else self._size(x)))
        return [_as_map(found[name], name, self._description["architecture"]).float() for name in self.layers]

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: no dropout, and norms keep the statistics that they have."""
        return super().train(False)

    def thaw(self, names: Sequence[str]) -> None:
        """Has these entries of `network.state_dict()` learn, in float32. Name all of a module or none of it."""
        for name in names:
            owner, _, leaf = name.rpartition(".")
            module = self.network.get_submodule(owner)
            tensor = getattr(module, leaf)
            if tensor.is_floating_point():
                learned = tensor.detach().float()
                setattr(module, leaf, nn.Parameter(learned) if isinstance(tensor, nn.Parameter) else learned)

    @property
    def _body(self) -> nn.Module:
        """What maps come from: all of torchvision's, the convolutions of our own."""
        return self.network.get_submodule("blocks") if self._own else self.network

    def _passed(self, prepared: Tensor) -> dict[str, Tensor]:
        """What the modules that have a hook give, by name."""
        token = _found.set({})
        try:
            self._body(prepared)
            return _found.get() or {}
        finally:
            _found.reset(token)

    def _size(self, x: Tensor) -> tuple[int, int]:
        """The height and width to which pictures are resized for a torchvision network."""
        height, width = x.shape[2:]
        least: int = self._description["least"]
        if least == SIDES[-1]:
            return least, least
        enlarged = max(1.0, max(least, self._description["side"]) / min(height, width))
        return round(height * enlarged), round(width * enlarged)

    def _prepared(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Channels, size and range as the network has learned them."""
        x = _with_channels(x, self._description["shape"][0], self.mean)
        x = resized(x, *size)
        if not self._own:
            x = (x - self.mean) / self.std
        return x.to(torch.bfloat16) if self._description["half"] else x

    @torch.no_grad()
    def _tried(self) -> dict[str, Any]:
        """Finds by a pass what the architecture does not say: the least side, D, the layers and their channels."""
        channels, *own_size = self._description["shape"]
        for side in SIDES:
            blank = torch.zeros(1, channels, *(own_size if self._own else (side, side)))
            try:
                width = (self.network.encode if self._own else self.network)(blank).shape[1]  # type: ignore[operator]
            except (RuntimeError, ValueError, AssertionError):
                if self._own or side == SIDES[-1]:
                    raise
                continue
            break
        if not self._own and side < 64:
            blank = torch.zeros(1, channels, 64, 64)  # enough for the sizes of the maps to differ
        names = [name for name, _ in self._body.named_modules() if name]
        handles = [self._body.get_submodule(name).register_forward_hook(partial(_keep, name)) for name in names]
        try:
            found = self._passed(blank)
        finally:
            for handle in handles:
                handle.remove()
        architecture = self._description["architecture"]
        maps = {name: output for name, output in found.items() if output.dim() in (3, 4)}
        shapes = {name: _as_map(output, name, architecture).shape for name, output in maps.items()}
        layers = list(self._description["layers"]) or _last_of_each_size(self._body, shapes)
        for name in layers:
            if name not in shapes:
                near = ", ".join(difflib.get_close_matches(name, shapes, 5, 0.0))
                raise ValueError(f"layers: {name!r} is no module of it that gives maps. Near it: {near}.")
        return {"least": side, "width": width, "layers": layers, "channels": [shapes[name][1] for name in layers]}


POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class Flat(nn.Module):
    """Instead of a head: (B, D, 1, 1) or (B, D) → (B, D). Maps that nothing has pooled are averaged."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.dim() == 4 else x.flatten(1)


def head_name(network: nn.Module) -> str:
    """The child of a torchvision network that is its head."""
    return [name for name, _ in network.named_children() if name in HEADS][-1]


def torchvision_network(name: str, **settings: Any) -> nn.Module:
    """An untrained classifier of torchvision's.

    Raises:
        ValueError: torchvision is not installed, or has no such architecture.
    """
    try:
        from torchvision import models
    except ImportError:
        raise ValueError(f"architecture {name!r} needs torchvision: pip install 'headrace[vision]'.") from None
    names = models.list_models(module=models)
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, names, 5, 0.3)) or "vgg16, resnet18"
        raise ValueError(f"architecture {name!r} is none of torchvision's classifiers. Near it: {near}.")
    if name in ("googlenet", "inception_v3"):
        settings["init_weights"] = False  # minutes of SciPy, for weights that are replaced
    network: nn.Module = models.get_model(name, weights=None, **settings)
    return network


def _described(options: BackboneOptions, sources: Mapping[str, Source]) -> dict[str, Any]:
    common = {"architecture": options.architecture, "layers": list(options.layers), "side": options.side}
    common["half"] = options.half
    if options.source is None:
        return {**common, "shape": [3]}
    source = sources["source"]
    if source.learner not in OWN:
        raise ValueError(f"source = {options.source!r} was learned by {source.learner}, not by {' or '.join(OWN)}.")
    return {**common, "learner": source.learner, "options": dict(source.options), "shape": list(source.shape)}


def _built(description: Mapping[str, Any]) -> nn.Module:
    if description["architecture"] is not None:
        return torchvision_network(description["architecture"])
    options, network = OWN[description["learner"]]
    return network(options.of_version(description["options"]), tuple(description["shape"]), ())


def _without_head(network: nn.Module) -> nn.Module:
    if hasattr(network, "encode"):
        del network.head, network.sharpness
        return network
    setattr(network, head_name(network), Flat())
    for name in AUXILIARY:
        if hasattr(network, name):
            setattr(network, name, None)
    return network


def _load(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """
    Raises:
        ValueError: a tensor is missing or of another shape.
    """
    targets = network.state_dict()
    for name, target in targets.items():
        if name not in tensors:
            raise ValueError(f"the weights have no {name}. Are they of this architecture?")
        if tensors[name].shape != target.shape:
            found, wanted = tuple(tensors[name].shape), tuple(target.shape)
            raise ValueError(f"{name} is {found} in the weights, and {wanted} in this architecture.")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def _keep(name: str, module: nn.Module, args: object, output: object) -> None:
    """A hook: notes what a module gave, where somebody asks for it."""
    found = _found.get()
    if found is not None and isinstance(output, Tensor):
        found[name] = output


def _cast(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
    """A hook: what goes into a module has the type of its weights; half of a network may be in half precision."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def _as_map(output: Tensor, name: str, architecture: str | None) -> Tensor:
    """Maps (B, c, h, w) as they are; Swin's (B, h, w, c) turned; tokens (B, n, c) on the largest square of the last."""
    if output.dim() == 3:
        side = int(output.shape[1] ** 0.5)
        return output[:, -side * side :].transpose(1, 2).reshape(len(output), -1, side, side)
    turned = (architecture or "").startswith("swin") and name not in ("features.0.0", "permute", "avgpool")
    return output.permute(0, 3, 1, 2) if turned else output


def _last_of_each_size(body: nn.Module, shapes: Mapping[str, torch.Size]) -> list[str]:
    """The last module of each size of maps, where the sizes fall: what comes right before the next halving.

    Only steps of the chain count, not what is inside of a block: inside, a branch is not the picture.
    """
    steps = [name for name in _steps(body) if name in shapes]
    kept: dict[int, str] = {}
    least = 1 << 30
    for name in steps:
        height = shapes[name][2]
        if 1 < height <= least:
            least = height
            kept[height] = name
    if len(kept) > 1:
        return list(kept.values())
    deep = [name for name in steps if shapes[name][2] == least]  # a transformer: four of its layers
    return [deep[(len(deep) * quarter) // 4 - 1] for quarter in range(1, 5)] if len(deep) >= 4 else deep


def _steps(body: nn.Module, prefix: str = "") -> list[str]:
    """Names of the modules that follow each other: children, those of containers opened."""
    names = []
    for name, child in body.named_children():
        opened = isinstance(child, nn.Sequential | nn.ModuleList) or type(child).__name__ == "Encoder"
        if opened:
            names += _steps(child, f"{prefix}{name}.")
        elif not isinstance(child, POOLS):
            names.append(f"{prefix}{name}")
    return names


def _with_channels(x: Tensor, wanted: int, background: Tensor) -> Tensor:
    """x (B, C, H, W) → (B, wanted, H, W); `background` (1 or 3, 1, 1) shows through where a picture is transparent.

    Raises:
        ValueError: C or `wanted` is not 1 (grey), 2 (and alpha), 3 (colour) or 4 (and alpha), and they differ.
    """
    channels = x.shape[1]
    if channels == wanted:
        return x
    if not (1 <= channels <= 4 and 1 <= wanted <= 4):
        raise ValueError(f"a backbone for {wanted} channels cannot be given pictures with {channels}.")
    if channels in (2, 4):
        colour, alpha = x[:, :-1], x[:, -1:]
        shade = background if len(background) in (1, channels - 1) else background.mean(0, keepdim=True)
        x = colour * alpha + shade * (1 - alpha)
    if x.shape[1] == 1 and wanted >= 3:
        x = x.expand(-1, 3, -1, -1)
    elif x.shape[1] == 3 and wanted <= 2:
        x = (x * x.new_tensor(LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)
    return torch.cat([x, torch.ones_like(x[:, :1])], 1) if wanted in (2, 4) else x


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, with antialiasing where it shrinks; a product of matrices, whose gradient has equal bits on a GPU."""
    if x.shape[3] != width:
        x = x @ _bilinear(x.shape[3], width).to(x)
    if x.shape[2] != height:
        x = _bilinear(x.shape[2], height).to(x).T @ x
    return x


@lru_cache(maxsize=64)
def _bilinear(before: int, after: int) -> Tensor:
    """(before, after): the weight of each pixel of a row in each pixel of the resized row."""
    rows = torch.eye(before)[None, None]
    return F.interpolate(rows, (before, after), mode="bilinear", antialias=True)[0, 0]
