"""What `best-fit` minimises: a cost per device taken, in whole points, so that what is left stays as useful as it was.

| part | points | when |
|---|---|---|
| preference | 10⁹ a place | a later `firstAvailable` alternative is used |
| fragmentation | 1,000 x size² a device | for every device that can no longer be had whole, the taken one included |
| nvlink | 4,000 | the pod's devices so far are in other NVLink domains |
| numa | 2,000 | ... on other NUMA nodes |
| pcie | 1,000 | ... under other PCIe roots |
| spread | up to 100 | much is free in its NVLink domain or NUMA node: the fuller one is used up first |
| taint | 300 | a taint of the device is tolerated, or only informs |
| binding | 300 | the device must be prepared before the pod can be bound |
| leftover | up to 100 | a share leaves much of an already shared device unused |

Size is the device's share of the node's largest; what is free is summed by size². Admin access costs nothing.
Squaring the size makes one large MIG placement worth more than the small ones it could be cut into.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from capstan.allocation.capacity import MEMORY, qualified
from capstan.allocation.claims import Alternative, Candidate, PreparedClaim, Request
from capstan.allocation.constraints import Constraint, MatchAttribute
from capstan.allocation.inventory import Inventory
from capstan.allocation.model import Number
from capstan.allocation.pools import AttributeValue, Device, PoolKey, values
from capstan.allocation.symmetry import Reader, Symmetry
from capstan.allocation.tables import WHOLE, memory, weight

if TYPE_CHECKING:
    from capstan.allocation.search import Parts, Pick, Search

NVLINK_DOMAIN = "platform.capstan.dev/nvlinkDomain"
NUMA_NODE = "resource.kubernetes.io/numaNode"
PCIE_ROOT = "resource.kubernetes.io/pcieRoot"

PREFERENCE = 1_000_000_000
ALIGNMENT = (("nvlink", NVLINK_DOMAIN, 4_000), ("numa", NUMA_NODE, 2_000), ("pcie", PCIE_ROOT, 1_000))
TAINT = 300
BINDING = 300
SMALL = 100

Values = frozenset[AttributeValue]
Home = tuple[PoolKey, str]
"""A counter set."""


class BestFit:
    """The cost of `best-fit` for one search (`search.Cost`)."""

    def __init__(self, inventory: Inventory, claims: Sequence[PreparedClaim], largest: Number) -> None:
        self._inventory = inventory
        self._requests = [request for claim in claims for request in claim.requests]
        self._tables = inventory.tables
        alternatives = [option for request in self._requests for option in request.alternatives]
        devices = {candidate.device: None for option in alternatives for candidate in option.candidates}
        self._partitions = any(device.consumption for device in devices)
        self._largest = largest
        self._weight = {d: weight(d, inventory.pool(d.pool).counters, largest) for d in devices}
        self._values: dict[Device, tuple[Values, ...]] = {device: alignment(device) for device in devices}
        self._spread: dict[Device, int] = {}
        self._floor: dict[Alternative, int] = {}
        """What one device of the alternative costs at least."""
        self._homes: dict[Constraint, dict[AttributeValue, Home | None]] = {}
        """Per match constraint, the counter set that all devices with a value take from, if it is one."""
        self._least: dict[tuple[Alternative, Home], tuple[int, dict[str, Number]]] = {}
        self._grouped: Pick | None = None
        self._groups: tuple[Values, ...] = ()
        """Up to the pick `_grouped`: the NVLink domains, NUMA nodes and PCIe roots of the devices taken."""
        for option in alternatives:
            self._measure(option)

    def _measure(self, option: Alternative) -> None:
        for place in range(2):
            free: dict[AttributeValue, int] = {}
            for candidate in option.candidates:
                for value in self._values[candidate.device][place]:
                    free[value] = free.get(value, 0) + self._weight[candidate.device]
            if len(free) < 2:
                continue
            most = max(free.values())
            for candidate in option.candidates:
                for value in self._values[candidate.device][place]:
                    points = SMALL * free[value] * self._weight[candidate.device] // (most * WHOLE)
                    self._spread[candidate.device] = max(self._spread.get(candidate.device, 0), points)
        costs = (
            0 if option.admin else self._certain(c) + (0 if c.takes is not None else self._weight[c.device])
            for c in option.candidates
        )
        self._floor[option] = min(costs, default=0)

    def rank(self, position: int) -> int:
        return PREFERENCE * position

    def floor(self, search: Search, index: int, alternative: Alternative, need: int) -> int:
        return need * self._floor[alternative] + sum(map(self._lowest, search.requests[index + 1 :]))

    def _lowest(self, request: Request) -> int:
        costs = (0 if option.every else option.count * self._floor[option] for option in request.alternatives)
        return min(costs, default=0)

    def ahead(self, search: Search, index: int, alternative: Alternative, need: int) -> int:
        """Where a match constraint ties the devices to one counter set, what no longer fits beside the least they take
        of it is lost for certain. Devices that are not tied to it are not among that: those must fit."""
        floor = self.floor(search, index, alternative, need)
        for constraint in alternative.constraints if self._partitions else ():
            home = self._home(constraint)
            if home is None:
                continue
            tied, other = [(alternative, need)], 0
            for request in search.requests[index + 1 :]:
                (option, *others) = request.alternatives
                if others or option.every or constraint not in option.constraints:
                    other += self._lowest(request)
                else:
                    tied.append((option, option.count))
            taken: dict[str, Number] = {}
            for option, count in tied:
                points, least = self._at_home(option, home)
                other += count * points
                for name, amount in least.items():
                    taken[name] = taken.get(name, 0) + count * amount
            pool, name = home
            table = self._tables.of(self._inventory.pool(pool), self._largest)[name]
            floor = max(floor, other + table.lost(search.left(pool, name), tuple(sorted(taken.items()))))
        return floor

    def _home(self, constraint: Constraint) -> Home | None:
        """The counter set that the constraint leaves; None if several, or devices without one, are left."""
        if not isinstance(constraint, MatchAttribute) or constraint.value is None:
            return None
        homes = self._homes.get(constraint)
        if homes is None:
            homes = self._homes[constraint] = {}
            for option in (option for request in self._requests for option in request.alternatives):
                for candidate in option.candidates if constraint in option.constraints else ():
                    device = candidate.device
                    home = (device.pool, device.consumption[0][0]) if len(device.consumption) == 1 else None
                    for value in constraint.values(candidate):
                        homes[value] = home if homes.setdefault(value, home) == home else None
        return homes.get(constraint.value)

    def _at_home(self, option: Alternative, home: Home) -> tuple[int, dict[str, Number]]:
        """What one device of the option that takes from the counter set costs at least, fragmentation aside, and the
        least that it takes."""
        known = self._least.get((option, home))
        if known is None:
            own = [
                c
                for c in option.candidates
                if c.device.pool == home[0] and [name for name, _ in c.device.consumption] == [home[1]]
            ]
            points, least = min(map(self._certain, own), default=0), dict[str, Number]()
            if option.exclusive and own:
                rows = [dict(taken) for c in own for _, taken in c.device.consumption]
                least = {name: min(row.get(name, 0) for row in rows) for name in rows[0]}
            known = self._least[option, home] = (0 if option.admin else points, least)
        return known

    def symmetry(self, readers: list[Reader]) -> Symmetry:
        alignment = [partial(self._aligned, place) for place in range(len(ALIGNMENT))]
        return Symmetry(self._inventory, self._requests, [*readers, *alignment], self._traits)

    def _aligned(self, place: int, device: Device) -> Values:
        return self._values[device][place]

    def _traits(self, device: Device) -> tuple[Hashable, ...]:
        return (self._weight[device], self._spread.get(device, 0), bool(device.taints), device.binding)

    def _certain(self, candidate: Candidate) -> int:
        device = candidate.device
        return self._spread.get(device, 0) + (TAINT if device.taints else 0) + (BINDING if device.binding else 0)

    def of(self, search: Search, alternative: Alternative, candidate: Candidate) -> tuple[int, Parts]:
        if alternative.admin:
            return 0, ()
        device = candidate.device
        fragmentation, leftover = self._fragmentation(search, candidate)
        found = (
            ("fragmentation", fragmentation),
            ("leftover", leftover),
            ("spread", self._spread.get(device, 0)),
            ("taint", TAINT if device.taints else 0),
            ("binding", BINDING if device.binding else 0),
        )
        parts = [part for part in found if part[1]]
        if search.picks:
            parts += self._misalignment(search.picks, device)
        return sum(points for _, points in parts), tuple(parts)

    def _fragmentation(self, search: Search, candidate: Candidate) -> tuple[int, int]:
        device = candidate.device
        use = self._inventory.use(device)
        shares = search.shares(device)
        if candidate.takes is not None and (use is not None or shares):
            return 0, self._leftover(device, candidate.takes, [*([use.consumed] if use else []), *shares])
        if not device.consumption:
            return self._weight[device], 0
        tables = self._tables.of(self._inventory.pool(device.pool), self._largest)
        return sum(tables[name].lost(search.left(device.pool, name), taken) for name, taken in device.consumption), 0

    def _leftover(self, device: Device, takes: dict[str, Number], used: list[dict[str, Number]]) -> int:
        """How much of the device's memory the share leaves unused, up to 100 points."""
        total = memory(device)
        if not total:
            return 0
        name = MEMORY if MEMORY in device.spec.capacity else qualified(MEMORY, device.driver)
        spent = takes.get(name, 0) + sum(share.get(name, 0) for share in used)
        return max(0, int(SMALL * (total - spent) / total))

    def _misalignment(self, picks: Sequence[Pick], device: Device) -> list[tuple[str, int]]:
        if self._grouped is not picks[-1]:  # picks are a stack: below the same pick lie the same others
            taken = [self._values[pick.candidate.device] for pick in picks if not pick.alternative.admin]
            self._grouped, self._groups = (
                picks[-1],
                tuple(frozenset().union(*place) for place in zip(*taken, strict=True)),
            )
        return [
            (name, points)
            for (name, _, points), own, known in zip(ALIGNMENT, self._values[device], self._groups, strict=False)
            if own and known and own.isdisjoint(known)
        ]


def alignment(device: Device) -> tuple[Values, ...]:
    """The NVLink domains, NUMA nodes and PCIe roots of a device."""
    groups = []
    for _, name, _ in ALIGNMENT:
        attribute = device.attribute(name)
        groups.append(frozenset() if attribute is None else values(attribute))
    return tuple(groups)
