"""The blueprint agent: makes one cluster what its blueprint says, and keeps it so.

Facts from published devices select the variant; the compiled manifests are applied with server-side apply as members
of an ApplySet whose parent is the Cluster object; every member is watched. What changes an owned field is drift:
repaired at once (`mode: enforce`) or reported (`mode: warn`), field by field, with the manager who did it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from capstan import blueprints, kube
from capstan.api import clock, resources
from capstan.api.platform import GROUP, BlueprintVersion, Cluster, ClusterStatus
from capstan.api.rbac import PolicyRule
from capstan.blueprints.health import waiting_for
from capstan.controllers.blueprint_status import Outcome, status

log = logging.getLogger(__name__)

Manifest = dict[str, Any]

RESYNC_SECONDS = 300.0
RETRY_SECONDS = 2.0
WAIT_SECONDS = 0.2
"""Between looks at a kind that its definition does not serve yet."""
LIST_SECONDS = 5.0
FIGHTS = 5
FIGHT_SECONDS = 30.0
"""An object that is repaired this often within this time is fought over: it is reported, and left alone for as long."""
_OWN_MANAGER = "capstan-blueprint-agent"
"""Of the Cluster object's status and ApplySet metadata; members are owned by `blueprints.MANAGER`."""


class BlueprintAgent(kube.Controller[str]):
    """Reconciles the one Cluster object named `cluster`. `now` gives POSIX seconds."""

    WORKERS = 1
    RULES = [
        PolicyRule(api_groups=[GROUP], resources=["clusters", "blueprintversions"], verbs=["get", "list", "watch"]),
        PolicyRule(api_groups=[GROUP], resources=["clusters", "clusters/status"], verbs=["patch"]),
        # A blueprint may hold objects of every kind; whoever may publish blueprints decides what the agent applies.
        PolicyRule(
            api_groups=["*"],
            resources=["*"],
            verbs=["get", "list", "watch", "create", "patch", "delete", "bind", "escalate"],
        ),
        PolicyRule(non_resource_urls=["/version", "/api", "/api/*", "/apis", "/apis/*"], verbs=["get"]),
    ]

    def __init__(self, client: kube.Client, cluster: str, *, now: Callable[[], float] = time.time) -> None:
        self._client = client
        self._cluster = cluster
        self._now = now
        self._set = blueprints.cluster_set(cluster)
        self._discovery = kube.Discovery(client)
        self._events = kube.EventRecorder(client, "capstan-blueprint-agent", now=now)
        self._clusters = kube.Cache(client, resources.CLUSTERS, fields=f"metadata.name={cluster}")
        self._versions = kube.Cache(client, resources.BLUEPRINT_VERSIONS)
        self._slices = kube.Cache(client, blueprints.SLICES)
        self._devices: dict[kube.Key, blueprints.DeviceFacts] = {}
        """Of each slice; a slice changes often, what it means for the facts hardly ever."""
        self._runtimes = kube.Cache(client, resources.RUNTIME_CLASSES)
        super().__init__([self._clusters, self._versions, self._slices, self._runtimes])
        self._members: dict[kube.Unstructured, kube.Cache[Manifest]] = {}
        self._written: dict[str, Manifest] = {}
        """Objects as our last write answered, until a cache has caught up."""
        self._repairs: dict[str, deque[float]] = {}
        """identity -> when it was repaired last"""
        self._status: ClusterStatus | None = None
        self._version = ""
        self._compiled: tuple[Any, blueprints.Compiled, list[blueprints.Item]] | None = None
        """What it was compiled from, and its items as members of the set."""
        self._settled: dict[str, int] = {}
        """identity -> resource version at which the object was as `_compiled` says"""
        self._tasks: asyncio.TaskGroup | None = None
        self._slices.on_change(self._slice_changed)
        for cache in (self._clusters, self._versions, self._runtimes):
            cache.on_change(self._changed)

    def _slice_changed(self, change: kube.Change[Any]) -> None:
        key = change.object.key
        before = self._devices.pop(key, None)
        if change.new is not None:
            self._devices[key] = blueprints.devices(change.new)
        if self._devices.get(key) != before:
            self.queue.add(self._cluster)

    def _changed(self, _: kube.Change[Any]) -> None:
        self.queue.add(self._cluster)

    def _member_changed(self, change: kube.Change[Manifest]) -> None:
        name = blueprints.identity(change.object)
        written = self._written.get(name)
        if written is not None and _resource_version(change.object) >= _resource_version(written):
            del self._written[name]
        self.queue.add(self._cluster)

    async def run(self) -> None:
        work = super().run()
        async with asyncio.TaskGroup() as self._tasks:
            for cache in self.caches:
                self._tasks.create_task(cache.run())
            self._tasks.create_task(work)

    async def reconcile(self, key: str) -> float | None:
        cluster = self._clusters.get(key)
        if cluster is None:
            self._status = None
            return None
        if self._status is None:
            self._status = cluster.status
        outcome = Outcome(facts=await self._facts(cluster), paused=cluster.spec.paused)
        if not cluster.spec.paused:
            await self._enforce(cluster, outcome)
        await self._report(cluster, outcome)
        if outcome.failures:
            return RETRY_SECONDS
        if outcome.unserved:
            return WAIT_SECONDS
        return FIGHT_SECONDS if outcome.contested else RESYNC_SECONDS

    async def _facts(self, cluster: Cluster) -> dict[str, Any]:
        if not self._version:
            answer = await self._client.request("GET", "/version")
            self._version = msgspec.json.decode(answer.body)["gitVersion"]
        return blueprints.observe(
            self._version, self._devices.values(), self._runtimes.objects.values(), cluster.spec.labels
        )

    async def _enforce(self, cluster: Cluster, outcome: Outcome) -> None:
        """One pass: compile, compare, apply or only look, prune. Fills in the outcome."""
        assert self._status is not None
        reference = cluster.spec.blueprint
        if reference is None:
            outcome.problem = ("NoBlueprint", "spec.blueprint names no blueprint version")
            return
        version = self._versions.get(f"{reference.name}-{reference.version}")
        if version is None:
            message = f"there is no BlueprintVersion {reference.name}-{reference.version}; publish it first"
            outcome.problem = ("VersionNotFound", message)
            return
        try:
            compiled, desired = self._compile(cluster, version, outcome.facts)
        except blueprints.BlueprintError as error:
            outcome.problem = ("InvalidBlueprint", str(error))
            return
        live, members = await self._observe(cluster, desired, outcome)
        settled = {name for name, found in live.items() if self._is_settled(name, found)}
        try:
            plan = blueprints.plan(desired, live, members, settled=settled)
        except blueprints.NothingLeft as error:
            outcome.problem = ("NothingLeft", f"{error}; {error.hint}")
            return
        outcome.compiled = compiled
        applied_before = self._status.digest == compiled.digest
        if applied_before:
            outcome.found_at = clock.render_micro(self._now())
            outcome.findings = blueprints.drift((item for item in desired if item.identity not in settled), live)
            drifted = {finding.identity for finding in outcome.findings}
            for change in plan.changes:
                if change.action == "unchanged" and change.identity not in drifted:
                    self._settled[change.identity] = _resource_version(live[change.identity])
        if not applied_before or cluster.spec.mode == "enforce":
            await self._execute(cluster, plan, desired, members, live, outcome)
        for item in compiled.items:
            found = live.get(item.identity)
            if found is not None and (pending := waiting_for(found)):
                outcome.waiting[item.identity] = pending

    def _compile(
        self, cluster: Cluster, version: BlueprintVersion, facts: blueprints.Facts
    ) -> tuple[blueprints.Compiled, list[blueprints.Item]]:
        """Compiled again only when something it depends on changed. Raises BlueprintError."""
        key = (version.metadata.uid, version.metadata.resource_version, facts, cluster.spec.override)
        if self._compiled is None or self._compiled[0] != key:
            layers = blueprints.layers_of(msgspec.to_builtins(version.spec))
            compiled = blueprints.compile(layers, facts, blueprints.Override(self._cluster, cluster.spec.override))
            desired = [
                msgspec.structs.replace(item, manifest=blueprints.stamped(item.manifest, self._set))
                for item in compiled.items
            ]
            self._compiled = (key, compiled, desired)
            self._settled.clear()
        return self._compiled[1], self._compiled[2]

    async def _observe(
        self, cluster: Cluster, desired: Iterable[blueprints.Item], outcome: Outcome
    ) -> tuple[dict[str, Manifest], list[Manifest]]:
        """(live objects by identity as far as desired, all live members). Starts to watch kinds that are new."""
        served: dict[str, kube.Unstructured] = {}
        for item in desired:
            try:
                resource = await self._discovery.resource(item.manifest["apiVersion"], item.manifest["kind"])
            except kube.UnknownKind:
                outcome.unserved[item.identity] = "its kind is not served yet"
                continue
            if not await self._watch(resource):
                outcome.unserved[item.identity] = "its kind cannot be listed; check the rights of the agent"
                continue
            served[item.identity] = resource
        watched = {(resource.group, resource.kind) for resource in self._members}
        earlier = set(blueprints.group_kinds({"annotations": cluster.metadata.annotations})) - watched
        if earlier:
            for resource in await self._discovery.all("list", "watch"):
                if (resource.group, resource.kind) in earlier:
                    await self._watch(resource)
        members: dict[str, Manifest] = {}
        for cache in self._members.values():
            for found in cache.objects.values():
                members[blueprints.identity(found)] = found
        members |= self._written
        live: dict[str, Manifest] = {}
        for item in desired:
            if item.identity in members:
                live[item.identity] = members[item.identity]
            elif item.identity in served:
                metadata = item.manifest["metadata"]
                try:
                    # Not yet ours, or somebody took our label away.
                    live[item.identity] = await self._client.get(
                        served[item.identity], metadata["name"], metadata.get("namespace", "")
                    )
                except kube.NotFound:
                    pass
        return live, list(members.values())

    async def _watch(self, resource: kube.Unstructured) -> bool:
        """Watch the members of a kind; False when they could not be listed in time."""
        if resource not in self._members:
            assert self._tasks is not None, "the agent runs"
            cache = kube.Cache(self._client, resource, labels=f"applyset.kubernetes.io/part-of={self._set}")
            cache.on_change(self._member_changed)
            self._members[resource] = cache
            self._tasks.create_task(cache.run())
            try:
                async with asyncio.timeout(LIST_SECONDS):
                    await cache.synced()
            except TimeoutError:
                log.warning("blueprint agent: %s cannot be listed", resource.group_resource)
        return self._members[resource].is_synced

    async def _execute(
        self,
        cluster: Cluster,
        plan: blueprints.Plan,
        desired: list[blueprints.Item],
        members: list[Manifest],
        live: dict[str, Manifest],
        outcome: Outcome,
    ) -> None:
        """Apply and prune. Nothing is pruned while something could not be applied."""
        await self._mark_parent(cluster, [item.manifest for item in desired] + members)
        drifted = {finding.identity for finding in outcome.findings}
        outcome.contested = {identity for identity in drifted if self._is_contested(identity)}
        counts = {"created": 0, "updated": 0, "pruned": 0}
        for change in plan.changes:
            name = change.identity
            if name in outcome.unserved or name in outcome.contested:
                continue
            try:
                if change.action in ("create", "update") or name in drifted or self._is_unconfirmed(change, live):
                    written = await self._apply(change.manifest)
                    self._written[name] = live[name] = written
                    self._settled[name] = _resource_version(written)
                    counts["created" if change.action == "create" else "updated"] += change.action != "unchanged"
                    if name in drifted:
                        outcome.repaired.add(name)
                        self._repairs.setdefault(name, deque(maxlen=FIGHTS)).append(self._now())
                elif change.action == "prune" and not outcome.failures and not outcome.unserved:
                    await self._prune(change.manifest)
                    self._written.pop(name, None)
                    counts["pruned"] += 1
            except kube.ApiError as error:
                outcome.failures[name] = str(error)
                self._events.emit(cluster, "Warning", "ApplyFailed", f"{name}: {error}")
        for finding in outcome.findings:
            if finding.identity in outcome.repaired:
                self._events.emit(cluster, "Warning", "DriftRepaired", str(finding))
        if not drifted and any(counts.values()) and outcome.compiled is not None:
            compiled = outcome.compiled
            variant = f", variant {compiled.variant}" if compiled.variant else ""
            done = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            message = f"{compiled.blueprint} {compiled.version}{variant}: {done}"
            self._events.emit(cluster, "Normal", "BlueprintApplied", message)

    def _is_unconfirmed(self, change: blueprints.Change, live: dict[str, Manifest]) -> bool:
        """Whether an object looks right but was not applied from these manifests yet.

        A new version is applied whole: what it stopped to state inside of a single value shows in no comparison.
        """
        return change.action == "unchanged" and not self._is_settled(change.identity, live[change.identity])

    def _is_settled(self, name: str, found: Manifest) -> bool:
        return self._settled.get(name) == _resource_version(found)

    def _is_contested(self, name: str) -> bool:
        repairs = self._repairs.get(name)
        return repairs is not None and len(repairs) == FIGHTS and self._now() - repairs[0] < FIGHT_SECONDS

    async def _apply(self, manifest: Manifest) -> Manifest:
        resource = await self._discovery.resource(manifest["apiVersion"], manifest["kind"])
        applied = await self._client.apply(resource, manifest, force=True, field_manager=blueprints.MANAGER)
        return applied.document

    async def _prune(self, orphan: Manifest) -> None:
        resource = await self._discovery.resource(orphan["apiVersion"], orphan["kind"])
        metadata = orphan["metadata"]
        try:
            await self._client.delete(
                resource, metadata["name"], metadata.get("namespace", ""), uid=metadata["uid"], propagation="Background"
            )
        except kube.NotFound:
            pass

    async def _mark_parent(self, cluster: Cluster, members: list[Manifest]) -> None:
        """The parent names a kind before the first member of it exists, so that no member is ever forgotten."""
        wanted = blueprints.parent_metadata(self._set, members, f"{_OWN_MANAGER}/v1")
        metadata = cluster.metadata
        if wanted["labels"].items() <= metadata.labels.items() and (
            wanted["annotations"].items() <= metadata.annotations.items()
        ):
            return
        await self._client.patch(resources.CLUSTERS, self._cluster, patch={"metadata": wanted})
        metadata.labels |= wanted["labels"]
        metadata.annotations |= wanted["annotations"]

    async def _report(self, cluster: Cluster, outcome: Outcome) -> None:
        assert self._status is not None
        before = self._status
        after = status(before, outcome, cluster.metadata.generation, clock.render_micro(self._now()))
        known = {(each.object, each.path) for each in before.drift if not each.repaired}
        for finding in outcome.findings:
            if finding.identity not in outcome.repaired and finding.key not in known:
                self._events.emit(cluster, "Warning", "DriftFound", str(finding))
        if after == before:
            return
        body = msgspec.to_builtins(after)
        # A merge patch leaves what it does not name: fields that became empty are named.
        cleared = {name: None for name in msgspec.to_builtins(before) if name not in body}
        await self._client.patch(
            resources.CLUSTERS, self._cluster, patch={"status": {**body, **cleared}}, subresource="status"
        )
        self._status = after


def _resource_version(obj: Manifest) -> int:
    return int(obj["metadata"].get("resourceVersion", 0))
