"""Style transfer on Dungeon Crawl's tiles: walls of brown bricks are the style, all that is not dungeon the contents.

Of the shuffled tiles 4,700 are learned from, the other 818 are held out. An image-classifier that has learned the 4,700
gives the features of the loss. Another one, wider, of another seed and order, is the judge: it says which of the seven
categories a picture is of, and its own maps measure the style once more, where the restyler was not taught to please.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learners.data import Set, batches, learn, tiles
from benchmarks.report import Figure, Findings
from models.images import classifier as image_classifier, restyler as image_restyler
from models.images.backbone import Backbone, BackboneOptions
from models.images.restyler import ImageRestyler, ImageRestylerLearner, gram, opacity, style_loss
from models.learner import Rows, Source, update_generator
from models.network import pixels

CPU = torch.device("cpu")
SHAPE = (4, 32, 32)
SEEN = 4700  # tiles that are learned from
STYLE = r"/brick_brown_?\d+\.png$"
FEATURES: Mapping[str, Any] = {"learning_rate": 2e-3, "replay_draws": 0}
PASSES_OF_FEATURES, PASSES_OF_JUDGE = 6, 8
OPTIONS: Mapping[str, Any] = {"source": "tiles", "learning_rate": 4e-3}
PASSES, BATCH = 4, 16
PAIRS = 7
COLUMNS = 20  # of the sheet


def measure(data: Path, sheets: Path, say: Callable[[str], None]) -> Findings:
    """Style, content, records/s, and a sheet."""
    records, styles = tiles(data), style_tiles(data)
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).tolist()
    seen, held = records.take(order[:SEEN]), records.take(order[SEEN:])
    source = classifier(seen, PASSES_OF_FEATURES, 1, FEATURES)
    judge = classifier(seen, PASSES_OF_JUDGE, 7, {**FEATURES, "width": 64})
    contents, asked = (part.take([k for k, y in enumerate(part.labels) if y != "dungeon"]) for part in (seen, held))
    right = recognised(judge, held.x, held.labels)
    say(f"the judge is right about {right:.1%} of {len(held)} held-out tiles")

    learner = started(source)
    model = taught(learner, styles, contents, say)
    restyled = model.restyle(asked.x)
    raw: dict[str, Any] = {"judge, held-out tiles": right, "styles": len(styles), "contents asked": len(asked)}
    figures = []
    for name, told in (("the features of the loss", source), ("the judge's own features", judge)):
        eyes = Backbone.of_sources(BackboneOptions(source="it"), {"source": told})
        before, after = (distance(eyes, styles, asked.x, x) for x in (asked.x, restyled))
        theirs = distance(eyes, styles, styles, styles)
        raw[name] = {"as it is": before, "restyled": after, "styles": theirs}
        say(f"style distance, {name}: {before:.3f} as it is, {after:.3f} restyled, {theirs:.3f} of styles")
        share = after / before
        what = f"style transfer, crawl_tiles: style distance (Gram) by {name}, restyled (as it is; of the styles)"
        found = f"{after:.3f} ({before:.3f}; {theirs:.3f}): {share:.2f} of it"
        figures.append(Figure(what, found, "< 0.5", share < 0.5) if told is source else Figure(what, found))
    as_it_is, still = recognised(judge, asked.x, asked.labels), recognised(judge, restyled, asked.labels)
    raw["recognised"] = {"as it is": as_it_is, "restyled": still}
    what = f"style transfer, crawl_tiles: content recognised (right about {right:.1%} of all held-out tiles), restyled"
    found = f"{still:.1%} (as it is {as_it_is:.1%}): {still / as_it_is:.2f} of it"
    figures.append(Figure(what, found, "≥ 0.8", still >= 0.8 * as_it_is))
    say(f"{what}: {found}")
    sheet(styles, asked, restyled, sheets / "style-tiles.png")

    shares = [pair(source, styles, contents.take(range(640))) for _ in range(PAIRS)]
    share = statistics.median(ours / theirs for ours, theirs in shares)
    rates = [statistics.median(each) for each in zip(*shares, strict=True)]
    raw["records/s"] = shares
    what = "image-restyler: records a second of CPU of the learner fed from RAM, of a plain torch loop"
    told_rates = f"{rates[0]:.0f}, {rates[1]:.0f}: {share:.2f} of it (median of {PAIRS} alternated pairs)"
    figures.append(Figure(what, told_rates, "≥ 0.95", share >= 0.95))
    notes = [
        f"Style: the {len(styles)} walls of brown bricks. Contents: tiles of six categories without the dungeon's, "
        f"{PASSES} passes over {len(contents)} of them; asked: {len(asked)} that were held out. The judge sees alpha "
        "too, which stays as it is.",
    ]
    return Findings(figures, notes, raw)


def style_tiles(data: Path) -> Tensor:
    """(N, 4, 32, 32) uint8"""
    with np.load(data / "crawl_tiles" / "tiles32_rgba.npz") as arrays:
        rows = [row for row, path in enumerate(arrays["paths"].tolist()) if re.search(STYLE, path)]
        return torch.from_numpy(arrays["x"][rows]).permute(0, 3, 1, 2).contiguous()


def classifier(records: Set, passes: int, seed: int, options: Mapping[str, Any]) -> Source:
    """A version of an image-classifier."""
    made = image_classifier.ImageClassifierOptions.model_validate(options)
    learner = image_classifier.BLUEPRINT.learner(made, SHAPE, seed, CPU)
    for each in range(passes):
        for _ in learn(learner, records.shuffled(100 * seed + each), batch_size=32, seed=seed):
            pass
    state = learner.capture()
    serving = {n: (v.tensor if isinstance(v, Rows) else v).clone() for n, v in state.serving.items()}
    return Source("", serving, {}, {}, "image-classifier", made.model_dump(mode="json"), SHAPE, state.meta)


def started(source: Source) -> ImageRestylerLearner:
    """An untrained restyler whose loss looks through this version."""
    options = image_restyler.ImageRestylerOptions.model_validate(OPTIONS)
    return image_restyler.ImageRestylerLearner(options, SHAPE, 0, CPU, {"source": source})


def taught(learner: ImageRestylerLearner, styles: Tensor, contents: Set, say: Callable[[str], None]) -> ImageRestyler:
    """The styles once, then the contents, around and around."""
    for _ in learn(learner, Set(styles, ["style"] * len(styles)), batch_size=BATCH):
        pass
    for each in range(PASSES):
        updates = each * -(-len(contents) // BATCH)
        given = contents.shuffled(each)
        told = [r.metrics for r in learn(learner, given, batch_size=BATCH, first_update=updates + 1000)][-50:]
        means = {name: statistics.mean(metrics[name] for metrics in told) for name in told[-1]}
        say(f"pass {each + 1}: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
    return learner.model


@torch.no_grad()
def distance(eyes: Backbone, styles: Tensor, contents: Tensor, x: Tensor) -> float:
    """Mean of S over pictures x (N, 4, H, W) uint8 made of contents, by Gram matrices of maps and of the colours."""

    def grams(pictures: Tensor) -> list[Tensor]:
        shown = pixels(pictures)
        maps = [torch.cat([shown[:, :3], torch.ones_like(shown[:, :1])], 1), *eyes.maps(shown)]
        alpha = opacity(shown, 3)
        return [gram(each, F.adaptive_avg_pool2d(alpha, (each.shape[2], each.shape[3]))) for each in maps]

    target = [each.mean(0) for each in grams(styles)]
    visible = (contents[:, 3] > 0).flatten(1).any(1)
    return style_loss(grams(x[visible]), grams(contents[visible]), target).mean().item()


def recognised(judge: Source, x: Tensor, labels: list[str] | Any) -> float:
    """Share of the pictures that the judge takes for what they are."""
    options = image_classifier.ImageClassifierOptions.model_validate(judge.options)
    model = image_classifier.model(options, SHAPE, judge.meta)
    model.load_state_dict(judge.tensors)
    taken = [model.classes[k] for part in torch.split(x, 500) for k in model.classify(part).argmax(1)]
    return sum(map(str.__eq__, taken, labels)) / len(labels)


def sheet(styles: Tensor, asked: Set, restyled: Tensor, path: Path) -> None:
    """A row of styles, and rows of contents with what became of them below, on grey, twice as large."""
    large = [row for row in range(len(asked)) if (asked.x[row, 3] > 0).float().mean() > 0.3]
    chosen = [large[k * len(large) // (3 * COLUMNS)] for k in range(3 * COLUMNS)]
    rows = [styles[[k % len(styles) for k in range(COLUMNS)]]]
    for start in range(0, len(chosen), COLUMNS):
        part = chosen[start : start + COLUMNS]
        rows += [asked.x[part], restyled[part]]
    shown = torch.stack(rows).float()  # (R, COLUMNS, 4, 32, 32)
    alpha = shown[:, :, 3:] / 255
    opaque = shown[:, :, :3] * alpha + 96 * (1 - alpha)
    canvas = torch.nn.functional.pad(opaque, (0, 2, 0, 2), value=40).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    picture = Image.fromarray(canvas.round().to(torch.uint8).numpy())
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(path, optimize=True)


def pair(source: Source, styles: Tensor, contents: Set) -> tuple[float, float]:
    """Records/s of the learner and of a plain loop over the same contents, one right after the other."""
    learner, other = started(source), started(source)
    for each in (learner, other):
        each.learn(next(batches(Set(styles, ["style"] * len(styles)), len(styles))), update_generator(0, 0))
    given = list(batches(contents, BATCH))
    started_s = time.process_time()
    for update, batch in enumerate(given):
        learner.learn(batch, update_generator(0, update))
    ours_s = time.process_time() - started_s
    return len(contents) / ours_s, len(contents) / plain(other, contents)


def plain(other: ImageRestylerLearner, contents: Set) -> float:
    """Seconds of a loop as one writes it without headrace, with replay from a list of all contents seen."""
    options, network, eyes, targets = other.options, other.model, other._backbone, other._styles
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(0)
    loss_sum = style_sum = 0.0
    started_s = time.process_time()
    for start in range(0, len(contents), BATCH):
        inputs = contents.x[start : start + BATCH]
        if start:
            inputs = torch.cat([inputs, contents.x[torch.randint(start, (options.replay_draws,), generator=generator)]])
        x = inputs.float() / 255
        restyled = network(x)
        with torch.no_grad():
            content = [torch.cat([x[:, :3], torch.ones_like(x[:, :1])], 1), *eyes.maps(x)]
        maps = [torch.cat([restyled[:, :3], torch.ones_like(restyled[:, :1])], 1), *eyes.maps(restyled)]
        alphas = [F.adaptive_avg_pool2d(x[:, 3:], (each.shape[2], each.shape[3])) for each in maps]
        grams, before = ([gram(m, a) for m, a in zip(each, alphas, strict=True)] for each in (maps, content))
        style = style_loss(grams, before, targets)
        colour = restyled[:, :3]
        losses = options.content_weight * image_restyler.content_loss(maps[-1], content[-1], alphas[-1])
        losses = losses + options.style_weight * style + options.variation_weight * image_restyler.variation(colour)
        losses = losses + image_restyler.EXCESS * (colour - colour.clamp(0, 1)).square().flatten(1).mean(1)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        loss_sum, style_sum = loss_sum + losses[:BATCH].mean().item(), style_sum + style[:BATCH].mean().item()
    return time.process_time() - started_s
