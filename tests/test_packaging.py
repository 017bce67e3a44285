"""The wheel: built without the network, complete, and at home in a folder that has a `models/` of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "models", "consumers")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        ROOT,
    ]
    subprocess.run(command, check=True, capture_output=True)
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone; the environment that runs the tests lends its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    install: list[str | Path] = [
        "-m",
        "uv",
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--python",
        python,
        wheel,
    ]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    # Python reads no .pth file in a folder that a .pth file names: the editable headrace stays out of sight.
    site_packages = next((folder / "lib").glob("python*/site-packages"))
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    return folder


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A folder as users have them: with packages of the same names as ours."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('the {name}/ of the user')", "utf-8")
    return tmp_path


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.split("/")[0] in PACKAGES}
    written = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    assert packed == {str(path.relative_to(ROOT)) for path in written if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    "name", [*(f"{package}/py.typed" for package in PACKAGES), "jars.sha256", ".lua", "init.toml", "page/main.js"]
)
def test_the_wheel_holds_what_is_not_python(wheel: Path, name: str) -> None:
    assert any(packed.endswith(name) for packed in zipfile.ZipFile(wheel).namelist())


def test_the_license_is_in_the_wheel(wheel: Path) -> None:
    [name] = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("LICENSE")]
    assert b"Apache License" in zipfile.ZipFile(wheel).read(name)


def test_every_entry_point_shows_its_help_beside_packages_of_the_same_names(
    environment: Path, users_folder: Path
) -> None:
    commands = metadata.distribution("headrace").entry_points.select(group="console_scripts").names
    assert commands == {"headrace"}
    for command in commands:
        done = subprocess.run(
            [environment / "bin" / command, "--help"],
            cwd=users_folder,
            check=False,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: headrace" in done.stdout


def test_a_command_that_runs_models_takes_those_of_the_wheel(environment: Path, users_folder: Path) -> None:
    model = '[models.m]\ntopics = ["t"]\nlearner = "unheard-of"\ninput = { kind = "text" }'
    (users_folder / "headrace.toml").write_text(model, "utf-8")
    done = subprocess.run(
        [environment / "bin/headrace", "train", "m"],
        cwd=users_folder,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "not built in" in done.stderr
