"""The vocabulary of grouping: the workload that is looked at, and the gang that a family makes of it.

A family is a function `(Workload) -> Gang`, one module per family of kinds. What all families share (name, queue,
priority, preemptibility, topology) is added by `capstan.grouping.podgroup`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Manifest = Mapping[str, Any]

MIN_MEMBER_ANNOTATION = "kai.scheduler/batch-min-member"


class InvalidWorkload(ValueError):
    """A workload whose grouping fields cannot be understood; the message names the object, the field and what to do."""

    def __init__(self, manifest: Manifest, path: str, problem: str) -> None:
        metadata = manifest.get("metadata", {})
        super().__init__(
            f"{manifest.get('kind')} {metadata.get('namespace', '')}/{metadata.get('name', '')}: {path}: {problem}"
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod with its chain of controlling owners, nearest first; unstructured, as read from the cluster."""

    pod: Manifest
    owners: tuple[Manifest, ...] = ()

    @property
    def top(self) -> Manifest:
        """The object the user made: the last owner, or the pod itself."""
        return self.owners[-1] if self.owners else self.pod

    def label(self, key: str) -> str | None:
        """A label of the top owner, else of the pod."""
        return labels_of(self.top).get(key) or labels_of(self.pod).get(key)

    def annotation(self, key: str) -> str | None:
        return annotations_of(self.top).get(key) or annotations_of(self.pod).get(key)


@dataclass(frozen=True, slots=True)
class Gang:
    """What starts together. `owner` names the PodGroup; `subgroup` is the leaf that the looked-at pod belongs to."""

    owner: Manifest
    default_priority_class: str
    min_member: int | None = 1
    min_sub_group: int | None = None
    sub_groups: tuple[Mapping[str, Any], ...] = ()
    subgroup: str = ""
    name_suffix: str = ""
    extra_labels: Mapping[str, str] = field(default_factory=dict)


def labels_of(manifest: Manifest) -> Mapping[str, str]:
    return manifest.get("metadata", {}).get("labels") or {}


def annotations_of(manifest: Manifest) -> Mapping[str, str]:
    return manifest.get("metadata", {}).get("annotations") or {}


def group_kind(manifest: Manifest) -> tuple[str, str]:
    """(API group, kind); the group is empty for the core group."""
    return (manifest.get("apiVersion", "v1").rpartition("/")[0], manifest.get("kind", ""))


def min_member(workload: Workload, default: int) -> int:
    """The minimum the user set by `kai.scheduler/batch-min-member`, else the family's. Raises InvalidWorkload."""
    text = workload.annotation(MIN_MEMBER_ANNOTATION)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise InvalidWorkload(
            workload.top,
            f"metadata.annotations[{MIN_MEMBER_ANNOTATION}]",
            f'{text!r} is no positive number of pods; write e.g. "2"',
        )
    return int(text)
