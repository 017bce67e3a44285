"""Which blueprint a name stands for. Names of code come from this process's configuration, never from data."""

from __future__ import annotations

from models.acquainted import acquainted
from models.learner import Blueprint
from models.registry import BUILTIN
from pipeline.errors import ConfigError
from pipeline.own_code import own
from pipeline.words import near


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
