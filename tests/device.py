"""Where tests learn: on the CPU, or where `HEADRACE_TEST_DEVICE` says; with a GPU, `HEADRACE_TEST_DEVICE=cuda`.

`elsewhere` is `tests.elsewhere`, which shows here that the suites themselves can be moved. On CUDA all of it is in the
deterministic mode: bits are compared.
"""

from __future__ import annotations

import os

import torch

from tests.elsewhere import ELSEWHERE

CPU = torch.device("cpu")
DEVICE = CPU
if (name := os.environ.get("HEADRACE_TEST_DEVICE", "cpu")) != "cpu":
    DEVICE = torch.device(name, 0)
if DETERMINISTIC := DEVICE.type == "cuda":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts
    torch.use_deterministic_algorithms(True)
#: a device that is not the CPU
OTHER = ELSEWHERE if DEVICE == CPU else DEVICE
