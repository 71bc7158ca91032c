"""LeaderWorkerSets: one gang per group of a leader with its workers."""

from __future__ import annotations

from capstan.grouping import segments
from capstan.grouping.gang import Gang, SubGroup, Workload, template_topology
from capstan.grouping.reading import Field

_GROUP_LABEL = "leaderworkerset.sigs.k8s.io/group-index"
_WORKER_LABEL = "leaderworkerset.sigs.k8s.io/worker-index"


def leader_worker_set(workload: Workload) -> Gang:
    """Leader and workers start together; with LeaderReady the workers join once the leader has a node.

    Until then they do not exist, and the leader would wait for them forever.
    """
    template = workload.spec["leaderWorkerTemplate"]
    group, index = workload.pod_index(_GROUP_LABEL), workload.pod_index(_WORKER_LABEL)
    workers = max(template["size"].count(1) - 1, 0)
    leader = template["leaderTemplate" if template["leaderTemplate"].exists else "workerTemplate"]
    groups = [SubGroup("leader", min_member=1, topology=template_topology(workload, leader))]
    waits = index == 0 and not Field.of(workload.pod)["spec"]["nodeName"].text()
    size = None
    if workers and not (waits and workload.spec["startupPolicy"].text() == "LeaderReady"):
        parts, size = segments.workers(workload, "workers", workers, workers, template["workerTemplate"])
        groups += parts
    leaf = "leader" if index == 0 else segments.leaf_of("workers", size, workers, index - 1)
    return Gang(workload.top, "train", sub_groups=groups, subgroup=leaf, name_suffix=f"group-{group}")
