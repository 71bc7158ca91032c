"""The loops of an embedded cluster: what runs, as whom, with which rights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial

from capstan import grouping, kube, scheduling
from capstan.api import resources
from capstan.api.rbac import PolicyRule
from capstan.api.scheduling import SCHEDULER_NAME
from capstan.controllers.grouper import Grouper
from capstan.controllers.shards import CONFIG_RULES, Shards, follow_config
from capstan.embedded import accounts
from capstan.local.server import Page
from capstan.local.workloads import WorkloadControllers

POLICY = scheduling.Policy(scheduler_names=frozenset({SCHEDULER_NAME, "default-scheduler"}))
"""On an embedded cluster nobody else schedules, so pods that name no scheduler are ours too."""


Pages = MutableMapping[str, Page]


@dataclass(frozen=True, slots=True)
class Component:
    """`run` works with a client of the component's own account until cancelled.

    `own_rules` are rights in the namespace of the components only. A component that is `single` works only while it
    holds its Lease; the others share their work by node.
    """

    name: str
    rules: Sequence[PolicyRule]
    run: Callable[[kube.Client], Coroutine[None, None, None]]
    own_rules: Sequence[PolicyRule] = ()
    single: bool = True


async def _workloads(client: kube.Client) -> None:
    await WorkloadControllers(client).run()


async def _scheduler(pages: Pages, policy: scheduling.Policy, client: kube.Client) -> None:
    async def work(said: scheduling.Installation) -> None:
        await Shards(client, policy, said, namespace=accounts.NAMESPACE, pages=pages).run()

    await follow_config(client, work)


async def _grouper(client: kube.Client) -> None:
    async def work(said: scheduling.Installation) -> None:
        settings = grouping.Settings(
            scheduler_name=said.scheduler_name, queue_label=said.queue_label, node_pool_label=said.node_pool_label
        )
        pods = kube.Cache(client, resources.PODS)
        groups = kube.Cache(client, resources.POD_GROUPS)
        async with asyncio.TaskGroup() as group:
            group.create_task(pods.run())
            group.create_task(groups.run())
            group.create_task(Grouper(client, pods, groups, settings=settings).run())

    await follow_config(client, work)


def controllers(pages: Pages, policy: scheduling.Policy = POLICY) -> tuple[Component, ...]:
    """What runs in every cluster; node drivers, node agents and the blueprint agent are made per platform.

    `pages` is where the scheduler puts what is answered at `/metrics` and `/snapshot`; `policy` what its shards are
    based on.
    """
    return (
        Component("workload-controllers", WorkloadControllers.RULES, _workloads),
        Component("scheduler", Shards.RULES, partial(_scheduler, pages, policy), Shards.OWN_RULES),
        Component("grouper", [*Grouper.RULES, *CONFIG_RULES], _grouper),
    )
