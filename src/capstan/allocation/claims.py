"""From a claim's text to what the search works on: requests with their alternatives and candidates.

All that does not depend on the choices of the search is decided here: selectors, taints, devices in use, room for the
capacity asked for. What remains per request is a list of candidates in allocation order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction

from capstan.allocation import capacity
from capstan.allocation.constraints import Constraint, MatchAttribute, Values, build
from capstan.allocation.inventory import Inventory
from capstan.allocation.model import ClaimKey, Features, InvalidClaim, Number, SelectorError, number
from capstan.allocation.nodes import NodeDevices
from capstan.allocation.pools import Consumption, Device
from capstan.allocation.selectors import InvalidSelector, SelectorFailed, derived
from capstan.allocation.uses import blocked, fits
from capstan.api.core import Toleration
from capstan.api.quantity import InvalidQuantity
from capstan.api.resource import (
    MAX_RESULTS,
    DeviceRequest,
    DeviceSelector,
    DeviceSubRequest,
    ExactDeviceRequest,
    ResourceClaim,
)

FRACTION_ANNOTATION = "platform.capstan.dev/memory-fraction"
"""On a synthesized claim: the part of the chosen device's own memory that each device of the claim is asked for."""

Invalid = Callable[[str, str], InvalidClaim]
"""Makes the refusal of one request out of a reason and a text."""

MEBIBYTE = 1 << 20
_MANY = 16
_FRACTION = re.compile(r"[0-9]{1,10}/[1-9][0-9]{0,9}")
_FOUND = ("blocked", "candidates", "matched", "in_use", "tainted", "gate", "gated", "refused_by_capacity")


class Candidate:
    """A device that an alternative may take, and what it takes of it."""

    __slots__ = ("derived", "device", "drawn", "error", "takes")

    def __init__(
        self,
        device: Device,
        takes: dict[str, Number] | None,
        error: SelectorError | None,
        derived: dict[str, Values] | None = None,
        drawn: Consumption = (),
    ) -> None:
        self.device = device
        self.drawn = drawn
        """What it takes from counters because the request asks for it (KEP-5941), beside what the device always
        takes."""
        self.derived = derived
        """Derived attributes by name (KEP-6080)."""
        self.takes = takes
        """Capacity per name for a share, which admin access gets without taking it; None for a device that is not
        shared."""
        self.error = error
        """A selector failed on the device, so it may not be taken."""


class Alternative:
    """One way to satisfy a request: the request itself, or one of its `firstAvailable` subrequests."""

    __slots__ = (
        "admin",
        "base",
        "blocked",
        "candidates",
        "class_name",
        "constraints",
        "count",
        "every",
        "gate",
        "gated",
        "in_use",
        "matched",
        "name",
        "refused_by_capacity",
        "tainted",
        "tolerations",
    )

    def __init__(self, base: str, name: str, spec: ExactDeviceRequest | DeviceSubRequest) -> None:
        self.base = base
        self.name = name
        """As in results: `request` or `request/subrequest`."""
        self.class_name = spec.device_class_name
        self.every = spec.allocation_mode == "All"
        self.count = spec.count
        self.admin = isinstance(spec, ExactDeviceRequest) and bool(spec.admin_access)
        self.tolerations: list[Toleration] = spec.tolerations
        self.constraints: list[Constraint] = []
        self.candidates: list[Candidate] = []
        self.matched = self.in_use = self.tainted = self.gated = self.refused_by_capacity = 0
        self.gate = ""
        """The feature that the devices which count as `gated` need."""
        self.blocked: int | None = None
        """Allocation mode All, and one of the devices cannot be had: the one after so many candidates."""

    @property
    def size(self) -> int:
        """How many devices it takes, those included that cannot be had."""
        return self.matched - self.refused_by_capacity if self.every else self.count

    @property
    def fatal(self) -> bool:
        """Whether kube-scheduler's allocator may give up on reaching it, instead of trying something else."""
        return (self.every and bool(self.constraints)) or any(candidate.error for candidate in self.candidates)

    @property
    def exclusive(self) -> bool:
        """Whether what it takes cannot be taken by anybody else."""
        return not self.admin and all(candidate.takes is None for candidate in self.candidates)

    def reachable(self) -> list[Candidate]:
        """The candidates without those that a match constraint rules out at a glance; others may be impossible, too."""
        if len(self.candidates) < _MANY or any(candidate.error for candidate in self.candidates):
            return self.candidates  # kube-scheduler evaluates selectors before constraints
        fewest = self.candidates
        for constraint in self.constraints:
            if isinstance(constraint, MatchAttribute):
                found = constraint.among(self.candidates)
                fewest = found if len(found) < len(fewest) else fewest
        return fewest


class Request:
    """A request of a claim with its alternatives in the user's order of preference."""

    __slots__ = ("alternatives", "claim")

    def __init__(self, claim: PreparedClaim, alternatives: list[Alternative]) -> None:
        self.claim = claim
        self.alternatives = alternatives


class PreparedClaim:
    __slots__ = ("claim", "constraints", "index", "key", "requests")

    def __init__(self, index: int, claim: ResourceClaim) -> None:
        self.index = index
        self.claim = claim
        self.key: ClaimKey = claim.key
        self.constraints: list[Constraint] = []
        self.requests: list[Request] = []


class Preparation:
    """Prepares claims against what one node sees.

    `patient`: selectors that fail and constraints that cannot hold for all devices are left for the search to find, as
    kube-scheduler's allocator does, which may be satisfied before it gets there.
    """

    def __init__(self, inventory: Inventory, devices: NodeDevices, features: Features, *, patient: bool) -> None:
        self._inventory = inventory
        self._devices = devices
        self._features = features
        self._patient = patient
        self._known: dict[Hashable, Alternative] = {}
        """What equal requests found already."""

    def claim(self, index: int, claim: ResourceClaim) -> PreparedClaim:
        """Raises InvalidClaim naming the claim and the request."""
        prepared = PreparedClaim(index, claim)
        key, spec = claim.key, claim.spec.devices
        for position, constraint in enumerate(spec.constraints):
            built = build(constraint)
            if built is None:
                text = f"constraint #{position} is of an unknown kind; use matchAttribute or distinctAttribute"
                raise InvalidClaim("InvalidClaim", about(key, "", text), key)
            prepared.constraints.append(built)
        fraction = _fraction(claim)
        for request in spec.requests:
            alternatives = [
                self._alternative(prepared, base, name, option, fraction)
                for base, name, option in self._options(key, request)
            ]
            prepared.requests.append(Request(prepared, alternatives))
            if len(alternatives) == 1 and alternatives[0].every and not self._patient:
                _check_all(alternatives[0], key)
        least = sum(min(alternative.size for alternative in request.alternatives) for request in prepared.requests)
        if least > MAX_RESULTS:
            text = f"asks for {least} devices, but one claim can hold {MAX_RESULTS}; split it into several claims"
            raise InvalidClaim("TooManyDevices", about(key, "", text), key)
        return prepared

    def _options(
        self, key: ClaimKey, request: DeviceRequest
    ) -> list[tuple[str, str, ExactDeviceRequest | DeviceSubRequest]]:
        if request.exactly is not None:
            return [(request.name, request.name, request.exactly)]
        if not request.first_available:
            text = "has neither exactly nor firstAvailable"
            raise InvalidClaim("InvalidClaim", about(key, request.name, text), key, request.name)
        if not self._features.prioritized_list:
            text = "has subrequests, but the feature DRAPrioritizedList is off"
            raise InvalidClaim("InvalidClaim", about(key, request.name, text), key, request.name)
        return [(request.name, f"{request.name}/{option.name}", option) for option in request.first_available]

    def _alternative(
        self,
        prepared: PreparedClaim,
        base: str,
        name: str,
        spec: ExactDeviceRequest | DeviceSubRequest,
        fraction: Fraction | None,
    ) -> Alternative:
        key = prepared.key

        def invalid(reason: str, text: str) -> InvalidClaim:
            return InvalidClaim(reason, about(key, name, text), key, name)

        if spec.allocation_mode not in ("ExactCount", "All"):
            raise invalid(
                "InvalidClaim", f"has the unknown allocation mode {spec.allocation_mode!r}; use ExactCount or All"
            )
        if not spec.device_class_name:
            raise invalid("InvalidClaim", "names no device class")
        if spec.device_class_name not in self._inventory.classes:
            raise invalid("UnknownDeviceClass", f"the device class {spec.device_class_name} does not exist")
        if any(selector.cel is None for selector in self._selectors(spec)):
            raise invalid("InvalidClaim", "has a selector of a kind this version does not know; use cel")
        alternative = Alternative(base, name, spec)
        if isinstance(spec, ExactDeviceRequest) and spec.admin_access is not None and not self._features.admin_access:
            raise invalid("InvalidClaim", "asks for admin access, but the feature DRAAdminAccess is off")
        if spec.capacity is not None and not self._features.consumable_capacity:
            raise invalid("InvalidClaim", "asks for capacity, but the feature DRAConsumableCapacity is off")
        if spec.derived_attributes and not self._features.derived_attributes:
            raise invalid("InvalidClaim", "has derived attributes, but the feature DRADerivedAttributes is off")
        if not alternative.every and alternative.count < 1:
            raise invalid("InvalidClaim", f"asks for {alternative.count} devices; the count must be at least 1")
        alternative.constraints = [c for c in prepared.constraints if c.covers(base, name)]
        if alternative.every:
            self._require_all_pools(invalid)
        self._collect(alternative, spec, fraction, invalid)
        return alternative

    def _selectors(self, spec: ExactDeviceRequest | DeviceSubRequest) -> list[DeviceSelector]:
        return [*self._inventory.classes[spec.device_class_name].spec.selectors, *spec.selectors]

    def _require_all_pools(self, invalid: Invalid) -> None:
        for pool in self._devices.pools:
            if pool.problem:
                raise invalid(
                    "InvalidPool",
                    f"asks for all devices, but the pool {pool.driver}/{pool.name} is invalid: {pool.problem.reason}",
                )
            if not pool.complete:
                raise invalid(
                    "IncompletePool", f"asks for all devices, but the pool {pool.driver}/{pool.name} is being updated"
                )

    def _collect(
        self,
        alternative: Alternative,
        spec: ExactDeviceRequest | DeviceSubRequest,
        fraction: Fraction | None,
        invalid: Invalid,
    ) -> None:
        """Finds the candidates. Requests that ask for the same share them, which the search makes use of."""
        try:
            amounts = {name: number(amount) for name, amount in spec.capacity.requests.items()} if spec.capacity else {}
        except InvalidQuantity as error:
            raise invalid("InvalidClaim", f"has an amount of capacity that cannot be read: {error}") from error
        expressions = self._inventory.expressions(spec.device_class_name, spec.selectors)
        tolerated = tuple((t.key, t.operator, t.value, t.effect) for t in spec.tolerations)
        compared = {constraint.attribute for constraint in alternative.constraints}
        virtual = tuple((e.name, e.expression) for e in spec.derived_attributes if e.name in compared)
        key = (
            *(expressions, spec.allocation_mode, alternative.admin, tuple(amounts.items())),
            *(tolerated, fraction, virtual),
        )
        known = self._known.get(key)
        if known is not None:
            for field in _FOUND:
                setattr(alternative, field, getattr(known, field))
            return
        devices, errors = self._devices.matches(expressions)
        for device in devices:
            failure = errors.get(device) if errors else None
            if failure is not None and not self._tolerated(alternative, device, failure, invalid):
                continue
            if device.binding and not self._features.binding_conditions:
                continue
            if device.selects_node and not self._features.partitionable_devices:
                continue
            self._consider(alternative, device, failure, _wanted(device, amounts, fraction))
        if virtual:
            _derive(alternative, virtual, invalid)
        self._known[key] = alternative

    def _tolerated(self, alternative: Alternative, device: Device, failure: SelectorError, invalid: Invalid) -> bool:
        """Whether a device on which a selector failed counts as a candidate that cannot be taken. Raises InvalidClaim
        where no other device can make up for it."""
        if not self._patient:
            if not device.scope.matches(self._devices.view):
                return False
            if isinstance(failure, InvalidSelector):
                raise invalid(failure.reason, str(failure)) from failure
        if alternative.every and not (device.binding and not self._features.binding_conditions):
            raise invalid(failure.reason, str(failure)) from failure
        return True

    def _block(self, alternative: Alternative) -> None:
        if alternative.every and alternative.blocked is None:
            alternative.blocked = len(alternative.candidates)

    def _consider(
        self, alternative: Alternative, device: Device, failure: SelectorError | None, wanted: Mapping[str, Number]
    ) -> None:
        use = None if alternative.admin else self._inventory.use(device)
        shared = device.multiple and self._features.consumable_capacity
        taken = use is not None and (not shared or bool(use.whole))
        if failure is not None:
            if not taken:
                alternative.candidates.append(Candidate(device, None, failure))
            return
        alternative.matched += 1
        takes: dict[str, Number] | None = None
        drawn: Consumption | None = ()
        if device.draws and not alternative.admin:
            drawn = self._drawn(device, wanted)
        elsewhere = [name for _, _, name in device.draws] if device.draws and self._draws else ()
        if shared:
            takes = self._consumption(device, wanted, elsewhere)
            roomy = takes is not None and (use is None or fits(device, use.consumed, takes))
        else:
            roomy = not wanted or self._consumption(device, wanted, elsewhere) is not None
        if not roomy or drawn is None:
            alternative.refused_by_capacity += 1
        elif taken:
            alternative.in_use += 1
            self._block(alternative)
        elif device.spec.consumes_counters and (gate := self._gate_needed(device)):
            alternative.gated += 1
            alternative.gate = gate
            self._block(alternative)
        elif device.taints and self._features.device_taints and blocked(device.taints, alternative.tolerations):
            alternative.tainted += 1
            self._block(alternative)
        else:
            alternative.candidates.append(Candidate(device, takes, None, drawn=drawn))

    def _consumption(
        self, device: Device, wanted: Mapping[str, Number], elsewhere: Sequence[str]
    ) -> dict[str, Number] | None:
        fractional = self._features.fractional_capacity
        return capacity.consumption(device.spec, device.driver, wanted, elsewhere, fractional=fractional)

    @property
    def _draws(self) -> bool:
        """Whether counters are consumed as requested; without the gate, such counters count for nothing."""
        features = self._features
        return features.shared_consumable_capacity and features.consumable_capacity and features.partitionable_devices

    def _drawn(self, device: Device, wanted: Mapping[str, Number]) -> Consumption | None:
        """What the request takes from counters that the device draws from; None if a policy does not allow it."""
        if not self._draws:
            return ()
        offers = self._inventory.pool(device.pool).offers
        fractional = self._features.fractional_capacity
        drawn = []
        for counter_set, name, source in device.draws:
            amount = capacity.consumed_of(offers[counter_set][name], wanted.get(source), fractional=fractional)
            if amount is None:
                return None
            drawn.append((counter_set, ((name, amount),)))
        return tuple(drawn)

    def _gate_needed(self, device: Device) -> str:
        """The feature without which what the device says about counters is not understood, if it is off. Without
        compatibility groups, what has groups is left alone, and so is what shares counters with it."""
        if not self._features.partitionable_devices:
            return "DRAPartitionableDevices"
        if self._features.compatibility_groups:
            return ""
        named = {taken.counter_set for taken in device.spec.consumes_counters}
        grouped = any(taken.compatibility_groups for taken in device.spec.consumes_counters)
        uses = self._inventory.uses(device.pool).values()
        beside = any(names and counter_set in named for use in uses for counter_set, names in use.groups)
        return "DRADeviceCompatibilityGroups" if grouped or beside else ""


def _check_all(alternative: Alternative, key: ClaimKey) -> None:
    """Raises InvalidClaim where a constraint can never hold for all devices that a request asks for."""
    for constraint in alternative.constraints:
        added = 0
        for candidate in alternative.candidates:
            if not constraint.admits(candidate):
                raise cannot_hold(key, alternative, candidate, constraint)
            constraint.add(candidate)
            added += 1
        for _ in range(added):
            constraint.remove()


def cannot_hold(key: ClaimKey, alternative: Alternative, candidate: Candidate, constraint: Constraint) -> InvalidClaim:
    """All devices are asked for, and a constraint keeps one of them out."""
    text = f"asks for all devices, but with {candidate.device.id} the constraint on {constraint.attribute} cannot hold"
    text = about(key, alternative.name, f"{text}; select fewer devices or drop the constraint")
    return InvalidClaim("InvalidClaim", text, key, alternative.name)


def _derive(alternative: Alternative, attributes: Sequence[tuple[str, str]], invalid: Invalid) -> None:
    """Gives every candidate its derived attributes, each a name and an expression; where one fails, the device counts
    as one that a selector failed on."""
    for candidate in alternative.candidates:
        if candidate.error is not None:
            continue
        try:
            candidate.derived = {name: derived(candidate.device, expression) for name, expression in attributes}
        except InvalidSelector as error:
            raise invalid("InvalidSelector", str(error)) from error
        except SelectorFailed as error:
            if alternative.every:
                raise invalid("SelectorFailed", str(error)) from error
            candidate.error = error


def _wanted(device: Device, amounts: Mapping[str, Number], fraction: Fraction | None) -> Mapping[str, Number]:
    """The capacity asked of the device, under qualified names."""
    if fraction is not None:
        return _part_of_memory(device, fraction)
    return {capacity.qualified(name, device.driver): amount for name, amount in amounts.items()} if amounts else amounts


def _fraction(claim: ResourceClaim) -> Fraction | None:
    text = claim.metadata.annotations.get(FRACTION_ANNOTATION)
    if text is None:
        return None
    fraction = Fraction(text) if _FRACTION.fullmatch(text) else Fraction(0)
    if not 0 < fraction < 1:
        message = f"the annotation {FRACTION_ANNOTATION} is {text!r}; write a fraction such as 1/2"
        raise InvalidClaim("InvalidClaim", about(claim.key, "", message), claim.key)
    return fraction


def _part_of_memory(device: Device, fraction: Fraction) -> Mapping[str, Number]:
    """The fraction of the device's own memory in whole MiB, rounded down so that n shares of 1/n always fit."""
    key = f"{device.driver}/{capacity.MEMORY}"
    for name, entry in device.spec.capacity.items():
        if capacity.qualified(name, device.driver) == key:
            return {key: max(1, int(Fraction(number(entry.value)) * fraction) // MEBIBYTE) * MEBIBYTE}
    return {key: MEBIBYTE}


def about(key: ClaimKey, request: str, text: str) -> str:
    """The text with the claim and, if not empty, the request that it is about."""
    namespace, name = key
    return f"claim {namespace}/{name}, request {request}: {text}" if request else f"claim {namespace}/{name}: {text}"
