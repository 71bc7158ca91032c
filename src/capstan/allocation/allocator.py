"""The question of this room: which devices on this node satisfy these claims together, or why none do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from capstan.allocation.claims import Alternative, Preparation, PreparedClaim
from capstan.allocation.inventory import Inventory
from capstan.allocation.model import (
    Allocation,
    AllocationError,
    Choice,
    ClaimKey,
    Features,
    InvalidClaim,
    NodeView,
    Refusal,
)
from capstan.allocation.nodes import NodeDevices
from capstan.allocation.plain import question
from capstan.allocation.pools import Device
from capstan.allocation.result import allocation
from capstan.allocation.score import BestFit
from capstan.allocation.search import BudgetExhausted, Pick, Search
from capstan.api.resource import ResourceClaim

Policy = Literal["best-fit", "kubernetes"]

BUDGET = 20_000
"""Steps of one search. A step looks at the candidates of one device; ordinary claims need as many steps as devices."""

DEEPEST = 600
"""Requests (counted twice) and devices of a pod's claims together; all devices of a request for `All` count as none."""

_USUAL = Features()


def allocate(
    inventory: Inventory,
    claims: Sequence[ResourceClaim],
    node: NodeView,
    policy: Policy = "best-fit",
    budget: int = BUDGET,
    features: Features | None = None,
    now: str | None = None,
) -> Allocation | Refusal:
    """Devices on the node for all claims of a pod together, or the reason why there are none.

    Claims that hold an allocation already are left out of the result, but must be usable on the node. The inventory
    is not changed: `assume` what was decided. `kubernetes` takes the devices that kube-scheduler's allocator would
    take, `best-fit` those that cost least (score.py). `features` stand in for those of the inventory. A refusal other
    than BudgetExhausted is a proof.
    """
    devices = inventory.on_node(node)
    usual = policy == "best-fit" and features is None and inventory.features == _USUAL
    plain = question(inventory, devices, claims, budget) if usual else None
    features = features or inventory.features
    if plain is not None:
        answer = inventory.answers.get(plain.key)
        if answer is not None:
            told, chosen = plain.picks(answer)
            return _allocated(inventory, [told], chosen, node, now, answer.steps, answer.proven, features)
    try:
        preparation = Preparation(inventory, devices, features, patient=policy == "kubernetes")
        prepared: list[PreparedClaim] = []
        for claim in claims:
            held = inventory.allocation(claim.key)
            if held is None:
                prepared.append(preparation.claim(len(prepared), claim))
            elif held.node_selector is not None and not held.node_selector.matches(node.name, dict(node.labels)):
                text = (
                    f"claim {claim.key[0]}/{claim.key[1]}: it is allocated and cannot be used on the node {node.name}"
                )
                raise InvalidClaim("AllocatedElsewhere", text, claim.key)
        _check_depth(prepared)
        too_few = _too_few(prepared, devices, policy)
        if too_few is not None:
            return too_few
        cost = BestFit(inventory, prepared, devices.largest) if policy == "best-fit" else None
        search = Search(inventory, prepared, budget=budget, cost=cost, features=features)
        picks = search.first() if policy == "kubernetes" else search.best()
        if picks is None:
            return _refused(prepared, devices, search)
        if plain is not None:
            inventory.answers.put(plain.key, plain.answer(picks, search.steps, search.proven))
        return _allocated(inventory, prepared, picks, node, now, search.steps, search.proven, features)
    except InvalidClaim as error:
        return Refusal(error.reason, str(error), error.claim, error.request, node.name)
    except BudgetExhausted as error:
        text = f"{error} {devices.where}; there may be one: simplify the constraints or raise the budget"
        return Refusal("BudgetExhausted", text, _first_key(claims), "", node.name, error.steps)


def _allocated(
    inventory: Inventory,
    prepared: list[PreparedClaim],
    picks: list[Pick],
    node: NodeView,
    now: str | None,
    steps: int,
    proven: bool,
    features: Features,
) -> Allocation:
    results = {}
    for claim in prepared:
        own = [pick for pick in picks if pick.request.claim is claim]
        results[claim.key] = allocation(claim, own, inventory.classes, node, now, features)
    explanation = tuple(
        Choice(p.request.claim.key, p.alternative.name, p.candidate.device.id, p.options, p.cost, p.parts)
        for p in picks
    )
    return Allocation(results, explanation, steps, proven)


def _first_key(claims: Sequence[ResourceClaim]) -> ClaimKey | None:
    return claims[0].key if claims else None


def _check_depth(prepared: list[PreparedClaim]) -> None:
    """The search goes one level deeper per request and device. Far beyond any node, but a pod may ask for it."""
    depth = sum(
        2 + max((option.count for option in request.alternatives if not option.every), default=0)
        for claim in prepared
        for request in claim.requests
    )
    if depth > DEEPEST:
        key = prepared[0].key
        text = f"claim {key[0]}/{key[1]} and the pod's {len(prepared) - 1} others ask for too many devices at once"
        raise InvalidClaim("TooManyDevices", text, key)


def _too_few(prepared: list[PreparedClaim], devices: NodeDevices, policy: Policy) -> Refusal | None:
    """The cheap no: a request none of whose alternatives has as many candidates as it needs. What would end the attempt
    of `kubernetes` before that request is reached, only the search can tell."""
    for claim in prepared:
        for request in claim.requests:
            if policy == "kubernetes" and any(option.fatal for option in request.alternatives):
                return None
            if not any(_enough(option) for option in request.alternatives):
                return _shortage(claim, request.alternatives, devices)
    return _too_few_together(prepared, devices)


def _too_few_together(prepared: list[PreparedClaim], devices: NodeDevices) -> Refusal | None:
    """Requests that each take whole devices need as many different ones as they ask for together."""
    requests = [request for claim in prepared for request in claim.requests]
    if len(requests) < 2:
        return None
    wanted = 0
    found: set[Device] = set()
    for request in requests:
        if all(option.exclusive for option in request.alternatives):
            usable = [[c.device for c in option.candidates if c.error is None] for option in request.alternatives]
            sizes = (len(u) if o.every else o.count for o, u in zip(request.alternatives, usable, strict=True))
            wanted += min(sizes)
            found.update(device for each in usable for device in each)
    if wanted <= len(found):
        return None
    names = ", ".join(f"{claim.key[0]}/{claim.key[1]}" for claim in prepared)
    text = f"claims {names}: their requests need {wanted} devices together, {len(found)} are free {devices.where}"
    invalid = _invalid_pools(devices)
    reason = "InvalidPool" if invalid else "NoCombination"
    return Refusal(reason, "; ".join([text, *invalid]), prepared[0].key, "", devices.node)


def _enough(option: Alternative) -> bool:
    if option.blocked is not None:
        return False
    return bool(option.candidates) if option.every else len(option.candidates) >= option.count


def _shortage(claim: PreparedClaim, options: list[Alternative], devices: NodeDevices) -> Refusal:
    node = devices.node
    texts, reason = [], "NoSuchDevices"
    for option in options:
        free = sum(candidate.error is None for candidate in option.candidates)
        needs = "all devices" if option.every else f"{option.count} device{'s' if option.count > 1 else ''}"
        lacks = [
            f"{count} {what}"
            for count, what in (
                (option.in_use, "in use"),
                (option.tainted, "tainted"),
                (option.gated, f"with counters that need the feature {option.gate}, which is off"),
                (option.refused_by_capacity, "without the capacity asked for"),
                (len(option.candidates) - free, "on which a selector failed"),
            )
            if count
        ]
        if option.in_use:
            reason = "DevicesInUse"
        error = next((candidate.error for candidate in option.candidates if candidate.error is not None), None)
        if error is not None:
            reason = "SelectorFailed"
            lacks.append(str(error))
        needs = f"request {option.name} needs {needs} of the class {option.class_name}"
        texts.append(", ".join([f"{needs}; {devices.where} {option.matched} match", *lacks]))
    invalid = _invalid_pools(devices)
    if invalid:
        reason = "InvalidPool"
        texts += invalid
    elif any(not pool.complete for pool in devices.pools):
        texts += [f"the pool {p.driver}/{p.name} is being updated" for p in devices.pools if not p.complete]
    message = f"claim {claim.key[0]}/{claim.key[1]}: {'; '.join(texts)}"
    return Refusal(reason, message, claim.key, options[0].base, node)


def _invalid_pools(devices: NodeDevices) -> list[str]:
    problems = [pool.problem for pool in devices.pools if pool.problem]
    return [f"the pool {problem.driver}/{problem.pool} is invalid: {problem.reason}" for problem in problems]


def _refused(prepared: list[PreparedClaim], devices: NodeDevices, search: Search) -> Refusal:
    """Each request alone has enough candidates, but there is no choice that suits all of them."""
    if search.selector_error is not None:
        error = search.selector_error
        return Refusal(error.reason, str(error), error.claim, error.request, devices.node, search.steps)
    needs = ", ".join(
        f"{claim.key[0]}/{claim.key[1]} {request.alternatives[0].base} x"
        f"{min(len(o.candidates) if o.every else o.count for o in request.alternatives)} of "
        f"{max(len(o.candidates) for o in request.alternatives)}"
        for claim in prepared
        for request in claim.requests
    )
    names = sorted({c.attribute for claim in prepared for c in claim.constraints})
    limits = [f"the constraints on {', '.join(names)}"] if names else []
    candidates = [c.device for r in search.requests for o in r.alternatives for c in o.candidates]
    if any(device.counter_sets for device in candidates):
        limits.append("the shared counters")
    if any(taken.compatibility_groups for device in candidates for taken in device.spec.consumes_counters):
        limits.append("the compatibility groups")
    because = " and ".join(limits) or "sharing no device"
    message = f"no choice of devices {devices.where} satisfies all requests under {because}: {needs} candidates"
    invalid = _invalid_pools(devices)
    reason = "InvalidPool" if invalid else "NoCombination"
    message = "; ".join([message, *invalid])
    return Refusal(reason, message, prepared[0].key if prepared else None, "", devices.node, search.steps)


__all__ = ["BUDGET", "AllocationError", "Policy", "allocate"]
