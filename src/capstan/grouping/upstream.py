"""Kubernetes' own gangs (`scheduling.k8s.io`): a pod that names one belongs to it, whoever owns the pod.

Kubernetes 1.35 has `spec.workloadRef` of pods, which names a group inside a Workload; since 1.36 `spec.schedulingGroup`
names a PodGroup (KEP-4671, KEP-5832). Both become a PodGroup of the scheduler with the same minimum and topology.
"""

from __future__ import annotations

from capstan.grouping.gang import TOPOLOGY_ANNOTATION, Gang, Related, Workload, annotations_of
from capstan.grouping.reading import Field, InvalidWorkload, Manifest

_POD_GROUP_VERSIONS = tuple(f"scheduling.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha3", "v1alpha2"))
_WORKLOAD_VERSIONS = ("scheduling.k8s.io/v1alpha1",)


def related(workload: Workload) -> Related | None:
    """The PodGroup or Workload that the pod names."""
    said = workload.pod.get("spec")
    if isinstance(said, dict) and not said.get("schedulingGroup") and not said.get("workloadRef"):
        return None  # nearly every pod
    spec = Field.of(workload.pod)["spec"]
    if name := spec["schedulingGroup"]["podGroupName"].text():
        return Related(_POD_GROUP_VERSIONS, "PodGroup", name)
    if name := spec["workloadRef"]["name"].text():
        return Related(_WORKLOAD_VERSIONS, "Workload", name)
    return None


def gang(workload: Workload) -> Gang:
    """The gang that the pod names. Raises InvalidWorkload, also while it does not exist."""
    reference = Field.of(workload.pod)["spec"]["workloadRef"]
    found = workload.related
    if found is None:
        raise InvalidWorkload(
            workload.pod,
            "spec.workloadRef" if reference["name"].text() else "spec.schedulingGroup",
            "what it names does not exist (yet); create the group before its pods",
        )
    if found.get("kind") == "PodGroup":
        return pod_group(found)
    return workload_group(found, reference["podGroup"].name(), reference["podGroupReplicaKey"].text())


def pod_group(manifest: Manifest) -> Gang:
    """The gang of an upstream PodGroup, self-contained since 1.36."""
    spec = Field.of(manifest)["spec"]
    parent = spec["parentCompositePodGroupName"]
    if parent.text():
        raise parent.wrong("CompositePodGroups are not supported; make the PodGroup stand alone")
    return Gang(
        manifest,
        "train",
        min_member=_minimum(spec["schedulingPolicy"]),
        priority_class=spec["priorityClassName"].text(),
        topology=_topology(manifest, spec),
    )


def workload_group(manifest: Manifest, name: str, replica: str = "") -> Gang:
    """One group of a 1.35 Workload; every replica key is a gang of its own."""
    groups = Field.of(manifest)["spec"]["podGroups"]
    for group in groups.items():
        if group["name"].text() == name:
            suffix = f"{name}-{replica}" if replica else name
            return Gang(manifest, "train", min_member=_minimum(group["policy"]), name_suffix=suffix)
    raise groups.wrong(f"has no group {name}, which pods name in spec.workloadRef.podGroup")


def _minimum(policy: Field) -> int:
    """Pods that start together: `gang.minCount`; under the basic policy each may start alone."""
    minimum = policy["gang"]["minCount"]
    if policy["gang"].exists and minimum.count() == 0:
        raise minimum.wrong("a gang needs a number of pods from 1")
    return minimum.count(1)


def _topology(manifest: Manifest, spec: Field) -> dict[str, str] | None:
    """Kubernetes names a node label as the level; the Topology that has it comes from KAI's annotation."""
    levels = [level["key"].name() for level in spec["schedulingConstraints"]["topology"].items()]
    if not levels:
        return None
    topology = annotations_of(manifest).get(TOPOLOGY_ANNOTATION)
    if not topology:
        raise spec["schedulingConstraints"]["topology"].wrong(
            f"needs a Topology with the level {levels[0]}; name it in the annotation {TOPOLOGY_ANNOTATION}"
        )
    if len(levels) > 1:
        raise spec["schedulingConstraints"]["topology"].wrong("more than one level; keep one")
    return {"topology": topology, "requiredTopologyLevel": levels[0]}
