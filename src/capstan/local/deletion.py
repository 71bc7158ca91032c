"""What a delete request does to an object: gone at once, or marked and left to its finalizers or its grace period."""

from __future__ import annotations

import msgspec

from capstan.api import clock
from capstan.api.base import StatusCause
from capstan.local import status
from capstan.local.bodies import DeleteOptions
from capstan.local.status import Json
from capstan.local.types import ResourceType

ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"
DEFAULT_POD_GRACE = 30


class Deletion(msgspec.Struct):
    """`remove`: the object goes now. Otherwise `changed` says whether `object` was marked and must be stored."""

    object: Json
    remove: bool
    changed: bool


def mark(resource: ResourceType, document: Json, options: DeleteOptions, now: float) -> Deletion:
    """Decide a delete; `document` is changed in place. Raises 409 when a precondition fails. `now` in POSIX seconds."""
    metadata = document["metadata"]
    _check_preconditions(resource, metadata, options)
    before = msgspec.json.encode(document)
    if not metadata.get("deletionTimestamp"):
        _set_propagation(metadata, options)
    grace = _grace_seconds(resource, document, options)
    held = bool(metadata.get("finalizers")) or bool(_namespace_finalizers(resource, document))
    if not held and grace == 0:
        return Deletion(document, remove=True, changed=True)
    already = metadata.get("deletionTimestamp")
    if not already and metadata.get("generation"):
        metadata["generation"] += 1
    if not already or grace < metadata.get("deletionGracePeriodSeconds", 0):
        metadata["deletionTimestamp"] = clock.render(now + grace)
        metadata["deletionGracePeriodSeconds"] = grace
    if resource.plural == "namespaces" and not resource.group:
        document.setdefault("status", {})["phase"] = "Terminating"
    return Deletion(document, remove=False, changed=msgspec.json.encode(document) != before)


def finished(resource: ResourceType, document: Json) -> bool:
    """Whether a marked object has nothing left to wait for: an update that leaves it so removes it."""
    metadata = document["metadata"]
    return (
        bool(metadata.get("deletionTimestamp"))
        and not metadata.get("finalizers")
        and not metadata.get("deletionGracePeriodSeconds")
        and not _namespace_finalizers(resource, document)
    )


def _namespace_finalizers(resource: ResourceType, document: Json) -> list[str]:
    if resource.plural != "namespaces" or resource.group:
        return []
    finalizers: list[str] = (document.get("spec") or {}).get("finalizers") or []
    return finalizers


def _check_preconditions(resource: ResourceType, metadata: Json, options: DeleteOptions) -> None:
    wanted = options.preconditions
    if wanted is None:
        return
    for field, asked, found in (
        ("UID", wanted.uid, metadata.get("uid", "")),
        ("ResourceVersion", wanted.resource_version, metadata.get("resourceVersion", "")),
    ):
        if asked is not None and asked != found:
            why = f"Precondition failed: {field} in precondition: {asked}, {field} in object meta: {found}"
            raise status.conflict(resource.plural, resource.group, metadata["name"], why)


def _set_propagation(metadata: Json, options: DeleteOptions) -> None:
    """The garbage collector acts on these finalizers; without them dependents are collected in the background."""
    if options.propagation_policy is None and options.orphan_dependents is None:
        return
    wanted = {"Orphan": ORPHAN, "Foreground": FOREGROUND}.get(options.propagation_policy or "", "")
    if options.orphan_dependents:
        wanted = ORPHAN
    kept = [entry for entry in metadata.get("finalizers") or [] if entry not in (ORPHAN, FOREGROUND)]
    if wanted:
        kept.append(wanted)
    if kept:
        metadata["finalizers"] = kept
    else:
        metadata.pop("finalizers", None)


def _grace_seconds(resource: ResourceType, document: Json, options: DeleteOptions) -> int:
    """Only pods end gracefully, and only those that a node may be running."""
    if resource.plural != "pods" or resource.group:
        return 0
    spec, phase = document.get("spec") or {}, (document.get("status") or {}).get("phase")
    if not spec.get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0
    if options.grace_period_seconds is not None:
        if options.grace_period_seconds < 0:
            # Upstream reads a negative grace period as "as fast as is safe".
            return 1
        return options.grace_period_seconds
    grace = spec.get("terminationGracePeriodSeconds")
    return DEFAULT_POD_GRACE if grace is None else int(grace)


def check_no_new_finalizers(resource: ResourceType, old: Json, new: Json) -> None:
    """Raises 422 when a finalizer is added to an object that is being deleted."""
    metadata = new["metadata"]
    if not old["metadata"].get("deletionTimestamp"):
        return
    added = [name for name in metadata.get("finalizers") or [] if name not in (old["metadata"].get("finalizers") or [])]
    if added:
        message = (
            "Forbidden: no new finalizers can be added if the object is being deleted, "
            f"found new finalizers []string{{{', '.join(chr(34) + name + chr(34) for name in added)}}}"
        )
        cause = StatusCause(reason="FieldValueForbidden", message=message, field="metadata.finalizers")
        raise status.invalid(resource.kind, resource.group, metadata["name"], [cause])
