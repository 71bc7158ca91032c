"""`/openapi/v3` and `/openapi/v2` of the served types: what kubectl explains and validates manifests with.

Pure functions of the served types; documents are cached by the identity of the types they were made from. A version-3
document carries the ETag hash in its address, so that clients may keep it for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from capstan.api.openapi import PRIVATE, REF
from capstan.local.types_base import Object, ResourceType

_INFO = {"title": "Kubernetes", "version": "v1.36.0"}
_STRATEGIC = "application/strategic-merge-patch+json"
_PATCHES = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")


def _query(name: str, description: str, kind: str = "string") -> Object:
    return {"name": name, "in": "query", "description": description, "schema": {"type": kind, "uniqueItems": True}}


_DRY_RUN = _query("dryRun", "All: check everything, store nothing.")
_MANAGER = _query("fieldManager", "Name of the actor that makes the change.")
_VALIDATION = _query("fieldValidation", "What unknown and duplicate fields lead to: Ignore, Warn or Strict.")
_FORCE = _query("force", "Take fields over from other managers.", "boolean")
_PRETTY = _query("pretty", "Print the answer for people.")
_LIST = [
    _query("allowWatchBookmarks", "Send bookmarks on watches.", "boolean"),
    _query("continue", "Token of the next page."),
    _query("fieldSelector", "Restrict the list by fields."),
    _query("labelSelector", "Restrict the list by labels."),
    _query("limit", "Most items per page.", "integer"),
    _query("resourceVersion", "The version to read at."),
    _query("resourceVersionMatch", "How resourceVersion is meant."),
    _query("sendInitialEvents", "Begin a watch with the present state.", "boolean"),
    _query("timeoutSeconds", "Longest time for the call.", "integer"),
    _query("watch", "Stream changes.", "boolean"),
]
_DELETE = [
    _DRY_RUN,
    _query("gracePeriodSeconds", "Seconds the object has to stop.", "integer"),
    _query("propagationPolicy", "Orphan, Background or Foreground."),
]


_PROTOBUF_V2 = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


_EMPTY_V2 = _field(1, b"2.0") + _field(
    2, b"".join(_field(n, _INFO[k].encode()) for n, k in ((1, "title"), (2, "version")))
)
"""`Document{swagger, info{title, version}}` of gnostic's openapi_v2."""


def respond(path: str, accept: str, types: Sequence[ResourceType]) -> tuple[bytes, str] | None:
    """The body and content type below `/openapi`; None when there is no such document.

    Schemas are told in JSON. kubectl takes version 2 only as protobuf, to check objects itself where the server does
    not; a document without definitions makes it leave that to us.
    """
    words = path.strip("/")
    if words == "openapi/v2":
        if not accept or any(word in accept for word in ("application/json", "application/*", "*/*")):
            return msgspec.json.encode(document_v2(types)), "application/json"
        # The "@" of the type that is asked for is not allowed in one that is answered.
        return (_EMPTY_V2, _PROTOBUF_V2.replace("@", ".")) if _PROTOBUF_V2 in accept else None
    if words == "openapi/v3":
        return msgspec.json.encode(index_v3(types)), "application/json"
    served = paths_v3(types).get(words.removeprefix("openapi/v3/"))
    return None if served is None else (document_v3(served), "application/json")


def paths_v3(types: Iterable[ResourceType]) -> dict[str, list[ResourceType]]:
    """`api/v1`, `apis/apps/v1` … → the types of that group version."""
    found: dict[str, list[ResourceType]] = {}
    for item in types:
        found.setdefault(_root(item).removeprefix("/"), []).append(item)
    return found


def index_v3(types: Iterable[ResourceType]) -> Object:
    """`/openapi/v3`."""
    paths = {
        path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={etag(document_v3(served))}"}
        for path, served in paths_v3(types).items()
    }
    return {"paths": paths}


_documents: dict[tuple[int, ...], tuple[Sequence[ResourceType], bytes]] = {}


def document_v3(types: Sequence[ResourceType]) -> bytes:
    """The JSON document of one group version. Kept as long as the very same types are served."""
    key = tuple(id(item) for item in types)
    if (known := _documents.get(key)) is not None:
        return known[1]
    document = {
        "openapi": "3.0.0",
        "info": _INFO,
        "paths": {path: operations for item in types for path, operations in _paths(item)},
        "components": {"schemas": _schemas(types)},
    }
    encoded = msgspec.json.encode(document)
    if len(_documents) > 256:
        _documents.clear()
    _documents[key] = (list(types), encoded)  # the types are held so that their ids stay theirs
    return encoded


def etag(document: bytes) -> str:
    """The hash in a document's address and ETag header."""
    return hashlib.sha512(document).hexdigest().upper()


def document_v2(types: Sequence[ResourceType]) -> Object:
    """`/openapi/v2` as JSON: definitions and the operations kubectl asks about."""
    definitions = {name: _swagger(schema) for name, schema in _schemas(types).items()}
    paths = {path: _swagger_paths(operations) for item in types for path, operations in _paths(item)}
    return {"swagger": "2.0", "info": _INFO, "paths": paths, "definitions": definitions}


def _root(item: ResourceType) -> str:
    return f"/apis/{item.group}/{item.version}" if item.group else f"/api/{item.version}"


def _paths(item: ResourceType) -> Iterable[tuple[str, Object]]:
    """Every path of a type with its operations."""
    root, plural = _root(item), item.plural
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "uniqueItems": True}}
    namespace = {**name, "name": "namespace"}
    prefix = f"{root}/namespaces/{{namespace}}/{plural}" if item.namespaced else f"{root}/{plural}"
    scope: list[Object] = [namespace] if item.namespaced else []
    verbs = set(item.verbs)
    collection: Object = {"parameters": [*scope, _PRETTY]}
    if "list" in verbs:
        collection["get"] = _operation(item, "list", _LIST, answer=item.list_kind)
    if "create" in verbs:
        collection["post"] = _operation(item, "post", [_DRY_RUN, _MANAGER, _VALIDATION], body=True)
    if "deletecollection" in verbs:
        collection["delete"] = _operation(item, "deletecollection", [*_LIST, *_DELETE])
    yield prefix, collection
    if item.namespaced and "list" in verbs:
        everywhere = _operation(item, "list", _LIST, answer=item.list_kind, scope="ForAllNamespaces")
        yield f"{root}/{plural}", {"get": everywhere, "parameters": [_PRETTY]}
    if verbs & {"get", "update", "patch", "delete"}:
        yield f"{prefix}/{{name}}", {**_object_operations(item, verbs, ""), "parameters": [name, *scope, _PRETTY]}
    if "status" in item.subresources:
        operations = _object_operations(item, {"get", "update", "patch"}, "Status")
        yield f"{prefix}/{{name}}/status", {**operations, "parameters": [name, *scope, _PRETTY]}


def _object_operations(item: ResourceType, verbs: set[str], suffix: str) -> Object:
    made: Object = {}
    if "get" in verbs:
        made["get"] = _operation(item, "get", [], scope=suffix)
    if "update" in verbs:
        made["put"] = _operation(item, "put", [_DRY_RUN, _MANAGER, _VALIDATION], body=True, scope=suffix)
    if "patch" in verbs:
        patch = _operation(item, "patch", [_DRY_RUN, _MANAGER, _VALIDATION, _FORCE], scope=suffix)
        # kubectl apply chooses the kind of patch by this list.
        accepted = (*_PATCHES, _STRATEGIC) if item.strategic_merge else _PATCHES
        patch["requestBody"] = {"content": {media: {"schema": {"type": "object"}} for media in accepted}}
        made["patch"] = patch
    if "delete" in verbs:
        made["delete"] = _operation(item, "delete", _DELETE)
    return made


def _operation(
    item: ResourceType,
    action: str,
    parameters: list[Object],
    *,
    body: bool = False,
    answer: str = "",
    scope: str = "",
) -> Object:
    group = "".join(part.capitalize() for part in (item.group.split(".")[0] or "core", item.version))
    reference = f"{REF}{item.schema_name}{'List' if answer else ''}"
    made: Object = {
        "operationId": f"{action}{group}{'Namespaced' if item.namespaced else ''}{item.kind}{scope}",
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": {"$ref": reference}}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": item.group, "kind": item.kind, "version": item.version},
    }
    if body:
        schema = {"$ref": f"{REF}{item.schema_name}"}
        made["requestBody"] = {"content": {"*/*": {"schema": schema}}, "required": True}
    return made


def _schemas(types: Sequence[ResourceType]) -> Object:
    """Every schema the types reach, in the published form."""
    found: Object = {}
    todo: list[tuple[str, Object]] = []
    for item in types:
        todo.append((item.schema_name, item.schema))
        todo.append((f"{item.schema_name}List", _list_schema(item)))
    definitions = types[0].definitions if types else {}
    while todo:
        name, schema = todo.pop()
        if name in found:
            continue
        found[name] = _published(schema)
        todo += [(target, definitions[target]) for target in _references(schema) if target in definitions]
    return dict(sorted({**found, **_SCALARS}.items()))


_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_SCALAR_NAMES = {"quantity": _QUANTITY, "int-or-string": _INT_OR_STRING}
_SCALARS: Object = {
    _QUANTITY: {
        "description": "An amount, written as a number with an optional suffix such as m, k, M, Ki, Mi or Gi.",
        "oneOf": [{"type": "string"}, {"type": "number"}],
    },
    _INT_OR_STRING: {
        "description": "A number, or a text such as a percentage or the name of a port.",
        "format": "int-or-string",
        "oneOf": [{"type": "integer"}, {"type": "string"}],
    },
}


def _list_schema(item: ResourceType) -> Object:
    if (known := item.definitions.get(f"{item.schema_name}List")) is not None:
        return known
    return {
        "type": "object",
        "description": f"A list of {item.kind} objects.",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": f"{REF}io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"},
            "items": {"type": "array", "items": {"$ref": f"{REF}{item.schema_name}"}},
        },
        "x-kubernetes-group-version-kind": [{"group": item.group, "kind": item.list_kind, "version": item.version}],
    }


def _references(schema: Any) -> Iterable[str]:
    """The names of the schemas a schema refers to."""
    if isinstance(schema, dict):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference.removeprefix(REF)
        for child in schema.values():
            yield from _references(child)
    elif isinstance(schema, list):
        for child in schema:
            yield from _references(child)


def _below(schema: Object, change: Callable[[Object], Object]) -> Object:
    """A copy of one schema with `change` applied to the schemas directly below it. Values (defaults, enums) stay."""
    made = dict(schema)
    if isinstance(properties := schema.get("properties"), dict):
        made["properties"] = {name: change(child) for name, child in properties.items()}
    for key in ("items", "additionalProperties", "not"):
        if isinstance(child := schema.get(key), dict):
            made[key] = change(child)
    for key in ("allOf", "anyOf", "oneOf"):
        if isinstance(branches := schema.get(key), list):
            made[key] = [change(branch) for branch in branches]
    return made


def _published(schema: Object) -> Object:
    """Without our own marks; quantities and int-or-string by the names clients know."""
    made = {key: value for key, value in _below(schema, _published).items() if key not in PRIVATE}
    if made.get("x-kubernetes-int-or-string") and (name := _SCALAR_NAMES.get(made.get("format", ""))):
        kept = {key: value for key, value in made.items() if key not in ("format", "x-kubernetes-int-or-string")}
        reference = {"$ref": f"{REF}{name}"}
        return {"allOf": [reference], **kept} if kept else reference
    return made


_ONLY_V3 = ("oneOf", "anyOf", "not", "nullable")


def _swagger(schema: Object) -> Object:
    """OpenAPI v3 → v2: other reference paths, no junctors, one branch of allOf inlined as a reference."""
    if "$ref" in schema:
        return {"$ref": f"#/definitions/{schema['$ref'].removeprefix(REF)}"}
    branches = schema.get("allOf")
    if branches and "$ref" in branches[0]:
        kept = {key: value for key, value in schema.items() if key not in ("allOf", "default")}
        return {**kept, **_swagger(branches[0])}
    made = {key: value for key, value in _below(schema, _swagger).items() if key not in _ONLY_V3}
    if "oneOf" in schema:
        made.setdefault("type", "string")
    return made


def _swagger_paths(operations: Object) -> Object:
    made: Object = {}
    for method, operation in operations.items():
        if method == "parameters":
            made[method] = [_swagger_parameter(parameter) for parameter in operation]
            continue
        entry = {
            key: value for key, value in operation.items() if key not in ("requestBody", "responses", "parameters")
        }
        entry["parameters"] = [_swagger_parameter(parameter) for parameter in operation["parameters"]]
        if "requestBody" in operation:
            entry["parameters"].append({"name": "body", "in": "body", "required": True, "schema": {"type": "object"}})
        content = operation["responses"]["200"]["content"]["application/json"]["schema"]
        entry["responses"] = {"200": {"description": "OK", "schema": _swagger(content)}}
        made[method] = entry
    return made


def _swagger_parameter(parameter: Object) -> Object:
    flat = {key: value for key, value in parameter.items() if key != "schema"}
    flat.update(parameter["schema"])
    return flat
