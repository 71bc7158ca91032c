"""Subresources with behaviour of their own: status, scale, binding, eviction, log, token, finalize. Others answer
501."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import msgspec

from capstan.api import clock
from capstan.api.base import StatusCause
from capstan.api.policy import PodDisruptionBudget
from capstan.local import bodies, status
from capstan.local.auth import ISSUER, Authenticator
from capstan.local.handlers import STATUS_LIKE, Writes, check_kind, ordered, patched
from capstan.local.reads import Reads
from capstan.local.registry import Served
from capstan.local.request import Request, Response, Stream, Target, encode
from capstan.local.selection import record_labels
from capstan.local.status import Json
from capstan.local.store import Record

_SHORTEST_TOKEN, _LONGEST_TOKEN = 600, 48 * 3600
_budgets = msgspec.json.Decoder(PodDisruptionBudget)


class LogOptions(msgspec.Struct, kw_only=True):
    """The query of a log request; times in seconds."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since_seconds: int | None = None
    since_time: str = ""


LogProvider = Callable[[Json, str, LogOptions], AsyncIterator[bytes]]
"""(pod, container name, options) → pieces of the log, until the container ends when it is followed."""

_SCALE_PATHS = (("spec", "replicas"), ("status", "replicas"), ("status", "selector"))


class Burst:
    """Pods that are bound shortly after one another. Times in seconds on the event loop's clock."""

    _LONGEST_GAP = 0.5
    _GAP_PER_POD = 0.02

    def __init__(self) -> None:
        self._size = 0
        self._latest = float("-inf")

    def note(self, now: float) -> None:
        self._size = self._size + 1 if now < self.over else 1
        self._latest = now

    @property
    def over(self) -> float:
        """When the burst counts as over unless another pod is bound: soon after a few pods, later after many."""
        return self._latest + min(self._LONGEST_GAP, self._size * self._GAP_PER_POD)


class Subresources:
    def __init__(
        self,
        reads: Reads,
        writes: Writes,
        authenticator: Authenticator,
        logs: dict[str, LogProvider],
    ) -> None:
        self._reads = reads
        self._writes = writes
        self._authenticator = authenticator
        self._logs = logs
        self.burst = Burst()

    async def handle(self, verb: str, request: Request, served: Served, target: Target) -> Response | Stream:
        resource, subresource = served.type, target.subresource
        if subresource not in resource.subresources or not target.name:
            if not resource.group and subresource in ("exec", "attach", "portforward", "proxy"):
                raise status.not_implemented(f"{resource.plural}/{subresource}")
            raise status.no_such_path()
        key = f"{resource.plural}/{subresource}" if not resource.group else subresource
        if subresource in STATUS_LIKE:
            if verb == "get":
                return await self._reads.get(request, served, target)
            if verb == "update":
                return await self._writes.update(request, served, target)
            if verb == "patch":
                return await self._writes.patch(request, served, target)
        elif subresource == "scale" and verb in ("get", "update", "patch"):
            return await self._scale(verb, request, served, target)
        elif verb == "create" and key == "pods/binding":
            return await self.bind(request, served, target)
        elif verb == "create" and key == "pods/eviction":
            return await self._evict(request, served, target)
        elif verb == "create" and key == "serviceaccounts/token":
            return self._token(request, served, target)
        elif verb == "get" and key == "pods/log":
            return self._log(request, served, target)
        elif verb == "update" and key == "namespaces/finalize":
            return await self._finalize(request, served, target)
        else:
            raise status.not_implemented(f"{verb} of {resource.plural}/{subresource}")
        raise status.method_not_allowed()

    # scale (autoscaling/v1)

    async def _scale(self, verb: str, request: Request, served: Served, target: Target) -> Response:
        resource = served.type
        record = self._writes.existing(served, target)
        document = resource.from_storage(record.decode())
        paths = getattr(resource, "scale", None) or _SCALE_PATHS
        scale = _scale_of(document, paths)
        if verb == "get":
            await self._writes.store.committed(record.revision)
            return Response(200, encode(scale))
        if verb == "patch":
            wanted = bodies.mapping(patched(resource, scale, bodies.patch(request), _scale_patch(request)))
        else:
            wanted = bodies.document(request)
        if wanted.get("kind", "Scale") != "Scale" or wanted["metadata"].get("name", target.name) != target.name:
            raise status.bad_request(f"the body must be the Scale of {target.name}")
        replicas = (wanted.get("spec") or {}).get("replicas", 0)
        if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
            message = f"Invalid value: {replicas}: must be greater than or equal to 0"
            cause = StatusCause(reason="FieldValueInvalid", message=message, field="spec.replicas")
            raise status.invalid("Scale", "autoscaling", target.name, [cause])
        asked = wanted["metadata"].get("resourceVersion")
        if asked and asked != str(record.revision):
            raise status.conflict(resource.plural, resource.group, target.name, status.MODIFIED)
        _put(document, paths[0], replicas)
        old = resource.from_storage(record.decode())
        changed = self._writes.change(request, served, target, record, old, document, [])
        if isinstance(changed, Record):
            await self._writes.store.committed(changed.revision)
            changed = resource.from_storage(changed.decode())
        return Response(200, encode(_scale_of(changed, paths)))

    # pods/binding

    async def bind_named(self, request: Request, pods: Served, target: Target) -> Response:
        """`POST …/bindings`, the older path: the body names the pod."""
        name = bodies.document(request)["metadata"].get("name")
        if not isinstance(name, str) or not name:
            raise status.bad_request("metadata.name: names the pod that is bound")
        return await self.bind(request, pods, Target("", "v1", "pods", target.namespace, name, "binding"))

    async def bind(self, request: Request, served: Served, target: Target) -> Response:
        """Assign a pod to a node, once. Upstream's `AssignPod`: 409 for a pod that is bound, gated or being deleted.

        As upstream, a binding does not come to own fields: managedFields stay as they are.
        """
        binding = bodies.document(request)
        node = (binding.get("target") or {}).get("name")
        if not isinstance(node, str) or not node:
            cause = StatusCause(reason="FieldValueRequired", message="Required value", field="target.name")
            raise status.invalid("Binding", "", target.name, [cause])
        record = self._writes.existing(served, target)
        pod = record.decode()
        metadata, spec = pod["metadata"], pod.setdefault("spec", {})
        wanted = binding["metadata"]
        why = ""
        if wanted.get("uid") and wanted["uid"] != metadata["uid"]:
            why = f"Precondition failed: UID in precondition: {wanted['uid']}, UID in object meta: {metadata['uid']}"
        elif metadata.get("deletionTimestamp"):
            why = f"pod {target.name} is being deleted, cannot be assigned to a host"
        elif spec.get("nodeName"):
            why = f'pod {target.name} is already assigned to node "{spec["nodeName"]}"'
        elif spec.get("schedulingGates"):
            why = f"pod {target.name} has non-empty .spec.schedulingGates"
        if why:
            raise status.conflict("pods/binding", "", target.name, why)
        spec["nodeName"] = node
        for kind in ("annotations", "labels"):
            if wanted.get(kind):
                metadata[kind] = (metadata.get(kind) or {}) | wanted[kind]
        _set_condition(pod, "PodScheduled", "True", clock.render(self._writes.now()))
        if not request.dry_run:
            bound = self._writes.store.put(record.key, ordered(pod))
            self.burst.note(asyncio.get_running_loop().time())
            await self._writes.store.committed(bound.revision)
        return _created()

    # pods/eviction

    async def _evict(self, request: Request, served: Served, target: Target) -> Response:
        """Delete a pod unless a PodDisruptionBudget forbids it (429)."""
        eviction = bodies.document(request)
        if (
            eviction.setdefault("apiVersion", "policy/v1") != "policy/v1"
            or eviction.setdefault("kind", "Eviction") != "Eviction"
        ):
            raise status.bad_request("the body must be a policy/v1 Eviction")
        if eviction["metadata"].get("name", target.name) != target.name:
            raise status.bad_request("name in URL does not match name in Eviction object")
        options = bodies.delete_options(request, eviction.get("deleteOptions") or {})
        record = self._writes.existing(served, target)
        pod = record.decode()
        budget = self._budget(record, pod)
        if budget is not None:
            self._spend(request, budget, pod, dry_run=bool(options.dry_run))
            # The budget's new status and the deletion stand side by side in the log.
        _, _, revision = self._writes.remove(request, served, record, options)
        await self._writes.store.committed(max(revision, self._writes.store.revision if budget is not None else 0))
        return _created()

    def _budget(self, record: Record, pod: Json) -> Record | None:
        """The budget that must agree, if any: pods that do not run, or are on their way out, need none."""
        if pod["metadata"].get("deletionTimestamp") or (pod.get("status") or {}).get("phase") in (
            "Succeeded",
            "Failed",
            "Pending",
        ):
            return None
        table = self._writes.store.table("/policy/poddisruptionbudgets/")
        labels = record_labels(record)
        matching = []
        for candidate in table.records(f"/policy/poddisruptionbudgets/{pod['metadata']['namespace']}/"):
            selector = _budgets.decode(candidate.value).spec.selector
            if selector is not None and selector.matches(labels):
                matching.append(candidate)
        if len(matching) > 1:
            message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            raise status.Refused(500, "InternalError", message)
        return matching[0] if matching else None

    def _spend(self, request: Request, record: Record, pod: Json, *, dry_run: bool) -> None:
        budget = record.decode()
        name, state = budget["metadata"]["name"], budget.setdefault("status", {})
        healthy, desired = state.get("currentHealthy", 0), state.get("desiredHealthy", 0)
        if state.get("observedGeneration", 0) < budget["metadata"].get("generation", 0):
            refusal = status.disruption_budget(
                name, f"The disruption budget {name} is still being processed by the server."
            )
            refusal.body["details"]["retryAfterSeconds"] = 10
            raise refusal
        if not _is_ready(pod):
            always = (budget.get("spec") or {}).get("unhealthyPodEvictionPolicy") == "AlwaysAllow"
            if always or (healthy >= desired and desired > 0):
                return
        allowed = state.get("disruptionsAllowed", 0)
        if allowed <= 0:
            message = f"The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
            raise status.disruption_budget(name, message)
        if dry_run:
            return
        state["disruptionsAllowed"] = allowed - 1
        state.setdefault("disruptedPods", {})[pod["metadata"]["name"]] = clock.render(self._writes.now())
        self._writes.store.put(record.key, ordered(budget))

    # pods/log

    def _log(self, request: Request, served: Served, target: Target) -> Stream:
        pod = self._writes.existing(served, target).decode()
        spec = pod.get("spec") or {}
        container = _container(target.name, spec, request.query.get("container", ""))
        node = spec.get("nodeName")
        if not node:
            raise status.bad_request(f"pod {target.name} does not have a host assigned")
        provider = self._logs.get(node)
        if provider is None:
            raise status.Refused(503, "ServiceUnavailable", f'the node "{node}" of pod {target.name} serves no logs')
        options = LogOptions(
            follow=_query_flag(request, "follow"),
            previous=_query_flag(request, "previous"),
            timestamps=_query_flag(request, "timestamps"),
            tail_lines=request.number("tailLines"),
            limit_bytes=request.number("limitBytes"),
            since_seconds=request.number("sinceSeconds"),
            since_time=request.query.get("sinceTime", ""),
        )
        return Stream(_in_lists(provider(pod, container, options)), "text/plain; charset=utf-8")

    # serviceaccounts/token

    def _token(self, request: Request, served: Served, target: Target) -> Response:
        """TokenRequest (`authentication.k8s.io/v1`)."""
        account = self._writes.existing(served, target).decode()
        document = bodies.document(request)
        document.setdefault("apiVersion", "authentication.k8s.io/v1")
        document.setdefault("kind", "TokenRequest")
        spec = document.setdefault("spec", {})
        lifetime = spec.setdefault("expirationSeconds", 3600) if isinstance(spec, dict) else None
        if not isinstance(lifetime, int) or not _SHORTEST_TOKEN <= lifetime < 1 << 32:
            message = f"Invalid value: {lifetime}: may not specify a duration less than 10 minutes"
            cause = StatusCause(reason="FieldValueInvalid", message=message, field="spec.expirationSeconds")
            raise status.invalid("TokenRequest", "authentication.k8s.io", target.name, [cause])
        audiences = [str(each) for each in spec.get("audiences") or [ISSUER]]
        spec["audiences"] = audiences
        token, expiry = self._authenticator.issue(
            target.namespace,
            target.name,
            account["metadata"]["uid"],
            audiences=audiences,
            lifetime=min(lifetime, _LONGEST_TOKEN),
        )
        document["status"] = {"token": token, "expirationTimestamp": clock.render(expiry)}
        return Response(201, encode(document))

    # namespaces/finalize

    async def _finalize(self, request: Request, served: Served, target: Target) -> Response:
        """Replace `spec.finalizers` of a namespace; with the last one a terminating namespace is gone."""
        document = bodies.document(request)
        check_kind(served.type, document)
        record = self._writes.existing(served, target)
        asked = document["metadata"].get("resourceVersion")
        if asked and asked != str(record.revision):
            raise status.conflict("namespaces", "", target.name, status.MODIFIED)
        old, namespace = record.decode(), record.decode()
        namespace.setdefault("spec", {})["finalizers"] = (document.get("spec") or {}).get("finalizers") or []
        changed = self._writes.store_changed(request, served.type, record, old, namespace, "finalize")
        await self._committed(changed)
        return Response(200, changed.value if isinstance(changed, Record) else encode(changed))

    async def _committed(self, changed: Record | Json) -> None:
        if isinstance(changed, Record):
            await self._writes.store.committed(changed.revision)


def _created() -> Response:
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
    return Response(201, encode(body))


def _query_flag(request: Request, name: str) -> bool:
    return name in request.query and request.flag(name)


async def _in_lists(pieces: AsyncIterator[bytes]) -> AsyncGenerator[list[bytes], None]:
    async for piece in pieces:
        yield [piece]


def _container(pod: str, spec: Json, wanted: str) -> str:
    """The container whose log is meant. Raises 400 with the choices."""
    names = [each["name"] for each in spec.get("containers") or []]
    every = [each["name"] for each in spec.get("initContainers") or []] + names
    if not wanted:
        if len(every) == 1:
            return str(names[0])
        raise status.bad_request(
            f"a container name must be specified for pod {pod}, choose one of: [{' '.join(names)}]"
        )
    if wanted not in every:
        raise status.bad_request(f"container {wanted} is not valid for pod {pod}")
    return wanted


def _is_ready(pod: Json) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def _set_condition(pod: Json, kind: str, value: str, now: str) -> None:
    conditions = pod.setdefault("status", {}).setdefault("conditions", [])
    condition = next((each for each in conditions if each.get("type") == kind), None)
    if condition is None:
        conditions.append({"type": kind, "status": value, "lastTransitionTime": now})
        return
    if condition.get("status") != value:
        condition["lastTransitionTime"] = now
    condition["status"] = value
    for stale in ("reason", "message"):
        condition.pop(stale, None)


def _get(document: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        document = document.get(step) if isinstance(document, dict) else None
    return document


def _put(document: Json, path: tuple[str, ...], value: Any) -> None:
    for step in path[:-1]:
        document = document.setdefault(step, {})
    document[path[-1]] = value


def _scale_patch(request: Request) -> str:
    kind = bodies.media_type(request)
    if kind == bodies.APPLY_PATCH:
        raise status.not_implemented("server-side apply of a scale")
    # A Scale has no lists, so that a strategic merge is a merge.
    return bodies.MERGE_PATCH if kind == bodies.STRATEGIC_PATCH else kind


def _scale_of(document: Json, paths: tuple[tuple[str, ...], ...]) -> Json:
    metadata = {
        field: document["metadata"][field]
        for field in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        if field in document["metadata"]
    }
    selector = _get(document, paths[2]) if len(paths) > 2 else None
    if selector is None:
        selector = _get(document, ("spec", "selector"))
    state: Json = {"replicas": _get(document, paths[1]) or 0}
    text = _selector_text(selector)
    if text:
        state["selector"] = text
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": _get(document, paths[0]) or 0},
        "status": state,
    }


def _selector_text(selector: Any) -> str:
    """A LabelSelector as `kubectl -l` takes it."""
    if isinstance(selector, str):
        return selector
    if not isinstance(selector, dict):
        return ""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for requirement in selector.get("matchExpressions") or []:
        key, values = requirement.get("key", ""), ",".join(requirement.get("values") or [])
        text = {
            "In": f"{key} in ({values})",
            "NotIn": f"{key} notin ({values})",
            "Exists": key,
            "DoesNotExist": f"!{key}",
        }
        parts.append(text.get(requirement.get("operator", ""), key))
    return ",".join(parts)
