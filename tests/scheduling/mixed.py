"""Random clusters with everything at once: queues of three levels, nested subgroups, topologies, shares in MiB and over
several devices, MIG, taints, ports, company rules, and pods that take their time to end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st

from capstan.api import clock
from capstan.api.core import Pod
from capstan.api.scheduling import Topology
from capstan.scheduling import Plan, World

sys.path.insert(0, str(Path(__file__).parent))
from clusters import START, Cluster, gang, node, pod, queue

HOST, ZONE, RACK = "kubernetes.io/hostname", "zone", "rack"
MIG = "nvidia.com/mig-1g.10gb"
LEVELS = [{"nodeLabel": name} for name in (ZONE, RACK, HOST)]
TREES: list[list[dict[str, Any]]] = [
    [{"name": "a", "minMember": 1}, {"name": "b", "minMember": 0}],
    [{"name": "a", "minMember": 2}, {"name": "b", "minMember": 1}],
    [
        {"name": "p", "minSubGroup": 1},
        {"name": "a", "parent": "p", "minMember": 1},
        {"name": "b", "parent": "p", "minMember": 2},
        {"name": "c", "minMember": 1},
    ],
]
CONSTRAINTS = [
    {"requiredTopologyLevel": RACK},
    {"requiredTopologyLevel": ZONE, "preferredTopologyLevel": RACK},
    {"preferredTopologyLevel": ZONE},
    {"preferredTopologyLevel": HOST},
]
TAINT = {"key": "special", "value": "yes", "effect": "NoSchedule"}


class MixedCluster(Cluster):
    """Evicted pods end a round later."""

    def carry_out(self, made: World, plan: Plan) -> None:
        for entry in [o for o in self.objects.values() if isinstance(o, Pod) and o.metadata.deletion_timestamp]:
            self._come_back(made, entry)
        binds = msgspec.structs.replace(plan, evictions=[])
        super().carry_out(made, binds)
        for eviction in plan.evictions:
            entry = self.objects["Pod", eviction.pod]
            assert isinstance(entry, Pod)
            meta = msgspec.structs.replace(entry.metadata, deletion_timestamp=clock.render(START))
            ending = msgspec.structs.replace(entry, metadata=meta)
            self.put(ending)
            made.upsert(ending)

    def _come_back(self, made: World, entry: Pod) -> None:
        labels = {k: v for k, v in entry.metadata.labels.items() if not k.startswith("runai-gpu-group")}
        meta = msgspec.structs.replace(
            entry.metadata, labels=labels, uid=f"{entry.metadata.uid}+", deletion_timestamp=None
        )
        spec = msgspec.structs.replace(entry.spec, node_name="")
        status = msgspec.structs.replace(entry.status, phase="Pending")
        again = msgspec.structs.replace(entry, metadata=meta, spec=spec, status=status)
        made.delete("Pod", "default", entry.metadata.name)
        self.put(again)
        made.upsert(again)


def _selector(group: str) -> dict[str, Any]:
    return {"labelSelector": {"matchLabels": {"team": group}}}


@st.composite
def mixed_clusters(draw: st.DrawFn) -> MixedCluster:
    pick = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    cluster = MixedCluster()
    cluster.put(msgspec.convert({"metadata": {"name": "t"}, "spec": {"levels": LEVELS}}, Topology))  # type: ignore[arg-type]
    for i in range(draw(st.integers(1, 5))):
        labels = {ZONE: pick("z0", "z1"), RACK: pick("r0", "r1")} if pick(True, True, False) else {}
        labels["nvidia.com/gpu.memory"] = pick("40000", "80000")
        resources = {}
        if pick(True, False, False, False):
            resources[MIG] = draw(st.integers(1, 3))
            labels["nvidia.com/mig.strategy"] = "mixed"
        taints = [TAINT] if pick(True, False, False, False, False) else []
        gpus = 0 if resources else draw(st.integers(0, 4))
        cluster.put(node(f"n{i}", gpus, pick(4, 64), labels=labels, taints=taints, **resources))
    leaves = []
    bound = lambda: pick(-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)  # noqa: E731
    for d in range(draw(st.integers(1, 2))):
        cluster.put(queue(f"d{d}", quota=bound(), limit=pick(-1.0, -1.0, 6.0), priority=pick(100, 200), rank=d))
        for q in range(draw(st.integers(1, 2))):
            name, deeper = f"d{d}q{q}", pick(True, False, False)
            cluster.put(queue(name, f"d{d}", quota=bound(), weight=pick(0.0, 1.0, 3.0), rank=10 * d + q + 2))
            if deeper:
                leaves.append(f"{name}x")
                cluster.put(queue(leaves[-1], name, quota=bound(), limit=pick(-1.0, 3.0), rank=100 + 10 * d + q))
            else:
                leaves.append(name)
    for g in range(draw(st.integers(1, 9))):
        name, size = f"g{g:02d}", draw(st.integers(1, 4))
        tree = pick(*TREES) if pick(True, False, False) and size > 1 else None
        extra: dict[str, Any] = {}
        if pick(True, False, False):
            extra["topologyConstraint"] = {"topology": "t", **pick(*CONSTRAINTS)}
        if pick(True, False, False, False):
            extra["preemptibility"] = pick("preemptible", "non-preemptible")
        cluster.put(
            gang(
                name,
                pick(*leaves),
                minimum=draw(st.integers(1, size)),
                priority=pick("train", "train", "build", "inference"),
                rank=g,
                subgroups=tree,
                minimum_subgroups=pick(1, None) if tree else None,
                **extra,
            )
        )
        kind = pick("cpu", "gpu", "gpu", "share", "memory", "devices", "mig")
        spec: dict[str, Any] = {}
        if pick(True, False, False):
            spec["tolerations"] = [{"key": "special", "operator": "Exists"}]
        company = pick("", "", "", "", "port", "apart", "together", "spread")
        term = {**_selector(name), "topologyKey": pick(HOST, RACK)}
        if company in ("apart", "together"):
            rule = "podAntiAffinity" if company == "apart" else "podAffinity"
            spec["affinity"] = {rule: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        elif company == "spread":
            spec["topologySpreadConstraints"] = [{**term, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]
        leaf_names = [s["name"] for s in tree or [] if s["name"] != "p"]
        for p in range(size):
            made = pod(
                f"{name}-{p}",
                name,
                gpus=draw(st.integers(1, 2)) if kind == "gpu" else 0,
                fraction=pick("0.25", "0.33", "0.5", "0.75") if kind in ("share", "devices") else "",
                cpu=pick(1, 2),
                subgroup=pick(*leaf_names) if tree else "",
                rank=g,
                **spec,
            )
            notes, labels = dict(made.metadata.annotations), {**made.metadata.labels, "team": name}
            if kind == "memory":
                notes["gpu-memory"] = pick("10000", "20001", "50000")
            elif kind == "devices":
                notes["gpu-fraction-num-devices"] = "2"
            body: dict[str, Any] = msgspec.to_builtins(made)
            if kind == "mig":
                body["spec"]["containers"][0]["resources"]["requests"][MIG] = 1
            if company == "port":
                body["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 8080}]
            body["metadata"] |= {"annotations": notes, "labels": labels}
            cluster.put(msgspec.convert(body, Pod))
    return cluster
