"""A child process that ends with its parent.

On Linux it gets SIGTERM when the thread that started it is gone, also by SIGKILL; macOS has no means for that, and
there a killed parent leaves it running. Start it from a thread that lives as long as it shall.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# prctl 1 is PR_SET_PDEATHSIG. A program of its own, because running Python between fork and exec is not safe in a
# process with threads; the last check covers a parent that ended before it.
TIED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str]) -> list[str]:
    """The command, whose first item is an absolute path, as a child of this process that ends with it."""
    return [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *command]
