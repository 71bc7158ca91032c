"""What the cluster offers and what of it is taken: an index that follows the cluster object by object.

Facts (slices, classes, claims, taint rules, nodes) come in through `upsert` and `delete`. Decisions that the API
server does not know yet come in through `assume` and `release`, and can be rolled back (holdings.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from capstan.allocation.answers import Answers
from capstan.allocation.holdings import Holdings
from capstan.allocation.model import ClaimKey, Features, NodeView, Number, Problem, number
from capstan.allocation.nodes import NodeDevices, sees
from capstan.allocation.pools import Device, Pool, PoolKey, Shared, Slices
from capstan.allocation.selectors import Expressions, Selectors
from capstan.allocation.tables import Tables
from capstan.allocation.uses import Use, blocked, most, rooms, takes_another
from capstan.api.core import Node, Toleration
from capstan.api.resource import (
    AllocationResult,
    DeviceClass,
    DeviceSelector,
    DeviceTaintRule,
    ResourceClaim,
    ResourceSlice,
)

Fact = ResourceSlice | DeviceClass | ResourceClaim | DeviceTaintRule | Node

IMPLICIT_RESOURCE_PREFIX = "deviceclass.resource.kubernetes.io/"

_REMEMBERED = 50_000
"""Entries of the log of what became free; whoever has not read for so long is told that anything may have."""
_ANY_NODE = ""

_NO_LABELS: dict[str, str] = {}


class Inventory:
    """Devices, classes, and who holds what. Not thread-safe; every method is deterministic."""

    def __init__(self, features: Features | None = None) -> None:
        self.features = features or Features()
        self.classes: dict[str, DeviceClass] = {}
        self.selectors = Selectors(list_attributes=self.features.list_attributes)
        self.tables = Tables()
        self.answers = Answers()
        self._shared = Shared()
        self._slices: dict[str, ResourceSlice] = {}
        self._pools: dict[PoolKey, Slices] = {}
        self._local: dict[str, dict[PoolKey, int]] = {}
        """Per node name, how many slices of which pool name that node."""
        self._wide: dict[PoolKey, int] = {}
        """Pools with slices that several nodes may see."""
        self._rules: dict[str, DeviceTaintRule] = {}
        self._labels: dict[str, dict[str, str]] = {}
        self._holdings = Holdings(self._ready_pool, self._use_changed)
        self._nodes: dict[str, NodeDevices] = {}
        self._free: dict[str, dict[str, int]] = {}
        self._totals: dict[str, dict[str, int]] = {}
        self._extended: dict[str, str] | None = None
        self._freed: list[str] = []
        """Nodes on which something may have become free, oldest first; `_ANY_NODE` stands for all of them."""
        self._freed_before = 0

    # Facts

    def upsert(self, fact: Fact) -> None:
        """Takes in a created or changed object. Marks taken before it become stale."""
        self._holdings.settle()
        if isinstance(fact, ResourceClaim):
            self._holdings.observe(fact.key, fact.status.allocation)
            self._holdings.settle()
        elif isinstance(fact, ResourceSlice):
            known = self._slices.get(fact.metadata.name)
            version = fact.metadata.resource_version
            if known is None or not version or known.metadata.resource_version != version:
                self._remove_slice(fact.metadata.name)
                self._add_slice(fact)
        elif isinstance(fact, DeviceClass):
            self.classes[fact.metadata.name] = fact
            self._class_changed(fact.metadata.name)
        elif isinstance(fact, DeviceTaintRule):
            self._rule_changed(self._rules.get(fact.metadata.name), fact)
            self._rules[fact.metadata.name] = fact
        else:
            name = fact.metadata.name
            if self._labels.get(name) != fact.metadata.labels:
                self._labels[name] = fact.metadata.labels
                self._forget_node(name)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Takes in the deletion of an object; unknown objects are ignored. Marks taken before it become stale."""
        self._holdings.settle()
        if kind == "ResourceClaim":
            self._holdings.forget((namespace, name))
        elif kind == "ResourceSlice":
            self._remove_slice(name)
        elif kind == "DeviceClass":
            if self.classes.pop(name, None) is not None:
                self._class_changed(name)
        elif kind == "DeviceTaintRule":
            rule = self._rules.pop(name, None)
            if rule is not None:
                self._rule_changed(rule)
        elif kind == "Node":
            self._labels.pop(name, None)
            self._forget_node(name)
        self._holdings.settle()

    def _add_slice(self, entry: ResourceSlice) -> None:
        self._slices[entry.metadata.name] = entry
        key = (entry.spec.driver, entry.spec.pool.name)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Slices(key, self.features)
        pool.all[entry.metadata.name] = entry
        pool.invalidate()
        node = entry.spec.node_name
        seen_by = self._wide if not node else self._local.setdefault(node, {})
        seen_by[key] = seen_by.get(key, 0) + 1
        self._pool_changed(pool, node)

    def _remove_slice(self, name: str) -> None:
        entry = self._slices.pop(name, None)
        if entry is None:
            return
        key = (entry.spec.driver, entry.spec.pool.name)
        pool, node = self._pools[key], entry.spec.node_name
        del pool.all[name]
        pool.invalidate()
        self._pool_changed(pool, node)
        seen_by = self._wide if not node else self._local[node]
        seen_by[key] -= 1
        if not seen_by[key]:
            del seen_by[key]
        if not pool.all:
            del self._pools[key]
            self._holdings.drop(key)

    def _pool_changed(self, pool: Slices, node: str | None) -> None:
        if not node or pool.key in self._wide:
            self._nodes.clear()
            self._free.clear()
            self._totals.clear()
            self._note_freed(_ANY_NODE)
        else:
            self._forget_node(node)
            for entry in pool.all.values():
                if entry.spec.node_name != node:
                    self._forget_node(entry.spec.node_name or "")

    def _forget_node(self, name: str) -> None:
        self._nodes.pop(name, None)
        self._free.pop(name, None)
        self._totals.pop(name, None)
        self._note_freed(name)

    def _class_changed(self, name: str) -> None:
        self._extended = None
        self._note_freed(_ANY_NODE)
        for counts in (*self._free.values(), *self._totals.values()):
            counts.pop(name, None)

    def _rule_changed(self, *rules: DeviceTaintRule | None) -> None:
        for rule in rules:
            selector = rule.spec.device_selector if rule else None
            if selector is None:
                continue
            for (driver, name), pool in self._pools.items():
                if selector.driver in (None, driver) and selector.pool in (None, name):
                    pool.invalidate()
                    for node in {entry.spec.node_name for entry in pool.all.values()}:
                        self._pool_changed(pool, node)

    # Decisions

    def assume(self, key: ClaimKey, allocation: AllocationResult) -> None:
        """Counts an allocation that is decided but not yet in the API server. Replaces what the claim held."""
        self._holdings.assume(key, allocation)

    def release(self, key: ClaimKey) -> None:
        """Forgets what the claim holds: takes back an assumption, or assumes that an observed allocation ends."""
        self._holdings.release(key)

    def mark(self) -> int:
        """A point to roll back to, valid until the next fact."""
        return self._holdings.mark()

    def rollback(self, mark: int) -> None:
        """Undoes every assume and release since `mark`. Raises StaleMark if facts arrived since."""
        self._holdings.rollback(mark)

    def allocation(self, key: ClaimKey) -> AllocationResult | None:
        """What the claim holds, as far as this inventory knows."""
        return self._holdings.allocation(key)

    def _use_changed(self, key: PoolKey, freed: bool) -> None:
        pool = self._pools.get(key)
        if pool is None:
            return
        if key in self._wide:
            self._free.clear()
            if freed:
                self._note_freed(_ANY_NODE)
            return
        for node in {entry.spec.node_name or "" for entry in pool.all.values()}:
            self._free.pop(node, None)
            if freed:
                self._note_freed(node)

    def _note_freed(self, node: str) -> None:
        log = self._freed
        if len(log) >= _REMEMBERED:
            self._freed_before += len(log)
            log.clear()
        log.append(node)

    def _ready_pool(self, key: PoolKey) -> Pool | None:
        """The pool that all its slices make."""
        slices = self._pools.get(key)
        if slices is None:
            return None
        if slices.whole is None:
            slices.whole = slices.together(self._shared)
            self._taint(slices.whole)
            self._holdings.recount(slices.whole)
        return slices.whole

    def _pool_on(self, node: NodeView, key: PoolKey) -> Pool | None:
        """The pool that the slices make which the node sees; None if it sees none that counts."""
        slices, whole = self._pools[key], self._ready_pool(key)
        assert whole is not None
        if key not in self._wide and self._local[node.name][key] == len(slices.all):
            return whole
        seen = [entry for entry in slices.all.values() if sees(node, entry)]
        if not seen or len(seen) == len(slices.all):
            return whole if seen else None
        names = tuple(entry.metadata.name for entry in seen)
        if names not in slices.parts:
            part = slices.part(seen, self._shared)
            sets = {name for device in part.devices.values() for name in device.counter_sets} if part else ()
            if part and any(part.counters[name].keys() != whole.counters.get(name, {}).keys() for name in sets):
                part = None  # an older generation: what is left of its counters nobody knows
            if part is not None:
                self._taint(part)
            slices.parts[names] = part
        return slices.parts[names]

    def _taint(self, pool: Pool) -> None:
        if not self.features.device_taint_rules:
            return
        for rule in self._rules.values():
            selector = rule.spec.device_selector
            if selector is None or selector.driver not in (None, pool.driver) or selector.pool not in (None, pool.name):
                continue
            for device in pool.devices.values():
                if selector.device in (None, device.name):
                    device.taints = [*device.taints, rule.spec.taint]

    # Questions

    def freed_since(self, position: int) -> tuple[set[str] | None, int]:
        """The nodes on which something may have become free or different since a position (0: the beginning), None if
        on any; and the position to ask from next time. What only was taken is no such change: it makes nothing
        possible that was proven impossible."""
        log, end = self._freed, self._freed_before + len(self._freed)
        if position == end:
            return set(), end
        if position < self._freed_before:
            return None, end
        names = set(log[position - self._freed_before :])
        return (None if _ANY_NODE in names else names), end

    def on_node(self, node: NodeView) -> NodeDevices:
        """The pools and devices that the node sees."""
        known = self._nodes.get(node.name)
        if known is not None and (
            not self._wide or known.view.labels is node.labels or known.view.labels == node.labels
        ):
            return known
        pools = []
        for key in {**self._local.get(node.name, {}), **self._wide}:
            pool = self._pool_on(node, key)
            if pool is not None:
                pools.append(pool)
        pools.sort(key=lambda pool: (pool.late, pool.key))
        known = self._nodes[node.name] = NodeDevices(node, pools, self.selectors)
        return known

    def use(self, device: Device) -> Use | None:
        return self._holdings.use(device)

    def shares(self, node_name: str, name: str, part: int, whole: int) -> bool:
        """Whether a shared device that the node may use has so large a part of the capacity `name` left."""
        for device in self.published(node_name):
            use = self.use(device)
            capacity = device.spec.capacity.get(name)
            if use is not None and use.shares and not use.whole and capacity is not None:
                size = number(capacity.value)
                if (size - use.consumed.get(name, 0)) * whole >= part * size:
                    return True
        return False

    def uses(self, pool: PoolKey) -> dict[str, Use]:
        """The uses of the pool's devices by name, vanished ones included."""
        return self._holdings.uses.get(pool, {})

    def device(self, driver: str, pool: str, name: str) -> Device | None:
        """The published device; None if it is not published, or not in a usable pool."""
        found = self._ready_pool((driver, pool))
        return found.devices.get(name) if found and found.usable else None

    def pool(self, key: PoolKey) -> Pool:
        """A pool as all its slices make it. Raises KeyError."""
        pool = self._pools[key].whole or self._ready_pool(key)
        assert pool is not None
        return pool

    def left(self, pool: PoolKey) -> dict[str, dict[str, Number]]:
        """Remaining counters of each set; below zero if a driver shrank a set that is in use."""
        return self._holdings.left(pool)

    def problems(self) -> list[Problem]:
        """Pools that contradict themselves, in order; their drivers should be told."""
        found = [pool.problem for key in self._pools if (pool := self._ready_pool(key)) is not None and pool.problem]
        return sorted(found, key=lambda problem: (problem.driver, problem.pool))

    def expressions(self, class_name: str, selectors: Sequence[DeviceSelector] = ()) -> Expressions:
        """The selectors of the class, then the given ones. Raises KeyError for an unknown class."""
        chosen = [*self.classes[class_name].spec.selectors, *selectors]
        return tuple(selector.cel.expression for selector in chosen if selector.cel is not None)

    def devices(self, node_name: str, class_name: str, selectors: Sequence[DeviceSelector] = ()) -> list[Device]:
        """The devices on the node that the class and the given selectors select, in allocation order, taken or not;
        none for an unknown class or for selectors that do not compile."""
        if class_name not in self.classes:
            return []
        node = self.on_node(NodeView(node_name, self._labels.get(node_name, _NO_LABELS)))
        found, errors = node.matches(self.expressions(class_name, selectors))
        return [device for device in found if device not in errors]

    def published(self, node_name: str) -> list[Device]:
        """All devices that the node may use, in allocation order. Not to be changed."""
        return self.on_node(NodeView(node_name, self._labels.get(node_name, _NO_LABELS))).matches(())[0]

    def pools(self, driver: str) -> list[PoolKey]:
        """The pools of a driver that anything is published in."""
        return [key for key in self._pools if key[0] == driver]

    def selected(self, key: PoolKey, class_name: str, selectors: Sequence[DeviceSelector] = ()) -> list[Device]:
        """As `devices`, but those of a pool, whichever nodes see them."""
        pool = self._ready_pool(key)
        if pool is None or class_name not in self.classes:
            return []
        found, errors = self.selectors.matches(pool, self.expressions(class_name, selectors))
        return [device for device in found if device not in errors]

    def free(self, node_name: str, class_name: str, tolerations: Sequence[Toleration] = ()) -> int:
        """How many devices of the class plain requests could still get on the node: exact for devices that share no
        counters, otherwise never too low. 0 for an unknown class or one whose selectors do not compile."""
        if tolerations:
            return self._count(node_name, class_name, list(tolerations), in_use=True)
        counts = self._free.get(node_name)
        if counts is None:
            counts = self._free[node_name] = {}
        count = counts.get(class_name)
        if count is None:
            count = counts[class_name] = self._count(node_name, class_name, [], in_use=True)
        return count

    def rooms(
        self,
        node_name: str,
        class_name: str,
        selectors: Sequence[DeviceSelector],
        tolerations: list[Toleration],
        *,
        in_use: bool = False,
    ) -> int | None:
        """How many devices, or shares of no certain size, requests still get on the node at most; with `in_use`, how
        many if nothing was allocated. None where counters decide, or nothing does."""
        if class_name not in self.classes:
            return 0
        node = self.on_node(NodeView(node_name, self._labels.get(node_name, _NO_LABELS)))
        devices, errors = node.matches(self.expressions(class_name, selectors))
        count = 0
        for device in devices:
            if device.consumption or device.draws:
                return None
            if (device.taints and blocked(device.taints, tolerations)) or (errors and device in errors):
                continue
            found = rooms(device, None if in_use else self.use(device))
            if found is None:
                return None
            count += found
        return count

    def capacity(self, node_name: str, class_name: str) -> int:
        """As `free`, but as if nothing was allocated or tainted."""
        counts = self._totals.setdefault(node_name, {})
        if class_name not in counts:
            counts[class_name] = self._count(node_name, class_name, [Toleration(operator="Exists")], in_use=False)
        return counts[class_name]

    def _count(self, node_name: str, class_name: str, tolerations: list[Toleration], *, in_use: bool) -> int:
        if class_name not in self.classes:
            return 0
        node = self.on_node(NodeView(node_name, self._labels.get(node_name, _NO_LABELS)))
        devices, errors = node.matches(self.expressions(class_name))
        total = 0
        partitions: dict[tuple[PoolKey, str], list[Device]] = {}
        uses = self._holdings.uses if in_use else {}
        for device in devices:
            if (device.taints and blocked(device.taints, tolerations)) or (errors and device in errors):
                continue
            use = uses[device.pool].get(device.spec.name) if device.pool in uses else None
            if use is not None:
                total += takes_another(device, use)
            elif not device.consumption:
                total += 1
            else:
                partitions.setdefault((device.pool, device.consumption[0][0]), []).append(device)
        for (key, name), members in partitions.items():
            left = self._holdings.left(key) if in_use else self.pool(key).counters
            fitting = [
                device
                for device in members
                if all(left[s][counter] >= amount for s, taken in device.consumption for counter, amount in taken)
            ]
            total += most(fitting, left[name])
        return total

    def class_for_extended_resource(self, name: str) -> str | None:
        """The class that backs an extended resource (KEP-5004): the newest that names it, then the alphabetically
        first."""
        if not self.features.extended_resources:
            return None
        if name.startswith(IMPLICIT_RESOURCE_PREFIX):
            implicit = name.removeprefix(IMPLICIT_RESOURCE_PREFIX)
            return implicit if implicit in self.classes else None
        if self._extended is None:
            self._extended = {}
            for entry in sorted(self.classes.values(), key=lambda c: c.metadata.name, reverse=True):
                self._extended_by(entry)
        return self._extended.get(name)

    def _extended_by(self, entry: DeviceClass) -> None:
        assert self._extended is not None
        resource = entry.spec.extended_resource_name
        if not resource:
            return
        rival = self._extended.get(resource)
        newest = self.classes[rival].metadata.creation_timestamp if rival else ""
        if entry.metadata.creation_timestamp >= newest:
            self._extended[resource] = entry.metadata.name

    def dump(self) -> dict[str, object]:
        """Everything that decisions change, in canonical order: equal dumps mean equal states."""
        for key in self._pools:
            self._ready_pool(key)
        return self._holdings.dump()
