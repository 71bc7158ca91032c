"""What the API shows of a node beyond its slices: settings applied to claimed devices, health as Events on the Node.

Claims get `status.devices[].data` (KEP-4817) for what neither the allocation nor the slice can tell: the UUID of a MIG
device that was made for the claim, the memory limit of a share and who holds it, time slice, MPS, VFIO group. Reports
inform and nothing depends on them: they are written after the kubelet has its answer, and a refused one is logged.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from capstan import kube
from capstan.api import quantity
from capstan.api.base import ObjectReference
from capstan.api.nvidia import TIME_SLICE_INTERVALS
from capstan.api.rbac import PolicyRule
from capstan.api.resource import GROUP
from capstan.api.resources import RESOURCE_CLAIMS
from capstan.node.inventory import DRIVER
from capstan.node.nvml import COMPUTE_DEFAULT, Host
from capstan.node.records import ComputeMode, Holding, MigInstance, MpsDaemon, Passthrough, Record, Step, TimeSlice

_log = logging.getLogger("capstan.node")
_INTERVALS = {interval: name for name, interval in TIME_SLICE_INTERVALS.items()}
Body = dict[str, Any]


def device_statuses(record: Record, host: Host) -> list[Body]:
    """Entries of `status.devices` for the holdings that there is something to say about."""
    found = ((holding, _data(holding, record, host)) for holding in record.holdings if not holding.admin)
    return [_status(holding, data) for holding, data in found if data]


def _status(holding: Holding, data: Body) -> Body:
    body: Body = {"driver": DRIVER, "pool": holding.pool, "device": holding.device, "data": data}
    return body | {"shareID": holding.share_id} if holding.share_id else body


def _data(holding: Holding, record: Record, host: Host) -> Body:
    data: Body = {}
    if holding.limit is not None:
        data["memoryLimit"] = quantity.render(holding.limit)
        data["memoryLimitHeldBy"] = host.memory_limits
    for step in record.steps:
        if getattr(step, "gpu", None) == holding.gpu:
            data |= _told_by(step, holding)
    return data


def _told_by(step: Step, holding: Holding) -> Body:
    match step:
        case MigInstance() if (step.profile_id, step.start) == (holding.profile_id, holding.start):
            return {"uuid": step.uuid, "gpuInstance": step.gi_id} | ({"adopted": True} if step.adopted else {})
        case TimeSlice():
            return {"timeSlice": _INTERVALS[step.interval]}
        case ComputeMode() if step.mode != COMPUTE_DEFAULT:
            return {"computeMode": step.mode}
        case MpsDaemon():
            limits = {gpu: quantity.render(limit) for gpu, limit in step.settings.pinned_memory_limits.items()}
            return {"mps": {"activeThreadPercentage": step.settings.active_thread_percentage, "pinnedMemory": limits}}
        case Passthrough():
            return {"vfioGroup": step.group} | ({"vfioDevice": step.cdev} if step.cdev else {})
    return {}


class Reporter:
    """Writes the reports of one node in the background."""

    RULES = [
        PolicyRule(api_groups=[GROUP], resources=["resourceclaims/status"], verbs=["patch"]),
        PolicyRule(api_groups=[GROUP], resources=["resourceclaims/driver"], verbs=["associated-node:patch"]),
        PolicyRule(api_groups=[""], resources=["events"], verbs=["create", "patch"]),
    ]

    def __init__(self, client: kube.Client, node_name: str, node_uid: str, host: Host) -> None:
        self._client = client
        self._events = kube.EventRecorder(client, "capstan-node", host=node_name)
        self._node = ObjectReference(api_version="v1", kind="Node", name=node_name, uid=node_uid)
        self._host = host
        self._reported: dict[str, list[Body]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def prepared(self, record: Record) -> None:
        """Once per claim, and again when what was applied has changed."""
        statuses = device_statuses(record, self._host)
        if statuses and self._reported.get(record.uid) != statuses:
            self._reported[record.uid] = statuses
            task = asyncio.get_running_loop().create_task(self._write(record, statuses))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def unprepared(self, uid: str) -> None:
        """The API server drops the entries with the allocation."""
        self._reported.pop(uid, None)

    async def _write(self, record: Record, statuses: list[Body]) -> None:
        metadata = {"name": record.name, "namespace": record.namespace, "uid": record.uid}
        body = {"metadata": metadata, "status": {"devices": statuses}}
        try:
            await self._client.apply(RESOURCE_CLAIMS, body, subresource="status", field_manager=DRIVER, force=True)
        except kube.ApiError as error:
            self._reported.pop(record.uid, None)
            _log.warning("claim %s/%s: device status is not written: %s", record.namespace, record.name, error)

    def unhealthy(self, gpu_name: str, message: str, *, serious: bool) -> None:
        effect = "nothing new is placed there" if serious else "an application's own error, the GPU stays in use"
        self._events.emit(self._node, "Warning", "GPUUnhealthy", f"{gpu_name}: {message}; {effect}")

    def recovered(self, gpu_name: str) -> None:
        self._events.emit(self._node, "Normal", "GPURecovered", f"{gpu_name} has recovered")

    def ledger_quarantined(self, path: str) -> None:
        self._events.emit(
            self._node,
            "Warning",
            "LedgerQuarantined",
            f"unreadable journal put aside as {path}, rebuilt from CDI specs",
        )

    async def drain(self) -> None:
        """Returns when everything reported so far is written or dropped."""
        await asyncio.gather(*self._tasks)
        await self._events.drain()
