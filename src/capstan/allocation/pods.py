"""Claims that nobody wrote: what a pod asks for in extended resources (KEP-5004) or GPU shares (KAI's annotations).

`nvidia.com/gpu: 2` becomes two devices of the class that backs the resource. `gpu-fraction: "0.5"` and `gpu-memory:
"8192"` (MiB) become a share of the memory of a device of the class gpu.nvidia.com. A fraction is of the device that
gets chosen, so the claim carries it in an annotation until then, and `resolved` writes the amount down.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from fractions import Fraction

import msgspec

from capstan.allocation.capacity import MEMORY
from capstan.allocation.claims import FRACTION_ANNOTATION, MEBIBYTE
from capstan.allocation.inventory import Inventory
from capstan.allocation.model import InvalidPodRequest
from capstan.api import quantity
from capstan.api.base import ObjectMeta, OwnerReference
from capstan.api.core import Container, ExtendedResourceRequestMapping, Pod
from capstan.api.resource import (
    EXTENDED_RESOURCE_CLAIM_ANNOTATION,
    AllocationResult,
    CapacityRequirements,
    DeviceClaim,
    DeviceRequest,
    ExactDeviceRequest,
    ResourceClaim,
    ResourceClaimSpec,
)

GPU_CLASS = "gpu.nvidia.com"
GPU_RESOURCE = "nvidia.com/gpu"
FRACTION = "gpu-fraction"
MEMORY_MIB = "gpu-memory"
DEVICES = "gpu-fraction-num-devices"
CONTAINER = "gpu-fraction-container-name"

_DECIMAL = re.compile(r"0?\.[0-9]{1,9}|0\.[0-9]{1,9}")
_MAX_NAME = 253


def claim_for_pod(pod: Pod, inventory: Inventory) -> ResourceClaim | None:
    """The claim that the pod's extended resources and share annotations stand for; None if they stand for none.

    Its name is derived from the pod's UID, so that asking twice gives the same claim. Raises InvalidPodRequest for
    annotations that make no sense.
    """
    requests = [request for _, _, request in _requests(pod, inventory)]
    if not requests:
        return None
    metadata = pod.metadata
    annotations = {EXTENDED_RESOURCE_CLAIM_ANNOTATION: "true"}
    if FRACTION in metadata.annotations:
        annotations[FRACTION_ANNOTATION] = str(_fraction(metadata.annotations[FRACTION]))
    owner = OwnerReference(
        api_version="v1", kind="Pod", name=metadata.name, uid=metadata.uid, controller=True, block_owner_deletion=True
    )
    suffix = hashlib.sha256(f"{metadata.namespace}/{metadata.name}/{metadata.uid}".encode()).hexdigest()[:10]
    tail = f"-extended-resources-{suffix}"
    return ResourceClaim(
        api_version="resource.k8s.io/v1",
        kind="ResourceClaim",
        metadata=ObjectMeta(
            name=metadata.name[: _MAX_NAME - len(tail)] + tail,
            namespace=metadata.namespace,
            annotations=annotations,
            owner_references=[owner],
        ),
        spec=ResourceClaimSpec(devices=DeviceClaim(requests=requests)),
    )


def request_mappings(pod: Pod, inventory: Inventory) -> list[ExtendedResourceRequestMapping]:
    """`status.extendedResourceClaimStatus.requestMappings` for the claim of `claim_for_pod`."""
    return [
        ExtendedResourceRequestMapping(container_name=container.name, resource_name=resource, request_name=request.name)
        for container, resource, request in _requests(pod, inventory)
    ]


def resolved(claim: ResourceClaim, allocation: AllocationResult) -> ResourceClaim:
    """The claim as it is written to the API server once its devices are chosen: a fraction has become an amount of
    memory."""
    if FRACTION_ANNOTATION not in claim.metadata.annotations:
        return claim
    amounts = {
        result.request: amount
        for result in allocation.devices.results
        for name, amount in result.consumed_capacity.items()
        if name.rpartition("/")[2] == MEMORY
    }
    requests = []
    for request in claim.spec.devices.requests:
        exactly = request.exactly
        if exactly is not None and request.name in amounts:
            capacity = CapacityRequirements(requests={MEMORY: amounts[request.name]})
            exactly = msgspec.structs.replace(exactly, capacity=capacity)
        requests.append(msgspec.structs.replace(request, exactly=exactly))
    annotations = {name: text for name, text in claim.metadata.annotations.items() if name != FRACTION_ANNOTATION}
    return msgspec.structs.replace(
        claim,
        metadata=msgspec.structs.replace(claim.metadata, annotations=annotations),
        spec=ResourceClaimSpec(devices=msgspec.structs.replace(claim.spec.devices, requests=requests)),
    )


def _requests(pod: Pod, inventory: Inventory) -> Iterator[tuple[Container, str, DeviceRequest]]:
    """(container, extended resource, request); init containers are numbered first, as KEP-5004 numbers them."""
    shared = _share(pod)
    containers = [*pod.spec.init_containers, *pod.spec.containers]
    for position, container in enumerate(containers):
        number = 0
        for resource, amount in sorted({**container.resources.requests, **container.resources.limits}.items()):
            name = inventory.class_for_extended_resource(resource)
            count = quantity.whole(amount) if name is not None else 0
            if name is None or not count:
                continue
            if shared is not None and name == GPU_CLASS:
                raise InvalidPodRequest(f"it asks for {resource} and for a share of a GPU; remove one of them")
            exactly = ExactDeviceRequest(device_class_name=name, count=count)
            yield container, resource, DeviceRequest(name=f"container-{position}-request-{number}", exactly=exactly)
            number += 1
        if shared is not None and container is shared[0]:
            yield (
                container,
                GPU_RESOURCE,
                DeviceRequest(name=f"container-{position}-request-{number}", exactly=shared[1]),
            )


def _share(pod: Pod) -> tuple[Container, ExactDeviceRequest] | None:
    annotations = pod.metadata.annotations
    if FRACTION not in annotations and MEMORY_MIB not in annotations:
        return None
    if FRACTION in annotations and MEMORY_MIB in annotations:
        raise InvalidPodRequest(f"it has the annotations {FRACTION} and {MEMORY_MIB}; remove one of them")
    wanted = annotations.get(CONTAINER, "")
    containers = [*pod.spec.init_containers, *pod.spec.containers] if wanted else pod.spec.containers
    container = next((c for c in containers if not wanted or c.name == wanted), None)
    if container is None:
        raise InvalidPodRequest(f"the annotation {CONTAINER} names {wanted!r}, which is no container of the pod")
    exactly = ExactDeviceRequest(device_class_name=GPU_CLASS, count=_positive(DEVICES, annotations.get(DEVICES, "1")))
    if FRACTION in annotations:
        _fraction(annotations[FRACTION])
    else:
        memory = _positive(MEMORY_MIB, annotations[MEMORY_MIB]) * MEBIBYTE
        exactly.capacity = CapacityRequirements(requests={MEMORY: quantity.render(memory)})
    return container, exactly


def _fraction(text: str) -> Fraction:
    """The fraction that `gpu-fraction` asks for: more than 0 and less than 1."""
    value = Fraction(text) if _DECIMAL.fullmatch(text) else Fraction(0)
    if not 0 < value < 1:
        raise InvalidPodRequest(f"the annotation {FRACTION} is {text!r}; write a decimal number above 0 and below 1")
    return value


def _positive(annotation: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) == 0:
        raise InvalidPodRequest(f"the annotation {annotation} is {text!r}; write a whole number above 0")
    return int(text)
