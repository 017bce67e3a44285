"""River's classifiers: answers as river itself gives them, a state without pickle, and what is refused when read."""

from __future__ import annotations

import collections
import json
import math
import random
import re
import sys
import threading
import unicodedata
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import pytest
import torch
from pydantic import ValidationError
from river import compose, feature_extraction, linear_model, multiclass, naive_bayes, optim, tree

from models.learner import State, update_generator
from models.texts.gru import strings
from models.texts.river import BINARY, BLUEPRINT, MULTICLASS, TREE, RiverClassifierOptions, RiverLearner
from models.texts.river_state import Op, classes, decode, encode
from tests.models.contract import SEED, Case, LearnerContract, answers, cloned, same, texts

WORDS = {"ngrams": (1, 1), "buckets": 256, "calibrate": False}
SGD = {"optimizer": {"class": "river.optim.SGD", "lr": 0.3}}
NORMAL = {"initializer": {"class": "river.optim.initializers.Normal", "sigma": 0.1}}
TREE_OPTIONS = {"buckets": 32, "parameters": {"grace_period": 40, "delta": 0.2, "tau": 0.5, "max_depth": 3}}


def options(classifier: str, **others: Any) -> RiverClassifierOptions:
    return RiverClassifierOptions.model_validate({**WORDS, "classifier": classifier, **others})


def case(classifier: str, **others: Any) -> Case:
    return Case(BLUEPRINT, options(classifier, **others), *texts())


CASES = {
    "naive Bayes": case("river.naive_bayes.MultinomialNB"),
    "naive Bayes, characters, tf-idf": case(
        "river.naive_bayes.ComplementNB", features="tfidf", tokens="characters", ngrams=(1, 3)
    ),
    "logistic regression": case("river.linear_model.LogisticRegression", parameters={**SGD, **NORMAL}),
    "softmax regression": case("river.linear_model.SoftmaxRegression", parameters=SGD),
    "Hoeffding tree": case(TREE, **TREE_OPTIONS),
    "calibrated": case("river.naive_bayes.MultinomialNB", calibrate=True),
}


class TestContract(LearnerContract):
    @pytest.fixture(params=list(CASES.values()), ids=list(CASES))
    def case(self, request: pytest.FixtureRequest) -> Case:
        assert isinstance(request.param, Case)
        return request.param

    def test_other_seed_other_bits(self, case: Case) -> None:
        """Most of river draws nothing, so that the seed changes nothing; what draws, draws from the seed."""
        ours, others = case.learned().capture(), case.learned(seed=SEED + 1).capture()
        assert same(ours, others) == ("initializer" not in case.options.parameters)

    def test_its_state_does_not_grow_with_the_stream(self, case: Case) -> None:
        """A tree grows until its depth is reached; it has its own test."""
        if case.options.classifier != TREE:
            case.its_state_does_not_grow_with_the_stream()


def test_it_is_as_sure_as_it_is_right() -> None:
    """Naive Bayes counts each of the twenty words of a text as a word for itself, and they are five."""
    words = [f"word{number}" for number in range(40)]
    rng = random.Random(0)
    labels = [str(number % 4) for number in range(900)]
    own = {label: words[8 * int(label) :][:16] for label in set(labels)}
    drawn = [[rng.choice(own[label] if rng.random() < 0.4 else words) for _ in range(5)] for label in labels]
    x = torch.tensor([[*map(ord, " ".join(each * 4).ljust(200))] for each in drawn], dtype=torch.int32)
    for calibrate in (False, True):
        one = Case(BLUEPRINT, RiverClassifierOptions(calibrate=calibrate), x, labels)
        ours = one.learner()
        for update in range(25):
            ours.learn(one.batch(24 * update, 24), update_generator(SEED, update))
        sure, best = answers(ours.model, x[600:], []).max(1)
        right = [ours.model.classes[k] == label for k, label in zip(best.tolist(), labels[600:], strict=True)]
        too_sure = sure.mean().item() - sum(right) / 300
        assert too_sure < 0.08 if calibrate else too_sure > 0.15


def test_a_version_of_before_goes_on_as_it_was() -> None:
    stored = RiverClassifierOptions.of_version({"buckets": 256})
    assert not stored.calibrate
    state = Case(BLUEPRINT, stored, *texts()).learned(5).capture()
    assert not state.training
    assert not {"seen", "calibration"} & state.meta.keys()
    assert "sharpness" not in state.serving


def hashed(text: str, buckets: int, tokenizer: Any, longest: int) -> list[int]:
    """Tokens of a text, one n-gram at a time, as buckets."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).lower()
    tokens = tokenizer(plain)
    found = [tokens[i : i + n] for n in range(1, longest + 1) for i in range(len(tokens) - n + 1)]
    return [crc32("\x1f".join(gram).encode()) % buckets for gram in found] or [crc32(b"") % buckets]


def words(text: str) -> list[str]:
    return re.findall(r"\b\w[\w\-]+\b", text)


ORACLES: dict[str, Any] = {
    "naive Bayes": (
        options("river.naive_bayes.MultinomialNB", ngrams=(1, 2), parameters={"alpha": 0.5}),
        lambda: naive_bayes.MultinomialNB(alpha=0.5),  # type: ignore[no-untyped-call]
    ),
    "tf-idf, characters, softmax": (
        options(
            "river.linear_model.SoftmaxRegression",
            features="tfidf", tokens="characters", ngrams=(1, 2),
            parameters={"optimizer": {"class": "river.optim.Adam", "lr": 0.05}},
        ),
        lambda: linear_model.SoftmaxRegression(optim.Adam(0.05)),
    ),
    "one-vs-rest": (
        options("river.linear_model.LogisticRegression", parameters={**SGD, "l2": 0.001}),
        lambda: multiclass.OneVsRestClassifier(linear_model.LogisticRegression(optim.SGD(0.3), l2=0.001)),
    ),
    "Hoeffding tree": (
        options(TREE, **TREE_OPTIONS),
        lambda: tree.HoeffdingTreeClassifier(grace_period=40, delta=0.2, tau=0.5, max_depth=3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ORACLES))
def test_it_answers_as_river_itself_does(name: str) -> None:
    """River's own pipeline, over features that are cut and hashed in plain Python: the same at every record."""
    settings, make = ORACLES[name]
    one = Case(BLUEPRINT, settings, *texts())
    ours = one.learner()
    tokenizer = list if settings.tokens == "characters" else words

    def tokens(text: str) -> list[int]:
        return hashed(text, settings.buckets, tokenizer, settings.ngrams[1])

    extraction = {"counts": feature_extraction.BagOfWords, "tfidf": feature_extraction.TFIDF}[settings.features]
    features = extraction(tokenizer=tokens, lowercase=False, strip_accents=False)
    if name == "Hoeffding tree":
        every = compose.FuncTransformer(lambda x: {bucket: x.get(bucket, 0) for bucket in range(settings.buckets)})
        reference: Any = compose.Pipeline(features, every, make())
    else:
        reference = compose.Pipeline(features, make())
    numbers: dict[str | None, int] = {}  # in the order of appearance, which settles a tree's ties
    for update in range(30):
        batch = one.batch(3 * update, 3)
        found, names = strings(batch.x), list(numbers)
        before = [reference.predict_proba_one(text) for text in found]
        report = ours.learn(batch, update_generator(SEED, update))
        assert report.predicted == [names[max(p, key=p.get)] if p else None for p in before]
        y = [numbers.setdefault(label, len(numbers)) for label in batch.labels]
        losses = [-math.log(max(p.get(number, 0.0), 1e-6)) for p, number in zip(before, y, strict=True)]
        assert report.loss == pytest.approx(sum(losses) / 3, rel=1e-4, abs=1e-6)
        for text, number in zip(found, y, strict=True):
            reference.learn_one(text, number)
    expected = [[reference.predict_proba_one(text)[k] for k in numbers.values()] for text in strings(one.x[:16])]
    torch.testing.assert_close(answers(ours.model, one.x[:16], []), torch.tensor(expected))
    if name == "Hoeffding tree":
        assert reference["HoeffdingTreeClassifier"].n_branches > 0


OPTIMIZERS = [name for name in classes() if name.startswith("river.optim.") and name.count(".") == 2]


@pytest.mark.parametrize(
    ("classifier", "parameters"),
    [*[(name, {}) for name in (*MULTICLASS, *BINARY)]]
    + [("river.linear_model.LogisticRegression", {"optimizer": {"class": name}}) for name in OPTIMIZERS]
    + [("river.linear_model.SoftmaxRegression", {"optimizer": {"class": name}}) for name in OPTIMIZERS],
)
def test_every_class_that_may_be_named_goes_on_from_its_state(classifier: str, parameters: dict[str, Any]) -> None:
    others = TREE_OPTIONS if classifier == TREE else {"parameters": parameters}
    one = case(classifier, **others)
    ours = one.learned(15)
    state = cloned(ours.capture())
    restored = one.learner(SEED + 1)
    restored.restore(state)
    assert same(restored.capture(), state)
    answer = answers(ours.model, one.x[:16], [])
    assert torch.equal(answers(restored.model, one.x[:16], []), answer)
    assert same(ours.capture(), state), "an answer changed what is learned"
    assert one.learn(restored, range(15, 30)) == one.learn(ours, range(15, 30))
    assert same(restored.capture(), ours.capture())


def test_the_vocabulary_is_bounded_by_the_buckets() -> None:
    one = case("river.naive_bayes.MultinomialNB", features="tfidf", buckets=16)
    ours = one.learner()
    assert isinstance(ours, RiverLearner)
    for number in range(300):
        ours.model.learn_one(f"word{number} and{number}", number % 2)
    count, frequencies, classifier = decode(ours.model.state_dict())
    assert count == 300
    assert set(frequencies) == set(classifier.feature_counts) == set(range(16))


@pytest.mark.parametrize("classifier", [*MULTICLASS, *BINARY])
def test_a_stream_may_start_with_a_text_without_a_word(classifier: str) -> None:
    ours = case(classifier).learner()
    assert isinstance(ours, RiverLearner)
    for text, number in (("", 0), ("?", 0), ("some words", 1)):
        torch.testing.assert_close(ours.model.probabilities(["other words", ""], number + 1).sum(1), torch.ones(2))
        ours.model.learn_one(text, number)


def test_a_tree_is_bounded_by_its_depth() -> None:
    one = case(TREE, buckets=8, parameters={"grace_period": 10, "delta": 0.9, "tau": 0.9, "max_depth": 2})
    ours = one.learned(80)
    state = {name: value for name, value in ours.capture().serving.items() if isinstance(value, torch.Tensor)}
    learned = decode(state)[2]
    assert 2 <= learned.n_leaves <= 4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"classifier": "os.system"}, "none of river's"),
        ({"classifier": "river"}, "none of river's"),
        ({"classifier": "river.forest.ARFClassifier"}, "cannot be captured without pickle"),
        ({"classifier": "river.stats.Mean"}, "cannot be captured"),
        ({"parameters": {"beta": 1}}, r"cannot be made with \['beta'\]"),
        ({"parameters": {"alpha": 0}}, "cannot learn texts"),  # log 0 at the first word that it has not seen
        ({"parameters": {"alpha": {"class": "sklearn.svm.SVC"}}}, "none of river's"),
        ({"parameters": {"alpha": {"class": "river.naive_bayes.MultinomialNB"}}}, "no such part"),
        ({"classifier": "river.linear_model.LogisticRegression", "parameters": {"loss": object()}}, "cannot"),
        ({"classifier": TREE, "parameters": {"max_size": 1}, "buckets": 64}, "takes no max_size"),
        ({"classifier": TREE, "parameters": {"max_depth": 40}, "buckets": 64}, "from 0 to 16"),
        ({"classifier": TREE}, "set buckets to 1024"),
        ({"ngrams": (2, 1)}, "shortest and the longest"),
    ],
)
def test_what_cannot_be_is_refused_when_the_configuration_is_read(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RiverClassifierOptions.model_validate(settings)


def test_nothing_outside_river_is_imported() -> None:
    for path in ("this.d", "river/../this.d", "river.this", "river.api.sys"):
        with pytest.raises(ValidationError):
            RiverClassifierOptions(classifier=path)
    assert "this" not in sys.modules


def test_a_graph_comes_back_with_its_order_its_types_and_what_it_shares() -> None:
    inner = collections.defaultdict(float, {3: 1.5, 1: -0.0, 2: math.inf})
    shared = optim.SGD(0.5)
    value = {
        "b": [inner, (1, -5, True, None), {7, 3}, "ü 🙂"],
        "a": collections.Counter({9: 2, 4: 1}),
        4: collections.Counter({1: True, 2: 3}),
        "same": [shared, shared, float, collections.Counter],
    }
    back = decode(encode(value))
    assert repr(back) == repr(value)
    assert [type(each) for each in back.values()] == [type(each) for each in value.values()]
    assert back["b"][0].default_factory is float
    assert math.copysign(1, back["b"][0][1]) == -1
    assert back["same"][0] is back["same"][1]
    assert {name: tensor.tolist() for name, tensor in encode(back).items()} == {
        name: tensor.tolist() for name, tensor in encode(value).items()
    }
    assert back["a"] + collections.Counter({9: 1}) == collections.Counter({9: 3, 4: 1})


def test_a_state_can_name_no_code() -> None:
    state = encode([optim.SGD(0.5), float])
    names = json.loads(bytes(state["river/names"].numpy()))
    for text in (b"os.system", b"builtins.eval", b"river.forest.ARFClassifier"):
        for place in ("texts", "layouts"):
            harmed = json.loads(json.dumps(names))
            harmed[place][0] = text.decode() if place == "texts" else [text.decode(), *names[place][0][1:]]
            stored = {**state, "river/names": torch.tensor(list(json.dumps(harmed).encode()), dtype=torch.uint8)}
            with pytest.raises(ValueError, match="damaged"):
                decode(stored)
    with pytest.raises(ValueError, match="damaged"):
        decode({**state, "river/integers": state["river/integers"][:-1]})
    with pytest.raises(TypeError, match="Thread"):
        encode([threading.Thread()])


def stored(integers: Sequence[int], texts: Sequence[str] = (), layouts: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    names = json.dumps({"texts": texts, "layouts": layouts}).encode()
    return {
        "river/names": torch.tensor(list(names), dtype=torch.uint8),
        "river/integers": torch.tensor(integers, dtype=torch.int64),
        "river/numbers": torch.zeros(1, dtype=torch.float64),
    }


SHARING = [Op.DICT, 0, 1, *[Op.SEQUENCE, 1, 2] * 40, Op.INT, 1, Op.INT, 2]
HOSTILE = {
    "a count that steps back": [Op.SEQUENCE, 0, 10_000, Op.NUMBERS, 0, -4, 1],
    "more items than there are numbers": [Op.SEQUENCE, 0, 1 << 40],
    "a dictionary of more": [Op.DICT, 0, 1 << 40, Op.NONE],
    "a dictionary of less than nothing": [Op.DICT, 0, -1],
    "numbers that are not there": [Op.NUMBERS, 0, 2, 1, 5],
    "a text before the first": [Op.TEXT, -1],
    "an object before the first": [Op.SEQUENCE, 0, 1, Op.REFERENCE, -1],
    "what holds itself": [Op.SEQUENCE, 0, 1, Op.REFERENCE, 0],
    "a kind before the first": [Op.SEQUENCE, -1, 0],
    "tuples in tuples as a key": [*SHARING, *[item for n in range(39, 0, -1) for item in (Op.REFERENCE, n)], Op.NONE],
    "a set of lists": [Op.SEQUENCE, 2, 1, Op.SEQUENCE, 0, 0],
    "too deep": [Op.SEQUENCE, 0, 1] * 100_000,
    "a generator beyond its words": [Op.RANDOM, *range(624), 100_000, 0],
    "a generator before its words": [Op.RANDOM, *range(624), -1, 0],
    "words that are none": [Op.RANDOM, *[-1] * 624, 0, 0],
}


@pytest.mark.parametrize("integers", HOSTILE.values(), ids=HOSTILE)
def test_a_state_asks_for_no_more_than_it_holds(integers: list[int]) -> None:
    with pytest.raises(ValueError, match="damaged"):
        decode(stored(integers, ["a text"]))


def test_a_version_of_another_river_is_refused() -> None:
    one = CASES["naive Bayes"]
    state = one.learned(1).capture()
    older = State(state.serving, state.training, {**state.meta, "river": "0.9.0"})
    with pytest.raises(ValueError, match=r"river 0\.9\.0"):
        one.learner().restore(older)
    with pytest.raises(ValueError, match=r"river 0\.9\.0"):
        BLUEPRINT.model(one.options, (32,), older.meta)
