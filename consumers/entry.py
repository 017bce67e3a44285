"""Where `headrace` begins. What it imports first is small, so that a signal meets its handler from the start."""

import os
import signal
import sys

#: what is said before the imports, which alone take seconds; results of all but `up` are on standard output
STARTING = {
    "up": (1, "what is not there of Kafka and Redis, the workers and the sampler"),
    "train": (2, "the worker"),
    "serve": (2, "the sampler"),
    "demo": (2, "the demo"),
    "verify": (2, "to learn it again"),
}


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it raises, wherever it meets an import
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from contextlib import suppress

    from consumers.shadows import shadowed

    if problem := shadowed():
        sys.exit(f"headrace: {problem}")
    from consumers.stopping import end_by_signals

    end_by_signals()
    to, what = STARTING.get("".join(sys.argv[1:2]), (0, ""))
    if to and "--help" not in sys.argv:
        with suppress(OSError):  # nobody reads it
            os.write(to, f"headrace: starting {what}.\n".encode())
    from consumers.cli.app import main as command

    command()


if __name__ == "__main__":
    main()
