"""The loops of an embedded cluster: what runs, as whom, with which rights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial

from capstan import kube, scheduling
from capstan.api import resources
from capstan.api.rbac import PolicyRule
from capstan.api.scheduling import SCHEDULER_NAME
from capstan.controllers.grouper import Grouper
from capstan.controllers.queue_status import QueueStatus
from capstan.controllers.scheduler import Scheduler
from capstan.local.server import Page
from capstan.local.workloads import WorkloadControllers

POLICY = scheduling.Policy(scheduler_names=frozenset({SCHEDULER_NAME, "default-scheduler"}))
"""On an embedded cluster nobody else schedules, so pods that name no scheduler are ours too."""


Pages = MutableMapping[str, Page]


@dataclass(frozen=True, slots=True)
class Component:
    """`run` works with a client of the component's own account until cancelled."""

    name: str
    rules: Sequence[PolicyRule]
    run: Callable[[kube.Client], Coroutine[None, None, None]]


async def _workloads(client: kube.Client) -> None:
    await WorkloadControllers(client).run()


async def _scheduler(pages: Pages, client: kube.Client) -> None:
    scheduler = Scheduler(client, POLICY)
    pages["/metrics"] = scheduler.metrics.page
    async with asyncio.TaskGroup() as group:
        group.create_task(scheduler.run())
        group.create_task(QueueStatus(client, scheduler.world).run())


async def _grouper(client: kube.Client) -> None:
    pods = kube.Cache(client, resources.PODS)
    groups = kube.Cache(client, resources.POD_GROUPS)
    async with asyncio.TaskGroup() as group:
        group.create_task(pods.run())
        group.create_task(groups.run())
        group.create_task(Grouper(client, pods, groups).run())


def controllers(pages: Pages) -> tuple[Component, ...]:
    """What runs in every cluster; node drivers, node agents and the blueprint agent are made per platform.

    `pages` is where the scheduler puts what the API server answers at `/metrics`.
    """
    return (
        Component("workload-controllers", WorkloadControllers.RULES, _workloads),
        Component("scheduler", [*Scheduler.RULES, *QueueStatus.RULES], partial(_scheduler, pages)),
        Component("grouper", Grouper.RULES, _grouper),
    )
