"""`headrace local` where there is no configuration: its Redis has a password, which nobody has to be told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import AuthenticationError, Redis

from pipeline.local.artefacts import cache_folder
from pipeline.process import tied

HEADRACE = str(Path(sys.executable).with_name("headrace"))
PATIENCE_S = 120.0
CONFIG = """
[redis]
url = "redis://127.0.0.1:{port}/0"
[models.digits]
topics = ["digits"]
learner = "text-analytic"
input = {{ kind = "text" }}
"""


def watch(folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HEADRACE, "watch", "--once"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_redis_without_configuration_has_a_password_that_its_user_need_not_know(kafka: str, tmp_path: Path) -> None:
    del kafka  # it has fetched what `local` needs
    environ = {name: value for name, value in os.environ.items() if "HEADRACE__" not in name}
    environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    (tmp_path / "cache" / "headrace").mkdir(parents=True)
    (tmp_path / "cache" / "headrace" / "kafka").symlink_to(cache_folder(os.environ) / "kafka")
    (tmp_path / "work").mkdir()
    command = [HEADRACE, "local", "some/data", "--kafka-port", "0", "--redis-port", "0", "--json"]
    with subprocess.Popen(tied(command), cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = urlsplit(json.loads(process.stdout.readline())["redis"])
        assert url.port is not None
        assert url.password
        (tmp_path / "work" / "headrace.toml").write_text(CONFIG.format(port=url.port))
        with Redis(port=url.port) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        done = watch(tmp_path / "work", environ)
        assert (done.returncode, done.stdout) == (0, "model digits  records 0\n")
        file = tmp_path / "cache" / "headrace" / f"redis-{url.port}"
        assert file.stat().st_mode & 0o777 == 0o600
        others = watch(tmp_path / "work", environ | {"XDG_CACHE_HOME": str(tmp_path / "another")})
        assert others.returncode == 4
        assert "Give redis.url its password" in others.stderr
        for folder in ("some", "some/data", "some/data/redis", "some/data/kafka"):
            assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert not file.exists()
