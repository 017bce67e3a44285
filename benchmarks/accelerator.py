"""What a GPU is asked before it is trusted: `python -m benchmarks.accelerator --device cuda`. No server is needed.

Of each built-in learner that starts from nothing, at its default size, in the deterministic mode: whether two runs and
a restart agree to the last bit, which is what `verify` and keyframes that are apart rest on; what the mode costs; how
far the weights are from the CPU's, where equal bits are not promised. Of the feed's `Uplink`: whether what is copied
while updates run arrives as it was, and what that saves.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.data import digits
from benchmarks.machine import machine, versions
from benchmarks.report import Figure, Findings, keep
from consumers.worker.environment import use_deterministic
from consumers.worker.feed import Uplink
from consumers.worker.worker import pick_device
from models.learner import Batch, Learner, Rows, State, move, update_generator
from models.registry import BUILTIN

PICTURES = ("image-classifier", "image-resnet", "image-analytic", "image-vae", "image-gan", "image-restorer")
TEXTS = ("text-classifier", "text-analytic", "text-gru", "text-generator")
CPU = torch.device("cpu")
SIZE, PAIRS = 64, 5  # records an update; timed with and without, in turn
Batches = Sequence[Batch]


def pictures(count: int) -> Batches:
    """So many batches of digits."""
    found = digits(count * SIZE)
    return [batch(torch.from_numpy(found.x[at : at + SIZE]), found.labels[at : at + SIZE]) for at in starts(count)]


def texts(count: int) -> Batches:
    """So many batches of random letters, called by their first one."""
    x = torch.randint(ord("a"), ord("z"), (count * SIZE, 64), generator=torch.Generator().manual_seed(0)).int()
    parts = [x[at : at + SIZE] for at in starts(count)]
    return [batch(some, [chr(row[0]) for row in some.tolist()]) for some in parts]


def starts(count: int) -> range:
    return range(0, count * SIZE, SIZE)


def batch(x: Tensor, labels: Sequence[str]) -> Batch:
    numbers = torch.arange(len(x))
    return Batch(x, list(labels), torch.stack([0 * numbers, 0 * numbers, numbers], 1), torch.zeros(len(x), 16).byte())


def made(name: str, stream: Batches, device: torch.device) -> Learner:
    blueprint = BUILTIN[name]
    return blueprint.learner(blueprint.options(), tuple(stream[0].x.shape[1:]), 0, device)


def learn(learner: Learner, stream: Batches, first: int = 0) -> None:
    for update, one in enumerate(stream, first):
        learner.learn(one, update_generator(0, update))


def everything(learner: Learner) -> dict[str, Tensor]:
    state = learner.capture()
    return whole({**state.serving, **state.training})


def whole(values: Mapping[str, Tensor | Rows]) -> dict[str, Tensor]:
    """The same on the CPU, in tensors of their own."""
    found = {name: value.tensor if isinstance(value, Rows) else value for name, value in values.items()}
    return {name: tensor.clone() for name, tensor in move(found, CPU).items()}


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest, over all tensors; 0 where every bit is equal."""
    apart = [0.0]
    for name, tensor in one.items():
        if not torch.equal(tensor, other[name]):
            apart.append(max((tensor.double() - other[name].double()).abs().max().item(), 5e-324))
    return max(apart)


def restarted(name: str, stream: Batches, device: torch.device, learner: Learner) -> Learner:
    """Another learner that goes on from this one's state, as a version has it: on the CPU."""
    state, other = learner.capture(), made(name, stream, device)
    other.restore(State(whole(state.serving), whole(state.training), state.meta))
    return other


def same_bits(name: str, stream: Batches, device: torch.device) -> tuple[float, float, float]:
    """The largest difference between two runs, with a restart in the middle, and from the CPU."""
    one, other, here = made(name, stream, device), made(name, stream, device), made(name, stream, CPU)
    middle = len(stream) // 2
    learn(one, stream)
    learn(here, stream)
    learn(other, stream[:middle])
    again = restarted(name, stream, device, other)
    learn(other, stream[middle:], middle)
    learn(again, stream[middle:], middle)
    runs, restart, from_cpu = (difference(everything(one), everything(each)) for each in (other, again, here))
    return runs, restart, from_cpu


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of wall time, until the device has done all of it."""
    started_s = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - started_s


def cost(name: str, stream: Batches, device: torch.device) -> tuple[list[float], list[float]]:
    """Records/s without the deterministic mode; seconds in it over those without, in alternated pairs."""
    learners = {mode: made(name, stream, device) for mode in (False, True)}
    rates, ratios = [], []
    for number in range(PAIRS + 1):
        taken = {}
        for mode in (False, True) if number % 2 else (True, False):
            use_deterministic(mode)
            taken[mode] = seconds(partial(learn, learners[mode], stream, number * len(stream)), device)
        rates.append(len(stream) * SIZE / taken[False])
        ratios.append(taken[True] / taken[False])
    use_deterministic(True)
    return rates[1:], ratios[1:]  # the first pair warms up


def beside(stream: Batches, device: torch.device, learner: Learner) -> None:
    """Learns each batch while the next one is on its way, as behind a feed."""
    uplink = Uplink(device)
    sent = [uplink.send(stream[0].x)]
    for update, (one, following) in enumerate(pairwise([*stream, stream[0]])):
        sent.append(uplink.send(following.x))
        uplink.arrive(sent[update])
        learner.learn(Batch(sent[update], one.labels, one.origins, one.ids), update_generator(0, update))


def uplink(stream: Batches, device: torch.device) -> tuple[float, list[float]]:
    """The largest difference from batches that are copied one by one; seconds of it over those of that, in turn."""
    plain, over = (made("image-classifier", stream, device) for _ in range(2))
    ratios = []
    for _ in range(PAIRS):
        plain_s = seconds(partial(learn, plain, stream), device)
        ratios.append(seconds(partial(beside, stream, device, over), device) / plain_s)
    return difference(everything(plain), everything(over)), ratios


def measure(device: torch.device, updates: int, say: Callable[[str], None]) -> Findings:
    """All of it. The deterministic mode is on afterwards: it is the process's."""
    figures, raw = [], {}
    use_deterministic(True)
    for name in (*PICTURES, *TEXTS):
        stream = (pictures if name in PICTURES else texts)(updates)
        runs, restart, from_cpu = same_bits(name, stream, device)
        rates, ratios = cost(name, stream, device)
        raw[name] = {"runs": runs, "restart": restart, "from_cpu": from_cpu, "per_s": rates, "cost": ratios}
        told = f"apart by {runs:.3g} and {restart:.3g}; from the CPU {from_cpu:.2g}"
        told += f"; {statistics.median(rates):,.0f} records/s without the mode, "
        told += f"which costs {statistics.median(ratios) - 1:+.0%}"
        figures.append(
            Figure(
                f"{name} on {device.type}, deterministic: two runs, a restart", told, "0 and 0", runs == restart == 0
            )
        )
        say(figures[-1].row(""))
    apart, ratios = uplink(pictures(updates), device)
    raw["uplink"] = {"apart": apart, "seconds": ratios}
    told = f"apart by {apart:.3g}; {statistics.median(ratios):.2f} of the time"
    figures.append(
        Figure(f"batches copied to {device.type} while updates run, beside one by one", told, "0", apart == 0)
    )
    say(figures[-1].row(""))
    return Findings(figures, [f"{updates} updates of {SIZE} records."], raw)


def main(
    device: Annotated[str, typer.Option(help="cuda, mps, cpu or auto.")] = "auto",
    updates: Annotated[int, typer.Option(help="Of each learner, in each run.", min=4)] = 40,
    to: Annotated[Path, typer.Option(help="Where README.md and results.json are written.")] = Path(__file__).parent,
) -> None:
    """Measures and keeps the table."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts
    found = pick_device(device)
    named = torch.cuda.get_device_name(found) if found.type == "cuda" else found.type
    findings = measure(found, updates, lambda line: print(line, flush=True))
    circumstances: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{machine()}; {named}",
        "versions": versions("none"),
    }
    keep(to, "accelerator", findings, circumstances)


if __name__ == "__main__":
    typer.run(main)
