"""JobSets: every replicated job is a part of the gang, and every Job of it a part of that."""

from __future__ import annotations

from capstan.grouping.gang import MOST_SUB_GROUPS, Gang, SubGroup, Workload, dns_label, template_topology

_JOB_LABEL = "jobset.sigs.k8s.io/replicatedjob-name"
_INDEX_LABEL = "jobset.sigs.k8s.io/job-index"


def job_set(workload: Workload) -> Gang:
    """All replicated jobs start together, except those that JobSet itself starts after others."""
    spec = workload.spec
    groups: list[SubGroup] = []
    first = 0
    for job in spec["replicatedJobs"].items():
        name = job["name"].name()
        replicas, pods = job["replicas"].count(1), job["template"]["spec"]["parallelism"].count(1)
        completions = job["template"]["spec"]["completions"]
        if completions.exists:
            pods = min(pods, completions.count())
        if not (replicas and pods):
            continue
        if len(groups) + replicas >= MOST_SUB_GROUPS:
            raise job["replicas"].wrong(f"the gang has more than {MOST_SUB_GROUPS} parts; use fewer, larger Jobs")
        topology = template_topology(workload, job["template"])
        groups.append(SubGroup(dns_label(name), min_sub_group=replicas, topology=topology))
        groups += [SubGroup(_leaf(name, i), min_member=pods, parent=dns_label(name)) for i in range(replicas)]
        first += not job["dependsOn"].items()
    if spec["startupPolicy"]["startupPolicyOrder"].text() == "InOrder":
        first = 1
    leaf = _leaf(workload.pod_label(_JOB_LABEL), workload.pod_index(_INDEX_LABEL))
    return Gang(workload.top, "train", sub_groups=groups, min_sub_group=max(first, 1), subgroup=leaf)


def _leaf(job: str, index: int) -> str:
    return dns_label(f"{job}-replica-{index}")
