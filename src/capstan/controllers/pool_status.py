"""Answers ResourcePoolStatusRequests (KEP-5677): once each, from what the cluster holds when it is asked.

kube-controller-manager does the same in a cluster that has the gate DRAResourcePoolStatus. A pool whose driver is still
publishing is waited for; after that it is reported as incomplete, where upstream would never answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from capstan import kube
from capstan.allocation import INCOMPLETE, Features, pool_statuses
from capstan.api import clock
from capstan.api.rbac import PolicyRule
from capstan.api.resource import ResourcePoolStatusRequest
from capstan.api.resources import (
    DEVICE_TAINT_RULES,
    RESOURCE_CLAIMS,
    RESOURCE_POOL_STATUS_REQUESTS,
    RESOURCE_SLICES,
)

KEPT_SECONDS = 3600.0
"""After its answer a request is deleted."""
WAITS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between looks at pools that are incomplete."""


class PoolStatusController(kube.Controller[kube.Key]):
    RULES = [
        PolicyRule(
            api_groups=["resource.k8s.io"],
            resources=["resourceslices", "resourceclaims", "devicetaintrules"],
            verbs=["list"],
        ),
        PolicyRule(
            api_groups=["resource.k8s.io"],
            resources=["resourcepoolstatusrequests"],
            verbs=["list", "watch", "delete"],
        ),
        PolicyRule(api_groups=["resource.k8s.io"], resources=["resourcepoolstatusrequests/status"], verbs=["patch"]),
    ]
    WORKERS = 1

    def __init__(self, client: kube.Client, features: Features, now: Callable[[], float] = time.time) -> None:
        self._client, self._features, self._now = client, features, now
        self._requests = kube.Cache(client, RESOURCE_POOL_STATUS_REQUESTS)
        self._looks: dict[str, int] = {}
        """By uid of the request, how often incomplete pools were seen."""
        super().__init__([self._requests])
        self._requests.on_change(lambda change: self.queue.add(change.object.key))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._requests.run())
            group.create_task(super().run())

    async def reconcile(self, key: kube.Key) -> float | None:
        request = self._requests.objects.get(key)
        if request is None:
            return None
        if request.status is not None:
            return await self._expire(request)
        return await self._answer(request)

    async def _expire(self, request: ResourcePoolStatusRequest) -> float | None:
        assert request.status is not None
        times = [condition.last_transition_time or "" for condition in request.status.conditions]
        left = clock.parse(max(times, default=request.metadata.creation_timestamp)) + KEPT_SECONDS - self._now()
        if left > 0:
            return left
        await self._client.delete(RESOURCE_POOL_STATUS_REQUESTS, request.metadata.name, uid=request.metadata.uid)
        return None

    async def _answer(self, request: ResourcePoolStatusRequest) -> float | None:
        spec = request.spec
        slices = await self._client.list(RESOURCE_SLICES, fields=f"spec.driver={spec.driver}")
        claims = await self._client.list(RESOURCE_CLAIMS)
        rules = (await self._client.list(DEVICE_TAINT_RULES)).items if self._features.device_taint_rules else []
        pools = pool_statuses(spec, slices.items, claims.items, rules, self._features)
        looks = self._looks.get(request.metadata.uid, 0)
        broken = sum(pool.validation_error is not None for pool in pools)
        incomplete = any((pool.validation_error or "").startswith(INCOMPLETE) for pool in pools)
        if incomplete and looks < len(WAITS):
            self._looks[request.metadata.uid] = looks + 1
            return WAITS[looks]
        shown = pools[: spec.limit]
        message = f"Calculated status for {len(shown)} pools" + (f" ({broken} with errors)" if broken else "")
        condition = {
            "type": "Complete",
            "status": "True",
            "reason": "CalculationComplete",
            "message": message,
            "lastTransitionTime": clock.render(self._now()),
        }
        status = {"poolCount": len(pools), "pools": msgspec.to_builtins(shown), "conditions": [condition]}
        await self._client.patch(
            RESOURCE_POOL_STATUS_REQUESTS,
            request.metadata.name,
            patch={"metadata": {"uid": request.metadata.uid}, "status": status},
            subresource="status",
        )
        self._looks.pop(request.metadata.uid, None)
        return None
