"""`device-classes` and `mig-layout`: what users may ask DRA for, and how a class is shared.

Classes select devices of NVIDIA's DRA driver by type; a sharing strategy becomes the driver's opaque config in the
class, which holds for every claim of the class that does not bring its own.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from capstan.api import nvidia
from capstan.blueprints.components.values import InvalidValues, Manifest, Values, manifest

_PROFILE = re.compile(r"\d+g\.\d+gb(\+me(\.all)?|\+gfx|-me)?")
_CONFIG_KINDS = {"gpu": "GpuConfig", "mig": "MigDeviceConfig"}


class Sharing(Values):
    strategy: Literal["TimeSlicing", "MPS"]
    interval: Literal["Default", "Short", "Medium", "Long"] | None = None
    """Of time slices."""
    threads: int | None = None
    """Percentage of threads that a client of MPS may use."""
    pinned_memory: str | None = None
    """Device memory that a client of MPS may pin, a quantity."""


class Class(Values):
    type: Literal["gpu", "mig", "vfio"] = "gpu"
    product: str = ""
    """Only devices of this product name."""
    profile: str = ""
    """Only MIG devices of this profile, such as 1g.5gb."""
    expression: str = ""
    """A further CEL condition on `device`."""
    extended_resource: str = ""
    """The resource name by which pods without claims may ask for the class."""
    sharing: Sharing | None = None


class Classes(Values):
    classes: dict[str, Class]


class MigLayout(Values):
    profiles: list[str]
    prefix: str = "mig-"
    extended_resources: bool = True
    """Also serve each profile as `nvidia.com/mig-<profile>`."""


def classes(values: Classes) -> list[Manifest]:
    return [_class(name, item) for name, item in values.classes.items()]


def mig_layout(values: MigLayout) -> list[Manifest]:
    rendered = []
    for number, profile in enumerate(values.profiles):
        if _PROFILE.fullmatch(profile) is None:
            raise InvalidValues(f"profiles[{number}]", f"{profile!r} is not a MIG profile", "write for example 1g.5gb")
        resource = f"nvidia.com/mig-{profile.replace('+', '.')}" if values.extended_resources else ""
        name = values.prefix + profile.replace("+", "-")
        rendered.append(_class(name, Class(type="mig", profile=profile, extended_resource=resource)))
    return rendered


def _class(name: str, item: Class) -> Manifest:
    domain = f"device.attributes['{nvidia.DRIVER}']"
    terms = [f"device.driver == '{nvidia.DRIVER}'", f"{domain}.type == '{item.type}'"]
    if item.product:
        terms.append(f"{domain}.productName == {_literal(item.product, f'classes.{name}.product')}")
    if item.profile:
        if item.type != "mig":
            raise InvalidValues(f"classes.{name}.profile", "only MIG devices have a profile", "set type: mig")
        terms.append(f"{domain}.profile == {_literal(item.profile, f'classes.{name}.profile')}")
    if item.expression:
        terms.append(f"({item.expression})")
    spec: dict[str, Any] = {"selectors": [{"cel": {"expression": " && ".join(terms)}}]}
    if item.extended_resource:
        spec["extendedResourceName"] = item.extended_resource
    if item.sharing is not None:
        spec["config"] = [{"opaque": {"driver": nvidia.DRIVER, "parameters": _sharing(name, item)}}]
    return manifest("resource.k8s.io/v1", "DeviceClass", name, spec=spec)


def _sharing(name: str, item: Class) -> dict[str, Any]:
    assert item.sharing is not None
    sharing, path = item.sharing, f"classes.{name}.sharing"
    if item.type == "vfio":
        raise InvalidValues(path, "a device that is passed through cannot be shared", "remove sharing")
    content: dict[str, Any] = {"strategy": sharing.strategy}
    if sharing.strategy == "TimeSlicing":
        if sharing.threads is not None or sharing.pinned_memory is not None:
            raise InvalidValues(path, "threads and pinnedMemory belong to MPS", "remove them or set strategy: MPS")
        if item.type == "gpu":
            content["timeSlicingConfig"] = {"interval": sharing.interval or "Default"}
    else:
        if sharing.interval is not None:
            raise InvalidValues(f"{path}.interval", "MPS has no time slices", "remove it or set strategy: TimeSlicing")
        limits = {
            "defaultActiveThreadPercentage": sharing.threads,
            "defaultPinnedDeviceMemoryLimit": sharing.pinned_memory,
        }
        content["mpsConfig"] = {field: value for field, value in limits.items() if value is not None}
    return {"apiVersion": nvidia.API_VERSION, "kind": _CONFIG_KINDS[item.type], "sharing": content}


def _literal(text: str, path: str) -> str:
    if "'" in text or "\\" in text:
        raise InvalidValues(path, f"{text!r} must not contain quotes or backslashes")
    return f"'{text}'"
