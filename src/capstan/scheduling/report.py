"""What `capstan explain` shows of a gang or pod, read from the World."""

from __future__ import annotations

from dataclasses import dataclass, field

from capstan.scheduling.filters import dynamic_reason, needs_company, node_reason
from capstan.scheduling.model import ACTIVE, Gang, Group, Status, Task
from capstan.scheduling.placement import Placer
from capstan.scheduling.plan import Bind, Eviction, Verdict
from capstan.scheduling.queues import quantities
from capstan.scheduling.verdicts import over_bound, short_of
from capstan.scheduling.world import World


@dataclass(frozen=True, slots=True)
class GroupReport:
    """A node of the gang's tree: how many it needs and has. `path` is empty for the root."""

    path: str
    minimum: int
    running: int
    waiting: int
    gated: int
    satisfied: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known about a gang (or the gang of a pod)."""

    namespace: str
    group: str
    queue: str
    queue_path: tuple[str, ...]
    priority: int
    preemptible: bool
    groups: tuple[GroupReport, ...]
    pods: tuple[tuple[str, str, str], ...]
    """(pod, status, node)"""
    verdict: Verdict | None
    nodes: dict[str, str] = field(default_factory=dict)
    """For the first waiting pod: node -> why it does not take it."""
    binds: tuple[Bind, ...] = ()
    evictions: tuple[Eviction, ...] = ()


def explain(world: World, namespace: str, name: str, verdicts: tuple[Verdict, ...] = ()) -> Explanation | None:
    """Explain a gang by the name of its PodGroup or of one of its pods; None when there is neither.

    `verdicts` are those of the last cycle. The reasons of the single nodes are judged as the World stands now.
    """
    gang = _find(world, namespace, name)
    if gang is None:
        return None
    tasks = sorted(gang.tasks.values(), key=lambda task: task.order)
    group = "" if gang.implicit else gang.name
    waiting = next((task for task in tasks if task.status == Status.PENDING), None)
    said = next(
        (v for v in verdicts if v.namespace == namespace and v.group == group and (group or name in v.pods)), None
    )
    uids = {task.uid for task in tasks}
    return Explanation(
        namespace=namespace,
        group=group,
        queue=gang.queue_name,
        queue_path=tuple(q.name for q in reversed(gang.queue.path())) if gang.queue is not None else (),
        priority=gang.priority,
        preemptible=gang.preemptible,
        groups=tuple(_groups(gang.root, "")),
        pods=tuple((t.name, t.status.name.capitalize(), t.node.name if t.node is not None else "") for t in tasks),
        verdict=said,
        nodes=_node_reasons(world, waiting) if waiting is not None else {},
        binds=tuple(bind for uid, bind in world.binds.items() if uid in uids),
        evictions=tuple(eviction for uid, eviction in world.evictions.items() if uid in uids),
    )


def _find(world: World, namespace: str, name: str) -> Gang | None:
    gang = world.gangs.get((namespace, name)) or world.gangs.get((namespace, f"pod/{name}"))
    if gang is not None:
        return gang
    task = world.task_of(namespace, name)
    return task.gang if task is not None else None


def _groups(group: Group, path: str) -> list[GroupReport]:
    own = f"{path}/{group.name}" if path else group.name
    leaves = group.leaves()
    report = GroupReport(
        path=own,
        minimum=group.minimum,
        running=sum(len(leaf.active) for leaf in leaves),
        waiting=sum(len(leaf.pending) for leaf in leaves),
        gated=sum(leaf.gated for leaf in leaves),
        satisfied=group.satisfied,
    )
    return [report, *(child for sub in group.children for child in _groups(sub, own))]


def _node_reasons(world: World, task: Task) -> dict[str, str]:
    found = {}
    closed = Placer(world, world.policy).closed(task)
    for name, node in sorted(world.nodes.items()):
        reason = node_reason(task.shape, node) or short_of(world, task.shape, node)
        if not reason and needs_company(world, task):
            reason = dynamic_reason(world, task, node, later=False)
        if not reason and node.product in closed:
            reason = over_bound(closed[node.product])
        found[name] = reason or "has room"
    return found


# -- what gangs hold ---------------------------------------------------------------------------------------------------


def standings(world: World) -> dict[tuple[str, str], tuple[int, ...]]:
    """Of every gang with a PodGroup, what changes whenever `resources_of` it does."""
    return {
        key: (gang.active, gang.pending, len(gang.tasks), gang.preemptible, *(gang.core_charge if gang.semi else ()))
        for key, gang in world.gangs.items()
        if not gang.implicit and gang.uid
    }


def resources_of(gang: Gang) -> dict[str, dict[str, str]]:
    """`PodGroup.status.resourcesStatus`: what its pods are charged, as API quantities."""
    queue = gang.queue
    assert queue is not None, "every gang of a World has a queue, if only the one of those that name none"
    held, asked = [0] * len(queue.resources), [0] * len(queue.resources)
    for task in gang.tasks.values():
        for i, amount in enumerate(task.charge):
            held[i] += amount if ACTIVE[task.status] else 0
            asked[i] += amount if ACTIVE[task.status] or task.status == Status.PENDING else 0
    fixed = [0] * len(held) if gang.preemptible else gang.core_charge if gang.semi else held
    return {
        "allocated": quantities(queue, held),
        "allocatedNonPreemptible": quantities(queue, fixed),
        "requested": quantities(queue, asked),
    }
