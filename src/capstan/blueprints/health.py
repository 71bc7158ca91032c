"""Whether an applied object does its work yet, by the conventions that controllers report with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def waiting_for(live: Mapping[str, Any]) -> str:
    """What the object still waits for; empty when it is ready. Kinds that report nothing are ready when they exist."""
    metadata, spec, status = live["metadata"], live.get("spec") or {}, live.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "being deleted"
    if status.get("observedGeneration", metadata.get("generation", 0)) < metadata.get("generation", 0):
        return "its controller has not seen the last change"
    match live["kind"]:
        case "Deployment" | "StatefulSet":
            wanted, ready = spec.get("replicas", 1), status.get("readyReplicas", 0)
            return "" if ready >= wanted else f"{ready} of {wanted} replicas are ready"
        case "DaemonSet":
            wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
            return "" if ready >= wanted else f"{ready} of {wanted} pods are ready"
        case "Job":
            return "" if _condition(status, "Complete") == "True" else "not complete"
        case "CustomResourceDefinition":
            return "" if _condition(status, "Established") == "True" else "not established"
    return "" if _condition(status, "Ready") != "False" else "not ready"


def _condition(status: Mapping[str, Any], kind: str) -> str:
    conditions = status.get("conditions")
    if not isinstance(conditions, list):
        return ""
    return next((str(each.get("status")) for each in conditions if each.get("type") == kind), "")
