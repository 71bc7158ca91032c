"""The workload controllers of the embedded control plane: what kube-controller-manager is to a cluster.

Kubernetes objects in, pods and claims out. Each controller reconciles one kind from shared caches; all run in one
process under one identity.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from capstan import kube
from capstan.api.rbac import PolicyRule
from capstan.local.workloads.caches import Caches
from capstan.local.workloads.claims import ClaimController
from capstan.local.workloads.cronjobs import CronJobController
from capstan.local.workloads.daemonsets import DaemonSetController
from capstan.local.workloads.deployments import DeploymentController
from capstan.local.workloads.disruption import DisruptionController
from capstan.local.workloads.garbage import GarbageCollector
from capstan.local.workloads.jobs import JobController
from capstan.local.workloads.namespaces import NamespaceController
from capstan.local.workloads.nodes import GRACE_SECONDS, NodeLifecycleController
from capstan.local.workloads.replicasets import ReplicaSetController
from capstan.local.workloads.statefulsets import StatefulSetController
from capstan.local.workloads.volumes import VolumeController

__all__ = ["WorkloadControllers"]


class WorkloadControllers:
    """All of them, on one client. `now` is POSIX seconds; a node silent for `node_grace_seconds` counts as lost."""

    RULES = [
        # Garbage collection and the end of namespaces concern every kind, also those of CRDs that do not exist yet.
        PolicyRule(api_groups=["*"], resources=["*"], verbs=["get", "list", "watch", "patch", "update", "delete"]),
        PolicyRule(
            api_groups=[""],
            resources=["pods", "events", "serviceaccounts", "persistentvolumeclaims", "persistentvolumes"],
            verbs=["create"],
        ),
        PolicyRule(api_groups=["apps"], resources=["replicasets", "controllerrevisions"], verbs=["create"]),
        PolicyRule(api_groups=["batch"], resources=["jobs"], verbs=["create"]),
        PolicyRule(api_groups=["resource.k8s.io"], resources=["resourceclaims"], verbs=["create"]),
    ]

    def __init__(
        self,
        client: kube.Client,
        now: Callable[[], float] = time.time,
        node_grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._caches = Caches(client, now)
        self.controllers: tuple[kube.Controller[Any], ...] = (
            DeploymentController(self._caches),
            ReplicaSetController(self._caches),
            StatefulSetController(self._caches),
            DaemonSetController(self._caches),
            JobController(self._caches),
            CronJobController(self._caches),
            ClaimController(self._caches),
            VolumeController(self._caches),
            NamespaceController(self._caches),
            DisruptionController(self._caches),
            NodeLifecycleController(self._caches, node_grace_seconds),
            GarbageCollector(self._caches),
        )

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._caches.run())
            for controller in self.controllers:
                group.create_task(controller.run())
