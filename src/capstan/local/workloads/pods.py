"""Pods as workload controllers see and make them: readiness, availability, creation from templates."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import msgspec

from capstan.api import clock
from capstan.api.base import Object
from capstan.api.core import Pod
from capstan.api.resources import Resource

Template = dict[str, Any]
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""The letters of `rand.SafeEncodeString`: no vowels, so that no words come out."""


def is_active(pod: Pod) -> bool:
    """Counts towards the replicas: neither finished nor being deleted."""
    return not is_finished(pod) and pod.metadata.deletion_timestamp is None


def is_finished(pod: Pod) -> bool:
    return pod.status.phase in ("Succeeded", "Failed")


def pod_owner(pod: Pod) -> str:
    """The uid of the managing owner, empty without one."""
    owner = pod.metadata.controller()
    return owner.uid if owner else ""


def ready_since(pod: Pod) -> float | None:
    """When the pod became Ready (POSIX seconds), None when it is not."""
    for condition in pod.status.conditions:
        if condition.type == "Ready" and condition.status == "True":
            return clock.parse(condition.last_transition_time)
    return None


def is_ready(pod: Pod) -> bool:
    return ready_since(pod) is not None


def available_in(pod: Pod, min_ready_seconds: int, now: float) -> float | None:
    """Seconds until the pod counts as available: 0 when it does, None while it is not ready."""
    since = ready_since(pod)
    if since is None:
        return None
    return max(0.0, since + min_ready_seconds - now) if min_ready_seconds else 0.0


def is_available(pod: Pod, min_ready_seconds: int, now: float) -> bool:
    return available_in(pod, min_ready_seconds, now) == 0.0


def owner_reference(resource: Resource[Any], owner: Object) -> dict[str, Any]:
    """A reference that makes `owner` the managing owner, and lets foreground deletion of it wait for the dependent."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": owner.metadata.name,
        "uid": owner.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def from_template(resource: Resource[Any], owner: Object, template: Template, *, name: str = "") -> dict[str, Any]:
    """A new pod of the owner with the template's labels and annotations; without a name the server completes
    `<owner>-`. The result is a deep copy, free to be changed."""
    metadata = template.get("metadata") or {}
    named = {"name": name} if name else {"generateName": f"{owner.metadata.name}-"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **named,
            "namespace": owner.metadata.namespace,
            "labels": dict(metadata.get("labels") or {}),
            "annotations": dict(metadata.get("annotations") or {}),
            "ownerReferences": [owner_reference(resource, owner)],
        },
        "spec": copy.deepcopy(template.get("spec") or {}),
    }


def template_hash(template: Template) -> str:
    """A short name for the content of a template, the same for equal templates, valid in labels and object names."""
    digest = int.from_bytes(hashlib.sha256(msgspec.json.encode(template, order="sorted")).digest()[:8])
    letters = ""
    for _ in range(10):
        digest, letter = divmod(digest, len(_ALPHABET))
        letters += _ALPHABET[letter]
    return letters


def resolve(value: int | str | None, total: int, *, up: bool) -> int:
    """An absolute number, or a percentage of `total` rounded up or down; the API server validated the form."""
    if value is None:
        return 0
    if isinstance(value, str):
        percent = int(value.removesuffix("%"))
        return -(-total * percent // 100) if up else total * percent // 100
    return value
