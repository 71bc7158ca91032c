"""What pods and claims must pass on their way in, and the subresources that bind, evict, scale and read them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from capstan.local.admission import Attributes
from capstan.local.request import Stream
from capstan.local.subresources import LogOptions

PODS = "/api/v1/namespaces/default/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
BUDGETS = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"


def pod(name: str = "p", labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"containers": [{"name": "c", "image": "i"}], **spec},
    }


def bind(api, name: str, node: str = "n1", **metadata: Any):
    return api.call(
        "POST", f"{PODS}/{name}/binding", {"metadata": {"name": name, **metadata}, "target": {"name": node}}
    )


# priority


def priority_class(api, name: str, value: int, **extra: Any) -> None:
    api.create("/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": name}, "value": value, **extra})


def test_the_priority_class_sets_priority_and_preemption_policy(api) -> None:
    priority_class(api, "train", 50, preemptionPolicy="Never")
    spec = api.create(PODS, pod(priorityClassName="train"))["spec"]
    assert (spec["priority"], spec["preemptionPolicy"]) == (50, "Never")
    spec = api.create(PODS, pod("plain"))["spec"]
    assert (spec["priority"], spec["preemptionPolicy"]) == (0, "PreemptLowerPriority")
    spec = api.create(PODS, pod("system", priorityClassName="system-node-critical"))["spec"]
    assert spec["priority"] == 2_000_001_000


def test_the_global_default_class_counts_for_pods_without_one(api) -> None:
    priority_class(api, "usual", 7, globalDefault=True)
    spec = api.create(PODS, pod())["spec"]
    assert (spec["priorityClassName"], spec["priority"]) == ("usual", 7)


def test_unknown_and_contradicting_priorities(api) -> None:
    answer = api.call("POST", PODS, pod(priorityClassName="nope"))
    assert answer.status == (
        403,
        "Forbidden",
        'pods "p" is forbidden: no PriorityClass with name nope was found',
    )
    answer = api.call("POST", PODS, pod(priority=3))
    assert "the integer value of priority (3) must not be provided in pod spec" in answer.status[2]


# service accounts


def test_pods_run_as_default_or_as_an_account_that_exists(api) -> None:
    assert api.create(PODS, pod())["spec"]["serviceAccountName"] == "default"
    answer = api.call("POST", PODS, pod("q", serviceAccountName="robot"))
    assert 'error looking up service account default/robot: serviceaccount "robot" not found' in answer.status[2]
    api.create("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "robot"}})
    assert api.create(PODS, pod("q", serviceAccountName="robot"))["spec"]["serviceAccount"] == "robot"


# runtime classes


def runtime_class(api, **fields: Any) -> None:
    api.create("/apis/node.k8s.io/v1/runtimeclasses", {"metadata": {"name": "kata"}, "handler": "kata", **fields})


def test_a_runtime_class_brings_overhead_and_scheduling(api) -> None:
    toleration = {"key": "sandbox", "operator": "Exists"}
    runtime_class(
        api,
        overhead={"podFixed": {"cpu": "250m", "memory": "160Mi"}},
        scheduling={"nodeSelector": {"kata": "yes"}, "tolerations": [toleration]},
    )
    spec = api.create(PODS, pod(runtimeClassName="kata", nodeSelector={"zone": "a"}))["spec"]
    assert spec["overhead"] == {"cpu": "250m", "memory": "160Mi"}
    assert spec["nodeSelector"] == {"zone": "a", "kata": "yes"}
    assert toleration in spec["tolerations"]


def test_pods_stay_five_minutes_on_a_node_in_trouble_unless_they_say_otherwise(api) -> None:
    tolerations = api.create(PODS, pod())["spec"]["tolerations"]
    assert {each["key"]: each["tolerationSeconds"] for each in tolerations} == {
        "node.kubernetes.io/not-ready": 300,
        "node.kubernetes.io/unreachable": 300,
    }
    own = {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
    tolerations = api.create(PODS, pod("q", tolerations=[own]))["spec"]["tolerations"]
    assert [each.get("tolerationSeconds") for each in tolerations] == [5, 300]
    body = {"apiVersion": "v1", "kind": "Pod", **pod("applied", tolerations=[own])}
    for _ in range(2):
        applied = api.apply(f"{PODS}/applied", body).body
        assert [each.get("tolerationSeconds") for each in applied["spec"]["tolerations"]] == [5, 300]
    everything = {"operator": "Exists"}
    assert api.create(PODS, pod("r", tolerations=[everything]))["spec"]["tolerations"] == [everything]


def test_runtime_class_refusals(api) -> None:
    answer = api.call("POST", PODS, pod(runtimeClassName="kata"))
    assert answer.status[2] == 'pods "p" is forbidden: pod rejected: RuntimeClass "kata" not found'
    runtime_class(api, overhead={"podFixed": {"cpu": "1"}}, scheduling={"nodeSelector": {"a": "b"}})
    answer = api.call("POST", PODS, pod(runtimeClassName="kata", overhead={"cpu": "2"}))
    assert "Overhead doesn't match" in answer.status[2]
    answer = api.call("POST", PODS, pod(runtimeClassName="kata", nodeSelector={"a": "c"}))
    assert "conflict: runtimeClass.scheduling.nodeSelector[a] = b" in answer.status[2]
    answer = api.call("POST", PODS, pod(overhead={"cpu": "2"}))
    assert "Overhead set without corresponding RuntimeClass" in answer.status[2]


# admin access


@pytest.mark.parametrize("plural", ["resourceclaims", "resourceclaimtemplates"])
def test_admin_access_needs_the_label_on_the_namespace(api, plural: str) -> None:
    path = f"/apis/resource.k8s.io/v1/namespaces/default/{plural}"
    request = {"name": "all", "exactly": {"deviceClassName": "gpu", "allocationMode": "All", "adminAccess": True}}
    spec: dict[str, Any] = {"devices": {"requests": [request]}}
    body = {"metadata": {"name": "watch"}, "spec": spec if plural == "resourceclaims" else {"spec": spec}}
    answer = api.call("POST", path, body)
    assert answer.status[:2] == (422, "Invalid")
    where = "spec" if plural == "resourceclaims" else "spec.spec"
    assert answer.causes == [(f"{where}.devices.requests[0].exactly.adminAccess", "FieldValueForbidden")]
    labels = {"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}}
    api.patch("/api/v1/namespaces/default", labels)
    assert api.call("POST", path, body).code == 201


# the chain


def test_plugins_change_and_refuse_writes(api) -> None:
    def stamp(attributes: Attributes) -> None:
        if (
            attributes.operation == "CREATE"
            and attributes.object is not None
            and attributes.resource.plural == "configmaps"
        ):
            attributes.object["metadata"].setdefault("labels", {})["stamped"] = "yes"
            attributes.warnings.append("stamped")

    def refuse(attributes: Attributes) -> None:
        if attributes.operation == "DELETE" and attributes.resource.plural == "configmaps":
            raise attributes.forbidden("config maps are for ever")

    api.server.admission.mutating.append(stamp)
    api.server.admission.validating.append(refuse)
    path = "/api/v1/namespaces/default/configmaps"
    answer = api.call("POST", path, {"metadata": {"name": "a"}})
    assert answer.body["metadata"]["labels"] == {"stamped": "yes"}
    assert answer.warnings == ["stamped"]
    answer = api.call("DELETE", f"{path}/a")
    assert answer.status == (403, "Forbidden", 'configmaps "a" is forbidden: config maps are for ever')


# binding


def test_binding_assigns_a_pod_once(api) -> None:
    created = api.create(PODS, pod())
    answer = bind(api, "p", uid=created["metadata"]["uid"], annotations={"why": "best fit"})
    assert (answer.code, answer.body["status"]) == (201, "Success")
    bound = api.get(f"{PODS}/p")
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["metadata"]["annotations"] == {"why": "best fit"}
    condition = next(each for each in bound["status"]["conditions"] if each["type"] == "PodScheduled")
    assert (condition["status"], condition["lastTransitionTime"]) == ("True", "2023-11-14T22:13:20Z")
    again = bind(api, "p", "n2")
    assert again.status == (
        409,
        "Conflict",
        'Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "n1"',
    )


def test_the_older_path_of_bindings(api) -> None:
    api.create(PODS, pod())
    path = "/api/v1/namespaces/default/bindings"
    api.create(path, {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}})
    assert api.get(f"{PODS}/p")["spec"]["nodeName"] == "n1"
    assert api.call("POST", path, {"metadata": {}, "target": {"name": "n1"}}).status[:2] == (400, "BadRequest")
    assert api.call("GET", path).status[:2] == (405, "MethodNotAllowed")


def test_bindings_that_must_not_happen(api) -> None:
    api.create(PODS, pod(schedulingGates=[{"name": "wait"}]))
    assert "has non-empty .spec.schedulingGates" in bind(api, "p").status[2]
    held = pod("held")
    held["metadata"]["finalizers"] = ["example.com/x"]
    api.create(PODS, held)
    api.call("DELETE", f"{PODS}/held")
    assert "is being deleted, cannot be assigned to a host" in bind(api, "held").status[2]
    api.create(PODS, pod("q"))
    assert bind(api, "q", uid="other").status[:2] == (409, "Conflict")
    assert bind(api, "q", "").causes == [("target.name", "FieldValueRequired")]
    assert bind(api, "nope").status[:2] == (404, "NotFound")


# eviction


def running(api, name: str, *, ready: bool = True) -> None:
    api.create(PODS, pod(name, {"app": "web"}, nodeName="n1"))
    condition = {"type": "Ready", "status": str(ready)}
    status = {"status": {"phase": "Running", "conditions": [condition]}}
    assert api.patch(f"{PODS}/{name}/status", status).code == 200


def budget(api, name: str = "keep", allowed: int = 1, **spec: Any) -> None:
    body = {
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "minAvailable": 1, **spec},
    }
    api.create(BUDGETS, body)
    status = {
        "observedGeneration": 1,
        "disruptionsAllowed": allowed,
        "currentHealthy": 1 + allowed,
        "desiredHealthy": 1,
        "expectedPods": 2,
    }
    assert api.patch(f"{BUDGETS}/{name}/status", {"status": status}).code == 200


def evict(api, name: str, **options: Any):
    return api.call("POST", f"{PODS}/{name}/eviction", {"metadata": {"name": name}, "deleteOptions": options})


def test_eviction_spends_the_budget_and_then_waits(api) -> None:
    running(api, "a")
    running(api, "b")
    budget(api)
    assert evict(api, "a").code == 201
    assert api.get(f"{PODS}/a")["metadata"]["deletionGracePeriodSeconds"] == 30
    state = api.get(f"{BUDGETS}/keep")["status"]
    assert (state["disruptionsAllowed"], state["disruptedPods"]) == (0, {"a": "2023-11-14T22:13:20Z"})
    answer = evict(api, "b")
    assert answer.status == (
        429,
        "TooManyRequests",
        "Cannot evict pod as it would violate the pod's disruption budget.",
    )
    assert answer.body["details"]["causes"] == [
        {
            "reason": "DisruptionBudget",
            "message": "The disruption budget keep needs 1 healthy pods and has 2 currently",
        }
    ]
    assert "deletionTimestamp" not in api.get(f"{PODS}/b")["metadata"]


def test_eviction_dry_run_spends_nothing(api) -> None:
    running(api, "a")
    budget(api)
    assert evict(api, "a", dryRun=["All"]).code == 201
    assert api.get(f"{BUDGETS}/keep")["status"]["disruptionsAllowed"] == 1
    assert "deletionTimestamp" not in api.get(f"{PODS}/a")["metadata"]


def test_eviction_with_a_grace_period(api) -> None:
    running(api, "a")
    assert evict(api, "a", gracePeriodSeconds=7).code == 201
    assert api.get(f"{PODS}/a")["metadata"]["deletionGracePeriodSeconds"] == 7


def test_pods_that_do_not_run_need_no_budget(api) -> None:
    budget(api, allowed=0)
    api.create(PODS, pod("pending", {"app": "web"}))
    assert evict(api, "pending").code == 201
    running(api, "done")
    api.patch(f"{PODS}/done/status", {"status": {"phase": "Succeeded"}})
    assert evict(api, "done").code == 201
    assert api.names(PODS) == []


def test_unhealthy_pods_and_their_policy(api) -> None:
    running(api, "sick", ready=False)
    budget(api, allowed=0)
    assert evict(api, "sick").code == 201, "enough healthy pods are left, and this one is not of them"
    running(api, "sicker", ready=False)
    api.patch(f"{BUDGETS}/keep/status", {"status": {"currentHealthy": 0}})
    assert evict(api, "sicker").code == 429
    api.patch(f"{BUDGETS}/keep", {"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}})
    api.patch(f"{BUDGETS}/keep/status", {"status": {"observedGeneration": 2}})
    assert evict(api, "sicker").code == 201


def test_a_budget_that_is_not_settled_or_not_alone(api) -> None:
    running(api, "a")
    budget(api)
    api.patch(f"{BUDGETS}/keep", {"spec": {"minAvailable": 2}})
    answer = evict(api, "a")
    assert answer.headers == {"Retry-After": "10"}
    assert "still being processed" in answer.body["details"]["causes"][0]["message"]
    budget(api, "second")
    assert evict(api, "a").status[:2] == (500, "InternalError")
    assert "more than one PodDisruptionBudget" in evict(api, "a").body["message"]


# scale


def deployment(replicas: int = 1) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": pod()["spec"]}
    return {
        "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template},
    }


def test_scale_reads_and_writes_the_replicas(api) -> None:
    api.create(DEPLOYMENTS, deployment())
    scale = api.get(f"{DEPLOYMENTS}/web/scale")
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 0, "selector": "app=web"}
    scale["spec"]["replicas"] = 4
    assert api.call("PUT", f"{DEPLOYMENTS}/web/scale", scale).body["spec"] == {"replicas": 4}
    assert api.get(f"{DEPLOYMENTS}/web")["metadata"]["generation"] == 2
    assert api.call("PUT", f"{DEPLOYMENTS}/web/scale", scale).status[:2] == (409, "Conflict")
    assert api.patch(f"{DEPLOYMENTS}/web/scale", {"spec": {"replicas": 2}}).body["spec"] == {"replicas": 2}
    answer = api.patch(f"{DEPLOYMENTS}/web/scale", {"spec": {"replicas": -1}})
    assert answer.causes == [("spec.replicas", "FieldValueInvalid")]
    scaled = api.get(f"{DEPLOYMENTS}/web")
    assert scaled["spec"]["replicas"] == 2
    entry = next(each for each in scaled["metadata"]["managedFields"] if each.get("subresource") == "scale")
    assert entry["fieldsV1"] == {"f:spec": {"f:replicas": {}}}


# logs


def read_log(api, path: str) -> str:
    response = api.run(api.server.handle(api.request("GET", path)))
    assert isinstance(response, Stream), response

    async def collect() -> bytes:
        return b"".join([piece async for pieces in response.chunks for piece in pieces])

    return api.run(collect()).decode()


def test_logs_come_from_the_node(api) -> None:
    asked: list[tuple[str, str, LogOptions]] = []

    async def provider(pod: dict[str, Any], container: str, options: LogOptions) -> AsyncIterator[bytes]:
        asked.append((pod["metadata"]["name"], container, options))
        yield b"one\n"
        yield b"two\n"

    api.server.logs["n1"] = provider
    api.create(PODS, pod(nodeName="n1"))
    assert read_log(api, f"{PODS}/p/log?tailLines=2&follow=true") == "one\ntwo\n"
    assert asked == [("p", "c", LogOptions(tail_lines=2, follow=True))]


def test_logs_that_cannot_be_read(api) -> None:
    api.create(PODS, pod())
    assert api.call("GET", f"{PODS}/p/log").status == (400, "BadRequest", "pod p does not have a host assigned")
    assert api.call("GET", f"{PODS}/p/log?container=x").status[2] == "container x is not valid for pod p"
    two = pod("two", nodeName="n9")
    two["spec"]["containers"].append({"name": "d", "image": "i"})
    api.create(PODS, two)
    answer = api.call("GET", f"{PODS}/two/log")
    assert answer.status[2] == "a container name must be specified for pod two, choose one of: [c d]"
    assert api.call("GET", f"{PODS}/two/log?container=d").status[:2] == (503, "ServiceUnavailable")
    assert api.call("GET", f"{PODS}/nope/log").status[:2] == (404, "NotFound")
