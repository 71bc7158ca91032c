"""PodDisruptionBudgets: which evictions the Eviction API would refuse, counted over everything that is under way.

The rules are those of the eviction subresource (kubernetes/pkg/registry/core/pod/storage/eviction.go): pods that do
not run yet cost nothing, pods that are not ready may cost nothing, a pod under two budgets is never evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

from capstan.api.core import Pod
from capstan.api.policy import PodDisruptionBudget
from capstan.scheduling.model import Status, Task

Key = tuple[str, str]


class Unit(Protocol):
    """What is evicted together (`victims.Victim`)."""

    @property
    def tasks(self) -> Sequence[Task]: ...


U = TypeVar("U", bound=Unit)
A = TypeVar("A")


class Budgets:
    """All budgets of the cluster."""

    def __init__(self) -> None:
        self._by_namespace: dict[str, dict[str, PodDisruptionBudget]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_namespace)

    def put(self, obj: PodDisruptionBudget) -> None:
        self._by_namespace.setdefault(obj.metadata.namespace, {})[obj.metadata.name] = obj

    def remove(self, namespace: str, name: str) -> None:
        found = self._by_namespace.get(namespace, {})
        found.pop(name, None)
        if not found:
            self._by_namespace.pop(namespace, None)

    def of(self, task: Task) -> list[PodDisruptionBudget]:
        """The budgets that select the pod, by name. One without a selector selects none."""
        named = self._by_namespace.get(task.namespace)
        if not named:
            return []
        return [
            b for _, b in sorted(named.items()) if b.spec.selector is not None and b.spec.selector.matches(task.labels)
        ]


def allowed(budget: PodDisruptionBudget) -> int:
    """How many pods may be evicted by what its controller counted; none before it has seen the newest budget."""
    if budget.status.observed_generation < budget.metadata.generation:
        return 0
    return max(0, budget.status.disruptions_allowed)


def costs(budget: PodDisruptionBudget, task: Task, pod: Pod) -> bool:
    """Whether evicting the pod takes one from the budget."""
    if task.phase != Status.RUNNING:
        return False
    if any(condition.type == "Ready" and condition.status == "True" for condition in pod.status.conditions):
        return True
    status = budget.status
    healthy = status.desired_healthy > 0 and status.current_healthy >= status.desired_healthy
    return budget.spec.unhealthy_pod_eviction_policy != "AlwaysAllow" and not healthy


class Spending:
    """What the evictions that are under way and those of one search take from the budgets."""

    def __init__(self, budgets: Budgets, pod: Callable[[str], Pod], under_way: Callable[[], Iterable[Task]]) -> None:
        self._budgets, self._pod, self._under_way = budgets, pod, under_way
        self._spent: dict[Key, int] | None = None
        self.refused: dict[Key, tuple[int, int]] = {}
        """Budget -> pods it keeps from being evicted, disruptions it allows."""

    def take(self, tasks: Iterable[Task]) -> bool:
        """Count the eviction of all tasks in if the budgets allow it; else nothing is counted."""
        if not self._budgets:
            return True
        if self._spent is None:
            self._spent = {}
            for task in self._under_way():
                for budget in self._budgets.of(task):
                    if costs(budget, task, self._pod(task.uid)):
                        self._spent[budget.key] = self._spent.get(budget.key, 0) + 1
        wanted: dict[Key, int] = {}
        most: dict[Key, int] = {}
        for task in tasks:
            found = self._budgets.of(task)
            several = len(found) > 1 and task.phase == Status.RUNNING
            for budget in found:
                if several or costs(budget, task, self._pod(task.uid)):
                    wanted[budget.key] = wanted.get(budget.key, 0) + 1
                    most[budget.key] = 0 if several else min(most.get(budget.key, 1 << 30), allowed(budget))
        short = [key for key, count in wanted.items() if self._spent.get(key, 0) + count > most[key]]
        for key in short:
            self.refused[key] = (self.refused.get(key, (0, 0))[0] + wanted[key], most[key])
        if short:
            return False
        for key, count in wanted.items():
            self._spent[key] = self._spent.get(key, 0) + count
        return True

    def keep(self, victims: Iterable[U]) -> Iterator[U]:
        """The victims that the budgets allow together, in their order. A generator is told which are passed over."""
        stream = iter(victims)
        tell = stream.send if isinstance(stream, Generator) else None
        try:
            victim = next(stream)
            while True:
                taken = self.take(victim.tasks)
                if taken:
                    yield victim
                victim = next(stream) if taken or tell is None else tell(False)
        except StopIteration:
            return

    def guard(self, admit: Callable[[U], A]) -> Callable[[U], A | Literal["skip"]]:
        """An admission of victims that skips those which budgets refuse before anything else is counted."""
        return lambda victim: admit(victim) if self.take(victim.tasks) else "skip"

    def text(self) -> str:
        """`2 pods are kept by the disruption budget x/y, which allows 0 disruptions`; empty when none was refused."""
        parts = []
        for (namespace, name), (pods, most) in sorted(self.refused.items()):
            kept = "1 pod is" if pods == 1 else f"{pods} pods are"
            disruptions = "1 disruption" if most == 1 else f"{most} disruptions"
            parts.append(f"{kept} kept by the disruption budget {namespace}/{name}, which allows {disruptions}")
        return "; ".join(parts)
