"""Where tests learn: on the CPU, or where `HEADRACE_TEST_DEVICE` says; with a GPU, `HEADRACE_TEST_DEVICE=cuda`.

`elsewhere` is `tests.elsewhere`, which shows without a GPU that the suites themselves can be moved. On CUDA all of it
is in the deterministic mode: bits are compared.
"""

from __future__ import annotations

import os

import torch

CPU = torch.device("cpu")
NAME = os.environ.get("HEADRACE_TEST_DEVICE", "cpu")
if NAME in ("cpu", "elsewhere"):  # not beside a GPU: torch takes it for the accelerator
    from tests.elsewhere import ELSEWHERE

    DEVICE, OTHER = (CPU if NAME == "cpu" else ELSEWHERE), ELSEWHERE
else:
    DEVICE = OTHER = torch.device(NAME, 0)
#: `OTHER` is a device that is not the CPU
if DETERMINISTIC := DEVICE.type == "cuda":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts
    torch.use_deterministic_algorithms(True)
