"""ApplySet membership (KEP-3659): which objects in a cluster belong to which blueprint.

Members carry a label with the set's id; the parent object carries the id and the kinds that members have, so that
pruning looks only where members can be and `kubectl apply --prune --applyset` can take over.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capstan.api.platform import GROUP, PRUNE_ANNOTATION

Manifest = dict[str, Any]

PART_OF = "applyset.kubernetes.io/part-of"
ID = "applyset.kubernetes.io/id"
TOOLING = "applyset.kubernetes.io/tooling"
GROUP_KINDS = "applyset.kubernetes.io/contains-group-kinds"
NAMESPACES = "applyset.kubernetes.io/additional-namespaces"


def identifier(name: str, namespace: str, kind: str, group: str) -> str:
    """The id of the set whose parent is this object."""
    digest = hashlib.sha256(f"{name}.{namespace}.{kind}.{group}".encode()).digest()
    return f"applyset-{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}-v1"


def cluster_set(cluster: str) -> str:
    """The id of the set of a Cluster object."""
    return identifier(cluster, "", "Cluster", GROUP)


def stamped(manifest: Manifest, set_id: str) -> Manifest:
    """The manifest as a member of the set."""
    metadata = manifest["metadata"]
    return {**manifest, "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), PART_OF: set_id}}}


def parent_metadata(set_id: str, members: Iterable[Manifest], tooling: str) -> dict[str, Any]:
    """Labels and annotations that the parent must carry."""
    kinds, namespaces = set(), set()
    for member in members:
        group = member["apiVersion"].rpartition("/")[0]
        kinds.add(f"{member['kind']}.{group}" if group else member["kind"])
        namespaces.add(member["metadata"].get("namespace", ""))
    return {
        "labels": {ID: set_id},
        "annotations": {
            TOOLING: tooling,
            GROUP_KINDS: ",".join(sorted(kinds)),
            NAMESPACES: ",".join(sorted(namespaces - {""})),
        },
    }


def group_kinds(parent: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """(group, kind) of all members, from the annotations of the parent."""
    text = (parent.get("annotations") or {}).get(GROUP_KINDS, "")
    return [(entry.partition(".")[2], entry.partition(".")[0]) for entry in text.split(",") if entry]


def is_protected(live: Mapping[str, Any]) -> bool:
    return str((live["metadata"].get("annotations") or {}).get(PRUNE_ANNOTATION, "")).lower() == "false"
