"""One import for whoever uses headrace, and a clear sentence where a stranger's package stands in its way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from tests.consumers.answering import commit, maker

ROOT = Path(__file__).resolve().parent.parent
HEADRACE = Path(sys.executable).with_name("headrace")
PACKAGES = ("pipeline", "models", "consumers")
NAMED = ("pipeline", "models")  # a foreign `consumers` keeps the command itself from being found
CLIENT = "from pipeline.client import Client"


def ended(command: list[str | Path], folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def stranger(folder: Path, name: str) -> Path:
    """A regular package of somebody else's."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('it was run')", "utf-8")
    return folder / name / "__init__.py"


@pytest.mark.parametrize("command", ["--version", "init", "train", "serve", "publish"])
@pytest.mark.parametrize("name", NAMED)
def test_a_command_names_the_package_that_shadows_ours(tmp_path: Path, name: str, command: str) -> None:
    found = stranger(tmp_path, name)
    done = ended([HEADRACE, command], tmp_path, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"headrace: Python finds a package {name} that is not headrace's: {found}.")
    assert f"Ours is {ROOT / name / '__init__.py'}. Rename or uninstall the other one" in line


@pytest.mark.parametrize("command", [["--version"], ["init"], ["publish", "--help"], ["train", "--help"]])
def test_a_folder_of_weights_stands_in_nobodys_way(tmp_path: Path, command: list[str]) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").write_bytes(b"\0")
    assert ended([HEADRACE, *command], tmp_path, tmp_path).returncode == 0
    assert ended([sys.executable, "-c", CLIENT], tmp_path).stderr == ""


def test_a_distribution_that_was_written_over_ours_is_named(tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_bytes((ROOT / name / "__init__.py").read_bytes())
    for file in ("shadows.py", "entry.py"):
        (tmp_path / "consumers" / file).write_bytes((ROOT / "consumers" / file).read_bytes())
    (tmp_path / "models/__init__.py").write_text("", "utf-8")
    done = ended([sys.executable, "-m", "consumers.entry"], tmp_path, tmp_path)
    assert "a package models that is not headrace's" in done.stderr
    assert done.returncode == 1


PROGRAM = """
import sys
from pathlib import Path
import torch
from pipeline.client import Client
from pipeline.config import load

with Client(load(Path("headrace.toml"), {})) as client:
    model = client.pull(sys.argv[1]).module()
    assert isinstance(model, torch.nn.Module), model
    print(*model.state_dict())
"""


MODULE = "from consumers.shadows import module; module(None, {}, None)"


def test_who_builds_a_model_is_told_of_the_package_that_shadows_ours(tmp_path: Path) -> None:
    found = stranger(tmp_path, "models")
    done = ended([sys.executable, "-c", MODULE], tmp_path)  # the folder that it is started in comes first
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: Python finds a package models that is not headrace's: {found}.")


@pytest.mark.parametrize(
    ("name", "learner", "words"),
    [
        ("drawings", "image-vae", "up.0.convolution.weight"),
        ("eyes", "tests.consumers.answering:eyes", "mark"),
        ("eyes", "image-vae", "ConfigError: it was learned by tests.consumers.answering:eyes, which is not built in"),
    ],
)
def test_a_pulled_version_is_a_module_in_a_fresh_interpreter(
    tmp_path: Path, redis: Redis, redis_url: str, family: str, name: str, learner: str, words: str
) -> None:
    commit(maker(redis, family, name), name, 1)
    where = f'[redis]\nurl = "{redis_url}"\n[models.{name}]\ntopics = ["t"]\nfamily = "{family}"\n'
    model = f'{where}learner = "{learner}"\ninput = {{ kind = "image", size = 8, channels = 1 }}\n'
    (tmp_path / "headrace.toml").write_text(model, "utf-8")
    done = ended([sys.executable, "-c", PROGRAM, name], tmp_path, ROOT)
    assert words in done.stdout + done.stderr
