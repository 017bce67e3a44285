"""Avalanche over the streams in a folder, in an environment of its own, without headrace: see `peers`.

For every `N.npz` (N, the seed) a `N.json`: accuracies after each stretch, of each record whether it was predicted
before it was learned, CPU seconds, bytes. Each ten records are an experience, as in Avalanche's own online examples.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.benchmarks.utils import DataAttribute, TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.training import ER_ACE, Naive
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

BATCH = 10
STRATEGIES = ("naive", "er", "er-ace")


class Before(SupervisedPlugin):  # type: ignore[misc]
    """What is predicted of the incoming records, which come before the replayed ones, before the update."""

    def __init__(self) -> None:
        super().__init__()
        self.hits: list[bool] = []

    def after_forward(self, strategy: Any, **_: Any) -> None:
        count = len(strategy.experience.dataset)
        self.hits += (strategy.mb_output.argmax(1) == strategy.mb_y)[:count].tolist()


def network_for(x: Tensor, classes: int) -> nn.Module:
    """The layers of headrace's image-classifier for pictures of 17 to 32 pixels a side, or of its text-classifier."""
    if not x.is_floating_point():
        table = nn.EmbeddingBag(1 + (1 << 16), 128, mode="mean", padding_idx=0)
        nn.init.normal_(table.weight, std=0.1)
        return nn.Sequential(table, nn.LayerNorm(128), nn.Linear(128, classes))

    def block(before: int, after: int, kernel: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        return [convolution, nn.GroupNorm(8, after), nn.ReLU()]

    maps = [*block(x.shape[1], 32, 5, 2), *block(32, 64, 3, 2), *block(64, 64, 3, 1)]
    return nn.Sequential(*maps, nn.Flatten(), nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, classes))


def learn(arrays: Any, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """One pass. `arrays`: x (N, C, H, W) uint8 or (N, M) int32, y (N,), ends (S,), test_x, test_y, test_stretch, each
    test record's, record_bytes."""
    for generator in (torch.manual_seed, random.seed, np.random.seed):  # Avalanche draws from all of these
        generator(seed)
    x, test_x = (scaled(torch.from_numpy(arrays[name])) for name in ("x", "test_x"))
    y, test_y = (torch.from_numpy(arrays[name]) for name in ("y", "test_y"))
    network = network_for(x, int(y.max()) + 1)
    network(x[:1])
    before = Before()
    plugins: list[Any] = [before]
    settings = {
        "model": network,
        "optimizer": getattr(torch.optim, chosen.optimizer)(network.parameters(), chosen.rate),
        "train_mb_size": BATCH,
        "evaluator": None,
        "plugins": plugins,
    }
    if chosen.strategy == "er-ace":
        strategy = ER_ACE(mem_size=chosen.slots, batch_size_mem=chosen.draws, **settings)
    else:
        if chosen.strategy == "er":
            memory = ClassBalancedBuffer(chosen.slots)
            plugins.append(ReplayPlugin(chosen.slots, batch_size_mem=chosen.draws, storage_policy=memory))
        strategy = Naive(**settings)

    ends = arrays["ends"].tolist()
    of_stretch = torch.from_numpy(arrays["test_stretch"])
    records = classified(x, y)
    stretches = [records.subset(range(a, b)) for a, b in zip([0, *ends], ends, strict=False)]
    by_part: list[list[float]] = []
    learned, spent_s, began_s = 0, 0.0, time.process_time()
    for experience in split_online_stream(benchmark_from_datasets(train=stretches).train_stream, BATCH, shuffle=False):
        strategy.train(experience, eval_streams=[])
        learned += len(experience.dataset)
        if learned == ends[len(by_part)]:
            spent_s += time.process_time() - began_s
            hits = right(network, test_x, test_y)
            by_part.append([hits[of_stretch == k].mean().item() for k in range(len(by_part) + 1)])
            began_s = time.process_time()
    stored = 0 if chosen.strategy == "naive" else chosen.slots * int(arrays["record_bytes"])
    return {
        "versions": {"avalanche-lib": version("avalanche-lib"), "torch": version("torch")},
        "by_part": by_part,
        "hits": before.hits,
        "spent_s": spent_s,
        "stored_bytes": stored,
        "state_bytes": stored + sum(parameter.nbytes for parameter in network.parameters()),
    }


def scaled(x: Tensor) -> Tensor:
    """Pictures from 0 to 1; texts are as they are."""
    return x / 255 if x.dtype == torch.uint8 else x


class Column(list[int]):
    """A list that is equal to itself alone: Avalanche merges such ones, and keeps a growing list of others."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


def classified(x: Tensor, y: Tensor) -> Any:
    """An Avalanche dataset; every strategy wants a task label in its items, here always 0."""
    tasks = DataAttribute(ConstantSequence(0, len(y)), "targets_task_labels", use_in_getitem=True)
    targets = DataAttribute(Column(y.tolist()), "targets")
    return TaskAwareSupervisedClassificationDataset([TensorDataset(x, y)], data_attributes=[targets, tasks])


@torch.no_grad()
def right(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """x (N, …), y (N,) → (N,) float32, 1 where the network is right"""
    network.eval()
    found = torch.cat([network(part).argmax(1) for part in torch.split(x, 500)])
    network.train()
    return (found == y).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("strategy", choices=STRATEGIES)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--draws", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--optimizer", choices=("SGD", "Adam"), required=True)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    warnings.showwarning = lambda *_, **__: None  # Avalanche warns of a deprecated call of its own at every update
    for path in sorted(chosen.folder.glob("*.npz")):
        with np.load(path) as arrays:
            found = learn(dict(arrays), int(path.stem), chosen)
        path.with_suffix(".json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
