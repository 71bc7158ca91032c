"""BindRequests: what a KAI Scheduler that ran before, or runs beside, has decided and its binder has yet to carry out.

A pod with a live request counts as binding on the node that the request names, so that nobody is placed twice while a
cluster changes over. A request is not live when it has failed, when its node is gone, when it was made for an earlier
pod of the same name, or when nobody has carried it out within the policy's patience: the pod is then decided anew. That
is safe even if a binder comes back later, because the API server binds a pod only once.
"""

from __future__ import annotations

from capstan.api import clock
from capstan.api.core import Pod
from capstan.api.resource import AllocationResult
from capstan.api.scheduling import BindRequest
from capstan.scheduling.facts import claim_names
from capstan.scheduling.plan import Bind, Grant

Key = tuple[str, str]


class Handoffs:
    """Requests by the pod that they name."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._pods: dict[Key, Key] = {}
        """Request -> pod."""
        self._live: dict[Key, BindRequest] = {}
        """Pod -> request."""

    def put(self, request: BindRequest) -> set[Key]:
        """Take a request as it is now; the pods to judge anew."""
        concerned = self.drop(request.key)
        if request.status.phase != "Failed" and request.spec.pod_name and request.spec.selected_node:
            pod = (request.metadata.namespace, request.spec.pod_name)
            self._pods[request.key], self._live[pod] = pod, request
            concerned.add(pod)
        return concerned

    def drop(self, key: Key) -> set[Key]:
        """Forget a request; the pods to judge anew."""
        pod = self._pods.pop(key, None)
        if pod is None or self._live[pod].key != key:
            return set()
        del self._live[pod]
        return {pod}

    def expire(self, now: float) -> set[Key]:
        """Forget the requests that nobody has carried out in time; the pods to judge anew."""
        late = [r for r in self._live.values() if now - clock.parse(r.metadata.creation_timestamp) > self._patience]
        return {pod for request in late for pod in self.drop(request.key)}

    def of(self, pod: Pod) -> tuple[Bind, AllocationResult | None] | None:
        """What was decided about a pod, and the allocation for its extended resources."""
        request = self._live.get(pod.key)
        if request is None or not _made_for(request, pod):
            return None
        names, spec = dict(claim_names(pod)), request.spec
        namespace = pod.metadata.namespace
        grants = tuple(
            Grant(namespace, names.get(each.name) or each.name, each.allocation)
            for each in spec.resource_claim_allocations
            if each.allocation is not None
        )
        extended = spec.extended_resource_claim_allocation
        bind = Bind(
            namespace=namespace,
            pod=pod.metadata.name,
            uid=pod.metadata.uid,
            node=spec.selected_node,
            group="",
            grants=grants,
            gpu_groups=tuple(spec.selected_gpu_groups),
        )
        return bind, extended.allocation if extended is not None else None


def _made_for(request: BindRequest, pod: Pod) -> bool:
    """KAI makes the pod the owner of its request."""
    owners = [owner.uid for owner in request.metadata.owner_references if owner.kind == "Pod" and owner.uid]
    return not owners or pod.metadata.uid in owners
