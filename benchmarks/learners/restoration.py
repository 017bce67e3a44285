"""The image restorer on tiles that it never learned, against the classic method for each kind of damage."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import minimum_filter, uniform_filter
from skimage import restoration
from skimage.transform import resize
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learners.data import Set, batches, learn, tiles_apart
from benchmarks.pairs import alternated
from benchmarks.report import Figure, Findings
from models.images import degradations, restorer as image_restorer
from models.images.restorer import psnr, ssim
from models.learner import update_generator
from models.network import pixels

Picture = NDArray[np.float64]  # (H, W, C) in [0, 1]
SEED, LOOPS, BATCH = 0, 16, 32
OPTIONS: Mapping[str, Any] = {"damages": ("holes", "noise", "fog", "resolution"), "replay_draws": 0}
CPU = torch.device("cpu")
TUNING = 48  # training tiles on which the classic methods' settings are chosen
SHOWN = 8  # tiles of each kind in the sheet, from all over what is held back: neighbours are variants
PAIRS, UPDATES = 7, 6  # of learner and plain loop; in each


@dataclass(frozen=True)
class Damage:
    """One way to damage pictures and the classic ways to undo it."""

    name: str
    kind: str  # as the restorer is told
    damage: Callable[[Tensor, torch.Generator], degradations.Damaged]
    #: name → function of a damaged picture, its missing pixels (H, W) and settings; settings to choose from
    classics: Mapping[str, tuple[Callable[..., Picture], Mapping[str, Sequence[Any]]]]


def half(x: Tensor, rng: torch.Generator) -> degradations.Damaged:
    """The means of 2 × 2 pixels, each shown as 2 × 2 again."""
    return degradations.whole(F.interpolate(degradations.smaller(x, 2), x.shape[2:], mode="nearest"))


def noisy(x: Tensor, rng: torch.Generator) -> degradations.Damaged:
    """σ = 25/255, cut to what 8 bits can hold."""
    return degradations.whole(x + 25 / 255 * torch.randn(x.shape, generator=rng))


def inpainted(y: Picture, holes: NDArray[np.bool_]) -> Picture:
    return np.asarray(restoration.inpaint_biharmonic(y, holes, channel_axis=-1))


def denoised(method: Callable[..., Any], y: Picture, holes: NDArray[np.bool_], /, **settings: Any) -> Picture:
    return np.asarray(method(y, channel_axis=-1, **settings))


def enlarged(y: Picture, holes: NDArray[np.bool_]) -> Picture:
    """Bicubic, from the small picture."""
    large = resize(y[::2, ::2], y.shape, order=3, mode="edge", anti_aliasing=False)  # type: ignore[no-untyped-call]
    return np.asarray(large)


def dehazed(y: Picture, holes: NDArray[np.bool_], patch: int, omega: float, radius: int) -> Picture:
    """The dark channel prior (He, Sun and Tang 2009), transmission refined by the guided filter (He et al. 2010)."""
    colours = y[..., :3]
    least = minimum_filter(colours.min(2), patch)
    brightest = np.argsort(least, axis=None)[-max(1, least.size // 1000) :]
    candidates = colours.reshape(-1, 3)[brightest]
    light = np.maximum(candidates[candidates.sum(1).argmax()], 0.05)  # (3,)
    t = 1 - omega * minimum_filter((colours / light).min(2), patch)
    guide, mean = colours.mean(2), partial(uniform_filter, size=2 * radius + 1)
    slope = (mean(guide * t) - mean(guide) * mean(t)) / (mean(guide * guide) - mean(guide) ** 2 + 1e-3)
    t = mean(slope) * guide + mean(mean(t) - slope * mean(guide))
    clear = (colours - light) / np.maximum(t, 0.1)[..., None] + light
    return np.concatenate([clear, y[..., 3:]], 2)


DENOISERS: dict[str, tuple[Callable[..., Picture], Mapping[str, Sequence[Any]]]] = {
    "non-local means": (
        partial(denoised, restoration.denoise_nl_means, sigma=25 / 255),
        {"h": [0.04, 0.06, 0.08, 0.1, 0.14], "patch_size": [3, 5], "patch_distance": [7, 11], "fast_mode": [False]},
    ),
    "total variation": (
        partial(denoised, restoration.denoise_tv_chambolle),
        {"weight": [0.04, 0.06, 0.08, 0.1, 0.14, 0.2]},
    ),
    "bilateral": (
        partial(denoised, restoration.denoise_bilateral),
        {"sigma_color": [0.1, 0.2, 0.3, 0.4, 0.6], "sigma_spatial": [0.7, 1, 1.5, 2]},
    ),
}
if importlib.util.find_spec("pywt"):
    DENOISERS["wavelet"] = (
        partial(denoised, restoration.denoise_wavelet, rescale_sigma=True),
        {
            "sigma": [15 / 255, 25 / 255],
            "method": ["BayesShrink", "VisuShrink"],
            "wavelet": ["haar", "db2", "sym4"],
            "mode": ["soft", "hard"],
        },
    )
DAMAGES = (
    Damage("inpainting", "holes", degradations.holes, {"biharmonic": (inpainted, {})}),
    Damage("noise σ = 25/255", "noise", noisy, DENOISERS),
    Damage(
        "fog",
        "fog",
        degradations.fog,
        {"dark channel": (dehazed, {"patch": [3, 5, 9, 15], "omega": [0.5, 0.65, 0.8, 0.95], "radius": [2, 4, 8]})},
    ),
    Damage("half resolution", "resolution", half, {"bicubic": (enlarged, {})}),
)


def composited(x: Tensor) -> Tensor:
    """x (B, 4, H, W) on mid-grey, (B, 3, H, W)."""
    return x[:, :3] * x[:, 3:] + 0.5 * (1 - x[:, 3:])


def scores(x: Tensor, y: Tensor) -> dict[str, float]:
    """Means over pictures, of the four channels as they are and composited; and PSNR of the error of all pictures."""
    found = {"psnr_db": psnr(x, y), "ssim": ssim(x, y)}
    found |= {
        "composited_psnr_db": psnr(composited(x), composited(y)),
        "composited_ssim": ssim(composited(x), composited(y)),
    }
    return {name: values.mean().item() for name, values in found.items()} | {
        "pooled_psnr_db": -10 * (x - y).square().mean().log10().item()
    }


def classic(method: Callable[..., Picture], damaged: degradations.Damaged, /, **settings: Any) -> Tensor:
    """Each picture by itself, rounded to 8 bits."""
    rows = []
    for picture, holes in zip(damaged.x.permute(0, 2, 3, 1).double().numpy(), damaged.holes[:, 0].numpy(), strict=True):
        restored = method(picture, holes, **settings) if holes.any() or method is not inpainted else picture
        rows.append(torch.from_numpy(np.ascontiguousarray(restored)).float().permute(2, 0, 1))
    return degradations.whole(torch.stack(rows)).x


def tuned(damage: Damage, train: Set) -> dict[str, dict[str, Any]]:
    """Each classic method's settings with the highest PSNR on some of the tiles that are learned."""
    x = pixels(train.x[:TUNING])
    damaged = damage.damage(x, torch.Generator().manual_seed(SEED + 1))
    chosen = {}
    for name, (method, choices) in damage.classics.items():
        settings = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
        run = partial(classic, method, damaged)
        chosen[name] = max(settings, key=lambda one: psnr(x, run(**one)).mean().item()) if choices else {}
    return chosen


def restored(model: image_restorer.ImageRestorer, damaged: degradations.Damaged, kind: str | None) -> Tensor:
    x = (255 * damaged.x).round().to(torch.uint8)
    return pixels(model.restore(x, [kind] * len(x), damaged.holes))


def compared(
    damage: Damage, model: image_restorer.ImageRestorer, train: Set, test: Set
) -> tuple[dict[str, Any], Image.Image]:
    """Scores of the damaged tiles, the classic methods, the restorer told and blind; and a part of the sheet."""
    x = pixels(test.x)
    damaged = damage.damage(x, torch.Generator().manual_seed(SEED))
    settings = tuned(damage, train)
    pictures = {"damaged": damaged.x}
    pictures |= {name: classic(method, damaged, **settings[name]) for name, (method, _) in damage.classics.items()}
    pictures |= {"ours": restored(model, damaged, damage.kind), "ours, blind": restored(model, damaged, None)}
    found = {name: scores(x, of) for name, of in pictures.items()}
    best = max(damage.classics, key=lambda name: found[name]["psnr_db"])
    shown = [of[:: len(x) // SHOWN][:SHOWN] for of in (x, damaged.x, pictures[best], pictures["ours"])]
    return {"scores": found, "settings": settings, "best": best}, rows_of(shown)


def rows_of(rows: Sequence[Tensor], scale: int = 2, gap: int = 4) -> Image.Image:
    """Pictures (N, 4, H, W) in each row, on mid-grey, enlarged by repetition."""
    height, width = (scale * side + gap for side in rows[0].shape[2:])
    sheet = Image.new("RGB", (width * len(rows[0]) + gap, height * len(rows) + gap), (255, 255, 255))
    for row, pictures in enumerate(rows):
        values = (255 * composited(pictures)).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for column, picture in enumerate(values):
            image = Image.fromarray(picture)
            image = image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
            sheet.paste(image, (gap + width * column, gap + height * row))
    return sheet


def beside(parts: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """Two by two."""
    width, height = parts[0].size
    sheet = Image.new("RGB", (2 * width + gap, 2 * height + gap), (255, 255, 255))
    for number, part in enumerate(parts):
        sheet.paste(part, ((width + gap) * (number % 2), (height + gap) * (number // 2)))
    return sheet


def pairs(train: Set) -> list[float]:
    """The learner's speed over that of a plain torch loop, in alternated pairs; neither replays.

    The loop has the same network, damage and kernel for AdamW, and PSNR and SSIM from the pass that learns, as the
    learner; no average of its weights.
    """
    options = image_restorer.ImageRestorerOptions.model_validate({**OPTIONS, "replay_slots": 0})
    learner = image_restorer.ImageRestorerLearner(options, (4, 32, 32), SEED, CPU)
    network = image_restorer.ImageRestorerLearner(options, (4, 32, 32), SEED, CPU).model.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=0.0, fused=True)
    stream = list(batches(train.take(range(UPDATES * 2 * BATCH)), 2 * BATCH))
    taught = torch.tensor([degradations.KINDS.index(kind) for kind in options.damages])

    def plain() -> None:
        for update, batch in enumerate(stream):
            rng = update_generator(SEED, update)
            x = pixels(batch.x)
            kinds = taught[torch.randint(len(taught), (len(x),), generator=rng)]
            y, holes = degradations.damaged(x, kinds, rng)
            optimizer.zero_grad()
            restored, logits = network(y, kinds, holes), network.diagnose(y, holes)
            loss = image_restorer.losses(x, restored).mean()
            (loss + F.cross_entropy(logits, kinds)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            shown = restored.detach().clamp(0, 1)
            right = (logits.argmax(1) == kinds).float()
            for value in (loss, psnr(x, shown).mean(), ssim(x, shown).mean(), psnr(x, y).mean(), right.mean()):
                value.item()

    def ours() -> None:
        for update, batch in enumerate(stream):
            learner.learn(batch, update_generator(SEED, update))

    return [plain_s / ours_s for ours_s, plain_s in alternated(ours, plain, PAIRS)]


def learned(train: Set, say: Callable[[str], None]) -> tuple[image_restorer.ImageRestorer, dict[str, float]]:
    """The served model after `LOOPS` passes in different orders, and what the last of them reported."""
    options = image_restorer.ImageRestorerOptions.model_validate(OPTIONS)
    learner = image_restorer.ImageRestorerLearner(options, (4, 32, 32), SEED, CPU)
    update, started = 0, time.process_time()
    for loop in range(LOOPS):
        reports = list(learn(learner, train.shuffled(loop), batch_size=BATCH, seed=SEED, first_update=update))
        update += len(reports)
        means = {name: statistics.fmean(one.metrics[name] for one in reports) for name in reports[0].metrics}
        cpu_s = time.process_time() - started
        told = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        say(f"loop {loop + 1}: {told}, {cpu_s:.0f} s of CPU")
    return learner.model, {**means, "cpu_s": cpu_s}


def measure(data: Path, sheets: Path, say: Callable[[str], None]) -> Findings:
    """Learns the tiles that are not held back, restores those that are, and the pairs."""
    train, test = tiles_apart(data), tiles_apart(data, "test")
    train = train.shuffled(SEED)
    model, told = learned(train, say)
    figures, raw, parts = [], {"learned": told, "tiles": [len(train), len(test)]}, []
    for damage in DAMAGES:
        found, part = compared(damage, model, train, test)
        raw[damage.name] = found
        parts.append(part)
        figures.append(figure(damage, found))
        say(figures[-1].found)
    ratios = raw["ratios"] = pairs(train)
    ratio = statistics.median(ratios)
    told_ratio = f"{ratio:.2f} (median of {PAIRS} alternated pairs, {min(ratios):.2f}–{max(ratios):.2f})"
    what = "image-restorer fed from RAM / the same network in a plain loop with the same damage, records/s"
    figures.append(Figure(what, told_ratio, "≥ 0.95", ratio >= 0.95))
    beside(parts).quantize(256).save(sheets / "restoration-tiles.png", optimize=True)
    notes = [
        f"{len(test)} tiles held back, {len(train)} learned in {LOOPS} loops ({told['cpu_s']:.0f} s of CPU), with four "
        "kinds of damage; tiles whose names agree in their letters stay together, and "
        "none that is learned is near one that is held back.",
        "Scores are means over tiles, of the four channels as they are (PSNR cut at 58.92 dB). ✓: above damaged and "
        "every classic method, whose settings were chosen on tiles that are learned, in PSNR and SSIM, as they are and "
        "composited on mid-grey, and in the PSNR of all tiles' error together.",
        "Small pictures are means of 2 × 2; damaged, each is shown as 2 × 2 pixels; bicubic starts from the small one.",
    ]
    return Findings(figures, notes, raw)


def figure(damage: Damage, found: Mapping[str, Any]) -> Figure:
    """PSNR and SSIM of all, and whether ours are above both in every way of computing them."""
    every = found["scores"]
    ours, others = every["ours"], [every[name] for name in ("damaged", *damage.classics)]
    reached = all(value > max(other[name] for other in others) for name, value in ours.items())
    shown = [f"{name} {every[name]['psnr_db']:.2f} dB, {every[name]['ssim']:.3f}" for name in every]
    return Figure(
        f"crawl_tiles held back, {damage.name}: PSNR, SSIM", "; ".join(shown), "above damaged and classic", reached
    )
