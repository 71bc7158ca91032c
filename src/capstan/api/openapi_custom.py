"""Custom resources written in the notation of `capstan.api.openapi`, as structural schemas without references."""

from __future__ import annotations

import msgspec

from capstan.api.openapi import PRIVATE, REF, BuiltinResource, JsonSchema, definitions, parse_file, type_schema


class CustomResource(msgspec.Struct, frozen=True):
    """A custom resource written in the notation: its schema is structural, with every reference resolved in place."""

    resource: BuiltinResource
    schema: JsonSchema
    columns: list[JsonSchema]


def custom_resources(text: str, name: str) -> list[CustomResource]:
    """The resources of one schema file that is not built in; its types may refer to built-in ones."""
    file = parse_file(text, name)
    own = {
        f"{file.prefix}.{type_name}": type_schema(file, type_name, flags, description, lines)
        for type_name, (flags, description, lines) in file.types.items()
    }
    known = {**definitions(), **own}
    return [
        CustomResource(resource, _structural(own[resource.schema], known), file.columns.get(resource.kind, []))
        for resource in file.resources
    ]


_QUANTITY = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)
_NAME_PATTERN = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NOT_STRUCTURAL = (
    "default",
    "x-kubernetes-patch-strategy",
    "x-kubernetes-patch-merge-key",
    "x-kubernetes-group-version-kind",
    *PRIVATE,
)


def _structural(schema: JsonSchema, known: dict[str, JsonSchema]) -> JsonSchema:
    """A schema as a CustomResourceDefinition may have it: no references, no marks that only built-in types have."""
    branches = schema.get("allOf") or ([schema] if "$ref" in schema else [])
    if branches:
        name = branches[0]["$ref"].removeprefix(REF)
        if name.endswith(".ObjectMeta"):
            return {"type": "object"}
        kept = {key: value for key, value in schema.items() if key not in ("allOf", "$ref", *_NOT_STRUCTURAL)}
        return {**_structural(known[name], known), **kept}
    made = {key: value for key, value in schema.items() if key not in _NOT_STRUCTURAL}
    match made.get("format"):
        case "quantity":
            del made["format"]
            made |= {"anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": _QUANTITY}
        case "int-or-string":
            del made["format"]
            made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        case "k8s-short-name":
            del made["format"]
            made |= {"pattern": f"^{_NAME_PATTERN}$", "maxLength": 63}
        case "k8s-long-name":
            del made["format"]
            made |= {"pattern": f"^{_NAME_PATTERN}(\\.{_NAME_PATTERN})*$", "maxLength": made.get("maxLength", 253)}
    if "properties" in made:
        made["properties"] = {key: _structural(child, known) for key, child in made["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = _structural(made[key], known)
    return made
