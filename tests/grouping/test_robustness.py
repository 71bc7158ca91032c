"""Whatever owners, related objects and labels contain: a valid PodGroup, or a message that names what is wrong."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.grouping import Grouping, InvalidWorkload, group, related
from capstan.grouping.podgroup import _FAMILIES

FIELDS = [
    "replicas", "parallelism", "completions", "minReplicas", "maxReplicas", "numOfHosts", "size", "groupName", "name",
    "workerGroupSpecs", "headGroupSpec", "replicatedJobs", "template", "spec", "metadata", "annotations", "dependsOn",
    "tfReplicaSpecs", "pytorchReplicaSpecs", "mpiReplicaSpecs", "jaxReplicaSpecs", "xgbReplicaSpecs", "Master",
    "Worker",
    "elasticPolicy", "runPolicy", "schedulingPolicy", "minAvailable", "leaderWorkerTemplate", "startupPolicy",
    "startupPolicyOrder", "podgroups", "topologyConstraintGroupConfigs", "podGroupNames", "topologyConstraint",
    "packConstraint", "required", "podGroups", "policy", "gang", "minCount", "schedulingConstraints", "topology", "key",
    "suspend", "launcherCreationPolicy", "workerTemplate", "priorityClassName", "enableInTreeAutoscaling",
]  # fmt: skip
KEYS = st.sampled_from(FIELDS) | st.text(max_size=3)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 6)
    | st.sampled_from([2**31, 2**70, 1.5, float("nan"), "", "a", "A b", "worker", "InOrder", "LeaderReady", "x" * 300])
    | st.text(max_size=5)
)
SPECS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)

LABELS = st.dictionaries(
    st.sampled_from(
        [
            "training.kubeflow.org/replica-type",
            "training.kubeflow.org/replica-index",
            "jobset.sigs.k8s.io/replicatedjob-name",
            "jobset.sigs.k8s.io/job-index",
            "leaderworkerset.sigs.k8s.io/group-index",
            "leaderworkerset.sigs.k8s.io/worker-index",
            "ray.io/node-type",
            "ray.io/group",
            "grove.io/podgang",
            "grove.io/podclique",
            "spark-app-selector",
            "kai.scheduler/preemptibility",
            "project",
        ]
    ),
    st.sampled_from(["0", "1", "worker", "master", "head", "a", "-1", "9" * 40, "\u0663", "A_b", "x" * 300]),
)
ANNOTATIONS = st.dictionaries(
    st.sampled_from(
        [
            "kai.scheduler/batch-min-member",
            "kai.scheduler/segment-size",
            "kai.scheduler/segment-topology-required-placement",
            "kai.scheduler/topology",
            "kai.scheduler/topology-required-placement",
            "kai.scheduler/preemption-delay",
            "kai.scheduler/max-runtime",
            "autoscaling.knative.dev/min-scale",
            "grove.io/topology-name",
        ]
    ),
    st.sampled_from(["0", "1", "2", "many", "30s", "rack", "-5", "1e9", ""]),
)
KINDS = st.sampled_from(
    [
        *sorted(_FAMILIES),
        ("argoproj.io", "Workflow"),
        ("trainer.kubeflow.org", "TrainJob"),
        ("serving.knative.dev", "Revision"),
        ("example.com", "Thing"),
    ]
)
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@st.composite
def owners(draw):
    group_name, kind = draw(KINDS)
    name = draw(st.sampled_from(["a", "b.c", "x" * 253]))
    metadata = {"name": name, "namespace": "team", "uid": draw(st.sampled_from(["", "u-1"]))}
    metadata |= {"labels": draw(LABELS), "annotations": draw(ANNOTATIONS)}
    return {"apiVersion": f"{group_name}/v1", "kind": kind, "metadata": metadata, "spec": draw(SPECS)}


@st.composite
def planned(draw):
    """A spec with the right outline, so that the garbage sits deep inside."""
    made = draw(owners())
    role = st.fixed_dictionaries({"replicas": LEAVES, "template": SPECS})
    made["spec"] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "pytorchReplicaSpecs": st.dictionaries(st.sampled_from(["Master", "Worker"]), role),
                "tfReplicaSpecs": st.dictionaries(st.sampled_from(["Chief", "Worker"]), role),
                "replicatedJobs": st.lists(
                    st.fixed_dictionaries({"name": st.sampled_from(["worker", "a", "A b"]), "replicas": LEAVES}),
                    max_size=3,
                ),
                "workerGroupSpecs": st.lists(
                    st.fixed_dictionaries({"groupName": LEAVES, "minReplicas": LEAVES, "numOfHosts": LEAVES}),
                    max_size=3,
                ),
                "leaderWorkerTemplate": st.fixed_dictionaries({"size": LEAVES, "workerTemplate": SPECS}),
                "podgroups": st.lists(
                    st.fixed_dictionaries({"name": st.sampled_from(["worker", "a"]), "minReplicas": LEAVES}), max_size=3
                ),
            },
        )
    )
    return made


@settings(deadline=None, max_examples=300)
@given(
    labels=LABELS,
    annotations=ANNOTATIONS,
    chain=st.lists(owners() | planned(), max_size=3),
    found=st.none() | planned(),
    named=st.sampled_from(
        [{}, {}, {}, {}, {"schedulingGroup": {"podGroupName": "g"}}, {"workloadRef": {"name": "w", "podGroup": "a"}}]
    ),
)
def test_garbage_gives_a_valid_group_or_a_message(labels, annotations, chain, found, named):
    metadata = {"name": "p", "namespace": "team", "uid": "u", "labels": labels, "annotations": annotations}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": named}
    try:
        related(pod, tuple(chain))
        grouping = group(pod, tuple(chain), found)
    except InvalidWorkload as error:
        assert " team/" in str(error)
        return
    assert_valid(grouping)
    assert grouping == group(pod, tuple(chain), found)


COUNTS = st.integers(0, 5) | st.none()
NAMES = st.lists(st.sampled_from(["a", "b", "A b", "worker", "x" * 80]), min_size=1, max_size=3, unique=True)


@st.composite
def gangs(draw):
    """A workload of a kind that makes a tree, and a pod of it: mostly right, so that the tree itself is tested."""
    kind = draw(st.sampled_from(["PyTorchJob", "JobSet", "LeaderWorkerSet", "RayCluster", "PodCliqueSet"]))
    name, found = draw(NAMES), None
    some, index = name[0], str(draw(st.integers(0, 5)))
    if kind == "PyTorchJob":
        roles = {role: {"replicas": draw(COUNTS)} for role in draw(st.sets(st.sampled_from(["Master", "Worker"])))}
        spec = {"pytorchReplicaSpecs": roles, "elasticPolicy": {"minReplicas": draw(COUNTS)}}
        labels = {"training.kubeflow.org/replica-type": draw(st.sampled_from(["master", "worker"]))}
        labels["training.kubeflow.org/replica-index"] = index
    elif kind == "JobSet":
        jobs = [
            {"name": n, "replicas": draw(COUNTS), "template": {"spec": {"parallelism": draw(COUNTS)}}} for n in name
        ]
        spec = {"replicatedJobs": jobs, "startupPolicy": {"startupPolicyOrder": draw(st.sampled_from(["", "InOrder"]))}}
        labels = {"jobset.sigs.k8s.io/replicatedjob-name": some, "jobset.sigs.k8s.io/job-index": index}
    elif kind == "LeaderWorkerSet":
        spec = {
            "leaderWorkerTemplate": {"size": draw(COUNTS)},
            "startupPolicy": draw(st.sampled_from(["LeaderReady", ""])),
        }
        labels = {"leaderworkerset.sigs.k8s.io/group-index": "0", "leaderworkerset.sigs.k8s.io/worker-index": index}
    elif kind == "RayCluster":
        spec = {"workerGroupSpecs": [{"groupName": n, "minReplicas": draw(COUNTS)} for n in name]}
        labels = {"ray.io/node-type": draw(st.sampled_from(["head", "worker"])), "ray.io/group": some}
    else:
        spec, labels = {}, {"grove.io/podgang": "g", "grove.io/podclique": some}
        shared = [{"name": "shared", "podGroupNames": draw(NAMES)}] if draw(st.booleans()) else []
        cliques = [{"name": n, "minReplicas": draw(COUNTS)} for n in name]
        found = {"apiVersion": "scheduler.grove.io/v1alpha1", "kind": "PodGang"}
        found |= {"metadata": {"name": "g", "namespace": "team"}}
        found |= {"spec": {"podgroups": cliques, "topologyConstraintGroupConfigs": shared}}
    marks = draw(st.sampled_from([{}, {"kai.scheduler/segment-size": "2"}]))
    api = {"PyTorchJob": "kubeflow.org", "JobSet": "jobset.x-k8s.io", "LeaderWorkerSet": "leaderworkerset.x-k8s.io"}
    group_name = api.get(kind) or ("ray.io" if kind == "RayCluster" else "grove.io")
    metadata = {"name": "w", "namespace": "team", "uid": "u", "annotations": marks}
    owner = {"apiVersion": f"{group_name}/v1", "kind": kind, "metadata": metadata, "spec": spec}
    return {"metadata": {"name": "p", "namespace": "team", "labels": labels}, "spec": {}}, owner, found


@settings(deadline=None, max_examples=400)
@given(gangs())
def test_every_tree_is_one_that_can_start(made):
    pod, owner, found = made
    try:
        grouping = group(pod, (owner,), found)
    except InvalidWorkload as error:
        assert " team/" in str(error)
        return
    assert_valid(grouping)


def assert_valid(grouping: Grouping) -> None:
    """What the API server and the scheduler take."""
    name, spec = grouping.pod_group["metadata"]["name"], grouping.pod_group["spec"]
    assert len(name) <= 253
    assert SUBDOMAIN.fullmatch(name)
    assert ("minMember" in spec) != ("minSubGroup" in spec)
    groups = {sub["name"]: sub for sub in spec.get("subGroups", [])}
    assert len(groups) == len(spec.get("subGroups", []))
    for sub in groups.values():
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", sub["name"])
        assert ("minMember" in sub) != ("minSubGroup" in sub)
        assert 0 <= sub.get("minMember", 0) < 2**31
        children = sum(other.get("parent") == sub["name"] for other in groups.values())
        assert sub.get("minSubGroup", 0) <= children
    if groups:
        assert 1 <= spec["minSubGroup"] <= sum("parent" not in sub for sub in groups.values())
        assert "minMember" in groups[grouping.pod_labels["kai.scheduler/subgroup-name"]]
    else:
        assert 1 <= spec["minMember"] < 2**31


def test_long_names_are_shortened_and_stay_different():
    def named(name):
        metadata = {"name": name, "namespace": "team", "uid": "12345678-1234-1234-1234-123456789012"}
        return group({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}).pod_group["metadata"]["name"]

    first, second = named("x" * 252 + "a"), named("x" * 252 + "b")
    assert first != second
    assert max(len(first), len(second)) <= 253
    assert first == named("x" * 252 + "a")


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"kai.scheduler/topology-required-placement": "rack"}, "missing; a level"),
        ({"kai.scheduler/preemption-delay": "soon"}, "no duration"),
        ({"kai.scheduler/max-runtime": "tomorrow"}, "no duration"),
    ],
)
def test_annotations_that_would_do_nothing_are_refused(annotations, words):
    metadata = {"name": "j", "namespace": "team", "uid": "u", "annotations": annotations}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "team"}}
    with pytest.raises(InvalidWorkload, match=words):
        group(pod, ({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata},))


def test_a_gang_of_too_many_parts_is_refused_before_it_is_built():
    spec = {"replicatedJobs": [{"name": "a", "replicas": 2**31 - 1}]}
    owner = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "s"}, "spec": spec}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "team"}}
    with pytest.raises(InvalidWorkload, match="use fewer, larger Jobs"):
        group(pod, (owner,))
