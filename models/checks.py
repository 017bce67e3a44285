"""What every learner promises, as checks for your own tests, in the manner of scikit-learn and river.

    from models.checks import check_learner

    def test_it_keeps_the_contract():
        check_learner(blueprint, Options(), x, labels)

It runs every method of `Contract`; `CHECKS` are their names, for a test framework that shows each by itself.
"""

# ruff: noqa: S101 - what a check is

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor

from models.capabilities import Classifier, Evaluated, Generator, Restorer, Restyler, Sampling, TextGenerator
from models.learner import Batch, Blueprint, Correcting, Learner, Of, Rows, Source, Start, State, update_generator

SEED = 5
CPU = torch.device("cpu")


@dataclass(frozen=True)
class LearnerCase(Generic[Of]):
    """A learner, small, and records for it with at least four classes."""

    blueprint: Blueprint[Of]
    options: Of
    x: Tensor  # (N, ...) as in `Batch.x`
    labels: Sequence[str]  # N
    has_classes: bool = True  # whether the learner looks at labels
    sources: Mapping[str, Source] = field(default_factory=dict)  # what it starts from
    device: torch.device = CPU
    other: torch.device = CPU  # another one, where there is one

    def learner(self, seed: int = SEED, device: torch.device | None = None, start: Start | None = None) -> Learner:
        start = self.sources if start is None else start
        return self.blueprint.build(self.options, tuple(self.x.shape[1:]), seed, device or self.device, start)

    def restored(self, state: State, seed: int = SEED, device: torch.device | None = None) -> Learner:
        """As a restart does it: by the state alone, without the sources."""
        made = self.learner(seed, device, state)
        made.restore(state)
        return made

    def batch(self, start: int, count: int = 8, labels: Sequence[str | None] | None = None) -> Batch:
        """`count` records from number `start` on, around and around."""
        rows = [number % len(self.x) for number in range(start, start + count)]
        ids = [hashlib.blake2b(str(row).encode(), digest_size=16).digest() for row in rows]
        return Batch(
            x=self.x[rows].to(self.device),
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
        return self.x[:count].to(self.device)


def names_it(kind: type[Exception], word: str, call: Callable[[], object]) -> None:
    """
    Raises:
        AssertionError: no error of this kind is raised, or none with this word.
    """
    said = None
    try:
        call()
    except kind as error:
        said = str(error)
    assert said is not None, f"No {kind.__name__} is raised that names {word!r}."
    assert word in said, f"The {kind.__name__} does not name {word!r}: {said}"


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


def differing(one: State, other: State) -> list[str]:
    """Names of tensors, or "meta", in which two states differ by a bit."""
    a, b = tensors(one), tensors(other)
    names = [name for name in {**a, **b} if name not in a or name not in b or not torch.equal(a[name], b[name])]
    return names + ([] if one.meta == other.meta else ["meta"])


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
    assert isinstance(model, Classifier), "the model has the methods of no protocol in models.capabilities."
    return model.classify(x)


def _check_rows(name: str, rows: Rows, before: Tensor, *, moved: bool) -> None:
    assert rows.changed is not None, f"{name}: rows are tracked from the first capture on"
    assert moved or not len(rows.changed), f"{name}: nothing was learned, so nothing changed"
    assert rows.changed.tolist() == sorted(set(rows.changed.tolist())), f"{name}: sorted and unique"
    replayed, tensor = before.clone(), rows.tensor.cpu()
    replayed[rows.changed] = tensor[rows.changed]
    assert torch.equal(replayed, tensor), f"{name}: another row changed as well"


class Contract(LearnerCase[Of]):
    """Each method is a promise, and its name says which. Where it is broken, it raises an `AssertionError`."""

    def reads_its_inputs_and_never_writes_to_them(self) -> None:
        learner, batch = self.learned(), self.batch(100)
        before, labels = [t.clone() for t in (batch.x, batch.origins, batch.ids)], list(batch.labels)
        learner.learn(batch, update_generator(SEED, 99))
        assert all(torch.equal(a, b) for a, b in zip(before, (batch.x, batch.origins, batch.ids), strict=True))
        assert list(batch.labels) == labels

    def touches_no_global_random_numbers(self) -> None:
        def states() -> tuple[object, ...]:
            numpy: Any = np.random.get_state(legacy=False)
            return torch.get_rng_state().numpy().tobytes(), numpy["state"]["key"].tobytes(), random.getstate()

        before = states()
        answers(self.learned().model, self.some(2), [None, None])
        drawn = [name for name, a, b in zip(("torch", "numpy", "random"), before, states(), strict=True) if a != b]
        advice = "Draw from `rng`, which `learn` is given, and build modules by `module_on` or `seeded`."
        assert not drawn, f"It drew from the global generator of {', '.join(drawn)}. {advice}"

    def it_is_complete_when_its_factory_returns(self) -> None:
        """Built from its sources, and as well from a state, which is restored next."""
        state = cloned(self.learner().capture())
        names = tensors(self.learner(start=state).capture()).keys() ^ tensors(state).keys()
        advice = "What it starts from is for its factory: `Blueprint.started`."
        assert not names, f"Built from a state, it differs from the state in {sorted(names)}. {advice}"
        assert not differing(self.restored(state).capture(), state), f"Restored, it differs from the state. {advice}"

    def answers_before_it_has_learned_anything(self) -> None:
        model, x = self.learner().model, self.some(3)
        assert model.classes == []
        answer = answers(model, x, [None] * 3)
        if isinstance(model, Classifier):
            assert answer.shape == (3, 0)
        elif isinstance(model, Generator | Restorer | Restyler):
            assert (answer.shape, answer.dtype) == (x.shape, torch.uint8)

    def learns_a_stream_of_one_class(self) -> None:
        learner = self.learner()
        for update in range(3):
            batch = self.batch(8 * update, labels=["only"] * 8)
            assert math.isfinite(learner.learn(batch, update_generator(SEED, update)).loss)
        assert learner.model.classes == (["only"] if self.has_classes else [])

    def learns_a_batch_of_one(self) -> None:
        learner = self.learner()
        for update in range(3):
            assert math.isfinite(learner.learn(self.batch(update, 1), update_generator(SEED, update)).loss)

    def classes_grow_in_the_order_of_first_appearance(self) -> None:
        learner = self.learner()
        for update, labels in enumerate([["b", "a", "b"], ["a", "a", "c"], ["ü 🙂", "b", "c"]]):
            assert not learner.refuses(labels)
            learner.learn(self.batch(0, 3, labels), update_generator(SEED, update))
        found = learner.model.classes
        assert found == (["b", "a", "c", "ü 🙂"] if self.has_classes else []), f"The classes of the model are {found}."
        assert learner.capture().meta["classes"] == found, "They are not meta['classes'] of what it captures."

    def predicts_before_it_learns(self) -> None:
        learner = self.learner()
        for update in range(8):
            batch = self.batch(8 * update)
            model = learner.model
            p = model.classify(batch.x) if isinstance(model, Classifier) else None
            classes = list(model.classes)
            predicted = learner.learn(batch, update_generator(SEED, update)).predicted
            if p is None:
                assert predicted is None
            elif not classes:
                assert predicted == [None] * 8
            else:
                assert predicted is not None
                chosen = [classes.index(str(label)) for label in predicted]
                best = torch.equal(p[range(8), chosen], p.amax(1))  # of equal ones, any
                assert best, "The report does not say what the model said right before the update."

    def same_seed_same_bits(self) -> None:
        names = differing(self.learned().capture(), self.learned().capture())
        assert not names, f"These differ after the same updates: {names}"

    def other_seed_other_bits(self) -> None:
        names = differing(self.learned().capture(), self.learned(seed=SEED + 1).capture())
        assert names, "Where nothing is random, leave this check out: without=['other_seed_other_bits']."

    def lives_on_the_device_that_it_is_given(self) -> None:
        """On another device it learns the same, and no tensor meets one that was left behind."""
        ours, there = self.learner(device=CPU), self.learner(device=self.other)
        for update in range(3):
            if update == 2:  # it goes on from what a store gives
                state = cloned(there.capture())
                there = self.restored(state, device=self.other)
            batch, losses = self.batch(8 * update), []
            for one, device in ((ours, CPU), (there, self.other)):
                given = Batch(batch.x.to(device), batch.labels, batch.origins, batch.ids)  # as a worker gives it
                losses.append(math.log1p(one.learn(given, update_generator(SEED, update)).loss))
            # After a step of Adam they differ where a gradient is 0 but for rounding: a GAN's by some percents; LDA's
            # first ones, of as many records as classes, are powers of ten.
            near = abs(losses[1] - losses[0]) <= max((0.25 if update else 1e-4) * abs(losses[0]), 1e-12)
            assert near, f"log(1 + loss) is {losses[0]} on the CPU and {losses[1]} on {self.other}."
        here, elsewhere = tensors(ours.capture()), tensors(there.capture())
        assert {name: tensor.shape for name, tensor in here.items()} == {n: t.shape for n, t in elsewhere.items()}
        if isinstance(there.model, torch.nn.Module):
            weights = there.model.state_dict().values()
            assert {w.device for w in weights if w.dim()} == {self.other}
        there_too = answers(there.model, self.x[:3].to(self.other), [None] * 3)
        if not isinstance(there.model, TextGenerator):  # a text ends elsewhere after rounding
            assert there_too.shape == answers(ours.model, self.x[:3], [None] * 3).shape

    def goes_on_to_the_last_bit_after_a_restart(self) -> None:
        learner = self.learned()
        state = cloned(learner.capture())
        restored = self.restored(state, SEED + 1)
        names = differing(restored.capture(), state)
        assert not names, f"Restored and captured again, these differ: {names}"
        ours, theirs = self.learn(learner, range(6, 16)), self.learn(restored, range(6, 16))
        names = differing(restored.capture(), learner.capture())
        advice = "Something that learning reads is not in what `capture` gives, or `restore` leaves it out."
        assert ours == theirs, f"Restored, its losses are others. {advice} Ten updates later these differ: {names}"
        assert not names, f"{advice} Ten updates after a restart these differ: {names}"
        assert restored.replay_size == learner.replay_size

    def when_versions_are_made_does_not_matter(self) -> None:
        often, once = self.learner(), self.learner()
        for update in range(12):
            self.learn(often, range(update, update + 1))
            often.capture()
        self.learn(once, range(12))
        names = differing(often.capture(), once.capture())
        assert not names, f"Captured after each update and only at the end, these differ: {names}"

    def a_corrected_label_is_what_is_replayed_from_then_on(self) -> None:
        """Whatever became of the learner, the same follows: the class, the row that changed, the losses."""
        learner = self.learned()
        if not (learner.needs_label and learner.replay_size):
            return
        before = cloned(learner.capture())
        restored = self.restored(before, SEED + 1)
        assert isinstance(learner, Correcting), "It needs labels and remembers records, but cannot correct them."
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
        assert self.learn(restored, range(7, 12)) == self.learn(learner, range(7, 12))
        assert not differing(restored.capture(), learner.capture())

    def a_restart_copies_what_it_is_given(self) -> None:
        state = cloned(self.learned().capture())
        before = cloned(state)
        restored = self.restored(state)
        self.learn(restored, range(6, 9))
        names = differing(state, before)
        assert not names, f"Learning on, it wrote to what it was restored from: {names}"

    def a_missing_tensor_is_named(self) -> None:
        state = cloned(self.learned().capture())
        name = next(iter(state.serving))
        incomplete = {key: value for key, value in state.serving.items() if key != name}
        names_it(ValueError, name, lambda: self.learner().restore(State(incomplete, state.training, state.meta)))

    def a_tensor_of_another_shape_is_named(self) -> None:
        state = cloned(self.learned().capture())
        for kind in ("serving", "training"):
            names = list(getattr(state, kind))
            for name in names[:: math.ceil(len(names) / 8) or 1]:  # of many, some
                parts = {"serving": dict(state.serving), "training": dict(state.training)}
                parts[kind][name] = torch.zeros(1, 2, 3, 4, 5)
                broken = State(parts["serving"], parts["training"], state.meta)
                names_it(ValueError, name.split("/")[-1].split(".", 1)[-1], partial(self.learner().restore, broken))

    def its_state_does_not_grow_with_the_stream(self) -> None:
        learner = self.learned(20)
        size = {name: tensor.shape for name, tensor in tensors(learner.capture()).items()}
        self.learn(learner, range(20, 40))
        after = {name: tensor.shape for name, tensor in tensors(learner.capture()).items()}
        assert after == size, f"These grow: {[name for name in after if after[name] != size.get(name)]}"
        assert learner.replay_size <= learner.replay_capacity

    def rows_that_are_not_named_as_changed_are_unchanged(self) -> None:
        learner = self.learned()
        first = learner.capture()
        assert all(
            v.changed is None for v in [*first.serving.values(), *first.training.values()] if isinstance(v, Rows)
        )
        stored = cloned(first)
        restored = self.restored(stored)
        for one in (learner, restored):
            before = tensors(stored)
            for updates in (range(0), range(6, 8), range(8, 20)):
                self.learn(one, updates)
                state = one.capture()
                for name, value in {**state.serving, **state.training}.items():
                    if isinstance(value, Rows):
                        _check_rows(name, value, before[name], moved=bool(updates))
                before = tensors(state)

    def the_served_model_answers_as_the_learner_does(self) -> None:
        learner = self.learned()
        state = cloned(learner.capture())
        served = self.blueprint.model(self.options, tuple(self.x.shape[1:]), state.meta)
        served.load_state_dict(state.serving)
        if isinstance(served, torch.nn.Module):
            served.to(self.device)
        assert served.classes == learner.model.classes
        labels = [None, *learner.model.classes[:3]]
        alike = torch.equal(answers(served, self.some(4), labels), answers(learner.model, self.some(4), labels))
        assert alike, "What the blueprint's `model` builds of meta, with the serving state, answers otherwise."

    def probabilities_sum_to_one(self) -> None:
        model = self.learned().model
        if isinstance(model, Classifier):
            p = model.classify(self.some(9)).cpu()
            assert (p.shape, p.dtype) == ((9, len(model.classes)), torch.float32)
            torch.testing.assert_close(p.sum(1), torch.ones(9))

    def an_answer_depends_on_its_own_record_alone(self) -> None:
        """But for rounding: products of matrices of another size add in another order."""
        model, x = self.learned().model, self.some(4)
        if isinstance(model, Classifier | Restorer | Restyler):
            alone = torch.cat([answers(model, row[None], [None]) for row in x]).float()
            apart = (answers(model, x, [None] * 4).float() - alone).abs().max().item()
            assert apart < 1e-3, (
                f"It changes by {apart:.2g} with the other records of the batch. Norms of a batch do so."
            )

    def a_drawing_depends_on_its_own_seed_and_label_alone(self) -> None:
        model = self.learned().model
        if isinstance(model, Generator):
            a, b = model.classes[:2]
            seeds, labels = [4, 7, 7, 9], [a, b, None, a]
            together = model.generate(seeds, labels)
            assert (together.shape, together.dtype) == ((4, *self.x.shape[1:]), torch.uint8)
            for row, (seed, label) in enumerate(zip(seeds, labels, strict=True)):
                assert torch.equal(model.generate([seed], [label])[0], together[row])
            assert not torch.equal(together[0], together[3])
            assert torch.equal(model.draw(model.latents(seeds), labels), together)
            assert model.generate([], []).shape == (0, *self.x.shape[1:])
            names_it(KeyError, "never", lambda: model.generate([1], ["never"]))

    def an_evaluation_repeats_and_takes_labels_that_are_unknown(self) -> None:
        model = self.learned().model
        if isinstance(model, Evaluated):
            labels = [None, "never", *model.classes[:2]]
            first = model.evaluate(self.some(4), labels)
            assert math.isfinite(first)
            assert model.evaluate(self.some(4), labels) == first

    def unlabelled_records_are_learned_where_no_label_is_needed(self) -> None:
        learner = self.learner()
        learn = partial(learner.learn, self.batch(0, labels=[None] * 7 + ["one"]), update_generator(SEED, 0))
        if learner.needs_label:
            names_it(ValueError, "label", learn)
        else:
            assert math.isfinite(learn().loss)
            assert learner.model.classes == (["one"] if self.has_classes else [])


#: names of all checks
CHECKS = [name for name in vars(Contract) if not name.startswith("_")]


def check_learner(
    blueprint: Blueprint[Of],
    options: Of,
    x: Tensor,
    labels: Sequence[str],
    *,
    has_classes: bool = True,
    sources: Mapping[str, Source] | None = None,
    without: Collection[str] = (),
) -> None:
    """Runs all methods of `Contract` on a learner.

    Args:
        options: best such that an update takes milliseconds.
        x: (N, ...) records as in `Batch.x`, some hundred.
        labels: of them; four classes at least.
        has_classes: whether the learner looks at labels.
        sources: what it starts from, by the names of the blueprint's `sources`.
        without: names of checks that do not hold for it, such as "other_seed_other_bits" where nothing is random.

    Raises:
        AssertionError: a promise is broken: the message says which one, and how.
    """
    contract = Contract(blueprint, options, x, labels, has_classes, sources or {})
    for name in CHECKS:
        if name not in without:
            try:
                getattr(contract, name)()
            except AssertionError as error:
                raise AssertionError(f"A promise is broken: {name.replace('_', ' ')}. {error}") from None
