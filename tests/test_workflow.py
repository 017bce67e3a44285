"""The workflow of a public CI, checked against GitHub's schema, which comes with a package: nothing is fetched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECK = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows")
WORKFLOWS = sorted((Path(__file__).parent.parent / ".github" / "workflows").iterdir())


def faults(*files: Path) -> int:
    return subprocess.run([*CHECK, *map(str, files)], capture_output=True).returncode


def test_workflows_are_what_github_reads() -> None:
    assert WORKFLOWS
    assert not faults(*WORKFLOWS)


def test_a_wrong_key_is_seen(tmp_path: Path) -> None:
    broken = tmp_path / "ci.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "runs_on:"))
    assert faults(broken)
