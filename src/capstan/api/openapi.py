"""The built-in API types as OpenAPI v3 schemas, expanded from the notation in `capstan/api/schemas/*.txt`.

A schema file describes one group version. It is made of lines:

    package PREFIX ALIAS [group=G version=V]   schema names are PREFIX.Type; other files refer to ALIAS.Type;
                                               `like=ALIAS` begins with the resources and types of another file
    @plural Kind FLAG...                       a served resource; see `BuiltinResource` for the flags
    | Name TYPE PATH [PRIORITY]                a printer column of the custom resource above
    Type [object|topkind|structatomic] # text  a type; an `object` has apiVersion, kind and metadata
      name[!] TYPE FLAG... [= default] # text  a field; `!` means required (and not empty, if it is a string)
      include Type                             the fields of another type, in place
        rule CEL # message                     a validation rule of the field above (custom resources only)

Field types are `str text int int32 int64 bool double quantity exact intstr time microtime bytes duration raw any`,
`A|B|C` for an enumeration, `Name` or `alias.Name` for another type, `[T]` for a list and `{T}` for a map from strings.
`text` is a string that may be empty although it is required, `exact` a quantity that is kept as it was written, `raw`
an object of any shape, `any` any value.

Flags: `set`, `atomic`, `map(key,...)` are the list type, `structatomic` the map type; `merge`, `merge(key)`, `replace`
and `retainKeys` the strategic merge patch strategy; `>=n >n <=n minitems(n) maxitems(n) minlen(n) maxlen(n)
maxprops(n)` are bounds, `re(pattern)` a pattern; `short`, `long` mean a DNS label, a DNS subdomain; `gate(NAME)` is the
feature gate without which the field is dropped (`capstan.api.feature_gates`). After `=` stands the default, after `:=`
one that also replaces zero; the default of a string always replaces the empty string.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import msgspec

JsonSchema = dict[str, Any]

REF = "#/components/schemas/"
FEATURE_GATE = "x-capstan-feature-gate"
PRIVATE = ("x-capstan-default-zero", "x-capstan-as-written", FEATURE_GATE)
"""Keywords that only built-in types have and nobody is shown."""

_SCALARS: dict[str, JsonSchema] = {
    "str": {"type": "string"},
    "text": {"type": "string"},
    "int": {"type": "integer"},
    "int32": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "double": {"type": "number", "format": "double"},
    "bool": {"type": "boolean"},
    "quantity": {"x-kubernetes-int-or-string": True, "format": "quantity"},
    "exact": {"x-kubernetes-int-or-string": True, "format": "quantity", "x-capstan-as-written": True},
    "intstr": {"x-kubernetes-int-or-string": True, "format": "int-or-string"},
    "time": {"type": "string", "format": "date-time"},
    "microtime": {"type": "string", "format": "date-time"},
    "duration": {"type": "string"},
    "bytes": {"type": "string", "format": "byte"},
    "raw": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    "any": {"x-kubernetes-preserve-unknown-fields": True},
}
_FORMATS = {"short": "k8s-short-name", "long": "k8s-long-name"}
_BOUNDS = {
    "minitems": "minItems",
    "maxitems": "maxItems",
    "minlen": "minLength",
    "maxlen": "maxLength",
    "maxprops": "maxProperties",
}
# A required scalar that is absent has the zero value of its Go type.
_ZEROS: dict[str, object] = {"int32": 0, "int64": 0, "bool": False, "text": ""}
_TYPE_LINE = re.compile(r"([A-Za-z0-9]+)((?: [a-z()]+)*)")
_FIELD_LINE = re.compile(r"  ([A-Za-z0-9$_-]+)(!?) (\S+)((?: (?!:?= )\S+)*)(?: (:?=) (\S+)((?: \S+)*))?")


ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


class SchemaNotation(ValueError):
    """A line of a schema file that does not follow the notation."""


class BuiltinResource(msgspec.Struct, frozen=True, kw_only=True):
    """A resource served by the API server itself, from an `@` line.

    `short=a,b` and `categories=a,b` are for kubectl, `sub=a,b` lists subresources, `verbs=a,b` replaces the usual
    eight,
    `generation` means that metadata.generation counts changes of the desired state, `storage=group/plural` names the
    resource that holds the objects when it is another one, `gate=NAME` the feature gate without which it is not served.
    """

    group: str
    version: str
    plural: str
    kind: str
    schema: str
    singular: str
    namespaced: bool = False
    generation: bool = False
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    storage: str = ""
    gate: str = ""


class SchemaFile(msgspec.Struct):
    prefix: str
    alias: str
    group: str = ""
    version: str = ""
    like: str = ""
    resources: list[BuiltinResource] = []
    types: dict[str, tuple[list[str], str, list[str]]] = {}
    """type name → (flags, description, field lines)"""
    columns: dict[str, list[JsonSchema]] = {}
    """kind → printer columns"""


@cache
def files() -> dict[str, SchemaFile]:
    """Every schema file by alias."""
    found: dict[str, SchemaFile] = {}
    for entry in sorted(resources.files("capstan.api").joinpath("schemas").iterdir(), key=lambda path: path.name):
        if entry.name.endswith(".txt"):
            file = parse_file(entry.read_text("utf-8"), entry.name)
            found[file.alias] = file
    for file in found.values():
        if file.like:
            model = found[file.like]
            file.types = {**model.types, **file.types}
            file.resources = [
                msgspec.structs.replace(resource, version=file.version, schema=f"{file.prefix}.{resource.kind}")
                for resource in model.resources
            ]
    return found


def parse_file(text: str, name: str) -> SchemaFile:
    file: SchemaFile | None = None
    fields: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        content, _, description = line.partition(" # ")
        if not line or line.startswith("#"):
            continue
        if content.startswith("package "):
            _, prefix, alias, *options = content.split()
            pairs = dict(option.split("=", 1) for option in options)
            file = SchemaFile(prefix, alias, pairs.get("group", ""), pairs.get("version", ""), pairs.get("like", ""))
        elif file is None:
            raise SchemaNotation(f"{name}:{number}: the package line must come first")
        elif content.startswith("@"):
            file.resources.append(_resource(file, content[1:].split()))
        elif content.startswith("| "):
            file.columns.setdefault(file.resources[-1].kind, []).append(_column(content.split()))
        elif content.startswith("  "):
            fields.append(line)
        elif match := _TYPE_LINE.fullmatch(content):
            fields = []
            file.types[match[1]] = (match[2].split(), description, fields)
        else:
            raise SchemaNotation(f"{name}:{number}: cannot understand {line!r}")
    if file is None:
        raise SchemaNotation(f"{name}: empty")
    return file


def _resource(file: SchemaFile, words: list[str]) -> BuiltinResource:
    plural, kind, *flags = words
    options: dict[str, Any] = {"singular": kind.lower()}
    names = {"short": "short_names", "categories": "categories", "sub": "subresources", "verbs": "verbs"}
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not equals:
            options[key] = True
        elif key in names:
            options[names[key]] = tuple(value.split(","))
        else:
            options[key] = value
    return BuiltinResource(
        group=file.group, version=file.version, plural=plural, kind=kind, schema=f"{file.prefix}.{kind}", **options
    )


def _column(words: list[str]) -> JsonSchema:
    _, name, kind, path, *priority = words
    column: JsonSchema = {"name": name.replace("-", " "), "type": kind, "jsonPath": path}
    return {**column, "priority": int(priority[0])} if priority else column


@cache
def builtin_resources() -> tuple[BuiltinResource, ...]:
    """Every built-in resource of every schema file, in file order."""
    return tuple(resource for file in files().values() for resource in file.resources)


@cache
def definitions() -> dict[str, JsonSchema]:
    """All built-in schemas by their OpenAPI name (`io.k8s.api.core.v1.Pod`). Shared: callers must not change them."""
    found: dict[str, JsonSchema] = {}
    for file in files().values():
        for name, (flags, description, lines) in file.types.items():
            found[f"{file.prefix}.{name}"] = type_schema(file, name, flags, description, lines)
            if "object" in flags:
                found[f"{file.prefix}.{name}List"] = _list_type(file, name)
    return found


def _reference(file: SchemaFile, name: str) -> str:
    alias, dot, type_name = name.rpartition(".")
    target = files()[alias] if dot else file
    if type_name not in target.types:
        raise SchemaNotation(f"{file.alias}: there is no type {name!r}")
    return f"{target.prefix}.{type_name}"


def _gvk(file: SchemaFile, kind: str) -> list[dict[str, str]]:
    return [{"group": file.group, "kind": kind, "version": file.version or "v1"}]


_TYPE_META: JsonSchema = {
    "apiVersion": {"type": "string", "description": "Group and version of this object, for example apps/v1."},
    "kind": {"type": "string", "description": "The kind of this object."},
}


def type_schema(file: SchemaFile, name: str, flags: list[str], description: str, lines: list[str]) -> JsonSchema:
    schema: JsonSchema = {"type": "object"}
    if description:
        schema["description"] = description
    properties: JsonSchema = {}
    if "object" in flags or "topkind" in flags:
        properties.update(_TYPE_META)
        schema["x-kubernetes-group-version-kind"] = _gvk(file, name)
    if "object" in flags:
        metadata = {"$ref": f"{REF}io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
        properties["metadata"] = {"allOf": [metadata], "default": {}, "description": "Name, labels, owners and so on."}
    required: list[str] = []
    for field_name, is_required, field in _fields(file, lines):
        properties[field_name] = field
        if is_required:
            required.append(field_name)
    if properties:
        schema["properties"] = properties
    if required:
        schema["required"] = required
    if "structatomic" in flags:
        schema["x-kubernetes-map-type"] = "atomic"
    return schema


def _fields(file: SchemaFile, lines: list[str]) -> Iterator[tuple[str, bool, JsonSchema]]:
    schema: JsonSchema = {}
    for line in lines:
        content, _, description = line.partition(" # ")
        if content.startswith("    rule "):
            rule = {"rule": content.removeprefix("    rule "), "message": description}
            schema.setdefault("x-kubernetes-validations", []).append(rule)
            continue
        match = _FIELD_LINE.fullmatch(content)
        if match is None:
            raise SchemaNotation(f"{file.alias}: cannot understand the field {line!r}")
        name, bang, type_text, flags, equals, default, more_flags = match.groups()
        if name == "include":
            included = file.types[type_text]
            yield from _fields(file, included[2])
            continue
        schema = _field_type(file, type_text)
        if bang and type_text == "str":
            schema["minLength"] = 1
        elif bang and type_text in _ZEROS and not _starts_at_one(flags):
            schema["default"] = _ZEROS[type_text]
        for flag in (flags + (more_flags or "")).split():
            _apply_flag(schema, flag)
        if equals:
            schema["default"] = _default(type_text, default)
            if equals == ":=" or (schema.get("type") == "string" and default != '""'):
                schema["x-capstan-default-zero"] = True
        if description:
            schema["description"] = description
        if "$ref" in schema and len(schema) > 1:
            schema = {"allOf": [{"$ref": schema.pop("$ref")}], **schema}
        yield name, bool(bang), schema


def _starts_at_one(flags: str) -> bool:
    return any(flag.startswith(">=") and flag != ">=0" for flag in flags.split())


def _field_type(file: SchemaFile, text: str) -> JsonSchema:
    if text.startswith("["):
        return {"type": "array", "items": _field_type(file, text[1:-1])}
    if text.startswith("{"):
        return {"type": "object", "additionalProperties": _field_type(file, text[1:-1])}
    if "|" in text:
        return {"type": "string", "enum": text.split("|")}
    if text in _SCALARS:
        return dict(_SCALARS[text])
    return {"$ref": REF + _reference(file, text)}


def _apply_flag(schema: JsonSchema, flag: str) -> None:
    word, _, argument = flag.removesuffix(")").partition("(")
    if word in ("set", "atomic"):
        schema["x-kubernetes-list-type"] = word
    elif word == "map":
        schema["x-kubernetes-list-type"] = "map"
        schema["x-kubernetes-list-map-keys"] = argument.split(",")
    elif word == "structatomic":
        schema["x-kubernetes-map-type"] = "atomic"
    elif word == "merge":
        schema["x-kubernetes-patch-strategy"] = "merge"
        if argument:
            schema["x-kubernetes-patch-merge-key"] = argument
    elif word == "retainKeys":
        strategy = schema.get("x-kubernetes-patch-strategy")
        schema["x-kubernetes-patch-strategy"] = f"{strategy},retainKeys" if strategy else "retainKeys"
    elif word == "replace":
        schema["x-kubernetes-patch-strategy"] = "replace"
    elif word in _BOUNDS:
        schema[_BOUNDS[word]] = int(argument)
    elif word == "re":
        schema["pattern"] = argument
    elif word.startswith(">") and word[1:].isdigit():
        schema.update({"minimum": int(word[1:]), "exclusiveMinimum": True})
    elif word.startswith(">="):
        schema["minimum"] = int(word[2:])
    elif word.startswith("<="):
        schema["maximum"] = int(word[2:])
    elif word == "gate":
        schema[FEATURE_GATE] = argument
    elif word in _FORMATS:
        schema["format"] = _FORMATS[word]
    else:
        raise SchemaNotation(f"unknown flag {flag!r}")


def _default(type_text: str, text: str) -> object:
    if text == "{}":
        return {}
    if text == '""':
        return ""
    if type_text == "bool":
        return text == "true"
    if type_text.startswith("int") and text.lstrip("-").isdigit():
        return int(text)
    return text


def _list_type(file: SchemaFile, kind: str) -> JsonSchema:
    return {
        "type": "object",
        "description": f"A list of {kind} objects.",
        "properties": {
            **_TYPE_META,
            "items": {"type": "array", "items": {"$ref": f"{REF}{file.prefix}.{kind}"}},
            "metadata": {"$ref": f"{REF}io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"},
        },
        "required": ["items"],
        "x-kubernetes-group-version-kind": _gvk(file, f"{kind}List"),
    }
