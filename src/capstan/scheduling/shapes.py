"""Pods to shapes: what a pod asks for, reduced to what matters for its place, so that equal pods are judged once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import count
from typing import Generic, TypeVar

import msgspec

from capstan.api import quantity
from capstan.api.core import Container, Pod, Quantity, Resources
from capstan.api.selectors import NodeSelector
from capstan.scheduling.amounts import CPU_COLUMN, GPU, GPU_COLUMN, GPU_RESOURCE, MEMORY_COLUMN, PODS_COLUMN
from capstan.scheduling.model import MIG_PREFIX
from capstan.scheduling.shape import HostPort, Shape, Share

FRACTION = "gpu-fraction"
MEMORY = "gpu-memory"
DEVICES = "gpu-fraction-num-devices"
_MIG = re.compile(r"nvidia\.com/mig-(\d+)g\.(\d+)gb.*")
_HOST_LABEL = "kubernetes.io/hostname"
Requests = dict[str, Decimal]
K = TypeVar("K")
_MOST_KEPT = 10_000
"""Shapes that came lately, and as many that came before them. Jobs may put their own names into their selectors, so
that no two are alike."""


class InvalidShare(ValueError):
    """The GPU share annotations of a pod contradict themselves; the message names the annotation and the rule."""


def mig_slices(resource: str) -> int:
    """Compute slices of a MIG resource (`nvidia.com/mig-2g.10gb`: 2), what it counts in quotas; 0 for others."""
    found = _MIG.fullmatch(resource)
    return int(found[1]) if found else 0


def effective_requests(pod: Pod) -> Requests:
    """What the pod occupies: the larger of its containers' sum and each init step, plus overhead (KEP-753)."""
    total: Requests = {}
    sidecars: Requests = {}
    start: Requests = {}
    for container in pod.spec.init_containers:
        own = _container_requests(container)
        if container.restart_policy == "Always":
            _add(sidecars, own)
            _raise(start, sidecars)
        else:
            _add(own, sidecars)
            _raise(start, own)
    for container in pod.spec.containers:
        _add(total, _container_requests(container))
    _add(total, sidecars)
    _raise(total, start)
    if pod.spec.resources is not None:
        total.update(_requests(pod.spec.resources))
    _add(total, {name: quantity.parse(amount) for name, amount in pod.spec.overhead.items()})
    return total


def _container_requests(container: Container) -> Requests:
    return _requests(container.resources)


def _requests(resources: Resources) -> Requests:
    merged: dict[str, Quantity] = {**resources.limits, **resources.requests}
    return {name: quantity.parse(amount) for name, amount in merged.items()}


def _add(total: Requests, more: Mapping[str, Decimal]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, Decimal(0)) + amount


def _raise(total: Requests, other: Mapping[str, Decimal]) -> None:
    for name, amount in other.items():
        total[name] = max(total.get(name, Decimal(0)), amount)


def guaranteed(pod: Pod) -> bool:
    """Quality of service class Guaranteed: every container limits CPU and memory to exactly what it requests."""
    containers = [*pod.spec.containers, *pod.spec.init_containers]
    for container in containers:
        limits, requests = container.resources.limits, container.resources.requests
        for name in ("cpu", "memory"):
            if name not in limits or quantity.parse(requests.get(name, limits[name])) != quantity.parse(limits[name]):
                return False
    return bool(containers)


def gpu_share(annotations: Mapping[str, str], whole_gpus: Decimal) -> Share | None:
    """The GPU share a pod asks for by annotation, if any. Raises InvalidShare."""
    fraction, memory, devices = (annotations.get(name) for name in (FRACTION, MEMORY, DEVICES))
    if fraction is None and memory is None:
        if devices is not None:
            raise InvalidShare(f"annotation {DEVICES} needs {FRACTION} or {MEMORY} next to it")
        return None
    if fraction is not None and memory is not None:
        raise InvalidShare(f"annotations {FRACTION} and {MEMORY} exclude each other; keep one")
    if whole_gpus:
        raise InvalidShare(f"annotation {(fraction and FRACTION) or MEMORY} excludes whole GPUs ({GPU_RESOURCE})")
    count = _positive(DEVICES, devices) if devices is not None else 1
    if memory is not None:
        return Share(0, _positive(MEMORY, memory), count)
    try:
        portion = Decimal(fraction or "")
    except ArithmeticError:
        portion = Decimal(0)
    if not portion.is_finite() or not 0 < portion < 1:
        raise InvalidShare(f"annotation {FRACTION} is {fraction!r}; write a number above 0 and below 1")
    return Share(max(1, int(portion * GPU)), 0, count)


def _positive(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise InvalidShare(f"annotation {name} is {text!r}; write a whole number above 0")
    return int(text)


def _names_nodes(selector: NodeSelector | None) -> bool:
    return selector is not None and any(
        term.match_fields or any(e.key == _HOST_LABEL for e in term.match_expressions)
        for term in selector.node_selector_terms
    )


class _Recent(Generic[K]):
    """Shapes by what makes them alike; forgets those that nothing was alike with for long."""

    def __init__(self) -> None:
        self._new: dict[K, Shape] = {}
        self._old: dict[K, Shape] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def get(self, key: K) -> Shape | None:
        found = self._new.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: K, shape: Shape) -> None:
        if len(self._new) >= _MOST_KEPT:
            self._new, self._old = {}, self._new
        self._new[key] = shape


class Shapes:
    """Interns shapes. `columns` maps resource names to node columns and grows as nodes offer resources.

    What a pod asks for and nothing offers gets no column, for tenants may invent names; `backed` says of a resource
    that no node names whether devices of some class stand behind it.

    Numbers are never given twice. A shape that was forgotten gets another number when it comes back: it is then judged
    once more, with the same outcome.
    """

    def __init__(self, backed: Callable[[str], bool] = lambda resource: False) -> None:
        self._backed = backed
        self.columns: dict[str, int] = {
            "cpu": CPU_COLUMN,
            "memory": MEMORY_COLUMN,
            "pods": PODS_COLUMN,
            GPU_RESOURCE: GPU_COLUMN,
        }
        self._numbers = count()
        self._shapes: _Recent[tuple[object, ...]] = _Recent()
        self._parsed: _Recent[bytes] = _Recent()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._shapes)

    def column(self, resource: str) -> int:
        return self.columns.setdefault(resource, len(self.columns))

    def offered(self, resource: str) -> bool:
        return resource in self.columns or self._backed(resource)

    def resource(self, column: int) -> str:
        return next(name for name, number in self.columns.items() if number == column)

    def amount(self, resource: str, value: Decimal) -> int:
        """A quantity in the unit of its column, rounded up."""
        return quantity.milli(str(value)) if resource == "cpu" else quantity.whole(str(value))

    def of(self, pod: Pod) -> Shape:
        """The shape of a pod; a request that is wrong gives a shape with `error` set."""
        spec = pod.spec
        notes = pod.metadata.annotations
        raw = _encoder.encode(
            (
                [(c.resources, [p for p in c.ports if p.host_port]) for c in spec.containers],
                [(c.resources, c.restart_policy, [p for p in c.ports if p.host_port]) for c in spec.init_containers],
                spec.resources,
                spec.overhead,
                spec.node_selector,
                spec.affinity,
                spec.tolerations,
                spec.topology_spread_constraints,
                bool(spec.resource_claims),
                any(v.persistent_volume_claim or v.ephemeral for v in spec.volumes),
                [notes.get(FRACTION), notes.get(MEMORY), notes.get(DEVICES)],
            )
        )
        shape = self._parsed.get(raw)
        if shape is None or any(map(self.offered, shape.lacks)):
            shape = self._parse(pod, raw)
            self._parsed.put(raw, shape)
        return shape

    def _parse(self, pod: Pod, raw: bytes) -> Shape:
        spec = pod.spec
        error, share = "", None
        try:
            requests = effective_requests(pod)
            negative = next((name for name, amount in requests.items() if amount < 0), None)
            if negative is not None:
                error = f"the request for {negative} is negative"
            share = gpu_share(pod.metadata.annotations, requests.get(GPU_RESOURCE, Decimal(0)))
        except (quantity.InvalidQuantity, InvalidShare) as refused:
            requests, error = {}, str(refused)
        wanted = {name: self.amount(name, amount) for name, amount in requests.items() if amount > 0}
        lacks = tuple(sorted(name for name in wanted if not self.offered(name)))
        columns = [(self.column(name), amount) for name, amount in wanted.items() if name not in lacks]
        columns = sorted([*columns, (PODS_COLUMN, 1)])
        amounts = dict(columns)
        gpu = amounts.get(GPU_COLUMN, 0) * GPU
        gpu += sum(int(amount) * mig_slices(name) * GPU for name, amount in requests.items() if MIG_PREFIX in name)
        if share is not None and not share.memory:
            gpu += share.portion * share.devices
        affinity = spec.affinity
        node_affinity = affinity.node_affinity if affinity else None
        required = node_affinity.required_during_scheduling_ignored_during_execution if node_affinity else None
        aligned = [name for name in requests if name not in ("cpu", "memory", "pods")]
        if not error and guaranteed(pod):
            aligned = ["cpu", "memory", *aligned]
        shape = Shape(
            number=0,
            requests=tuple(columns),
            quota=(amounts.get(CPU_COLUMN, 0), amounts.get(MEMORY_COLUMN, 0), gpu),
            share=share,
            node_selector=tuple(sorted(spec.node_selector.items())),
            node_affinity=required,
            preferred_nodes=(
                node_affinity.preferred_during_scheduling_ignored_during_execution if node_affinity else []
            ),
            tolerations=spec.tolerations,
            pod_affinity=affinity.pod_affinity if affinity else None,
            pod_anti_affinity=affinity.pod_anti_affinity if affinity else None,
            spread=spec.topology_spread_constraints,
            ports=tuple(
                HostPort(port.host_ip, port.protocol, port.host_port)
                for container in (*spec.containers, *(c for c in spec.init_containers if c.restart_policy == "Always"))
                for port in container.ports
                if port.host_port
            ),
            claims=bool(spec.resource_claims),
            volumes=any(v.persistent_volume_claim or v.ephemeral for v in spec.volumes),
            by_name=_HOST_LABEL in spec.node_selector or _names_nodes(required),
            error=error,
            lacks=lacks,
            numa=tuple((name, self.amount(name, requests[name])) for name in aligned if requests.get(name)),
        )
        rest = raw if shape.dynamic or shape.preferred_nodes or error else b""
        key = (
            shape.requests,
            share,
            lacks,
            shape.node_selector,
            _encoder.encode((required, spec.tolerations)),
            shape.numa,
            rest,
        )
        known = self._shapes.get(key)
        if known is None:
            known = replace(shape, number=next(self._numbers))
            self._shapes.put(key, known)
        return known


_encoder = msgspec.msgpack.Encoder(order="deterministic")
