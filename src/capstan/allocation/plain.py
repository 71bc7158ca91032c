"""Plain claims: so many devices of one kind and nothing else. Equal questions about equal nodes have equal answers.

Most pods ask for n whole GPUs of a node. Which n are best depends on how the devices compare to each other, on which of
them are free and on what is left of their counters, not on what they are called; and equal nodes publish equal devices.
So what the search finds for one node in one state is remembered, and found again for every node alike in that state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from capstan.allocation.answers import Answer, Choice, Key, Kind
from capstan.allocation.capacity import consumption
from capstan.allocation.claims import FRACTION_ANNOTATION, Alternative, Candidate, PreparedClaim, Request
from capstan.allocation.inventory import Inventory
from capstan.allocation.nodes import NodeDevices
from capstan.allocation.pools import Device
from capstan.allocation.score import alignment
from capstan.allocation.search import Pick
from capstan.allocation.selectors import Expressions
from capstan.allocation.tables import weight
from capstan.allocation.uses import fits
from capstan.api.resource import MAX_RESULTS, ExactDeviceRequest, ResourceClaim


class Question(NamedTuple):
    """A plain claim about one node."""

    key: Key
    kind: Kind
    claim: ResourceClaim
    request: ExactDeviceRequest

    def picks(self, answer: Answer) -> tuple[PreparedClaim, list[Pick]]:
        """The devices that the answer means here, as a search would have picked them."""
        name = self.claim.spec.devices.requests[0].name
        prepared = PreparedClaim(0, self.claim)
        alternative = Alternative(name, name, self.request)
        request = Request(prepared, [alternative])
        prepared.requests.append(request)
        devices, takes = self.kind.devices, self.kind.takes
        return prepared, [
            Pick(request, alternative, Candidate(devices[at], takes[at], None), options, cost, parts)
            for at, options, cost, parts in answer.choices
        ]

    def answer(self, picks: Sequence[Pick], steps: int, proven: bool) -> Answer:
        """What a search has found, so that it can be told again."""
        position = {device: at for at, device in enumerate(self.kind.devices)}
        choices = (Choice(position[p.candidate.device], p.options, p.cost, p.parts) for p in picks)
        return Answer(tuple(choices), steps, proven)


def question(inventory: Inventory, node: NodeDevices, claims: Sequence[ResourceClaim], budget: int) -> Question | None:
    """The question that claims ask `best-fit`, if it is a plain one."""
    if len(claims) != 1 or inventory.allocation(claims[0].key) is not None:
        return None
    claim, asked = claims[0], claims[0].spec.devices
    if len(asked.requests) != 1 or asked.constraints or FRACTION_ANNOTATION in claim.metadata.annotations:
        return None
    request = asked.requests[0].exactly
    if (
        request is None
        or request.allocation_mode != "ExactCount"
        or not 0 < request.count <= MAX_RESULTS
        or request.admin_access is not None
        or request.capacity is not None
        or request.derived_attributes
        or request.device_class_name not in inventory.classes
    ):
        return None
    kind = _kind(inventory, node, request)
    if kind is None:
        return None
    uses = {pool.key: inventory.uses(pool.key) for pool in node.pools}
    if any(names for some in uses.values() for use in some.values() for _, names in use.groups):
        return None  # without compatibility groups, what shares counters with those that have some is left alone
    free, touched = 0, []
    for at, (pool, name) in enumerate(kind.ids):
        use = uses[pool].get(name)
        if use is None:
            free |= 1 << at
            for counters, declared in kind.sets[at]:
                left = inventory.left(pool)[counters]
                if left != declared:
                    touched.append((at, tuple(left.values())))
        elif not use.whole and kind.devices[at].multiple:
            taken = kind.takes[at]
            if taken is None or fits(kind.devices[at], use.consumed, taken):
                return None  # one more share of a device in use: how much is left of it counts, too
    return Question((kind.number, free, tuple(touched), request.count, budget), kind, claim, request)


def _kind(inventory: Inventory, node: NodeDevices, request: ExactDeviceRequest) -> Kind | None:
    expressions = inventory.expressions(request.device_class_name, request.selectors)
    if expressions not in node.kinds:
        asked = len(inventory.classes[request.device_class_name].spec.selectors) + len(request.selectors)
        known = len(expressions) == asked  # a selector of an unknown kind is no expression
        node.kinds[expressions] = _find_kind(inventory, node, expressions) if known else None
    return node.kinds[expressions]


def _find_kind(inventory: Inventory, node: NodeDevices, expressions: Expressions) -> Kind | None:
    """None if there is more to a device than its uses and its counters: taints, conditions, failed selectors."""
    devices, errors = node.matches(expressions)
    takes = [consumption(d.spec, d.driver, {}) if d.multiple else None for d in devices]
    if errors or any(map(_is_special, devices)):
        return None
    if any(d.multiple and taken is None for d, taken in zip(devices, takes, strict=True)):
        return None
    numbers: dict[object, int] = {}
    signature, sets = [], []
    for device, taken in zip(devices, takes, strict=True):
        pool = inventory.pool(device.pool)
        tables = inventory.tables.of(pool, node.largest)
        sets.append(tuple((name, pool.counters[name]) for name, _ in device.consumption))
        signature.append(
            (
                device.order,
                weight(device, pool.counters, node.largest),
                None if taken is None else tuple(taken.items()),
                tuple(_numbered(values, numbers) for values in alignment(device)),
                tuple(
                    (_numbered([(device.pool, name)], numbers), tables[name], amounts)
                    for name, amounts in device.consumption
                ),
            )
        )
    ids = [(device.pool, device.name) for device in devices]
    return Kind(inventory.answers.number(tuple(signature)), devices, ids, takes, sets)


def _is_special(device: Device) -> bool:
    grouped = any(taken.compatibility_groups for taken in device.spec.consumes_counters)
    return bool(grouped or device.draws or device.taints or device.binding or device.selects_node)


def _numbered(names: Iterable[tuple[object, object]], numbers: dict[object, int]) -> tuple[int, ...]:
    """Names by the order of their first appearance on the node: they are only compared with each other."""
    return tuple(sorted(numbers.setdefault(name, len(numbers)) for name in names))
