"""What is true about a cluster, and which variant of a blueprint that selects.

Facts are a nested mapping with these names; anything else is unknown and matches nothing:

    kubernetes.version   the API server's version
    gpu.product          list of product names, as in device attributes
    gpu.count            whole GPUs
    gpu.mig              whether any of them can be partitioned
    gpu.memory           GiB of the largest
    isolation            list of kata, vfio: what runtime classes and devices offer
    labels.<key>         what the Cluster object says about itself
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec

from capstan.api import nvidia, quantity
from capstan.api.base import Object, Struct
from capstan.api.core import Quantity
from capstan.api.resources import Resource
from capstan.api.scheduling import RuntimeClass
from capstan.blueprints import versions

Facts = Mapping[str, Any]

NAMES = frozenset(("kubernetes.version", "gpu.product", "gpu.count", "gpu.mig", "gpu.memory", "isolation"))
_GIB = 1 << 30


class _Text(Struct):
    string: str = ""


class _Amount(Struct):
    value: Quantity = 0


class _Attributes(Struct):
    """Written short, or qualified by the driver's domain."""

    type: _Text | None = None
    product_name: _Text | None = None
    qualified_type: _Text | None = msgspec.field(default=None, name=f"{nvidia.DRIVER}/type")
    qualified_product_name: _Text | None = msgspec.field(default=None, name=f"{nvidia.DRIVER}/productName")


class _Capacity(Struct):
    memory: _Amount | None = None
    qualified_memory: _Amount | None = msgspec.field(default=None, name=f"{nvidia.DRIVER}/memory")


class _Device(Struct):
    attributes: _Attributes = msgspec.field(default_factory=_Attributes)
    capacity: _Capacity = msgspec.field(default_factory=_Capacity)


class _Spec(Struct):
    devices: list[_Device] = []


class PublishedSlice(Object):
    """A ResourceSlice as far as facts are made of it: a big cluster publishes a hundred thousand devices."""

    spec: _Spec = msgspec.field(default_factory=_Spec)


SLICES = Resource(
    group="resource.k8s.io",
    version="v1",
    plural="resourceslices",
    kind="ResourceSlice",
    namespaced=False,
    struct=PublishedSlice,
)


class DeviceFacts(NamedTuple):
    """What one slice adds to the facts."""

    products: frozenset[str] = frozenset()
    gpus: int = 0
    mig: bool = False
    vfio: bool = False
    memory: int = 0


def devices(published: PublishedSlice) -> DeviceFacts:
    products: set[str] = set()
    count, memory, mig, vfio = 0, 0, False, False
    for device in published.spec.devices:
        attributes, capacity = device.attributes, device.capacity
        kind = (attributes.type or attributes.qualified_type or _Text()).string
        if kind == "gpu":
            count += 1
            if product := (attributes.product_name or attributes.qualified_product_name or _Text()).string:
                products.add(product)
            amount = capacity.memory or capacity.qualified_memory
            if amount is not None:
                memory = max(memory, round(quantity.whole(amount.value) / _GIB))
        mig = mig or kind == "mig"
        vfio = vfio or kind == "vfio"
    return DeviceFacts(frozenset(products), count, mig, vfio, memory)


def observe(
    version: str,
    published: Iterable[DeviceFacts],
    runtime_classes: Iterable[RuntimeClass] = (),
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The facts of a cluster, from its published devices, runtime classes and the labels of its Cluster object."""
    summaries = list(published)
    count = sum(each.gpus for each in summaries)
    gpu: dict[str, Any] = {"count": count}
    if count:
        # Without any device nothing is known about partitions yet: a starting cluster must match no variant by that.
        gpu |= {
            "product": sorted(frozenset().union(*(each.products for each in summaries))),
            "mig": any(each.mig for each in summaries),
            "memory": max(each.memory for each in summaries),
        }
    offers = {
        "kata": any("kata" in runtime_class.handler for runtime_class in runtime_classes),
        "vfio": any(each.vfio for each in summaries),
    }
    return {
        "kubernetes": {"version": version},
        "gpu": gpu,
        "isolation": [level for level, offered in offers.items() if offered],
        "labels": dict(labels or {}),
    }


def lookup(facts: Facts, name: str) -> Any:
    """A fact by its dotted name; None when it is unknown."""
    if name.startswith("labels."):
        return facts.get("labels", {}).get(name.removeprefix("labels."))
    value: Any = facts
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def terms(when: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A selector as dotted fact name -> wanted value; nested mappings and dotted names mean the same."""
    flat: dict[str, Any] = {}
    for name, wanted in when.items():
        if isinstance(wanted, Mapping):
            flat |= terms(wanted, f"{prefix}{name}.")
        else:
            flat[prefix + name] = wanted
    return flat


def matches(when: Mapping[str, Any], facts: Facts) -> bool:
    """Whether every term holds. A list is "any of"; text is a glob, or a range for versions and numbers."""
    return all(_term_holds(name, wanted, lookup(facts, name)) for name, wanted in terms(when).items())


def specificity(when: Mapping[str, Any]) -> int:
    return len(terms(when))


def disjoint(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether no cluster can match both, as far as plain values and booleans of single-valued facts show."""
    left, right = terms(one), terms(other)
    for name in left.keys() & right.keys():
        first, second = left[name], right[name]
        if name in ("gpu.product", "isolation"):
            continue
        if isinstance(first, bool) or isinstance(second, bool):
            if first != second:
                return True
        elif name.startswith("labels."):
            a, b = _plain_choices(first), _plain_choices(second)
            if a is not None and b is not None and not a & b:
                return True
    return False


def _term_holds(name: str, wanted: Any, actual: Any) -> bool:
    if isinstance(wanted, list):
        return any(_term_holds(name, choice, actual) for choice in wanted)
    if isinstance(actual, list):
        return any(_term_holds(name, wanted, element) for element in actual)
    if actual is None:
        return False
    if isinstance(wanted, bool) or isinstance(actual, bool):
        return wanted is actual
    if name == "kubernetes.version" or (isinstance(actual, int) and isinstance(wanted, str)):
        return versions.within(str(actual), str(wanted))
    return fnmatchcase(str(actual).lower(), str(wanted).lower())


def _plain_choices(wanted: Any) -> set[str] | None:
    choices = [str(choice).lower() for choice in (wanted if isinstance(wanted, list) else [wanted])]
    return None if any(set("*?[") & set(choice) for choice in choices) else set(choices)
