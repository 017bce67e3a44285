"""Folders that headrace makes: what is in them is their user's alone."""

from __future__ import annotations

from pathlib import Path


def private(folder: Path) -> None:
    """Makes the folder, and those above it that are missing; nobody but their owner may look into these."""
    if not folder.exists():
        private(folder.parent)
        folder.mkdir(0o700, exist_ok=True)
