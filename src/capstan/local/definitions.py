"""CustomResourceDefinitions at work: their status, the routes they open and close, and the clean-up when one is
deleted.

A definition takes effect when it is committed: its status is decided within the write, its routes change when the
event is published, before the writer hears of success. The finalizer on it holds a deleted one until its last
instance is gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, TypeGuard

from capstan.api import clock
from capstan.local.bodies import DeleteOptions
from capstan.local.handlers import Writes, ordered
from capstan.local.reads import Reads
from capstan.local.registry import Registry
from capstan.local.request import ADMIN, Request
from capstan.local.status import Json, Refused
from capstan.local.store import Event
from capstan.local.types import from_crd

log = logging.getLogger(__name__)

PREFIX = "/apiextensions.k8s.io/customresourcedefinitions/"
FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


class Definitions:
    def __init__(self, registry: Registry, reads: Reads, writes: Writes) -> None:
        self._registry = registry
        self._reads = reads
        self._writes = writes
        self._table = writes.store.table(PREFIX)
        self._terminating: set[str] = set()
        self._wake = asyncio.Event()

    def start(self) -> None:
        """Serve the definitions that the store already holds, and follow it from here."""
        self._writes.completions[PREFIX] = self._accept
        for record in self._table.objects.values():
            self._serve(record.decode())
        self._table.listeners.append(self._changed)

    def _accept(self, new: Json, old: Json | None) -> None:
        """Decide the status of a definition that is being written, and hold it by the finalizer."""
        spec, metadata = new.get("spec"), new["metadata"]
        if not _well_formed(spec):
            return  # validation says why
        if old is None:
            metadata["finalizers"] = sorted({*(metadata.get("finalizers") or []), FINALIZER})
        elif new.get("spec") == old.get("spec") and (old.get("status") or {}).get("conditions"):
            return
        previous = (old or {}).get("status") or {}
        stored = next((each["name"] for each in spec["versions"] if each.get("storage")), spec["versions"][0]["name"])
        now = clock.render(self._writes.now())
        taken = self._name_conflict(spec)
        conditions = [
            ("NamesAccepted", not taken, "NoConflicts" if not taken else "NameConflict", taken or "no conflicts found"),
            (
                "Established",
                not taken,
                "InitialNamesAccepted" if not taken else "NotAccepted",
                "the initial names have been accepted" if not taken else "not all names are accepted",
            ),
        ]
        before = {each["type"]: each for each in previous.get("conditions") or []}
        status: Json = {
            "conditions": [
                {
                    "type": kind,
                    "status": str(holds),
                    "reason": reason,
                    "message": message,
                    "lastTransitionTime": before[kind]["lastTransitionTime"]
                    if before.get(kind, {}).get("status") == str(holds)
                    else now,
                }
                for kind, holds, reason, message in conditions
            ],
            "acceptedNames": spec["names"] if not taken else previous.get("acceptedNames", {"kind": "", "plural": ""}),
            "storedVersions": sorted({*(previous.get("storedVersions") or []), stored}),
        }
        status["conditions"] += [each for kind, each in before.items() if kind not in ("NamesAccepted", "Established")]
        new["status"] = status

    def _name_conflict(self, spec: Json) -> str:
        """Names are unique within a group, over definitions and built-in types."""
        group, names = spec["group"], spec["names"]
        for resource in self._registry.types():
            if resource.group != group or resource.plural == names["plural"]:
                continue
            if names["kind"] in (resource.kind, resource.list_kind):
                return f'"{names["kind"]}" is already in use by {resource.plural}.{group}'
            for short in names.get("shortNames") or []:
                if short in resource.short_names:
                    return f'"{short}" is already in use by {resource.plural}.{group}'
        return ""

    def _changed(self, event: Event) -> None:
        definition = event.record.decode()
        if event.type != "DELETED":
            if event.previous is None or _effect(event.previous.decode()) != _effect(definition):
                self._serve(definition)
            return
        spec = definition["spec"]
        self._registry.replace(spec["group"], spec["names"]["plural"], [])
        self._reads.close_watches(f"/{spec['group']}/{spec['names']['plural']}/")

    def _serve(self, definition: Json) -> None:
        spec, established, terminating = _effect(definition)
        types = from_crd(definition) if established else []
        self._registry.replace(spec["group"], spec["names"]["plural"], types, terminating=terminating)
        if terminating:
            self._terminating.add(definition["metadata"]["name"])
            self._wake.set()

    async def run(self) -> None:
        """Delete the instances of terminating definitions, then let the definitions go."""
        while True:
            if not self._terminating:
                self._wake.clear()
                await self._wake.wait()
            for name in sorted(self._terminating):
                try:
                    if await self._clean_up(name):
                        self._terminating.discard(name)
                except Refused:
                    log.exception("cleaning up after the definition %s", name)
            if self._terminating:
                # Instances with finalizers of their own take their time.
                await asyncio.sleep(0.2)

    async def _clean_up(self, name: str) -> bool:
        """One pass; True when nothing is left to do."""
        store = self._writes.store
        record = store.get(f"{PREFIX}/{name}")
        if record is None:
            return True
        definition = record.decode()
        if FINALIZER not in (definition["metadata"].get("finalizers") or []):
            return True
        spec = definition["spec"]
        group, plural = spec["group"], spec["names"]["plural"]
        versions = [each for each in self._registry.types() if (each.group, each.plural) == (group, plural)]
        table = store.table(f"/{group}/{plural}/")
        if versions and table.objects:
            served = self._registry.find(group, versions[0].version, plural)
            request = Request("DELETE", "", {}, b"", {"user-agent": "kube-apiserver"}, ADMIN)
            for instance in list(table.records(f"/{group}/{plural}/")):
                assert served is not None
                self._writes.remove(request, served, instance, DeleteOptions())
            await store.committed(store.revision)
            if table.objects:
                return False
        definition["metadata"]["finalizers"].remove(FINALIZER)
        if definition["metadata"]["finalizers"]:
            store.put(record.key, ordered(definition))
        else:
            store.delete(record.key, ordered(definition))
        await store.committed(store.revision)
        return True


def _effect(definition: Json) -> tuple[Json, bool, bool]:
    """What decides the routes of a definition: its spec, whether it is established, whether it is terminating."""
    conditions = (definition.get("status") or {}).get("conditions") or []
    established = any(each["type"] == "Established" and each["status"] == "True" for each in conditions)
    return definition["spec"], established, bool(definition["metadata"].get("deletionTimestamp"))


def _well_formed(spec: Any) -> TypeGuard[Json]:
    """Whether the parts that `_accept` reads are there."""
    return (
        isinstance(spec, dict)
        and isinstance(spec.get("group"), str)
        and isinstance(spec.get("names"), dict)
        and all(isinstance(spec["names"].get(field), str) for field in ("plural", "kind"))
        and isinstance(spec.get("versions"), list)
        and bool(spec["versions"])
        and all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in spec["versions"])
    )
