"""The writing verbs on stored resources. Each write is decided in one step without waiting: read, change, check,
append.

The order of a write: decode → unknown fields → type preparation → admission → validation → field ownership → store.
The answer waits until its revision is durable (`Store.committed`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from capstan import fields
from capstan.api import clock
from capstan.api.base import StatusCause
from capstan.fields import FieldSet
from capstan.local import bodies, deletion, selection, status
from capstan.local.admission import Attributes, Chain, Operation
from capstan.local.registry import Served
from capstan.local.representation import View, negotiate
from capstan.local.request import Request, Response, Target, encode
from capstan.local.status import Json
from capstan.local.store import Record, Store
from capstan.local.types import ResourceType, Undecodable
from capstan.local.types_builtin import BuiltinType

_NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_GENERATED_PREFIX = 58
_SERVER_METADATA = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "resourceVersion",
)
_STATUS = FieldSet.of([("f:status",)])
_SPEC = FieldSet.of([("f:spec",)])
STATUS_LIKE = ("status", "approval")
MACHINE_MADE = frozenset(
    {
        "/pods",
        "/events",
        "coordination.k8s.io/leases",
        "resource.k8s.io/resourceslices",
        "resource.k8s.io/resourceclaims",
        "scheduling.run.ai/podgroups",
    }
)
"""Objects that controllers make by the thousand. Made by a service account, their ownership is tracked from the first
server-side apply on, as upstream does with untracked objects; what people make is tracked from the start."""
_MACHINES = "system:serviceaccount:"
_UUID_FREE = ~(0xF << 76 | 0b11 << 62)
_UUID_4 = 4 << 76 | 0b10 << 62


def ordered(document: Json) -> Json:
    """apiVersion, kind and metadata first: `Served.present` relies on it."""
    return {
        "apiVersion": document.pop("apiVersion"),
        "kind": document.pop("kind"),
        "metadata": document.pop("metadata"),
        **document,
    }


class Writes:
    def __init__(self, store: Store, admission: Chain, now: Callable[[], float]) -> None:
        self.store = store
        self.admission = admission
        self.now = now
        self.completions: dict[str, Callable[[Json, Json | None], None]] = {}
        """By `Served.prefix`: what the server itself decides about (new, old) before it is validated; changes `new`."""

    async def create(self, request: Request, served: Served, target: Target) -> Response:
        view = negotiate(request, served)
        document = bodies.document(request)
        resource = served.type
        check_kind(resource, document)
        warnings: list[str] = []
        check_fields(request, resource, document, warnings)
        metadata = document["metadata"]
        check_namespace(resource, metadata, target.namespace)
        if metadata.get("resourceVersion"):
            raise status.bad_request("resourceVersion should not be set on objects to be created")
        metadata.pop("managedFields", None)
        generated = not metadata.get("name") and metadata.get("generateName")
        while True:
            if generated:
                metadata["name"] = generate_name(metadata["generateName"])
            key = served.key(target.namespace, _name(resource, metadata))
            if not generated or self.store.get(key) is None:
                break
        return await self._answer(
            201, self._insert(request, served, target, document, warnings), view, served, warnings
        )

    async def update(self, request: Request, served: Served, target: Target) -> Response:
        view = negotiate(request, served)
        document = bodies.document(request)
        resource = served.type
        check_kind(resource, document)
        warnings: list[str] = []
        check_fields(request, resource, document, warnings)
        check_namespace(resource, document["metadata"], target.namespace)
        if _name(resource, document["metadata"]) != target.name:
            raise status.bad_request(
                f"the name of the object ({document['metadata']['name']}) does not match "
                f"the name on the URL ({target.name})"
            )
        record = self.existing(served, target)
        old = resource.from_storage(record.decode())
        changed = self.change(request, served, target, record, old, document, warnings)
        return await self._answer(200, changed, view, served, warnings)

    async def patch(self, request: Request, served: Served, target: Target) -> Response:
        view = negotiate(request, served)
        content = bodies.patch(request)
        kind = bodies.media_type(request)
        warnings: list[str] = []
        resource = served.type
        if kind == bodies.APPLY_PATCH:
            return await self._apply(request, served, target, bodies.mapping(content), view, warnings)
        record = self.existing(served, target)
        old = resource.from_storage(record.decode())
        document = bodies.mapping(patched(resource, old, content, kind))
        check_kind(resource, document)
        check_namespace(resource, document["metadata"], target.namespace)
        if _name(resource, document["metadata"]) != target.name:
            raise status.bad_request(f"metadata.name: a patch cannot rename {target.name}")
        check_fields(request, resource, document, warnings)
        if target.subresource not in STATUS_LIKE:
            # What the patch left alone is shared with what it was applied to.
            old = resource.from_storage(record.decode())
        changed = self.change(request, served, target, record, old, document, warnings)
        return await self._answer(200, changed, view, served, warnings)

    async def _apply(
        self, request: Request, served: Served, target: Target, applied: Json, view: View, warnings: list[str]
    ) -> Response:
        resource = served.type
        manager = request.query.get("fieldManager", "")
        if not manager:
            cause = StatusCause(
                reason="FieldValueRequired",
                message="Required value: is required for apply patch",
                field="fieldManager",
            )
            raise status.invalid("PatchOptions", "meta.k8s.io", "", [cause])
        check_kind(resource, applied)
        check_namespace(resource, applied["metadata"], target.namespace)
        if applied["metadata"].setdefault("name", target.name) != target.name:
            raise status.bad_request(
                f"the name of the object ({applied['metadata']['name']}) does not match "
                f"the name on the URL ({target.name})"
            )
        check_fields(request, resource, applied, warnings)
        asked = applied["metadata"].get("resourceVersion")
        record = self.store.get(served.key(target.namespace, target.name))
        if record is None and (target.subresource or asked):
            raise status.not_found(resource.plural, resource.group, target.name)
        live = resource.from_storage(record.decode()) if record is not None else None
        try:
            document = fields.apply(
                live,
                applied,
                manager,
                schema=resource.merge_schema,
                force=request.flag("force"),
                now=clock.render(self.now()),
                api_version=resource.api_version,
                subresource=target.subresource,
                ignored=ignored_fields(resource, target.subresource),
            )
        except fields.Conflicts as error:
            raise status.apply_conflict(str(error), [(each.field, each.owner) for each in error]) from error
        except fields.FieldsError as error:
            raise status.bad_request(str(error)) from error
        if asked:
            document["metadata"]["resourceVersion"] = asked
        if record is None:
            created = self._insert(request, served, target, document, warnings, applied=True)
            return await self._answer(201, created, view, served, warnings)
        old = resource.from_storage(record.decode())
        changed = self.change(request, served, target, record, old, document, warnings, applied=True)
        return await self._answer(200, changed, view, served, warnings)

    async def delete(self, request: Request, served: Served, target: Target) -> Response:
        options = bodies.delete_options(request)
        record = self.existing(served, target)
        removed, value, revision = self.remove(request, served, record, options)
        await self.store.committed(revision)
        if not removed:
            return Response(200, negotiate(request, served).one(value))
        resource = served.type
        uid = record.decode()["metadata"].get("uid", "")
        return Response(200, encode(status.success(resource.plural, resource.group, target.name, uid)))

    async def delete_collection(self, request: Request, served: Served, target: Target) -> Response:
        options = bodies.delete_options(request)
        chosen = selection.of_request(served.type, request)
        table = self.store.table(served.prefix)
        prefix = served.prefix + (f"{target.namespace}/" if target.namespace else "")
        records = [record for record in table.records(prefix) if chosen is None or chosen.matches(record)]
        values = [self.remove(request, served, record, options)[1] for record in records]
        revision = self.store.revision
        await self.store.committed(revision)
        view = negotiate(request, served)
        return Response(200, view.many(values, {"resourceVersion": str(revision)}))

    # The steps that several verbs share

    def existing(self, served: Served, target: Target) -> Record:
        record = self.store.get(served.key(target.namespace, target.name))
        if record is None:
            raise status.not_found(served.type.plural, served.type.group, target.name)
        return record

    async def _answer(
        self, code: int, written: Record | Json, view: View, served: Served, warnings: list[str]
    ) -> Response:
        """`written` is a stored record, or the document of a dry run."""
        if isinstance(written, Record):
            await self.store.committed(written.revision)
            value = written.value
        else:
            value = encode(written)
        return Response(code, view.one(value), warnings=warnings)

    def _insert(
        self,
        request: Request,
        served: Served,
        target: Target,
        document: Json,
        warnings: list[str],
        *,
        applied: bool = False,
    ) -> Record | Json:
        resource = served.type
        metadata = document["metadata"]
        name = metadata["name"]
        key = served.key(target.namespace, name)
        if served.terminating:
            refusal = status.method_not_allowed()
            refusal.body["message"] = "create not allowed while custom resource definition is terminating"
            raise refusal
        for field in _SERVER_METADATA:
            metadata.pop(field, None)
        if resource.namespaced:
            metadata["namespace"] = target.namespace
        else:
            metadata.pop("namespace", None)
        now = clock.render(self.now())
        metadata["uid"] = new_uid()
        metadata["creationTimestamp"] = now
        document = prepared(document, resource.prepare_create)
        if not applied and not (resource.storage in MACHINE_MADE and request.user.name.startswith(_MACHINES)):
            document = fields.track_update(
                None,
                document,
                request.field_manager,
                schema=resource.merge_schema,
                now=now,
                api_version=resource.api_version,
                ignored=ignored_fields(resource, ""),
            )
        attributes = self._attributes("CREATE", request, served, target, name, document, None, warnings)
        if resource.namespaced:
            self.admission.namespace(attributes)
        if self.store.get(key) is not None:
            raise status.already_exists(resource.plural, resource.group, name)
        document = self.admission.mutate(attributes)
        self._complete(served, document, None)
        causes = resource.validate(document, None)
        if causes:
            raise status.invalid(resource.kind, resource.group, name, causes)
        self.admission.validate(attributes)
        document = ordered(resource.to_storage(document))
        return document if request.dry_run else self.store.put(key, document)

    def change(
        self,
        request: Request,
        served: Served,
        target: Target,
        record: Record,
        old: Json,
        document: Json,
        warnings: list[str],
        *,
        applied: bool = False,
    ) -> Record | Json:
        """Store `document` in place of `record`, or only its status for a status-like subresource.

        `old` is what `record` holds. Only a write of the status may share parts of it: nothing there is prepared anew.
        Returns the record (the old one when nothing changed, the tombstone when this was the last finalizer), or the
        document for a dry run. Raises 409 on a stale resourceVersion or uid.
        """
        resource = served.type
        subresource = target.subresource
        metadata = document["metadata"]
        self._check_identity(resource, record, old, metadata)
        for field in _SERVER_METADATA:
            if field in old["metadata"]:
                metadata[field] = old["metadata"][field]
            else:
                metadata.pop(field, None)
        if resource.namespaced:
            metadata["namespace"] = target.namespace
        if subresource in STATUS_LIKE:
            document = prepared(document, lambda new: resource.prepare_status_update(new, old))
        else:
            document = prepared(document, lambda new: resource.prepare_update(new, old))
            deletion.check_no_new_finalizers(resource, old, document)
        if not applied:
            document = self._tracked(request, resource, old, document, subresource)
        attributes = self._attributes("UPDATE", request, served, target, target.name, document, old, warnings)
        document = self.admission.mutate(attributes)
        self._complete(served, document, old)
        if subresource in STATUS_LIKE:
            causes = resource.validate_status(document, old)
        else:
            causes = resource.validate(document, old)
        if causes:
            raise status.invalid(resource.kind, resource.group, target.name, causes)
        self.admission.validate(attributes)
        return self._store(request, resource, record, old, document)

    def store_changed(
        self, request: Request, resource: ResourceType, record: Record, old: Json, document: Json, subresource: str
    ) -> Record | Json:
        """Store a change that a subresource decided by itself. Returns as `change` does."""
        document = self._tracked(request, resource, old, document, subresource)
        return self._store(request, resource, record, old, document)

    def _store(
        self, request: Request, resource: ResourceType, record: Record, old: Json, document: Json
    ) -> Record | Json:
        document["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if document == old:
            return record if not request.dry_run else document
        document = ordered(resource.to_storage(document))
        if request.dry_run:
            return document
        if deletion.finished(resource, document):
            return self.store.delete(record.key, document)
        return self.store.put(record.key, document)

    def _tracked(self, request: Request, resource: ResourceType, old: Json, new: Json, subresource: str) -> Json:
        if not old["metadata"].get("managedFields"):
            # Nothing was tracked, nothing is until the first apply; what the writer sent is not believed.
            new["metadata"].pop("managedFields", None)
            return new
        try:
            return fields.track_update(
                old,
                new,
                request.field_manager,
                schema=resource.merge_schema,
                now=clock.render(self.now()),
                api_version=resource.api_version,
                subresource=subresource,
                ignored=ignored_fields(resource, subresource),
            )
        except fields.InvalidFieldSet as error:
            raise status.bad_request(f"metadata.managedFields: {error}") from error

    def remove(
        self, request: Request, served: Served, record: Record, options: bodies.DeleteOptions
    ) -> tuple[bool, bytes, int]:
        """Delete or mark: (whether it is gone, its last stored bytes, the revision to wait for)."""
        resource = served.type
        old = record.decode()
        _, namespace, name = record.key.rsplit("/", 2)
        target = Target(resource.group, resource.version, resource.plural, namespace, name)
        self.admission.validate(self._attributes("DELETE", request, served, target, name, None, old, []))
        outcome = deletion.mark(resource, record.decode(), options, self.now())
        if options.dry_run or not outcome.changed:
            return outcome.remove, encode(outcome.object), record.revision
        if outcome.remove:
            gone = self.store.delete(record.key, outcome.object)
            return True, gone.value, gone.revision
        marked = self.store.put(record.key, outcome.object)
        return False, marked.value, marked.revision

    def _complete(self, served: Served, new: Json, old: Json | None) -> None:
        complete = self.completions.get(served.prefix)
        if complete is not None:
            complete(new, old)

    def _attributes(
        self,
        operation: Operation,
        request: Request,
        served: Served,
        target: Target,
        name: str,
        new: Json | None,
        old: Json | None,
        warnings: list[str],
    ) -> Attributes:
        return Attributes(
            operation=operation,
            resource=served.type,
            namespace=target.namespace,
            name=name,
            subresource=target.subresource,
            object=new,
            old=old,
            user=request.user,
            dry_run=request.dry_run,
            warnings=warnings,
        )

    @staticmethod
    def _check_identity(resource: ResourceType, record: Record, old: Json, metadata: Json) -> None:
        asked = metadata.get("resourceVersion")
        if asked and asked != str(record.revision):
            raise status.conflict(resource.plural, resource.group, old["metadata"]["name"], status.MODIFIED)
        uid = metadata.get("uid")
        if uid and uid != old["metadata"]["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {old['metadata']['uid']}"
            raise status.conflict(resource.plural, resource.group, old["metadata"]["name"], why)


def ignored_fields(resource: ResourceType, subresource: str) -> FieldSet | None:
    """Fields that a write to this (sub)resource cannot set, so that it does not come to own them."""
    if subresource in STATUS_LIKE:
        return _SPEC
    return _STATUS if "status" in resource.subresources else None


def prepared(document: Json, prepare: Callable[[Json], Json]) -> Json:
    try:
        return prepare(document)
    except Undecodable as error:
        raise status.bad_request(str(error)) from error


def patched(resource: ResourceType, base: Json, content: Any, kind: str) -> Any:
    """`base` with a JSON, merge or strategic merge patch applied."""
    try:
        if kind == bodies.JSON_PATCH:
            return fields.json_patch(base, content)
        if kind == bodies.MERGE_PATCH:
            return fields.merge_patch(base, content)
        if not isinstance(resource, BuiltinType):
            raise status.unsupported_media_type([bodies.JSON_PATCH, bodies.MERGE_PATCH, bodies.APPLY_PATCH])
        return fields.strategic_merge_patch(base, content, resource.merge_schema)
    except fields.InvalidPatch as error:
        raise status.bad_request(str(error)) from error
    except fields.PatchFailed as error:
        cause = StatusCause(reason="FieldValueInvalid", message=str(error), field="patch")
        raise status.invalid(resource.kind, resource.group, base["metadata"]["name"], [cause]) from error


def check_kind(resource: ResourceType, document: Json) -> None:
    """The body must be of the type that the URL names; absent type fields are filled in. Raises 400."""
    version = document.setdefault("apiVersion", resource.api_version)
    kind = document.setdefault("kind", resource.kind)
    if version != resource.api_version:
        raise status.bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({resource.api_version})"
        )
    if kind != resource.kind:
        raise status.bad_request(f"the kind in the data ({kind}) does not match the expected kind ({resource.kind})")


def check_namespace(resource: ResourceType, metadata: Json, namespace: str) -> None:
    given = metadata.get("namespace") if resource.namespaced else None
    if given and given != namespace:
        raise status.bad_request(
            f"the namespace of the provided object does not match the namespace sent on the request "
            f"({given}, {namespace})"
        )


def check_fields(request: Request, resource: ResourceType, document: Json, warnings: list[str]) -> None:
    """`fieldValidation`: Strict refuses unknown fields, Warn (default) answers with warnings, Ignore drops them
    silently."""
    mode = request.query.get("fieldValidation") or "Warn"
    if mode == "Ignore":
        return
    if mode not in ("Strict", "Warn"):
        message = f'fieldValidation: Unsupported value: "{mode}": supported values: "Ignore", "Strict", "Warn"'
        raise status.bad_request(message)
    unknown = [f'unknown field "{path}"' for path in resource.unknown_fields(document)]
    if unknown and mode == "Strict":
        raise status.bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f"strict decoding error: {', '.join(unknown)}"
        )
    warnings += unknown


def new_uid() -> str:
    """A random UUID (RFC 9562, version 4). Uids have to be unique, not secret, and the system's source of secrets costs
    a call of its own."""
    digits = f"{random.getrandbits(128) & _UUID_FREE | _UUID_4:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def generate_name(base: Any) -> str:
    if not isinstance(base, str):
        raise status.bad_request("metadata.generateName: must be text")
    return base[:_GENERATED_PREFIX] + "".join(random.choices(_NAME_ALPHABET, k=5))


def _name(resource: ResourceType, metadata: Json) -> str:
    name = metadata.get("name")
    if not name:
        cause = StatusCause(
            reason="FieldValueRequired",
            message="Required value: name or generateName is required",
            field="metadata.name",
        )
        raise status.invalid(resource.kind, resource.group, "", [cause])
    if not isinstance(name, str):
        raise status.bad_request(f"metadata.name: must be text, found {name!r}")
    if "/" in name:
        cause = StatusCause(
            reason="FieldValueInvalid",
            message=f'Invalid value: "{name}": a name may not contain "/"',
            field="metadata.name",
        )
        raise status.invalid(resource.kind, resource.group, name, [cause])
    return name
