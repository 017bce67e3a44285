"""The layout of the design, held by walking the syntax trees: where imports point, what no file may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "models", "consumers")
MAY_IMPORT = {"pipeline": {"pipeline"}, "models": {"models"}, "consumers": set(PACKAGES)}
SHIPPED = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
WRITTEN = SHIPPED + sorted(
    path for folder in ("deploy", "docs", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
)
PAGE = sorted((ROOT / "consumers" / "sampler" / "page").iterdir())
MAX_LINES = 450
RUNS_DATA = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SHIPPED}


def imported(tree: ast.AST, modules: frozenset[str] | set[str] = frozenset(MODULES)) -> Iterator[str]:
    """Every module that is imported anywhere in the tree, also inside functions and for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides which package it means"
            for alias in node.names:  # `from pipeline import store` imports pipeline.store
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in modules else str(node.module)


def wrong_directions(package: str, tree: ast.AST) -> set[str]:
    """What the tree imports of our packages although its own may not."""
    return {name for name in imported(tree) if name.split(".")[0] in set(PACKAGES) - MAY_IMPORT[package]}


def forbidden(tree: ast.AST) -> list[str]:
    """What could run code that is named or carried by data, or hands a string to a shell."""
    found = [name for name in imported(tree) if name.split(".")[0] in RUNS_DATA]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {word.arg: word.value for word in node.keywords}
        if called in ("eval", "exec", "os.system", "os.popen", "torch.save"):
            found.append(called)
        if called == "torch.load" and ast.unparse(keywords.get("weights_only", ast.Constant(False))) != "True":
            found.append(called)
        for name in ("shell", "allow_pickle"):
            if name in keywords and ast.unparse(keywords[name]) != "False":
                found.append(name)
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@pytest.mark.parametrize("path", SHIPPED, ids=module_name)
def test_imports_point_from_consumers_to_pipeline_and_models(path: Path) -> None:
    assert wrong_directions(path.relative_to(ROOT).parts[0], parse(path)) == set()


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("pipeline", "import models.learner"),
        ("models", "from pipeline import codec"),
        ("models", "def late():\n    from pipeline.store import Store"),
        ("pipeline", "from consumers.cli import main"),
    ],
)
def test_a_wrong_direction_is_seen(package: str, source: str) -> None:
    assert wrong_directions(package, ast.parse(source))


def rooms(module: str) -> set[str]:
    """The packages that a module is in: importing it runs what they begin with."""
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def runs_first(module: str, tree: ast.AST) -> set[str]:
    """What of ours is imported before a module, but for what imports it."""
    found = {name for name in imported(tree) if name in MODULES}
    return found.union(*(rooms(name) for name in found)) - rooms(module) - {module}


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: runs_first(name, parse(path)) for name, path in MODULES.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


WINGS = {name for name, path in MODULES.items() if path.name == "__init__.py" and "." in name}
#: rooms of one house that know nothing of each other
STRANGERS = (("consumers.worker", "consumers.sampler"), ("consumers.sampler", "consumers.worker"))


def past_the_face(package: str, tree: ast.AST) -> set[str]:
    """What the tree imports of another package's wings in another way than through their faces."""
    others = {name for name in imported(tree) if name.split(".")[0] != package}
    return {name for name in others if rooms(name) & WINGS}


@pytest.mark.parametrize("path", SHIPPED, ids=module_name)
def test_a_wing_is_entered_through_its_face(path: Path) -> None:
    assert past_the_face(path.relative_to(ROOT).parts[0], parse(path)) == set()


@pytest.mark.parametrize("path", SHIPPED, ids=module_name)
def test_worker_and_sampler_know_nothing_of_each_other(path: Path) -> None:
    within = {other for room, other in STRANGERS if room in {module_name(path), *rooms(module_name(path))}}
    assert {name for name in imported(parse(path)) if within & {name, *rooms(name)}} == set()


def test_a_way_past_the_face_is_seen() -> None:
    assert past_the_face("consumers", ast.parse("from pipeline.store.writer import Draft"))
    assert not past_the_face("consumers", ast.parse("from pipeline.store import Draft"))
    assert not past_the_face("pipeline", ast.parse("from pipeline.store.writer import Draft"))


def test_a_circle_is_seen() -> None:
    sources = {"a": "import b", "b": "def late():\n    import a"}
    graph = {name: set(imported(ast.parse(source))) for name, source in sources.items()}
    with pytest.raises(CycleError):
        tuple(TopologicalSorter(graph).static_order())


def test_pipeline_does_not_load_torch() -> None:
    modules = [name for name in MODULES if name.split(".")[0] == "pipeline"]
    program = (
        "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *modules], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("path", WRITTEN + PAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SHIPPED, ids=module_name)
def test_no_thread_is_made_that_could_end_silently(path: Path) -> None:
    names = {ast.unparse(node) for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute | ast.Name)}
    names |= set(imported(parse(path), {"threading.Thread"}))
    assert {"threading.Thread", "Thread"}.isdisjoint(names) or module_name(path) == "pipeline.threads"


@pytest.mark.parametrize("path", [path for path in WRITTEN if "tests" not in path.parts], ids=lambda path: path.name)
def test_nothing_runs_what_data_names(path: Path) -> None:
    assert forbidden(parse(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "subprocess.run(text, shell=True)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_what_runs_data_is_seen(source: str) -> None:
    assert forbidden(ast.parse(source))


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_started_ends_with_whoever_started_it(path: Path) -> None:
    """A program that runs beside ours is `tied` to it: it would outlive a `kill -9`."""
    started = [
        node.args[0]
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and "Popen" in ast.unparse(node.func)
    ]
    assert [ast.unparse(command) for command in started if not ast.unparse(command).startswith("tied(")] == []


def test_an_evaluated_model_is_not_eval() -> None:
    assert forbidden(ast.parse("model.eval()")) == []
