"""What equal bits depend on beside the configuration and the records: the code, the device, the kernels it takes."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipeline import __version__

LIBRARIES = re.compile(r"Math Kernel Library Version [\d.]+|MKL-DNN v[\d.]+|BLAS_INFO=\w+")
#: what is set to have them take other kernels
CHOSEN = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


def environment(device: torch.device, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """JSON; a manifest holds it, and the lineage what of it has changed."""
    chosen = " ".join(f"{name}={environ[name]}" for name in CHOSEN if name in environ)
    return {
        "headrace": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "libraries": libraries(),
        **({"kernels": chosen} if chosen else {}),
    }


@cache
def libraries() -> str:
    """What multiplies matrices and convolves, with its version."""
    return " ".join(LIBRARIES.findall(torch.__config__.show()))


@cache
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Maker, family and model where the system tells them: libraries cut matrices by the sizes of its caches."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = dict(re.findall(r"^(vendor_id|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    return " ".join([platform.machine(), *found.values()])


def use_deterministic(deterministic: bool) -> None:
    """Has torch take kernels that give the same bits again; on CUDA that costs time."""
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call imports for seconds
        torch.use_deterministic_algorithms(deterministic)
