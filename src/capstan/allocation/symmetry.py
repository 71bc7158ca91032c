"""Which devices are interchangeable for a search: whatever can be done with one can be done with the other.

Devices that share counters form a component (one physical GPU and its partitions). Components with equal members, equal
remaining counters and equal picks so far are interchangeable as wholes, and so are equal members of one component. An
attribute value that one component has for itself (a UUID, the parent of partitions) does not tell components apart,
only its pattern within the component does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from capstan.allocation.claims import Request
from capstan.allocation.inventory import Inventory
from capstan.allocation.pools import AttributeValue, Device, PoolKey

Reader = Callable[[Device], frozenset[AttributeValue]]
"""Reads an attribute whose values are compared between devices, and only for being equal."""

Traits = Callable[[Device], tuple[Hashable, ...]]
"""What else may tell devices apart."""

Home = tuple[PoolKey, str] | Device


class Symmetry:
    """Equal numbers mean interchangeable: `kind` of untouched components, `entry` of devices within equal
    components."""

    def __init__(
        self, inventory: Inventory, requests: Sequence[Request], readers: Sequence[Reader], traits: Traits
    ) -> None:
        roles: dict[Device, list[Hashable]] = {}
        for number, option in enumerate(option for request in requests for option in request.alternatives):
            for candidate in option.candidates:
                takes = None if candidate.takes is None else tuple(sorted(candidate.takes.items()))
                derived = tuple(sorted(candidate.derived.items())) if candidate.derived else None
                role = (number, takes, candidate.error is not None, derived, candidate.drawn)
                roles.setdefault(candidate.device, []).append(role)
        self.component = _components(roles)
        """The number of each device's component."""
        self.entry: dict[Device, int] = {}
        members: list[list[Device]] = [[] for _ in set(self.component.values())]
        for device in sorted(roles, key=lambda d: d.order):
            members[self.component[device]].append(device)
        read = {device: [reader(device) for reader in readers] for device in roles}
        spread = _spread(self.component, read, len(readers))
        numbers: dict[Hashable, int] = {}
        self.kind: list[int] = []
        for devices in members:
            sets = sorted({name for device in devices for name in device.counter_sets})
            pattern: dict[Hashable, int] = {}
            entries = []
            for device in devices:
                use = inventory.use(device)
                entry: Hashable = (
                    tuple(roles[device]),
                    tuple((sets.index(name), taken) for name, taken in device.consumption),
                    tuple(sorted(use.consumed.items())) if use else None,
                    device.multiple,
                    tuple(_pattern(number, found, spread, pattern) for number, found in enumerate(read[device])),
                    traits(device),
                )
                self.entry[device] = numbers.setdefault(entry, len(numbers))
                entries.append(self.entry[device])
            left = tuple(tuple(sorted(inventory.left(devices[0].pool)[name].items())) for name in sets)
            self.kind.append(numbers.setdefault(("component", tuple(entries), left), len(numbers)))


def _components(devices: dict[Device, list[Hashable]]) -> dict[Device, int]:
    parent: dict[Home, Home] = {}

    def root(home: Home) -> Home:
        while parent.setdefault(home, home) != home:
            home = parent[home]
        return home

    def homes(device: Device) -> list[Home]:
        return [(device.pool, name) for name in device.counter_sets] or [device]

    for device in devices:
        first, *others = homes(device)
        for other in others:
            parent[root(other)] = root(first)
    numbers: dict[Home, int] = {}
    return {device: numbers.setdefault(root(homes(device)[0]), len(numbers)) for device in devices}


def _spread(
    component: dict[Device, int], read: dict[Device, list[frozenset[AttributeValue]]], readers: int
) -> list[dict[AttributeValue, tuple[bool, int]]]:
    """Per reader and value: whether several components have it, and how many devices do."""
    seen: list[dict[AttributeValue, tuple[set[int], int]]] = [{} for _ in range(readers)]
    for device, found in read.items():
        for number, several in enumerate(found):
            for value in several:
                homes, count = seen[number].get(value, (set(), 0))
                homes.add(component[device])
                seen[number][value] = (homes, count + 1)
    return [{value: (len(homes) > 1, count) for value, (homes, count) in values.items()} for values in seen]


def _pattern(
    number: int,
    found: frozenset[AttributeValue],
    spread: list[dict[AttributeValue, tuple[bool, int]]],
    pattern: dict[Hashable, int],
) -> tuple[str, ...]:
    """A set of values as far as it matters: shared ones by name, a component's own by number, a device's own not at
    all."""
    texts = []
    for value in sorted(found, key=repr):
        several, count = spread[number][value]
        if several:
            texts.append(repr(value))
        elif count == 1:
            texts.append("own")
        else:
            texts.append(f"#{pattern.setdefault((number, value), len(pattern))}")
    return tuple(sorted(texts))
