"""What every Kubernetes object has: type, metadata, owner references, conditions.

The structs of this room hold only the fields the platform reads; unknown fields are ignored on decode, so they must
never be written back whole. Writes are patches or applies of plain dicts (`capstan.kube`).
"""

from __future__ import annotations

from typing import Any

import msgspec


class Struct(msgspec.Struct, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    """Base of all API structs: camelCase on the wire, defaults left out, not tracked by the cyclic collector."""


class OwnerReference(Struct):
    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    """RFC 3339, seconds precision; `capstan.api.clock.parse` turns it into POSIX seconds."""
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[OwnerReference] = []
    finalizers: list[str] = []

    def controller(self) -> OwnerReference | None:
        """The owner that manages this object, if any (at most one owner has `controller: true`)."""
        for owner in self.owner_references:
            if owner.controller:
                return owner
        return None


class Object(Struct):
    """An object with metadata. `api_version` and `kind` may be empty on items of a decoded list."""

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name); the namespace of a cluster-scoped object is empty."""
        return (self.metadata.namespace, self.metadata.name)


class Condition(Struct):
    type: str = ""
    status: str = "Unknown"
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None
    last_update_time: str | None = None
    observed_generation: int = 0


class LocalObjectReference(Struct):
    name: str = ""


class ObjectReference(Struct):
    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class StatusCause(Struct):
    reason: str = ""
    message: str = ""
    field: str = ""


class StatusDetails(Struct):
    name: str = ""
    group: str = ""
    kind: str = ""
    uid: str = ""
    causes: list[StatusCause] = []
    retry_after_seconds: int = 0


class Status(Struct):
    """The `v1 Status` object that every failed API call answers with."""

    api_version: str = "v1"
    kind: str = "Status"
    metadata: dict[str, Any] = {}
    status: str = "Failure"
    message: str = ""
    reason: str = ""
    details: StatusDetails | None = None
    code: int = 0
