"""The restyler: the contract, its losses against loops and torchvision-free recounts, styles, alpha, sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from models.capabilities import Restyler
from models.images.backbone import Backbone
from models.images.restyler import (
    BLUEPRINT,
    ImageRestylerLearner,
    ImageRestylerOptions,
    content_loss,
    gram,
    style_loss,
    variation,
)
from models.learner import Reference, Rows, Source, update_generator
from models.network import pixels
from models.registry import BUILTIN
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, cloned, digits, same

SMALL: Mapping[str, Any] = {
    "source": "before",
    "width": 4,
    "depth": 1,
    "blocks": 1,
    "replay_slots": 24,
    "replay_draws": 4,
    "style_label": "3",
}


@cache
def coloured(channels: int) -> Tensor:
    """Digits of 16 × 16 with so many channels; alpha is the left half of every other one's square."""
    x = digits(16)[0][:200]
    colour = torch.cat([x, 255 - x, x // 2], 1)[:, : channels if channels < 4 else 3]
    if channels in (1, 3):
        return colour
    alpha = torch.zeros_like(x)
    alpha[:, :, :, :8] = 255
    alpha[::2] = 255
    return torch.cat([colour[:, : channels - 1], alpha], 1)


@cache
def version(channels: int) -> Source:
    """A version of an image-classifier that has learned these digits."""
    blueprint = BUILTIN["image-classifier"]
    settings = {"width": 8, "hidden": 8, "replay_slots": 0, "learning_rate": 4e-3}
    case = Case(blueprint, blueprint.options.model_validate(settings), coloured(channels), digits()[1][:200])
    state = cloned(case.learned(20).capture())
    serving = {name: value for name, value in state.serving.items() if isinstance(value, Tensor)}
    return Source("digest", serving, {}, {}, "image-classifier", settings, tuple(case.x.shape[1:]), state.meta)


def started(channels: int = 1, **options: object) -> Case:
    made = ImageRestylerOptions.model_validate({**SMALL, **options})
    x, labels = coloured(channels), digits()[1][:200]
    return Case(BLUEPRINT, made, x, labels, has_classes=False, sources={"source": version(channels)})


CASES = {"grey": started(half=True), "colour with alpha": started(4, style_window=5, replay_policy="balanced")}


class TestContract(LearnerContract):
    @pytest.fixture(params=list(CASES.values()), ids=list(CASES))
    def case(self, request: pytest.FixtureRequest) -> Case:
        assert isinstance(request.param, Case)
        return request.param


def learner_of(case: Case) -> ImageRestylerLearner:
    ours = case.learner()
    assert isinstance(ours, ImageRestylerLearner)
    return ours


def stripes(count: int = 8, channels: int = 1) -> Tensor:
    """A style: lines of one pixel, brighter and darker ones."""
    lines = (torch.arange(16) % 2 * 255).to(torch.uint8)
    shade = torch.linspace(0.6, 1.0, count)[:, None, None, None]
    picture = lines[None, None, :, None].expand(count, channels, 16, 16) * shade
    if channels == 4:
        picture[:, 3] = 255
    return picture.to(torch.uint8)


def taught(case: Case, styles: Tensor, updates: int) -> tuple[ImageRestylerLearner, list[Mapping[str, float]]]:
    """Styles first, then contents alone."""
    ours = learner_of(case)
    given = Case(case.blueprint, case.options, styles, ["3"] * len(styles))
    ours.learn(given.batch(0, len(styles)), update_generator(SEED, 999))
    found = []
    for update in range(updates):
        labels: Sequence[None] = [None] * 12
        found.append(ours.learn(case.batch(12 * update, 12, labels), update_generator(SEED, update)).metrics)
    return ours, found


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_gram_matrix_is_the_mean_product_of_what_is_visible() -> None:
    maps, alpha = uniform(2, 3, 3, 2), uniform(2, 1, 3, 2, seed=1)
    found = gram(maps, alpha)
    for b in range(2):
        at = [(p, q) for p in range(3) for q in range(2)]
        f, a = maps[b].tolist(), alpha[b, 0].tolist()
        total = [[sum(a[p][q] * f[i][p][q] * f[j][p][q] for p, q in at) for j in range(3)] for i in range(3)]
        torch.testing.assert_close(found[b], torch.tensor(total) / alpha[b].sum())
    assert torch.equal(gram(maps, torch.zeros_like(alpha)), torch.zeros(2, 3, 3))
    plain = torch.einsum("bipq,bjpq->bij", maps, maps) / 6
    torch.testing.assert_close(gram(maps, torch.ones_like(alpha)), plain)


def test_the_losses_are_relative_and_those_of_the_equations() -> None:
    maps, content, alpha = uniform(2, 3, 4, 4), uniform(2, 3, 4, 4, seed=1), uniform(2, 1, 4, 4, seed=2)
    expected = [(alpha[b] * (maps[b] - content[b]) ** 2).sum() / (alpha[b] * content[b] ** 2).sum() for b in range(2)]
    torch.testing.assert_close(content_loss(maps, content, alpha), torch.stack(expected))
    target = gram(content, alpha)[0]
    grams, before = gram(maps, alpha), gram(maps * content, alpha)
    found = style_loss([grams, 5 * grams], [before, 5 * before], [target, 5 * target])  # no layer's scale counts
    norms = [torch.linalg.matrix_norm(each).square() for each in (grams - target, target, before)]
    torch.testing.assert_close(found, norms[0] / (norms[1] + norms[2]))
    assert style_loss([target[None]], [before[:1]], [target]).item() == 0


def test_variation_is_the_mean_difference_of_neighbours_and_falls_when_noise_is_removed() -> None:
    x = uniform(1, 1, 3, 4)
    rows = sum(abs(x[0, 0, i, j + 1] - x[0, 0, i, j]) for i in range(3) for j in range(3)) / 9
    columns = sum(abs(x[0, 0, i + 1, j] - x[0, 0, i, j]) for i in range(2) for j in range(4)) / 8
    torch.testing.assert_close(variation(x)[0], torch.as_tensor(rows + columns))
    noisy = uniform(1, 1, 16, 16)
    smooth = torch.from_numpy(denoise_tv_chambolle(noisy[0, 0].numpy(), 0.5))[None, None]  # type: ignore[no-untyped-call]
    assert variation(smooth)[0] < 0.5 * variation(noisy)[0]


def test_an_untrained_network_is_the_identity() -> None:
    for channels in (1, 3, 4):
        model = learner_of(started(channels)).model
        assert isinstance(model, Restyler)
        every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, channels, 1, 1)
        for x in (every, coloured(channels)[:4]):
            assert torch.equal(model.restyle(x), x)


def test_it_takes_the_style_and_keeps_the_content() -> None:
    one = started(width=8, learning_rate=5e-3, replay_draws=0)
    ours, found = taught(one, stripes(), 70)
    assert found[0]["content_loss"] < 0.01  # it began as the identity
    assert found[-1]["style_loss"] < 0.5 * found[0]["style_loss"]
    restyled = ours.model.restyle(one.x[:60]).float()
    lines = (restyled[:, :, 1::2] - restyled[:, :, ::2]).mean()
    assert lines > 3 * (one.x[:60].float()[:, :, 1::2] - one.x[:60].float()[:, :, ::2]).mean().abs()
    assert lines > 10
    apart = torch.cdist(pixels(restyled.to(torch.uint8)).flatten(1), pixels(one.x[:60]).flatten(1))
    assert (apart.argmin(1) == torch.arange(60)).float().mean() > 0.8  # still nearest to what it was


def test_without_a_style_it_goes_on_reproducing() -> None:
    one = started()
    ours = learner_of(one)
    for update in range(6):
        report = ours.learn(one.batch(8 * update, 8, [None] * 8), update_generator(SEED, update))
        assert set(report.metrics) == {"content_loss"}
    assert (ours.model.restyle(one.x[:9]).float() - one.x[:9].float()).abs().mean() < 12


def test_the_target_is_the_mean_gram_matrix_of_all_styles_in_any_batches() -> None:
    one = started(4)
    styles = [row for row, label in enumerate(one.labels) if label == "3"][:7]
    maps = learner_of(one)._backbone.maps(pixels(one.x[styles]))
    small = [torch.nn.functional.adaptive_avg_pool2d(pixels(one.x[styles])[:, 3:], m.shape[2]) for m in maps]
    expected = [gram(m, a).mean(0) for m, a in zip(maps, small, strict=True)]
    for sizes in ((7,), (1, 2, 4), (5, 2)):
        ours, start = learner_of(one), 0
        given = Case(one.blueprint, one.options, one.x[styles], ["3"] * 7)
        for size in sizes:
            assert ours.learn(given.batch(start, size), update_generator(SEED, start)).loss == 0.0  # no contents yet
            start += size
        state = ours.capture().training
        assert state["style/seen"] == 7
        for layer, target in enumerate(expected, start=1):
            torch.testing.assert_close(state[f"style/{layer}"], target)
        assert ours.replay_size == 0


def test_the_mean_follows_styles_that_change() -> None:
    one = started(style_window=10)
    ours = learner_of(one)
    for shade, count in ((255, 30), (51, 30)):
        plain = torch.full((1, 1, 16, 16), shade, dtype=torch.uint8)
        for _ in range(count):
            ours.learn(Case(one.blueprint, one.options, plain, ["3"]).batch(0, 1), update_generator(SEED, 0))
    brightness = ours.capture().training["style/0"][0, 1]  # type: ignore[index]
    assert brightness.item() == pytest.approx(0.2 + 0.8 * 0.9**30, abs=1e-4)


def test_alpha_and_what_is_transparent_stay_as_they_are() -> None:
    one = started(4, learning_rate=1e-2)
    ours, _ = taught(one, stripes(channels=4), 8)
    restyled = ours.model.restyle(one.x[:20])
    assert torch.equal(restyled[:, 3], one.x[:20, 3])
    hidden = (one.x[:20, 3:] == 0).expand(-1, 4, -1, -1)
    assert hidden.any()
    assert torch.equal(restyled[hidden], one.x[:20][hidden])
    assert not torch.equal(restyled[:, :3], one.x[:20, :3])
    other = one.x[:20].clone()
    other[:, :3] = torch.where(other[:, 3:] == 0, 77, other[:, :3])
    visible = (one.x[:20, 3:] > 0).expand(-1, 4, -1, -1)
    assert torch.equal(ours.model.restyle(other)[visible], restyled[visible])  # what is not seen has no influence


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (21, 64)])
def test_any_size_is_restyled_each_picture_by_itself(size: tuple[int, int]) -> None:
    ours, _ = taught(started(depth=2), stripes(), 3)
    x = (255 * uniform(3, 1, *size)).to(torch.uint8)
    together = ours.model.restyle(x)
    assert (together.shape, together.dtype) == (x.shape, torch.uint8)
    assert not torch.equal(together, x)
    assert torch.equal(ours.model.restyle(x[1:2])[0], together[1])
    assert ours.model.restyle(x[:0]).shape == (0, 1, *size)


def test_the_report_is_of_the_incoming_contents_before_the_update() -> None:
    one = started(replay_draws=7)
    ours, _ = taught(one, stripes(), 3)
    twin, _ = taught(one, stripes(), 3)
    batch = one.batch(50, labels=[None, "3", "5", None, "3", None, "7", None])
    x = pixels(batch.x[[0, 2, 3, 5, 6, 7]])
    backbone: Backbone = twin._backbone
    with torch.no_grad():
        restyled = twin.model(x)
        deep = backbone.maps(restyled)[-1], backbone.maps(x)[-1]
        maps = [torch.cat([restyled, torch.ones_like(restyled)], 1), *backbone.maps(restyled)]
        before = [torch.cat([x, torch.ones_like(x)], 1), *backbone.maps(x)]
        of_restyled, of_content = ([gram(m, torch.ones_like(m[:, :1])) for m in each] for each in (maps, before))
        styles = style_loss(of_restyled, of_content, twin._styles)
        contents = content_loss(*deep, torch.ones_like(deep[0][:, :1]))
        beyond = (restyled - restyled.clamp(0, 1)).square().flatten(1).mean(1)
    report = ours.learn(batch, update_generator(SEED, 50))
    assert report.metrics == {
        "content_loss": pytest.approx(contents.mean().item(), rel=1e-4),
        "style_loss": pytest.approx(styles.mean().item(), rel=1e-4),
    }
    expected = contents + 40 * styles + 0.1 * variation(restyled) + 10 * beyond
    assert report.loss == pytest.approx(expected.mean().item(), rel=1e-4)


def test_styles_are_never_replayed_as_contents() -> None:
    one = started(replay_slots=200)
    ours = learner_of(one)
    for update in range(4):
        ours.learn(one.batch(50 * update, 50), update_generator(SEED, update))
    rows = ours._memory.columns()["origins"][:, 2].tolist()
    assert all(one.labels[row] != "3" for row in rows)
    assert len(rows) == sum(label != "3" for label in one.labels)
    alone = ours.learn(Case(one.blueprint, one.options, stripes(), ["3"] * 8).batch(0), update_generator(SEED, 10))
    assert math.isfinite(alone.loss)
    assert set(alone.metrics) == {"content_loss", "style_loss"}  # of replayed contents


def test_a_backbone_is_for_training_alone_and_stored_once() -> None:
    one = started()
    ours, _ = taught(one, stripes(), 1)
    first = ours.capture()
    assert not any("features" in name for name in first.serving)
    later = ours.capture().training
    names = [name for name in later if name.startswith("features/")]
    assert names
    assert all(not isinstance(v, Rows) or not len(v.changed) for v in (later[n] for n in names))  # type: ignore[arg-type]
    assert same(one.restored(cloned(first)).capture(), first)


def test_what_it_needs_is_named() -> None:
    assert BLUEPRINT.sources(started().options) == {"source": Reference("version", "before")}
    from_file = ImageRestylerOptions(architecture="vgg16", weights="vgg16.pth")
    assert BLUEPRINT.sources(from_file) == {"weights": Reference("file", "vgg16.pth")}
    with pytest.raises(ValidationError, match="backbone is needed"):
        ImageRestylerOptions()


def test_pictures_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="16 pixels on each side, not 8 × 20"):
        ImageRestylerLearner(ImageRestylerOptions(source="before"), (1, 8, 20), SEED, CPU)
