"""`coordination.k8s.io/v1`: leases, for leader election and node heartbeats."""

from __future__ import annotations

import msgspec

from capstan.api.base import Object, Struct


class LeaseSpec(Struct):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(Object):
    spec: LeaseSpec = msgspec.field(default_factory=LeaseSpec)
