"""Sees that `pipeline` and `models` are ours before either is imported: their names are common ones."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.capabilities import Model
    from pipeline.store import Array, Manifest

OURS = Path(__file__).resolve().parent.parent


def shadowed() -> str | None:
    """A sentence about a package of somebody else's that Python finds in place of one of ours."""
    for name in ("pipeline", "models"):
        ours, spec = OURS / name / "__init__.py", find_spec(name)
        found = Path(spec.origin if spec and spec.origin else OURS / name).resolve()
        if found != ours or "headrace" not in ours.read_text("utf-8"):  # a distribution may have written over it
            return (
                f"Python finds a package {name} that is not headrace's: {found}. Ours is {ours}. "
                f"Rename or uninstall the other one, or take its folder out of PYTHONPATH and sys.path; "
                f"if it was written over ours, install headrace again."
            )
    return None


def module(manifest: Manifest, arrays: Mapping[str, Array], learner: str | None) -> Model:
    """`consumers.loading.module`, as `Pulled.module` finds it.

    Raises:
        ImportError: `models` is somebody else's.
    """
    if problem := shadowed():
        raise ImportError(problem)
    from consumers.loading import module as built

    return built(manifest, arrays, learner)
