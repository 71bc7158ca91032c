"""Whether a CustomResourceDefinition can be served: names, versions, columns, subresources, and a structural schema.

Rules: apiextensions-apiserver pkg/apis/apiextensions/validation and pkg/apiserver/schema (KEP-1152).
"""

from __future__ import annotations

import re
from typing import Any

import re2

from capstan import cel
from capstan.api.openapi import JsonSchema
from capstan.local.crds_rules import Rule
from capstan.local.structural import Structural
from capstan.local.structural_errors import duplicate, forbidden, format_error, invalid, required, unsupported
from capstan.local.tables_jsonpath import InvalidJsonPath, JsonPath
from capstan.local.validation import Causes, Object, immutable

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DNS_1035_RULE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and "
    "end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_SIMPLE_PATH = re.compile(r"(\.[A-Za-z_][A-Za-z0-9_-]*)+")
_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_COLUMN_TYPES = ["boolean", "date", "integer", "number", "string"]
_PROTECTED = (".k8s.io", ".kubernetes.io")
_APPROVAL = "api-approved.kubernetes.io"
_DEEPEST = 64
_REFUSED = ("$ref", "definitions", "dependencies", "patternProperties", "additionalItems", "id", "$schema")
_ONLY_STRUCTURAL = ("type", "additionalProperties", "default", "description", "title", "nullable")
_JUNCTORS = ("allOf", "anyOf", "oneOf")


def default_definition(crd: Object) -> None:
    spec = crd["spec"]
    names = spec.get("names") or {}
    if kind := names.get("kind"):
        if not names.get("singular"):
            names["singular"] = kind.lower()
        if not names.get("listKind"):
            names["listKind"] = f"{kind}List"
    spec.setdefault("conversion", {"strategy": "None"})


def validate_definition(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    spec, names = new["spec"], new["spec"]["names"]
    wanted = f"{names['plural']}.{spec['group']}"
    if new["metadata"].get("name") != wanted:
        detail = f'must be spec.names.plural+"."+spec.group: expected "{wanted}"'
        causes.append(invalid("metadata.name", new["metadata"].get("name", ""), detail))
    _group(new, causes)
    _names(names, causes)
    _versions(spec["versions"], causes)
    conversion = spec.get("conversion") or {}
    if conversion.get("strategy") == "Webhook":
        detail = 'only "None" is supported: the embedded server runs no webhooks'
        causes.append(forbidden("spec.conversion.strategy", detail))
    if spec.get("preserveUnknownFields"):
        detail = (
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
        )
        causes.append(invalid("spec.preserveUnknownFields", True, detail))
    if old is not None:
        before = old["spec"]
        immutable(spec["group"], before["group"], "spec.group", causes)
        immutable(names["plural"], before["names"]["plural"], "spec.names.plural", causes)
        conditions = (old.get("status") or {}).get("conditions") or ()
        if any(each["type"] == "Established" and each["status"] == "True" for each in conditions):
            immutable(names["kind"], before["names"]["kind"], "spec.names.kind", causes)
            immutable(spec["scope"], before["scope"], "spec.scope", causes)
    return causes


def _group(crd: Object, causes: Causes) -> None:
    group = crd["spec"]["group"]
    if wrong := format_error("k8s-long-name", group):
        causes.append(invalid("spec.group", group, wrong))
    elif "." not in group:
        causes.append(invalid("spec.group", group, "should be a domain with at least one dot"))
    approval = (crd["metadata"].get("annotations") or {}).get(_APPROVAL)
    if f".{group}".endswith(_PROTECTED) and not approval:
        detail = f'protected groups must have approval annotation "{_APPROVAL}"'
        causes.append(required(f"metadata.annotations[{_APPROVAL}]", detail))


def _label(value: str, path: str, causes: Causes) -> None:
    if len(value) > 63 or not _DNS_1035.fullmatch(value):
        causes.append(invalid(path, value, _DNS_1035_RULE))


def _names(names: Object, causes: Causes) -> None:
    path = "spec.names"
    _label(names["plural"], f"{path}.plural", causes)
    _label(names["kind"].lower(), f"{path}.kind", causes)
    for field in ("singular", "listKind"):
        if value := names.get(field):
            _label(value.lower() if field == "listKind" else value, f"{path}.{field}", causes)
    for field in ("shortNames", "categories"):
        for index, value in enumerate(names.get(field) or ()):
            _label(value, f"{path}.{field}[{index}]", causes)
    if names["kind"] == names.get("listKind"):
        causes.append(invalid(f"{path}.listKind", names["kind"], "kind and listKind may not be the same"))


def _versions(versions: list[Object], causes: Causes) -> None:
    seen: set[str] = set()
    for index, version in enumerate(versions):
        path = f"spec.versions[{index}]"
        _label(version["name"], f"{path}.name", causes)
        if version["name"] in seen:
            causes.append(duplicate(f"{path}.name", version["name"]))
        seen.add(version["name"])
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if schema is None:
            causes.append(required(f"{path}.schema.openAPIV3Schema", "schemas are required"))
        else:
            root_schema(schema, f"{path}.schema.openAPIV3Schema", causes)
        _columns(version.get("additionalPrinterColumns") or (), f"{path}.additionalPrinterColumns", causes)
        _scale((version.get("subresources") or {}).get("scale"), f"{path}.subresources.scale", causes)
        for place, field in enumerate(version.get("selectableFields") or ()):
            _selectable(field["jsonPath"], schema or {}, f"{path}.selectableFields[{place}].jsonPath", causes)
    if sum(bool(version.get("storage")) for version in versions) != 1:
        detail = "must have exactly one version marked as storage version"
        causes.append(invalid("spec.versions", [version["name"] for version in versions], detail))


def _columns(columns: Any, path: str, causes: Causes) -> None:
    for index, column in enumerate(columns):
        if column["type"] not in _COLUMN_TYPES:
            causes.append(unsupported(f"{path}[{index}].type", column["type"], list(_COLUMN_TYPES)))
        try:
            JsonPath(column["jsonPath"])
        except InvalidJsonPath as wrong:
            causes.append(invalid(f"{path}[{index}].jsonPath", column["jsonPath"], str(wrong)))


def _scale(scale: Object | None, path: str, causes: Causes) -> None:
    if not scale:
        return
    for field, prefixes in (
        ("specReplicasPath", (".spec.",)),
        ("statusReplicasPath", (".status.",)),
        ("labelSelectorPath", (".spec.", ".status.")),
    ):
        value = scale.get(field) or ""
        if value and not (_SIMPLE_PATH.fullmatch(value) and value.startswith(prefixes)):
            words = " or ".join(prefixes)
            causes.append(invalid(f"{path}.{field}", value, f"should be a json path under {words}"))


def _selectable(path: str, schema: JsonSchema, field: str, causes: Causes) -> None:
    if not _SIMPLE_PATH.fullmatch(path) or path.startswith(".metadata"):
        causes.append(invalid(field, path, "must be a simple path such as .spec.color, outside of metadata"))
        return
    at: Any = schema
    for step in path[1:].split("."):
        at = (at.get("properties") or {}).get(step)
        if at is None:
            causes.append(invalid(field, path, "does not refer to a field of the schema"))
            return
    if at.get("type") not in ("string", "boolean", "integer"):
        causes.append(invalid(field, path, "must point to a field of type string, boolean, or integer"))


def root_schema(schema: JsonSchema, path: str, causes: Causes) -> None:
    """Append everything that keeps a schema from being structural or from being evaluated."""
    if schema.get("type") != "object":
        causes.append(invalid(f"{path}.type", schema.get("type", ""), "must be object at the root"))
        return
    for name, child in (schema.get("properties") or {}).items():
        if name == "metadata" and isinstance(child, dict):
            extra = set(child) - {"type", "properties", "description"}
            extra |= set(child.get("properties") or ()) - {"name", "generateName"}
            if extra:
                detail = "only metadata.name and metadata.generateName may be restricted"
                causes.append(forbidden(f"{path}.properties[metadata]", detail))
    _structural(schema, path, causes, 0)
    if not causes:
        _rules(schema, path, causes, root=True)
    if not causes:
        _defaults(schema, path, causes)


def _structural(schema: JsonSchema, path: str, causes: Causes, depth: int) -> None:
    if depth > _DEEPEST:
        causes.append(forbidden(path, f"a schema may not nest deeper than {_DEEPEST} levels"))
        return
    for key in _REFUSED:
        if schema.get(key):
            causes.append(forbidden(f"{path}.{key}", "not allowed in a structural schema"))
    kind = schema.get("type")
    int_or_string = schema.get("x-kubernetes-int-or-string")
    if kind is None:
        if not int_or_string and not schema.get("x-kubernetes-preserve-unknown-fields"):
            causes.append(required(f"{path}.type", "must not be empty for specified object fields"))
    elif kind not in _TYPES:
        causes.append(unsupported(f"{path}.type", kind, list(_TYPES)))
    elif int_or_string:
        causes.append(invalid(f"{path}.type", kind, "must be empty if x-kubernetes-int-or-string is true"))
    if schema.get("uniqueItems"):
        detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        causes.append(forbidden(f"{path}.uniqueItems", detail))
    if schema.get("x-kubernetes-preserve-unknown-fields") is False:
        causes.append(invalid(f"{path}.x-kubernetes-preserve-unknown-fields", False, "must be true or undefined"))
    embedded = schema.get("x-kubernetes-embedded-resource")
    if embedded and kind != "object":
        causes.append(invalid(f"{path}.x-kubernetes-embedded-resource", True, "must be of type object"))
    if embedded and not schema.get("properties") and not schema.get("x-kubernetes-preserve-unknown-fields"):
        detail = (
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"
        )
        causes.append(required(f"{path}.properties", detail))
    _pattern(schema, path, causes)
    _bounds(schema, path, causes)
    _list_type(schema, path, causes)
    map_type = schema.get("x-kubernetes-map-type")
    if map_type is not None and (map_type not in ("atomic", "granular") or kind != "object"):
        causes.append(invalid(f"{path}.x-kubernetes-map-type", map_type, "must be atomic or granular, on an object"))
    values = schema.get("additionalProperties")
    if values is not None and schema.get("properties"):
        causes.append(
            forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
        )
    if values is False:
        causes.append(forbidden(f"{path}.additionalProperties", "additionalProperties cannot be set to false"))
    if isinstance(values, dict):
        _structural(values, f"{path}.additionalProperties", causes, depth + 1)
    items = schema.get("items")
    if kind == "array" and not isinstance(items, dict):
        causes.append(required(f"{path}.items", "must be specified"))
    if isinstance(items, dict):
        _structural(items, f"{path}.items", causes, depth + 1)
    for name, child in (schema.get("properties") or {}).items():
        _structural(child, f"{path}.properties[{name}]", causes, depth + 1)
    for junctor in _JUNCTORS:
        for index, branch in enumerate(schema.get(junctor) or ()):
            _branch(branch, f"{path}.{junctor}[{index}]", causes, depth + 1, int_or_string=bool(int_or_string))
    if (branch := schema.get("not")) is not None:
        _branch(branch, f"{path}.not", causes, depth + 1, int_or_string=False)


def _branch(schema: JsonSchema, path: str, causes: Causes, depth: int, *, int_or_string: bool) -> None:
    """A schema below a junctor restricts values; it may not say what the structure is."""
    if depth > _DEEPEST:
        causes.append(forbidden(path, f"a schema may not nest deeper than {_DEEPEST} levels"))
        return
    for key in _ONLY_STRUCTURAL:
        if schema.get(key) and not (key == "type" and int_or_string):
            causes.append(forbidden(f"{path}.{key}", "must be undefined to be structural"))
    for key in schema:
        if key.startswith("x-kubernetes-"):
            causes.append(forbidden(f"{path}.{key}", "must be undefined to be structural"))
    _pattern(schema, path, causes)
    _bounds(schema, path, causes)
    for name, child in (schema.get("properties") or {}).items():
        _branch(child, f"{path}.properties[{name}]", causes, depth + 1, int_or_string=False)
    if isinstance(schema.get("items"), dict):
        _branch(schema["items"], f"{path}.items", causes, depth + 1, int_or_string=False)
    for junctor in _JUNCTORS:
        for index, branch in enumerate(schema.get(junctor) or ()):
            _branch(branch, f"{path}.{junctor}[{index}]", causes, depth + 1, int_or_string=False)
    if (branch := schema.get("not")) is not None:
        _branch(branch, f"{path}.not", causes, depth + 1, int_or_string=False)


def _pattern(schema: JsonSchema, path: str, causes: Causes) -> None:
    if pattern := schema.get("pattern"):
        try:
            re2.compile(pattern)
        except re2.error as wrong:
            causes.append(
                invalid(f"{path}.pattern", pattern, f"must be a valid regular expression, but isn't: {wrong}")
            )


def _bounds(schema: JsonSchema, path: str, causes: Causes) -> None:
    for key in ("maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties"):
        if schema.get(key, 0) < 0:
            causes.append(invalid(f"{path}.{key}", schema[key], "must be greater than or equal to 0"))
    if "multipleOf" in schema and schema["multipleOf"] <= 0:
        causes.append(invalid(f"{path}.multipleOf", schema["multipleOf"], "must be greater than 0"))


def _list_type(schema: JsonSchema, path: str, causes: Causes) -> None:
    kind, keys = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys") or ()
    if kind is None:
        if keys:
            causes.append(
                required(f"{path}.x-kubernetes-list-type", "must be map if x-kubernetes-list-map-keys is set")
            )
        return
    if kind not in ("atomic", "set", "map"):
        causes.append(unsupported(f"{path}.x-kubernetes-list-type", kind, ["atomic", "map", "set"]))
    if schema.get("type") != "array":
        causes.append(
            invalid(f"{path}.type", schema.get("type", ""), "must be array if x-kubernetes-list-type is specified")
        )
    if kind != "map":
        return
    if not keys:
        causes.append(
            required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
        )
    items = schema.get("items") or {}
    for key in keys:
        child = (items.get("properties") or {}).get(key)
        if child is None:
            causes.append(
                invalid(
                    f"{path}.x-kubernetes-list-map-keys", list(keys), "entries must all be names of item properties"
                )
            )
        elif child.get("type") in ("array", "object"):
            causes.append(
                invalid(
                    f"{path}.items.properties[{key}].type",
                    child["type"],
                    "must be a scalar type if parent array's x-kubernetes-list-type is map",
                )
            )
        elif key not in (items.get("required") or ()) and "default" not in child:
            causes.append(
                required(
                    f"{path}.items.properties[{key}].default",
                    "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required "
                    "property",
                )
            )


def _rules(schema: JsonSchema, path: str, causes: Causes, *, root: bool = False, rounds: float | None = 1) -> None:
    """Compile every CEL rule; what does not type-check is refused with its position, and what is too expensive for as
    many values as lists and maps above may hold."""
    for index, declared in enumerate(schema.get("x-kubernetes-validations") or ()):
        below = f"{path}.x-kubernetes-validations[{index}]"
        try:
            embedded = bool(schema.get("x-kubernetes-embedded-resource"))
            Rule(declared, schema, root=root or embedded, rounds=rounds)
        except cel.CompileError as wrong:
            causes.append(invalid(f"{below}.rule", declared["rule"], f"compilation failed: {wrong}"))
    for name, child in (schema.get("properties") or {}).items():
        _rules(child, f"{path}.properties[{name}]", causes, rounds=rounds)
    for key, bound in (("items", "maxItems"), ("additionalProperties", "maxProperties")):
        if isinstance(child := schema.get(key), dict):
            most = schema.get(bound)
            inside = None if rounds is None or most is None else rounds * most
            _rules(child, f"{path}.{key}", causes, rounds=inside)


def _defaults(schema: JsonSchema, path: str, causes: Causes) -> None:
    """A default must itself keep the schema it stands in."""
    if "default" in schema:
        value = schema["default"]
        structural = Structural({key: item for key, item in schema.items() if key != "default"}, {})
        if unknown := structural.unknown(value):
            causes.append(invalid(f"{path}.default", value, f"must not have unknown fields: {', '.join(unknown)}"))
        for cause in structural.errors(value):
            causes.append(invalid(f"{path}.default", value, f"{cause.field}: {cause.message}"))
    for name, child in (schema.get("properties") or {}).items():
        _defaults(child, f"{path}.properties[{name}]", causes)
    for key in ("items", "additionalProperties"):
        if isinstance(child := schema.get(key), dict):
            _defaults(child, f"{path}.{key}", causes)
