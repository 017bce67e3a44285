"""What `make check-deploy` runs: the deployment files, under their own tools, without a container engine.

1. The compose files, by the parser that `docker compose` itself uses; and that they, deploy/headrace.toml and
   deploy/prometheus.yml agree with each other.
2. The Dockerfile, by hadolint.
3. The Prometheus configuration and alerts, by promtool.
4. A real Prometheus with that configuration scrapes a running worker and a running sampler.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image, ImageDraw

from pipeline.config import load
from pipeline.local.servers import Local
from pipeline.process import tied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
TOOLS = ROOT / ".headrace" / "tools"
BASE = ROOT / "docker-compose.yml"
GPU = DEPLOY / "docker-compose.gpu.yml"
SECRETS = {"HEADRACE_TOKEN": "only-for-this-check", "HEADRACE_REDIS_PASSWORD": "onlyforthischeck"}


class CheckError(Exception):
    """What is wrong, and what to do."""


def main() -> int:
    """Runs every check; the first that fails ends it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    TOOLS.mkdir(parents=True, exist_ok=True)
    try:
        services = check_compose()
        say(f"compose: {', '.join(services)}; and with GPUs")
        run([Path(sys.executable).with_name("hadolint"), DEPLOY / "Dockerfile"])
        bases = [
            line.split()[1] for line in (DEPLOY / "Dockerfile").read_text("utf-8").splitlines() if line[:5] == "FROM "
        ]
        agree("Dockerfile: the images without a digest", [base for base in bases if "@sha256:" not in base], [])
        say("Dockerfile: hadolint has nothing to say")
        promtool, prometheus = prometheus_programs()
        run([promtool, "check", "config", DEPLOY / "prometheus.yml"])
        say("prometheus.yml and its alerts: promtool has nothing to say")
        check_scrape(prometheus, services)
        say("prometheus: scraped a live worker and a live sampler, and answered a query")
    except CheckError as error:
        print(f"check-deploy: {error}", file=sys.stderr)
        return 1
    return 0


def check_compose() -> dict[str, Any]:
    """The services, if the files are valid and agree with the other files.

    Raises:
        CheckError: they are not, or do not.
    """
    if shutil.which("go") is None:
        raise CheckError(
            "go is missing, which builds the compose parser. Install Go 1.25 or newer (https://go.dev/dl)."
        )
    parser = TOOLS / "compose"
    run(["go", "build", "-o", parser, "."], cwd=DEPLOY / "compose")
    for secret in SECRETS:
        lacking = {name: value for name, value in (os.environ | SECRETS).items() if name != secret}
        if subprocess.run([parser, BASE], env=lacking, capture_output=True, check=False).returncode == 0:
            raise CheckError(f"{BASE.name} loads without {secret}. Require it: ${{{secret}:?…}}.")
    environment = os.environ | SECRETS
    services: dict[str, Any] = json.loads(run([parser, BASE], env=environment))["services"]
    with_gpu: dict[str, Any] = json.loads(run([parser, BASE, GPU], env=environment))["services"]

    models = tomllib.loads((DEPLOY / "headrace.toml").read_text("utf-8"))["models"]
    workers = {f"worker-{name}": ["train", name] for name in models}
    agree(
        "the workers and the models of deploy/headrace.toml",
        {name: service["command"] for name, service in services.items() if name.startswith("worker-")},
        workers,
    )
    agree(
        "the services with a GPU and the workers",
        sorted(name for name, service in with_gpu.items() if service.get("deploy")),
        sorted(workers),
    )
    for name, service in services.items():
        exposed = [port for port in service.get("ports", []) if port.get("host_ip") != "127.0.0.1"]
        agree(f"{name}: the ports published beyond loopback", exposed, [])
        agree(f"{name}: a limit of its memory", bool(service.get("mem_limit")), True)
        agree(f"{name}: no new privileges", service.get("security_opt"), ["no-new-privileges:true"])
        agree(f"{name}: read-only", bool(service.get("read_only")), name != "kafka")  # which writes its settings
        agree(f"{name}: an image by its digest", "@sha256:" in service["image"], service["image"] != "headrace")
        secrets = [word for word in service.get("command") or [] if any(secret in word for secret in SECRETS.values())]
        agree(f"{name}: secrets among the arguments, which everybody may read", secrets, [])
        mounts = [volume["source"] for volume in service.get("volumes", []) if volume["type"] == "bind"]
        agree(
            f"{name}: the mounted files that are missing",
            [file for file in mounts if not Path(file).is_file()],
            [],
        )
    sampler = load(DEPLOY / "headrace.toml", services["sampler"]["environment"]).sampler
    agree(
        "the targets in deploy/prometheus.yml and the services",
        sorted(targets()),
        sorted(
            [f"worker-{name}:{table['metrics']['port']}" for name, table in models.items()]
            + [f"sampler:{sampler.port}"]
        ),
    )
    return services


def targets() -> list[str]:
    """Every address in deploy/prometheus.yml."""
    jobs = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    return [target for job in jobs for group in job["static_configs"] for target in group["targets"]]


def alerting_metrics() -> list[str]:
    """Every metric of ours that an alert names: one that does not exist would never raise it."""
    return sorted(set(re.findall(r"\bheadrace_\w+", (DEPLOY / "alerts.yml").read_text("utf-8"))))


def prometheus_programs() -> tuple[Path, Path]:
    """promtool and prometheus: those on PATH, else Debian's package, unpacked into .headrace/tools.

    Raises:
        CheckError: neither can be had.
    """
    on_path = shutil.which("promtool"), shutil.which("prometheus")
    if on_path[0] and on_path[1]:
        return Path(on_path[0]), Path(on_path[1])
    folder = TOOLS / "prometheus"
    if not folder.exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise CheckError("prometheus and promtool are missing. Install Prometheus, so that both are on PATH.")
        say("prometheus: unpacking Debian's package into .headrace/tools")
        with tempfile.TemporaryDirectory(dir=TOOLS) as name:
            try:
                run(["apt-get", "download", "prometheus"], cwd=Path(name))
            except CheckError:
                if os.geteuid() != 0:
                    raise CheckError(
                        "apt-get cannot download prometheus. Run `apt-get update` as root, or install it."
                    ) from None
                run(["apt-get", "update"])
                run(["apt-get", "download", "prometheus"], cwd=Path(name))
            [package] = Path(name).glob("*.deb")
            run(["dpkg", "-x", package, Path(name) / "unpacked"])
            (Path(name) / "unpacked").rename(folder)
    return folder / "usr/bin/promtool", folder / "usr/bin/prometheus"


def check_scrape(prometheus: Path, services: Mapping[str, Any]) -> None:
    """deploy/headrace.toml and deploy/prometheus.yml, live; only addresses are others than in the containers.

    Raises:
        CheckError: a process ended, or Prometheus does not see what it should within two minutes.
    """
    headrace = Path(sys.executable).with_name("headrace")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = stack.enter_context(Local(folder / "local", say=say))
        worker, sampler, prometheus_at = (f"127.0.0.1:{port}" for port in free_ports(3))
        environment = os.environ | {
            "HEADRACE__KAFKA__BOOTSTRAP_SERVERS": servers.kafka.bootstrap_servers,
            "HEADRACE__REDIS__URL": servers.redis.url,
            "HEADRACE__SAMPLER__PORT": sampler.rpartition(":")[2],
            "HEADRACE__MODELS__DIGITS__METRICS__HOST": "127.0.0.1",
            "HEADRACE__MODELS__DIGITS__METRICS__PORT": worker.rpartition(":")[2],
        }
        config: list[str | Path] = ["--config", DEPLOY / "headrace.toml"]
        draw_digits(folder / "digits")
        run([headrace, "publish", "digits", folder / "digits", *config], env=environment)

        text = (DEPLOY / "prometheus.yml").read_text("utf-8")
        for name, address in {"worker-digits:9100": worker, "sampler:8080": sampler}.items():
            agree(f"{name} in deploy/prometheus.yml", text.count(f'"{name}"'), 1)
            text = text.replace(f'"{name}"', f'"{address}"')
        (folder / "prometheus.yml").write_text(text, "utf-8")
        shutil.copy(DEPLOY / "alerts.yml", folder)

        arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        processes = [
            stack.enter_context(process([headrace, "train", "digits", *config], folder / "worker.log", environment)),
            stack.enter_context(process([headrace, "serve", *config], folder / "sampler.log", environment)),
            stack.enter_context(
                process(
                    [prometheus, *arguments, f"--web.listen-address={prometheus_at}"],
                    folder / "prometheus.log",
                    environment,
                )
            ),
        ]
        health = urllib.parse.urlsplit(services["sampler"]["environment"]["HEALTH_URL"]).path
        wait_for(processes, "the sampler's health check", lambda: get(f"http://{sampler}{health}") is not None)
        for query in (
            f'up{{job="worker", instance="{worker}"}} == 1',
            f'up{{job="sampler", instance="{sampler}"}} == 1',
            'headrace_records_total{model="digits", outcome="learned"} > 0',
            *alerting_metrics(),
        ):
            wait_for(processes, query, partial(answered, prometheus_at, query))


def answered(prometheus: str, query: str) -> bool:
    """Whether Prometheus knows a series that the query selects."""
    body = get(f"http://{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
    return body is not None and json.loads(body)["data"]["result"] != []


def draw_digits(folder: Path) -> None:
    """A few labelled pictures: one folder a label."""
    for digit in range(10):
        image = Image.new("L", (28, 28))
        ImageDraw.Draw(image).text((10, 8), str(digit), fill=255)
        (folder / str(digit)).mkdir(parents=True)
        image.save(folder / str(digit) / "0.png")


def free_ports(count: int) -> list[int]:
    """Ports that were free at the same moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Process:
    """A started program and its log."""

    def __init__(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> None:
        self.name = f"{Path(command[0]).name} {command[1]}"
        self.log = log
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                tied([str(shutil.which(command[0])), *map(str, command[1:])]),
                stdout=out,
                stderr=out,
                env=env,
                cwd=log.parent,
            )


@contextmanager
def process(command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> Iterator[Process]:
    """A program that is running while the context is open, and is asked to end at its end."""
    started = Process(command, log, env)
    try:
        yield started
    finally:
        started.popen.terminate()
        try:
            started.popen.wait(30)
        except subprocess.TimeoutExpired:
            started.popen.kill()
            started.popen.wait()


def wait_for(processes: Sequence[Process], what: str, holds: Callable[[], object], timeout_s: float = 120) -> None:
    """Returns once `holds()` is true; raises CheckError when a process ends before, or time is over."""
    end = time.monotonic() + timeout_s
    while not holds():
        for each in processes:
            if each.popen.poll() is not None:
                raise CheckError(f"{each.name} ended by itself. Its last words:\n{each.log.read_text('utf-8')[-2000:]}")
        if time.monotonic() > end:
            logs = "\n".join(f"{each.name}: {each.log.read_text('utf-8')[-1000:]}" for each in processes)
            raise CheckError(f"not true within {timeout_s:.0f} s: {what}. The logs end with:\n{logs}")
        time.sleep(0.2)


def get(url: str) -> bytes | None:
    """The body, or None where there is no good answer yet."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 (http on loopback)
            body: bytes = response.read()
            return body
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def agree(what: str, found: object, wanted: object) -> None:
    """Raises CheckError unless the two are equal."""
    if found != wanted:
        raise CheckError(f"{what} do not agree: {found} is not {wanted}. Change one of them.")


def run(command: Sequence[str | Path], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a program that succeeded.

    Raises:
        CheckError: it did not: names it and holds all that it said.
    """
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = " ".join(str(part) for part in command)
        raise CheckError(f"`{words}` failed with status {done.returncode}.\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def say(line: str) -> None:
    """One line of progress."""
    print(f"  {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
