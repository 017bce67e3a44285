"""One meaning a word (docs/glossary.md): retired words stay out of identifiers, and no class name is there twice."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_layout import MODULES, parse

#: what is not said, and what is said in its place
RETIRED = {
    "place": "`Place` for the position of a record alone; admission, lease, index",
    "standing": "version info, progress, standby",
    "begin": "warm start, start offsets, open, make",
    "known": "features, classes",
    "told": "what it is: headers, log-probabilities",
    "note": "commit metadata, digests, a report",
    "examiner": "evaluator",
    "judge": "feature extractor",
}
FORMS = {"begun": "begin", "begins": "begin", "beginning": "begin", "noted": "note", "notes": "note", "judges": "judge"}
#: identifiers that stay, and why
ALLOWED = {
    "Place": "the position of a record",
    "place": "a `Place`",
    "standing": "a field of the sampler's answers, which clients read",
}


def named(tree: ast.AST) -> Iterator[str]:
    """What the tree gives a name to: classes, functions, arguments, variables, attributes, imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]


def retired(tree: ast.AST) -> dict[str, str]:
    """Identifiers with a retired word, and what is said in its place."""
    found = {}
    for name in set(named(tree)) - set(ALLOWED):
        for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name):
            word = FORMS.get(part.lower(), part.lower())
            if word in RETIRED:
                found[name] = RETIRED[word]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_retired_words_stay_out(module: str) -> None:
    assert retired(parse(MODULES[module])) == {}


def test_names_of_tests_have_no_retired_word() -> None:
    rooms = [Path(__file__).parent / room for room in ("pipeline", "consumers", "models")]
    files = [path for room in rooms for path in room.rglob("test_*.py")]
    assert len(files) > 50
    assert [name for path in files for name in retired(parse(path)) if name.startswith("test_")] == []


@pytest.mark.parametrize("source", ["def begin(): ...", "lost_place = 1", "class Standing: ...", "self._noted = 1"])
def test_a_retired_word_is_seen(source: str) -> None:
    assert retired(ast.parse(source))


def test_no_class_name_is_there_twice() -> None:
    trees = [parse(path) for path in MODULES.values()]
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []
