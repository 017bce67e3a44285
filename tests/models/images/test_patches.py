"""Patches: by their definition, mirrored, in batches, of any size, and what they bring to photographs' learner."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.images.analytic import BLUEPRINT, ImageAnalytic, ImageAnalyticOptions
from models.images.patches import COARSE, FILE, FINE, LEAST_CONTRAST, NUMBERS, PIXELS, THRESHOLD, Patches, halved
from tests.device import CPU


def pictures(count: int, *shape: int) -> Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_definition(x: Tensor, count: int) -> Tensor:
    """x (B, 3, H, W) of even sides → (B, count · NUMBERS), patch by patch in double precision."""
    stored = load_file(FILE)
    coarse, found = count // 5, []
    for name, some, seen in (("fine", count - coarse, x.double()), ("coarse", coarse, halved(x.float()).double())):
        w = (stored[name][:some] / 128).double()
        p = seen.unfold(2, PIXELS, 1).unfold(3, PIXELS, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)  # (B, h, w, d)
        p = (p - p.mean(3, keepdim=True)) / (p.var(3, correction=0, keepdim=True) + LEAST_CONTRAST).sqrt()
        height, width = p.shape[1:3]
        tall, wide = -(-height // 2), -(-width // 2)

        def quarters(filters: Tensor, p: Tensor = p, tall: int = tall, wide: int = wide) -> Tensor:  # (B, K, 2, 2, 2)
            answers = p @ filters.flatten(1).T
            sides = [(answers - THRESHOLD).clamp_min(0), (-answers - THRESHOLD).clamp_min(0)]
            cells = [
                side[:, rows, columns].mean((1, 2))
                for side in sides
                for rows in (slice(tall), slice(-tall, None))
                for columns in (slice(wide), slice(-wide, None))
            ]
            return torch.stack(cells, 2).view(len(p), -1, 2, 2, 2).sqrt()

        both = (quarters(w) + quarters(w.flip(3)).flip(4)) / 2
        offset, scale = stored[f"{name}_offset"] / 4096, stored[f"{name}_scale"] / 16
        found.append((both.flatten(1) - offset[: some * NUMBERS]) * scale[: some * NUMBERS])
    return torch.cat(found, 1)


@pytest.mark.parametrize("count", [3, 10])
def test_they_are_what_the_page_says(count: int) -> None:
    x = pictures(4, 3, 20, 24)
    patches = Patches((3, 20, 24), count * NUMBERS + 7, halved=True)
    assert patches.dim == count * NUMBERS
    torch.testing.assert_close(patches(x).double(), by_definition(x, count), atol=1e-4, rtol=1e-4)


def test_a_picture_and_its_mirror_image_are_the_same() -> None:
    x = pictures(5, 3, 32, 32)
    patches = Patches((3, 32, 32), 400, halved=True)
    torch.testing.assert_close(patches(x), patches(x.flip(3)), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(patches(x), patches(x.flip(2)), atol=0.1)


def test_they_do_not_depend_on_the_batch() -> None:
    x = pictures(50, 3, 28, 28)
    patches = Patches((3, 28, 28), 800, halved=True)
    together = patches(x)
    for size in (1, 3, 17):
        assert torch.equal(torch.cat([patches(some) for some in torch.split(x, size)]), together)


def test_a_grey_picture_is_one_of_three_equal_colours_and_alpha_hides() -> None:
    grey = pictures(3, 1, 16, 16)
    colour = Patches((3, 16, 16), 160, halved=True)(grey.expand(-1, 3, -1, -1))
    assert torch.equal(Patches((1, 16, 16), 160, halved=True)(grey), colour)
    opaque = torch.cat([grey, torch.full_like(grey, 255)], 1)
    assert torch.equal(Patches((2, 16, 16), 160, halved=True)(opaque), colour)
    hidden = torch.cat([pictures(3, 3, 16, 16), torch.zeros_like(grey)], 1)
    assert torch.equal(
        Patches((4, 16, 16), 160, halved=True)(hidden),
        Patches((3, 16, 16), 160, halved=True)(torch.zeros_like(hidden[:, :3])),
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 20), (4, 32, 32), (1, 128, 96), (3, 9, 128)])
def test_any_size(shape: tuple[int, ...]) -> None:
    features = Patches(shape, 10**6, halved=True)(pictures(2, *shape))
    assert features.shape == (2, (FINE + COARSE) * NUMBERS)
    assert features.isfinite().all()
    assert Patches(shape, 7, halved=True)(pictures(2, *shape)).shape == (2, 0)


def test_what_is_not_halved_are_the_fine_ones() -> None:
    x = pictures(3, 3, 24, 24)
    both, fine = Patches((3, 24, 24), 5 * NUMBERS, halved=True)(x), Patches((3, 24, 24), 4 * NUMBERS, halved=False)(x)
    assert torch.equal(both[:, : 4 * NUMBERS], fine)


def test_what_is_added_up_is_exact() -> None:
    """Below 2²⁴, whatever the pixels; and an even patch gives 0."""
    stored = load_file(FILE)
    for name in ("fine", "coarse"):
        filters = stored[name].long()
        assert int(filters.abs().flatten(1).sum(1).max()) * 255 < 1 << 24
        assert not filters.flatten(1).sum(1).any()
    assert 255**2 * 3 * PIXELS**2 < 1 << 24


def test_versions_of_before_have_wavelets_alone() -> None:
    before = ImageAnalyticOptions.of_version({"head": "ridge", "ridge": 10.0, "width": 2000, "features": None})
    assert not before.patches
    model = BLUEPRINT.learner(before, (3, 32, 32), 0, CPU).model
    assert isinstance(model, ImageAnalytic)
    assert model.patches is None
    assert len(model.projection) == 2000
