"""The vocabulary of grouping: the workload that is looked at, and the gang that a family makes of it.

A family is a function `(Workload) -> Gang`, one module per family of kinds. What all families share (name, queue,
priority, preemptibility, topology) is added by `capstan.grouping.podgroup`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from capstan.api.scheduling import NODE_POOL_LABEL, QUEUE_LABEL, SCHEDULER_NAME
from capstan.grouping.reading import Field, InvalidWorkload, Manifest

MIN_MEMBER_ANNOTATION = "kai.scheduler/batch-min-member"
TOPOLOGY_ANNOTATION = "kai.scheduler/topology"
MOST_SUB_GROUPS = 4096
"""More parts than this are refused: a PodGroup has to stay small enough for the API server."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an administrator may choose. `priority_classes` replaces defaults, by `Kind.group` or `Kind`."""

    scheduler_name: str = SCHEDULER_NAME
    """Pods of this scheduler are grouped."""
    queue_label: str = QUEUE_LABEL
    node_pool_label: str = NODE_POOL_LABEL
    gang_knative: bool = True
    priority_classes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Related:
    """An object besides the owners that says how a pod is grouped, in the namespace of the pod.

    `api_versions` are tried in this order; servers of different age know different ones.
    """

    api_versions: tuple[str, ...]
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod with its chain of controlling owners, nearest first; unstructured, as read from the cluster."""

    pod: Manifest
    owners: tuple[Manifest, ...] = ()
    related: Manifest | None = None
    settings: Settings = Settings()

    @property
    def top(self) -> Manifest:
        """The object the user made: the last owner, or the pod itself."""
        return self.owners[-1] if self.owners else self.pod

    @property
    def spec(self) -> Field:
        """The spec of the top owner."""
        return Field.of(self.top)["spec"]

    def owner(self, group: str, kind: str) -> Manifest | None:
        """The nearest owner of a kind."""
        return next((owner for owner in self.owners if group_kind(owner) == (group, kind)), None)

    def label(self, key: str) -> str | None:
        """A label of the top owner, else of the pod."""
        return labels_of(self.top).get(key) or labels_of(self.pod).get(key)

    def annotation(self, key: str) -> str | None:
        return annotations_of(self.top).get(key) or annotations_of(self.pod).get(key)

    def pod_label(self, *keys: str) -> str:
        """The first of the labels that the pod has. Raises InvalidWorkload: its controller sets one of them."""
        for key in keys:
            if value := labels_of(self.pod).get(key):
                return value
        raise InvalidWorkload(
            self.pod, f"metadata.labels[{keys[0]}]", f"missing; the controller of {self.top.get('kind')} sets it"
        )

    def pod_index(self, *keys: str) -> int:
        """The same for a label that counts from 0."""
        text = self.pod_label(*keys)
        if not _is_number(text):
            raise InvalidWorkload(self.pod, f"metadata.labels[{keys[0]}]", f"{text!r} is no index; 0 is the first")
        return int(text)


@dataclass(frozen=True, slots=True)
class SubGroup:
    """A node of the tree of a gang: a leaf counts pods, an inner node subgroups. Names are DNS labels."""

    name: str
    min_member: int | None = None
    min_sub_group: int | None = None
    parent: str = ""
    topology: Mapping[str, str] = field(default_factory=dict)

    def manifest(self) -> dict[str, Any]:
        entries = {
            "name": self.name,
            "parent": self.parent or None,
            "minMember": self.min_member,
            "minSubGroup": self.min_sub_group,
            "topologyConstraint": dict(self.topology) or None,
        }
        return {key: value for key, value in entries.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Gang:
    """What starts together. `owner` keeps and names the PodGroup; `subgroup` is the leaf of the looked-at pod.

    With subgroups `min_sub_group` counts (None: all of the first level), else `min_member`.
    """

    owner: Manifest
    default_priority_class: str
    min_member: int = 1
    min_sub_group: int | None = None
    sub_groups: Sequence[SubGroup] = ()
    subgroup: str = ""
    name: str = ""
    """Replaces name and uid of the owner in the name of the PodGroup."""
    name_suffix: str = ""
    priority_class: str = ""
    """What the kind itself says about priority."""
    topology: Mapping[str, str] | None = None
    """What the kind itself says about topology; None leaves it to the annotations."""


def labels_of(manifest: Manifest) -> Mapping[str, str]:
    return manifest.get("metadata", {}).get("labels") or {}


def annotations_of(manifest: Manifest) -> Mapping[str, str]:
    return manifest.get("metadata", {}).get("annotations") or {}


def group_kind(manifest: Manifest) -> tuple[str, str]:
    """(API group, kind); the group is empty for the core group."""
    return (manifest.get("apiVersion", "v1").rpartition("/")[0], manifest.get("kind", ""))


def min_member(workload: Workload, default: int) -> int:
    """The minimum the user set by `kai.scheduler/batch-min-member`, else the family's. Raises InvalidWorkload."""
    return annotated_count(workload, MIN_MEMBER_ANNOTATION) or default


def annotated_count(workload: Workload, key: str) -> int | None:
    """A number of pods in an annotation of the top owner or the pod. Raises InvalidWorkload."""
    holder = workload.top if key in annotations_of(workload.top) else workload.pod
    return counted(holder, "metadata.annotations", key, workload.annotation(key))


def counted(manifest: Manifest, path: str, key: str, text: object) -> int | None:
    """A number of pods from the text of an annotation. Raises InvalidWorkload."""
    if text is None:
        return None
    if not (isinstance(text, str) and _is_number(text) and int(text)):
        raise InvalidWorkload(manifest, f"{path}[{key}]", f'{text!r} is no positive number of pods; write e.g. "2"')
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**31


def topology_of(
    manifest: Manifest,
    marks: Mapping[str, object],
    *,
    path: str = "metadata.annotations",
    prefix: str = "kai.scheduler/topology",
    default: str | None = None,
) -> dict[str, str]:
    """The constraint in annotations; `default` is the topology if they do not name one. Raises InvalidWorkload.

    A level without a topology would silently constrain nothing, so it is refused.
    """
    named = {
        "topology": marks.get(TOPOLOGY_ANNOTATION) or default,
        "requiredTopologyLevel": marks.get(f"{prefix}-required-placement"),
        "preferredTopologyLevel": marks.get(f"{prefix}-preferred-placement"),
    }
    found = {name: value for name, value in named.items() if value}
    for name, value in found.items():
        if not isinstance(value, str):
            raise InvalidWorkload(manifest, path, f"{name} is {value!r}; write a name")
    if found and "topology" not in found:
        raise InvalidWorkload(
            manifest,
            f"{path}[{TOPOLOGY_ANNOTATION}]",
            f"missing; a level ({', '.join(map(str, found.values()))}) needs the Topology it belongs to",
        )
    return {name: str(value) for name, value in found.items()} if len(found) > 1 else {}


def template_topology(workload: Workload, template: Field) -> dict[str, str]:
    """The constraint of one part of a gang: annotations of its pod template, in the topology of the workload."""
    marks = template["metadata"]["annotations"]
    return topology_of(
        template.root,
        marks.mapping(),
        path=marks.path,
        default=annotations_of(workload.top).get(TOPOLOGY_ANNOTATION),
    )


def dns_label(text: str) -> str:
    """A name for a subgroup: the text itself where it is a DNS label, else something like it with a hash."""
    return text if _LABEL.fullmatch(text) else _hashed(text, 63)


def dns_subdomain(text: str) -> str:
    """A name for an object: the text itself where it is one of up to 253 characters, else shortened with a hash."""
    return text if len(text) <= 253 and _SUBDOMAIN.fullmatch(text) else _hashed(text, 253)


def _hashed(text: str, limit: int) -> str:
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:10]
    readable = re.sub(r"[^a-z0-9]+", "-", text.lower())[: limit - 11].strip("-")
    return f"{readable}-{digest}" if readable else digest
