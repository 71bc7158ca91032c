"""Resource claims on one node, as the kubelet handles them: prepared before a pod starts, unprepared at its end.

What is prepared, and for which pods, is in a checkpoint file that is written before every call to a plugin, so that
nothing stays prepared unknown to the node when the agent is killed between the call and its answer.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from capstan import kube
from capstan.api.core import Pod
from capstan.api.resource import AllocationResult, ResourceClaim
from capstan.api.resources import RESOURCE_CLAIMS
from capstan.local.agents.plugins import ClaimRef, Plugins, PreparedDevice

CHECKPOINT = "dra_manager_state"


class ClaimNotReady(Exception):
    """A claim that the pod may not use (yet); the pod's start is tried again."""


class _Prepared(msgspec.Struct, omit_defaults=True):
    """One claim on this node. `prepared` is not kept over a restart: plugins are then asked again, idempotently."""

    namespace: str
    name: str
    uid: str
    pods: set[str]
    drivers: list[str]
    """Those that prepare devices of the claim."""
    lasting: list[str] = []
    """Those of them that need not be told when it ends."""
    devices: dict[str, list[PreparedDevice]] = {}
    prepared: bool = False

    @property
    def ref(self) -> ClaimRef:
        return ClaimRef(self.namespace, self.name, self.uid)


class NodeClaims:
    """The claims of one node; `state` is the directory of the checkpoint."""

    def __init__(self, client: kube.Client, plugins: Plugins, state: Path) -> None:
        self._client = client
        self._plugins = plugins
        self._file = state / CHECKPOINT
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._claims: dict[str, _Prepared] = {}
        self._saving = asyncio.Lock()
        self._changes = self._saved = 0
        if self._file.exists():
            for claim in msgspec.json.decode(self._file.read_bytes(), type=list[_Prepared]):
                claim.prepared = False
                self._claims[claim.uid] = claim

    async def prepare(self, pod: Pod) -> None:
        """Prepares all claims of the pod. Raises ClaimNotReady or PluginError; repeat it then."""
        claims = [await self._check(pod, name, generated) for name, generated in claims_of(pod)]
        async with self._locked([claim.metadata.uid for claim in claims]):
            waiting = []
            for claim in claims:
                info = self._remember(claim)
                info.pods.add(pod.metadata.uid)
                if not info.prepared:
                    waiting.append(info)
            if not waiting:
                return
            await self._save()
            by_driver: defaultdict[str, list[_Prepared]] = defaultdict(list)
            for info in waiting:
                for driver in info.drivers:
                    by_driver[driver].append(info)
            for driver, infos in by_driver.items():
                answers = await self._plugins.prepare(driver, [info.ref for info in infos])
                for info in infos:
                    info.devices[driver] = answers[info.uid]
            for info in waiting:
                info.prepared = True

    async def _check(self, pod: Pod, name: str, generated: bool) -> ResourceClaim:
        namespace = pod.metadata.namespace
        try:
            claim = await self._client.get(RESOURCE_CLAIMS, name, namespace)
        except kube.NotFound as error:
            raise ClaimNotReady(f"resource claim {namespace}/{name} does not exist") from error
        owner = claim.metadata.controller()
        if generated and (owner is None or owner.uid != pod.metadata.uid):
            raise ClaimNotReady(f"resource claim {namespace}/{name} was not created for pod {pod.metadata.name}")
        known = next((info for info in self._claims.values() if (info.namespace, info.name) == (namespace, name)), None)
        if known is not None and known.uid != claim.metadata.uid:
            raise ClaimNotReady(
                f"old resource claim with the same name {name} and different UID {known.uid} still exists "
                "(previous pod force-deleted?!)"
            )
        if claim.status.allocation is None:
            raise ClaimNotReady(f"resource claim {namespace}/{name} is not allocated")
        if all(consumer.uid != pod.metadata.uid for consumer in claim.status.reserved_for):
            raise ClaimNotReady(
                f"pod {pod.metadata.name} is not allowed to use resource claim {name}: it is not reserved"
            )
        return claim

    def _remember(self, claim: ResourceClaim) -> _Prepared:
        assert claim.status.allocation is not None, "checked before"
        metadata = claim.metadata
        drivers = _called(claim.status.allocation, "NodePrepareResources")
        ended = _called(claim.status.allocation, "NodeUnprepareResources")
        lasting = [driver for driver in drivers if driver not in ended]
        fresh = _Prepared(metadata.namespace, metadata.name, metadata.uid, set(), drivers, lasting)
        return self._claims.setdefault(metadata.uid, fresh)

    async def unprepare(self, pod_uid: str) -> None:
        """The pod has ended: claims that no other pod here uses are unprepared. Raises PluginError; repeat then."""
        held = [info.uid for info in self._claims.values() if pod_uid in info.pods]
        if not held:
            return
        async with self._locked(held):
            released = []
            for uid in held:
                info = self._claims.get(uid)
                if info is not None and info.pods <= {pod_uid}:
                    released.append(info)
                elif info is not None:
                    info.pods.discard(pod_uid)
            by_driver: defaultdict[str, list[_Prepared]] = defaultdict(list)
            for info in released:
                for driver in info.drivers:
                    if driver not in info.lasting:
                        by_driver[driver].append(info)
            for driver, infos in by_driver.items():
                await self._plugins.unprepare(driver, [info.ref for info in infos])
            for info in released:
                del self._claims[info.uid]
            await self._save()

    def vanished(self, known: Callable[[str], bool]) -> Collection[str]:
        """Uids of pods that hold claims here although the node does not know them any more."""
        return {pod for info in self._claims.values() for pod in info.pods if not known(pod)}

    def holds(self, pod_uid: str) -> bool:
        return any(pod_uid in info.pods for info in self._claims.values())

    def devices(self, pod: Pod, container: str) -> list[PreparedDevice]:
        """The devices that a container of the pod sees, in the order of its claims."""
        found: list[PreparedDevice] = []
        for claim_name, request in uses_of(pod, container):
            for info in self._claims.values():
                if (info.namespace, info.name) == (pod.metadata.namespace, claim_name):
                    found += [
                        device
                        for devices in info.devices.values()
                        for device in devices
                        if not request or not device.requests or request in device.requests
                    ]
        return found

    @asynccontextmanager
    async def _locked(self, uids: Sequence[str]) -> AsyncIterator[None]:
        """One call per claim at a time, also when pods share it; in one order, so that nobody waits in a circle."""
        locks = [self._locks.setdefault(uid, asyncio.Lock()) for uid in sorted(set(uids))]
        for lock in locks:
            await lock.acquire()
        try:
            yield
        finally:
            for lock in locks:
                lock.release()

    async def _save(self) -> None:
        """Writes the checkpoint beside the event loop. Changes that come during a write share the next one."""
        self._changes += 1
        wanted = self._changes
        async with self._saving:
            if self._saved < wanted:
                covered, content = self._changes, msgspec.json.encode(list(self._claims.values()))
                await asyncio.to_thread(self._write, content)
                self._saved = covered

    def _write(self, content: bytes) -> None:
        scratch = self._file.with_suffix(".tmp")
        scratch.write_bytes(content)
        os.replace(scratch, self._file)


def claims_of(pod: Pod) -> list[tuple[str, bool]]:
    """The names of the claims a pod uses, each with whether it was made for this pod. Raises ClaimNotReady."""
    made = {status.name: status.resource_claim_name for status in pod.status.resource_claim_statuses}
    found: dict[str, bool] = {}
    for use in pod.spec.resource_claims:
        if use.resource_claim_name:
            found[use.resource_claim_name] = False
        elif use.name not in made:
            raise ClaimNotReady(f"the claim {use.name} of pod {pod.metadata.name} is not made from its template yet")
        elif name := made[use.name]:
            found[name] = True
    extended = pod.status.extended_resource_claim_status
    if extended is not None:
        found[extended.resource_claim_name] = True
    return list(found.items())


def uses_of(pod: Pod, container: str) -> list[tuple[str, str]]:
    """(claim name, request or empty for all) of one container, also for extended resources backed by a claim."""
    made = {status.name: status.resource_claim_name for status in pod.status.resource_claim_statuses}
    names = {use.name: use.resource_claim_name or made.get(use.name) for use in pod.spec.resource_claims}
    found: list[tuple[str, str]] = []
    for one in (*pod.spec.init_containers, *pod.spec.containers):
        if one.name == container:
            found += [(name, use.request) for use in one.resources.claims if (name := names.get(use.name))]
    extended = pod.status.extended_resource_claim_status
    if extended is not None:
        mappings = [mapping for mapping in extended.request_mappings if mapping.container_name == container]
        found += [(extended.resource_claim_name, mapping.request_name) for mapping in mappings]
    return found


def _called(allocation: AllocationResult, operation: str) -> list[str]:
    """The drivers with a device that does not skip the operation (KEP-5945), each once."""
    return list(
        dict.fromkeys(
            result.driver
            for result in allocation.devices.results
            if not {operation, "*"}.intersection(result.skip_node_operations)
        )
    )
