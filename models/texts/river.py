"""River classifier: any listed classifier of river over river's own text features, with a bounded vocabulary.

A text becomes river's tokens, their n-grams, and for each n-gram the number of a bucket: crc32 modulo `buckets`.
Hashing is the one bound that holds for every classifier. A vocabulary with eviction would have to reach into each of
them to take a feature out again: out of the totals of naive Bayes, out of an optimiser's moments, and out of the
splits of a tree, where it cannot be. It has no state of its own, and collisions are rare where buckets are many
(Weinberger et al. 2009, "Feature hashing for large scale multitask learning").

What a configuration may name is listed in `river_state`: the classes whose state can be captured without pickle.

With `calibrate` an answer is p_k^t over the sum of all, with river's p and one number t, found on a few records that
are not learned (`evidence`).
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from zlib import crc32

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.evidence import Calibration
from models.familiarity import AcquaintedOptions
from models.labels import Labels, likeliest
from models.learner import Batch, Blueprint, Report, State, copy_into, structural, tensor
from models.pooling import floored
from models.replaying import Labelled
from models.texts.gru import strings
from models.texts.river_state import CLASSES, classes, decode, encode

TREE = "river.tree.HoeffdingTreeClassifier"
MULTICLASS = (
    "river.linear_model.SoftmaxRegression", "river.naive_bayes.BernoulliNB", "river.naive_bayes.ComplementNB",
    "river.naive_bayes.MultinomialNB", TREE,
)  # fmt: skip
#: one for each class, by river's OneVsRestClassifier
BINARY = tuple(f"river.linear_model.{name}" for name in CLASSES["river.linear_model"] if name != "SoftmaxRegression")
#: what a parameter may be, beside plain values
PARTS = ("river.optim", "river.tree.splitter")
MAX_DEPTH, MAX_TREE_BUCKETS = 16, 1024
#: the least probability that the loss counts, of a class that is new or that river gives none: 13.8 nats
LEAST = 1e-6


class RiverClassifierOptions(AcquaintedOptions):
    """`parameters` are the classifier's own; where one is an object of river: `{class = "river.optim.Adam", lr = 0.1}`.

    Raises:
        ValueError: the classifier is none of river's, or cannot be built, learned with or captured.
    """

    classifier: str = structural("river.naive_bayes.MultinomialNB")
    parameters: dict[str, Any] = structural({})
    features: Literal["counts", "tfidf"] = structural("counts")
    tokens: Literal["words", "characters"] = structural("words")
    ngrams: tuple[int, int] = structural((1, 2))  # shortest and longest
    lowercase: bool = structural(True)
    strip_accents: bool = structural(True)
    buckets: int = structural(1 << 14, ge=2, le=1 << 24)
    max_classes: int = Field(1000, ge=1)
    calibrate: bool = structural(True, before=False)  # whether a few records are not learned, but tell how sure it is

    @model_validator(mode="after")
    def _works(self) -> RiverClassifierOptions:
        """Refuses here, and not in a worker: three texts are learned, captured, restored and learned on."""
        if not 1 <= self.ngrams[0] <= self.ngrams[1] <= 8:
            raise ValueError(f"ngrams = {list(self.ngrams)} must be the shortest and the longest, from 1 to 8.")
        if self.classifier == TREE and self.buckets > MAX_TREE_BUCKETS:
            raise ValueError(f"a tree looks at every bucket of every text: set buckets to {MAX_TREE_BUCKETS} at most.")
        model = RiverModel(self, (), 0)
        try:
            for copy in (model, RiverModel(self, (), 1)):
                if copy is not model:
                    copy.load_state_dict(model.state_dict())
                for number, text in enumerate(("one and two", "two", "", "one or three")):
                    copy.learn_one(text, number % 3)
                    copy.probabilities([text], 3)
        except Exception as error:  # river's code with a user's values: anything
            raise ValueError(f"{self.classifier} with these parameters cannot learn texts: {error!r}") from error
        return self


def build(path: str, parameters: Mapping[str, Any], seed: int, allowed: Sequence[str]) -> Any:
    """An object of a listed class of river; whatever takes a seed gets one.

    Raises:
        ValueError: the class is not in `allowed`, or does not take these parameters.
    """
    if not path.startswith("river."):
        raise ValueError(f"{path!r} is none of river's classes, and nothing else is imported.")
    if path not in allowed:
        raise ValueError(
            f"{path} cannot be captured without pickle, or is no such part. These can: {', '.join(allowed)}."
        )
    parts = [f"{module}.{name}" for module in CLASSES for name in CLASSES[module] if module.startswith(PARTS)]
    values = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            rest = {key: inner for key, inner in value.items() if key != "class"}
            value = build(str(value.get("class")), rest, seed, parts)
        values[name] = value
    cls = classes()[path]
    if "seed" in inspect.signature(cls).parameters:
        values.setdefault("seed", seed)
    try:
        return cls(**values)
    except Exception as error:  # river's code with a user's values: anything
        raise ValueError(f"{path} cannot be made with {sorted(parameters)}: {error}") from error


def classifier(options: RiverClassifierOptions, seed: int) -> Any:
    """The classifier that the options describe, untrained; a binary one is wrapped in one-vs-rest.

    A tree's bound is its depth. River's own, `max_size`, measures Python objects in bytes, and those depend on how
    they came to be: a restored tree would be pruned at another record than the one that it was captured from.
    """
    parameters = dict(options.parameters)
    if options.classifier == TREE:
        for name in ("max_size", "memory_estimate_period", "stop_mem_management", "nominal_attributes"):
            if name in parameters:
                raise ValueError(f"{TREE} takes no {name} here: its size is bounded by max_depth and buckets.")
        depth = parameters.setdefault("max_depth", 8)
        if not isinstance(depth, int) or not 0 <= depth <= MAX_DEPTH:
            raise ValueError(f"max_depth = {depth!r} must be a whole number from 0 to {MAX_DEPTH}.")
        parameters["memory_estimate_period"] = 1 << 62
    found = build(options.classifier, parameters, seed, (*MULTICLASS, *BINARY))
    return classes()["river.multiclass.OneVsRestClassifier"](found) if options.classifier in BINARY else found


def vectorizer(options: RiverClassifierOptions) -> Any:
    """River's BagOfWords or TFIDF, whose last step hashes, so that document frequencies are counted by bucket too."""
    extraction = importlib.import_module("river.feature_extraction")
    made = {"counts": extraction.BagOfWords, "tfidf": extraction.TFIDF}[options.features](
        strip_accents=options.strip_accents,
        lowercase=options.lowercase,
        tokenizer=list if options.tokens == "characters" else None,
        ngram_range=options.ngrams,
    )

    def hashed(tokens: Iterable[str | tuple[str, ...]]) -> list[int]:
        # A text without a token is one of its own: naive Bayes divides by the number of features that it knows.
        found = [token if isinstance(token, str) else "\x1f".join(token) for token in tokens] or [""]
        return [crc32(token.encode()) % options.buckets for token in found]

    made.processing_steps.append(hashed)
    return made


class RiverModel:
    """What is served. Classes are numbers to river, in the order of `classes`."""

    def __init__(self, options: RiverClassifierOptions, names: Sequence[str], seed: int) -> None:
        self.classes = list(names)
        self._is_calibrated = options.calibrate
        self.sharpness = torch.ones(1)  # t
        self._vectorizer = vectorizer(options)
        self._classifier = classifier(options, seed)
        # A tree compares values, so that a bucket that is not in a text has one too: nothing was ever counted there.
        self._absent = dict.fromkeys(range(options.buckets), 0) if options.classifier == TREE else {}

    def classify(self, x: Tensor) -> Tensor:
        """x (B, L) int32 → probabilities (B, K) float32, on the CPU."""
        return self.sharpened(self.probabilities(strings(x), len(self.classes)))

    def sharpened(self, p: Tensor) -> Tensor:
        """River's probabilities (B, K) → as sure as they may be."""
        if not self._is_calibrated:
            return p
        return (self.sharpness * floored(p.log())).softmax(1).float()

    def probabilities(self, texts: Sequence[str], count: int) -> Tensor:
        """River's own: (B, count) float32; each row sums to one, evenly where river says nothing."""
        found = [self._classifier.predict_proba_one(self._features(text)) for text in texts]
        rows = torch.tensor([[p.get(k, 0.0) for k in range(count)] for p in found], dtype=torch.float64)
        rows = rows.view(len(texts), count)
        totals = rows.sum(1, keepdim=True)
        return torch.where(totals == 0, 1 / max(count, 1), rows / totals).to(torch.float32)

    def learn_one(self, text: str, number: int) -> None:
        """One record, as river's pipelines do: the features learn first."""
        self._vectorizer.learn_one(text)
        self._classifier.learn_one(self._features(text), number)

    def _features(self, text: str) -> dict[int, float]:
        return {**self._absent, **self._vectorizer.transform_one(text)}

    def state_dict(self) -> dict[str, Tensor]:
        """See `river_state.encode`; and t, where it is calibrated."""
        frequencies = [getattr(self._vectorizer, "n", 0), getattr(self._vectorizer, "dfs", Counter())]
        return {**encode([*frequencies, self._classifier]), **self._calibrated()}

    def _calibrated(self) -> dict[str, Tensor]:
        return {"sharpness": self.sharpness} if self._is_calibrated else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: a tensor is missing or of another kind.
        """
        copy_into(self._calibrated(), {name: value for name, value in state_dict.items() if name == "sharpness"})
        count, frequencies, self._classifier = decode(state_dict)
        if hasattr(self._vectorizer, "dfs"):
            self._vectorizer.n, self._vectorizer.dfs = count, frequencies


class RiverLearner(Labelled):
    """Learns one record after the other; all of a batch are predicted before the first of it is learned."""

    needs_label = True
    replay_capacity = replay_size = 0

    def __init__(
        self, options: RiverClassifierOptions, shape: tuple[int, ...], seed: int, device: torch.device
    ) -> None:
        self.model = RiverModel(options, (), seed)
        self._labels = Labels(self.model.classes, options.max_classes)
        self._calibration = Calibration(shape, torch.int32, options.calibrate)
        self._seen: Counter[int] = Counter()  # records of each class

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        if None in batch.labels:
            raise ValueError("a classifier was given a record without a label. Drop it: `needs_label` is true.")
        new, classes, texts = self._labels.new(batch.labels), list(self.model.classes), strings(batch.x)
        p = self.model.sharpened(self.model.probabilities(texts, len(classes)))  # (B, K) of before
        predicted = likeliest(p, classes)
        self._labels.add(new)
        numbers = self._labels.numbers(batch.labels)
        of_label = [p[row, number].item() if number < len(classes) else 0.0 for row, number in enumerate(numbers)]
        for row in self._calibration.rest(batch, numbers, self._seen, ()):
            self.model.learn_one(texts[row], numbers[row])
        self._seen.update(numbers)
        if self._calibration.due(self._seen.total()):
            count = len(self.model.classes)
            self.model.sharpness = self._calibration.found(lambda x: self.model.probabilities(strings(x), count).log())
        return Report(sum(-math.log(max(value, LEAST)) for value in of_label) / len(batch), predicted)

    def capture(self) -> State:
        meta: dict[str, Any] = {"classes": list(self.model.classes), "river": _river()}
        if not self._calibration.slots:
            return State(self.model.state_dict(), {}, meta)
        seen = [self._seen[number] for number in range(len(self.model.classes))]
        meta |= {"calibration": self._calibration.meta(), "seen": seen}
        return State(self.model.state_dict(), {**self._calibration.capture()}, meta)

    def restore(self, state: State) -> None:
        labels = self._labels.beyond(state.meta["classes"])
        _check_version(state.meta)
        self.model.load_state_dict({name: tensor(value) for name, value in state.serving.items()})
        self._labels.add(labels)
        if self._calibration.slots:
            self._calibration.restore(state.meta["calibration"], state.training)
            self._seen = Counter(dict(enumerate(state.meta["seen"])))


def _river() -> str:
    version: str = importlib.import_module("river").__version__
    return version


def _check_version(meta: Mapping[str, Any]) -> None:
    """Attributes are river's private matter: another minor version may mean something else by them."""
    if meta["river"].split(".")[:2] != _river().split(".")[:2]:
        raise ValueError(f"this version was learned with river {meta['river']} and cannot go on with {_river()}.")


def model(options: RiverClassifierOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> RiverModel:
    _check_version(meta)
    return RiverModel(options, meta["classes"], 0)


BLUEPRINT = Blueprint(RiverClassifierOptions, RiverLearner, model, "text")
