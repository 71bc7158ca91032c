"""Ray clusters, alone or made by a RayJob or a RayService: the head and the minimum of every worker group."""

from __future__ import annotations

from capstan.grouping.gang import Gang, SubGroup, Workload, dns_label, labels_of, template_topology
from capstan.grouping.reading import Field

_HEAD = "headgroup"
_PRIORITY_LABEL = "ray.io/priority-class-name"


def cluster(workload: Workload) -> Gang:
    """Each RayCluster is a gang: a RayService that is updated has two, a RayJob that is tried again the next one.

    The pod that submits a RayJob belongs to no cluster and starts alone, when the cluster is up.
    """
    found = workload.owner("ray.io", "RayCluster")
    if found is None:
        return Gang(workload.owners[0], "train")
    spec = Field.of(found)["spec"]
    head = spec["headGroupSpec"]
    groups = [SubGroup(_HEAD, min_member=1, topology=template_topology(workload, head["template"]))]
    scales = spec["enableInTreeAutoscaling"].flag()
    for group in spec["workerGroupSpecs"].items():
        minimum = 0 if group["suspend"].flag() else _minimum(group, scales=scales)
        topology = template_topology(workload, group["template"])
        groups.append(SubGroup(dns_label(group["groupName"].name()), min_member=minimum, topology=topology))
    is_head = labels_of(workload.pod).get("ray.io/node-type") == "head"
    leaf = _HEAD if is_head else dns_label(workload.pod_label("ray.io/group"))
    priority = workload.label(_PRIORITY_LABEL) or labels_of(found).get(_PRIORITY_LABEL, "")
    return Gang(found, "train", sub_groups=groups, subgroup=leaf, priority_class=priority)


def _minimum(group: Field, *, scales: bool) -> int:
    """Pods of a worker group. 0 is what Ray fills in for a missing minReplicas: only an autoscaler starts from it."""
    hosts, least = group["numOfHosts"].count(1), group["minReplicas"].count()
    pods = hosts * (least or (0 if scales else group["replicas"].count(1)))
    if pods >= 2**31:
        raise group.wrong(f"{pods} pods are more than Kubernetes can count; lower replicas or numOfHosts")
    return pods
