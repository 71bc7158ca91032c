"""storage.k8s.io/v1 as far as scheduling reads it."""

from __future__ import annotations

from capstan.api.base import Object, Struct

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
