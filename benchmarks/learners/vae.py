"""The VAE: its drawings of clothes after one pass and three, transfer between two VAEs, speed beside a plain loop."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.learners.data import Set, batches, clothes, digits, learn
from benchmarks.learners.gan import Judge
from benchmarks.report import Figure, Findings
from models.evaluation.drawings import bits_per_dimension, frechet_distance, quality
from models.images import vae as image_generator
from models.images.vae import ImageVae, ImageVaeLearner, ImageVaeOptions
from models.learner import Rows, Source, update_generator
from models.network import pixels

CPU = torch.device("cpu")
OPTIONS = ImageVaeOptions(kl_warmup_updates=200)
SMALL = {"width": 16, "latent": 8, "replay_draws": 32, "young_updates": 0}  # of the two that transfer
FEW = 20  # records a class of the target
BUDGETS = (10, 60)  # updates
SHAPE = (1, 28, 28)
CHUNK = 500
JUDGE_PASSES = 3  # over the training set
#: of clothes, in the order of their numbers
NAMES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def measure(data: Path, sheets: Path, say: Callable[[str], None]) -> Findings:
    """All of it, with seeds of 0."""
    found = [_drawings(data, sheets, say), _transfer(data, say), _speed(data, say)]
    raw = {name: value for part in found for name, value in part.raw.items()}
    return Findings([f for part in found for f in part.figures], [n for part in found for n in part.notes], raw)


def _drawings(data: Path, sheets: Path, say: Callable[[str], None]) -> Findings:
    train, test = clothes(data).shuffled(0), clothes(data, "test")
    judge = Judge(train, test, JUDGE_PASSES)
    real, learned, accuracy = judge.features(test.x), judge.features(train.x[: len(test)]), judge.right
    floor = frechet_distance(real, learned)
    say(f"the judge: accuracy {accuracy:.3f}; Fréchet distance of as many training pictures {floor:.2f}")

    vae = image_generator.ImageVaeLearner(OPTIONS, SHAPE, 0, CPU)
    figures: list[Figure] = []
    raw: dict[str, Any] = {"judge_accuracy": accuracy, "frechet_of_training_pictures": floor}
    for passes in (1, 2, 3):
        updates = math.ceil(len(train) / 64)
        for _ in learn(vae, train.shuffled(passes), first_update=(passes - 1) * updates):
            pass
        if passes == 2:
            continue
        drawn = _drawn(vae.model, test.labels)
        judged = quality(real, learned, judge.features(drawn))
        asked, bits = judge.agrees(drawn, test.labels), _bits(vae.model, test)
        raw[f"after {passes}"] = {**judged, "as_asked": asked, "bits_per_dimension": bits}
        what = f"image-vae, Fashion-MNIST, {passes} pass{'es' if passes > 1 else ''}"
        figures += _rows(what, judged, asked, accuracy, bits)
        say(f"after {passes}: {raw[f'after {passes}']}")

    rows = [_drawn(vae.model, [label] * 12, seed=1) for label in sorted(set(test.labels))]
    _sheet(sheets / "vae-drawings.png", rows)
    some = test.x[:24]
    mean, _ = vae.model.encode(some, [None] * 24)
    back = vae.model.draw(mean, [None] * 24)
    _sheet(sheets / "vae-reconstructions.png", [some[:12], back[:12], some[12:], back[12:]])
    note = (
        f"The judge is that of the GAN, an image-classifier after {JUDGE_PASSES} passes over the training set "
        f"({100 * accuracy:.1f} % of the test set right). Drawings are asked for with the labels of the test set; the "
        f"judge's {real.shape[1]} features give the distances, and as many training pictures in place of drawings have "
        f"a Fréchet distance of {floor:.1f}. Bits per dimension are of pixels as probabilities (Bernoulli), whose "
        "least value is the pixels' own entropy."
    )
    sheet = (
        f"Sheets: vae-drawings.png, a row a class ({', '.join(NAMES)}); vae-reconstructions.png, below each picture."
    )
    return Findings(figures, [note, sheet], raw)


def _rows(what: str, judged: Mapping[str, float], asked: float, real: float, bits: float) -> list[Figure]:
    likeness = ", ".join(f"{name} {judged[name]:.2f}" for name in ("precision", "density", "coverage"))
    copies = f"copies {100 * judged['memorised_share']:.1f} % (chance: 1 %)"
    return [
        Figure(f"{what}: Fréchet distance", f"{judged['frechet_distance']:.1f}", "the GAN's is lower"),
        Figure(
            f"{what}: classified as asked (of real test pictures: {100 * real:.1f} %)",
            f"{100 * asked:.1f} %",
            "≥ 90 %",
            asked >= 0.9,
        ),
        Figure(f"{what}: of the drawings", f"{likeness}; {copies}"),
        Figure(f"{what}: test set", f"{bits:.4f} bits per dimension"),
    ]


def _transfer(data: Path, say: Callable[[str], None]) -> Findings:
    source_set, source_test = digits(data).shuffled(0).take(range(20_000)), digits(data, "test").take(range(1000))
    source = image_generator.ImageVaeLearner(ImageVaeOptions.model_validate(SMALL), SHAPE, 0, CPU)
    for _ in learn(source, source_set):
        pass
    before, version = _nats(source.model, source_test), _version(source)
    train, test = clothes(data).shuffled(0), clothes(data, "test").take(range(2000))
    few, validation = _few(train), train.take(range(50_000, 51_000))

    ways: dict[str, dict[str, Any]] = {
        "from scratch": {},
        "from the source": {"source": "digits"},
        "from the source, decoder's end frozen": {"source": "digits", "freeze": ("up", "out")},
        "from the source, which stays in the loss": {"source": "digits", "source_weight": 0.3},
    }
    found: dict[str, dict[int, dict[str, float]]] = {way: {} for way in ways}
    for way, settings in ways.items():
        for updates in BUDGETS:
            tried = []
            for rate in (3e-3, 1e-2, 3e-2):
                vae = _taught({**SMALL, **settings, "learning_rate": rate}, version, few, updates)
                tried.append((_nats(vae.model, validation), rate, vae.model))
            _, rate, best = min(tried, key=lambda each: each[0])
            nats = {"nats": _nats(best, test), "source_nats": _nats(best, source_test)}
            found[way][updates] = {**nats, "learning_rate": rate}
        say(f"transfer, {way}: {found[way]}")
    least = {updates: found["from scratch"][updates]["nats"] for updates in BUDGETS}
    what = f"image-vae, MNIST → Fashion-MNIST, {FEW} records a class, {' and '.join(map(str, BUDGETS))} updates"
    figures = []
    for way, each in found.items():
        told = ", ".join(f"{each[updates]['nats']:.1f}" for updates in BUDGETS)
        better = all(each[updates]["nats"] < least[updates] for updates in BUDGETS)
        wanted = ("less than from scratch", better) if way != "from scratch" else ()
        figures.append(Figure(f"{what}: nats per test record, {way}", told, *wanted))
    after, kept = (
        found[way][BUDGETS[-1]]["source_nats"]
        for way in ("from the source", "from the source, which stays in the loss")
    )
    note = (
        f"Transfer: updates of 64 of {10 * FEW} records and 32 replayed ones, each way and number of updates with the "
        f"best of three learning rates on 1,000 other training records. The source, learned from 20,000 digits, has "
        f"{before:.0f} nats on them, {after:.0f} after {BUDGETS[-1]} updates and {kept:.0f} where it stays in the loss."
    )
    return Findings(figures, [note], {"transfer": found, "source_nats_before": before})


def _taught(settings: dict[str, Any], version: Source, few: Set, updates: int) -> ImageVaeLearner:
    start = {"source": version} if "source" in settings else {}
    vae = image_generator.ImageVaeLearner(ImageVaeOptions.model_validate(settings), SHAPE, 0, CPU, start)
    for _ in learn(vae, few.take([row % len(few) for row in range(updates * 64)])):
        pass
    return vae


def _few(train: Set) -> Set:
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(train.labels[:20_000]):
        rows.setdefault(label, []).append(row)
    return train.take([row for each in rows.values() for row in each[:FEW]]).shuffled(0)


def _version(learner: ImageVaeLearner) -> Source:
    state = learner.capture()
    tensors = {name: (v.tensor if isinstance(v, Rows) else v).clone() for name, v in state.serving.items()}
    options = learner.options.model_dump(mode="json")
    return Source("", tensors, {}, {}, "image-vae", options, SHAPE, state.meta)


def _speed(data: Path, say: Callable[[str], None]) -> Findings:
    """Rounds of both, one after the other, by CPU time: what else runs on the machine hits both alike."""
    train = clothes(data).shuffled(0).take(range(6400))
    stream = list(batches(train))
    vae = image_generator.ImageVaeLearner(OPTIONS.model_copy(update={"young_updates": 0}), SHAPE, 0, CPU)
    plain = Plain(train.x, [int(label) for label in train.labels])
    rates: dict[str, list[float]] = {"learner": [], "plain": []}
    for number in range(11):
        some = range(number * 9, number * 9 + 9)
        for name, step in (("learner", lambda u: vae.learn(stream[u], update_generator(0, u))), ("plain", plain.step)):
            started_s = time.process_time()
            for update in some:
                step(update)
            if number:  # the first round warms up
                rates[name].append(64 * len(some) / (time.process_time() - started_s))
    ratio = statistics.median(a / b for a, b in zip(rates["learner"], rates["plain"], strict=True))
    learner_rate, plain_rate = (statistics.median(rates[name]) for name in ("learner", "plain"))
    say(f"speed: {learner_rate:.0f} and {plain_rate:.0f} records per CPU second: {ratio:.3f}")
    figure = Figure(
        "image-vae fed from RAM, beside the same network in a plain loop: records per CPU second",
        f"{learner_rate:,.0f} of {plain_rate:,.0f}: {ratio:.2f}",
        "≥ 0.95",
        ratio >= 0.95,
    )
    return Findings([figure], raw={"records_per_cpu_s": rates})


class Plain:
    """What one would write without headrace: the network, torch's own AdamW, records replayed from a tensor."""

    def __init__(self, x: Tensor, y: Sequence[int]) -> None:
        self.x, self.y = x, torch.tensor(y)
        self.network = image_generator.ImageVaeLearner(OPTIONS, SHAPE, 0, CPU).model
        self.network.conditions.grow(torch.randn(10, OPTIONS.label_dim))
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=OPTIONS.learning_rate, weight_decay=0.0, fused=True
        )

    def step(self, update: int) -> float:
        rows = torch.arange(64 * update, 64 * update + 64)
        rows = torch.cat([rows, torch.randint(len(self.x), (OPTIONS.replay_draws,))])
        x, y = pixels(self.x[rows]), self.y[rows]
        y = y.masked_fill(torch.rand(len(y)) < OPTIONS.label_dropout, -1)
        reconstruction, kl = self.network.losses(x, y, torch.randn(len(x), OPTIONS.latent))
        self.optimizer.zero_grad()
        (reconstruction + OPTIONS.beta * kl).mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return (reconstruction + kl)[:64].mean().item()


@torch.no_grad()
def _drawn(model: ImageVae, labels: Sequence[str], seed: int = 0) -> Tensor:
    """As `draw` does, but for rounding many at once."""
    z = torch.randn(len(labels), model.latent, generator=torch.Generator().manual_seed(seed))
    numbers = torch.tensor(model.numbers(labels))
    shades = [model.shades(z[at : at + CHUNK], numbers[at : at + CHUNK]) for at in range(0, len(z), CHUNK)]
    return (255 * torch.cat(shades).clamp(0, 1)).round().to(torch.uint8)


def _nats(model: ImageVae, records: Set) -> float:
    starts = range(0, len(records), CHUNK)
    chunks = [(records.x[at : at + CHUNK], records.labels[at : at + CHUNK]) for at in starts]
    return sum(len(x) * model.evaluate(x, labels) for x, labels in chunks) / len(records)


def _bits(model: ImageVae, records: Set) -> float:
    return bits_per_dimension(_nats(model, records), math.prod(SHAPE))


def _sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Rows of grey pictures (N, 1, H, W)."""
    shades = torch.cat([torch.cat(list(row[:, 0]), 1) for row in rows])
    Image.fromarray(shades.numpy()).resize((2 * shades.shape[1], 2 * shades.shape[0]), Image.Resampling.NEAREST).save(
        path
    )
