"""Code of the user's own: what the configuration names, and nothing else, may come from the folder of a command."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError


def own(key: str, name: str, advice: str) -> Any:
    """Imports "module:attribute" from an installed package or from a file in this folder.

    Only ever call it with a name that the operator wrote: importing runs code.

    Args:
        key: of the configuration, for messages.

    Raises:
        ConfigError: there is no such thing, or its module cannot be imported.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # behind all else, so that a `models/` here shadows nothing
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ConfigError(f'{key} = "{name}" cannot be imported: {type(error).__name__}: {error}. {advice}') from error
