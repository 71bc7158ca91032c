"""From an object down to what it owns, through owner references and whatever kinds lie between."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from capstan.api.base import Object, OwnerReference
from capstan.kube import errors
from capstan.kube.client import Client
from capstan.kube.discovery import Discovery

_DEEPEST = 8
"""Owners above an object; a longer chain is a loop."""


async def owned(client: Client, discovery: Discovery, uid: str, objects: Iterable[Object]) -> set[str]:
    """The UIDs of those `objects` of one namespace that the object `uid` owns, directly or through others.

    Owners between are listed by kind, once each, so that a thousand pods of a hundred Jobs cost one request. Kinds that
    the server no longer serves, or does not let the caller list, end the chain.
    """
    objects = list(objects)
    owners = {obj.metadata.uid: obj.metadata.owner_references for obj in objects}
    namespace = next((obj.metadata.namespace for obj in objects), "")
    asked: set[tuple[str, str]] = set()
    for _ in range(_DEEPEST):
        above = {ref.uid: ref for refs in owners.values() for ref in refs if ref.uid not in owners and ref.uid != uid}
        kinds = {(ref.api_version, ref.kind) for ref in above.values()} - asked
        if not kinds:
            break
        for api_version, kind in sorted(kinds):
            asked.add((api_version, kind))
            owners |= await _owners(client, discovery, api_version, kind, namespace)
    below = {uid}
    for _ in range(_DEEPEST + 1):
        more = {each for each, refs in owners.items() if each not in below and any(ref.uid in below for ref in refs)}
        if not more:
            break
        below |= more
    return {obj.metadata.uid for obj in objects if obj.metadata.uid in below}


async def _owners(
    client: Client, discovery: Discovery, api_version: str, kind: str, namespace: str
) -> dict[str, list[OwnerReference]]:
    try:
        resource = await discovery.resource(api_version, kind)
        found = (await client.list(resource, namespace)).items if resource.namespaced else []
    except (errors.UnknownKind, errors.NotFound, errors.Forbidden):
        return {}
    return {
        item["metadata"]["uid"]: msgspec.convert(item["metadata"].get("ownerReferences", []), list[OwnerReference])
        for item in found
    }
