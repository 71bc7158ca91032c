"""Devices of a driver that is not ours, on a running platform: counters drawn on request, pools that contradict
themselves, and what is told about pools."""

from __future__ import annotations

import json

import pytest
import yaml

DRIVER = "net.example.com"
GATES = ("--feature-gates", "DRASharedConsumableCapacity=true")
CLASS = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceClass",
    "metadata": {"name": "vf"},
    "spec": {"selectors": [{"cel": {"expression": f"device.driver == '{DRIVER}'"}}]},
}
POLICY = {"default": "1G", "validRange": {"min": "1M", "max": "100G", "step": "1M"}}
DRAWN = [{"counterSet": "port", "counters": {"bandwidth": {"valueFrom": {"capacityName": f"{DRIVER}/bandwidth"}}}}]


def slice_of(name: str, node: str, *, pool: str = "port", count: int = 1, generation: int = 1, **spec) -> dict:
    """Nobody has to prepare the devices: there is no such driver on the node."""
    where = {"name": pool, "generation": generation, "resourceSliceCount": count}
    made = {"driver": DRIVER, "nodeName": node, "pool": where, "skipNodeOperations": ["*"], **spec}
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name}, "spec": made}


def port(node: str) -> list[dict]:
    counters = {"bandwidth": {"value": "100G", "requestPolicy": POLICY}}
    devices = [{"name": f"vf-{i}", "consumesCounters": DRAWN} for i in range(4)]
    return [
        slice_of("port-counters", node, count=2, sharedCounters=[{"name": "port", "counters": counters}]),
        slice_of("port-devices", node, count=2, devices=devices),
    ]


def pod(name: str, bandwidth: str, node: str = "") -> list[dict]:
    """A pod with a claim of its own for a function with so much bandwidth, for one node or any."""
    capacity = {"requests": {f"{DRIVER}/bandwidth": bandwidth}}
    request = {"name": "vf", "exactly": {"deviceClassName": "vf", "capacity": capacity}}
    return [
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"name": name},
            "spec": {"devices": {"requests": [request]}},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "nodeSelector": {"kubernetes.io/hostname": node} if node else {},
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": "busybox", "command": ["sleep", "3600"]}],
                "resourceClaims": [{"name": "net", "resourceClaimName": name}],
            },
        },
    ]


def apply(platform, *objects: dict) -> None:
    platform.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))


def node_of(platform) -> str:
    return platform.items("nodes")[0]["metadata"]["name"]


def verdict(platform, name: str) -> str:
    events = platform.items("events", "--field-selector", f"involvedObject.name={name},reason=FailedScheduling")
    return "\n".join(event["message"] for event in events)


def running(platform) -> set[str]:
    return {name for name, phase in platform.phases("default").items() if phase == "Running"}


def drawn(platform, name: str) -> str:
    claim = platform.get("resourceclaim", name)
    (result,) = claim["status"]["allocation"]["devices"]["results"]
    (taken,) = result["consumedCounters"]
    return taken["counters"]["bandwidth"]


def test_counters_are_drawn_on_request_in_a_cluster_and_after_its_restart(make_platform, tmp_path):
    platform = make_platform(tmp_path / "data", "1xl4x1", *GATES)
    platform.start()
    apply(platform, CLASS, *port(node_of(platform)), *pod("a", "60G"), *pod("b", "39500k"))
    platform.until(lambda: running(platform) == {"a", "b"}, "a and b run")
    assert (drawn(platform, "a"), drawn(platform, "b")) == ("60G", "40M")
    assert platform.stop() == 0
    platform.start()
    apply(platform, *pod("c", "40G"))

    platform.until(lambda: "the shared counters" in verdict(platform, "c"), "c is told what is in the way")
    assert "c" not in running(platform)
    platform.kubectl("delete", "pod/a", "resourceclaim/a", "--wait=false")
    platform.until(lambda: "c" in running(platform), "c runs when a has gone")
    assert drawn(platform, "c") == "40G"


def test_without_the_gate_the_fields_are_dropped(dgx):
    try:
        apply(dgx, *port(node_of(dgx)))
        (device, *_) = dgx.get("resourceslice", "port-devices")["spec"]["devices"]
        assert device["consumesCounters"] == [{"counterSet": "port", "counters": {"bandwidth": {}}}]
        (counters,) = dgx.get("resourceslice", "port-counters")["spec"]["sharedCounters"]
        assert counters["counters"] == {"bandwidth": {"value": "100G"}}
    finally:
        dgx.kubectl("delete", "resourceslice", "port-devices", "port-counters", "--ignore-not-found")


COUNTED = [{"counterSet": "nowhere", "counters": {"c": {"value": "1"}}}]
SET = {"name": "s", "counters": {"c": {"value": "1"}}}
CONTRADICTIONS = {
    "twice": (
        [{"devices": [{"name": "a"}]}, {"devices": [{"name": "a"}, {"name": "b"}]}],
        "the device a is published twice",
    ),
    "sets": ([{"sharedCounters": [SET]}, {"sharedCounters": [SET]}], "the counter set s is declared twice"),
    "unknown-set": (
        [{"devices": [{"name": "a", "consumesCounters": COUNTED}]}],
        "the device a consumes the counter set nowhere, which no slice declares",
    ),
    "unknown-counter": (
        [
            {"sharedCounters": [SET]},
            {"devices": [{"name": "a", "consumesCounters": [{"counterSet": "s", "counters": {"x": {"value": "1"}}}]}]},
        ],
        "the device a consumes the counter x of the set s, which no slice declares",
    ),
}


def published(name: str, node: str, parts: list[dict]) -> list[dict]:
    return [slice_of(f"{name}-{i}", node, pool=name, count=len(parts), **part) for i, part in enumerate(parts)]


def test_pools_that_contradict_themselves_are_told_and_ignored(dgx):
    node = node_of(dgx)
    names = [f"{name}-{i}" for name, (parts, _) in CONTRADICTIONS.items() for i in range(len(parts))]
    try:
        apply(dgx, CLASS, *(s for name, (parts, _) in CONTRADICTIONS.items() for s in published(name, node, parts)))
        apply(dgx, *pod("waits", "1", node), *_plain("goes-on", node))

        def told():
            events = dgx.items("events", "-A", "--field-selector", "reason=InvalidPool")
            found = {(event["involvedObject"]["name"], event["message"]) for event in events}
            wanted = {
                (f"{name}-{i}", f"pool {name} of {DRIVER} is ignored: {reason}")
                for name, (parts, reason) in CONTRADICTIONS.items()
                for i in range(len(parts))
            }
            return wanted <= found

        dgx.until(told, "an Event on every slice at fault")
        dgx.until(lambda: "goes-on" in running(dgx), "pods that need none of it run")
        dgx.until(lambda: f"the pool {DRIVER}/twice is invalid" in verdict(dgx, "waits"), "who waits is told the pools")
        assert dgx.phases("default")["waits"] == "Pending"
        fixed = published("twice", node, [{"devices": [{"name": "a"}]}, {"devices": [{"name": "b"}]}])
        apply(dgx, *fixed)
        apply(dgx, *_plain("uses-it", node, claim="vf"))
        dgx.until(lambda: "uses-it" in running(dgx), "what is put right is used")
    finally:
        dgx.kubectl("delete", "pods,resourceclaims", "--all", "-n", "default", "--wait=false")
        dgx.kubectl("delete", "resourceslice", *names, "--ignore-not-found")
        dgx.until(lambda: not dgx.items("pods", "-n", "default"), "the pods are gone")


def _plain(name: str, node: str, claim: str = "") -> list[dict]:
    """A pod without a claim, or with one for any device of the class."""
    made = pod(name, "1", node)
    if not claim:
        del made[1]["spec"]["resourceClaims"]
        return made[1:]
    made[0]["spec"]["devices"]["requests"] = [{"name": "vf", "exactly": {"deviceClassName": claim}}]
    return made


def test_a_pool_is_ignored_as_long_as_its_slices_do_not_belong_together(dgx):
    """Half-published pools and mixed generations are what updates look like: they are no contradictions."""
    node = node_of(dgx)
    half = slice_of("half-0", node, pool="half", count=2, devices=[{"name": "a"}])
    try:
        apply(dgx, CLASS, half, *_plain("half", node, claim="vf"))
        dgx.until(lambda: "half is being updated" in verdict(dgx, "half"), "the pod is told what it waits for")
        newer = slice_of("half-1", node, pool="half", generation=2, devices=[{"name": "b"}])
        apply(dgx, newer)
        dgx.until(lambda: "half" in running(dgx), "the newer generation is complete by itself")
        (result,) = dgx.get("resourceclaim", "half")["status"]["allocation"]["devices"]["results"]
        assert result["device"] == "b"
    finally:
        dgx.kubectl("delete", "pods,resourceclaims", "--all", "-n", "default", "--wait=false")
        dgx.kubectl("delete", "resourceslice", "half-0", "half-1", "--ignore-not-found")
        dgx.until(lambda: not dgx.items("pods", "-n", "default"), "the pods are gone")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"sharedCounters": [{**SET, "name": f"s{i}"} for i in range(9)]},
            "spec.sharedCounters: Too many: 9: must have at most 8 items",
        ),
        (
            {"devices": [{"name": f"d{i}"} for i in range(129)]},
            "spec.devices: Too many: 129: must have at most 128 items",
        ),
        ({"devices": [{"name": "a"}, {"name": "a"}]}, 'spec.devices[1]: Duplicate value: "a"'),
        (
            {"devices": [{"name": "a"}], "sharedCounters": [SET]},
            "only one of `sharedCounters` or `devices` is allowed",
        ),
    ],
)
def test_what_one_slice_shows_to_be_wrong_is_refused(dgx, spec, message):
    made = dgx.try_kubectl("apply", "-f", "-", stdin=yaml.safe_dump(slice_of("wrong", node_of(dgx), **spec)))
    assert made.returncode == 1
    assert message in made.stderr


def test_whoever_may_ask_is_told_what_a_driver_has_left(dgx):
    request = {
        "apiVersion": "resource.k8s.io/v1alpha3",
        "kind": "ResourcePoolStatusRequest",
        "metadata": {"name": "check-gpus"},
        "spec": {"driver": "gpu.nvidia.com"},
    }
    try:
        dgx.kubectl("create", "-f", "-", stdin=json.dumps(request))
        dgx.kubectl("wait", "--for=condition=Complete", "resourcepoolstatusrequest/check-gpus", "--timeout=30s")
        status = dgx.get("resourcepoolstatusrequest", "check-gpus")["status"]
        assert status["poolCount"] == len(status["pools"]) == 3
        for pool in status["pools"]:
            slices = dgx.items("resourceslices", "--field-selector", f"spec.pool.name={pool['poolName']}")
            assert pool["totalDevices"] == sum(len(entry["spec"].get("devices", ())) for entry in slices)
            assert pool["totalDevices"] == pool["availableDevices"] + pool["allocatedDevices"]
            assert pool["resourceSliceCount"] == len(slices)
            assert pool["nodeName"] == slices[0]["spec"]["nodeName"]
            assert pool["shareableSummary"]["capacity"]
        table = dgx.kubectl("get", "resourcepoolstatusrequests")
        assert table.splitlines()[0].split() == ["NAME", "DRIVER", "POOL", "POOLS", "STATUS", "AGE"]
        assert table.splitlines()[1].split()[:5] == ["check-gpus", "gpu.nvidia.com", "<All>", "3", "Complete"]
    finally:
        dgx.kubectl("delete", "resourcepoolstatusrequest", "check-gpus", "--ignore-not-found")
