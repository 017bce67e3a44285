"""Chooses torch's kernels by environment variables. They are read once, so they are set before torch is imported.

Kernels differ in the order in which they add, and so in their last bits. torch, oneDNN and MKL choose among theirs by
the processor's vector units, and MKL by its maker, too.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError

#: MKL's other modes give other bits on processors of other makers: https://www.intel.com/content/www/us/en/docs/onemkl/developer-guide-linux/2024-2/reproducibility-conditions.html
PINS = {"avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}}
CPUINFO = Path("/proc/cpuinfo")


def choose(name: str, settings: ModelConfig, environ: MutableMapping[str, str]) -> None:
    """Sets what the model's `cpu_isa` and `deterministic` ask for.

    Raises:
        ConfigError: this processor has no such vector units.
    """
    if settings.deterministic:
        environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if settings.cpu_isa is None:
        return
    flags = CPUINFO.read_text() if CPUINFO.exists() else ""
    if settings.cpu_isa not in flags.split():
        raise ConfigError(
            f'models.{name}.cpu_isa = "{settings.cpu_isa}": this processor has no such vector units, or the system '
            f"does not tell them in {CPUINFO}. Remove the key; bits are then those of this kind of processor."
        )
    environ.update(PINS[settings.cpu_isa])
