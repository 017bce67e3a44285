"""From a version to a model: which blueprint made it, and its weights.

Names of code come from this process's configuration, never from data. Options come with a version, and a width of a
billion is a few bytes. A model is built from them before its weights are compared with theirs, so what it makes on the
way is counted, and refused before it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from consumers.bridge import tensors
from models.acquainted import acquainted
from models.capabilities import Model
from models.learner import Blueprint
from models.registry import BUILTIN
from pipeline.errors import ConfigError, Corrupt
from pipeline.own_code import own
from pipeline.records import as_input
from pipeline.store import Array, Manifest
from pipeline.words import near

TIMES = 4  # the bytes that are stored: a model may make some of its tensors twice
SPARE_BYTES = 64 << 20  # and what belongs to no weight
ITEM_BYTES = 4  # of an element, as most are


def resolve_blueprint(name: str) -> Blueprint:
    """The built-in learner of that name, or the `Blueprint` at "module:attribute".

    Only ever call it with a name that the operator wrote: importing runs code.

    Raises:
        ConfigError: there is no such learner.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    advice = f'Use one of {", ".join(sorted(BUILTIN))}, or "module:attribute" of a Blueprint of your own.'
    if not name.partition(":")[2]:
        raise ConfigError(f'learner = "{name}" is not built in.{near(name, BUILTIN)} {advice}')
    blueprint = own("learner", name, advice)
    if not isinstance(blueprint, Blueprint):
        raise ConfigError(f'learner = "{name}" is a {type(blueprint).__name__}, not a Blueprint. {advice}')
    return acquainted(blueprint)


def blueprint_of(manifest: Manifest, learner: str | None) -> Blueprint:
    """The blueprint that made a version: a built-in one, or the one that the configuration names for this model.

    Args:
        learner: of the model's table in the configuration, if it has one.

    Raises:
        ConfigError: the manifest names other code. It is not imported.
    """
    if manifest.learner in BUILTIN:
        return BUILTIN[manifest.learner]
    if manifest.learner != learner:
        raise ConfigError(
            f"it was learned by {manifest.learner}, which is not built in. "
            f"If you trust it, set models.{manifest.model}.learner to it in the configuration here."
        )
    return resolve_blueprint(manifest.learner)


def module(manifest: Manifest, arrays: Mapping[str, Array], learner: str | None) -> Model:
    """What `Pulled.module` gives: a pulled version as a model on the CPU.

    Raises:
        ConfigError: it was learned by code that the configuration does not name.
        Corrupt: its weights do not fit the model that its manifest describes.
    """
    try:
        return build(manifest, arrays, blueprint_of(manifest, learner))
    except (ValueError, KeyError, RuntimeError) as error:
        raise Corrupt(
            f"Version {manifest.version} of {manifest.model} gives no model: {type(error).__name__}: {error}. "
            f"Pull another version."
        ) from error


def build(manifest: Manifest, arrays: Mapping[str, Array], blueprint: Blueprint) -> Model:
    """Builds a model on the CPU from a version's serving tensors.

    Raises:
        ValueError, KeyError, RuntimeError: the weights do not fit the model that the manifest describes.
    """
    options = blueprint.options.of_version(manifest.options)
    shape = as_input(manifest.input).shape
    weights, stored = tensors(arrays), sum(array.data.nbytes for array in arrays.values())
    # A user's own model may make what it likes.
    with Metered(stored) if blueprint in BUILTIN.values() else nullcontext():
        model: Model = blueprint.model(options, shape, manifest.meta)
        model.load_state_dict(weights)
    return model


class Metered(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which this thread can make new tensors of bounded size: a few times the stored bytes.

    Raises:
        ValueError: a tensor would be more; it is not made.
    """

    def __init__(self, stored_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stored = stored_bytes
        self._left = TIMES * stored_bytes + SPARE_BYTES

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        size = args[0] if args else ()
        if isinstance(size, list | tuple) and all(isinstance(side, int) for side in size):
            self._take(math.prod(size))
        elif isinstance(size, int):
            self._take(size)
        return func(*args, **(kwargs or {}))

    def _take(self, elements: int) -> None:
        self._left -= elements * ITEM_BYTES
        if self._left < 0:
            raise ValueError(f"its options describe a model of more than the {self._stored} bytes that are stored")
