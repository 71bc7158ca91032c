"""`best-fit` leaves what is left as useful as it was; `kubernetes` takes the first that fits."""

from __future__ import annotations

from typing import Any

from capstan.allocation import Allocation, Inventory, NodeView, allocate

N1 = NodeView("n1")


def take(make: Any, inv: Inventory, *claims: Any, policy: Any = "best-fit") -> list[str]:
    answer = allocate(inv, claims, N1, policy)
    names = list(make.devices(answer))
    for key, held in answer.results.items():  # type: ignore[union-attr]
        inv.assume(key, held)
    return names


def parts(gpu: int, count: int = 2, size: int = 40) -> list[dict[str, Any]]:
    """A GPU of 80 GiB as a whole and in halves."""

    def part(name: str, memory: int, kind: str) -> dict[str, Any]:
        return {
            "name": name,
            "attributes": {"type": {"string": kind}, "parentUUID": {"string": f"GPU-{gpu}"}},
            "capacity": {"memory": {"value": f"{memory}Gi"}},
            "consumesCounters": [{"counterSet": f"s{gpu}", "counters": {"memory": {"value": f"{memory}Gi"}}}],
        }

    return [part(f"gpu-{gpu}", 80, "gpu"), *(part(f"gpu-{gpu}-{i}", size, "mig") for i in range(count))]


def partitioned(make: Any, gpus: int) -> Inventory:
    counters = {f"s{gpu}": {"memory": "80Gi"} for gpu in range(gpus)}
    devices = [device for gpu in range(gpus) for device in parts(gpu)]
    types = {"whole": "gpu", "part": "mig"}
    classes = [make.device_class(n, f"device.attributes['gpu.nvidia.com'].type == '{t}'") for n, t in types.items()]
    return make.inventory(make.slice(devices, counters=counters), *classes)  # type: ignore[no-any-return]


def test_parts_come_from_a_gpu_that_is_split_already(make: Any) -> None:
    inv = partitioned(make, 3)
    first = make.claim("a", make.request("r", "part", "device.attributes['gpu.nvidia.com'].parentUUID == 'GPU-1'"))
    assert take(make, inv, first) == ["gpu-1-0"]
    assert take(make, inv, make.claim("b", make.request("r", "part"))) == ["gpu-1-1"]
    assert inv.free("n1", "whole") == 2


def test_any_device_will_do_so_the_smallest_is_taken(make: Any) -> None:
    inv = partitioned(make, 1)
    assert take(make, inv, make.claim("a", make.request())) == ["gpu-0-0"]
    mixed = make.inventory(make.slice([make.gpu("h100", "80Gi"), make.gpu("l4", "24Gi"), make.gpu("a100", "40Gi")]))
    assert take(make, mixed, make.claim("a")) == ["l4"]
    assert take(make, mixed, make.claim("b", make.request(capacity={"requests": {"memory": "30Gi"}}))) == ["a100"]


def test_devices_of_a_pod_stay_together(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu(f"gpu-{i}", numa=i % 2, nvlink=f"d{i // 4}") for i in range(8)]))
    assert take(make, inv, make.claim("c", make.request(count=2)), policy="kubernetes") == ["gpu-0", "gpu-1"]
    inv.release(("ns", "c"))
    assert take(make, inv, make.claim("c", make.request(count=2))) == ["gpu-0", "gpu-2"]
    inv.release(("ns", "c"))
    domains = {name: number // 4 for number, name in enumerate(f"gpu-{i}" for i in range(8))}
    four = take(make, inv, make.claim("a", make.request(count=2)), make.claim("b", make.request(count=2)))
    assert len({domains[name] for name in four}) == 1


def test_the_fuller_domain_is_used_up_first(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu(f"gpu-{i}", numa=0 if i < 5 else 1) for i in range(8)]))
    assert take(make, inv, make.claim("one")) == ["gpu-5"]
    assert take(make, inv, make.claim("two", make.request(count=2))) == ["gpu-6", "gpu-7"]
    assert take(make, inv, make.claim("five", make.request(count=5))) == [f"gpu-{i}" for i in range(5)]


def test_a_nic_is_taken_beside_its_gpu(make: Any) -> None:
    gpus = [make.gpu(f"gpu-{i}", pcie=f"p{i}", numa=i // 2) for i in range(4)]
    nics = [{"name": f"nic-{i}", "attributes": make.attributes(pcie=f"p{i}", numa=i // 2)} for i in range(4)]
    inv = make.inventory(
        make.slice(gpus), make.slice(nics, driver="nic.dev"), make.device_class("nic", "device.driver == 'nic.dev'")
    )
    take(
        make, inv, make.claim("a", make.request("r", make.DRIVER, "device.attributes['gpu.nvidia.com'].type == 'gpu'"))
    )
    names = take(make, inv, make.claim("b", make.request()), make.claim("c", make.request("n", "nic")))
    assert names == ["gpu-1", "nic-1"]


def test_tainted_and_unprepared_devices_come_last(make: Any) -> None:
    informed = make.gpu("informed") | {"taints": [{"key": "k", "effect": "None"}]}
    waits = make.gpu("waits") | {"bindingConditions": ["ready"]}
    inv = make.inventory(make.slice([informed, waits, make.gpu("good")]))
    assert take(make, inv, make.claim("a")) == ["good"]


def test_the_users_order_of_alternatives_outweighs_everything(make: Any) -> None:
    inv = partitioned(make, 1)
    options = [{"name": "whole", "deviceClassName": "whole"}, {"name": "part", "deviceClassName": "part"}]
    assert take(make, inv, make.claim("a", {"name": "r", "firstAvailable": options})) == ["gpu-0"]


def test_the_explanation_adds_up(make: Any) -> None:
    inv = make.inventory(make.slice([make.gpu(f"gpu-{i}", numa=i // 2, pcie=f"p{i}") for i in range(4)]))
    answer = allocate(inv, [make.claim("c", make.request(count=3))], N1)
    assert isinstance(answer, Allocation)
    assert answer.optimal
    assert [choice.candidates for choice in answer.explanation] == [4, 3, 2]
    assert all(choice.cost == sum(points for _, points in choice.parts) for choice in answer.explanation)
    assert [dict(choice.parts).get("numa") for choice in answer.explanation] == [None, None, 2000]
    assert "out of 2, cost" in str(answer.explanation[2])
