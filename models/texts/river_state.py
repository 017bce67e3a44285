"""The state of river's models as three arrays and back, without pickle: an allow-list of classes and their attributes.

A river model is a graph of Python objects. `encode` walks it and writes one stream of integers (what comes next, how
many, which), one of floats, and a table of names. `decode` makes objects of listed classes alone and calls nothing
but `__new__`, so that a stored state can name no code. What is not listed is refused by `encode` with its name.

What a state asks of its reader is bounded by its own size: a count is never more than what is left of its stream, and
what a dictionary or a set has to hash is plain, for tuples that share tuples would take for ever. Nothing holds itself.

Order is kept: of dictionaries, whose sums river takes in their order, and of references, so that an object that is
held in two places is one object again. Every number has eight bytes, so that a state whose objects stay the same stays
of one size however its numbers change.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: what may be named by a configuration, and what those make as they learn; the module says where river has it
CLASSES: Mapping[str, Sequence[str]] = {
    "river.naive_bayes": ("BernoulliNB", "ComplementNB", "MultinomialNB"),
    "river.linear_model": ("ALMAClassifier", "LogisticRegression", "Perceptron", "SoftmaxRegression"),
    "river.multiclass": ("OneVsRestClassifier",),
    "river.tree": ("HoeffdingTreeClassifier",),
    "river.tree.splitter": ("GaussianSplitter",),
    "river.tree.nodes.htc_nodes": ("LeafMajorityClass", "LeafNaiveBayes", "LeafNaiveBayesAdaptive"),
    "river.tree.nodes.branch": ("NumericBinaryBranch",),
    "river.optim": ("SGD", "Adam", "AdaGrad", "AdaDelta", "AMSGrad", "AdaMax", "FTRLProximal", "Momentum", "RMSProp"),
    "river.optim.initializers": ("Constant", "Normal", "Zeros"),
    "river.optim.losses": ("BinaryFocalLoss", "CrossEntropy", "Hinge", "Log"),
    "river.optim.schedulers": ("Constant", "InverseScaling", "Optimal"),
    "river.proba": ("Gaussian",),
    "river.stats": ("Mean", "Var"),
}
VECTOR = "river.utils.VectorDict"
#: factories of defaultdicts
CALLABLES: Mapping[str, Callable[..., Any]] = {
    "float": float, "int": int, "list": list, "dict": dict,
    "Counter": Counter, "defaultdict": defaultdict, "deepcopy": copy.deepcopy,
}  # fmt: skip
DICTS: Sequence[type[dict[Any, Any]]] = (dict, Counter, defaultdict)
SEQUENCES: Sequence[type[Any]] = (list, tuple, set)
PLAIN = (str, int, float, bool, type(None))  # what is hashed, alone or in a tuple
WORDS = 624  # of a Mersenne twister


class Op(IntEnum):
    """What comes next in the stream."""

    NONE = 0
    FALSE = 1
    TRUE = 2
    INT = 3  # value
    FLOAT = 4
    TEXT = 5  # string
    REFERENCE = 6  # object
    OBJECT = 7  # layout; then its attributes
    DICT = 8  # kind, count; for a defaultdict its factory; then keys and values in turn
    NUMBERS = 9  # the same of integers to numbers, with all keys and then all values; before them: are they floats?
    SEQUENCE = 10  # kind, count; then the values
    VECTOR = 11  # then a dictionary and its initialiser
    CALLABLE = 12  # string
    PARTIAL = 13  # then the function and a tuple of arguments
    RANDOM = 14  # 624 words, position, whether a Gaussian is left; a float


CONSTANTS: Mapping[Any, Op] = {None: Op.NONE, False: Op.FALSE, True: Op.TRUE}


@functools.cache
def classes() -> dict[str, type[Any]]:
    """Every listed class by its name. Importing river's models takes seconds, so it waits until one is used."""
    found = {
        f"{module}.{name}": getattr(importlib.import_module(module), name)
        for module, names in CLASSES.items()
        for name in names
    }
    return {**found, VECTOR: importlib.import_module("river.utils").VectorDict}


@functools.cache
def _names() -> dict[Any, str]:
    return {cls: name for name, cls in classes().items()} | {call: name for name, call in CALLABLES.items()}


class _Encoder:
    def __init__(self) -> None:
        self.integers: list[int] = []
        self.numbers: list[float] = []
        self.texts: dict[str, int] = {}
        self.layouts: dict[tuple[str, ...], int] = {}
        self._seen: dict[int, int] = {}  # id of an object → its number
        self._vector = classes()[VECTOR]

    def write(self, value: Any) -> None:
        out = self.integers
        if value is None or value is False or value is True:
            out.append(CONSTANTS[value])
        elif type(value) is int:
            out += (Op.INT, value)
        elif isinstance(value, float):
            out.append(Op.FLOAT)
            self.numbers.append(float(value))
        elif type(value) is str:
            out += (Op.TEXT, self._text(value))
        elif isinstance(value, type | FunctionType | BuiltinFunctionType):
            out += (Op.CALLABLE, self._text(self._name(value)))
        elif id(value) in self._seen:
            out += (Op.REFERENCE, self._seen[id(value)])
        else:
            self._seen[id(value)] = len(self._seen)
            self._object(value)

    def _object(self, value: Any) -> None:
        out = self.integers
        if type(value) in DICTS:
            self._dict(value)
        elif type(value) in SEQUENCES:
            items = sorted(value) if type(value) is set else value
            out += (Op.SEQUENCE, SEQUENCES.index(type(value)), len(items))
            for item in items:
                self.write(item)
        elif type(value) is self._vector:
            out.append(Op.VECTOR)
            _, (content, initialiser, mask, *_) = value.__reduce__()
            if mask is not None:
                raise TypeError("a masked river.utils.VectorDict")
            self._dict(content)
            self.write(initialiser)
        elif type(value) is functools.partial and not value.keywords:
            out.append(Op.PARTIAL)
            self.write(value.func)
            self.write(value.args)
        elif type(value) is np.random.RandomState:
            _, words, position, left, gaussian = value.get_state(legacy=True)
            out += (Op.RANDOM, *np.asarray(words).tolist(), int(position), int(left))
            self.numbers.append(float(gaussian))
        else:
            layout = (self._name(type(value)), *_attributes(value))
            out += (Op.OBJECT, self.layouts.setdefault(layout, len(self.layouts)))
            for attribute in layout[1:]:
                self.write(getattr(value, attribute))

    def _dict(self, value: dict[Any, Any]) -> None:
        kind = DICTS.index(type(value))
        keys, values = set(map(type, value)), set(map(type, value.values()))
        floats = values <= {float, np.float64}
        numbers = keys <= {int} and (floats or values == {int})
        self.integers += (Op.NUMBERS if numbers else Op.DICT, kind, len(value))
        if isinstance(value, defaultdict):
            self.write(value.default_factory)
        if numbers:
            self.integers += (floats, *value)
            (self.numbers if floats else self.integers).extend(value.values())
            return
        for key, item in value.items():
            self.write(key)
            self.write(item)

    def _text(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))

    @staticmethod
    def _name(value: Any) -> str:
        if value not in _names():
            raise TypeError(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}")
        return _names()[value]


def _attributes(value: Any) -> list[str]:
    """In the order of the alphabet, since they may be set in any; without a generator that was never seeded.

    Such a one (every `Gaussian` of a tree has it, to draw samples) can be part of nothing that repeats.
    """
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()) if hasattr(value, name)]
    names = sorted({*getattr(value, "__dict__", ()), *slots} - {"__dict__", "__weakref__"})
    return [name for name in names if not (isinstance(getattr(value, name), random.Random) and value.seed is None)]


class _Decoder:
    def __init__(self, integers: list[int], numbers: list[float], names: Mapping[str, Any]) -> None:
        self._integers = integers
        self._numbers = numbers
        self._read = self._number = 0
        self._texts: list[str] = names["texts"]
        self._layouts: list[list[str]] = names["layouts"]
        self._objects: list[Any] = []
        self._open: set[int] = set()  # objects that are being read

    def read(self) -> Any:
        match Op(self._next()):
            case Op.NONE | Op.FALSE | Op.TRUE as op:
                return next(constant for constant, its in CONSTANTS.items() if its is op)
            case Op.INT:
                return self._next()
            case Op.FLOAT:
                return self._floats(1)[0]
            case Op.TEXT:
                return self._texts[self._index(self._texts)]
            case Op.CALLABLE:
                name = self._texts[self._index(self._texts)]
                return CALLABLES.get(name) or classes()[name]
            case Op.REFERENCE:
                number = self._index(self._objects)
                if number in self._open:  # whoever follows a ring goes round for ever
                    raise ValueError(f"object {number} holds itself")
                return self._objects[number]
            case op:
                number = len(self._objects)
                self._objects.append(None)
                self._open.add(number)
                value = self._object(op, number)
                self._open.remove(number)
                return value

    def _object(self, op: Op, number: int) -> Any:
        if op is Op.OBJECT:
            name, *attributes = self._layouts[self._index(self._layouts)]
            value = self._objects[number] = object.__new__(classes()[name])
            for attribute in attributes:
                object.__setattr__(value, attribute, self.read())
        elif op in (Op.DICT, Op.NUMBERS):
            value = self._dict(op, number)
        elif op is Op.SEQUENCE:
            kind, count = SEQUENCES[self._index(SEQUENCES)], self._count()
            value = self._objects[number] = []
            value.extend(self.read() for _ in range(count))
            if kind is set and not all(map(_is_plain, value)):
                raise ValueError("a set of what cannot be hashed")
            if kind is not list:
                value = self._objects[number] = kind(value)
        elif op is Op.VECTOR:
            content = self._dict(Op(self._next()), None)
            value = self._objects[number] = classes()[VECTOR](content, self.read())
        elif op is Op.PARTIAL:
            function = self.read()
            value = self._objects[number] = functools.partial(function, *self.read())
        else:
            *words, position, left = self._ints(WORDS + 2)
            if not 0 <= position <= WORDS:  # numpy takes any, and reads there
                raise ValueError(f"a random generator at {position}")
            value = self._objects[number] = np.random.RandomState()
            value.set_state(("MT19937", np.array(words, dtype=np.uint32), position, left, self._floats(1)[0]))
        return value

    def _dict(self, op: Op, number: int | None) -> dict[Any, Any]:
        value, count = DICTS[self._index(DICTS)](), self._count()
        if number is not None:
            self._objects[number] = value
        if isinstance(value, defaultdict):
            value.default_factory = self.read()
        if op is Op.NUMBERS:
            floats, keys = self._next(), self._ints(count)
            # Not Counter.update, which adds to what is there.
            dict.update(value, zip(keys, self._floats(count) if floats else self._ints(count), strict=True))
            return value
        for _ in range(count):
            key = self.read()
            if not _is_plain(key):
                raise ValueError(f"a key of {type(key).__name__}")
            dict.__setitem__(value, key, self.read())
        return value

    def _next(self) -> int:
        self._read += 1
        return self._integers[self._read - 1]

    def _index(self, of: Sequence[Any]) -> int:
        found = self._next()
        if not 0 <= found < len(of):
            raise IndexError(found)
        return found

    def _count(self) -> int:
        """How much comes: each item takes an integer at least."""
        found = self._next()
        if not 0 <= found <= len(self._integers) - self._read:
            raise ValueError(f"{found} items, and {len(self._integers) - self._read} numbers are left")
        return found

    def _ints(self, count: int) -> list[int]:
        self._read += count
        if self._read > len(self._integers):
            raise IndexError(self._read)
        return self._integers[self._read - count : self._read]

    def _floats(self, count: int) -> list[float]:
        self._number += count
        if self._number > len(self._numbers):
            raise IndexError(self._number)
        return self._numbers[self._number - count : self._number]


def _is_plain(value: Any) -> bool:
    return type(value) in PLAIN or (type(value) is tuple and all(type(item) in PLAIN for item in value))


NAMES, INTEGERS, NUMBERS = "river/names", "river/integers", "river/numbers"


def encode(value: Any) -> dict[str, Tensor]:
    """river/names uint8 (JSON), river/integers int64 and river/numbers float64, of one dimension each.

    Raises:
        TypeError: it holds something that is not listed here; the message is its name.
    """
    encoder = _Encoder()
    encoder.write(value)
    names = json.dumps({"texts": list(encoder.texts), "layouts": list(encoder.layouts)}).encode()
    return {
        NAMES: torch.frombuffer(bytearray(names), dtype=torch.uint8),
        INTEGERS: torch.tensor(encoder.integers, dtype=torch.int64),
        NUMBERS: torch.tensor(encoder.numbers, dtype=torch.float64),
    }


def decode(state: Mapping[str, Tensor]) -> Any:
    """What `encode` was given, as new objects.

    Raises:
        ValueError: a tensor is missing or of another kind, or they are no such state.
    """
    for name, dtype in ((NAMES, torch.uint8), (INTEGERS, torch.int64), (NUMBERS, torch.float64)):
        if name not in state:
            raise ValueError(f"{name} is missing in the stored state.")
        found = state[name]
        if (found.dtype, found.dim()) != (dtype, 1):
            raise ValueError(f"{name} is {tuple(found.shape)} {found.dtype} in the stored state, not a row of {dtype}.")
    try:
        names = json.loads(bytes(state[NAMES].cpu().numpy()))
        return _Decoder(state[INTEGERS].tolist(), state[NUMBERS].tolist(), names).read()
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"the stored state of river's model is damaged: {error!r}") from error
