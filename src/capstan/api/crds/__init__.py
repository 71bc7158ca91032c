"""The CustomResourceDefinitions that the platform installs: KAI Scheduler's kinds and its own."""

from __future__ import annotations

from importlib import resources
from typing import Any

from capstan.api import manifests


def load() -> list[dict[str, Any]]:
    """Every definition as a plain object, in order of file name; the caller may change them."""
    found: list[dict[str, Any]] = []
    for entry in sorted(resources.files(__name__).iterdir(), key=lambda path: path.name):
        if entry.name.endswith(".yaml"):
            found += manifests.load_all(entry.read_text("utf-8"), entry.name)
    return found
