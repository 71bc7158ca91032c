"""What the server serves: from a manifest's apiVersion and kind, or from what people call a kind, to the resource."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from capstan.api.base import Struct
from capstan.api.resources import Resource
from capstan.kube import errors
from capstan.kube.client import Client

Unstructured = Resource[dict[str, Any]]


class _ServedResource(Struct):
    name: str = ""
    singular_name: str = ""
    short_names: list[str] = []
    kind: str = ""
    group: str = ""
    version: str = ""
    namespaced: bool = False
    verbs: list[str] = []


class _ServedResources(Struct):
    group_version: str = ""
    resources: list[_ServedResource] = []


class _GroupVersion(Struct):
    group_version: str = ""


class _Group(Struct):
    versions: list[_GroupVersion] = []
    """The preferred one first."""


class _Groups(Struct):
    groups: list[_Group] = []


class Discovery:
    """Remembers what the server said; asks again when a kind is not known."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._served: dict[str, list[_ServedResource]] = {}

    async def resource(self, api_version: str, kind: str) -> Unstructured:
        """The resource of a manifest. Raises UnknownKind."""
        for fresh in (False, True):
            for served in await self._version(api_version, fresh=fresh):
                if served.kind == kind and "/" not in served.name:
                    return _unstructured(api_version, served)
        raise errors.UnknownKind(api_version, kind)

    async def find(self, name: str) -> Unstructured:
        """The resource that people call `name`, as kubectl understands it: plural, singular, kind or short name, in
        any case, optionally with `.group` or `.version.group` after it. Raises UnknownResource.

        Of several with that name the first wins, those of Kubernetes itself before others.
        """
        called, _, where = name.lower().partition(".")
        for api_version, served in await self._everything():
            group, _, version = api_version.rpartition("/")
            if where and where not in (group, f"{version}.{group}"):
                continue
            if called in (served.name, served.singular_name, served.kind.lower(), *served.short_names):
                return _unstructured(api_version, served)
        raise errors.UnknownResource(name)

    async def all(self, *verbs: str) -> list[Unstructured]:
        """Every resource that has all the verbs, in the first of its group's versions that serves it.

        The preferred version of a group need not serve all of its resources: KAI's PodGroups and Queues have different
        versions.
        """
        found: dict[tuple[str, str], Unstructured] = {}
        for api_version, served in await self._everything():
            if set(verbs) <= set(served.verbs):
                found.setdefault((api_version.rpartition("/")[0], served.name), _unstructured(api_version, served))
        return list(found.values())

    async def _everything(self) -> list[tuple[str, _ServedResource]]:
        """(apiVersion, resource) of all that is served, always asked anew: Kubernetes' core first, then the groups as
        the server orders them, of each the preferred version first."""
        answer = await self._client.request("GET", "/apis")
        groups = msgspec.json.decode(answer.body, type=_Groups).groups
        versions = ["v1", *(version.group_version for group in groups for version in group.versions)]
        served = await asyncio.gather(*(self._version(version, fresh=True) for version in versions))
        return [
            (version, resource)
            for version, members in zip(versions, served, strict=True)
            for resource in members
            if "/" not in resource.name
        ]

    async def _version(self, api_version: str, *, fresh: bool) -> list[_ServedResource]:
        if fresh or api_version not in self._served:
            path = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
            try:
                answer = await self._client.request("GET", path)
                found = msgspec.json.decode(answer.body, type=_ServedResources).resources
            except errors.NotFound:
                found = []
            self._served[api_version] = found
        return self._served[api_version]


def _unstructured(api_version: str, served: _ServedResource) -> Unstructured:
    group, _, version = api_version.rpartition("/")
    return Resource(
        group=group, version=version, plural=served.name, kind=served.kind, namespaced=served.namespaced, struct=dict
    )
