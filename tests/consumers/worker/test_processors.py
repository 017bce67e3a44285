"""Another processor: a worker goes on there and says what has changed; pinned kernels give the same bits on both.

What a processor with other vector units takes is had on this one by what torch and oneDNN read when they start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from consumers.worker.environment import environment, processor
from consumers.worker.kernels import CPUINFO, PINS, choose
from pipeline.errors import ConfigError
from pipeline.process import tied
from pipeline.store.redis import connect
from pipeline.store.store import Store
from tests.consumers.families import FAMILIES, records
from tests.consumers.working import PATIENCE_S, configuration, publish, verified, working
from tests.device import CPU

ROOT = Path(__file__).parents[3]
HEADRACE = Path(sys.executable).with_name("headrace")
#: the least that there is: no processor has these by itself
OLD = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
BITS = """
import hashlib, os, sys
from consumers.worker.kernels import choose
from pipeline.config import ModelConfig

if sys.argv[1:]:
    table = {"topics": ["t"], "learner": "l", "input": {"kind": "image", "size": 8}, "cpu_isa": sys.argv[1]}
    choose("m", ModelConfig.model_validate(table), os.environ)

import torch
from consumers.worker.environment import environment
from models.registry import BUILTIN
from tests.models.contract import Case, digits, tensors, texts

torch.set_num_threads(1)
print(environment(torch.device("cpu"))["vector_units"])
for name in ("image-classifier", "image-vae", "image-gan", "image-analytic", "text-classifier", "text-gru"):
    blueprint = BUILTIN[name]
    options = {"width": 64} if name == "image-analytic" else {}
    case = Case(blueprint, blueprint.options(**options), *(digits() if blueprint.input == "image" else texts()))
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors(case.learned(6).capture()).items()):
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    print(name, digest.hexdigest())
"""


has_avx2 = pytest.mark.skipif(
    "avx2" not in (CPUINFO.read_text() if CPUINFO.exists() else ""), reason="it has no other vector units"
)


def elsewhere() -> dict[str, str]:
    """The environment of a process that takes other kernels than this one, which may take the least there are."""
    ours = {name: value for name, value in os.environ.items() if name not in PINS["avx2"]}
    return ours if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else {**ours, **OLD}


def bits(*arguments: str, **environ: str) -> list[str]:
    """The vector units in use, and digests of what some learners have become."""
    ours = {name: value for name, value in os.environ.items() if name not in PINS["avx2"]}
    done = subprocess.run(
        [sys.executable, "-c", BITS, *arguments],
        cwd=ROOT,
        env={**ours, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@has_avx2
def test_pinned_kernels_give_the_same_bits_where_vector_units_differ() -> None:
    pinned = bits("avx2")
    assert pinned[0] == "AVX2"
    assert bits("avx2", **OLD) == pinned
    assert bits(**OLD)[0] == "DEFAULT"


def test_what_the_processor_has_not_cannot_be_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = configuration("k:1", "redis://r", "t", cpu_isa="avx2").model("t")
    monkeypatch.setattr("consumers.worker.kernels.CPUINFO", tmp_path / "cpuinfo")
    environ: dict[str, str] = {}
    for text in (None, "flags : sse4_1 avx512"):
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
        with pytest.raises(ConfigError, match=r'models\.t\.cpu_isa = "avx2": this processor has no such vector units'):
            choose("t", settings, environ)
    assert environ == {}
    (tmp_path / "cpuinfo").write_text("flags : sse4_1 avx avx2")
    choose("t", settings, environ)
    assert environ == PINS["avx2"]
    assert environ["MKL_CBWR"] == "COMPATIBLE"  # which matters on processors of other makers alone


def test_a_worker_that_could_not_be_pinned_does_not_start(kafka: str, redis_url: str, topic: str) -> None:
    config = configuration(kafka, redis_url, topic, cpu_isa="avx2")
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return  # as pinned
    with pytest.raises(ConfigError, match=r"headrace train"), working(config):
        pass


def test_the_environment_names_what_bits_depend_on(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: X\n")
    assert processor(cpuinfo).endswith(" GenuineIntel 6 143")
    assert processor(tmp_path / "none")
    found = environment(CPU, {"MKL_CBWR": "AVX2", "HOME": "/"})
    assert found["kernels"] == "MKL_CBWR=AVX2"
    assert found["vector_units"] == torch.backends.cpu.get_cpu_capability()
    assert "MKL-DNN" in found["libraries"]
    assert json.loads(json.dumps(found)) == found


@has_avx2
def test_a_worker_goes_on_on_another_processor(kafka: str, redis_url: str, topic: str, tmp_path: Path) -> None:
    """From a version that is no keyframe, learned with other kernels: what it makes of that differs, and it says so."""
    table = {**FAMILIES["picture"], "keyframe_every": 100, "snapshot_every_updates": 1, "device": "cpu"}
    config = configuration(kafka, redis_url, topic, **table)
    store, values = Store(connect(redis_url), topic, topic), records("picture")
    (tmp_path / "headrace.toml").write_text(toml(config.model_dump(mode="json", exclude_none=True)))
    publish(config, topic, *[next(values) for _ in range(40)])
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            tied([str(HEADRACE), "train", topic]),
            cwd=tmp_path,
            env=elsewhere(),
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        last = "0"
        while (head := store.head()) is None or store.manifest(head).counts.get("learned", 0) < 40:
            events = store.events(last, int(1000 * PATIENCE_S))
            assert events, (tmp_path / "log").read_text()
            last = events[-1].id
    finally:
        process.kill()
        process.wait()
    before = store.manifest(head)
    assert not before.is_keyframe
    with working(config) as run:
        publish(config, topic, *[next(values) for _ in range(8)])
        run.read(48)
        run.finish()
    [changed] = run.changes("environment")
    assert sum("ONEDNN_MAX_CPU_ISA=SSE41" in str(told) for told in changed["kernels"]) == 1
    assert before.environment["vector_units"] != torch.backends.cpu.get_cpu_capability()
    found = verified(run, config)
    assert found.environment["kernels"] == changed["kernels"]  # wherever it differs, nobody need look for other code
    for replayed in run.changes("replayed"):  # it may have come out the same
        assert replayed["environment"]["kernels"] == changed["kernels"]
    assert all(outcomes == ["learned"] for outcomes in run.outcomes().values())


def toml(tree: Mapping[str, object]) -> str:
    """As a configuration file: JSON's values are TOML's, written as dotted keys."""

    def lines(prefix: str, values: Mapping[str, object]) -> list[str]:
        found = []
        for key, value in values.items():
            name = f"{prefix}.{json.dumps(key)}" if prefix else json.dumps(key)
            found += lines(name, value) if isinstance(value, dict) and value else [f"{name} = {json.dumps(value)}"]
        return found

    return "\n".join(line for line in lines("", tree) if not line.endswith("= {}"))
