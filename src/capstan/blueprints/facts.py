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
from typing import Any

from capstan.api import quantity
from capstan.api.resource import Device, ResourceSlice
from capstan.api.scheduling import RuntimeClass
from capstan.blueprints import versions

Facts = Mapping[str, Any]

NAMES = frozenset(("kubernetes.version", "gpu.product", "gpu.count", "gpu.mig", "gpu.memory", "isolation"))
_GIB = 1 << 30


def observe(
    version: str,
    slices: Iterable[ResourceSlice],
    runtime_classes: Iterable[RuntimeClass] = (),
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The facts of a cluster, from its published devices, runtime classes and the labels of its Cluster object."""
    products: set[str] = set()
    isolation: set[str] = set()
    count, memory, mig = 0, 0, False
    for resource_slice in slices:
        for device in resource_slice.spec.devices:
            kind, product = _text(device, "type"), _text(device, "productName")
            if kind == "gpu":
                count += 1
                if product:
                    products.add(product)
                capacity = device.capacity.get("memory")
                if capacity is not None:
                    memory = max(memory, round(quantity.whole(capacity.value) / _GIB))
            elif kind == "mig":
                mig = True
            elif kind == "vfio":
                isolation.add("vfio")
    if any(_is_kata(runtime_class) for runtime_class in runtime_classes):
        isolation.add("kata")
    gpu: dict[str, Any] = {"count": count}
    if count:
        # Without any device nothing is known about partitions yet: a starting cluster must match no variant by that.
        gpu |= {"product": sorted(products), "mig": mig, "memory": memory}
    return {
        "kubernetes": {"version": version},
        "gpu": gpu,
        "isolation": sorted(isolation),
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


def _text(device: Device, name: str) -> str:
    """An attribute in the driver's own domain, whether written short or qualified."""
    for key, attribute in device.attributes.items():
        if key.rpartition("/")[2] == name:
            return attribute.string or ""
    return ""


def _is_kata(runtime_class: RuntimeClass) -> bool:
    return "kata" in runtime_class.handler
