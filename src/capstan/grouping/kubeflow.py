"""Kubeflow's training jobs: all replicas start together, unless the job says that fewer are enough."""

from __future__ import annotations

from capstan.grouping import segments
from capstan.grouping.gang import Gang, SubGroup, Workload, template_topology
from capstan.grouping.reading import Field

REPLICAS = {
    "TFJob": "tfReplicaSpecs",
    "XGBoostJob": "xgbReplicaSpecs",
    "PyTorchJob": "pytorchReplicaSpecs",
    "JAXJob": "jaxReplicaSpecs",
    "MPIJob": "mpiReplicaSpecs",
}
_ROLE_LABELS = ("training.kubeflow.org/replica-type", "replica-type")
_INDEX_LABELS = ("training.kubeflow.org/replica-index", "replica-index")


def training(workload: Workload) -> Gang:
    """TFJob, XGBoostJob and JAXJob."""
    replicas = _replicas(workload)
    if workload.top.get("kind") == "JAXJob" and not replicas["Worker"].exists:
        raise replicas["Worker"].wrong("missing; a JAXJob has no other replicas")
    return Gang(workload.top, "train", min_member=_minimum(workload, sum(_sizes(replicas).values())))


def pytorch(workload: Workload) -> Gang:
    """PyTorchJob: master and workers are subgroups; workers may form segments."""
    replicas = _replicas(workload)
    sizes = _sizes(replicas)
    unknown = sizes.keys() - {"Master", "Worker"}
    if unknown:
        raise replicas[min(unknown)].wrong("not known; a PyTorchJob has Master and Worker")
    minimum = _minimum(workload, sum(sizes.values()))
    masters, pods = sizes.get("Master", 0), sizes.get("Worker", 0)
    groups: list[SubGroup] = []
    if masters:
        topology = template_topology(workload, replicas["Master"]["template"])
        groups.append(SubGroup("master", min_member=min(masters, minimum), topology=topology))
    size = None
    if pods:
        needed, template = minimum - min(masters, minimum), replicas["Worker"]["template"]
        parts, size = segments.workers(workload, "worker", pods, needed, template)
        groups += parts
    role = workload.pod_label(*_ROLE_LABELS).lower()
    if role == "worker" and size is not None:
        role = segments.leaf_of("worker", size, pods, workload.pod_index(*_INDEX_LABELS))
    return Gang(workload.top, "train", sub_groups=groups, subgroup=role)


def mpi(workload: Workload) -> Gang:
    """MPIJob: a launcher that waits for the workers is made after them, so they cannot wait for it."""
    sizes = _sizes(_replicas(workload))
    late = workload.spec["launcherCreationPolicy"].text() == "WaitForWorkersReady"
    first = sum(size for role, size in sizes.items() if not (late and role == "Launcher"))
    return Gang(workload.top, "train", min_member=_minimum(workload, first))


def _replicas(workload: Workload) -> Field:
    replicas = workload.spec[REPLICAS[workload.top["kind"]]]
    if not replicas.mapping():
        raise replicas.wrong("missing; say how many replicas of which role the job has")
    return replicas


def _sizes(replicas: Field) -> dict[str, int]:
    return {role: entry["replicas"].count(1) for role, entry in replicas.entries()}


def _minimum(workload: Workload, total: int) -> int:
    """The job's own minimum, else its elastic one, else everything; at least the pod that is there."""
    elastic = workload.spec["elasticPolicy"]
    policy = workload.spec["runPolicy"]["schedulingPolicy"]["minAvailable"]
    most = max(total, elastic["maxReplicas"].count())
    if policy.count() > most:
        raise policy.wrong(f"{policy.value} pods are needed but the job never has more than {most}; lower it")
    return max(1, policy.count() or elastic["minReplicas"].count() or total)
