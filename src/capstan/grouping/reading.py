"""Reading specs that others define: every access says where it is, so that a wrong value is named and never crashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Manifest = Mapping[str, Any]


class InvalidWorkload(ValueError):
    """A workload whose grouping fields cannot be understood; the message names the object, the field and what to do."""

    def __init__(self, manifest: Manifest, path: str, problem: str) -> None:
        metadata = manifest.get("metadata", {})
        super().__init__(
            f"{manifest.get('kind')} {metadata.get('namespace', '')}/{metadata.get('name', '')}: {path}: {problem}"
        )


@dataclass(frozen=True, slots=True)
class Field:
    """A place in a manifest. Null and missing are the same, and read as the default of the type."""

    root: Manifest
    path: str
    value: object

    @classmethod
    def of(cls, manifest: Manifest) -> Field:
        return cls(manifest, "", manifest)

    def __getitem__(self, key: str) -> Field:
        """Raises InvalidWorkload where this is no mapping."""
        return Field(self.root, f"{self.path}.{key}" if self.path else key, self.mapping().get(key))

    @property
    def exists(self) -> bool:
        return self.value is not None

    def mapping(self) -> Mapping[str, object]:
        if self.value is None:
            return {}
        if not isinstance(self.value, Mapping):
            raise self.wrong("a mapping belongs here")
        return self.value

    def entries(self) -> list[tuple[str, Field]]:
        """The members of a mapping, by name."""
        return [(str(key), self[key]) for key in sorted(self.mapping(), key=str)]

    def items(self) -> list[Field]:
        """The members of a list."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self.wrong("a list belongs here")
        return [Field(self.root, f"{self.path}[{i}]", value) for i, value in enumerate(self.value)]

    def text(self) -> str:
        if self.value is None:
            return ""
        if not isinstance(self.value, str):
            raise self.wrong(f"{self.value!r:.60} is no text")
        return self.value

    def name(self) -> str:
        """Text that must be there."""
        text = self.text()
        if not text:
            raise self.wrong("missing; give it a name")
        return text

    def flag(self) -> bool:
        if self.value is None:
            return False
        if not isinstance(self.value, bool):
            raise self.wrong(f"{self.value!r:.60} is neither true nor false")
        return self.value

    def count(self, default: int = 0) -> int:
        """A number from 0 to 2^31-1."""
        if self.value is None:
            return default
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not 0 <= self.value < 2**31:
            raise self.wrong(f"{self.value!r:.60} is no number of pods; write a whole number from 0")
        return self.value

    def wrong(self, problem: str) -> InvalidWorkload:
        return InvalidWorkload(self.root, self.path, problem)
