"""Volumes: where a pod's PersistentVolumeClaims let it run, and what is bound or made for them there.

The rules of kube-scheduler's VolumeBinding, VolumeZone and VolumeRestrictions plugins: a bound volume has to be
reachable from the node; a claim that waits for its first consumer takes the smallest free volume that suits the node,
or has one made there; a ReadWriteOncePod claim serves one pod.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from capstan.api import quantity
from capstan.api.core import PersistentVolume, PersistentVolumeClaim
from capstan.api.storage import ON_FIRST_CONSUMER
from capstan.scheduling.model import Node, Status, Task

if TYPE_CHECKING:
    from capstan.scheduling.world import World

SELECTED_NODE = "volume.kubernetes.io/selected-node"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
ONE_POD = "ReadWriteOncePod"
_PLACES = (
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
)
"""Labels of volumes that tie them to nodes with the same label; several values are joined by two underscores."""

Choices = tuple[tuple[str, str], ...]
"""(claim, volume to bind it to; empty: one is made on the node) for every claim that is still unbound."""


def choose(world: World, task: Task, node: Node, *, later: bool) -> Choices | str:
    """What happens to the pod's unbound claims on the node; a text says why the node is out of question."""
    choices: list[tuple[str, str]] = []
    for name in task.volumes:
        claim = world.volume_claims.get((task.namespace, name))
        if claim is None:
            return f"persistent volume claim {name} does not exist"
        if claim.metadata.deletion_timestamp:
            return f"persistent volume claim {name} is being deleted"
        if ONE_POD in claim.spec.access_modes and (other := _user(world, task, name, later)):
            return f"claim {name} is {ONE_POD} and pod {other} uses it"
        if claim.spec.volume_name:
            volume = world.volumes.get(claim.spec.volume_name)
            if volume is not None and not reachable(volume, node):
                return f"volume of claim {name} is not reachable from the node"
            continue
        found = _bind(world, task, claim, node, {volume for _, volume in choices})
        if found is None:
            return _unbound(world, claim, node)
        choices.append((name, found))
    return tuple(choices)


def _bind(world: World, task: Task, claim: PersistentVolumeClaim, node: Node, taken: set[str]) -> str | None:
    """The volume for an unbound claim, empty to have one made, None when neither is possible on the node."""
    storage_class = world.storage_classes.get(claim.spec.storage_class_name or "")
    if storage_class is None or storage_class.volume_binding_mode != ON_FIRST_CONSUMER:
        return None
    selected = claim.metadata.annotations.get(SELECTED_NODE, "")
    if selected:
        return "" if selected == node.name else None
    suited = [
        volume
        for volume in world.volumes.values()
        if volume.metadata.name not in taken and _suits(volume, claim) and reachable(volume, node)
    ]
    promised = set(_promised(world, task))
    for volume in sorted(suited, key=lambda v: (quantity.parse(v.spec.capacity["storage"]), v.metadata.name)):
        if volume.metadata.name not in promised:
            return volume.metadata.name
    if storage_class.provisioner == NO_PROVISIONER:
        return None
    terms = storage_class.allowed_topologies
    return "" if not terms or any(term.matches(node.labels) for term in terms) else None


def _unbound(world: World, claim: PersistentVolumeClaim, node: Node) -> str:
    name, class_name = claim.metadata.name, claim.spec.storage_class_name or ""
    storage_class = world.storage_classes.get(class_name)
    if class_name and storage_class is None:
        return f"claim {name} is not bound and its storage class {class_name} does not exist"
    if storage_class is None or storage_class.volume_binding_mode != ON_FIRST_CONSUMER:
        return f"claim {name} is not bound yet, and its class binds before pods are placed"
    if selected := claim.metadata.annotations.get(SELECTED_NODE, ""):
        return f"the volume of claim {name} is being made on node {selected}"
    if storage_class.provisioner == NO_PROVISIONER:
        return f"no free volume of class {class_name} suits claim {name} on the node"
    return f"class {class_name} makes no volumes on nodes like this"


def reachable(volume: PersistentVolume, node: Node) -> bool:
    """By the volume's node affinity and by its zone labels."""
    affinity = volume.spec.node_affinity
    required = affinity.required if affinity is not None else None
    if required is not None and not required.matches(node.name, node.labels):
        return False
    labels = volume.metadata.labels
    return all(node.labels.get(key) in labels[key].split("__") for key in _PLACES if key in labels)


def _suits(volume: PersistentVolume, claim: PersistentVolumeClaim) -> bool:
    """Whether a volume is free for the claim and as large and as usable as it asks for."""
    spec, wanted, owner = volume.spec, claim.spec, volume.spec.claim_ref
    if owner is not None and (owner.namespace, owner.name) != claim.key:
        return False
    if spec.storage_class_name != (wanted.storage_class_name or "") or "storage" not in spec.capacity:
        return False
    if not set(wanted.access_modes) <= set(spec.access_modes) or spec.volume_mode != wanted.volume_mode:
        return False
    if wanted.selector is not None and not wanted.selector.matches(volume.metadata.labels):
        return False
    asked = wanted.resources.requests.get("storage", "0")
    try:
        return quantity.parse(spec.capacity["storage"]) >= quantity.parse(asked)
    except quantity.InvalidQuantity:
        return False


def _promised(world: World, but: Task) -> Iterator[str]:
    """Volumes that other pods were given and the cluster does not show as bound yet."""
    for uid in world.volume_users:
        other = world.tasks[uid]
        if other is not but and other.node is not None:
            yield from (volume for _, volume in other.volume_choices if volume)


def _user(world: World, task: Task, claim: str, later: bool) -> str:
    """Another pod that holds the claim; with `later` those that are ending do not count."""
    for uid in world.volume_users:
        other = world.tasks[uid]
        if other is task or other.node is None or other.namespace != task.namespace or claim not in other.volumes:
            continue
        if not (later and other.status == Status.RELEASING):
            return other.name
    return ""
