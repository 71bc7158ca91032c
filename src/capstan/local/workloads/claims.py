"""Resource claims around pods: made from templates, released by finished consumers, deallocated when unused."""

from __future__ import annotations

from typing import Any

import msgspec

from capstan import kube
from capstan.api.core import Pod, PodResourceClaim
from capstan.api.resource import (
    EXTENDED_RESOURCE_CLAIM_ANNOTATION,
    FINALIZER,
    POD_CLAIM_NAME_ANNOTATION,
    ConsumerReference,
    ResourceClaim,
)
from capstan.api.resources import PODS, RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS, unstructured
from capstan.local.workloads.caches import Caches
from capstan.local.workloads.pods import is_finished, owner_reference

_TEMPLATES = unstructured("resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate", namespaced=True)
"""Read whole: a claim is a copy of its template."""
_RETRY_SECONDS = 30.0
_Key = tuple[str, str, str]
"""("pod" or "claim", namespace, name)."""


class ClaimController(kube.Controller[_Key]):
    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._caches = caches
        self._recorder = caches.recorder("resource_claim")
        self._client = caches.client
        self._claims = caches.of(RESOURCE_CLAIMS)
        self._templates = caches.of(RESOURCE_CLAIM_TEMPLATES)
        self._by_pod = caches.by_controller(RESOURCE_CLAIMS)
        self._waiting = caches.pods.index(
            lambda pod: [
                (pod.metadata.namespace, use.resource_claim_template_name)
                for use in pod.spec.resource_claims
                if use.resource_claim_template_name and not claim_name(pod, use)
            ]
        )
        self.caches = (caches.pods, self._claims, self._templates)
        caches.pods.on_change(self._pod_changed)
        self._claims.on_change(self._claim_changed)
        self._templates.on_change(self._template_changed)

    def _pod_changed(self, change: kube.Change[Pod]) -> None:
        pod = change.object
        namespace = pod.metadata.namespace
        if pod.spec.resource_claims and not is_done(change.new):
            self.queue.add(("pod", namespace, pod.metadata.name))
        if is_done(change.new):
            for use in pod.spec.resource_claims:
                if name := claim_name(pod, use):
                    self.queue.add(("claim", namespace, name))
            for claim in self._by_pod.get(pod.metadata.uid).values():
                self.queue.add(("claim", namespace, claim.metadata.name))

    def _claim_changed(self, change: kube.Change[ResourceClaim]) -> None:
        claim = change.object
        if change.new is not None:
            self.queue.add(("claim", *claim.key))
        elif owner := claim.metadata.controller():
            self.queue.add(("pod", claim.metadata.namespace, owner.name))

    def _template_changed(self, change: kube.Change[Any]) -> None:
        if change.type == "added":
            for key in self._waiting.get(change.object.key):
                self.queue.add(("pod", *key))

    async def reconcile(self, key: _Key) -> float | None:
        kind, namespace, name = key
        if kind == "pod":
            pod = self._caches.pods.get(name, namespace)
            return await self._generate(pod) if pod is not None and not is_done(pod) else None
        claim = self._claims.get(name, namespace)
        if claim is not None:
            await self._release(claim)
        return None

    async def _generate(self, pod: Pod) -> float | None:
        """Makes the claims of the pod's templates and writes their names into the pod's status."""
        names: dict[str, str] = {}
        for use in pod.spec.resource_claims:
            if not use.resource_claim_template_name:
                continue
            made = self._made_for(pod, use.name)
            if made is None:
                try:
                    made = await self._create(pod, use)
                except kube.NotFound:
                    template = use.resource_claim_template_name
                    message = f"cannot create claim {use.name!r}: there is no ResourceClaimTemplate {template!r}"
                    self._recorder.emit(pod, "Warning", "FailedResourceClaimCreation", message)
                    return _RETRY_SECONDS
                except (kube.Invalid, kube.Forbidden) as error:
                    self._recorder.emit(pod, "Warning", "FailedResourceClaimCreation", str(error))
                    raise
            names[use.name] = made
        known = {status.name: status.resource_claim_name for status in pod.status.resource_claim_statuses}
        if not names or names.items() <= known.items():
            return None
        statuses = [{"name": name, "resourceClaimName": claim} for name, claim in (known | names).items()]
        metadata = pod.metadata
        patch = {"metadata": {"uid": metadata.uid}, "status": {"resourceClaimStatuses": statuses}}
        try:
            written = await self._client.patch(
                PODS, metadata.name, metadata.namespace, patch=patch, kind="strategic", subresource="status"
            )
        except kube.NotFound:
            return None
        await self._caches.pods.reached(written["metadata"]["resourceVersion"])
        return None

    def _made_for(self, pod: Pod, local_name: str) -> str | None:
        return next(
            (
                claim.metadata.name
                for claim in self._by_pod.get(pod.metadata.uid).values()
                if claim.metadata.annotations.get(POD_CLAIM_NAME_ANNOTATION) == local_name
            ),
            None,
        )

    async def _create(self, pod: Pod, use: PodResourceClaim) -> str:
        namespace = pod.metadata.namespace
        template = await self._client.get(_TEMPLATES, use.resource_claim_template_name or "", namespace)
        metadata = template["spec"].get("metadata") or {}
        body = {
            "apiVersion": RESOURCE_CLAIMS.api_version,
            "kind": RESOURCE_CLAIMS.kind,
            "metadata": {
                "generateName": f"{pod.metadata.name}-{use.name}-",
                "namespace": namespace,
                "labels": metadata.get("labels") or {},
                "annotations": {**(metadata.get("annotations") or {}), POD_CLAIM_NAME_ANNOTATION: use.name},
                "ownerReferences": [owner_reference(PODS, pod)],
            },
            "spec": template["spec"]["spec"],
        }
        written = await self._client.create(RESOURCE_CLAIMS, body)
        await self._claims.reached(written["metadata"]["resourceVersion"])
        name: str = written["metadata"]["name"]
        return name

    async def _release(self, claim: ResourceClaim) -> None:
        """Drops consumers that are done; without any the claim is deallocated, and deleted if it was made for a pod."""
        metadata = claim.metadata
        users = [consumer for consumer in claim.status.reserved_for if self._in_use(claim, consumer)]
        gone = len(users) < len(claim.status.reserved_for)
        unused = not users and (gone or metadata.deletion_timestamp is not None)
        if gone or (unused and claim.status.allocation is not None):
            status: dict[str, Any] = {"reservedFor": msgspec.to_builtins(users) or None}
            if unused:
                status |= {"allocation": None, "devices": None}
            patch = {"metadata": {"resourceVersion": metadata.resource_version, "uid": metadata.uid}, "status": status}
            claim = await self._patch(claim, patch, subresource="status")
        if unused and FINALIZER in metadata.finalizers and claim.status.allocation is None:
            finalizers = [name for name in metadata.finalizers if name != FINALIZER]
            version = claim.metadata.resource_version
            claim = await self._patch(claim, {"metadata": {"resourceVersion": version, "finalizers": finalizers}})
        owner = metadata.controller()
        generated = metadata.annotations.keys() & {POD_CLAIM_NAME_ANNOTATION, EXTENDED_RESOURCE_CLAIM_ANNOTATION}
        if owner is None or owner.kind != "Pod" or not generated or users or metadata.deletion_timestamp is not None:
            return
        pod = self._caches.pods.get(owner.name, metadata.namespace)
        if pod is not None and (pod.metadata.uid != owner.uid or is_done(pod)):
            # The claim of a finished pod is of no use; that of a pod which is gone is the garbage collector's.
            await self._client.delete(RESOURCE_CLAIMS, metadata.name, metadata.namespace, uid=metadata.uid)

    async def _patch(self, claim: ResourceClaim, patch: kube.Body, subresource: str = "") -> ResourceClaim:
        name, namespace = claim.metadata.name, claim.metadata.namespace
        written = await self._client.patch(RESOURCE_CLAIMS, name, namespace, patch=patch, subresource=subresource)
        return msgspec.convert(written, ResourceClaim)

    def _in_use(self, claim: ResourceClaim, consumer: ConsumerReference) -> bool:
        """Consumers of other kinds (gangs) are released by whoever reserved the claim for them."""
        if consumer.api_group or consumer.resource != "pods":
            return True
        pod = self._caches.pods.get(consumer.name, claim.metadata.namespace)
        return pod is not None and pod.metadata.uid == consumer.uid and not is_done(pod)


def is_done(pod: Pod | None) -> bool:
    """Will never use its claims again: gone, finished, or deleted before it was given a node."""
    if pod is None or is_finished(pod):
        return True
    return pod.metadata.deletion_timestamp is not None and not pod.spec.node_name


def claim_name(pod: Pod, use: PodResourceClaim) -> str | None:
    """The claim behind a pod's local claim name, None while it is not made."""
    if use.resource_claim_name:
        return use.resource_claim_name
    return next((s.resource_claim_name for s in pod.status.resource_claim_statuses if s.name == use.name), None)
