"""The wording of refusals: every sentence names the bound that decided, in numbers, in units people use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capstan.api import clock
from capstan.api.scheduling import SUBGROUP_LABEL
from capstan.scheduling.amounts import (
    CPU_COLUMN,
    GPU,
    GPU_COLUMN,
    GPU_RESOURCE,
    MEMORY_COLUMN,
    PODS_COLUMN,
    RESOURCES,
    UNLIMITED,
    Amounts,
    unit_of,
)
from capstan.scheduling.filters import named
from capstan.scheduling.model import Gang, Group, Node, Queue, Status, Task
from capstan.scheduling.plan import Verdict
from capstan.scheduling.queues import Exceeded, by_importance, quantities
from capstan.scheduling.reservations import Reservation
from capstan.scheduling.shape import Shape
from capstan.scheduling.topology import labelled, roomiest
from capstan.scheduling.world import World

_NAMED = 3
"""So many gangs are listed by name."""
_NAMED_SUBGROUPS = 10


def count(number: int, what: str) -> str:
    """`1 node`, `3 nodes`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def amount(value: int, resource: str) -> str:
    """`79 GPUs`, `1.5 CPU cores`, `4 GB of memory`, `8 NVIDIA-H200 GPUs`."""
    unit = unit_of(resource)
    number = value / unit.spoken
    return f"{number:.6g} {unit.one if number == 1 else unit.many}"


def leading(demand: Amounts, queue: Queue) -> tuple[str, int] | None:
    """The resource to speak of, and its place in all amounts."""
    return next(((queue.resources[i], i) for i in by_importance(len(demand)) if demand[i]), None)


def bare(value: int, resource: str) -> str:
    return "unlimited" if value == UNLIMITED else f"{value / unit_of(resource).spoken:.6g}"


def over_bound(bound: Exceeded) -> str:
    queue = bound.queue
    resource = queue.resources[bound.resource]
    needs, left, most = amount(bound.asked, resource), bare(bound.left, resource), bare(bound.bound, resource)
    if bound.kind == "limit":
        return f"needs {needs}, {left} left of the limit {most} of queue {queue.name}"
    if bound.kind == "quota":
        return f"needs {needs}, {left} left of the quota {most} of queue {queue.name} for jobs that cannot be preempted"
    if bound.kind == "share":
        return f"needs {needs}, {left} left of the share {most} of queue {queue.name}"
    where = f"queue {queue.parent.name}" if queue.parent is not None else "the cluster"
    kept = bare(bound.kept, resource)
    return (
        f"needs {needs} beyond the quota of queue {queue.name}, {left} left of the {most} of {where}, "
        f"where other queues keep {kept} that they do not lend"
    )


def bound_details(bound: Exceeded, gang: Gang, demand: Sequence[int]) -> dict[str, object]:
    """KAI's `queueDetails`: what the queue has and the gang asks for, as API quantities; unlimited is left out."""
    queue = bound.queue
    bounded = {
        "queueDeservedResources": queue.quota,
        "queueResourceLimits": queue.limit,
        "queueRequestedResources": queue.requested,
        "queueAllocatedResources": queue.allocated,
        "queueAllocatedNonPreemptibleResources": queue.fixed,
        "podGroupRequestedResources": demand,
        "podGroupRequestedNonPreemptibleResources": demand if gang.bound_by_quota else [0] * len(demand),
    }
    return {"queueDetails": {"name": queue.name} | {name: quantities(queue, has) for name, has in bounded.items()}}


def not_ready(gang: Gang) -> str:
    lacking = _lacking(gang.root)
    return lacking or "the pod group has fewer pods than it needs"


def _lacking(group: Group) -> str:
    if not group.children:
        have = len(group.active) + len(group.pending)
        if have >= group.minimum:
            return ""
        where = f"subgroup {group.name} needs" if group.name else "needs"
        exist = f"{have} exist{'s' if have == 1 else ''}"
        gated = f", {group.gated} more {'is' if group.gated == 1 else 'are'} gated" if group.gated else ""
        return f"{where} {count(group.minimum, 'pod')}, {exist}{gated}"
    return next((text for child in group.children if (text := _lacking(child))), "")


def below_minimum(gang: Gang, grace: float) -> str:
    """`runs below its minimum: needs 24 pods, 16 run; the rest of it ends in 60 s unless it is complete again`."""
    ends = f"; the rest of it ends in {grace:g} s unless it is complete again" if grace >= 0 else ""
    return f"runs below its minimum: {_broken(gang.root)}{ends}"


def _broken(group: Group) -> str:
    where = f"subgroup {group.name} " if group.name else ""
    if not group.children:
        run = len(group.active)
        return f"{where}needs {count(group.minimum, 'pod')}, {run} run{'s' if run == 1 else ''}"
    broken = [child for child in group.children if not child.satisfied]
    return _broken(min(broken, key=lambda child: child.name))


def gated(tasks: Sequence[Task]) -> str:
    first = min(tasks, key=lambda task: task.order)
    return f"{count(len(tasks), 'pod')} held back, {first.name} by: {first.blocked}"


def astray(gang: Gang, tasks: Sequence[Task]) -> str:
    """`2 pods are in no subgroup: pod a-0 has no label kai.scheduler/subgroup-name; the subgroups are x and y`."""
    first = min(tasks, key=lambda task: task.order)
    label = first.labels.get(SUBGROUP_LABEL, "")
    says = f"says {SUBGROUP_LABEL}={label}" if label else f"has no label {SUBGROUP_LABEL}"
    are = "is" if len(tasks) == 1 else "are"
    names = ", ".join(sorted(gang.groups)[:_NAMED_SUBGROUPS])
    names += f" and {len(gang.groups) - _NAMED_SUBGROUPS} more" if len(gang.groups) > _NAMED_SUBGROUPS else ""
    return (
        f"{count(len(tasks), 'pod')} {are} in no subgroup: pod {first.name} {says}; the subgroups with pods are {names}"
    )


def never(world: World, shape: Shape, largest: Sequence[int]) -> str:
    """Why no node takes a pod of the shape even when it is empty; `largest` is the most that one has, by column."""
    if not world.nodes:
        pool = world.policy.node_pool
        return f"there are no nodes in the node pool {pool}" if pool else "there are no nodes"
    if shape.lacks:
        return f"no node offers {named(shape.lacks)}"
    for column, wanted in reversed(shape.requests):
        if wanted > largest[column]:
            has = _of_column(world, column, largest[column])
            return f"a pod needs {_of_column(world, column, wanted)}, the largest node has {has}"
    return ""


def no_room(unit: Sequence[Task], placed: int, never: str = "") -> str:
    """Names no pod: gangs that are alike are told the same. `never`: what no node could ever do."""
    if len(unit) == 1:
        return never or "no node has room"
    return f"needs {len(unit)} pods at once, " + (never or f"room was found for {placed}")


def too_narrow(world: World, group: Group, unit: Sequence[Task]) -> str:
    """Why no domain of a topology takes the tasks of a group, where counting tells; empty where it does not."""
    leaves = set(group.leaves())
    own = [task for task in unit if task.group in leaves]
    levels = group.levels
    if levels is None or not own:
        return ""
    if not labelled(world, levels):
        labels = ", ".join(level.node_label for level in world.topologies[levels.topology])
        return f"no node has all labels of the topology {levels.topology} ({labels})"
    active = [task for leaf in leaves for _, task in leaf.active]
    most = roomiest(world, levels, own, active)
    if most is None or most.slots >= len(own):
        return ""
    who = f"subgroup {group.name} needs" if group.name else "needs"
    they = f", where {count(len(active), 'pod')} of it already {'is' if len(active) == 1 else 'are'}" if active else ""
    has = f"the roomiest of {most.domains} has" if most.domains > 1 else "it has"
    pods = f"{count(len(own), 'pod')} at once" if len(own) > 1 else "1 pod"
    return f"{who} {pods} in one {most.level} of topology {levels.topology}{they}; {has} room for {most.slots}"


def reserved(made: Reservation) -> str:
    """`reserved 32 GPUs on 4 nodes from 2025-06-15T14:05:00Z, when x/a and x/b are expected to have ended`."""
    text = f"reserved {_reserved_room(made)} from {clock.render(made.at)}"
    if not made.after:
        return text
    names = list(made.after[:_NAMED])
    if len(made.after) > _NAMED:
        names.append(f"{len(made.after) - _NAMED} more")
    listed = f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are"
    return f"{text}, when {listed} {'assumed' if made.assumed else 'expected'} to have ended"


def would_delay(made: Reservation) -> str:
    whose = f"{made.key[0]}/{made.key[1].removeprefix('pod/')}"
    room = f"{_reserved_room(made)} from {clock.render(made.at)}"
    return f"there is room, but it would delay the reservation of {whose} ({room})"


def _reserved_room(made: Reservation) -> str:
    spoken = next((i for i in (2, 0, 1) if made.demand[i]), None)
    held = amount(made.demand[spoken], RESOURCES[spoken]) if spoken is not None else "room"
    return f"{held} on {count(len(made.need), 'node')}"


def reservation_details(made: Reservation) -> dict[str, object]:
    return {"reservation": {"start": clock.render(made.at), "nodes": sorted(made.need)}}


def short_of(world: World, shape: Shape, node: Node) -> str:
    """The first resource of which a node has too little for the shape."""
    for column, wanted in sorted(shape.requests, key=lambda pair: -pair[0]):
        if node.capacity[column] < wanted:
            return f"has less than {_of_column(world, column, wanted)}"
        if min(node.idle[column], node.later[column]) < wanted:
            return f"insufficient {_column(world, column)}"
    if shape.share is not None and not node.by_claims:
        portion = shape.share.on(node.gpu_memory)
        if portion > GPU:
            return "GPUs are smaller than the share"
        free = max(0, node.later[GPU_COLUMN]) + sum(
            GPU - d.used_later >= portion for d in node.devices.values() if d.users_later
        )
        if free < shape.share.devices:
            return "insufficient room on shared GPUs"
    return ""


def _column(world: World, column: int) -> str:
    if column == GPU_COLUMN:
        return f"GPUs ({GPU_RESOURCE})"
    return {CPU_COLUMN: "CPU", MEMORY_COLUMN: "memory", PODS_COLUMN: "pod slots"}.get(column) or world.shapes.resource(
        column
    )


def _of_column(world: World, column: int, value: int) -> str:
    """`9 GPUs`, `1.5 CPU cores`, `3 example.com/tpu`."""
    if column == GPU_COLUMN:
        return amount(value * GPU, "gpu")
    if column in (CPU_COLUMN, MEMORY_COLUMN):
        return amount(value, RESOURCES[column])
    if column == PODS_COLUMN:
        return count(value, "pod slot")
    return f"{value} {world.shapes.resource(column)}"


ROOM = "no set of nodes or devices fits all of it together"
"""Said of a node that could take one pod."""


def by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    """Most frequent first."""
    return dict(sorted(((k, n) for k, n in counts.items() if n), key=lambda item: (-item[1], item[0])))


def verdict(gang: Gang, reason: str, message: str, details: Mapping[str, object], nodes: Mapping[str, int]) -> Verdict:
    if nodes:
        message += " (" + ", ".join(f"{count(number, 'node')}: {text}" for text, number in nodes.items()) + ")"
    waiting = [task for task in gang.tasks.values() if task.status in (Status.PENDING, Status.GATED)]
    names = tuple(task.name for task in sorted(waiting, key=lambda task: task.order))
    return Verdict(
        namespace=gang.namespace,
        group="" if gang.implicit else gang.name,
        reason=reason,
        message=message,
        details=dict(details),
        nodes=dict(nodes),
        pods=names,
    )
