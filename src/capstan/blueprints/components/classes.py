"""`runtime-classes`, `priority-classes` and `namespaces`: the small cluster-scoped objects."""

from __future__ import annotations

from typing import Any, Literal

from capstan.api.scheduling import PRIORITY_CLASSES
from capstan.blueprints.components.values import InvalidValues, Manifest, Values, manifest

_HIGHEST_PRIORITY = 1_000_000_000
"""Above are the system's own classes."""


class Runtime(Values):
    handler: str
    overhead: dict[str, str | int | float] = {}
    """What the runtime itself needs per pod, by resource."""
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []


class Runtimes(Values):
    classes: dict[str, Runtime]


class Priority(Values):
    value: int
    preemption_policy: Literal["PreemptLowerPriority", "Never"] = "PreemptLowerPriority"
    description: str = ""


class Priorities(Values):
    kai: bool = True
    """Include the classes that KAI ships."""
    classes: dict[str, Priority] = {}


class Namespace(Values):
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    pod_security: Literal["privileged", "baseline", "restricted", ""] = ""


class Namespaces(Values):
    namespaces: dict[str, Namespace]


def runtimes(values: Runtimes) -> list[Manifest]:
    rendered = []
    for name, item in values.classes.items():
        content: dict[str, Any] = {"handler": item.handler}
        if item.overhead:
            content["overhead"] = {"podFixed": item.overhead}
        scheduling = {
            field: value
            for field, value in (("nodeSelector", item.node_selector), ("tolerations", item.tolerations))
            if value
        }
        if scheduling:
            content["scheduling"] = scheduling
        rendered.append(manifest("node.k8s.io/v1", "RuntimeClass", name, **content))
    return rendered


def priorities(values: Priorities) -> list[Manifest]:
    chosen = {name: Priority(value=value) for name, value in PRIORITY_CLASSES.items()} if values.kai else {}
    chosen |= values.classes
    rendered = []
    for name, item in chosen.items():
        if item.value > _HIGHEST_PRIORITY:
            message = f"{item.value} is above {_HIGHEST_PRIORITY}, the highest priority that is not the system's"
            raise InvalidValues(f"classes.{name}.value", message)
        content: dict[str, Any] = {"value": item.value, "preemptionPolicy": item.preemption_policy}
        if item.description:
            content["description"] = item.description
        rendered.append(manifest("scheduling.k8s.io/v1", "PriorityClass", name, **content))
    return rendered


def namespaces(values: Namespaces) -> list[Manifest]:
    rendered = []
    for name, item in values.namespaces.items():
        labels = dict(item.labels)
        if item.pod_security:
            labels["pod-security.kubernetes.io/enforce"] = item.pod_security
        built = manifest("v1", "Namespace", name)
        for field, value in (("labels", labels), ("annotations", item.annotations)):
            if value:
                built["metadata"][field] = value
        rendered.append(built)
    return rendered
