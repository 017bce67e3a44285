"""Code from the folder of a command runs where the configuration names it, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEADRACE = str(Path(sys.executable).with_name("headrace"))
PATIENCE_S = 60.0
CONFIG = """
[kafka]
bootstrap_servers = "{kafka}"

[redis]
url = "{redis_url}"

[sampler]
port = 1

[models.m]
topics = ["own-code"]
learner = "{learner}"
input = {{ kind = "text" }}
"""
#: What libraries import if it is there, and the names of ours.
TEMPTING = (
    "snappy",
    "lz4",
    "crc32c",
    "xxhash",
    "gssapi",
    "zstandard",
    "brotli",
    "socks",
    "models",
    "pipeline",
    "kafka",
)


@pytest.fixture
def folder(kafka: str, redis_url: str, tmp_path: Path) -> Path:
    """One that holds modules of names that somebody imports, each of which leaves a mark."""
    for name in TEMPTING:
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n", "utf-8")
    (tmp_path / "headrace.toml").write_text(
        CONFIG.format(kafka=kafka, redis_url=redis_url, learner="text-analytic"), "utf-8"
    )
    (tmp_path / "a.txt").write_text("a", "utf-8")
    return tmp_path


def headrace(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [HEADRACE, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["publish", "own-code", "a.txt", "--label", "x"], 0), (["classify", "m", "a.txt"], 9), (["versions", "m"], 0)],
)
def test_a_command_runs_nothing_that_lies_in_its_folder(folder: Path, arguments: list[str], status: int) -> None:
    done = headrace(folder, *arguments)
    assert done.returncode == status, done.stderr
    assert not (folder / "ran").exists()


def test_what_the_configuration_names_is_found_and_its_faults_are_reported(folder: Path) -> None:
    config = folder / "headrace.toml"
    for source, why in {
        "blueprint = 3\n": "is a int, not a Blueprint",
        "blueprint = \n": "SyntaxError: invalid syntax",
        "1 / 0\n": "ZeroDivisionError: division by zero",
        "": "has no attribute 'blueprint'",
    }.items():
        (folder / "mine.py").write_text(source, "utf-8")
        config.write_text(config.read_text("utf-8").replace("text-analytic", "mine:blueprint"), "utf-8")
        done = headrace(folder, "train", "m")
        assert done.returncode == 2
        assert 'learner = "mine:blueprint"' in done.stderr
        assert why in done.stderr
        assert "Traceback" not in done.stderr
