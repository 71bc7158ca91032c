"""storage.k8s.io/v1 as far as scheduling reads it."""

from __future__ import annotations

from capstan.api import quantity
from capstan.api.base import Object, Struct
from capstan.api.core import PersistentVolume, PersistentVolumeClaim

SELECTED_NODE = "volume.kubernetes.io/selected-node"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
IMMEDIATE, ON_FIRST_CONSUMER = "Immediate", "WaitForFirstConsumer"


class TopologySelectorRequirement(Struct):
    key: str = ""
    values: list[str] = []


class TopologySelectorTerm(Struct):
    match_label_expressions: list[TopologySelectorRequirement] = []

    def matches(self, labels: dict[str, str]) -> bool:
        return all(labels.get(wanted.key) in wanted.values for wanted in self.match_label_expressions)


class StorageClass(Object):
    provisioner: str = ""
    volume_binding_mode: str = IMMEDIATE
    allowed_topologies: list[TopologySelectorTerm] = []


def suits(volume: PersistentVolume, claim: PersistentVolumeClaim) -> bool:
    """Whether a volume is free for the claim and as large and as usable as it asks for."""
    spec, wanted, owner = volume.spec, claim.spec, volume.spec.claim_ref
    if owner is not None and ((owner.namespace, owner.name) != claim.key or owner.uid not in ("", claim.metadata.uid)):
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
