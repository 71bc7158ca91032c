"""Objects for the allocation tests, written as short as the rule they show allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import pytest

from capstan.allocation import Allocation, Features, Inventory, Refusal
from capstan.api.resource import DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice

DRIVER = "gpu.nvidia.com"
STANDARD = {
    "numa": "resource.kubernetes.io/numaNode",
    "pcie": "resource.kubernetes.io/pcieRoot",
    "nvlink": "platform.capstan.dev/nvlinkDomain",
}
T = TypeVar("T")


def decode(body: Mapping[str, Any], kind: type[T]) -> T:
    return msgspec.convert(body, kind, strict=False)


class Make:
    """Builders; the fixture `make` hands them out."""

    DRIVER = DRIVER
    decode = staticmethod(decode)

    @staticmethod
    def attributes(**values: object) -> dict[str, Any]:
        """`type="gpu"`, `index=3`; `numa` and `pcie` are the standard attributes."""
        kinds = {bool: "bool", int: "int", str: "string", list: "strings"}
        return {STANDARD.get(name, name): {kinds[type(value)]: value} for name, value in values.items()}

    @staticmethod
    def gpu(name: str, memory: str = "80Gi", **values: object) -> dict[str, Any]:
        return {
            "name": name,
            "attributes": Make.attributes(type="gpu", **values),
            "capacity": {"memory": {"value": memory}},
        }

    @staticmethod
    def shared(name: str, memory: str = "80Gi", **values: object) -> dict[str, Any]:
        """A GPU of which claims may take parts of the memory; a claim that says nothing takes all of it."""
        policy = {"default": memory, "validRange": {"min": "1Mi", "max": memory, "step": "1Mi"}}
        return Make.gpu(name, **values) | {
            "allowMultipleAllocations": True,
            "capacity": {"memory": {"value": memory, "requestPolicy": policy}},
        }

    @staticmethod
    def slice(
        devices: Sequence[Mapping[str, Any]],
        *,
        node: str | None = "n1",
        pool: str = "",
        name: str = "",
        driver: str = DRIVER,
        generation: int = 1,
        count: int = 1,
        counters: Mapping[str, Mapping[str, object]] | None = None,
        **spec: object,
    ) -> ResourceSlice:
        where: dict[str, Any] = {"nodeName": node} if node else {}
        pool = pool or node or "shared"
        body = {
            "metadata": {"name": name or f"{pool}-{driver}"},
            "spec": {
                "driver": driver,
                "pool": {"name": pool, "generation": generation, "resourceSliceCount": count},
                "devices": list(devices),
                "sharedCounters": [
                    {"name": set_, "counters": {n: {"value": v} for n, v in values.items()}}
                    for set_, values in (counters or {}).items()
                ],
                **where,
                **spec,
            },
        }
        return decode(body, ResourceSlice)

    @staticmethod
    def device_class(name: str = DRIVER, *expressions: str, **spec: object) -> DeviceClass:
        selectors = [{"cel": {"expression": e}} for e in expressions or (f"device.driver == '{DRIVER}'",)]
        return decode({"metadata": {"name": name}, "spec": {"selectors": selectors, **spec}}, DeviceClass)

    @staticmethod
    def request(name: str = "gpu", class_name: str = DRIVER, *expressions: str, **exactly: object) -> dict[str, Any]:
        selectors = [{"cel": {"expression": e}} for e in expressions]
        return {"name": name, "exactly": {"deviceClassName": class_name, "selectors": selectors, **exactly}}

    @staticmethod
    def claim(
        name: str = "c", *requests: Mapping[str, Any], constraints: Sequence[Any] = (), **more: Any
    ) -> ResourceClaim:
        body = {
            "metadata": {"name": name, "namespace": "ns", "uid": f"uid-{name}", **more.pop("metadata", {})},
            "spec": {"devices": {"requests": requests or [Make.request()], "constraints": constraints, **more}},
        }
        return decode(body, ResourceClaim)

    @staticmethod
    def taint_rule(name: str, selector: Mapping[str, Any] | None, **taint: object) -> DeviceTaintRule:
        spec: dict[str, Any] = {"taint": {"key": "k", "effect": "NoSchedule", **taint}}
        if selector is not None:
            spec["deviceSelector"] = selector
        return decode({"metadata": {"name": name}, "spec": spec}, DeviceTaintRule)

    @staticmethod
    def inventory(*facts: Any, features: Features | None = None) -> Inventory:
        """An inventory with the class gpu.nvidia.com (every device of the driver) and the facts."""
        inventory = Inventory(features)
        for fact in (Make.device_class(), *facts):
            inventory.upsert(fact)
        return inventory

    @staticmethod
    def devices(answer: Allocation | Refusal) -> list[str]:
        """The names of all allocated devices in order of claims and results."""
        assert isinstance(answer, Allocation), answer
        return [result.device for held in answer.results.values() for result in held.devices.results]


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make
