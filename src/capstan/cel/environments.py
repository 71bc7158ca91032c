"""Where expressions live: variables, object types, functions and limits of DRA selectors, admission and CRD rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Final

from capstan.cel import openapi
from capstan.cel.authorization import AUTHORIZATION
from capstan.cel.estimates import Size
from capstan.cel.formats import FORMATS
from capstan.cel.formatting import FORMATTING
from capstan.cel.kubernetes import QUANTITIES, SEMVERS
from capstan.cel.library import Functions, Library
from capstan.cel.mathematics import MATH
from capstan.cel.messages import JSON_PATCH, WELL_KNOWN, MessageType
from capstan.cel.network import CIDRS, IPS
from capstan.cel.operators import OPERATORS
from capstan.cel.optionals import OPTIONALS
from capstan.cel.parser import MACROS, STANDARD_MACROS
from capstan.cel.sequences import ENCODERS, INCLUDES, KUBERNETES_LISTS, LISTS, REGEX, REGEX_EXTENSION, SETS
from capstan.cel.standard import STANDARD
from capstan.cel.strings import STRINGS
from capstan.cel.times import TIMES, timestamp_from_string
from capstan.cel.types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    INT,
    NULL,
    QUANTITY,
    STRING,
    TIMESTAMP,
    UINT,
    Type,
    list_of,
    map_of,
    optional_of,
    parse_type,
    type_of,
)
from capstan.cel.urls import URLS

Version = tuple[int, int]
CALL_LIMIT: Final = 1_000_000  # one evaluation, every environment
RULE_ESTIMATE_LIMIT: Final = 10_000_000  # the worst case of one rule of a CRD
LATEST: Final[Version] = (1, 37)
DEVICE: Final = Type("kubernetes.DRADevice")

_TYPE_NAMES: Final = {
    "bool": BOOL,
    "int": INT,
    "uint": UINT,
    "double": DOUBLE,
    "string": STRING,
    "bytes": BYTES,
    "null_type": NULL,
    "list": list_of(DYN),
    "map": map_of(DYN, DYN),
    "type": type_of(DYN),
    "optional_type": optional_of(DYN),
    TIMESTAMP.name: TIMESTAMP,
    DURATION.name: DURATION,
    "net.IP": Type("net.IP"),
    "net.CIDR": Type("net.CIDR"),
}
_CORE: Final = (STANDARD, TIMES, STRINGS, FORMATTING, OPTIONALS)


@dataclass(frozen=True, eq=False)
class Environment:
    """What an expression may mention and what it may cost.

    `objects` gives the fields of object types, `keys` the data key of a field name that differs from it, `conversions`
    how the value of a variable or field (`Type.field`) arrives from JSON where that is not how CEL has it. `sizes`
    bounds values by the name of their type and `bounds` those of one variable or field, for the cost estimate; what is
    in neither is unbounded. `cost_limit` stops an evaluation; `estimate_limit` refuses an expression whose worst case
    exceeds it. `results` are the acceptable result types (none: any). What is not among the `macros` is a function that
    nobody declares. Where not `checked`, mistakes of type show when the expression runs.
    """

    name: str
    variables: Mapping[str, Type]
    libraries: tuple[Library, ...]
    objects: Mapping[str, Mapping[str, Type]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    conversions: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, Size] = field(default_factory=dict)
    container: str = ""
    homogeneous: bool = True
    mutating: bool = False
    macros: frozenset[str] = MACROS
    checked: bool = True
    checks_literals: bool = True
    cost_limit: int = CALL_LIMIT
    estimate_limit: float | None = None
    max_bytes: int | None = None
    results: tuple[Type, ...] = ()

    @cached_property
    def functions(self) -> Functions:
        return Functions((OPERATORS, *self.libraries))

    def type_named(self, name: str) -> Type | None:
        """The type a name denotes in expressions such as `type(x) == int`."""
        if name in _TYPE_NAMES:
            return _TYPE_NAMES[name]
        if name in WELL_KNOWN:
            return WELL_KNOWN[name].type
        return Type(name) if name in self.objects else None

    def message_named(self, name: str) -> MessageType | None:
        """The message type a literal `name{...}` builds."""
        if self.mutating and (name == "Object" or name.startswith("Object.")):
            return MessageType(name, Type(name), None)
        if self.mutating and name == JSON_PATCH.name:
            return JSON_PATCH
        return WELL_KNOWN.get(name)


@lru_cache(maxsize=64)
def standard(variables: tuple[tuple[str, str], ...] = (), container: str = "") -> Environment:
    """The language itself with every extension, no limits but the evaluation's; variables are (name, type) pairs."""
    return Environment(
        name="standard",
        variables={name: parse_type(type_) for name, type_ in variables},
        libraries=(*_CORE, *_KUBERNETES, LISTS, SEMVERS, MATH, ENCODERS, REGEX_EXTENSION),
        constants={"google.protobuf.NullValue.NULL_VALUE": 0},
        container=container,
        homogeneous=False,
        checks_literals=False,
    )


_KUBERNETES: Final = (KUBERNETES_LISTS, REGEX, URLS, IPS, CIDRS, FORMATS, SETS, QUANTITIES)


_SINCE: Final = (((1, 33), SEMVERS), ((1, 34), LISTS), ((1, 37), INCLUDES))


def kubernetes_libraries(version: Version) -> tuple[Library, ...]:
    """The base environment of a Kubernetes version."""
    gated = [library for since, library in _SINCE if version >= since]
    return (*_CORE, *_KUBERNETES, AUTHORIZATION, *gated)


def kubernetes_macros(version: Version) -> frozenset[str]:
    """As `kubernetes_libraries`; `cel.bind` is not among them."""
    return STANDARD_MACROS | {"sortBy"} if version >= (1, 34) else STANDARD_MACROS


@lru_cache(maxsize=16)
def device_selector(version: Version = (1, 36), *, list_attributes: bool = True) -> Environment:
    """Selectors of device classes and claims: one variable, `device`; the result is a bool (resource.k8s.io/v1).

    Since 1.34 devices have `allowMultipleAllocations` (KEP-5075), since 1.36 attributes that may be lists `includes()`
    (KEP-5491).
    """
    device = {
        "driver": STRING,
        "attributes": map_of(STRING, map_of(STRING, DYN)),
        "capacity": map_of(STRING, map_of(STRING, QUANTITY)),
    }
    if version >= (1, 34):
        device["allowMultipleAllocations"] = BOOL
    libraries = kubernetes_libraries(version)
    return Environment(
        name=f"device selector {version[0]}.{version[1]}",
        variables={"device": DEVICE},
        objects={DEVICE.name: device},
        # The base of 1.37 has it anyway.
        libraries=(*libraries, INCLUDES) if list_attributes and version == (1, 36) else libraries,
        macros=kubernetes_macros(version) | {"cel.bind"},
        sizes={"string": 64, "list": 48, "map": 32, "dyn": 64},
        estimate_limit=CALL_LIMIT,
        max_bytes=10 * 1024,
        results=(BOOL, DYN),
    )


@lru_cache(maxsize=16)
def derived_attribute(version: Version = LATEST) -> Environment:
    """Derived attributes of claims: as selectors, but the result is a value of an attribute (KEP-6080)."""
    scalars = (STRING, INT, BOOL, Type("kubernetes.Semver"))
    return replace(
        device_selector(version),
        name=f"derived attribute {version[0]}.{version[1]}",
        results=(*scalars, *map(list_of, (*scalars, DYN)), DYN),
    )


def _object(object_name: str, /, **fields: str) -> tuple[str, dict[str, Type]]:
    return object_name, {field_: parse_type(type_) for field_, type_ in fields.items()}


_ADMISSION_OBJECTS: Final = dict(
    [
        _object("kubernetes.GroupVersionKind", group="string", version="string", kind="string"),
        _object("kubernetes.GroupVersionResource", group="string", version="string", resource="string"),
        _object(
            "kubernetes.UserInfo",
            username="string",
            uid="string",
            groups="list(string)",
            extra="map(string, list(string))",
        ),
        _object(
            "kubernetes.AdmissionRequest",
            kind="kubernetes.GroupVersionKind",
            resource="kubernetes.GroupVersionResource",
            subResource="string",
            requestKind="kubernetes.GroupVersionKind",
            requestResource="kubernetes.GroupVersionResource",
            requestSubResource="string",
            name="string",
            namespace="string",
            operation="string",
            userInfo="kubernetes.UserInfo",
            dryRun="bool",
            options="dyn",
        ),
        _object(
            "kubernetes.NamespaceMetadata",
            name="string",
            generateName="string",
            namespace="string",
            labels="map(string, string)",
            annotations="map(string, string)",
            UID="string",
            creationTimestamp="timestamp",
            deletionGracePeriodSeconds="int",
            deletionTimestamp="timestamp",
            generation="int",
            resourceVersion="string",
            finalizers="list(string)",
        ),
        _object("kubernetes.NamespaceSpec", finalizers="list(string)"),
        _object("kubernetes.NamespaceStatus", phase="string", conditions="list(dyn)"),
        _object(
            "kubernetes.Namespace",
            metadata="kubernetes.NamespaceMetadata",
            spec="kubernetes.NamespaceSpec",
            status="kubernetes.NamespaceStatus",
        ),
    ]
)
_ADMISSION_CONVERSIONS: Final = {
    f"kubernetes.NamespaceMetadata.{name}": timestamp_from_string for name in ("creationTimestamp", "deletionTimestamp")
}
_VARIABLES: Final = "kubernetes.variables"


def admission(
    variables: Mapping[str, Type] | None = None,
    *,
    version: Version = LATEST,
    params: bool = True,
    authorizer: bool = True,
    mutating: bool = False,
    result: Type | None = BOOL,
) -> Environment:
    """ValidatingAdmissionPolicy and MutatingAdmissionPolicy: `object`, `oldObject`, `request`, `namespaceObject`,
    `params`,
    `authorizer`, and `variables` with the types of those defined so far.

    `result` is the type the expression must have: bool for validations and match conditions, string for messages,
    None for
    any. With `mutating`, `Object{...}` and `JSONPatch{...}` literals and `jsonpatch.escapeKey` exist.
    """
    declared = {
        "object": DYN,
        "oldObject": DYN,
        "request": Type("kubernetes.AdmissionRequest"),
        "namespaceObject": Type("kubernetes.Namespace"),
        "variables": Type(_VARIABLES),
    }
    if params:
        declared["params"] = DYN
    if authorizer:
        declared["authorizer"] = Type("kubernetes.authorization.Authorizer")
        declared["authorizer.requestResource"] = Type("kubernetes.authorization.ResourceCheck")
    return _admission(
        tuple(sorted(declared.items())),
        tuple((variables or {}).items()),
        version,
        mutating,
        (result, DYN) if result else (),
    )


@lru_cache(maxsize=256)
def _admission(
    declared: tuple[tuple[str, Type], ...],
    variables: tuple[tuple[str, Type], ...],
    version: Version,
    mutating: bool,
    results: tuple[Type, ...],
) -> Environment:
    libraries = kubernetes_libraries(version)
    return Environment(
        name="mutating admission" if mutating else "admission",
        variables=dict(declared),
        objects={**_ADMISSION_OBJECTS, _VARIABLES: dict(variables)},
        conversions=_ADMISSION_CONVERSIONS,
        libraries=(*libraries, JSON_POINTERS) if mutating else libraries,
        macros=kubernetes_macros(version),
        mutating=mutating,
        results=results,
    )


JSON_POINTERS: Final = Library("jsonpatch")


@JSON_POINTERS.declare("jsonpatch.escapeKey(string) -> string")
def escape_key(key: str) -> str:
    """A key as one step of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def crd_rule(
    schema: Mapping[str, Any],
    *,
    version: Version = LATEST,
    resource: bool = False,
    optional_old_self: bool = False,
    result: Type | None = BOOL,
    rounds: float | None = 1,
) -> Environment:
    """`x-kubernetes-validations` at one place of a schema: `self`, and `oldSelf` for transition rules, typed by the
    schema there.

    `resource`: the place is the root of an object, so apiVersion, kind and metadata.name are visible too. `rounds`: how
    often an object may have the place, the product of `maxItems` and `maxProperties` above it; all rounds share the
    estimate limit. None where one of them is missing, and only the size of a request bounds the product.
    """
    if rounds is None:
        rounds = openapi.most_places(schema)
    results = (result, DYN) if result else ()
    return _crd_rule(json.dumps(schema, sort_keys=True), version, resource, optional_old_self, results, rounds)


@lru_cache(maxsize=512)
def _crd_rule(
    schema: str, version: Version, resource: bool, optional_old_self: bool, results: tuple[Type, ...], rounds: float
) -> Environment:
    types = openapi.schema_types(json.loads(schema), resource=resource)
    conversions = dict(types.conversions)
    if optional_old_self:
        conversions.pop("oldSelf", None)  # its owner wraps it, and so converts it
    return Environment(
        name="custom resource rule",
        variables={"self": types.root, "oldSelf": optional_of(types.root) if optional_old_self else types.root},
        objects=types.objects,
        keys=types.keys,
        conversions=conversions,
        libraries=kubernetes_libraries(version),
        macros=kubernetes_macros(version),
        bounds=types.bounds,
        sizes=dict.fromkeys(("string", "bytes", "list", "map", "dyn"), float(openapi.MAX_REQUEST_BYTES)),
        estimate_limit=RULE_ESTIMATE_LIMIT / max(rounds, 1),
        results=results,
    )
