"""A World as plain, ordered data: two Worlds are the same when their dumps are equal.

Used to check that undoing restores everything and that an incremental World equals a rebuilt one. Left out are caches
(versions, the log of touched nodes, parsed shapes) and what only a cycle sets (fair shares).
"""

from __future__ import annotations

from capstan.scheduling.model import Group, Node, Queue, Status, Task
from capstan.scheduling.world import World

Dump = dict[str, object]


def dump(world: World) -> Dump:
    """Everything that decides about future cycles."""
    names = {column: name for name, column in world.shapes.columns.items()}
    return {
        "nodes": {name: _node(node, names) for name, node in sorted(world.nodes.items())},
        "tasks": {uid: _task(task) for uid, task in sorted(world.tasks.items())},
        "gangs": {"/".join(key): _group(gang.root) for key, gang in sorted(world.gangs.items())},
        "queues": {name: _queue(queue) for name, queue in sorted(world.queues.items())},
        "total": list(world.total),
        "foreign": list(world.foreign),
        "inventory": world.inventory.dump() if world.inventory is not None else {},
    }


def _node(node: Node, names: dict[int, str]) -> Dump:
    return {
        "capacity": _columns(node.capacity, names),
        "idle": _columns(node.idle, names),
        "later": _columns(node.later, names),
        "devices": {
            name: (device.used_now, device.users_now, device.used_later, device.users_later)
            for name, device in sorted(node.devices.items())
        },
        "lent": (node.lent_now, node.lent_later),
        "tasks": sorted(node.tasks),
        "zones": [(zone.name, sorted((r, n) for r, n in zone.used.items() if n)) for zone in node.zones],
    }


def _columns(amounts: list[int], names: dict[int, str]) -> dict[str, int]:
    return {names[i]: amount for i, amount in enumerate(amounts) if amount}


def _task(task: Task) -> Dump:
    return {
        "status": task.status.name,
        "node": task.node.name if task.node is not None else None,
        "devices": task.devices,
        "leaving": (task.leaving[0].name, task.leaving[1]) if task.leaving is not None else None,
        "charge": task.charge if _counts(task) else None,
        "zones": task.zones,
        "held": task.held,
        "gang": task.gang.key if task.gang is not None else None,
    }


def _counts(task: Task) -> bool:
    """Whether anything is charged with what the task costs."""
    return task.status not in (Status.SUCCEEDED, Status.FAILED) and (task.gang is not None or task.node is not None)


def _group(group: Group) -> Dump:
    return {
        "name": group.name,
        "minimum": group.minimum,
        "pending": [task.uid for _, task in group.pending],
        "active": [task.uid for _, task in group.active],
        "gated": group.gated,
        "succeeded": group.succeeded,
        "children": [_group(child) for child in group.children],
    }


def _queue(queue: Queue) -> Dump:
    return {
        "allocated": list(queue.allocated),
        "fixed": list(queue.fixed),
        "requested": list(queue.requested),
        "users": {user: list(held) for user, held in sorted((queue.users or {}).items()) if any(held)},
        "pending": [gang.key for _, gang in queue.pending],
        "active": [gang.key for _, gang in queue.active],
        "parent": queue.parent.name if queue.parent is not None else None,
        "error": queue.error,
    }
