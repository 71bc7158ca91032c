"""Volumes: where a pod's PersistentVolumeClaims let it run, and what is bound or made for them there.

The rules of kube-scheduler's VolumeBinding, VolumeZone and VolumeRestrictions plugins: a bound volume has to be
reachable from the node; a claim that waits for its first consumer takes the smallest free volume that suits the node,
or has one made there; a ReadWriteOncePod claim serves one pod.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from decimal import Decimal
from heapq import merge
from typing import TYPE_CHECKING

from capstan.api import quantity
from capstan.api.core import PersistentVolume, PersistentVolumeClaim
from capstan.api.storage import NO_PROVISIONER, ON_FIRST_CONSUMER, SELECTED_NODE, suits
from capstan.scheduling.model import Node, Status, Task

if TYPE_CHECKING:
    from capstan.scheduling.world import World

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
    promised = _promised(world)
    for volume in world.free_volumes.smallest_first(claim, node):
        name = volume.metadata.name
        if name not in taken and name not in promised and suits(volume, claim) and reachable(volume, node):
            return name
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


def _promised(world: World) -> frozenset[str]:
    """Volumes that pods were given and the cluster does not show as bound yet. Every change of that moves a pod."""
    as_of = (world.layout, len(world.touched))
    if world.promised_volumes[0] != as_of:
        users = {uid for uids in world.volume_users.values() for uid in uids}
        placed = (other for uid in users if (other := world.tasks[uid]).node is not None)
        world.promised_volumes = (as_of, frozenset(v for other in placed for _, v in other.volume_choices if v))
    return world.promised_volumes[1]


def _user(world: World, task: Task, claim: str, later: bool) -> str:
    """Another pod that holds the claim; with `later` those that are ending do not count."""
    for uid in world.volume_users.get((task.namespace, claim), ()):
        other = world.tasks[uid]
        if other is not task and other.node is not None and not (later and other.status == Status.RELEASING):
            return other.name
    return ""


Place = tuple[str, str]
"""A node label and its value."""
_ANYWHERE: Place = ("", "")


class FreeVolumes:
    """The PersistentVolumes that no claim has, by storage class and by where they can be reached, smallest first."""

    def __init__(self) -> None:
        self._volumes: dict[str, PersistentVolume] = {}
        self._shelf: dict[str, tuple[str, Place]] = {}
        """Volume -> the shelf it is on."""
        self._shelves: dict[str, dict[Place, list[tuple[Decimal, str]]]] = {}
        """Storage class -> place -> (bytes, volume), sorted."""
        self._reserved: dict[tuple[str, str], dict[str, None]] = {}
        """Claim -> volumes that name it."""

    def put(self, volume: PersistentVolume) -> None:
        """A volume as it is now; one that says no size suits no claim and is left out."""
        name = volume.metadata.name
        self.remove(name)
        try:
            size = quantity.parse(volume.spec.capacity.get("storage"))
        except quantity.InvalidQuantity:
            return
        self._volumes[name] = volume
        owner = volume.spec.claim_ref
        if owner is not None:
            self._reserved.setdefault((owner.namespace, owner.name), {})[name] = None
            return
        self._shelf[name] = (volume.spec.storage_class_name, _place(volume))
        insort(self._at(name), (size, name))

    def remove(self, name: str) -> None:
        volume = self._volumes.pop(name, None)
        if volume is None:
            return
        owner = volume.spec.claim_ref
        if owner is not None:
            key = (owner.namespace, owner.name)
            del self._reserved[key][name]
            if not self._reserved[key]:
                del self._reserved[key]
            return
        shelf = self._at(name)
        entry = (quantity.parse(volume.spec.capacity.get("storage")), name)
        del shelf[bisect_left(shelf, entry)]
        storage_class, place = self._shelf.pop(name)
        if not shelf:
            del self._shelves[storage_class][place]

    def smallest_first(self, claim: PersistentVolumeClaim, node: Node) -> Iterator[PersistentVolume]:
        """Those that name the claim, then those of its class that may be reachable from the node."""
        for name in self._reserved.get(claim.key, ()):
            yield self._volumes[name]
        shelves = self._shelves.get(claim.spec.storage_class_name or "", {})
        places = {_ANYWHERE, *((key, node.labels[key]) for key in {k for k, _ in shelves} if key in node.labels)}
        for _, name in merge(*(shelves[place] for place in places if place in shelves)):
            yield self._volumes[name]

    def _at(self, name: str) -> list[tuple[Decimal, str]]:
        storage_class, place = self._shelf[name]
        return self._shelves.setdefault(storage_class, {}).setdefault(place, [])


def _place(volume: PersistentVolume) -> Place:
    """A label that every node has from which the volume can be reached; none if it names no single value."""
    required = volume.spec.node_affinity.required if volume.spec.node_affinity is not None else None
    if required is not None and len(required.node_selector_terms) == 1:
        for wanted in required.node_selector_terms[0].match_expressions:
            if wanted.operator == "In" and len(wanted.values) == 1:
                return (wanted.key, wanted.values[0])
    labels = volume.metadata.labels
    return next(((key, labels[key]) for key in _PLACES if key in labels and "__" not in labels[key]), _ANYWHERE)
