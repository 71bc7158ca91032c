"""The defragment action: in scheduled windows, move preemptible pods together although nobody waits for the room.

Each step empties one GPU node: its victims and the rest of their units are placed anew in one simulation, and the step
stands only if every one of them gets a place and more nodes have all their GPUs free than before. Users of KAI ask for
it (#1311); KAI itself consolidates only for a pending job.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from capstan.scheduling.amounts import GPU, GPU_COLUMN
from capstan.scheduling.gangs import next_unit, shrink
from capstan.scheduling.model import Gang, Node, Status, Task
from capstan.scheduling.order import JobOrder, demand_of
from capstan.scheduling.queues import exceeded
from capstan.scheduling.runtimes import started
from capstan.scheduling.session import Session
from capstan.scheduling.victims import gives

_NODE_TRIES = 16
"""So many nodes are tried to be emptied in one cycle."""


def defragment(session: Session) -> None:
    """Empty nodes one after another, cheapest first, within the window and its bound of moved pods.

    Nothing is moved while anything else is: what was moved has to be settled first.
    """
    policy, world = session.policy, session.world
    if not policy.defragment_max_victims or not any(w.open_at(session.now) for w in policy.defragment_windows):
        return
    if "spread" in (policy.gpu_placement, policy.cpu_placement):
        return  # as for consolidation: it is the opposite of what spreading wants
    if session.evicted or world.evictions or session.won:
        return
    left = policy.defragment_max_victims
    spending = session.spending()
    for node, units in _candidates(session)[:_NODE_TRIES]:
        pods = sum(len(unit) for unit in units)
        if pods > left or _gpus(node) > session.free_gpus() - _whole_and_free(world.nodes.values()):
            continue
        mark, whole = world.mark(), len(_empty(world.nodes.values()))
        moved = _move(session, units)
        tasks = [task for unit in units for task in unit if task.leaving is not None]
        if moved and len(_empty(world.nodes.values())) > whole and spending.take(tasks):
            left -= len(tasks)
            for task in tasks:
                text = f"moved in a defragmentation window, so that node {node.name} gets all its GPUs free"
                assert task.gang is not None
                assert task.node is not None
                world.destinations.setdefault(task.gang.key, []).append(task.node.name)
                session.evicted[task.uid] = (task, "defragment", f"{task.namespace}/{_name(task.gang)}", text)
        else:
            world.rollback(mark)


def _candidates(session: Session) -> list[tuple[Node, list[list[Task]]]]:
    """GPU nodes of which everything on GPUs may be moved, with the units to move: fewest pods first, by name."""
    found = []
    for node in session.world.nodes.values():
        tasks = [task for task in node.tasks.values() if task.shape.on_gpu]
        if not tasks or not node.capacity[GPU_COLUMN]:
            continue
        units = _units(session, tasks)
        if units is not None:
            found.append((sum(map(len, units)), node.name, node, units))
    found.sort(key=lambda entry: entry[:2])
    return [(node, units) for _, _, node, units in found]


def _units(session: Session, tasks: Iterable[Task]) -> list[list[Task]] | None:
    """What has to be moved for these tasks to be gone: whole units of their gangs; None when one may not be moved."""
    concerned: dict[Gang, set[str]] = {}
    for task in tasks:
        gang = task.gang
        if gang is None or task.status != Status.RUNNING or _fresh(session, gang, task):
            return None
        concerned.setdefault(gang, set()).add(task.uid)
    units = []
    for gang in sorted(concerned, key=lambda gang: (gang.order, gang.key)):
        allowed = gives(gang)
        core = {task.uid for task in gang.core()} if gang.semi else set()
        wanted = set(concerned[gang])
        for unit, part in shrink(gang):
            if not wanted:
                break
            if allowed == "none" or (allowed == "surplus" and (part == "core" or any(t.uid in core for t in unit))):
                return None
            if any(task.status != Status.RUNNING or _fresh(session, gang, task) for task in unit):
                return None
            units.append(unit)
            wanted -= {task.uid for task in unit}
        if wanted:
            return None
    return units


def _fresh(session: Session, gang: Gang, task: Task) -> bool:
    """Whether a pod started so lately that it is not moved (again) yet."""
    since = max(task.started, started(gang) or 0.0)
    return since > 0 and session.now - since < session.policy.defragment_cooldown


def _move(session: Session, units: Sequence[Sequence[Task]]) -> bool:
    """Place the units anew, in queue order and as if none had a place; those that come to where they were, with the
    devices they had, stay."""
    world = session.world
    was = {}
    for unit in units:
        for task in unit:
            was[task.uid] = (task.status, task.node, task.devices, task.zones, task.charge, world.allocations(task))
            assert task.node is not None
            world.move(task, Status.PENDING, None, leaving=(task.node, task.devices))
    moving = set(was)
    order = JobOrder(world, {task.gang.key: task.gang for unit in units for task in unit if task.gang}.values())
    while (gang := order.pop()) is not None:
        unit = next_unit(gang)
        if not unit or any(task.uid not in moving for task in unit) or exceeded(gang, demand_of(unit)) is not None:
            return False
        if not session.place(gang, unit, later=True):
            return False
        for task in unit:
            status, node, devices, zones, charge, had = was[task.uid]
            stays = task.leaving == (task.node, task.devices) and task.zones == zones
            if stays and world.allocations(task) == had:
                world.move(task, status, node, devices, zones=zones, charge=charge)
        waiting = any(world.tasks[uid].gang is gang and world.tasks[uid].node is None for uid in moving)
        order.done(gang if waiting else None)
    return all(world.tasks[uid].node is not None for uid in moving)


def _empty(nodes: Iterable[Node]) -> list[Node]:
    """The GPU nodes that will have all their GPUs free."""
    return [
        node
        for node in nodes
        if node.node_class.ready
        and node.capacity[GPU_COLUMN]
        and node.later[GPU_COLUMN] == node.capacity[GPU_COLUMN]
        and not node.lent_later
    ]


def _gpus(node: Node) -> int:
    """Millionths of devices in use on a node."""
    parts = sum(device.used_later for device in node.devices.values())
    shared = sum(device.users_later > 0 for device in node.devices.values())
    return (node.capacity[GPU_COLUMN] - node.later[GPU_COLUMN] - shared) * GPU + parts + node.lent_later


def _whole_and_free(nodes: Iterable[Node]) -> int:
    return sum(node.capacity[GPU_COLUMN] for node in _empty(nodes)) * GPU


def _name(gang: Gang) -> str:
    return gang.name.removeprefix("pod/")
