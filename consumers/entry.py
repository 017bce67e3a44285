"""Where `headrace` begins. What it imports first is small, so that a signal meets its handler from the start."""

from consumers.stopping import end_by_signals


def main() -> None:
    """Runs the command line."""
    end_by_signals()
    from consumers.cli import main as command

    command()


if __name__ == "__main__":
    main()
