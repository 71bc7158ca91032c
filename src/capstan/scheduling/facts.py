"""What single API objects say about scheduling, reduced to the words of `model`."""

from __future__ import annotations

import msgspec

from capstan.api import clock, quantity
from capstan.api.core import Pod
from capstan.api.resource import ResourceSlice
from capstan.scheduling.model import Node, Zone, Zones

NUMA_ANNOTATION = "platform.capstan.dev/numa"
"""On nodes the zones that the topology manager reports (JSON), on pods the zones they were placed in."""
GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"
GPU_GROUP_LABEL = "runai-gpu-group"


class _NumaReport(msgspec.Struct):
    policy: str = "none"
    zones: dict[str, dict[str, str]] = {}


def read_numa(node: Node, text: str) -> None:
    if not text:
        return
    try:
        report = msgspec.json.decode(text, type=_NumaReport)
    except msgspec.MsgspecError:
        return  # an unreadable report is no report: the node then aligns nothing, as before it was written
    node.numa_policy = report.policy
    node.zones = [
        Zone(
            name,
            {
                resource: quantity.milli(amount) if resource == "cpu" else quantity.whole(amount)
                for resource, amount in amounts.items()
            },
        )
        for name, amounts in sorted(report.zones.items())
    ]


def numa_zones(pod: Pod) -> Zones:
    """The zones a pod is placed in: JSON, zone -> resource -> quantity; an unreadable text says nothing."""
    text = pod.metadata.annotations.get(NUMA_ANNOTATION, "")
    if not text:
        return ()
    try:
        placed = msgspec.json.decode(text, type=dict[str, dict[str, str]])
        return tuple(
            (zone, resource, quantity.milli(amount) if resource == "cpu" else quantity.whole(amount))
            for zone, amounts in sorted(placed.items())
            for resource, amount in sorted(amounts.items())
        )
    except (msgspec.MsgspecError, quantity.InvalidQuantity):
        return ()


def numa_text(zones: Zones) -> str:
    """What `numa_zones` reads."""
    placed: dict[str, dict[str, str]] = {}
    for zone, resource, amount in zones:
        placed.setdefault(zone, {})[resource] = f"{amount}m" if resource == "cpu" else str(amount)
    return msgspec.json.encode(placed).decode()


def reads_alike(before: Pod, after: Pod) -> bool:
    """Whether two states of a pod differ in nothing that the engine reads: most changes of a pod are its conditions."""
    old, new = before.metadata, after.metadata
    was, is_ = before.status, after.status
    return (
        was.phase == is_.phase
        and before.spec == after.spec
        and old.labels == new.labels
        and old.annotations == new.annotations
        and old.deletion_timestamp == new.deletion_timestamp
        and (old.namespace, old.name) == (new.namespace, new.name)
        and was.start_time == is_.start_time
        and was.nominated_node_name == is_.nominated_node_name
        and was.resource_claim_statuses == is_.resource_claim_statuses
        and was.container_statuses == is_.container_statuses
    )


def shared_devices(pod: Pod, count: int) -> tuple[str, ...]:
    """The shared devices a pod runs on: KAI's group labels (`runai-gpu-group`, or one label a group)."""
    labels = pod.metadata.labels
    several = sorted(key.partition("/")[2] for key in labels if key.startswith(GPU_GROUP_LABEL + "/"))
    if several:
        return tuple(several[:count])
    single = labels.get(GPU_GROUP_LABEL) or pod.metadata.annotations.get(GPU_GROUP_LABEL)
    return (single,) if single else tuple(f"{pod.metadata.name}-{i}" for i in range(count))


def claim_names(pod: Pod) -> tuple[tuple[str, str | None], ...]:
    generated = {status.name: status.resource_claim_name for status in pod.status.resource_claim_statuses}
    return tuple(
        (claim.name, claim.resource_claim_name or generated.get(claim.name)) for claim in pod.spec.resource_claims
    )


def finished(pod: Pod) -> float:
    """When the last container of a pod ended; 0 while one has not."""
    ends = [clock.parse((status.state.terminated or {}).get("finishedAt")) for status in pod.status.container_statuses]
    return max(ends) if ends and all(ends) else 0.0


def role(labels: dict[str, str]) -> int:
    """Leaders of a distributed job are placed before its workers."""
    kind = labels.get("training.kubeflow.org/job-role") or labels.get("training.kubeflow.org/replica-type", "")
    leads = kind.lower() in ("master", "launcher") or labels.get("ray.io/node-type") == "head"
    return 0 if leads else 1


def gpu_memory(labels: dict[str, str]) -> int:
    text = labels.get(GPU_MEMORY_LABEL, "")
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else 0


def largest_memory(slice_: ResourceSlice) -> int:
    """MiB of the largest device of a slice."""
    amounts = [
        quantity.whole(capacity.value)
        for device in slice_.spec.devices
        for name, capacity in device.capacity.items()
        if name.rpartition("/")[2] == "memory"
    ]
    return max(amounts, default=0) >> 20


encode = msgspec.msgpack.Encoder(order="deterministic").encode
"""Equal objects give equal bytes; the World compares them to see whether anything it reads has changed."""
