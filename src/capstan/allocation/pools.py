"""From ResourceSlices to devices: pools put together, checked, and ordered.

One pool is all slices of one driver with one pool name. Only the highest generation counts, only a complete one is
allocated from, and one that contradicts itself is reported and ignored (KEP-4381; the order is kube-scheduler's:
driver and pool name, then slice name, then position in the slice, with pools that have binding conditions last). A
node that sees only some of the slices judges the pool by those: whether it is complete, whose devices are unique, and
whether it has binding conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from capstan.allocation.capacity import qualified
from capstan.allocation.model import DeviceId, Features, NodeView, Number, Problem, SelectorError, number
from capstan.api import resource
from capstan.api.core import Quantity, Taint
from capstan.api.quantity import InvalidQuantity
from capstan.api.resource import Counter, CounterConsumption, DeviceAttribute, DeviceCapacity, ResourceSlice
from capstan.api.selectors import InvalidSelector, NodeSelector

if TYPE_CHECKING:
    from capstan.allocation.tables import Table

PoolKey = tuple[str, str]
"""(driver, pool name). Never the name alone: two drivers may both name their pool after the node."""

Consumption = tuple[tuple[str, tuple[tuple[str, Number], ...]], ...]
"""What a device takes from counter sets: ((set, ((counter, amount), ...)), ...)."""

Draw = tuple[str, str, str]
"""What a device takes from a counter as a claim asks (KEP-5941): (set, counter, qualified name of the capacity)."""

AttributeValue = tuple[str, object]
"""An attribute's value with its type, so that the string "1" and the version "1" differ."""

Errors = dict["Device", SelectorError]
"""Devices on which a selector failed, which therefore are neither selected nor rejected."""


_SHARED = 100_000
"""Parts that are remembered for sharing; a fleet has a few hundred different ones."""


class Shared:
    """Equal parts of devices become one object: equal nodes publish equal tables, and a fleet has many equal nodes.

    The published objects are made to refer to the shared parts, so that whoever holds them is relieved of the copies.
    """

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self._capacities: dict[bytes, dict[str, DeviceCapacity]] = {}
        self._consumptions: dict[bytes, tuple[list[CounterConsumption], Consumption, tuple[Draw, ...]]] = {}

    def bound(self) -> None:
        """Forgets everything once it is too much."""
        if len(self._capacities) + len(self._consumptions) > _SHARED:
            self._capacities.clear()
            self._consumptions.clear()

    def share(
        self, device: resource.Device, driver: str, attributes: dict[bytes, dict[str, DeviceAttribute]]
    ) -> tuple[Consumption, tuple[Draw, ...]]:
        """Shares what the device has in common with others; returns what it consumes, always and on request.
        `attributes` are those seen in the pool. Raises InvalidQuantity and _Contradiction for amounts that cannot
        be."""
        capacity = device.capacity
        if capacity:
            key = self._encoder.encode(capacity)
            known = self._capacities.get(key)
            if known is None:
                _check_capacities(device)
                known = self._capacities[key] = capacity
            device.capacity = known
        if not device.consumes_counters:
            return (), ()
        # Partitions of one profile differ in nothing but their name and place; whole devices have a UUID each.
        device.attributes = attributes.setdefault(self._encoder.encode(device.attributes), device.attributes)
        key = driver.encode() + self._encoder.encode(device.consumes_counters)
        consumed = self._consumptions.get(key)
        if consumed is None:
            consumed = (device.consumes_counters, _consumption(device), _draws(device, driver))
            self._consumptions[key] = consumed
        device.consumes_counters = consumed[0]
        return consumed[1:]


class Scope(msgspec.Struct, frozen=True, gc=False):
    """Which nodes see a device: exactly one of the three is set (`spec` of the slice, or of the device)."""

    name: str | None
    selector: NodeSelector | None
    all_nodes: bool

    def matches(self, node: NodeView) -> bool:
        if self.name:
            return self.name == node.name
        if self.all_nodes:
            return True
        return self.selector is not None and self.selector.matches(node.name, node.labels)


class Device(msgspec.Struct, eq=False, gc=False):
    """One published device. Compared by identity: a republished device is a new object with the same id.

    Not tracked by the cyclic collector, fleets have too many: it must not refer to its pool.
    """

    pool: PoolKey
    spec: resource.Device
    scope: Scope
    order: int
    """Position within the pool, in allocation order."""
    consumption: Consumption
    draws: tuple[Draw, ...]
    taints: list[Taint]
    """Its own and those of taint rules."""
    skip_node_operations: list[str]

    @property
    def id(self) -> DeviceId:
        return DeviceId(*self.pool, self.spec.name)

    @property
    def driver(self) -> str:
        return self.pool[0]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def multiple(self) -> bool:
        return bool(self.spec.allow_multiple_allocations)

    @property
    def counter_sets(self) -> list[str]:
        """The counter sets it takes from, each once."""
        return list(dict.fromkeys([*(name for name, _ in self.consumption), *(name for name, _, _ in self.draws)]))

    @property
    def selects_node(self) -> bool:
        """Whether the device itself says which nodes see it (`perDeviceNodeSelection`)."""
        spec = self.spec
        return spec.node_name is not None or spec.node_selector is not None or spec.all_nodes is not None

    @property
    def binding(self) -> bool:
        return bool(self.spec.binding_conditions)

    def attribute(self, name: str) -> DeviceAttribute | None:
        """The attribute with this fully qualified name; the driver may have published it without its own domain."""
        found = self.spec.attributes.get(name)
        if found is None:
            domain, _, identifier = name.partition("/")
            if domain == self.driver:
                found = self.spec.attributes.get(identifier)
        return found


def scalar(attribute: DeviceAttribute) -> AttributeValue | None:
    """The value of a scalar attribute, None for a list."""
    if attribute.string is not None:
        return ("string", attribute.string)
    if attribute.int_ is not None:
        return ("int", attribute.int_)
    if attribute.bool_ is not None:
        return ("bool", attribute.bool_)
    if attribute.version is not None:
        return ("version", attribute.version)
    return None


def values(attribute: DeviceAttribute) -> frozenset[AttributeValue]:
    """The values of an attribute as a set; a scalar is a set of one (KEP-5491). Empty if the type is unknown."""
    single = scalar(attribute)
    if single is not None:
        return frozenset((single,))
    for kind, several in (
        ("int", attribute.ints),
        ("bool", attribute.bools),
        ("string", attribute.strings),
        ("version", attribute.versions),
    ):
        if several is not None:
            return frozenset((kind, value) for value in several)
    return frozenset()


class Slices:
    """All slices of one pool, with the pools that they make for the nodes that see all of them, or some."""

    __slots__ = ("_features", "all", "key", "parts", "whole")

    def __init__(self, key: PoolKey, features: Features) -> None:
        self.key = key
        self._features = features
        self.all: dict[str, ResourceSlice] = {}
        self.whole: Pool | None = None
        self.parts: dict[tuple[str, ...], Pool | None] = {}
        """By the names of the slices that are seen."""

    def invalidate(self) -> None:
        self.whole = None
        self.parts.clear()

    def together(self, shared: Shared) -> Pool:
        """The pool that all slices make."""
        current = _newest(list(self.all.values()))
        complete = bool(current) and current[0].spec.pool.resource_slice_count == len(current)
        return Pool(self.key, current, (), complete, shared, self._features)

    def part(self, seen: list[ResourceSlice], shared: Shared) -> Pool | None:
        """The pool that these make for a node that sees no others; None for slices that are about to be deleted."""
        current = _newest(seen)
        generation, count = current[0].spec.pool.generation, current[0].spec.pool.resource_slice_count
        if len(current) == count:  # whatever other nodes see
            return Pool(self.key, current, (), True, shared, self._features)
        rest = [entry for entry in self.all.values() if entry.spec.pool.generation >= generation]
        if any(entry.spec.pool.generation > generation for entry in rest):
            return None
        names = {entry.metadata.name for entry in current}
        others = [entry for entry in rest if entry.metadata.name not in names]
        return Pool(self.key, current, others, len(rest) == count, shared, self._features)


def _newest(slices: list[ResourceSlice]) -> list[ResourceSlice]:
    """The slices of the newest generation by name; older ones are about to be deleted."""
    if len(slices) < 2:
        return slices
    newest = max(entry.spec.pool.generation for entry in slices)
    return sorted((e for e in slices if e.spec.pool.generation == newest), key=lambda e: e.metadata.name)


class Pool:
    """Slices put together: the devices of those that are seen, and the counters of all. Only a `usable` one is
    allocated from; what is known of others counts for the claims that hold their devices."""

    __slots__ = (
        "complete",
        "counters",
        "devices",
        "driver",
        "late",
        "matched",
        "mixed",
        "name",
        "offers",
        "problem",
        "tables",
    )

    def __init__(
        self,
        key: PoolKey,
        seen: Sequence[ResourceSlice],
        others: Sequence[ResourceSlice],
        complete: bool,
        shared: Shared,
        features: Features,
    ) -> None:
        self.driver, self.name = key
        self.complete = complete
        self.problem: Problem | None = None
        self.late = False
        """Has a device with binding conditions; such pools come last."""
        self.mixed = False
        """Devices say themselves which nodes see them."""
        self.devices: dict[str, Device] = {}
        """By name, in allocation order, each the first of its name."""
        self.counters: dict[str, dict[str, Number]] = {}
        """What each counter set declares."""
        self.offers: dict[str, dict[str, Counter]] = {}
        """The same as published, with the policies for what claims may ask of a counter."""
        self.matched: dict[tuple[str, ...], tuple[list[Device], Errors]] = {}
        """Devices that a list of selectors selects, or on which one fails: a cache for `selectors`."""
        self.tables: tuple[Number, dict[str, Table]] | None = None
        """Fragmentation tables per counter set: a cache for `score`."""
        try:
            self._read(seen, others, shared, features)
        except (_Contradiction, InvalidQuantity, InvalidSelector) as error:
            self._report(str(error), (*seen, *others))
            self.devices, self.counters = {}, {}

    @property
    def key(self) -> PoolKey:
        return (self.driver, self.name)

    @property
    def usable(self) -> bool:
        return self.complete and self.problem is None

    def _report(self, reason: str, slices: Sequence[ResourceSlice]) -> None:
        """What is wrong with a pool that is being updated may be right once the driver is done."""
        if not self.complete:
            return
        names = tuple(sorted(entry.metadata.name for entry in slices))
        self.problem = self.problem or Problem(self.driver, self.name, reason, names)

    def _read(
        self, seen: Sequence[ResourceSlice], others: Sequence[ResourceSlice], shared: Shared, features: Features
    ) -> None:
        key = self.key
        attributes: dict[bytes, dict[str, DeviceAttribute]] = {}
        shared.bound()
        for entry in (*seen, *others):
            for declared in entry.spec.shared_counters:
                if declared.name in self.counters:
                    raise _Contradiction(f"the counter set {declared.name} is declared twice")
                self.counters[declared.name] = {
                    name: _offered(counter, f"the counter {name} of the set {declared.name}")
                    for name, counter in declared.counters.items()
                }
        devices, driver = self.devices, self.driver
        for entry in seen:
            spec = entry.spec
            _check_selector(spec.node_selector)
            place = None
            if spec.per_device_node_selection:
                self.mixed = True
            else:
                place = Scope(spec.node_name, spec.node_selector, bool(spec.all_nodes))
            for device in spec.devices:
                if device.name in devices:
                    self._report(f"the device {device.name} is published twice", seen)
                    continue
                if not features.list_attributes:
                    device = _without_lists(device)
                consumption, draws = shared.share(device, driver, attributes)
                if consumption or draws:
                    self._check_consumption(device.name, consumption, draws)
                scope = place
                if scope is None:
                    _check_selector(device.node_selector)
                    scope = Scope(device.node_name, device.node_selector, bool(device.all_nodes))
                devices[device.name] = Device(
                    key,
                    device,
                    scope,
                    len(devices),
                    consumption,
                    draws,
                    device.taints,
                    spec.skip_node_operations,
                )
                if device.binding_conditions:
                    self.late = True
        for entry in others:
            for device in entry.spec.devices:
                self._check_consumption(device.name, _consumption(device), _draws(device, driver))
        for entry in (*seen, *others):
            for declared in entry.spec.shared_counters:
                self.offers[declared.name] = declared.counters
        for entry in seen:
            if entry.spec.partition_type_attribute and features.partition_types:
                self._check_types(entry.spec.partition_type_attribute, entry.spec.devices)

    def _check_consumption(self, device: str, consumption: Consumption, draws: tuple[Draw, ...]) -> None:
        taken = [(counter_set, name) for counter_set, amounts in consumption for name, _ in amounts]
        taken += [(counter_set, name) for counter_set, name, _ in draws]
        for counter_set, name in taken:
            declared = self.counters.get(counter_set)
            if declared is None:
                raise _Contradiction(
                    f"the device {device} consumes the counter set {counter_set}, which no slice declares"
                )
            if name not in declared:
                what = f"the counter {name} of the set {counter_set}"
                raise _Contradiction(f"the device {device} consumes {what}, which no slice declares")

    def _check_types(self, attribute: str, devices: list[resource.Device]) -> None:
        """Every partition has a type, and partitions of one type cost the same (KEP-4815, partitionTypeAttribute)."""
        costs: dict[str, list[object]] = {}
        for published in devices:
            device = self.devices[published.name]
            if not device.spec.consumes_counters:
                continue
            found = device.attribute(attribute)
            if found is None or found.string is None:
                raise _Contradiction(
                    f"the partition {published.name} has no string attribute {attribute}, which says its type"
                )
            cost: list[object] = [*(taken for _, taken in device.consumption), *(draw[1:] for draw in device.draws)]
            if costs.setdefault(found.string, cost) != cost:
                raise _Contradiction(f"partitions of the type {found.string} consume different counters")


def _without_lists(device: resource.Device) -> resource.Device:
    attributes = {name: value for name, value in device.attributes.items() if scalar(value) is not None}
    return msgspec.structs.replace(device, attributes=attributes)


class _Contradiction(Exception):
    """What a pool's slices say cannot all be true."""


def _amount(value: Quantity, what: str) -> Number:
    amount = number(value)
    if amount < 0:
        raise _Contradiction(f"{what} is {value}; it cannot be below zero")
    return amount


def _check_selector(selector: NodeSelector | None) -> None:
    """Raises InvalidSelector for what could not be matched or could not be merged into the selector of an
    allocation."""
    terms = selector.node_selector_terms if selector is not None else []
    if len(terms) > 1:
        raise InvalidSelector(f"a node selector has {len(terms)} terms, one is allowed")
    for term in terms:
        for requirement in (*term.match_expressions, *term.match_fields):
            requirement.matches({})


def _check_capacities(device: resource.Device) -> None:
    """Raises InvalidQuantity, so that nothing has to expect it later."""
    for capacity in device.capacity.values():
        _offered(capacity, f"a capacity of the device {device.name}")


def _offered(offer: DeviceCapacity | Counter, what: str) -> Number:
    """The value of a capacity or counter; every amount of its policy is looked at, too."""
    policy = offer.request_policy
    if policy is not None:
        least = policy.valid_range
        limits = (policy.default, *((least.min, least.max, least.step) if least else ()))
        for amount in (*policy.valid_values, *(limit for limit in limits if limit is not None)):
            _amount(amount, what)
    return _amount(offer.value, what)


def _consumption(device: resource.Device) -> Consumption:
    return tuple(
        (
            taken.counter_set,
            tuple(
                sorted(
                    (name, _amount(c.value or 0, f"what the device {device.name} consumes"))
                    for name, c in taken.counters.items()
                    if c.value_from is None
                )
            ),
        )
        for taken in device.consumes_counters
        if any(c.value_from is None for c in taken.counters.values())
    )


def _draws(device: resource.Device, driver: str) -> tuple[Draw, ...]:
    draws = []
    for taken in device.consumes_counters:
        for name, counter in sorted(taken.counters.items()):
            if counter.value_from is not None:
                if counter.value is not None or not counter.value_from.capacity_name:
                    what = f"the counter {name} of the set {taken.counter_set}"
                    raise _Contradiction(
                        f"the device {device.name} consumes {what} by neither value nor valueFrom alone"
                    )
                draws.append((taken.counter_set, name, qualified(counter.value_from.capacity_name, driver)))
    return tuple(draws)
