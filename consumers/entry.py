"""Where `headrace` begins. What it imports first is small, so that a signal meets its handler from the start."""

import os
import sys
from contextlib import suppress

from consumers.stopping import end_by_signals

STARTING = b"headrace: starting what is not there of Kafka and Redis, the workers and the sampler.\n"


def main() -> None:
    """Runs the command line."""
    end_by_signals()
    if sys.argv[1:2] == ["up"] and "--help" not in sys.argv:  # its imports alone may take seconds
        with suppress(OSError):  # nobody reads it
            os.write(1, STARTING)
    from consumers.cli import main as command

    command()


if __name__ == "__main__":
    main()
