"""What a learner starts from: weights in local files, folders of an encoder, versions of other models."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from consumers.bridge import tensors
from consumers.worker.fitting import validated_options
from consumers.worker.fold import Fold, Recipe
from models.learner import Reference, Source
from pipeline.errors import ConfigError, NotFound, NotRepeatable
from pipeline.records import as_input
from pipeline.store import Store

SMALL = {".json", ".txt", ".model"}  # what else than weights is read of a folder,
MAX_SMALL_BYTES = 64 << 20  # and how much of one file


@dataclass(eq=False)
class Sources:
    """Finds what options name."""

    store: Store  # of the model that starts; versions of other models are in the same Redis
    family: Callable[[str], str]  # a model's name → the family that holds its keys

    def fold(
        self, recipe: Recipe, shaped: Mapping[str, Any] | None = None, recorded: Mapping[str, str] | None = None
    ) -> Fold:
        """A fold that has learned nothing, from the sources that its options name.

        Args:
            recorded: the digests that it started from the first time, by name.

        Raises:
            ConfigError: a source is not there, cannot be read, or does not fit.
            NotRepeatable: a source is not what it was.
        """
        name, settings, blueprint, _ = recipe
        references = blueprint.sources(validated_options(name, settings, blueprint, shaped))
        found = self.find(references, f"models.{name}.options", recorded)
        return Fold(*recipe, shaped=shaped, start=found)

    def find(
        self, references: Mapping[str, Reference], where: str, recorded: Mapping[str, str] | None = None
    ) -> dict[str, Source]:
        """What these lead to; errors name them as keys of `where`. Else as `fold`."""
        found = {}
        for name, reference in references.items():
            before = (recorded or {}).get(name)
            try:
                found[name] = self._found(reference, before)
            except (OSError, NotFound, SafetensorError, ValueError) as error:
                raise ConfigError(f"{where}.{name} = {reference.name!r}: {error}") from None
            if before not in (None, found[name].digest):
                raise NotRepeatable(
                    f"{where}.{name} = {reference.name!r} is not what it was when the model started from it "
                    f"(its digest was {before[:12]}, is {found[name].digest[:12]}). Put the old one back."
                )
        return found

    def _found(self, reference: Reference, before: str | None) -> Source:
        if reference.kind == "version":
            return self._version(reference.name, before)
        path = Path(reference.name)
        if reference.kind == "folder":
            return read_folder(path)
        raw = path.read_bytes()
        return Source(hashlib.sha256(raw).hexdigest(), _weights(path, raw))

    def _version(self, name: str, before: str | None) -> Source:
        model, _, version = name.partition("@")
        store = self.store.sibling(self.family(model), model)
        manifest = store.manifest(before or version or "latest")
        training = tensors(store.arrays(manifest, "training")) if manifest.is_keyframe else {}
        return Source(
            manifest.digest,
            tensors(store.arrays(manifest, "serving")),
            training,
            learner=manifest.learner,
            options=manifest.options,
            shape=as_input(manifest.input).shape,
            meta=manifest.meta,
        )


def read_folder(path: Path) -> Source:
    """Its small files by their relative names, and the tensors of its model.safetensors."""
    files = {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.suffix in SMALL and file.is_file() and file.stat().st_size <= MAX_SMALL_BYTES
    }
    weights = path / "model.safetensors"
    raw = weights.read_bytes()
    digest = hashlib.sha256(raw)
    for name, content in files.items():
        digest.update(f"\n{name} {len(content)}\n".encode() + content)
    return Source(digest.hexdigest(), _weights(weights, raw), files=files)


def _weights(path: Path, raw: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict that torch has saved.

    Raises:
        ValueError: it is neither.
        SafetensorError: it is damaged.
    """
    if path.suffix == ".safetensors":
        return load(raw)
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise ValueError("weights are read from .safetensors, .pth, .pt and .bin. Convert them.")
    try:
        # Only tensors and plain containers: what would run code is refused by torch.
        found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises what the unpickler or the zip reader met
        raise ValueError(f"torch cannot read it as weights alone: {str(error).splitlines()[0]}") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError("it holds more than a state dict. Save `model.state_dict()` alone.")
    return found
