"""Random small clusters for the property tests, as plain objects of the API."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st

from capstan.api import clock
from capstan.api.core import Node, Pod
from capstan.api.scheduling import PodGroup, PriorityClass, Queue
from capstan.scheduling import Plan, World

START = 1_750_000_000.0
ApiObject = Node | Pod | PodGroup | Queue | PriorityClass


def node(
    name: str,
    gpus: int = 4,
    cpu: int = 64,
    memory: str = "256Gi",
    labels: dict[str, str] | None = None,
    taints: list[dict[str, str]] | None = None,
    **resources: object,
) -> Node:
    return msgspec.convert(
        {
            "metadata": {"name": name, "labels": {"nvidia.com/gpu.memory": "40000", **(labels or {})}},
            "spec": {"taints": taints or []},
            "status": {
                "allocatable": {"cpu": cpu, "memory": memory, "pods": 110, "nvidia.com/gpu": gpus, **resources},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
        Node,
    )


def queue(
    name: str,
    parent: str = "",
    *,
    quota: float = -1,
    limit: float = -1,
    weight: float = 1,
    lending: float = -1,
    gpu_types: dict[str, dict[str, float]] | None = None,
    user_fairness: str = "",
    priority: int = 100,
    rank: int = 0,
) -> Queue:
    gpu = {"quota": quota, "limit": limit, "overQuotaWeight": weight, "lendingLimit": lending}
    free = {"quota": -1, "limit": -1, "overQuotaWeight": 1}
    created = clock.render(START - 1_000_000 + rank)
    return msgspec.convert(
        {
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {
                "parentQueue": parent,
                "priority": priority,
                "userFairness": user_fairness,
                "resources": {"gpu": gpu, "cpu": free, "memory": free, "gpuTypes": gpu_types or {}},
            },
        },
        Queue,
    )


def gang(
    name: str,
    queue_name: str,
    *,
    minimum: int = 1,
    priority: str = "train",
    rank: int = 0,
    subgroups: list[dict[str, object]] | None = None,
    minimum_subgroups: int | None = None,
    user: str = "",
    **spec: object,
) -> PodGroup:
    body: dict[str, object] = {"queue": queue_name, "priorityClassName": priority, **spec}
    if subgroups:
        body["subGroups"] = subgroups
        body["minSubGroup"] = minimum_subgroups
    else:
        body["minMember"] = minimum
    created = clock.render(START - 10_000 + rank)
    labels = {"user": user} if user else {}
    meta = {
        "name": name,
        "namespace": "default",
        "uid": f"g-{name}",
        "creationTimestamp": created,
        "labels": labels,
    }
    return msgspec.convert({"metadata": meta, "spec": body}, PodGroup)


def pod(
    name: str,
    group: str,
    *,
    gpus: int = 0,
    fraction: str = "",
    cpu: int = 1,
    subgroup: str = "",
    on: str = "",
    rank: int = 0,
    **spec: object,
) -> Pod:
    requests: dict[str, object] = {"cpu": cpu, "memory": "1Gi"}
    if gpus:
        requests["nvidia.com/gpu"] = gpus
    notes = {"pod-group-name": group} if group else {}
    if fraction:
        notes["gpu-fraction"] = fraction
    labels = {"kai.scheduler/subgroup-name": subgroup} if subgroup else {}
    body = {
        "schedulerName": "kai-scheduler",
        "containers": [{"name": "main", "resources": {"requests": requests}}],
        **({"nodeName": on} if on else {}),
        **spec,
    }
    meta = {
        "name": name,
        "namespace": "default",
        "uid": f"p-{name}",
        "creationTimestamp": clock.render(START - 10_000 + rank),
        "annotations": notes,
        "labels": labels,
    }
    status = {"phase": "Running" if on else "Pending"}
    return msgspec.convert({"metadata": meta, "spec": body, "status": status}, Pod)


def world(*objects: ApiObject) -> World:
    made = World()
    for entry in objects:
        made.upsert(entry)
    return made


class Cluster:
    """Objects by (kind, name), and how they change when a plan is carried out."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], ApiObject] = {}

    def __repr__(self) -> str:
        """One line an object, short enough to be read in a falsifying example."""
        return "\n".join(_line(entry) for entry in self.objects.values())

    def put(self, entry: ApiObject) -> None:
        self.objects[(type(entry).__name__, entry.metadata.name)] = entry

    def build(self) -> World:
        return world(*self.objects.values())

    def carry_out(self, made: World, plan: Plan) -> None:
        """Bound pods run; evicted pods come back as new ones that wait."""
        for bind in plan.binds:
            entry = self.objects[("Pod", bind.pod)]
            assert isinstance(entry, Pod)
            labels = {**entry.metadata.labels, **{f"runai-gpu-group/{g}": g for g in bind.gpu_groups}}
            running = msgspec.structs.replace(
                entry,
                metadata=msgspec.structs.replace(entry.metadata, labels=labels),
                spec=msgspec.structs.replace(entry.spec, node_name=bind.node),
                status=msgspec.structs.replace(entry.status, phase="Running"),
            )
            self.put(running)
            made.upsert(running)
        for eviction in plan.evictions:
            entry = self.objects[("Pod", eviction.pod)]
            assert isinstance(entry, Pod)
            labels = {k: v for k, v in entry.metadata.labels.items() if not k.startswith("runai-gpu-group")}
            again = msgspec.structs.replace(
                entry,
                metadata=msgspec.structs.replace(entry.metadata, labels=labels, uid=f"{entry.metadata.uid}+"),
                spec=msgspec.structs.replace(entry.spec, node_name=""),
                status=msgspec.structs.replace(entry.status, phase="Pending"),
            )
            made.delete("Pod", "default", eviction.pod)
            self.put(again)
            made.upsert(again)


def _line(entry: ApiObject) -> str:
    name = entry.metadata.name
    match entry:
        case Node():
            return f"node {name} {entry.status.allocatable} {entry.metadata.labels}"
        case Queue():
            gpu = entry.spec.resources.gpu if entry.spec.resources else None
            types = entry.spec.resources.gpu_types if entry.spec.resources else None
            return f"queue {name} in {entry.spec.parent_queue!r} priority {entry.spec.priority} {gpu} {types}"
        case PodGroup():
            tree = [(sub.name, sub.min_member) for sub in entry.spec.sub_groups]
            minimum = entry.spec.min_sub_group if tree else entry.spec.min_member
            return f"gang {name} in {entry.spec.queue} {entry.spec.priority_class_name} minimum {minimum} {tree}"
        case Pod():
            requests = entry.spec.containers[0].resources.requests
            subgroup = entry.metadata.labels.get("kai.scheduler/subgroup-name", "")
            fraction = entry.metadata.annotations.get("gpu-fraction", "")
            where = f"{entry.spec.node_selector} on {entry.spec.node_name!r}"
            return f"  pod {name} {subgroup} {requests} {fraction} {where}"
    return name


PRODUCT = "nvidia.com/gpu.product"


@st.composite
def clusters(draw: st.DrawFn, products: bool = False) -> Cluster:
    """Up to 4 nodes, two levels of queues, up to 10 gangs: plain, elastic, in subgroups, whole GPUs and shares.

    With `products`, GPUs are of two products that some queues name and some pods ask for, and queues limit what they
    lend; jobs belong to users, who take turns in some queues.
    """
    cluster = Cluster()
    kinds = st.sampled_from([{PRODUCT: "H100"}, {PRODUCT: "H100"}, {PRODUCT: "A100"}, {}])
    for i in range(draw(st.integers(1, 4))):
        labels = draw(kinds) if products else {}
        cluster.put(node(f"n{i}", gpus=draw(st.integers(0, 4)), cpu=draw(st.sampled_from([4, 64])), labels=labels))
    leaves = []
    bounds = st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.0])
    limits = st.sampled_from([-1.0, -1.0, 1.0, 2.0, 4.0])

    def lending(quota: float) -> float:
        return draw(limits) if products and quota >= 0 else -1.0

    def types() -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for product in ("H100", "A100") if products else ():
            if draw(st.booleans()):
                own = draw(bounds)
                found[product] = {"quota": own, "limit": draw(limits), "lendingLimit": lending(own)}
        return found

    for d in range(draw(st.integers(1, 2))):
        quota = draw(bounds)
        limit = draw(st.sampled_from([-1.0, 4.0, 6.0]))
        cluster.put(queue(f"d{d}", quota=quota, limit=limit, lending=lending(quota), gpu_types=types(), rank=d))
        for q in range(draw(st.integers(1, 2))):
            leaves.append(f"d{d}q{q}")
            quota = draw(bounds)
            cluster.put(
                queue(
                    leaves[-1],
                    f"d{d}",
                    quota=quota,
                    limit=draw(st.sampled_from([-1.0, -1.0, 2.0, 5.0])),
                    weight=draw(st.sampled_from([0.0, 1.0, 2.0])),
                    priority=draw(st.sampled_from([100, 100, 200])),
                    rank=10 * d + q,
                    lending=lending(quota),
                    gpu_types=types(),
                    user_fairness=draw(st.sampled_from(["", "DominantShare"])) if products else "",
                )
            )
    for g in range(draw(st.integers(1, 10))):
        name = f"g{g:02d}"
        size = draw(st.integers(1, 4))
        tree = draw(st.booleans()) and size > 1
        subgroups = [
            {"name": "a", "minMember": draw(st.integers(1, 2))},
            {"name": "b", "minMember": draw(st.integers(0, 2))},
        ]
        cluster.put(
            gang(
                name,
                draw(st.sampled_from(leaves)),
                minimum=draw(st.integers(1, size)),
                priority=draw(st.sampled_from(["train", "train", "build", "inference"])),
                rank=g,
                subgroups=subgroups if tree else None,
                minimum_subgroups=draw(st.sampled_from([1, 2])) if tree else None,
                user=draw(st.sampled_from(["", "ann", "bob"])) if products else "",
            )
        )
        kind = draw(st.sampled_from(["cpu", "gpu", "gpu", "share"]))
        selector = draw(st.sampled_from([{}, {}, {PRODUCT: "H100"}])) if products else {}
        for p in range(size):
            cluster.put(
                pod(
                    f"{name}-{p}",
                    name,
                    gpus=draw(st.integers(1, 2)) if kind == "gpu" else 0,
                    fraction=draw(st.sampled_from(["0.25", "0.5", "0.75"])) if kind == "share" else "",
                    cpu=draw(st.sampled_from([1, 2])),
                    subgroup=draw(st.sampled_from(["a", "b"])) if tree else "",
                    rank=g,
                    nodeSelector=selector,
                )
            )
    return cluster
