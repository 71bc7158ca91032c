"""Which devices are interchangeable for a search: whatever can be done with one can be done with the other.

Devices that share counters form a component (one physical GPU and its partitions). Untouched components with equal
members and equal remaining counters are interchangeable as wholes; an attribute value that occurs in one component
only (a UUID, the parent of partitions) does not tell components apart, its pattern within the component does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from capstan.allocation.claims import Request
from capstan.allocation.constraints import Constraint
from capstan.allocation.inventory import Inventory
from capstan.allocation.pools import Device, Pool

Traits = Callable[[Device], tuple[object, ...]]
Component = tuple[Pool, str] | Device


class Symmetry:
    """Built once a search has failed somewhere; `kind` is equal for interchangeable devices."""

    def __init__(self, inventory: Inventory, requests: Sequence[Request], traits: Traits | None) -> None:
        roles: dict[Device, list[object]] = {}
        constraints: dict[int, Constraint] = {}
        for number, option in enumerate(option for request in requests for option in request.alternatives):
            for candidate in option.candidates:
                takes = None if candidate.takes is None else tuple(sorted(candidate.takes.items()))
                roles.setdefault(candidate.device, []).append((number, takes, candidate.error is not None))
            for constraint in option.constraints:
                constraints[id(constraint)] = constraint
        self._component = _components(roles)
        members: dict[Component, list[Device]] = {}
        for device in roles:
            members.setdefault(self._component[device], []).append(device)
        for devices in members.values():
            devices.sort(key=lambda device: device.order)
        self._members = members
        local = _local_values(list(constraints.values()), self._component)
        kinds: dict[Component, tuple[object, ...]] = {}
        self._place: dict[Device, object] = {}
        for component, devices in members.items():
            signature, places = _signature(inventory, devices, roles, list(constraints.values()), local, traits)
            kinds[component] = signature
            self._place.update(places)
        numbers: dict[tuple[object, ...], int] = {}
        self._kind = {component: numbers.setdefault(kind, len(numbers)) for component, kind in kinds.items()}

    def kind(self, device: Device, touched: Callable[[Device], bool]) -> object:
        """Equal for two devices only if swapping them (with their components) changes nothing for the search."""
        component = self._component[device]
        if any(touched(member) for member in self._members[component]):
            return (component, device)
        return (self._kind[component], self._place[device])


def _components(devices: dict[Device, list[object]]) -> dict[Device, Component]:
    parent: dict[Component, Component] = {}

    def root(component: Component) -> Component:
        while parent.setdefault(component, component) != component:
            component = parent[component]
        return component

    for device in devices:
        sets: list[Component] = [(device.pool, name) for name, _ in device.consumption] or [device]
        for other in sets[1:]:
            parent[root(other)] = root(sets[0])
    return {
        device: root((device.pool, device.consumption[0][0]) if device.consumption else device) for device in devices
    }


def _local_values(constraints: list[Constraint], component: dict[Device, Component]) -> set[tuple[int, object]]:
    """(constraint, value) pairs that occur in one component only."""
    seen: dict[tuple[int, object], Component] = {}
    shared: set[tuple[int, object]] = set()
    for device, home in component.items():
        for number, constraint in enumerate(constraints):
            for value in constraint.values(device):
                if seen.setdefault((number, value), home) != home:
                    shared.add((number, value))
    return set(seen) - shared


def _signature(
    inventory: Inventory,
    devices: list[Device],
    roles: dict[Device, list[object]],
    constraints: list[Constraint],
    local: set[tuple[int, object]],
    traits: Traits | None,
) -> tuple[tuple[object, ...], dict[Device, object]]:
    """The component's signature and each member's place in it. A constraint's local values are numbered by first
    sight."""
    sets = sorted({name for device in devices for name, _ in device.consumption})
    pattern: dict[tuple[int, object], int] = {}
    entries: list[tuple[object, ...]] = []
    for device in devices:
        use = inventory.use(device)
        entry: list[object] = [
            tuple(roles[device]),
            tuple((sets.index(name), taken) for name, taken in device.consumption),
            tuple(sorted(use.consumed.items())) if use else None,
            device.multiple,
        ]
        for number, constraint in enumerate(constraints):
            entry.append(
                tuple(
                    sorted(
                        f"#{pattern.setdefault((number, value), len(pattern))}"
                        if (number, value) in local
                        else repr(value)
                        for value in constraint.values(device)
                    )
                )
            )
        entries.append((*entry, *(traits(device) if traits else ())))
    remaining = tuple(tuple(sorted(inventory.left(devices[0].pool)[name].items())) for name in sets)
    return (tuple(entries), remaining), {device: position for position, device in enumerate(devices)}
