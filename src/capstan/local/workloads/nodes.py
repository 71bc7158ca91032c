"""Nodes that stop answering or disappear: conditions and taints while silent, their pods evicted or failed.

A node's heartbeat is its Lease. Silence is measured on the own clock, since the lease was last seen to change.
"""

from __future__ import annotations

import asyncio

import msgspec

from capstan import kube
from capstan.api import clock
from capstan.api.coordination import Lease
from capstan.api.core import Node, Pod, Taint, tolerates
from capstan.api.resources import LEASES, NODES, PODS, unstructured
from capstan.local.workloads.caches import Caches
from capstan.local.workloads.pods import is_finished

_RAW_NODES = unstructured("", "v1", "nodes", "Node", namespaced=False)
LEASE_NAMESPACE = "kube-node-lease"
GRACE_SECONDS = 40.0
"""Silence after which a node counts as unreachable (kube-controller-manager's node-monitor-grace-period)."""
_UNREACHABLE, _NOT_READY = "node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"
_LOST_POD_SECONDS = 5.0
"""A pod may be bound a moment before its node shows in our cache; only after this it counts as lost."""


class NodeLifecycleController(kube.Controller[str]):
    """Keys are node names."""

    def __init__(self, caches: Caches, grace_seconds: float = GRACE_SECONDS) -> None:
        super().__init__()
        self._caches = caches
        self._recorder = caches.recorder("node-controller")
        self._grace = grace_seconds
        self._nodes = caches.of(NODES)
        self._leases = caches.of(LEASES)
        self._by_node = caches.pods.index(lambda pod: [pod.spec.node_name] if pod.spec.node_name else [])
        self._heard: dict[str, float] = {}
        self._missing_since: dict[str, float] = {}
        self.caches = (self._nodes, self._leases, caches.pods)
        self._nodes.on_change(self._node_changed)
        self._leases.on_change(self._lease_changed)
        caches.pods.on_change(self._pod_changed)

    def _node_changed(self, change: kube.Change[Node]) -> None:
        name = change.object.metadata.name
        if change.old is None:
            self._heard[name] = self._caches.now()
        self.queue.add(name)

    def _lease_changed(self, change: kube.Change[Lease]) -> None:
        lease = change.object
        if lease.metadata.namespace != LEASE_NAMESPACE or change.new is None:
            return
        name = lease.metadata.name
        self._heard[name] = self._caches.now()
        node = self._nodes.get(name)
        if node is not None and any(taint.key == _UNREACHABLE for taint in node.spec.taints):
            self.queue.add(name)

    def _pod_changed(self, change: kube.Change[Pod]) -> None:
        pod = change.new
        if pod is None or not pod.spec.node_name:
            return
        moved = change.old is None or change.old.spec.node_name != pod.spec.node_name
        node = self._nodes.get(pod.spec.node_name)
        if moved and (node is None or any(taint.effect == "NoExecute" for taint in node.spec.taints)):
            self.queue.add(pod.spec.node_name)

    async def reconcile(self, name: str) -> float | None:
        node = self._nodes.get(name)
        now = self._caches.now()
        if node is None:
            return await self._fail_pods(name, now)
        self._missing_since.pop(name, None)
        silent = now - self._heard.setdefault(name, now)
        if silent >= self._grace and _status(node) != "Unknown":
            await self._mark_silent(node, now)
        elif silent < self._grace or _status(node) == "Unknown":
            await self._taint(node)
        pause = await self._evict(self._nodes.get(name) or node, now)
        waits = [wait for wait in (pause, self._grace - silent if silent < self._grace else None) if wait is not None]
        return min(waits, default=None)

    async def _mark_silent(self, node: Node, now: float) -> None:
        raw = await self._caches.client.get(_RAW_NODES, node.metadata.name)
        stamp = clock.render(now)
        conditions = [
            {
                **condition,
                "status": "Unknown",
                "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.",
                "lastTransitionTime": stamp,
            }
            for condition in raw.get("status", {}).get("conditions", [])
        ]
        patch = {"status": {"conditions": conditions}}
        written = await self._caches.client.patch(NODES, node.metadata.name, patch=patch, subresource="status")
        self._recorder.emit(node, "Normal", "NodeNotReady", f"Node {node.metadata.name} status is now: NodeNotReady")
        await self._nodes.reached(written["metadata"]["resourceVersion"])

    async def _taint(self, node: Node) -> None:
        """Taints follow the Ready condition: unreachable when Unknown, not-ready when False, none when True."""
        state = _status(node)
        key = {"Unknown": _UNREACHABLE, "False": _NOT_READY}.get(state)
        own = {_UNREACHABLE, _NOT_READY}
        kept = [taint for taint in node.spec.taints if taint.key not in own or taint.key == key]
        has = {(taint.key, taint.effect) for taint in kept}
        stamp = clock.render(self._caches.now())
        added = [
            Taint(key=key, effect=effect, time_added=stamp)
            for effect in ("NoSchedule", "NoExecute")
            if key and (key, effect) not in has
        ]
        if added or len(kept) != len(node.spec.taints):
            taints = msgspec.to_builtins(kept + added)
            version = node.metadata.resource_version
            patch = {"metadata": {"resourceVersion": version}, "spec": {"taints": taints or None}}
            written = await self._caches.client.patch(NODES, node.metadata.name, patch=patch)
            await self._nodes.reached(written["metadata"]["resourceVersion"])

    async def _evict(self, node: Node, now: float) -> float | None:
        """Deletes pods that do not tolerate a NoExecute taint (any longer); returns when the next toleration ends."""
        hostile = [taint for taint in node.spec.taints if taint.effect == "NoExecute"]
        waits: list[float] = []
        for pod in list(self._by_node.get(node.metadata.name).values()) if hostile else []:
            if is_finished(pod) or pod.metadata.deletion_timestamp is not None:
                continue
            left = min(_tolerated_for(pod, taint, now) for taint in hostile)
            if left <= 0:
                self._recorder.emit(
                    pod, "Normal", "TaintManagerEviction", f"Marking for deletion Pod {pod.metadata.name}"
                )
                await self._delete(pod)
            elif left != float("inf"):
                waits.append(left)
        return min(waits, default=None)

    async def _fail_pods(self, name: str, now: float) -> float | None:
        """The node is gone: what ran there has failed, and nobody is left to confirm a deletion (podgc)."""
        pods = list(self._by_node.get(name).values())
        if not pods:
            self._missing_since.pop(name, None)
            self._heard.pop(name, None)
            return None
        left = self._missing_since.setdefault(name, now) + _LOST_POD_SECONDS - now
        if left > 0:
            return left
        await asyncio.gather(*(self._fail(pod, now) for pod in pods))
        return _LOST_POD_SECONDS

    async def _fail(self, pod: Pod, now: float) -> None:
        metadata = pod.metadata
        if not is_finished(pod):
            condition = {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists",
                "lastTransitionTime": clock.render(now),
            }
            patch = {"metadata": {"uid": metadata.uid}, "status": {"phase": "Failed", "conditions": [condition]}}
            try:
                await self._caches.client.patch(
                    PODS, metadata.name, metadata.namespace, patch=patch, kind="strategic", subresource="status"
                )
            except (kube.NotFound, kube.Conflict):
                return
        await self._delete(pod, grace_period=0)

    async def _delete(self, pod: Pod, grace_period: int | None = None) -> None:
        try:
            await self._caches.client.delete(
                PODS, pod.metadata.name, pod.metadata.namespace, uid=pod.metadata.uid, grace_period=grace_period
            )
        except (kube.NotFound, kube.Conflict):
            pass  # gone, or a namesake took its place


def _status(node: Node) -> str:
    """The Ready condition: True, False, Unknown; a node that never reported is not ready."""
    return next((c.status for c in node.status.conditions if c.type == "Ready"), "False")


def _tolerated_for(pod: Pod, taint: Taint, now: float) -> float:
    """Seconds the pod may still stay, infinite without a limit."""
    matching = [t for t in pod.spec.tolerations if tolerates([t], taint)]
    if not matching:
        return 0.0
    limits = [t.toleration_seconds for t in matching if t.toleration_seconds is not None]
    if not limits:
        return float("inf")
    return clock.parse(taint.time_added) + min(limits) - now
