"""Reading request bodies: JSON or YAML documents, delete options, patches by media type."""

from __future__ import annotations

from typing import Any

import msgspec

from capstan.api import manifests
from capstan.api.base import StatusCause
from capstan.local import protobuf, status
from capstan.local.request import BODY_LIMIT, Request
from capstan.local.status import Json

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
_YAML = "application/yaml"
_OBJECTS = ("application/json", _YAML, protobuf.MEDIA_TYPE)


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";", 1)[0].strip().lower()


def _read(request: Request, kind: str) -> Any:
    """The content of the body by its media type: JSON unless it says YAML or protobuf. Raises 400 and 413."""
    body = request.body
    if len(body) > BODY_LIMIT:
        raise status.too_large(BODY_LIMIT)
    if not body:
        raise status.bad_request("the request has no body; send the object as JSON or YAML")
    try:
        if kind == protobuf.MEDIA_TYPE:
            return protobuf.decode(body)
        if kind not in (_YAML, APPLY_PATCH):
            return msgspec.json.decode(body)
        documents = manifests.load_all(body, "the request body")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise status.bad_request(f"the request body is not JSON: {error}") from error
    except (manifests.InvalidManifest, protobuf.Undecodable) as error:
        raise status.bad_request(str(error)) from error
    if len(documents) != 1:
        raise status.bad_request(f"the request body holds {len(documents)} YAML documents; send exactly one")
    return documents[0]


def document(request: Request) -> Json:
    """The object in the body. Raises 400, 413, 415."""
    kind = media_type(request)
    if kind not in ("", "*/*", *_OBJECTS):
        raise status.unsupported_media_type(_OBJECTS)
    return mapping(_read(request, kind))


def mapping(value: Any) -> Json:
    """An object with sane metadata, or 400."""
    if not isinstance(value, dict):
        raise status.bad_request(
            f"the request body must be an object with apiVersion and kind, found {type(value).__name__}"
        )
    metadata = value.get("metadata")
    if metadata is None:
        value["metadata"] = {}
    elif not isinstance(metadata, dict):
        raise status.bad_request("metadata: must be an object")
    return value


def patch(request: Request) -> Any:
    """The patch document: a list of operations for a JSON patch, else an object."""
    kind = media_type(request)
    accepted = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)
    if kind not in accepted:
        raise status.unsupported_media_type(accepted)
    content = _read(request, kind)
    wanted = list if kind == JSON_PATCH else dict
    if not isinstance(content, wanted):
        raise status.bad_request(
            "a JSON patch must be a list of operations" if wanted is list else "the patch must be an object"
        )
    return content


class Preconditions(msgspec.Struct, rename="camel"):
    uid: str | None = None
    resource_version: str | None = None


class DeleteOptions(msgspec.Struct, rename="camel"):
    grace_period_seconds: int | None = None
    propagation_policy: str | None = None
    orphan_dependents: bool | None = None
    preconditions: Preconditions | None = None
    dry_run: list[str] | None = None


def delete_options(request: Request, content: Any = None) -> DeleteOptions:
    """From the body, else from the query; `content` is the body when it is already decoded. Raises 400 and 422."""
    if content is None and request.body:
        content = _read(request, media_type(request))
    try:
        options = msgspec.convert(content or {}, DeleteOptions)
    except msgspec.ValidationError as error:
        raise status.bad_request(f"DeleteOptions: {error}") from error
    if options.grace_period_seconds is None:
        options.grace_period_seconds = request.number("gracePeriodSeconds")
    options.propagation_policy = options.propagation_policy or request.query.get("propagationPolicy") or None
    if options.orphan_dependents is None and "orphanDependents" in request.query:
        options.orphan_dependents = request.flag("orphanDependents")
    if options.dry_run is None:
        options.dry_run = ["All"] if request.dry_run else []
    causes: list[StatusCause] = []
    policies = ("Foreground", "Background", "Orphan")
    if options.propagation_policy not in (None, *policies):
        listing = ", ".join(f'"{policy}"' for policy in policies)
        message = f'Unsupported value: "{options.propagation_policy}": supported values: {listing}'
        causes.append(StatusCause(reason="FieldValueNotSupported", message=message, field="propagationPolicy"))
    if options.propagation_policy and options.orphan_dependents is not None:
        message = "Invalid value: orphanDependents and deletionPropagation cannot be both set"
        causes.append(StatusCause(reason="FieldValueInvalid", message=message, field="propagationPolicy"))
    if options.dry_run not in ([], ["All"]):
        message = f'Unsupported value: {options.dry_run}: supported values: "All"'
        causes.append(StatusCause(reason="FieldValueNotSupported", message=message, field="dryRun"))
    if causes:
        raise status.invalid("DeleteOptions", "meta.k8s.io", "", causes)
    return options
