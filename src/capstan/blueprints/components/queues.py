"""`queues`: the tree of KAI queues."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from capstan.blueprints.components.values import InvalidValues, Manifest, Values, manifest


class Bound(Values):
    """Units as in KAI: GPUs, millicores, megabytes; -1 is unlimited."""

    quota: float | None = None
    """If not said: 0, as in KAI; unlimited for a queue with child queues, whose quotas have to fit into its own."""
    limit: float = -1
    weight: float = 1
    lending_limit: float = -1
    """How much of the quota others may use while it is free."""


class Queue(Values):
    parent: str = ""
    priority: int | None = None
    display_name: str = ""
    gpu: Bound = msgspec.field(default_factory=Bound)
    cpu: Bound = msgspec.field(default_factory=Bound)
    memory: Bound = msgspec.field(default_factory=Bound)
    gpu_types: dict[str, Bound] = {}
    preempt_min_runtime: str = ""
    reclaim_min_runtime: str = ""
    user_fairness: Literal["", "None", "DominantShare"] = ""
    """Whether the users of the queue take turns."""


class Queues(Values):
    queues: dict[str, Queue]
    existing: list[str] = []
    """Queues that others manage and that may be parents here."""


def render(values: Queues) -> list[Manifest]:
    for name, queue in values.queues.items():
        _check_parent(name, queue, values)
        bounds = {"gpu": queue.gpu, "cpu": queue.cpu, "memory": queue.memory}
        for kind, bound in (*bounds.items(), *((f"gpuTypes.{p}", bound) for p, bound in queue.gpu_types.items())):
            if bound.lending_limit != -1 and bound.quota in (None, -1):
                message = "it limits how much of the quota is lent, but there is none"
                raise InvalidValues(f"queues.{name}.{kind}.lendingLimit", message, "give a quota, or leave it out")
            if bound.quota is not None and -1 < bound.limit < bound.quota:
                message = f"the limit {bound.limit:g} is below the quota {bound.quota:g}"
                raise InvalidValues(f"queues.{name}.{kind}.limit", message, "raise the limit, or use -1 for none")
    parents = {queue.parent for queue in values.queues.values()}
    return [_queue(name, queue, -1 if name in parents else 0) for name, queue in values.queues.items()]


def _check_parent(name: str, queue: Queue, values: Queues) -> None:
    seen = [name]
    parent = queue.parent
    while parent and parent not in values.existing:
        if parent not in values.queues:
            hint = "add it, or list it under existing when others manage it"
            raise InvalidValues(f"queues.{seen[-1]}.parent", f"the parent queue {parent!r} is missing", hint)
        if parent in seen:
            cycle = " -> ".join([*seen[seen.index(parent) :], parent])
            raise InvalidValues(f"queues.{name}.parent", f"queues form a cycle: {cycle}")
        seen.append(parent)
        parent = values.queues[parent].parent


def _queue(name: str, queue: Queue, quota: float) -> Manifest:
    """`quota` is that of resources for which the queue says none."""
    resources: dict[str, Any] = {
        kind: _bound(bound, quota) for kind, bound in (("gpu", queue.gpu), ("cpu", queue.cpu), ("memory", queue.memory))
    }
    if queue.gpu_types:
        resources["gpuTypes"] = {product: _bound(bound, quota) for product, bound in queue.gpu_types.items()}
    optional = {
        "parentQueue": queue.parent,
        "displayName": queue.display_name,
        "priority": queue.priority,
        "preemptMinRuntime": queue.preempt_min_runtime,
        "reclaimMinRuntime": queue.reclaim_min_runtime,
        "userFairness": queue.user_fairness,
    }
    stated = {field: value for field, value in optional.items() if value not in ("", None)}
    spec: dict[str, Any] = {"resources": resources, **stated}
    return manifest("scheduling.run.ai/v2", "Queue", name, spec=spec)


def _bound(bound: Bound, quota: float) -> dict[str, float]:
    own = quota if bound.quota is None else bound.quota
    said = {"quota": own, "limit": bound.limit, "overQuotaWeight": bound.weight}
    if bound.lending_limit != -1:
        said["lendingLimit"] = bound.lending_limit
    return {field: _number(value) for field, value in said.items()}


def _number(value: float) -> float:
    return int(value) if value == int(value) else value
