"""What the values of all components have in common."""

from __future__ import annotations

from typing import Any

import msgspec

Manifest = dict[str, Any]


class Values(msgspec.Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """User input: a misspelt value must not be ignored."""


class InvalidValues(Exception):
    """A component cannot use its values; `path` is the place inside of them."""

    def __init__(self, path: str, message: str, hint: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path, self.message, self.hint = path, message, hint


def manifest(api_version: str, kind: str, name: str, **content: Any) -> Manifest:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **content}
