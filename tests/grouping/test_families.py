"""What starts together, kind by kind. Third-party objects are plain manifests, as a cluster would hold them."""

import pytest

from capstan.grouping import InvalidWorkload, Related, Settings, group, related


def manifest(api_version, kind, name, spec=None, *, labels=None, annotations=None):
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-{name}",
            "labels": labels or {},
            "annotations": annotations or {},
        },
        "spec": spec or {},
    }


def pod(name="p", spec=None, labels=None):
    return manifest("v1", "Pod", name, spec, labels=labels)


def spec_of(*args, **kwargs):
    return group(*args, **kwargs).pod_group["spec"]


def tree(grouping):
    """The subgroups as (name, parent, minimum)."""
    groups = grouping.pod_group["spec"]["subGroups"]
    return [(g["name"], g.get("parent"), g.get("minMember", g.get("minSubGroup"))) for g in groups]


def leaf(grouping):
    return grouping.pod_labels["kai.scheduler/subgroup-name"]


# -- Kubeflow ------------------------------------------------------------------------------------------------------


def training_job(kind, field, roles, **spec):
    replicas = {role: {"replicas": count} for role, count in roles.items()}
    return manifest("kubeflow.org/v1", kind, "job", {field: replicas, **spec})


def kubeflow_pod(role, index=0):
    return pod(labels={"training.kubeflow.org/replica-type": role, "training.kubeflow.org/replica-index": str(index)})


@pytest.mark.parametrize(
    ("kind", "field", "roles", "total"),
    [
        ("TFJob", "tfReplicaSpecs", {"Chief": 1, "PS": 2, "Worker": 4}, 7),
        ("XGBoostJob", "xgbReplicaSpecs", {"Master": 1, "Worker": 2}, 3),
        ("JAXJob", "jaxReplicaSpecs", {"Worker": 4}, 4),
        ("MPIJob", "mpiReplicaSpecs", {"Launcher": 1, "Worker": 4}, 5),
    ],
)
def test_all_replicas_of_a_training_job_start_together(kind, field, roles, total):
    assert spec_of(pod(), (training_job(kind, field, roles),))["minMember"] == total


def test_the_scheduling_policy_of_a_training_job_wins():
    policy = {"schedulingPolicy": {"minAvailable": 2}}
    job = training_job("TFJob", "tfReplicaSpecs", {"Worker": 4}, runPolicy=policy, elasticPolicy={"minReplicas": 3})
    assert spec_of(pod(), (job,))["minMember"] == 2


def test_a_minimum_above_all_replicas_is_refused_because_it_is_never_reached():
    job = training_job("TFJob", "tfReplicaSpecs", {"Worker": 4}, runPolicy={"schedulingPolicy": {"minAvailable": 5}})
    with pytest.raises(InvalidWorkload, match=r"TFJob team/job: spec.runPolicy.schedulingPolicy.minAvailable: 5 pods"):
        group(pod(), (job,))


def test_master_and_workers_of_a_pytorch_job_are_subgroups():
    job = training_job("PyTorchJob", "pytorchReplicaSpecs", {"Master": 1, "Worker": 2})
    worker = group(kubeflow_pod("worker"), (job,))
    assert tree(worker) == [("master", None, 1), ("worker", None, 2)]
    assert worker.pod_group["spec"]["minSubGroup"] == 2
    assert leaf(worker) == "worker"
    assert leaf(group(kubeflow_pod("master"), (job,))) == "master"


def test_an_elastic_pytorch_job_starts_with_its_minimum():
    elastic = {"minReplicas": 1, "maxReplicas": 3}
    job = training_job("PyTorchJob", "pytorchReplicaSpecs", {"Worker": 2}, elasticPolicy=elastic)
    assert tree(group(kubeflow_pod("worker"), (job,))) == [("worker", None, 1)]


def test_segments_are_consecutive_workers_with_their_own_topology():
    job = training_job("PyTorchJob", "pytorchReplicaSpecs", {"Master": 1, "Worker": 5})
    job["metadata"]["annotations"] = {
        "kai.scheduler/topology": "cluster",
        "kai.scheduler/segment-size": "2",
        "kai.scheduler/segment-topology-required-placement": "rack",
    }
    grouping = group(kubeflow_pod("worker", 3), (job,))
    assert tree(grouping) == [
        ("master", None, 1),
        ("worker", None, 3),
        ("worker-segment-0", "worker", 2),
        ("worker-segment-1", "worker", 2),
        ("worker-segment-2", "worker", 1),
    ]
    assert leaf(grouping) == "worker-segment-1"
    constraints = [sub.get("topologyConstraint") for sub in grouping.pod_group["spec"]["subGroups"]]
    assert constraints == [None, None] + [{"topology": "cluster", "requiredTopologyLevel": "rack"}] * 3
    assert leaf(group(kubeflow_pod("worker", 9), (job,))) == "worker-segment-2"


def test_master_and_workers_find_the_same_tree_where_only_workers_are_annotated():
    job = training_job("PyTorchJob", "pytorchReplicaSpecs", {"Master": 1, "Worker": 4})
    annotations = {"kai.scheduler/segment-size": "2"}
    job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"] = {"metadata": {"annotations": annotations}}
    master, worker = (group(kubeflow_pod(role), (job,)) for role in ("master", "worker"))
    assert master.pod_group == worker.pod_group
    assert leaf(worker) == "worker-segment-0"


def test_a_launcher_that_waits_for_the_workers_is_not_waited_for():
    job = training_job(
        "MPIJob", "mpiReplicaSpecs", {"Launcher": 1, "Worker": 4}, launcherCreationPolicy="WaitForWorkersReady"
    )
    assert spec_of(pod(), (job,))["minMember"] == 4


def test_a_jax_job_needs_workers():
    job = training_job("JAXJob", "jaxReplicaSpecs", {"Master": 1})
    with pytest.raises(InvalidWorkload, match=r"jaxReplicaSpecs\.Worker: missing"):
        group(pod(), (job,))


# -- JobSet --------------------------------------------------------------------------------------------------------


def job_set(*jobs, **spec):
    return manifest("jobset.x-k8s.io/v1alpha2", "JobSet", "set", {"replicatedJobs": list(jobs), **spec})


def replicated(name, replicas, parallelism, annotations=None, **extra):
    template = {"metadata": {"annotations": annotations or {}}, "spec": {"parallelism": parallelism}}
    return {"name": name, "replicas": replicas, "template": template, **extra}


def job_set_pod(name, index):
    return pod(labels={"jobset.sigs.k8s.io/replicatedjob-name": name, "jobset.sigs.k8s.io/job-index": str(index)})


def test_every_job_of_a_job_set_is_a_leaf_below_its_replicated_job():
    made = job_set(replicated("leader", 1, 1), replicated("workers", 2, 4))
    grouping = group(job_set_pod("workers", 1), (manifest("batch/v1", "Job", "j"), made))
    assert tree(grouping) == [
        ("leader", None, 1),
        ("leader-replica-0", "leader", 1),
        ("workers", None, 2),
        ("workers-replica-0", "workers", 4),
        ("workers-replica-1", "workers", 4),
    ]
    assert grouping.pod_group["spec"]["minSubGroup"] == 2
    assert leaf(grouping) == "workers-replica-1"


@pytest.mark.parametrize(
    ("second", "spec"),
    [
        (replicated("b", 1, 1), {"startupPolicy": {"startupPolicyOrder": "InOrder"}}),
        (replicated("b", 1, 1, dependsOn=[{"name": "a", "status": "Ready"}]), {}),
    ],
)
def test_jobs_that_start_later_are_not_waited_for(second, spec):
    made = job_set(replicated("a", 1, 1), second, **spec)
    assert spec_of(job_set_pod("a", 0), (made,))["minSubGroup"] == 1


def test_a_replicated_job_may_have_its_own_topology():
    made = job_set(replicated("a", 1, 1, {"kai.scheduler/topology-required-placement": "rack"}))
    made["metadata"]["annotations"] = {"kai.scheduler/topology": "cluster"}
    first = spec_of(job_set_pod("a", 0), (made,))["subGroups"][0]
    assert first["topologyConstraint"] == {"topology": "cluster", "requiredTopologyLevel": "rack"}


def test_a_train_job_is_grouped_as_its_job_set_with_its_own_labels():
    train = manifest("trainer.kubeflow.org/v1alpha1", "TrainJob", "t", labels={"kai.scheduler/queue": "research"})
    made = job_set(replicated("node", 1, 2))
    grouped = group(job_set_pod("node", 0), (manifest("batch/v1", "Job", "j"), made, train)).pod_group
    assert grouped["metadata"]["name"] == "pg-set-uid-set"
    assert grouped["spec"]["queue"] == "research"
    assert '"kind":"TrainJob"' in grouped["metadata"]["annotations"]["kai.scheduler/top-owner-metadata"]


# -- LeaderWorkerSet -----------------------------------------------------------------------------------------------


def leader_worker_set(size, **spec):
    return manifest(
        "leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "lws", {"leaderWorkerTemplate": {"size": size}} | spec
    )


def lws_pod(group_index, worker_index, **spec):
    labels = {
        "leaderworkerset.sigs.k8s.io/group-index": str(group_index),
        "leaderworkerset.sigs.k8s.io/worker-index": str(worker_index),
    }
    return pod(spec=spec, labels=labels)


def test_every_group_of_a_leader_worker_set_is_a_gang():
    owners = (leader_worker_set(3),)
    first, second = group(lws_pod(0, 0), owners), group(lws_pod(1, 2), owners)
    assert first.pod_group["metadata"]["name"] == "pg-lws-uid-lws-group-0"
    assert second.pod_group["metadata"]["name"] == "pg-lws-uid-lws-group-1"
    assert tree(first) == tree(second) == [("leader", None, 1), ("workers", None, 2)]
    assert (leaf(first), leaf(second)) == ("leader", "workers")


def test_workers_that_wait_for_their_leader_join_once_it_has_a_node():
    owners = (leader_worker_set(3, startupPolicy="LeaderReady"),)
    assert tree(group(lws_pod(0, 0), owners)) == [("leader", None, 1)]
    assert len(tree(group(lws_pod(0, 0, nodeName="n"), owners))) == 2
    assert len(tree(group(lws_pod(0, 1), owners))) == 2


def test_workers_of_a_group_may_form_segments():
    owner = leader_worker_set(5)
    owner["metadata"]["annotations"] = {"kai.scheduler/segment-size": "2"}
    assert leaf(group(lws_pod(0, 3), (owner,))) == "workers-segment-1"


# -- Ray -----------------------------------------------------------------------------------------------------------


def ray_cluster(*groups, **spec):
    return manifest("ray.io/v1", "RayCluster", "c", {"headGroupSpec": {}, "workerGroupSpecs": list(groups), **spec})


def ray_pod(group_name):
    role = "head" if group_name == "headgroup" else "worker"
    return pod(labels={"ray.io/node-type": role, "ray.io/group": group_name})


def test_a_ray_cluster_needs_its_head_and_the_minimum_of_every_worker_group():
    made = ray_cluster(
        {"groupName": "gpu", "replicas": 2, "minReplicas": 1, "numOfHosts": 4},
        {"groupName": "cpu", "replicas": 3, "minReplicas": 0},
    )
    job = manifest("ray.io/v1", "RayJob", "job", {"rayClusterSpec": {}})
    grouping = group(ray_pod("gpu"), (made, job))
    assert tree(grouping) == [("headgroup", None, 1), ("gpu", None, 4), ("cpu", None, 3)]
    assert leaf(grouping) == "gpu"
    assert leaf(group(ray_pod("headgroup"), (made, job))) == "headgroup"


def test_an_autoscaled_worker_group_may_start_empty():
    made = ray_cluster({"groupName": "gpu", "replicas": 2, "minReplicas": 0}, enableInTreeAutoscaling=True)
    assert tree(group(ray_pod("headgroup"), (made,)))[1] == ("gpu", None, 0)


def test_the_two_clusters_of_a_ray_service_that_is_updated_are_two_gangs():
    service = manifest("ray.io/v1", "RayService", "s")
    old, new = ray_cluster(), ray_cluster()
    new["metadata"] = old["metadata"] | {"name": "d", "uid": "uid-d"}
    names = {group(ray_pod("headgroup"), (made, service)).pod_group["metadata"]["name"] for made in (old, new)}
    assert len(names) == 2


def test_the_pod_that_submits_a_ray_job_starts_alone():
    owners = (manifest("batch/v1", "Job", "submit"), manifest("ray.io/v1", "RayJob", "job"))
    grouped = group(pod(), owners).pod_group
    assert (grouped["metadata"]["name"], grouped["spec"]["minMember"]) == ("pg-submit-uid-submit", 1)


def test_ray_names_a_priority_class_by_its_own_label():
    made = ray_cluster()
    made["metadata"]["labels"] = {"ray.io/priority-class-name": "build"}
    assert spec_of(ray_pod("headgroup"), (made,))["priorityClassName"] == "build"


# -- Grove ---------------------------------------------------------------------------------------------------------

POD_GANG = manifest(
    "scheduler.grove.io/v1alpha1",
    "PodGang",
    "set-0",
    {
        "podgroups": [
            {"name": "front", "minReplicas": 1},
            {"name": "leader", "minReplicas": 1},
            {"name": "worker", "minReplicas": 4, "topologyConstraint": {"packConstraint": {"preferred": "host"}}},
        ],
        "topologyConstraintGroupConfigs": [
            {
                "name": "prefill",
                "podGroupNames": ["leader", "worker"],
                "topologyConstraint": {"packConstraint": {"required": "rack"}},
            }
        ],
        "topologyConstraint": {"packConstraint": {"required": "zone"}},
        "priorityClassName": "build",
    },
    annotations={"grove.io/topology-name": "cluster"},
)
CLIQUE_SET = (
    manifest("grove.io/v1alpha1", "PodClique", "set-0-worker"),
    manifest("grove.io/v1alpha1", "PodCliqueSet", "set"),
)


def test_a_pod_gang_of_grove_is_a_tree_of_cliques():
    member = pod(labels={"grove.io/podgang": "set-0", "grove.io/podclique": "worker"})
    assert related(member, CLIQUE_SET) == Related(("scheduler.grove.io/v1alpha1",), "PodGang", "set-0")
    grouping = group(member, CLIQUE_SET, POD_GANG)
    assert tree(grouping) == [
        ("prefill", None, 2),
        ("front", None, 1),
        ("leader", "prefill", 1),
        ("worker", "prefill", 4),
    ]
    spec = grouping.pod_group["spec"]
    assert (spec["minSubGroup"], spec["priorityClassName"]) == (2, "build")
    assert spec["topologyConstraint"] == {"topology": "cluster", "requiredTopologyLevel": "zone"}
    assert spec["subGroups"][0]["topologyConstraint"]["requiredTopologyLevel"] == "rack"
    assert spec["subGroups"][3]["topologyConstraint"]["preferredTopologyLevel"] == "host"
    assert leaf(grouping) == "worker"


def test_a_pod_of_grove_waits_for_its_pod_gang():
    member = pod(labels={"grove.io/podgang": "set-0", "grove.io/podclique": "worker"})
    with pytest.raises(InvalidWorkload, match="PodGang does not exist"):
        group(member, CLIQUE_SET)


# -- Serving and others --------------------------------------------------------------------------------------------


def knative(**annotations):
    revision = manifest("serving.knative.dev/v1", "Revision", "r", annotations=annotations)
    return (
        manifest("apps/v1", "ReplicaSet", "rs"),
        manifest("apps/v1", "Deployment", "d"),
        revision,
        manifest("serving.knative.dev/v1", "Configuration", "s"),
        manifest("serving.knative.dev/v1", "Service", "s"),
    )


def test_the_pods_that_a_knative_revision_keeps_start_together():
    owners = knative(**{"autoscaling.knative.dev/min-scale": "3"})
    grouped = group(pod(), owners).pod_group
    assert (grouped["metadata"]["name"], grouped["spec"]["minMember"]) == ("pg-r-uid-r", 3)
    assert grouped["spec"]["priorityClassName"] == "inference"
    alone = group(pod(), owners, settings=Settings(gang_knative=False)).pod_group
    assert (alone["metadata"]["name"], alone["spec"]["minMember"]) == ("pg-p-uid-p", 1)
    assert group(pod(), knative()).pod_group["metadata"]["name"] == "pg-p-uid-p"


@pytest.mark.parametrize(
    ("api_version", "kind", "priority"),
    [
        ("kubeflow.org/v1beta1", "Notebook", "build"),
        ("kubeflow.org/v1alpha1", "ScheduledWorkflow", "train"),
        ("machinelearning.seldon.io/v1", "SeldonDeployment", "train"),
        ("kubevirt.io/v1", "VirtualMachineInstance", "train"),
        ("workspace.devfile.io/v1alpha2", "DevWorkspace", "train"),
        ("tekton.dev/v1", "TaskRun", "train"),
        ("egx.nvidia.io/v1", "SPOTRequest", "inference"),
        ("run.ai/v1", "RunaiJob", "train"),
    ],
)
def test_other_kinds_share_a_group_whose_pods_may_start_alone(api_version, kind, priority):
    grouped = group(pod(), (manifest(api_version, kind, "x"),)).pod_group
    assert grouped["metadata"]["name"] == "pg-x-uid-x"
    assert (grouped["spec"]["minMember"], grouped["spec"]["priorityClassName"]) == (1, priority)


def test_an_administrator_chooses_default_priority_classes_by_kind():
    notebook = manifest("kubeflow.org/v1beta1", "Notebook", "n")
    settings = Settings(priority_classes={"Notebook.kubeflow.org": "build-preemptible", "Pod": "build"})
    assert spec_of(pod(), (notebook,), settings=settings)["priorityClassName"] == "build-preemptible"
    assert spec_of(pod(), settings=settings)["priorityClassName"] == "build"


def test_an_aml_job_has_a_pod_per_node():
    environment = [{"name": "AZUREML_NODE_COUNT", "value": "4"}]
    member = pod(spec={"containers": [{"name": "m", "env": environment}]})
    assert spec_of(member, (manifest("amlarc.azureml.com/v1alpha1", "AmlJob", "a"),))["minMember"] == 4


@pytest.mark.parametrize(
    ("api_version", "kind"),
    [
        ("argoproj.io/v1alpha1", "Workflow"),
        ("nvidia.com/v1beta1", "DynamoGraphDeployment"),
        ("run.ai/v2alpha1", "DistributedWorkload"),
    ],
)
def test_kinds_that_manage_workloads_hand_their_labels_down_and_step_aside(api_version, kind):
    above = manifest(api_version, kind, "w", labels={"kai.scheduler/queue": "research"})
    alone = group(pod(), (above,)).pod_group
    assert (alone["metadata"]["name"], alone["spec"]["queue"]) == ("pg-p-uid-p", "research")
    job = training_job("TFJob", "tfReplicaSpecs", {"Worker": 4})
    below = group(pod(), (job, above)).pod_group
    assert (below["spec"]["minMember"], below["spec"]["queue"]) == (4, "research")


# -- Kubernetes' own gangs -----------------------------------------------------------------------------------------


def upstream_group(**spec):
    return manifest("scheduling.k8s.io/v1alpha2", "PodGroup", "gang", spec)


def test_a_pod_belongs_to_the_upstream_group_it_names_whoever_owns_it():
    member = pod(spec={"schedulingGroup": {"podGroupName": "gang"}})
    owners = (training_job("TFJob", "tfReplicaSpecs", {"Worker": 4}),)
    wanted = related(member, owners)
    assert (wanted.kind, wanted.name) == ("PodGroup", "gang")
    upstream = upstream_group(schedulingPolicy={"gang": {"minCount": 8}}, priorityClassName="build")
    grouped = group(member, owners, upstream).pod_group
    assert grouped["metadata"]["name"] == "pg-gang-uid-gang"
    assert (grouped["spec"]["minMember"], grouped["spec"]["priorityClassName"]) == (8, "build")


def test_under_the_basic_policy_every_pod_may_start_alone():
    member = pod(spec={"schedulingGroup": {"podGroupName": "gang"}})
    assert spec_of(member, (), upstream_group(schedulingPolicy={"basic": {}}))["minMember"] == 1


def test_the_level_of_an_upstream_group_needs_the_topology_it_is_in():
    member = pod(spec={"schedulingGroup": {"podGroupName": "gang"}})
    upstream = upstream_group(schedulingConstraints={"topology": [{"key": "example.com/rack"}]})
    with pytest.raises(InvalidWorkload, match=r"kai\.scheduler/topology"):
        group(member, (), upstream)
    upstream["metadata"]["annotations"] = {"kai.scheduler/topology": "cluster"}
    constraint = spec_of(member, (), upstream)["topologyConstraint"]
    assert constraint == {"topology": "cluster", "requiredTopologyLevel": "example.com/rack"}


def test_each_replica_of_a_group_in_a_workload_is_a_gang():
    workload = manifest(
        "scheduling.k8s.io/v1alpha1",
        "Workload",
        "w",
        {"podGroups": [{"name": "g", "policy": {"gang": {"minCount": 2}}}]},
    )
    reference = {"name": "w", "podGroup": "g", "podGroupReplicaKey": "1"}
    grouped = group(pod(spec={"workloadRef": reference}), (), workload).pod_group
    assert (grouped["metadata"]["name"], grouped["spec"]["minMember"]) == ("pg-w-uid-w-g-1", 2)
    with pytest.raises(InvalidWorkload, match="has no group other"):
        group(pod(spec={"workloadRef": reference | {"podGroup": "other"}}), (), workload)


@pytest.mark.parametrize("reference", [{"schedulingGroup": {"podGroupName": "g"}}, {"workloadRef": {"name": "g"}}])
def test_a_pod_waits_for_the_upstream_group_it_names(reference):
    with pytest.raises(InvalidWorkload, match="does not exist"):
        group(pod(spec=reference))


def stateful_set(**spec):
    return manifest("apps/v1", "StatefulSet", "web", spec, annotations={"kai.scheduler/batch-min-member": "3"})


def test_a_stateful_set_that_makes_pods_one_after_another_cannot_be_a_gang():
    message = r"StatefulSet team/web: spec.podManagementPolicy: pods are made one after another, and 3 .* set Parallel"
    for spec in ({}, {"podManagementPolicy": "OrderedReady"}):
        with pytest.raises(InvalidWorkload, match=message):
            group(pod(), (stateful_set(**spec),))
    assert spec_of(pod(), (stateful_set(podManagementPolicy="Parallel"),))["minMember"] == 3
    assert spec_of(pod(), (manifest("apps/v1", "StatefulSet", "web"),))["minMember"] == 1
