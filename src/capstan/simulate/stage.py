"""A scenario on stage: API objects made from its tables, a World fed with them, and a cluster that plays along.

The cluster is as simple as a cluster can be: what is bound runs a moment later, what is evicted goes away (and comes
back as a new pending pod, or does not), and the allocation of a claim ends with its last user.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from capstan.allocation import Inventory
from capstan.api import clock
from capstan.api.base import ObjectMeta
from capstan.api.core import Node, Pod
from capstan.api.resource import DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice
from capstan.api.scheduling import (
    EXPECTED_RUNTIME,
    MAX_RUNTIME,
    REQUEUE_DELAY,
    SEMI_PREEMPTIBLE,
    STALE_SINCE,
    BindRequest,
    PodGroup,
    PriorityClass,
    Queue,
    Topology,
)
from capstan.scheduling import Plan, World, cycle, durations
from capstan.scheduling.gangs import LAST_START
from capstan.scheduling.model import Task
from capstan.simulate.scenario import (
    BINDING,
    PLACED,
    Bound,
    Constraint,
    JobSetup,
    NodeSetup,
    Request,
    Scenario,
    TaskSetup,
    task_names,
)

START = 1_750_000_000.0
"""POSIX seconds at which every scenario begins."""
_SETTLED_AGE = 86_400.0
"""Jobs without an age are old enough for every delay, and keep the order of the file."""
Document = dict[str, Any]
_PREEMPTIBILITY = {True: "preemptible", False: "non-preemptible", "semi": SEMI_PREEMPTIBLE}


class Stage:
    """Plays one scenario. `step` runs a cycle, `settle` lets the cluster carry its plan out."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.policy = scenario.policy()
        self.now = START
        self.world = World(Inventory(self.policy.features), self.policy)
        self.pods: dict[str, Document] = {}
        """task name -> Pod document"""
        self.handed: dict[str, str] = {}
        """task name -> the node to which it is about to be bound"""
        self.claims: dict[tuple[str, str], Document] = {}
        self.jobs = {name: job for job in scenario.jobs for name in task_names(job)}
        self._raise_curtain()

    def step(self) -> Plan:
        return cycle(self.world, self.policy, self.now)

    def task(self, name: str) -> Task | None:
        pod = self.pods.get(name)
        return self.world.tasks.get(pod["metadata"]["uid"]) if pod is not None else None

    # -- setting up ----------------------------------------------------------------------------------------------------

    def _raise_curtain(self) -> None:
        scenario, world = self.scenario, self.world
        for topology in scenario.topologies:
            levels = [{"nodeLabel": level} for level in topology.levels]
            world.upsert(msgspec.convert({"metadata": {"name": topology.name}, "spec": {"levels": levels}}, Topology))
        for name, setup in scenario.nodes.items():
            world.upsert(msgspec.convert(_node(name, setup), Node))
        if scenario.dra is not None:
            for device_class in scenario.dra.device_classes:
                world.upsert(msgspec.convert(device_class, DeviceClass))
            for resource_slice in scenario.dra.resource_slices:
                world.upsert(msgspec.convert(resource_slice, ResourceSlice))
            for template in scenario.dra.resource_claim_templates:
                world.upsert(msgspec.convert(template, ResourceClaimTemplate))
            for claim in scenario.dra.resource_claims:
                self._put_claim(claim)
        for rank, queue in enumerate(scenario.queues):
            resources: Document = {
                "gpu": _bound(queue.gpu, 1.0),
                "cpu": _bound(queue.cpu, 1.0),
                "memory": _bound(queue.memory, 1e-6),
                "gpuTypes": {product: _bound(bound, 1.0) for product, bound in queue.gpu_types.items()},
            }
            spec: Document = {"parentQueue": queue.parent or "", "priority": queue.priority, "resources": resources}
            spec["userFairness"] = queue.user_fairness
            if queue.preempt_min_runtime:
                spec["preemptMinRuntime"] = queue.preempt_min_runtime
            if queue.reclaim_min_runtime:
                spec["reclaimMinRuntime"] = queue.reclaim_min_runtime
            created = clock.render(START - 2 * _SETTLED_AGE + rank)
            notes = _runtimes(queue.max_runtime, None, queue.requeue_delay)
            meta = {"name": queue.name, "creationTimestamp": created, "annotations": notes}
            world.upsert(msgspec.convert({"metadata": meta, "spec": spec}, Queue))
        youngest = _SETTLED_AGE
        for rank, job in enumerate(scenario.jobs):
            youngest = max(0.0, min(youngest, youngest if job.age is None else job.age) - 1)
            self._raise_job(rank, job, youngest if job.age is None else job.age)

    def _raise_job(self, rank: int, job: JobSetup, age: float) -> None:
        """`age`: as written, else that of a job which is younger than all before it in the file."""
        world = self.world
        created = clock.render(START - age)
        world.upsert(PriorityClass(metadata=ObjectMeta(name=f"p{job.priority}"), value=job.priority))
        world.upsert(msgspec.convert(self._pod_group(rank, job, created), PodGroup))
        for index, (name, task) in enumerate(zip(task_names(job), job.tasks, strict=True)):
            pod = self._pod(rank, index, name, job, task, created)
            self.pods[name] = pod
            if task.state in BINDING:
                self._hand_over(pod, task)
            world.upsert(msgspec.convert(pod, Pod))

    def _hand_over(self, pod: Document, task: TaskSetup) -> None:
        """The pod is decided, and its binder has not come to it yet."""
        meta = pod["metadata"]
        request = {
            "metadata": {key: meta[key] for key in ("name", "namespace")} | {"creationTimestamp": clock.render(START)},
            "spec": {"podName": meta["name"], "selectedNode": task.node, "selectedGPUGroups": task.gpu_groups},
        }
        self.world.upsert(msgspec.convert(request, BindRequest))
        self.handed[meta["name"]] = task.node or ""

    def _pod_group(self, rank: int, job: JobSetup, created: str) -> Document:
        notes = _runtimes(job.max_runtime, job.expected_runtime, job.requeue_delay)
        if job.running_for is not None:
            notes[LAST_START] = clock.render(START - durations.seconds(job.running_for))
        elif not notes and any(task.state == "Running" for task in job.tasks):
            notes[LAST_START] = clock.render(START - _SETTLED_AGE)  # it did start, nobody says when
        if job.stale_since is not None:
            notes[STALE_SINCE] = clock.render(START - durations.seconds(job.stale_since))
        spec: Document = {"queue": job.queue, "priorityClassName": f"p{job.priority}"}
        if job.preemptible is not None:
            spec["preemptibility"] = _PREEMPTIBILITY[job.preemptible]
        if job.min_non_preemptible is not None:
            spec["minNonPreemptible"] = job.min_non_preemptible
        if not job.subgroups:
            spec["minMember"] = len(job.tasks) if job.min_member is None else job.min_member
        elif job.min_sub_group is not None:
            spec["minSubGroup"] = job.min_sub_group
        if job.preemption_delay is not None:
            spec["preemptionDelay"] = job.preemption_delay
        if job.stale_grace is not None:
            spec["stalenessGracePeriod"] = job.stale_grace
        if job.topology is not None:
            spec["topologyConstraint"] = _constraint(job.topology)
        subgroups = []
        for sub in job.subgroups:
            entry: Document = {"name": sub.name}
            if sub.parent:
                entry["parent"] = sub.parent
            if sub.min_member is not None:
                entry["minMember"] = sub.min_member
            if sub.min_sub_group is not None:
                entry["minSubGroup"] = sub.min_sub_group
            if sub.topology is not None:
                entry["topologyConstraint"] = _constraint(sub.topology)
            subgroups.append(entry)
        spec["subGroups"] = subgroups
        meta = {
            "name": job.name,
            "namespace": job.namespace,
            "uid": f"{rank:05d}",
            "creationTimestamp": created,
            "annotations": notes,
        }
        return {"metadata": meta, "spec": spec}

    def _pod(self, rank: int, index: int, name: str, job: JobSetup, task: TaskSetup, created: str) -> Document:
        request = task.request or job.request
        labels, notes = dict(task.labels), {"pod-group-name": job.name}
        if task.subgroup:
            labels["kai.scheduler/subgroup-name"] = task.subgroup
        if task.priority is not None:
            labels["kai.scheduler/task-priority"] = str(task.priority)
        _share(request, notes)
        if task.numa:
            placed = {zone: {r: str(amount) for r, amount in amounts.items()} for zone, amounts in task.numa.items()}
            notes["platform.capstan.dev/numa"] = json.dumps(placed)
        resources = _resources(request, job.qos)
        spec: Document = {
            "schedulerName": "kai-scheduler",
            "containers": [{"name": "main", "resources": resources}],
            "affinity": _affinity(task),
            "resourceClaims": [{"name": claim, "resourceClaimName": claim} for claim in task.claims]
            + [{"name": template, "resourceClaimTemplateName": template} for template in task.claim_templates],
        }
        status: Document = {"phase": "Pending"}
        meta: Document = {
            "name": name,
            "namespace": job.namespace,
            "uid": f"{rank:05d}-{index:05d}",
            "creationTimestamp": created,
            "labels": labels,
            "annotations": notes,
        }
        pod = {"metadata": meta, "spec": spec, "status": status}
        if task.claim_templates:
            status["resourceClaimStatuses"] = [
                {"name": template, "resourceClaimName": self._generate(name, job.namespace, template)}
                for template in task.claim_templates
            ]
        if task.gpu_groups:
            for group in task.gpu_groups:
                labels[f"runai-gpu-group/{group}"] = group
        if task.state in PLACED - BINDING:
            spec["nodeName"] = task.node
            status["phase"] = "Pending" if task.state == "Bound" else "Running"
        if task.state == "Gated":
            spec["schedulingGates"] = [{"name": "scenario"}]
        elif task.state in ("Succeeded", "Failed"):
            status["phase"] = task.state
        elif task.state == "Releasing":
            meta["deletionTimestamp"] = clock.render(START)
        elif task.state == "StuckInReleasing":
            meta["deletionTimestamp"] = clock.render(START - 600)
        return pod

    def _generate(self, pod: str, namespace: str, template: str) -> str:
        dra = self.scenario.dra
        templates = dra.resource_claim_templates if dra is not None else []
        body = next(t for t in templates if t["metadata"]["name"] == template)
        name = f"{pod}-{template}"
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": pod, "controller": True}
        meta = {"name": name, "namespace": namespace, "ownerReferences": [owner]}
        self._put_claim({"metadata": meta, "spec": body["spec"].get("spec", {})})
        return name

    def _put_claim(self, claim: Document) -> None:
        key = (claim["metadata"].get("namespace", "default"), claim["metadata"]["name"])
        claim["metadata"]["namespace"] = key[0]
        self.claims[key] = claim
        self.world.upsert(msgspec.convert(claim, ResourceClaim))

    # -- playing along -------------------------------------------------------------------------------------------------

    def settle(self, plan: Plan) -> None:
        """Let the cluster carry the plan out, and a second pass."""
        for bind in plan.binds:
            pod = self.pods[bind.pod]
            pod["spec"]["nodeName"] = bind.node
            for group in bind.gpu_groups:
                pod["metadata"]["labels"][f"runai-gpu-group/{group}"] = group
            if bind.zones:
                placed: dict[str, dict[str, str]] = {}
                for zone, resource, amount in bind.zones:
                    placed.setdefault(zone, {})[resource] = f"{amount}m" if resource == "cpu" else str(amount)
                pod["metadata"]["annotations"]["platform.capstan.dev/numa"] = json.dumps(placed)
            for key, allocation in bind.claims.items():
                self.claims[key]["status"] = {"allocation": msgspec.to_builtins(allocation)}
                self._put_claim(self.claims[key])
        evicted = {eviction.pod for eviction in plan.evictions}
        for name, node in self.handed.items():
            self.pods[name]["spec"] |= {} if name in evicted else {"nodeName": node}
            self.world.delete("BindRequest", self.pods[name]["metadata"]["namespace"], name)
        self.handed.clear()
        for name, pod in list(self.pods.items()):
            terminating = "deletionTimestamp" in pod["metadata"]
            stuck = terminating and clock.parse(pod["metadata"]["deletionTimestamp"]) < START - 300
            if stuck:
                continue
            if pod["status"]["phase"] == "Succeeded":
                continue
            if terminating or name in evicted:
                self._remove(name)
            elif pod["spec"].get("nodeName") and pod["status"]["phase"] == "Pending":
                pod["status"] |= {"phase": "Running", "startTime": clock.render(self.now)}
                self.world.upsert(msgspec.convert(pod, Pod))
        self.now += durations.seconds(self.scenario.round_length)
        self._end_jobs()
        self._end_claims()
        self.world.begin(self.now)  # promises are for one round

    def _end_jobs(self) -> None:
        """Pods of jobs that last so long succeed when their time is over."""
        for name, pod in self.pods.items():
            job = self.jobs[name]
            if job.lasts is None or pod["status"]["phase"] != "Running":
                continue
            start = START - durations.seconds(job.running_for or "0s")
            since = clock.parse(pod["status"].get("startTime")) or start
            if self.now - since >= durations.seconds(job.lasts):
                pod["status"]["phase"] = "Succeeded"
                self.world.upsert(msgspec.convert(pod, Pod))

    def _remove(self, name: str) -> None:
        pod, job = self.pods[name], self.jobs[name]
        if job.on_evict == "stay":
            if "deletionTimestamp" not in pod["metadata"]:
                pod["metadata"]["deletionTimestamp"] = clock.render(self.now)
                self.world.upsert(msgspec.convert(pod, Pod))
            return
        self.world.delete("Pod", pod["metadata"]["namespace"], name)
        del self.pods[name]
        if job.on_evict == "delete":
            return
        labels = {k: v for k, v in pod["metadata"]["labels"].items() if not k.startswith("runai-gpu-group")}
        notes = {k: v for k, v in pod["metadata"]["annotations"].items() if k != "platform.capstan.dev/numa"}
        meta = {**pod["metadata"], "labels": labels, "annotations": notes}
        meta.pop("deletionTimestamp", None)
        spec = {k: v for k, v in pod["spec"].items() if k != "nodeName"}
        status = {key: value for key, value in pod["status"].items() if key != "startTime"}
        self.pods[name] = {"metadata": meta, "spec": spec, "status": {**status, "phase": "Pending"}}
        self.world.upsert(msgspec.convert(self.pods[name], Pod))

    def _end_claims(self) -> None:
        used = set()
        for pod in self.pods.values():
            if not pod["spec"].get("nodeName") or pod["status"]["phase"] in ("Succeeded", "Failed"):
                continue
            generated = {s["name"]: s["resourceClaimName"] for s in pod["status"].get("resourceClaimStatuses", ())}
            for claim in pod["spec"]["resourceClaims"]:
                name = claim.get("resourceClaimName") or generated.get(claim["name"])
                used.add((pod["metadata"]["namespace"], name))
        for key, claim in self.claims.items():
            if key not in used and claim.get("status", {}).get("allocation"):
                claim["status"] = {}
                self._put_claim(claim)


def _runtimes(longest: str | None, expected: str | None, delay: str | None) -> dict[str, str]:
    values = {MAX_RUNTIME: longest, EXPECTED_RUNTIME: expected, REQUEUE_DELAY: delay}
    return {name: value for name, value in values.items() if value is not None}


def _bound(bound: Bound, scale: float) -> Document:
    return {
        "quota": bound.quota if bound.quota == -1 else bound.quota * scale,
        "limit": bound.limit if bound.limit == -1 else bound.limit * scale,
        "lendingLimit": bound.lending_limit if bound.lending_limit == -1 else bound.lending_limit * scale,
        "overQuotaWeight": bound.weight,
    }


def _constraint(constraint: Constraint) -> Document:
    return {
        "topology": constraint.name,
        "requiredTopologyLevel": constraint.required,
        "preferredTopologyLevel": constraint.preferred,
    }


def _node(name: str, setup: NodeSetup) -> Document:
    allocatable: Document = {"cpu": setup.cpu, "memory": setup.memory, "pods": setup.pods}
    labels = {"kubernetes.io/hostname": name, **setup.labels}
    notes = {}
    if setup.gpus:
        allocatable["nvidia.com/gpu"] = setup.gpus
    if setup.gpu_memory:
        labels["nvidia.com/gpu.memory"] = str(setup.gpu_memory)
    if setup.mig is not None:
        labels["nvidia.com/mig.strategy"] = setup.mig.strategy
        for profile, count in setup.mig.instances.items():
            allocatable[f"nvidia.com/mig-{profile}"] = count
    if setup.numa is not None:
        zones = {str(zone["name"]): {k: str(v) for k, v in zone.items() if k != "name"} for zone in setup.numa.zones}
        notes["platform.capstan.dev/numa"] = json.dumps(
            {"policy": setup.numa.policy, "scope": setup.numa.scope, "zones": zones}
        )
    return {
        "metadata": {"name": name, "labels": labels, "annotations": notes},
        "spec": {"taints": setup.taints},
        "status": {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def _share(request: Request, notes: dict[str, str]) -> None:
    if request.gpu_fraction is not None:
        notes["gpu-fraction"] = f"{request.gpu_fraction:.9f}".rstrip("0")
    if request.gpu_memory is not None:
        notes["gpu-memory"] = str(request.gpu_memory)
    if request.gpu_devices is not None:
        notes["gpu-fraction-num-devices"] = str(request.gpu_devices)


def _resources(request: Request, qos: str) -> Document:
    if request.best_effort:
        return {}
    amounts: Document = {"cpu": request.cpu, "memory": request.memory}
    if request.gpus:
        amounts["nvidia.com/gpu"] = request.gpus
    for profile, count in request.mig.items():
        amounts[f"nvidia.com/mig-{profile}"] = count
    if qos == "Guaranteed":
        return {"requests": amounts, "limits": amounts}
    return {"requests": amounts}


def _affinity(task: TaskSetup) -> Document:
    affinity: Document = {}
    if task.node_affinity:
        terms = [
            {
                "matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": list(task.node_affinity)}
                ]
            }
        ]
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    if task.pod_affinity is not None:
        affinity["podAffinity"] = task.pod_affinity
    if task.pod_anti_affinity is not None:
        affinity["podAntiAffinity"] = task.pod_anti_affinity
    return affinity
