"""Dreams beside means and covariances over all records; what is kept of them, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from models.dreams import SPLIT, Dreams, RecordsAndDreams
from models.images.classifier import BLUEPRINT, ImageClassifierOptions
from models.labels import NONE
from models.learner import Batch, update_generator
from models.memory import ReplayMemory
from models.strategies import StrategyName
from models.texts.classifier import BLUEPRINT as TEXT, TextClassifierOptions
from tests.device import CPU
from tests.models.contract import SEED, Case, digits, tensors

SHAPE = (1, 3, 4)
RNG = torch.Generator("cpu")


def batch(x: Tensor) -> Batch:
    return Batch(x, ["?"] * len(x), torch.zeros(len(x), 3, dtype=torch.int64), torch.zeros(len(x), 16).to(torch.uint8))


def pictures(count: int, seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def learned(x: Tensor, y: list[int], *, components: int = 1, axes: int = 12, size: int = 7) -> Dreams:
    dreams = Dreams(tuple(x.shape[1:]), CPU, components, axes)
    for start in range(0, len(x), size):
        dreams.add(batch(x[start : start + size]), y[start : start + size], RNG)
    return dreams


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 99))
def test_with_room_for_all_axes_it_is_the_mean_and_covariance_of_each_class(y: list[int], seed: int) -> None:
    x = pictures(len(y), seed)
    known = learned(x, y).columns()
    for label in set(y):
        own = x[[each == label for each in y]].flatten(1).numpy() / 255
        mean, axes = known["means"][label].numpy(), known["axes"][label].numpy()
        assert known["counts"][label] == len(own)
        np.testing.assert_allclose(mean, own.mean(0), atol=1e-5)
        np.testing.assert_allclose(axes.T @ axes, np.cov(own.T, bias=True), atol=1e-5)


def test_with_fewer_axes_it_keeps_the_longest() -> None:
    scales = torch.tensor([90.0, 60, 30] + [2] * 9)
    noise = torch.randn(2000, 12, generator=torch.Generator().manual_seed(1))
    x = (128 + scales * noise / 3).clamp(0, 255).round().to(torch.uint8).view(-1, *SHAPE)
    axes = learned(x, [0] * 2000, axes=3).columns()["axes"][0]
    eigenvalues, vectors = np.linalg.eigh(np.cov(x.flatten(1).numpy().T / 255, bias=True))
    np.testing.assert_allclose(axes.square().sum(1), eigenvalues[:-4:-1], rtol=1e-2)
    expected = vectors[:, :-4:-1]
    np.testing.assert_allclose(np.abs(np.sum((axes / axes.norm(dim=1, keepdim=True)).numpy().T * expected, 0)), 1, 1e-3)


def test_components_find_the_modes_of_a_class() -> None:
    modes = torch.tensor([20.0, 120, 230])
    which = torch.arange(1800) % 3
    noise = 5 * torch.randn(1800, 12, generator=torch.Generator().manual_seed(1))
    x = (modes[which, None] + noise).clamp(0, 255).round().to(torch.uint8).view(-1, *SHAPE)
    dreams = learned(x, [0] * 1800, components=3, axes=4)
    assert dreams.columns()["counts"].sum() == 1800
    drawn = dreams.draw(500, update_generator(SEED, 0)).x.flatten(1).to(torch.float32).mean(1)
    nearest = (drawn[:, None] - modes).abs()
    assert (nearest.amin(1) < 25).float().mean() > 0.9
    assert torch.bincount(nearest.argmin(1), minlength=3).min() > 100


def test_halves_have_the_mean_of_the_whole() -> None:
    x = pictures(SPLIT, 3)
    whole, halves = learned(x, [0] * SPLIT).columns(), learned(x, [0] * SPLIT, components=2).columns()
    assert halves["counts"].tolist() == [SPLIT / 2] * 2
    torch.testing.assert_close(halves["means"].mean(0), whole["means"][0])
    offsets = halves["means"] - whole["means"]
    covariance = (halves["axes"].mT @ halves["axes"]).mean(0) + offsets.T @ offsets / 2
    torch.testing.assert_close(covariance, whole["axes"][0].T @ whole["axes"][0], atol=1e-5, rtol=1e-4)


def test_a_class_is_touched_by_its_own_records_alone() -> None:
    x = pictures(300, 4)
    alone = learned(x[:150], [0] * 150, components=3, axes=4).columns()
    both = learned(x, [0] * 150 + [1] * 150, components=3, axes=4).columns()
    assert all(torch.equal(both[name][:3], alone[name]) for name in alone)


def test_draws_are_pictures_of_all_classes_alike_however_many_records_each_had() -> None:
    x = pictures(100, 5)
    y = [0] * 90 + [1] * 9 + [2]
    dreams = learned(x, y, components=2, axes=4)
    drawn = dreams.draw(3000, update_generator(SEED, 1))
    assert (drawn.x.shape, drawn.x.dtype) == ((3000, *SHAPE), torch.uint8)
    assert torch.bincount(drawn.y).min() > 900
    means = torch.stack([drawn.x[drawn.y == k].to(torch.float32).mean(0) for k in range(2)])
    for label in range(2):  # cutting to [0, 255] moves the mean a little
        own = x[[each == label for each in y]].to(torch.float32).mean(0)
        torch.testing.assert_close(means[label], own, atol=12, rtol=0)
    assert (drawn.x[drawn.y == 2] == x[-1]).all()  # of a single record there is nothing else to dream


def test_nothing_is_dreamed_before_there_is_a_class() -> None:
    assert Dreams(SHAPE, CPU, 2, 4).draw(8, update_generator(SEED, 0)).x.shape == (0, *SHAPE)


def test_its_size_is_what_it_says() -> None:
    dreams = learned(pictures(40, 6), list(range(4)) * 10, components=3, axes=5)
    assert sum(column.nbytes for column in dreams.columns().values()) == 4 * 3 * (4 * (1 + 5) * 12 + 8)
    assert (dreams.slots, dreams.size) == (0, 0)


def test_a_version_moves_what_changed_and_with_a_new_class_all() -> None:
    dreams = learned(pictures(40, 7), [0, 1] * 20, components=3, axes=4)

    def changed() -> list[list[int] | None]:
        taken = [rows.changed for rows in dreams.capture().values()]
        return [None if rows is None else rows.tolist() for rows in taken]

    assert changed() == [None] * 3
    dreams.add(batch(pictures(1, 8)), [1], RNG)
    assert changed() == [[3]] * 3
    dreams.add(batch(pictures(2, 9)), [1, 2], RNG)
    assert changed() == [None] * 3  # of another length: there is nothing to add rows to


def test_no_picture_can_be_found_in_the_state() -> None:
    x, labels = digits()
    options = ImageClassifierOptions(width=8, hidden=16, strategy="dreams", dream_components=4)
    case = Case(BLUEPRINT, options, x, labels)
    learner = case.learner()
    for update in range(60):
        learner.learn(case.batch(10 * update, 10), update_generator(SEED, update))
    seen = x[:600].flatten(1).to(torch.float32) / 255
    seen = seen - seen.mean(1, keepdim=True)
    seen /= seen.norm(dim=1, keepdim=True)
    for name, tensor in tensors(learner.capture()).items():
        if tensor.numel() % 64 == 0 and tensor.numel():
            rows = tensor.to(torch.float32).reshape(-1, 64)
            rows = rows - rows.mean(1, keepdim=True)
            likeness = seen @ (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9)).T  # correlation
            assert likeness.abs().max() < 0.99, name


@pytest.mark.parametrize("options", [TextClassifierOptions(strategy="dreams"), TextClassifierOptions(dream_share=0.5)])
def test_only_pictures_can_be_dreamed(options: TextClassifierOptions) -> None:
    with pytest.raises(ValueError, match="pictures"):
        TEXT.learner(options, (32,), SEED, CPU)


@pytest.mark.parametrize(("strategy", "slots", "kind"), [
    ("er", 5, RecordsAndDreams), ("er", 0, Dreams), ("dreams", 5, Dreams), ("naive", 5, ReplayMemory),
])  # fmt: skip
def test_which_memory_a_share_of_dreams_asks_for(strategy: StrategyName, slots: int, kind: type) -> None:
    options = ImageClassifierOptions(strategy=strategy, replay_slots=slots, dream_share=0.5)
    assert type(options.memory(SHAPE, torch.uint8, CPU)) is kind


def beside_records(x: Tensor, y: list[int], share: float, logits: Tensor | None = None) -> RecordsAndDreams:
    count = 0 if logits is None else logits.shape[1]
    records = ReplayMemory(len(x), SHAPE, torch.uint8, CPU, "reservoir", count)
    memory = RecordsAndDreams(records, Dreams(SHAPE, CPU, 2, 4), share)
    memory.add(numbered(x), y, update_generator(SEED, 0), logits)
    return memory


def numbered(x: Tensor) -> Batch:
    ids = torch.arange(len(x), dtype=torch.uint8)[:, None].expand(-1, 16).contiguous()
    return Batch(x, ["?"] * len(x), torch.zeros(len(x), 3, dtype=torch.int64), ids)


@given(st.integers(0, 40), st.floats(0.01, 0.99), st.integers(0, 99))
def test_beside_records_a_share_is_dreamed(count: int, share: float, seed: int) -> None:
    x = pictures(9, 3)
    drawn = beside_records(x, [0, 1, 2] * 3, share).draw(count, update_generator(seed, 0))
    dreamed = drawn.slots == NONE
    assert dreamed.sum() == round(share * count)
    assert (~dreamed).sum() == min(9, count - round(share * count))
    assert torch.equal(drawn.x[~dreamed], x[drawn.slots[~dreamed]])
    assert torch.equal(drawn.y[~dreamed], drawn.slots[~dreamed] % 3)


def test_beside_records_no_dream_is_compared_with_logits_that_it_never_had() -> None:
    memory = beside_records(pictures(2, 3), [0, 1], 0.5, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    found = memory.logits(torch.tensor([1, NONE, 0]))
    assert found is not None
    assert found[0][[0, 2]].tolist() == [[3, 4], [1, 2]]
    assert found[1].tolist() == [[True, True], [False, False], [True, True]]
    assert beside_records(pictures(2, 3), [0, 1], 0.5).logits(torch.tensor([NONE])) is None


def test_beside_records_a_flush_takes_a_class_from_both_and_a_correction_reaches_the_record() -> None:
    memory = beside_records(pictures(9, 3), [0, 1, 2] * 3, 0.5)
    memory.relabel(bytes([5] * 16), 0)
    assert memory.flush(2) == 2  # of three, one is of another class now
    assert (memory.slots, memory.size) == (9, 7)
    assert set(memory.draw(200, update_generator(SEED, 0)).y.tolist()) == {0, 1}
    assert bytes([5] * 16) in memory.remembered()


def test_a_flushed_class_is_dreamed_no_more_until_it_comes_again() -> None:
    x, y = pictures(90, 3), [row % 3 for row in range(90)]
    dreams = learned(x, y, components=2)
    dreams.capture()
    before = {name: column.clone() for name, column in dreams.columns().items()}
    assert dreams.flush(1) == 30
    assert dreams.flush(1) == 0
    assert set(dreams.draw(200, update_generator(SEED, 0)).y.tolist()) == {0, 2}
    for name, rows in dreams.capture().items():
        assert rows.changed is not None
        column = before[name.removeprefix("memory/")]
        column[rows.changed] = rows.tensor[rows.changed]
        assert torch.equal(column, rows.tensor)
    again = pictures(1, 4)
    dreams.add(batch(again), [1], RNG)
    drawn = dreams.draw(200, update_generator(SEED, 1))
    assert torch.equal(torch.unique(drawn.x[drawn.y == 1], dim=0), again)  # of one record, that is all there is


@pytest.mark.parametrize("seed", range(8))
def test_pictures_that_span_hardly_anything_are_learned(seed: int) -> None:
    """Of one colour each: all axes but one are nothing, and the solver must bear that."""
    shades = torch.randperm(256, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    x = shades[:, None, None, None].expand(-1, 1, 8, 8)
    dreams = learned(x, [0] * len(x), components=20, axes=24)
    assert all(column.isfinite().all() for column in dreams.columns().values())
    drawn = dreams.draw(64, update_generator(SEED, 0)).x.flatten(1).float()
    assert drawn.std(1).max() < 1  # they are of one colour, too
