"""The GAN on clothes and on tiles: Fréchet distance beside the VAE's, whether a drawing is what was asked for, sheets.

Distances are between features of a classifier of the project's, learned from the training set: between 10,000 test
pictures and 10,000 drawings, 1,000 a class. `python -m benchmarks.learners.gan DATA FOLDER` learns alone, for as long
as it takes: after every pass it says how far it is, and keeps learners and findings in FOLDER. From there both it and
`python -m benchmarks.learners gan --kept FOLDER`, which writes the table, go on.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learners import data as sets
from benchmarks.report import Figure, Findings
from models.evaluation.drawings import frechet_distance
from models.images import classifier as image_classifier, gan as image_gan, vae as image_generator
from models.images.gan_losses import gradient_penalties
from models.images.gan_networks import Discriminator, ImageGan, identical_at_first
from models.images.generator import DrawingNetwork
from models.learner import Blueprint, Learner, Options, Rows, State, update_generator
from models.network import pixels, seeded

CPU = torch.device("cpu")
#: tuned on 50,000 records of the training set, against features of the other 10,000
CLOTHES = image_gan.ImageGanOptions(width=16, replay_draws=16)
TILES = image_gan.ImageGanOptions(
    width=16, replay_slots=0, replay_draws=0, augmentation=("translation",), label_dropout=0.0
)
#: as an operator would who sees a small gradient penalty and soft drawings: with another version, other options
TILES_LATER = TILES.model_copy(update={"penalty": 0.02, "matching": 1.0})
TILES_SOFT = 14  # passes before that
JUDGE = image_classifier.ImageClassifierOptions(learning_rate=2e-3, average=0.998, replay_slots=0)
BATCH = 16
TILES_BATCH = 32  # nothing is replayed: all of the set comes around again
CHUNK = 250
CLOTHES_PASSES = (1, 3)
TILES_PASSES = 30
TILES_SEEN = 4700  # of 5,518; the others tell how often the classifier is right about real ones
DRAWINGS = 10_000
ROUNDS = 11

Say = Callable[[str], None]


def measure(data: Path, sheets: Path, say: Say, kept: Path | None = None) -> Findings:
    """Both sets.

    Args:
        kept: a folder where learners are kept after every pass, and taken up from.
    """
    found = {name: measured(data, sheets, say, kept) for name, measured in SETS.items()}
    found["speed"] = speed(data, say)
    figures = [figure for each in found.values() for figure in each.figures]
    notes = [note for each in found.values() for note in each.notes]
    return Findings(figures, notes, {name: each.raw for name, each in found.items()})


def on_clothes(data: Path, sheets: Path, say: Say, kept: Path | None) -> Findings:
    """GAN and VAE, with the same records in the same order."""
    train, test = sets.clothes(data).shuffled(0), sets.clothes(data, "test")
    judge = Judge(train, test, 3)
    say(f"clothes: the classifier is right about {judge.right:.1%} of the test set")
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for name, blueprint, options, batch_size in (
        ("GAN", image_gan.BLUEPRINT, CLOTHES, BATCH),
        ("VAE", image_generator.BLUEPRINT, image_generator.ImageVaeOptions(), 64),
    ):
        learning = Learning(f"clothes-{name}", blueprint, options, train, batch_size, kept)
        found[name] = {}
        for passes in range(1, max(CLOTHES_PASSES) + 1):
            learning.until(passes, say)
            if passes in CLOTHES_PASSES:
                distance, agrees = found[name][passes] = learning.found(passes, judge, DRAWINGS)
                say(f"clothes, {name}, pass {passes}: distance {distance:.1f}, as asked {agrees:.1%}")
        if name == "GAN":
            drawn, _ = drawings(learning.model, 100)
            sheet(drawn.view(10, 10, *drawn.shape[1:]).transpose(0, 1), sheets / "gan-clothes.png")
    figures = []
    for passes in CLOTHES_PASSES:
        (ours, agrees), (theirs, beside) = found["GAN"][passes], found["VAE"][passes]
        what = f"GAN, Fashion-MNIST, {passes} pass{'es' if passes > 1 else ''}"
        figures += [
            Figure(f"{what}: Fréchet distance", f"{ours:.1f}", f"< {theirs:.1f} (VAE)", ours < theirs),
            Figure(
                f"{what}: drawings classified as asked (VAE: {beside:.1%})", f"{agrees:.1%}", "≥ 90 %", agrees >= 0.9
            ),
        ]
    note = f"Clothes: of real test pictures the classifier takes {judge.right:.1%} for what they are."
    return Findings(figures, [note], {name: {str(k): v for k, v in each.items()} for name, each in found.items()})


def on_tiles(data: Path, sheets: Path, say: Say, kept: Path | None) -> Findings:
    """The GAN on art, around and around."""
    records = sets.tiles(data).shuffled(0)
    train, held = records.take(range(TILES_SEEN)), records.take(range(TILES_SEEN, len(records)))
    judge = Judge(train, held, 12)
    say(f"tiles: the classifier is right about {judge.right:.1%} of {len(held)} held-out tiles")
    learning = Learning("tiles-GAN", image_gan.BLUEPRINT, TILES, train, TILES_BATCH, kept)
    for passes in range(1, TILES_PASSES + 1):
        if passes == TILES_SOFT + 1:
            learning.go_on(TILES_LATER)
        learning.until(passes, say)
        distance, agrees = learning.found(passes, judge, 1400)
        say(f"tiles, pass {passes}: distance {distance:.1f}, as asked {agrees:.1%}")
        if passes == learning.passes:
            drawn, _ = drawings(learning.model, 1400)
            kinds = len(learning.model.classes)
            sheet(drawn.view(-1, kinds, *drawn.shape[1:])[:10].transpose(0, 1), sheets / "gan-tiles.png")
    near, apart = nearest(drawn[: 2 * kinds], train.x)
    sheet(torch.stack([drawn[: 2 * kinds], near]), sheets / "gan-tiles-nearest.png")
    _, real_apart = nearest(held.x, train.x)
    asked = f"GAN, crawl_tiles, {TILES_PASSES} passes: drawings classified as asked (held-out tiles: {judge.right:.1%})"
    figures = [
        Figure(asked, f"{agrees:.1%}", "≥ 70 %", agrees >= 0.7),
        Figure(
            "the same: distance of a drawing to the nearest learned tile, median (of a held-out tile)",
            f"{nearest(drawn, train.x)[1].median().item():.3f} ({real_apart.median().item():.3f})",
        ),
    ]
    note = (
        f"Tiles: from pass {TILES_SOFT + 1} on with γ = {TILES_LATER.penalty} and matching = {TILES_LATER.matching} in "
        f"place of {TILES.penalty} and {TILES.matching}, chosen with these very figures in view; what drawings look "
        "like, and that three categories have nearly one picture each, is on the learner's page."
    )
    return Findings(figures, [note], {"distance": distance, "as asked": agrees, "to nearest": apart.tolist()})


SETS = {"clothes": on_clothes, "tiles": on_tiles}


def speed(data: Path, say: Say) -> Findings:
    """Rounds of both, one after the other, by CPU time: what else runs on the machine hits both alike."""
    train = sets.clothes(data).shuffled(0).take(range(1600))
    stream = list(sets.batches(train, BATCH))
    gan = image_gan.ImageGanLearner(CLOTHES, tuple(train.x.shape[1:]), 0, CPU)
    plain = Plain(train.x, [int(label) for label in train.labels])
    rates: dict[str, list[float]] = {"learner": [], "plain": []}
    for number in range(ROUNDS):
        some = range(number * 8, number * 8 + 8)
        for name, step in (("learner", lambda u: gan.learn(stream[u], update_generator(0, u))), ("plain", plain.step)):
            started_s = time.process_time()
            for update in some:
                step(update)
            if number:  # the first round warms up
                rates[name].append(BATCH * len(some) / (time.process_time() - started_s))
    ratio = statistics.median(a / b for a, b in zip(rates["learner"], rates["plain"], strict=True))
    ours, theirs = (statistics.median(rates[name]) for name in ("learner", "plain"))
    say(f"speed: {ours:.0f} and {theirs:.0f} records per CPU second: {ratio:.3f}")
    what = "image-gan fed from RAM, beside the same networks and losses in a plain loop: records per CPU second"
    figure = Figure(what, f"{ours:,.0f} of {theirs:,.0f}: {ratio:.2f}", "≥ 0.95", ratio >= 0.95)
    return Findings([figure], raw={"records_per_cpu_s": rates})


class Plain:
    """What one would write without headrace: the networks, torch's own AdamW, records replayed from a tensor."""

    def __init__(self, x: Tensor, y: Sequence[int]) -> None:
        self.x, self.y = x, torch.tensor(y)
        shape, names = tuple(x.shape[1:]), [str(k) for k in range(10)]
        sizes = {"width": CLOTHES.width, "depth": CLOTHES.depth}
        build = partial(ImageGan, shape, names, latent=CLOTHES.latent, label_dim=CLOTHES.label_dim, **sizes)
        self.generator = identical_at_first(seeded(build, 0, CPU))
        critic = partial(Discriminator, [shape], len(names), whole=True, hidden=CLOTHES.hidden, **sizes)
        self.discriminator = identical_at_first(seeded(critic, 1, CPU))
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        settings: dict[str, Any] = {"lr": CLOTHES.learning_rate, "betas": CLOTHES.betas, "weight_decay": 0.0}
        self.generators = torch.optim.AdamW(self.generator.parameters(), fused=True, **settings)
        self.discriminators = torch.optim.AdamW(self.discriminator.parameters(), fused=True, **settings)
        for network in (self.generator, self.discriminator):
            network.conditions.weight.data[1:].normal_()

    def step(self, update: int) -> float:
        fresh = torch.arange(BATCH * update, BATCH * (update + 1))
        rows = torch.cat([fresh, torch.randint(len(self.x), (CLOTHES.replay_draws,))])
        count, turn = len(rows), slice(update % CLOTHES.penalty_every, None, CLOTHES.penalty_every)
        real, y = 2 * pixels(self.x[rows]) - 1, self.y[rows]
        other = (y + torch.randint(1, 10, y.shape)) % 10
        dropped = torch.rand(count) < CLOTHES.label_dropout
        y, other = y.masked_fill(dropped, -1), other.masked_fill(dropped, -1)
        drawn = self.generator(torch.randn(count, CLOTHES.latent), y)
        fixed = drawn.detach()

        h = self.discriminator.features([torch.cat([real, fixed])])
        true, fake, wrong = self.discriminator.scores(torch.cat([h, h[:count]]), torch.cat([y, y, other])).chunk(3)
        losses = F.softplus(fake - true)
        total = (losses + CLOTHES.matching * F.softplus(wrong - true) * (other >= 0)).mean()
        inputs = torch.cat([real[turn], fixed[turn]]).requires_grad_()
        slopes = gradient_penalties(self.discriminator([inputs], y[turn].repeat(2)), [inputs])
        total = total + 0.5 * CLOTHES.penalty * slopes.view(2, -1).sum(0).mean()
        self.discriminators.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.discriminators.step()

        with torch.no_grad():
            true = self.discriminator([real], y)
        generated = F.softplus(true - self.discriminator([drawn], y)).mean()
        self.generators.zero_grad()
        generated.backward(inputs=list(self.generator.parameters()))  # type: ignore[no-untyped-call]
        self.generators.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 0.01)
        return losses[:BATCH].mean().item() + generated.item()


class Judge:
    """A classifier that has learned the training set, in so many passes, and its features of real pictures."""

    def __init__(self, train: sets.Set, test: sets.Set, passes: int) -> None:
        learner = image_classifier.BLUEPRINT.learner(JUDGE, tuple(train.x.shape[1:]), 7, CPU)
        for each in range(passes):
            for _ in sets.learn(learner, train.shuffled(100 + each), first_update=each * len(train)):
                pass
        self._model: image_classifier.ImageClassifier = learner.model.eval()  # type: ignore[attr-defined]
        self._real = self.features(test.x)
        self.right = self.agrees(test.x, test.labels)

    def distance(self, x: Tensor) -> float:
        """Fréchet distance to the test pictures."""
        return frechet_distance(self._real, self.features(x))

    @torch.no_grad()
    def agrees(self, x: Tensor, labels: Sequence[str]) -> float:
        """Share of pictures that are taken for what they are called."""
        parts = [x[start : start + CHUNK] for start in range(0, len(x), CHUNK)]
        taken = [self._model.classes[k] for part in parts for k in self._model.classify(part).argmax(1)]
        return sum(map(str.__eq__, taken, labels)) / len(labels)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) uint8 → (N, D)"""
        return torch.cat([self._model.features(x[start : start + CHUNK]) for start in range(0, len(x), CHUNK)])


class Learning:
    """A learner and how many passes it has behind it."""

    def __init__(
        self, name: str, blueprint: Blueprint, options: Options, train: sets.Set, batch_size: int, kept: Path | None
    ) -> None:
        self._name, self._blueprint, self._train, self._batch_size = name, blueprint, train, batch_size
        self._found: dict[str, tuple[float, float]] = {}
        self._learner: Learner = blueprint.learner(options, tuple(train.x.shape[1:]), 0, CPU)
        self._path = None if kept is None else kept / f"{name}.safetensors"
        self.passes = 0
        if self._path is not None and self._path.exists():
            meta = json.loads(self._path.with_suffix(".json").read_text("utf-8"))
            tensors = load_file(self._path)
            parts = [{n[2:]: t for n, t in tensors.items() if n[0] == part} for part in "st"]
            self._learner.restore(State(parts[0], parts[1], meta["meta"]))
            self.passes, self._found = meta["passes"], meta["found"]

    @property
    def model(self) -> DrawingNetwork:
        model = self._learner.model
        assert isinstance(model, DrawingNetwork)
        return model

    def go_on(self, options: Options) -> None:
        """With other options, as a worker that restarts with them."""
        state = self._learner.capture()
        self._learner = self._blueprint.learner(options, tuple(self._train.x.shape[1:]), 0, CPU)
        self._learner.restore(state)

    def found(self, passes: int, judge: Judge, count: int) -> tuple[float, float]:
        """Distance, and share of drawings as asked, right after that pass: kept, since later it cannot be found."""
        if str(passes) not in self._found:
            assert passes == self.passes
            drawn, labels = drawings(self.model, count)
            self._found[str(passes)] = judge.distance(drawn), judge.agrees(drawn, labels)
            self._keep()
        distance, agrees = self._found[str(passes)]
        return distance, agrees

    def until(self, passes: int, say: Say) -> None:
        """Learns until there are so many."""
        while self.passes < passes:
            began, cpu = time.monotonic(), time.process_time()
            updates = -(-len(self._train) // self._batch_size)
            records = self._train.shuffled(self.passes) if self.passes else self._train
            alarms = 0
            for report in sets.learn(
                self._learner, records, batch_size=self._batch_size, first_update=self.passes * updates
            ):
                alarms += bool(report.alarms)
            self.passes += 1
            rates = [len(self._train) / s for s in (time.monotonic() - began, time.process_time() - cpu)]
            told = ", ".join(f"{name} {value:.3f}" for name, value in report.metrics.items())
            say(f"{self._name}: {rates[0]:.0f} records/s, {rates[1]:.0f} a second of CPU; {alarms} alarms; {told}")
            self._keep()

    def _keep(self) -> None:
        if self._path is None:
            return
        state = self._learner.capture()
        named = {f"s/{n}": v for n, v in state.serving.items()} | {f"t/{n}": v for n, v in state.training.items()}
        whole = {n: (v.tensor if isinstance(v, Rows) else v).contiguous() for n, v in named.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, self._path)
        self._path.with_suffix(".json").write_text(
            json.dumps({"meta": state.meta, "passes": self.passes, "found": self._found}), "utf-8"
        )


@torch.no_grad()
def drawings(model: DrawingNetwork, count: int) -> tuple[Tensor, list[str]]:
    """Pictures (N, C, H, W) uint8 of each class in turn, seeds 0 to N - 1; drawn many at once, as nothing else here."""
    labels = [model.classes[row % len(model.classes)] for row in range(count)]
    z, numbers = model.latents(range(count)), torch.tensor(model.numbers(labels))
    parts = [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]
    shades = [model.shades(z[part], numbers[part]) for part in parts]
    return (255 * torch.cat(shades).clamp(0, 1)).round().to(torch.uint8), labels


def nearest(x: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
    """The learned picture nearest to each (N, C, H, W), and how far it is: root mean square of what can be seen."""
    one, other = (seen(each).flatten(1) for each in (x, learned))
    apart = torch.cdist(one, other) / one.shape[1] ** 0.5
    least = apart.min(1)
    return learned[least.indices], least.values


def seen(x: Tensor) -> Tensor:
    """uint8 → float32 in [0, 1]; what is transparent lies on mid-grey."""
    shades = pixels(x)
    return shades if x.shape[1] < 4 else shades[:, :3] * shades[:, 3:] + 0.5 * (1 - shades[:, 3:])


def sheet(rows: Tensor, path: Path, scale: int = 2) -> None:
    """rows (R, N, C, H, W) uint8 → a PNG file."""
    height, width = rows.shape[-2:]
    shades = seen(rows.flatten(0, 1)).view(*rows.shape[:2], -1, height, width)
    whole = (
        (255 * shades)
        .round()
        .to(torch.uint8)
        .permute(0, 3, 1, 4, 2)
        .reshape(rows.shape[0] * height, rows.shape[1] * width, -1)
    )
    image = Image.fromarray(whole.squeeze(2).numpy() if whole.shape[2] == 1 else whole.numpy())
    image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST).save(path, optimize=True)


def main(
    data: Annotated[Path, typer.Argument(help="The folder of the data sets.")],
    kept: Annotated[Path, typer.Argument(help="Learners and sheets are kept here, after every pass.")],
    only: Annotated[str | None, typer.Option(help=f"One of {', '.join(SETS)}.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 2,
) -> None:
    """Measures for as long as it takes, and goes on where it was stopped."""
    torch.set_num_threads(threads)
    kept.mkdir(parents=True, exist_ok=True)
    for name in SETS if only is None else [only]:
        for figure in SETS[name](data, kept, lambda line: print(line, flush=True), kept).figures:
            print(figure.row(""))


if __name__ == "__main__":
    typer.run(main)
