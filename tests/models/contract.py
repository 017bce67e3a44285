"""What every learner promises, in the manner of river's `checks/`: subclass `LearnerContract` and give it a `case`."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Generic

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from models.capabilities import Classifier, Evaluated, Generator, Restorer, Restyler, Sampling, TextGenerator
from models.learner import Batch, Blueprint, Correcting, Learner, Of, Rows, State, update_generator
from tests.device import CPU, DEVICE, OTHER

SEED = 5
GREETINGS = {
    "en": ["good morning to you", "where is the library?", "thank you very much", "see you tomorrow 🙂"],
    "zh": ["早上好", "图书馆在哪里", "非常感谢你", "明天见🙂"],
    "ru": ["доброе утро", "где здесь библиотека?", "большое спасибо", "увидимся завтра"],
    "ar": ["صباح الخير", "أين المكتبة؟", "شكرا جزيلا لك", "أراك غدا"],
}


@cache
def digits(size: int = 8) -> tuple[Tensor, list[str]]:
    """scikit-learn's digits, (1797, 1, size, size) uint8, and their labels."""
    data = load_digits()
    x = torch.from_numpy(data.images * 255 / 16).to(torch.uint8)[:, None]
    return x.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3), [str(y) for y in data.target]


def texts(length: int = 32) -> tuple[Tensor, list[str]]:
    """Greetings in four scripts, sixteen times over: (256, length) int32."""
    pairs = [(text, label) for row in range(4) for label, some in GREETINGS.items() for text in [some[row]]] * 16
    points = [[ord(c) for c in text] + [0] * (length - len(text)) for text, _ in pairs]
    return torch.tensor(points, dtype=torch.int32), [label for _, label in pairs]


@dataclass(frozen=True)
class Case(Generic[Of]):
    """A learner at a small size, and records for it with at least four classes."""

    blueprint: Blueprint[Of]
    options: Of
    x: Tensor
    labels: Sequence[str]
    has_classes: bool = True  # whether the learner looks at labels

    def learner(self, seed: int = SEED, device: torch.device = DEVICE) -> Learner:
        return self.blueprint.learner(self.options, tuple(self.x.shape[1:]), seed, device)

    def batch(self, start: int, count: int = 8, labels: Sequence[str | None] | None = None) -> Batch:
        """`count` records from number `start` on, around and around."""
        rows = [number % len(self.x) for number in range(start, start + count)]
        ids = [hashlib.blake2b(str(row).encode(), digest_size=16).digest() for row in rows]
        return Batch(
            x=self.x[rows].to(DEVICE),
            labels=[self.labels[row] for row in rows] if labels is None else labels,
            origins=torch.tensor([(0, 0, row) for row in rows]),
            ids=torch.tensor([list(name) for name in ids], dtype=torch.uint8),
        )

    def learn(self, learner: Learner, updates: range, seed: int = SEED) -> list[float]:
        """The losses of updates number …, with eight records each."""
        return [learner.learn(self.batch(8 * u), update_generator(seed, u)).loss for u in updates]

    def learned(self, updates: int = 6, seed: int = SEED) -> Learner:
        learner = self.learner(seed)
        self.learn(learner, range(updates), seed)
        return learner

    def some(self, count: int) -> Tensor:
        """The first records, where the learner is."""
        return self.x[:count].to(DEVICE)


def cloned(state: State) -> State:
    """What comes back from a store: whole tensors of its own, on the CPU, and JSON that was text."""

    def copy(value: Tensor | Rows) -> Tensor:
        return (value.tensor if isinstance(value, Rows) else value).to(CPU, copy=True)

    serving = {name: copy(value) for name, value in state.serving.items()}
    training = {name: copy(value) for name, value in state.training.items()}
    return State(serving, training, json.loads(json.dumps(state.meta)))


def tensors(state: State) -> dict[str, Tensor]:
    whole = cloned(state)
    return {name: value for name, value in {**whole.serving, **whole.training}.items() if isinstance(value, Tensor)}


def same(one: State, other: State) -> bool:
    """Whether two states agree to the last bit."""
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) and one.meta == other.meta


def answers(model: object, x: Tensor, labels: Sequence[str | None]) -> Tensor:
    """What the model is for, as one tensor."""
    if isinstance(model, Generator):
        return model.generate(range(len(labels)), labels)
    if isinstance(model, TextGenerator):
        texts = ["".join(model.complete("wh", seed, Sampling(max_bytes=20))) for seed in range(len(labels))]
        return torch.tensor(list("\n".join(texts).encode()), dtype=torch.uint8)
    if isinstance(model, Restorer):
        return model.restore(x, [model.kinds[0]] * len(x))
    if isinstance(model, Restyler):
        return model.restyle(x)
    assert isinstance(model, Classifier)
    return model.classify(x)


class LearnerContract:
    """The suite. The fixture `case` says for which learner."""

    @pytest.fixture
    def case(self) -> Case:
        raise NotImplementedError

    def test_reads_its_inputs_and_never_writes_to_them(self, case: Case) -> None:
        learner, batch = case.learned(), case.batch(100)
        before = [t.clone() for t in (batch.x, batch.origins, batch.ids)]
        labels = list(batch.labels)
        learner.learn(batch, update_generator(SEED, 99))
        assert all(torch.equal(a, b) for a, b in zip(before, (batch.x, batch.origins, batch.ids), strict=True))
        assert list(batch.labels) == labels

    def test_answers_before_it_has_learned_anything(self, case: Case) -> None:
        model = case.learner().model
        assert model.classes == []
        answer = answers(model, case.some(3), [None] * 3)
        if isinstance(model, Classifier):
            assert answer.shape == (3, 0)
        elif isinstance(model, Generator | Restorer | Restyler):
            assert (answer.shape, answer.dtype) == (case.some(3).shape, torch.uint8)

    def test_learns_a_stream_of_one_class(self, case: Case) -> None:
        learner = case.learner()
        for update in range(3):
            batch = case.batch(8 * update, labels=["only"] * 8)
            assert math.isfinite(learner.learn(batch, update_generator(SEED, update)).loss)
        assert learner.model.classes == (["only"] if case.has_classes else [])

    def test_learns_a_batch_of_one(self, case: Case) -> None:
        learner = case.learner()
        for update in range(3):
            assert math.isfinite(learner.learn(case.batch(update, 1), update_generator(SEED, update)).loss)

    def test_classes_grow_in_the_order_of_first_appearance(self, case: Case) -> None:
        learner = case.learner()
        for update, labels in enumerate([["b", "a", "b"], ["a", "a", "c"], ["ü 🙂", "b", "c"]]):
            assert not learner.refuses(labels)
            learner.learn(case.batch(0, 3, labels), update_generator(SEED, update))
        assert learner.model.classes == (["b", "a", "c", "ü 🙂"] if case.has_classes else [])
        assert learner.capture().meta["classes"] == learner.model.classes

    def test_predicts_before_it_learns(self, case: Case) -> None:
        learner = case.learner()
        for update in range(8):
            batch = case.batch(8 * update)
            model = learner.model
            p = model.classify(batch.x) if isinstance(model, Classifier) else None
            known = list(model.classes)
            predicted = learner.learn(batch, update_generator(SEED, update)).predicted
            if p is None:
                assert predicted is None
            elif not known:
                assert predicted == [None] * 8
            else:
                assert predicted is not None
                chosen = [known.index(str(label)) for label in predicted]
                assert torch.equal(p[range(8), chosen], p.amax(1))  # of equal ones, any

    def test_same_seed_same_bits(self, case: Case) -> None:
        assert same(case.learned().capture(), case.learned().capture())

    def test_other_seed_other_bits(self, case: Case) -> None:
        ours, others = tensors(case.learned().capture()), tensors(case.learned(seed=SEED + 1).capture())
        assert any(not torch.equal(ours[name], others[name]) for name in ours)

    def test_lives_where_it_is_told_to(self, case: Case) -> None:
        """On another device it learns the same, and no tensor meets one that was left behind."""
        ours, there = case.learner(device=CPU), case.learner(device=OTHER)
        for update in range(3):
            if update == 2:  # it goes on from what a store gives
                state = cloned(there.capture())
                there = case.learner(device=OTHER)
                there.restore(state)
            batch, losses = case.batch(8 * update), []
            for one, device in ((ours, CPU), (there, OTHER)):
                given = Batch(batch.x.to(device), batch.labels, batch.origins, batch.ids)  # as a worker gives it
                losses.append(math.log1p(one.learn(given, update_generator(SEED, update)).loss))
            # After a step of Adam they differ where a gradient is 0 but for rounding: a GAN's by some percents; LDA's
            # first ones, of as many records as classes, are powers of ten.
            assert losses[1] == pytest.approx(losses[0], rel=0.25 if update else 1e-4)
        here, elsewhere = tensors(ours.capture()), tensors(there.capture())
        assert {name: tensor.shape for name, tensor in here.items()} == {n: t.shape for n, t in elsewhere.items()}
        if isinstance(there.model, torch.nn.Module):
            weights = there.model.state_dict().values()
            assert {w.device for w in weights if w.dim()} == {OTHER}
        there_too = answers(there.model, case.x[:3].to(OTHER), [None] * 3)
        if not isinstance(there.model, TextGenerator):  # a text ends elsewhere after rounding
            assert there_too.shape == answers(ours.model, case.x[:3], [None] * 3).shape

    def test_touches_no_global_random_numbers(self, case: Case) -> None:
        before = (torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tobytes(), random.getstate())
        answers(case.learned().model, case.some(2), [None, None])
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (np.random.get_state(legacy=False)["state"]["key"].tobytes(), random.getstate())

    def test_goes_on_to_the_last_bit_after_a_restart(self, case: Case) -> None:
        learner = case.learned()
        state = cloned(learner.capture())
        restored = case.learner(seed=SEED + 1)
        restored.restore(state)
        assert same(restored.capture(), state)
        assert case.learn(restored, range(6, 16)) == case.learn(learner, range(6, 16))
        assert same(restored.capture(), learner.capture())
        assert restored.replay_size == learner.replay_size

    def test_when_versions_are_made_does_not_matter(self, case: Case) -> None:
        often, once = case.learner(), case.learner()
        for update in range(12):
            case.learn(often, range(update, update + 1))
            often.capture()
        case.learn(once, range(12))
        assert same(often.capture(), once.capture())

    def test_a_corrected_label_is_what_is_replayed_from_then_on(self, case: Case) -> None:
        """Whatever became of the learner, the same follows: the class, the row that changed, the losses."""
        learner, restored = case.learned(), case.learner(seed=SEED + 1)
        if not (learner.needs_label and learner.replay_size):
            return
        before = cloned(learner.capture())
        restored.restore(before)
        assert isinstance(learner, Correcting)
        assert isinstance(restored, Correcting)
        id_ = sorted(learner.remembered())[0]
        assert sorted(restored.remembered())[0] == id_
        for one in (learner, restored):
            assert not one.correct(bytes(16), "nobody's", update_generator(SEED, 6))
            assert one.correct(id_, "another", update_generator(SEED, 6))
        assert learner.model.classes == [*before.meta["classes"], "another"]
        training = learner.capture().training
        memory = next(name for name in training if name.endswith("memory/y")).removesuffix("y")  # it may be a part's
        y = training[f"{memory}y"]
        assert isinstance(y, Rows)
        assert y.changed is not None
        assert len(y.changed)
        for slot in y.changed.tolist():
            assert y.tensor[slot] == len(learner.model.classes) - 1
            assert bytes(tensors(before)[f"{memory}ids"][slot].tolist()) == id_
        assert case.learn(restored, range(7, 12)) == case.learn(learner, range(7, 12))
        assert same(restored.capture(), learner.capture())

    def test_a_restart_copies_what_it_is_given(self, case: Case) -> None:
        state = cloned(case.learned().capture())
        before = cloned(state)
        restored = case.learner()
        restored.restore(state)
        case.learn(restored, range(6, 9))
        assert same(state, before)

    def test_a_missing_tensor_is_named(self, case: Case) -> None:
        state = cloned(case.learned().capture())
        name = next(iter(state.serving))
        incomplete = {key: value for key, value in state.serving.items() if key != name}
        with pytest.raises(ValueError, match=name):
            case.learner().restore(State(incomplete, state.training, state.meta))

    def test_a_tensor_of_another_shape_is_named(self, case: Case) -> None:
        state = cloned(case.learned().capture())
        for kind in ("serving", "training"):
            names = list(getattr(state, kind))
            for name in names[:: math.ceil(len(names) / 8) or 1]:  # of many, some
                parts = {"serving": dict(state.serving), "training": dict(state.training)}
                parts[kind][name] = torch.zeros(1, 2, 3, 4, 5)
                with pytest.raises(ValueError, match=name.split("/")[-1].split(".", 1)[-1]):
                    case.learner().restore(State(parts["serving"], parts["training"], state.meta))

    def test_its_state_does_not_grow_with_the_stream(self, case: Case) -> None:
        learner = case.learned(20)
        size = {name: tensor.shape for name, tensor in tensors(learner.capture()).items()}
        case.learn(learner, range(20, 40))
        assert {name: tensor.shape for name, tensor in tensors(learner.capture()).items()} == size
        assert learner.replay_size <= learner.replay_capacity

    def test_rows_that_are_not_named_as_changed_are_unchanged(self, case: Case) -> None:
        learner = case.learned()
        first = learner.capture()
        assert all(
            v.changed is None for v in [*first.serving.values(), *first.training.values()] if isinstance(v, Rows)
        )
        stored = cloned(first)
        restored = case.learner()
        restored.restore(stored)
        for one in (learner, restored):
            before = tensors(stored)
            for updates in (range(0), range(6, 8), range(8, 20)):
                case.learn(one, updates)
                state = one.capture()
                for name, value in {**state.serving, **state.training}.items():
                    if isinstance(value, Rows):
                        self._check_rows(name, value, before[name], moved=bool(updates))
                before = tensors(state)

    @staticmethod
    def _check_rows(name: str, rows: Rows, before: Tensor, *, moved: bool) -> None:
        assert rows.changed is not None, f"{name}: rows are tracked from the first capture on"
        assert moved or not len(rows.changed), f"{name}: nothing was learned, so nothing changed"
        assert rows.changed.tolist() == sorted(set(rows.changed.tolist())), f"{name}: sorted and unique"
        replayed, tensor = before.clone(), rows.tensor.cpu()
        replayed[rows.changed] = tensor[rows.changed]
        assert torch.equal(replayed, tensor), f"{name}: another row changed as well"

    def test_the_served_model_answers_as_the_learner_does(self, case: Case) -> None:
        learner = case.learned()
        state = cloned(learner.capture())
        served = case.blueprint.model(case.options, tuple(case.x.shape[1:]), state.meta)
        served.load_state_dict(state.serving)
        if isinstance(served, torch.nn.Module):
            served.to(DEVICE)
        assert served.classes == learner.model.classes
        labels = [None, *learner.model.classes[:3]]
        assert torch.equal(answers(served, case.some(4), labels), answers(learner.model, case.some(4), labels))

    def test_probabilities_sum_to_one(self, case: Case) -> None:
        model = case.learned().model
        if isinstance(model, Classifier):
            p = model.classify(case.some(9)).cpu()
            assert (p.shape, p.dtype) == ((9, len(model.classes)), torch.float32)
            torch.testing.assert_close(p.sum(1), torch.ones(9))

    def test_a_drawing_depends_on_its_own_seed_and_label_alone(self, case: Case) -> None:
        model = case.learned().model
        if isinstance(model, Generator):
            a, b = model.classes[:2]
            seeds, labels = [4, 7, 7, 9], [a, b, None, a]
            together = model.generate(seeds, labels)
            assert (together.shape, together.dtype) == ((4, *case.x.shape[1:]), torch.uint8)
            for row, (seed, label) in enumerate(zip(seeds, labels, strict=True)):
                assert torch.equal(model.generate([seed], [label])[0], together[row])
            assert not torch.equal(together[0], together[3])
            assert torch.equal(model.draw(model.latents(seeds), labels), together)
            assert model.generate([], []).shape == (0, *case.x.shape[1:])
            with pytest.raises(KeyError, match="never"):
                model.generate([1], ["never"])

    def test_an_evaluation_repeats_and_takes_labels_that_are_unknown(self, case: Case) -> None:
        model = case.learned().model
        if isinstance(model, Evaluated):
            labels = [None, "never", *model.classes[:2]]
            first = model.evaluate(case.some(4), labels)
            assert math.isfinite(first)
            assert model.evaluate(case.some(4), labels) == first

    def test_unlabelled_records_are_learned_where_no_label_is_needed(self, case: Case) -> None:
        learner = case.learner()
        batch = case.batch(0, labels=[None] * 7 + ["one"])
        if learner.needs_label:
            with pytest.raises(ValueError, match="label"):
                learner.learn(batch, update_generator(SEED, 0))
        else:
            assert math.isfinite(learner.learn(batch, update_generator(SEED, 0)).loss)
            assert learner.model.classes == (["one"] if case.has_classes else [])
