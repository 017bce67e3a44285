"""Where `headrace` starts: before it imports `pipeline`, `models` or `consumers`, it sees that they are ours."""

import sys
from importlib.util import find_spec
from pathlib import Path

OURS = Path(__file__).resolve().parent
PACKAGES = ("pipeline", "models", "consumers")


def shadowed() -> str | None:
    """A sentence about a package of somebody else's that Python finds in place of one of ours."""
    for name in PACKAGES:
        ours, spec = OURS / name / "__init__.py", find_spec(name)
        found = Path(spec.origin if spec and spec.origin else OURS / name).resolve()
        if found != ours or "headrace" not in ours.read_text("utf-8"):  # a distribution may have written over it
            return (
                f"Python finds a package {name} that is not headrace's: {found}. Ours is {ours}. "
                f"Rename or uninstall the other one, or take its folder out of PYTHONPATH and sys.path; "
                f"if it was written over ours, install headrace again."
            )
    return None


def main() -> None:
    """Runs the command line."""
    if problem := shadowed():
        sys.exit(f"headrace: {problem}")
    from consumers.entry import main as command

    command()


if __name__ == "__main__":
    main()
