"""Grove: its operator says in a PodGang which cliques of pods start together; the pods name it by a label."""

from __future__ import annotations

from capstan.grouping.gang import (
    Gang,
    Related,
    SubGroup,
    Workload,
    annotations_of,
    dns_label,
    labels_of,
)
from capstan.grouping.reading import Field, InvalidWorkload

_GANG_LABEL = "grove.io/podgang"
_CLIQUE_LABEL = "grove.io/podclique"
_TOPOLOGY_ANNOTATION = "grove.io/topology-name"


def related(workload: Workload) -> Related | None:
    """The PodGang of a pod."""
    name = labels_of(workload.pod).get(_GANG_LABEL)
    return Related(("scheduler.grove.io/v1alpha1",), "PodGang", name) if name else None


def pod_gang(workload: Workload) -> Gang:
    """Each clique is a leaf; cliques that share a topology constraint have a parent."""
    workload.pod_label(_GANG_LABEL)
    if workload.related is None:
        raise InvalidWorkload(workload.pod, f"metadata.labels[{_GANG_LABEL}]", "the PodGang does not exist (yet)")
    gang = workload.related
    spec = Field.of(gang)["spec"]
    topology = annotations_of(gang).get(_TOPOLOGY_ANNOTATION) or workload.annotation(_TOPOLOGY_ANNOTATION) or ""
    parents: dict[str, str] = {}
    groups: list[SubGroup] = []
    for config in spec["topologyConstraintGroupConfigs"].items():
        name = dns_label(config["name"].name())
        members = [dns_label(member.name()) for member in config["podGroupNames"].items()]
        if not members:
            continue
        for member in members:
            if parents.setdefault(member, name) != name:
                raise config["podGroupNames"].wrong(f"{member} is already in {parents[member]}; name it once")
        constraint = _constraint(config["topologyConstraint"], topology)
        groups.append(SubGroup(name, min_sub_group=len(set(members)), topology=constraint))
    for clique in spec["podgroups"].items():
        name = dns_label(clique["name"].name())
        constraint = _constraint(clique["topologyConstraint"], topology)
        minimum = clique["minReplicas"].count(1)
        groups.append(SubGroup(name, min_member=minimum, parent=parents.get(name, ""), topology=constraint))
    return Gang(
        gang,
        "train",
        sub_groups=groups,
        subgroup=dns_label(workload.pod_label(_CLIQUE_LABEL)),
        priority_class=spec["priorityClassName"].text(),
        topology=_constraint(spec["topologyConstraint"], topology) or None,
    )


def _constraint(field: Field, topology: str) -> dict[str, str]:
    pack = field["packConstraint"]
    levels = {"requiredTopologyLevel": pack["required"].text(), "preferredTopologyLevel": pack["preferred"].text()}
    found = {name: level for name, level in levels.items() if level}
    if found and not topology:
        raise field.wrong(f"needs a Topology; name it in the annotation {_TOPOLOGY_ANNOTATION} of the PodGang")
    return {"topology": topology} | found if found else {}
