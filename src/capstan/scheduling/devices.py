"""Single devices of a node: which shared GPUs a share takes, and claims through `capstan.allocation`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from capstan.allocation import FRACTION_ANNOTATION, Allocation, Inventory, NodeView
from capstan.allocation import allocate as allocate_claims
from capstan.api.resource import (
    MAX_RESERVED_FOR,
    AllocationResult,
    ExactDeviceRequest,
    ResourceClaim,
    ResourceClaimSpec,
)
from capstan.scheduling.amounts import GPU, GPU_COLUMN
from capstan.scheduling.model import Node, Status, Task
from capstan.scheduling.policy import Policy
from capstan.scheduling.queues import too_many_of_a_product
from capstan.scheduling.shape import Shape, Share
from capstan.scheduling.world import World

_UNKNOWN = 1 << 40
_MEMORY = "memory"
_REGRANT_BUDGET = 2_000
"""Steps of a search over the claims of all pods of a gang on one node; most need a few dozen."""


def pick(share: Share, node: Node, *, later: bool, pack: bool) -> tuple[str, ...] | None:
    """The devices a share takes on a device-plugin node, None when there are too few.

    A device in use shows by its users; one whose users are all terminating counts as whole again later. `pack` fills
    the fullest device first and opens a new one last; otherwise the emptiest comes first.
    """
    portion = share.on(node.gpu_memory)
    if portion > GPU:
        return None
    whole = node.later[GPU_COLUMN] if later else min(node.idle[GPU_COLUMN], node.later[GPU_COLUMN])
    used: list[tuple[int, str]] = []
    spare: list[tuple[int, str]] = []
    for name, device in node.devices.items():
        if not later and device.users_now and device.used_now + portion > GPU:
            continue
        if device.used_later + portion > GPU:
            continue
        (used if device.users_later else spare).append((device.used_later, name))
    used.sort(key=lambda pair: (-pair[0], pair[1]) if pack else pair)
    # Taking a device that is shared now and free later costs the node a whole device later.
    fresh = [name for _, name in sorted(spare, key=lambda pair: pair[1])][: max(0, node.later[GPU_COLUMN])]
    if len(fresh) < share.devices:
        opened = max(0, min(whole, node.later[GPU_COLUMN]) - len(fresh))
        fresh += _new_names(node, min(opened, share.devices - len(fresh)))
    names = [name for _, name in used] + fresh if pack else fresh + [name for _, name in used]
    return tuple(names[: share.devices]) if len(names) >= share.devices else None


def claimable(shape: Shape, node: Node, *, later: bool) -> bool:
    """A quick no for nodes whose GPUs go by claims: what shares and whole devices leave, all devices taken together."""
    share = shape.share
    wanted = shape.gpus * GPU if share is None else share.on(node.gpu_memory) * share.devices
    if not wanted:
        return True
    free = node.later[GPU_COLUMN] * GPU - node.lent_later
    if not later:
        free = min(free, node.idle[GPU_COLUMN] * GPU - node.lent_now)
    return wanted <= free


def open_now(task: Task, node: Node) -> bool:
    """Whether the shared devices that a task is promised have room for it at this moment."""
    share = task.shape.share
    if share is None:
        return True
    portion = share.on(node.gpu_memory)
    found = [node.devices.get(name) for name in task.devices]
    fresh = sum(device is None or not device.users_now for device in found)
    return fresh <= node.idle[GPU_COLUMN] and all(d is None or d.used_now + portion <= GPU for d in found)


def joins(share: Share, node: Node, inventory: Inventory | None) -> bool:
    """Whether the share fits on a device that is already shared."""
    portion = share.on(node.gpu_memory)
    if node.by_claims:
        return bool(node.lent_later) and inventory is not None and inventory.shares(node.name, _MEMORY, portion, GPU)
    fitting = sum(d.used_later + portion <= GPU for d in node.devices.values() if d.users_now or d.users_later)
    return fitting > 0


def _new_names(node: Node, count: int) -> list[str]:
    names: list[str] = []
    number = 0
    while len(names) < count:
        if str(number) not in node.devices:
            names.append(str(number))
        number += 1
    return names


@dataclass(frozen=True, slots=True)
class Granted:
    """Claims were allocated (or were already). `later`: on devices that are still in use by terminating pods."""

    later: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Why claims cannot be allocated on a node. `lasts`: nor can equal ones, until something there becomes free."""

    why: str
    lasts: bool = False


def uses_claims(task: Task, node: Node) -> bool:
    return bool(task.claims) or (task.implied is not None and node.by_claims)


def missing(world: World, task: Task) -> str:
    """What the task's claims name and nobody has made: a claim, or a device class; empty when all is there."""
    for _, name in task.claims:
        key = (task.namespace, name or "")
        claim = world.claims.get(key)
        if claim is None:
            return f"its claim {key[0]}/{key[1]} does not exist"
        if world.inventory is None or claim.status.allocation is not None:
            continue
        for request in claim.spec.devices.requests:
            classes = [option.device_class_name for option in request.first_available]
            if request.exactly is not None:
                classes.append(request.exactly.device_class_name)
            if classes and not any(name in world.inventory.classes for name in classes):
                return f"claim {key[1]}, request {request.name}: device class {classes[0]} does not exist"
    return ""


def alternatives(world: World, tasks: Iterable[Task]) -> int:
    """The longest list of alternatives (`firstAvailable`) that an unallocated claim of the tasks offers."""
    claims = (world.claims.get((task.namespace, name or "")) for task in tasks for _, name in task.claims)
    return max(
        (
            len(request.first_available)
            for claim in claims
            if claim is not None and claim.status.allocation is None
            for request in claim.spec.devices.requests
        ),
        default=0,
    )


def _without_first(claim: ResourceClaim, skip: int) -> ResourceClaim:
    """The claim without the `skip` most preferred alternatives of each request; the last one always stays."""
    if claim.status.allocation is not None or not any(r.first_available for r in claim.spec.devices.requests):
        return claim
    requests = [
        msgspec.structs.replace(request, first_available=request.first_available[skip:] or request.first_available[-1:])
        for request in claim.spec.devices.requests
    ]
    wanted = msgspec.structs.replace(claim.spec.devices, requests=requests)
    return msgspec.structs.replace(claim, spec=ResourceClaimSpec(devices=wanted))


def claims_of(world: World, task: Task, node: Node, skip: int) -> list[ResourceClaim]:
    """The claims the task needs on the node; `missing` has made sure that they exist."""
    claims = [world.claims[(task.namespace, name or "")] for _, name in task.claims]
    if skip:
        claims = [_without_first(claim, skip) for claim in claims]
    if task.implied is not None and node.by_claims:
        claims.append(task.implied)
    return claims


def _crowded(world: World, task: Task, claim: ResourceClaim) -> bool:
    """Whether one more user would exceed what `reservedFor` can list."""
    users = {consumer.uid for consumer in claim.status.reserved_for}
    if len(users) + len(world.claim_users.get(claim.key, ())) < MAX_RESERVED_FOR:
        return False
    users.update(uid for uid in world.claim_users.get(claim.key, ()) if world.tasks[uid].node is not None)
    users.discard(task.uid)
    return len(users) >= MAX_RESERVED_FOR


def _same_queue(world: World, task: Task, claim: ResourceClaim) -> bool:
    """A GPU claim that nobody's pod owns is shared; in a queue it may be used only with the label of that queue."""
    gang = task.gang
    if gang is None or gang.queue is world.free_queue or claim.metadata.controller() is not None:
        return True
    return not world.claims_gpus(claim) or claim.metadata.labels.get(world.policy.queue_label) == gang.queue_name


def _counted(claims: Iterable[ResourceClaim]) -> list[tuple[ExactDeviceRequest, int]] | None:
    """How many devices of every kind (class, selectors, tolerations) unallocated claims ask for; None if they ask for
    anything but a number of devices."""
    asked: dict[bytes, tuple[ExactDeviceRequest, int]] = {}
    for claim in claims:
        for request in claim.spec.devices.requests:
            exact = request.exactly
            if exact is None or exact.allocation_mode != "ExactCount" or exact.admin_access or exact.capacity:
                return None
            if exact.count < 1:
                return None
            kind = msgspec.json.encode((exact.device_class_name, exact.selectors, exact.tolerations))
            asked[kind] = (exact, exact.count + (asked[kind][1] if kind in asked else 0))
    return list(asked.values())


def counted(world: World, task: Task) -> list[tuple[ExactDeviceRequest, int]]:
    """How many devices of every kind the task's claims by name ask for; empty if counting devices tells nothing."""
    return _counted(world.claims[(task.namespace, name or "")] for _, name in task.claims) or []


def slots(inventory: Inventory, asked: Iterable[tuple[ExactDeviceRequest, int]], node: Node, *, vacating: bool) -> int:
    """How many times what is asked for (`counted`) the node has at most; with `vacating`, once claims there have been
    released."""
    most = _UNKNOWN
    for exact, count in asked:
        name = exact.device_class_name
        free = inventory.rooms(node.name, name, exact.selectors, exact.tolerations, in_use=vacating)
        if free is not None:
            most = min(most, free // count)
    return most


def _in_vain(world: World, node: Node, held: Iterable[ResourceClaim], asked: Sequence[ResourceClaim]) -> bool:
    """Whether there is nothing to exchange: claims that hold devices of one kind, and ask for more of them than are
    free."""
    more, wanted = _counted(asked), _counted([*held, *asked])
    if not more or not wanted or len(wanted) > 1 or world.inventory is None:
        return False
    exact, count = more[0]
    free = world.inventory.rooms(node.name, exact.device_class_name, exact.selectors, exact.tolerations)
    return free is not None and free < count


def _regrant(
    world: World, policy: Policy, task: Task, node: Node, open_claims: list[ResourceClaim], *, later: bool
) -> bool:
    """Allocate the claims anew together with those that this cycle granted other pods of the gang on the node: each of
    those took what it liked best, which may be what the gang as a whole cannot afford (kubernetes #138765)."""
    inventory = world.inventory
    status = Status.PIPELINED if later else Status.ALLOCATED
    fellows = [
        t for t in node.tasks.values() if t.gang is task.gang and t.status == status and t.held and t is not task
    ]
    if inventory is None or task.gang is None or not task.claims or not fellows:
        return False
    held = [(fellow, fellow.held) for fellow in fellows]
    exchanged = [_claim(world, fellow, key) for fellow, keys in held for key in keys]
    if _in_vain(world, node, exchanged, open_claims):
        return False
    mark = world.mark()
    claims = exchanged + open_claims
    for fellow in fellows:
        world.revoke(fellow)
    view = NodeView(node.name, node.labels)
    result = allocate_claims(inventory, claims, view, policy=policy.allocation_policy, budget=_REGRANT_BUDGET)
    if not isinstance(result, Allocation):
        world.rollback(mark)
        return False
    for fellow, keys in held:
        world.grant(fellow, {key: result.results[key] for key in keys})
        world.reprice(fellow)
    if too_many_of_a_product(task.gang):
        world.rollback(mark)
        return False
    world.grant(task, {claim.key: result.results[claim.key] for claim in open_claims})
    return True


def _claim(world: World, task: Task, key: tuple[str, str]) -> ResourceClaim:
    implied = task.implied
    return implied if implied is not None and implied.key == key else world.claims[key]


def own_claims(world: World, task: Task, skip: int) -> Hashable:
    """Equal for tasks whose claims ask for the same and are nobody else's, so that a node that cannot satisfy those of
    one cannot satisfy those of the other; None where a claim is shared, allocated or may not be used."""
    asked: list[Hashable] = [skip]
    inventory = world.inventory
    if task.implied is not None and inventory is not None and inventory.allocation(task.implied.key) is not None:
        return None
    for _, name in task.claims:
        claim = world.claims.get((task.namespace, name or ""))
        if claim is None or inventory is None or inventory.allocation(claim.key) is not None:
            return None
        if len(world.claim_users.get(claim.key, ())) > 1 or not _same_queue(world, task, claim):
            return None
        asked.append((msgspec.json.encode(claim.spec.devices), claim.metadata.annotations.get(FRACTION_ANNOTATION)))
    return tuple(asked)


def allocate(world: World, policy: Policy, task: Task, node: Node, *, later: bool, skip: int = 0) -> Granted | Refused:
    """Allocate what the task's claims still lack, on this node, in the inventory, or say why that is impossible.

    With `later`, or when there is no other way, the claims of terminating pods on the node are released first; from
    then on the inventory shows the node's future and everything placed there by claims waits. The claims of a pod that
    is to move end with it, so that they are allocated anew, wherever it goes. `skip` leaves out so many preferred
    alternatives.
    """
    inventory = world.inventory
    if inventory is None:
        return Refused("claims cannot be allocated here")
    if task.leaving is not None and not world.is_drained(task.leaving[0]):
        world.drain(task.leaving[0])
    view = NodeView(node.name, node.labels)
    open_claims, stranded = [], []
    for claim in claims_of(world, task, node, skip):
        if claim is not task.implied:  # of that nobody else is a user
            if _crowded(world, task, claim):
                return Refused(f"claim {claim.key[1]} has {MAX_RESERVED_FOR} users already")
            if not _same_queue(world, task, claim):
                return Refused(f"claim {claim.key[1]} needs the label {policy.queue_label} of the pod's queue")
        held = inventory.allocation(claim.key)
        if held is None:
            open_claims.append(claim)
        elif held.node_selector is not None and not held.node_selector.matches(node.name, node.labels):
            if not _stranded(world, task, claim, held):
                return Refused(f"claim {claim.key[1]} is allocated and cannot be used there")
            open_claims.append(claim)
            stranded.append(claim.key)
    if not open_claims:
        return Granted(later)
    mark = world.mark()
    for key in stranded:
        inventory.release(key)
    drained = world.is_drained(node)
    refused = Refused("")
    if not later or drained:
        result = allocate_claims(inventory, open_claims, view, policy=policy.allocation_policy)
        if isinstance(result, Allocation):
            world.grant(task, result.results)
            return Granted(later or drained)
        # A bound of the queue on products may have been in the way of exchanging devices, and be gone next time.
        refused = Refused(_unnamed(task, result.message), lasts=result.lasts and not world.products)
        if not result.is_error and _regrant(world, policy, task, node, open_claims, later=later or drained):
            return Granted(later or drained)
    if not drained and (world.drain(node) or later):
        result = allocate_claims(inventory, open_claims, view, policy=policy.allocation_policy)
        if isinstance(result, Allocation):
            world.grant(task, result.results)
            return Granted(True)
        refused = Refused(_unnamed(task, result.message), lasts=result.lasts)
    world.rollback(mark)
    return refused


def _stranded(world: World, task: Task, claim: ResourceClaim, held: AllocationResult) -> bool:
    """Whether a claim that nobody else uses was allocated on a node that has disappeared before the pod was bound."""
    terms = held.node_selector.node_selector_terms if held.node_selector is not None else []
    fields = terms[0].match_fields if len(terms) == 1 else []
    homes = fields[0].values if len(fields) == 1 and fields[0].key == "metadata.name" else []
    own = (task.implied is not None and task.implied.key == claim.key) or world.claim_users.get(claim.key) == [task.uid]
    return own and bool(homes) and not any(home in world.nodes for home in homes)


def _unnamed(task: Task, message: str) -> str:
    """Without the name of the claim that was made for the task: nobody sees it, and the likes of the task are told the
    same."""
    if task.implied is None:
        return message
    name = "/".join(task.implied.key)
    return message.replace(f"claim {name}: ", "").replace(f"{name} ", "")
