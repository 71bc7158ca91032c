"""Which resources are served now: built-in types for good, those of CustomResourceDefinitions as these come and go."""

from __future__ import annotations

from collections.abc import Iterable

from capstan.local.store import decode, encode
from capstan.local.types import ResourceType


class Served:
    """A resource in one version, and where its objects lie in the store."""

    __slots__ = ("_stored_start", "prefix", "terminating", "type")

    def __init__(self, resource: ResourceType, *, terminating: bool = False) -> None:
        self.type = resource
        self.prefix = f"/{resource.storage}/"
        self.terminating = terminating
        """The definition is being deleted: nothing new is created."""
        self._stored_start = f'{{"apiVersion":"{resource.api_version}",'.encode()

    def key(self, namespace: str, name: str) -> str:
        return f"{self.prefix}{namespace}/{name}"

    def present(self, value: bytes) -> bytes:
        """A stored object in this version. They start with their apiVersion, so most need no decoding."""
        if value.startswith(self._stored_start):
            return value
        return encode(self.type.from_storage(decode(value)))


class Registry:
    def __init__(self, types: Iterable[ResourceType]) -> None:
        self._served = {(each.group, each.version, each.plural): Served(each) for each in types}
        self.generation = 0
        """Counts changes; what is derived from the types is remade when it moved."""

    def find(self, group: str, version: str, plural: str) -> Served | None:
        return self._served.get((group, version, plural))

    def types(self) -> list[ResourceType]:
        return [served.type for served in self._served.values()]

    def replace(self, group: str, plural: str, types: Iterable[ResourceType], *, terminating: bool = False) -> None:
        """Serve exactly these versions of a resource from now on; none: stop serving it."""
        for key in [key for key in self._served if (key[0], key[2]) == (group, plural)]:
            del self._served[key]
        for resource in types:
            self._served[group, resource.version, plural] = Served(resource, terminating=terminating)
        self.generation += 1
