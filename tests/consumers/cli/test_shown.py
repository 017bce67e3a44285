"""What is foreign is shown and steers no terminal, no password is printed, and no file is written over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from consumers.cli.command import LINES, printable
from pipeline.store.store import Store
from tests.consumers.answering import serving
from tests.consumers.marked import marked, step

HEADRACE = str(Path(sys.executable).with_name("headrace"))
STEERING = "\x1b[2J\x1b]0;title\x07\r\x08\x9b31m\u202e\u2066"


def said(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """What the command says."""
    return subprocess.run([HEADRACE, *command], cwd=folder, capture_output=True, text=True, check=False)


def test_texts_are_shown_and_steer_nothing() -> None:
    assert printable(STEERING) == r"\x1b[2J\x1b]0;title\x07\r\x08\x9b31m\u202e\u2066"
    assert printable("Grüße, 世界 🙂\n\t") == "Grüße, 世界 🙂\\n\\t"
    assert printable("two\nlines\x1b", LINES) == "two\nlines\\x1b"


def test_what_a_model_writes_steers_no_terminal(redis_url: str, tmp_path: Path) -> None:
    with serving(redis_url, "voice") as (at, _):
        shown = said(tmp_path, "complete", "voice", f"a{STEERING}b", "--url", at.url)
        assert shown.returncode == 0, shown.stderr
        assert not set(shown.stdout) & set(STEERING) - set(printable(STEERING))
        assert "\\x1b" in shown.stdout
        exact = said(tmp_path, "complete", "voice", f"a{STEERING}b", "--url", at.url, "--json")
        assert not set(exact.stdout) & {"\x1b", "\x07"}


ASKED = [
    ("versions pictures", "redis://:s3cret@host:port/0"),
    ("pull pictures", "redis://:s3/cret@host"),
    ("serve", "redis://:s3cret@[bad"),
]


@pytest.mark.parametrize(("command", "url"), ASKED)
def test_an_address_of_redis_that_is_none_is_reported_without_its_password(
    tmp_path: Path, command: str, url: str
) -> None:
    (tmp_path / "headrace.toml").write_text(f'[redis]\nurl = "{url}"\n[sampler]\nport = 0\n')
    shown = said(tmp_path, *command.split())
    assert shown.returncode == 2, shown.stderr
    assert "redis.url" in shown.stderr
    assert "redis://:PASSWORD@HOST:PORT/0" in shown.stderr
    assert "s3" not in shown.stderr


def test_weights_are_not_written_over(redis_url: str, redis: Redis, family: str, tmp_path: Path) -> None:
    step(marked(Store(redis, family, family)))
    (tmp_path / "headrace.toml").write_text(f'[redis]\nurl = "{redis_url}"\n')
    shown = said(tmp_path, "pull", family, "--to", "x.json")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "--to x.json: the manifest gets that name" in shown.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "headrace.toml"]
    assert said(tmp_path, "pull", family, "--to", "x.safetensors").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["headrace.toml", "x.json", "x.safetensors"]
