"""The learner for most people: a head in closed form, a network beside it where it measures better, one answer of both.

The head (`image_analytic`, `text_analytic`) can be asked from the first records on and does not care about their
order. The network (`image_classifier`, `text_classifier`) learns features of its own, and needs thousands of records
for them. With their probabilities p and q a record is answered by the logarithmic pool

    softmax(a log p + b log q)

whose weights a, b ≥ 0 explain evidence best, with b = 0 unless both are right more often than the head alone, by more
than chance (`pooling`). Evidence is records that the network does not learn, none of a class before `FIRST` of it were
learned (`evidence`). The head does learn them: its sums are exact, so that it can be asked what it would say had it not
(with a forgetting factor it could not, and leaves them out). So without evidence the head answers alone, from all
records, and what the weights add up to is how sure the answers may be.
Evidence is asked of what both are now. Predictions of the last records, which cost nothing, say little in a stream
that is sorted by class: there the best answer is always the last one. The head chooses its sharpness τ by such; so
with τ' at the time when the weights were found it is a τ'/τ that counts.

Of a text that is longer than `max_chars` the head reads all and the network the beginning; it never is evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.acquainted import parted
from models.analytic_learner import AnalyticLearner, AnalyticModel, AnalyticOptions
from models.capabilities import Recogniser
from models.classifier import ClassifierLearner, ClassifierNetwork, ClassifierOptions
from models.evidence import AT_ONCE, FIRST, PREFIX, Evidence
from models.familiarity import ranks, tempered
from models.images import analytic as image_analytic, classifier as image_classifier
from models.images.analytic import ImageAnalyticOptions
from models.images.classifier import ImageClassifierOptions
from models.learner import NOTHING, Batch, Blueprint, Options, Reference, Report, Rows, Start, State, copy_into
from models.memory import records_of
from models.pooling import FLOOR, floored, heard, pooled
from models.texts import analytic as text_analytic, classifier as text_classifier
from models.texts.classifier import TextClassifierOptions
from models.texts.counts import TextAnalyticOptions
from models.wrapped import WrappedClassifier

HEAD_ALONE = torch.tensor([1.0, 0.0])
FEW, EVERY = 64, 4000  # records after which the weights are found anew: a share of all, but not fewer nor more
GROWN, AGAIN = 1 / 16, 1 / 2  # shares, with classes that were not known then and without


class AutoOptions(Options):
    """The options of both parts."""

    head: AnalyticOptions
    network: ClassifierOptions

    @model_validator(mode="after")
    def _one_sense(self) -> Self:
        if self.network.unknown:
            raise ValueError("the head tells what is unknown: set head.unknown, and leave network.unknown at 0")
        if not self.network.calibrate:
            raise ValueError("evidence calibrates both parts: leave network.calibrate at true")
        return self

    @classmethod
    def of_version(cls, stored: Mapping[str, Any]) -> Self:
        """Versions of before may say anything of `network.calibrate`: it was not read."""
        return super().of_version({**stored, "network": {**stored.get("network", {}), "calibrate": True}})


class ImageAutoOptions(AutoOptions):
    """Of `image-analytic` and `image-classifier`."""

    head: ImageAnalyticOptions = ImageAnalyticOptions()
    network: ImageClassifierOptions = ImageClassifierOptions()


class TextAutoOptions(AutoOptions):
    """Of `text-analytic` and `text-classifier`."""

    head: TextAnalyticOptions = TextAnalyticOptions()
    network: TextClassifierOptions = TextClassifierOptions()


class AutoModel(nn.Module, Recogniser):
    """What is served."""

    weights: Tensor  # (3,): a, b, and τ' or 0

    def __init__(self, head: AnalyticModel, network: ClassifierNetwork, network_reads: int | None) -> None:
        super().__init__()
        self._network_reads = (
            network_reads  # code points of a long text that the network reads; None: they read the same
        )
        self.head = head
        self.network = network
        self.register_buffer("weights", F.pad(HEAD_ALONE, (0, 1)))

    @property
    def classes(self) -> list[str]:
        return self.head.classes

    @classes.setter
    def classes(self, names: list[str]) -> None:
        self.head.classes, self.network.classes = names, list(names)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A stored head may lack what is computed from the rest of it: `AnalyticModel.completed` adds it."""
        head, network = parted(state_dict, "head.")
        completed = {f"head.{name}": value for name, value in self.head.completed(head).items()}
        return super().load_state_dict({**network, **completed}, *args, **kwargs)

    @torch.no_grad()
    def recognise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, ...) as in `Batch.x` → probabilities (B, K) float32, and (B,) bool: it resembles none of them."""
        head = self.head
        look = head.look(x.to(head.weight.device))
        of_network = self.network.classify(x[:, : self._network_reads])
        logs = torch.stack([floored(p.log()) for p in (head.probabilities(look), of_network)], 1)  # (B, 2, K)
        p = pooled(logs, of_now(self.weights, head.sharpness)).softmax(1).to(head.weight)
        rank = ranks(look.strange, head.familiar)
        return tempered(p, rank, head.shares), rank < head.unknown

    def features(self, x: Tensor) -> Tensor:
        """x (B, ...) → (B, D) of the network: those of the head cost ten times as much and tell classes apart worse."""
        features: Tensor = self.network.features(x[:, : self._network_reads])
        return features


def of_now(weights: Tensor, sharpness: Tensor) -> Tensor:
    """a, b and τ' (3,), τ → a τ'/τ and b (2,)"""
    a, b, then = weights.unbind()
    return torch.stack([a * then / sharpness if then else a, b])


Part = AnalyticLearner[Any] | ClassifierLearner[Any]


class AutoLearner(WrappedClassifier[ClassifierLearner[Any]]):
    """Has both parts learn the same updates, so that a class has the same number in both: `inner` is the network."""

    def __init__(
        self, head: AnalyticLearner[Any], network: ClassifierLearner[Any], evidence: Evidence, network_reads: int | None
    ) -> None:
        super().__init__(network)
        self._head = head
        self._evidence = evidence
        self._network_reads = network_reads  # as the model's
        self._weights = F.pad(HEAD_ALONE, (0, 1))  # a, b, and τ' or 0
        self._fresh = 0  # records that came since the weights were found
        self._weighed = 0  # classes that were known then
        self._is_exact = head.options.forgetting == 1
        self._tells_familiar = (
            True  # whether evidence tells the head how strange records are; not in versions of before
        )
        self._model = AutoModel(head.model, network.model, network_reads).to(head.model.weight.device)

    @property
    def model(self) -> AutoModel:
        """The live model, once the head that is being solved is there."""
        self._model.head = self._head.model
        self._model.weights.copy_(self._weights)
        return self._model

    def refuses(self, labels: Sequence[str | None]) -> Mapping[int, str]:
        return {**self.inner.refuses(labels), **self._head.refuses(labels)}

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        if None in batch.labels:
            raise ValueError("a classifier was given a record without a label. Drop it: `needs_label` is true.")
        classes = list(self._head.classes)
        weights = of_now(self._weights, self._head.sharpness_now)
        rest, once = self._parted(batch)
        both = [
            answered(self._head, batch, sorted(rest + once) if self._is_exact else rest, rng),
            answered(self.inner, batch, rest, rng),
        ]
        self._fresh += len(batch)
        report = self._report(batch.labels, classes, weights, both)
        if self._due():
            self._weigh()
        return report

    def _due(self) -> bool:
        share = GROWN if len(self._head.classes) > self._weighed else AGAIN
        return self._fresh >= min(EVERY, max(FEW, share * self._head.counts.sum().item()))

    def _report(
        self, labels: Sequence[str | None], classes: Sequence[str], weights: Tensor, both: Sequence[Sequence[Tensor]]
    ) -> Report:
        """The report of an update, from the log-probabilities, classes and weights of before it."""
        numbers = {label: number for number, label in enumerate(self._head.classes)}
        every = [[F.pad(said, (0, len(numbers) - len(said)), value=FLOOR) for said in logs] for logs in both]
        answers = [pooled(torch.stack(said), weights).log_softmax(0) for said in zip(*every, strict=True)]
        loss = -sum(answer[numbers[str(label)]].item() for answer, label in zip(answers, labels, strict=True))
        best = [classes[int(answer[: len(classes)].argmax())] if classes else None for answer in answers]
        head, network = weights.tolist()
        return Report(loss / len(labels), best, {"head_weight": head, "network_weight": network})

    def correct(self, id_: bytes, label: str, rng: torch.Generator) -> bool:
        if id_ in self._evidence.remembered():
            self._correct_evidence(id_, label, rng)
            return True
        kept = self.inner.kept(id_)
        if self._network_reads is not None and kept.x[:, self._network_reads - 1].any():
            return False  # the head has learned all of a text, of which perhaps only the beginning is left
        if not self.inner.correct(id_, label, rng):
            return False
        if self._is_exact:  # else what it was fades: how much of it is left is not known
            self._head.forget(kept)
        self._head.learn(relabelled(kept, label), rng)
        return True

    def _correct_evidence(self, id_: bytes, label: str, rng: torch.Generator) -> None:
        kept = records_of(id_, self._evidence.columns(), self._head.classes)
        is_new = label not in self._head.classes
        if is_new:  # the first of its class: both learn it
            self.inner.learn(relabelled(kept, label), rng)
        if self._is_exact:
            self._head.forget(kept)
        if self._is_exact or is_new:
            self._head.learn(relabelled(kept, label), rng)
        self._evidence.relabel(id_, self._head.classes.index(label))

    def remembered(self) -> Collection[bytes]:
        return {*self.inner.remembered(), *self._evidence.remembered()}

    def scale_learning_rate(self, factor: float) -> None:
        self._head.scale_learning_rate(factor)
        self.inner.scale_learning_rate(factor)

    def flush(self, label: str) -> int:
        self._evidence.flush(self._head.classes.index(label))
        return self.inner.flush(label)

    def capture(self) -> State:
        states = {"head": self._head.capture(), "network": self.inner.capture()}
        serving: dict[str, Tensor | Rows] = {"weights": self._weights}
        training: dict[str, Tensor | Rows] = dict(self._evidence.capture())
        for part, state in states.items():
            serving |= {f"{part}.{name}": value for name, value in state.serving.items()}
            training |= {f"{part}/{name}": value for name, value in state.training.items()}
        metas: dict[str, Any] = {part: dict(state.meta) for part, state in states.items()}
        meta = {"classes": list(self._head.classes), **metas, "evidence": self._evidence.meta()}
        meta |= {"fresh": self._fresh, "weighed": self._weighed, "head_learns_evidence": self._is_exact}
        meta["tells_familiar"] = self._tells_familiar
        return State(serving, training, meta)

    def restore(self, state: State) -> None:
        self._head.restore(part_of(state, "head"))
        self.inner.restore(part_of(state, "network"))
        own = {name: value for name, value in state.serving.items() if name == "weights"}
        copy_into({"weights": self._weights}, own)
        if state.meta.get("head_learns_evidence", False) == self._is_exact:  # else `left_out` would be of another head
            evidence = {name: value for name, value in state.training.items() if name.startswith(PREFIX)}
            self._evidence.restore(state.meta["evidence"], evidence)
        self._fresh, self._weighed = state.meta["fresh"], state.meta["weighed"]
        self._tells_familiar = state.meta.get("tells_familiar", False)

    def _parted(self, batch: Batch) -> tuple[list[int], list[int]]:
        """The rows that are no evidence, and those that are evidence from now on; what is it already is in neither."""
        records = dict(zip(self._head.classes, self._head.counts.tolist(), strict=True))
        numbers = {label: number for number, label in enumerate(records)}
        rest: list[int] = []
        once: list[int] = []
        for row, label in enumerate(map(str, batch.labels)):
            number = numbers.setdefault(label, len(numbers))  # as both parts will number it: its first row is learned
            id_ = bytes(batch.ids[row].tolist())
            if id_ in self._evidence.remembered():
                continue
            may_be = row not in batch.whole and records.get(label, 0) >= FIRST
            may_be = may_be and id_ not in self.inner.remembered()
            is_taken = may_be and self._evidence.takes(batch.take(slice(row, row + 1)), number)
            (once if is_taken else rest).append(row)
            records[label] = records.get(label, 0) + 1
        return rest, once

    def _weigh(self) -> None:
        """Fits the weights to what both parts say of the evidence."""
        x, y = self._evidence.records()
        self._fresh, self._weighed = 0, len(self._head.classes)
        if len(y):
            if self._is_exact:
                head = self._head.left_out(x, y, tells_familiar=self._tells_familiar)
            else:
                head = log_probabilities(self._head, x)
            found = heard(torch.stack([floored(head), floored(log_probabilities(self.inner, x))], 1), y)
            self._weights = torch.cat([found, self._head.sharpness_now[None]])


def part_of(state: State, part: str) -> State:
    """The state of one part."""
    serving, training = parted(state.serving, f"{part}.")[0], parted(state.training, f"{part}/")[0]
    return State(serving, training, state.meta[part])


def answered(part: Part, batch: Batch, rows: Sequence[int], rng: torch.Generator) -> list[Tensor]:
    """Has a part learn these rows of a batch → the log-probabilities (K,) that it gave to each record before."""
    others = [row for row in range(len(batch)) if row not in rows]
    said: dict[int, Tensor] = {}
    if others:
        said |= zip(others, floored(log_probabilities(part, batch.x[others])), strict=True)
    if rows and (logs := part.learn(batch.rows(rows), rng).logs) is not None:
        said |= zip(rows, floored(logs), strict=True)
    return [said[row] for row in range(len(batch))]


def relabelled(batch: Batch, label: str) -> Batch:
    return replace(batch, labels=[label] * len(batch))


def log_probabilities(part: Part, x: Tensor) -> Tensor:
    """x (B, ...) → logarithms (B, K) of a part's probabilities"""
    return torch.cat([part.log_probabilities(some) for some in torch.split(x, AT_ONCE)])


def blueprint(head: Blueprint, network: Blueprint, options: type[AutoOptions], dtype: torch.dtype) -> Blueprint:
    """A blueprint of both parts; `dtype` is that of its records."""

    def learner(
        options: AutoOptions, shape: tuple[int, ...], seed: int, device: torch.device, start: Start = NOTHING
    ) -> AutoLearner:
        of_head = part_of(start, "head") if isinstance(start, State) else start
        first: Any = head.build(options.head, shape, seed, device, of_head)
        alone = options.network.model_copy(update={"calibrate": False})  # what is evidence is chosen here, once
        second: Any = network.learner(alone, shape, seed, device)
        return AutoLearner(first, second, Evidence(shape, dtype), network_reads(options, shape))

    def model(options: AutoOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> AutoModel:
        first: Any = head.model(options.head, shape, meta["head"])
        second: Any = network.model(options.network, shape, meta["network"])
        return AutoModel(first, second, network_reads(options, shape)).eval()

    def reads_whole(options: AutoOptions) -> bool:
        return head.reads_whole(options.head)

    def network_reads(options: AutoOptions, shape: tuple[int, ...]) -> int | None:
        return shape[0] if reads_whole(options) else None

    def sources(options: AutoOptions) -> Mapping[str, Reference]:
        return head.sources(options.head)

    return Blueprint(options, learner, model, head.input, sources, reads_whole, learner)


IMAGE = blueprint(image_analytic.BLUEPRINT, image_classifier.BLUEPRINT, ImageAutoOptions, torch.uint8)
TEXT = blueprint(text_analytic.BLUEPRINT, text_classifier.BLUEPRINT, TextAutoOptions, torch.int32)
