"""Components that Capstan renders itself: from an add-on's values to manifests.

A component is a struct of its values (unknown ones are errors) and a function from it to manifests. Collections are
maps keyed by name, so that layers can change one entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from capstan.blueprints.components import classes, devices, policies, queues
from capstan.blueprints.components.values import InvalidValues, Manifest, Values

V = TypeVar("V", bound=Values)


class Component(msgspec.Struct, Generic[V], frozen=True):
    name: str
    summary: str
    values: type[V]
    manifests: Callable[[V], list[Manifest]]

    def render(self, values: Mapping[str, Any]) -> list[Manifest]:
        """Raises InvalidValues, naming the path inside of the values."""
        try:
            typed = msgspec.convert(values, self.values)
        except msgspec.ValidationError as error:
            found = re.match(r"^(.*) - at `\$?(.*)`$", str(error))
            message, path = (found[1], found[2].removeprefix(".")) if found else (str(error), "")
            raise InvalidValues(path, message[:1].lower() + message[1:]) from None
        return self.manifests(typed)


COMPONENTS: dict[str, Component[Any]] = {
    component.name: component
    for component in (
        Component("queues", "KAI queues with quota, limit and weight", queues.Queues, queues.render),
        Component("device-classes", "DRA device classes and how they are shared", devices.Classes, devices.classes),
        Component("mig-layout", "a device class per MIG profile", devices.MigLayout, devices.mig_layout),
        Component("runtime-classes", "container runtimes such as Kata", classes.Runtimes, classes.runtimes),
        Component("priority-classes", "pod priorities; KAI's four by default", classes.Priorities, classes.priorities),
        Component("namespaces", "namespaces with labels", classes.Namespaces, classes.namespaces),
        Component("policies", "admission policies written in CEL", policies.Policies, policies.render),
    )
}

__all__ = ["COMPONENTS", "Component", "InvalidValues", "Manifest"]
