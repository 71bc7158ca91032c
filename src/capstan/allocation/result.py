"""From the devices that were taken to the `status.allocation` of each claim (KEP-4381)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from capstan.allocation.claims import PreparedClaim
from capstan.allocation.model import Features, NodeView, Number
from capstan.allocation.pools import Device
from capstan.allocation.search import Pick
from capstan.api import quantity
from capstan.api.core import Quantity
from capstan.api.resource import (
    AllocationResult,
    CounterSetConsumption,
    DeviceAllocationResult,
    DeviceClass,
    DeviceConfig,
    DeviceRequestAllocationResult,
)
from capstan.api.selectors import NodeSelector, NodeSelectorTerm, Requirement

_SHARES = uuid.UUID("6f0a0d5e-6d6b-5d0b-9a6b-1f2f0c9d7a11")
"""Namespace of share ids. They are derived, not drawn, so that the same state gives the same allocation."""


def allocation(
    prepared: PreparedClaim,
    picks: Sequence[Pick],
    classes: dict[str, DeviceClass],
    node: NodeView,
    now: str | None,
    features: Features,
) -> AllocationResult:
    """The allocation of one claim. `picks` are the claim's own, in order; `now` (RFC 3339) stamps allocations that
    wait for binding conditions (KEP-5007)."""
    results = [_result(prepared, position, pick) for position, pick in enumerate(picks)]
    if not features.optional_node_operations:
        for result in results:
            result.skip_node_operations = []
    if features.shared_consumable_capacity:
        for result, pick in zip(results, picks, strict=True):
            result.consumed_counters = _counters(pick)
    return AllocationResult(
        devices=DeviceAllocationResult(results=results, config=_config(prepared, picks, classes)),
        node_selector=_node_selector([pick.candidate.device for pick in picks], node),
        allocation_timestamp=now if any(result.binding_conditions for result in results) else None,
    )


def _result(prepared: PreparedClaim, position: int, pick: Pick) -> DeviceRequestAllocationResult:
    device, alternative, takes = pick.candidate.device, pick.alternative, pick.candidate.takes
    result = DeviceRequestAllocationResult(
        request=alternative.name,
        driver=device.driver,
        pool=device.pool[1],
        device=device.name,
        admin_access=True if alternative.admin else None,
        tolerations=alternative.tolerations,
        binding_conditions=device.spec.binding_conditions,
        binding_failure_conditions=device.spec.binding_failure_conditions,
        skip_node_operations=device.skip_node_operations,
    )
    if takes is not None:
        metadata = prepared.claim.metadata
        owner = metadata.uid or f"{metadata.namespace}/{metadata.name}"
        result.share_id = str(uuid.uuid5(_SHARES, f"{owner}/{position}"))
        result.consumed_capacity = {name: _quantity(amount) for name, amount in takes.items()}
    return result


def _counters(pick: Pick) -> list[CounterSetConsumption]:
    """What the device takes from counters, written down so that it counts whatever the slices say later (KEP-5941)."""
    if pick.alternative.admin:
        return []
    sets: dict[str, dict[str, Quantity]] = {}
    for name, taken in (*pick.candidate.device.consumption, *pick.candidate.drawn):
        sets.setdefault(name, {}).update((counter, _quantity(amount)) for counter, amount in taken)
    return [CounterSetConsumption(counter_set=name, counters=counters) for name, counters in sets.items()]


def _quantity(amount: Number) -> Quantity:
    return quantity.canonical(quantity.render(amount))


def _config(prepared: PreparedClaim, picks: Sequence[Pick], classes: dict[str, DeviceClass]) -> list[DeviceConfig]:
    """Configs of the classes, each once and naming its requests, then those of the claim that a chosen request is
    covered by. A config that covers every request names none, which means the same."""
    chosen: dict[str, str] = {}
    by_class: dict[str, list[str]] = {}
    for pick in picks:
        if pick.alternative.base not in chosen:
            chosen[pick.alternative.base] = pick.alternative.name
            by_class.setdefault(pick.alternative.class_name, []).append(pick.alternative.name)
    configs = [
        DeviceConfig(source="FromClass", requests=list(requests), opaque=config.opaque)
        for name, requests in by_class.items()
        for config in classes[name].spec.config
    ]
    configs += [
        DeviceConfig(source="FromClaim", requests=list(config.requests), opaque=config.opaque)
        for config in prepared.claim.spec.devices.config
        if not config.requests or any(b in config.requests or n in config.requests for b, n in chosen.items())
    ]
    for config in configs:
        if all(base in config.requests or name in config.requests for base, name in chosen.items()):
            config.requests = []
    return configs


def _node_selector(devices: Sequence[Device], node: NodeView) -> NodeSelector | None:
    """Where the allocated claim can be used: one node if a device is local to it or binds to it, else every node that
    all devices can be reached from; None for everywhere."""
    merged = NodeSelectorTerm()
    for device in devices:
        if device.scope.name or device.spec.binds_to_node:
            only = Requirement(key="metadata.name", operator="In", values=[device.scope.name or node.name])
            return NodeSelector(node_selector_terms=[NodeSelectorTerm(match_fields=[only])])
        for term in device.scope.selector.node_selector_terms if device.scope.selector else ():
            _merge(term.match_fields, merged.match_fields)
            _merge(term.match_expressions, merged.match_expressions)
    if not merged.match_fields and not merged.match_expressions:
        return None
    return NodeSelector(node_selector_terms=[merged])


def _merge(requirements: list[Requirement], into: list[Requirement]) -> None:
    for requirement in requirements:
        if not any(_same(requirement, known) for known in into):
            into.append(requirement)


def _same(left: Requirement, right: Requirement) -> bool:
    return (left.key, left.operator, set(left.values)) == (right.key, right.operator, set(right.values))
