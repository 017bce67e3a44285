"""Backbones: torchvision's and our own, from a file or a version; all kinds of pictures; what does not fit."""

from __future__ import annotations

import copy
import json
import threading
from functools import cache
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from models.images import backbone as module
from models.images.backbone import MEAN, STD, Backbone, BackboneOptions, references, torchvision_network
from models.images.classifier import ImageClassifier, ImageClassifierOptions
from models.images.resnet import ImageResnet, ImageResnetOptions
from models.learner import Reference, Source, module_on
from models.network import seeded
from tests.device import CPU
from tests.models.contract import SEED

NAME = "shufflenet_v2_x0_5"  # torchvision's smallest


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@cache
def weights(name: str = NAME) -> dict[str, Tensor]:
    """A state dict as a file would hold it: with a head, and with norms that are not idle."""
    network = module_on(lambda: torchvision_network(name), CPU).train()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        network(random(4, 3, 64, 64))
    return network.state_dict()


def from_file(name: str = NAME, **options: Any) -> Backbone:
    made = BackboneOptions.model_validate({"architecture": name, "weights": "w.pth", **options})
    return Backbone.of_sources(made, {"weights": Source("digest", weights(name))})


def own(kind: str, **options: Any) -> tuple[ImageClassifier | ImageResnet, Backbone]:
    shape = (3, 16, 12)
    network: ImageClassifier | ImageResnet
    if kind == "image-classifier":
        classifier = ImageClassifierOptions(width=8, hidden=16)
        settings = classifier.model_dump()
        network = seeded(lambda: ImageClassifier(classifier, shape, "ab"), SEED, CPU)
    else:
        resnet = ImageResnetOptions(width=4)
        settings = resnet.model_dump()
        network = seeded(lambda: ImageResnet(resnet, shape, "ab"), SEED, CPU)
    source = Source("digest", network.state_dict(), learner=kind, options=settings, shape=shape)
    return network, Backbone.of_sources(BackboneOptions.model_validate({"source": "m", **options}), {"source": source})


def test_a_torchvision_network_gives_what_it_gave_before_its_head() -> None:
    network = module_on(lambda: torchvision_network(NAME), CPU).eval()
    network.load_state_dict(weights())
    network.fc = torch.nn.Identity()
    x = random(2, 3, 40, 48)
    ours = from_file()
    with torch.no_grad():
        expected = network((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    assert torch.equal(ours(x), expected)
    assert ours.width == expected.shape[1] == 1024


@pytest.mark.parametrize("kind", ["image-classifier", "image-resnet"])
def test_a_version_gives_its_own_features(kind: str) -> None:
    network, ours = own(kind)
    x = torch.randint(256, (4, 3, 16, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.testing.assert_close(ours(x / 255), network.features(x))
    assert ours.width == ours(x / 255).shape[1]
    assert ours(random(2, 1, 30, 20)).shape == (2, ours.width)  # another size, and grey
    maps = ours.maps(random(2, 3, 33, 40))
    assert [m.shape[1] for m in maps] == ours.channels
    assert maps[0].shape[2] >= 16  # maps are of the picture's size


@pytest.mark.parametrize("half", [False, True])
def test_it_is_rebuilt_from_its_description_and_its_state(half: bool) -> None:
    ours = from_file(half=half)
    described = json.loads(json.dumps(ours.describe()))
    again = Backbone.described(described)
    again.load_state_dict(ours.state_dict())
    x = random(2, 4, 20, 20)
    assert torch.equal(again(x), ours(x))
    assert all(torch.equal(a, b) for a, b in zip(again.maps(x), ours.maps(x), strict=True))
    assert again.describe() == described


def test_half_precision_is_close_and_half_as_large() -> None:
    full, half = from_file(), from_file(half=True)
    x = random(3, 3, 32, 32)
    assert {v.dtype for v in half.state_dict().values() if v.is_floating_point()} == {torch.bfloat16}
    assert half(x).dtype == half.maps(x)[0].dtype == torch.float32
    assert (half(x) - full(x)).norm() < 0.1 * full(x).norm()


def test_part_of_it_thawed_is_in_full_precision() -> None:
    ours = from_file(half=True)
    entries = [name for name in ours.network.state_dict() if name.startswith("conv5.")]
    before = ours(random(2, 3, 32, 32))
    assert not before.requires_grad
    ours.thaw(entries)
    after = ours(random(2, 3, 32, 32))
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05)
    after.square().sum().backward()
    for name, parameter in ours.network.named_parameters():
        assert (parameter.grad is not None) == (name in entries)
        assert parameter.dtype == (torch.float32 if name in entries else torch.bfloat16)


def test_frozen_it_stays_in_evaluation_mode_and_leads_gradients_to_pictures() -> None:
    ours = from_file().train()
    assert not any(part.training for part in ours.modules())
    before = copy.deepcopy(ours.state_dict())
    x = random(2, 3, 32, 32).requires_grad_()
    (ours(x).sum() + sum(m.sum() for m in ours.maps(x))).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(torch.equal(v, before[name]) for name, v in ours.state_dict().items())
    assert all(p.grad is None for p in ours.parameters())


def test_maps_are_what_the_modules_give_from_shallow_to_deep() -> None:
    ours = from_file()
    x = random(2, 3, 64, 64)
    maps = ours.maps(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 32, 32), (48, 8, 8), (96, 4, 4), (1024, 2, 2)]
    assert ours.channels == [24, 48, 96, 1024]
    torch.testing.assert_close(maps[-1].mean((2, 3)), ours(x))  # shufflenet's features are the mean of its last maps
    named = from_file(layers=["stage3", "conv1.1"])
    first, second = named.maps(x)
    torch.testing.assert_close(first, maps[2])
    torch.testing.assert_close(second.relu(), maps[0])  # before the ReLU, which elsewhere works in place


def test_maps_of_two_threads_are_not_mixed_up() -> None:
    ours = from_file()
    pictures = [random(1, 3, 32, 32, seed=seed) for seed in range(2)]
    expected = [ours.maps(x) for x in pictures]
    found: dict[int, list[list[Tensor]]] = {0: [], 1: []}

    def ask(number: int) -> None:
        for _ in range(5):
            found[number].append(ours.maps(pictures[number]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        for maps in found[number]:
            assert all(torch.equal(a, b) for a, b in zip(maps, expected[number], strict=True))


def test_a_network_of_one_size_is_given_it_and_its_tokens_become_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import VisionTransformer

    def small(name: str, **settings: Any) -> VisionTransformer:
        return VisionTransformer(224, 32, num_layers=4, num_heads=2, hidden_dim=8, mlp_dim=8, **settings)

    monkeypatch.setattr(module, "torchvision_network", small)
    tensors = module_on(lambda: small("vit"), CPU).state_dict()
    options = BackboneOptions(architecture="vit", weights="w")
    ours = Backbone.of_sources(options, {"weights": Source("digest", tensors)})
    x = random(2, 1, 30, 20)
    assert ours(x).shape == (2, 8)
    assert [tuple(m.shape) for m in ours.maps(x)] == [(2, 8, 7, 7)] * 4
    tokens = module._as_map(torch.arange(20.0).view(1, 10, 2), "encoder.ln", "vit")  # one for the class, nine places
    assert tokens[0, 0].tolist() == [[2, 4, 6], [8, 10, 12], [14, 16, 18]]


@pytest.mark.parametrize(
    ("size", "side", "given"),
    [((28, 28), 0, (32, 32)), ((28, 20), 0, (45, 32)), ((40, 50), 0, (40, 50)), ((40, 50), 80, (80, 100))],
)
def test_small_pictures_are_enlarged(size: tuple[int, int], side: int, given: tuple[int, int]) -> None:
    assert from_file(side=side)._size(random(1, 3, *size)) == given


@pytest.mark.parametrize("size", [(16, 24), (5, 7), (8, 12)])
def test_resizing_is_torchs_own(size: tuple[int, int]) -> None:
    x = random(2, 3, 8, 12)
    expected = F.interpolate(x, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(module.resized(x, *size), expected)


def test_channels_are_made_to_fit() -> None:
    grey, colour, alpha = random(2, 1, 4, 4), random(2, 3, 4, 4, seed=1), random(2, 1, 4, 4, seed=2)
    mean = torch.tensor(MEAN).view(3, 1, 1)
    fit = module._with_channels
    assert torch.equal(fit(grey, 3, mean), grey.expand(-1, 3, -1, -1))
    luminance = 0.299 * colour[:, :1] + 0.587 * colour[:, 1:2] + 0.114 * colour[:, 2:]
    torch.testing.assert_close(fit(colour, 1, mean), luminance)
    torch.testing.assert_close(fit(torch.cat([colour, alpha], 1), 3, mean), alpha * colour + (1 - alpha) * mean)
    shade = fit(torch.cat([grey, alpha], 1), 3, mean)  # grey and alpha, over the mean grey
    torch.testing.assert_close(shade, (alpha * grey + (1 - alpha) * mean.mean()).expand(-1, 3, -1, -1))
    assert torch.equal(fit(colour, 4, mean)[:, 3], torch.ones(2, 4, 4))
    assert torch.equal(fit(grey, 2, mean), torch.cat([grey, torch.ones(2, 1, 4, 4)], 1))
    with pytest.raises(ValueError, match="3 channels cannot be given pictures with 5"):
        fit(random(2, 5, 4, 4), 3, mean)
    transparent = torch.cat([colour, torch.zeros(2, 1, 4, 4)], 1)
    ours = from_file()
    assert torch.equal(ours(transparent), ours(torch.cat([1 - colour, torch.zeros(2, 1, 4, 4)], 1)))


def test_options_name_one_source() -> None:
    for given, message in [
        ({}, "a backbone is needed"),
        ({"architecture": "vgg16"}, "an untrained backbone knows nothing"),
        ({"weights": "w.pth"}, "Name their architecture"),
        ({"source": "m", "architecture": "vgg16", "weights": "w.pth"}, "Drop one or the other"),
        ({"source": "m", "side": 64}, "side is for torchvision"),
    ]:
        with pytest.raises(ValidationError, match=message):
            BackboneOptions.model_validate(given)

    class Perhaps(BackboneOptions):
        needs_backbone = False

    assert references(Perhaps()) == {}
    assert references(BackboneOptions(source="m@7")) == {"source": Reference("version", "m@7")}
    weights_file = BackboneOptions(architecture="vgg16", weights="w.pth")
    assert references(weights_file) == {"weights": Reference("file", "w.pth")}


def test_what_does_not_fit_is_named() -> None:
    options = BackboneOptions(architecture=NAME, weights="w.pth")
    incomplete = {name: tensor for name, tensor in weights().items() if name != "conv5.0.weight"}
    with pytest.raises(ValueError, match=r"no conv5\.0\.weight"):
        Backbone.of_sources(options, {"weights": Source("digest", incomplete)})
    with pytest.raises(ValueError, match=r"conv5\.0\.weight is \(3, 3\) in the weights, and \(1024, 192, 1, 1\)"):
        Backbone.of_sources(options, {"weights": Source("digest", {**weights(), "conv5.0.weight": torch.ones(3, 3)})})
    with pytest.raises(ValueError, match="learned by image-vae, not by image-classifier or image-resnet"):
        Backbone.of_sources(BackboneOptions(source="m"), {"source": Source("digest", learner="image-vae")})
    with pytest.raises(ValueError, match=r"'stage9' is no module.*Near it: .*stage"):
        from_file(layers=["stage9"])
    with pytest.raises(ValueError, match=r"'resnet19' is none of torchvision's classifiers\. Near it: .*resnet1"):
        torchvision_network("resnet19")


def test_without_torchvision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(ValueError, match=r"pip install 'headrace\[vision\]'"):
        torchvision_network("vgg16")
