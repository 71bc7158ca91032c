"""Where expressions live: variables, object types, functions and limits of DRA selectors, admission and CRD rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final

from capstan.cel.kubernetes import QUANTITIES, SEMVERS
from capstan.cel.library import Functions, Library
from capstan.cel.messages import WELL_KNOWN, MessageType
from capstan.cel.operators import OPERATORS
from capstan.cel.optionals import OPTIONALS
from capstan.cel.standard import STANDARD
from capstan.cel.strings import STRINGS
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
    type_of,
)

CALL_LIMIT: Final = 1_000_000
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
}


@dataclass(frozen=True, eq=False)
class Environment:
    """What an expression may mention and what it may cost.

    `sizes` bounds values by the name of their type, for the cost estimate; a type that is absent is unbounded.
    `cost_limit` stops an evaluation; `estimate_limit` refuses an expression whose worst case is known to exceed it.
    `results` are the names of acceptable result types (empty: any).
    """

    name: str
    variables: Mapping[str, Type]
    libraries: tuple[Library, ...]
    objects: Mapping[str, Mapping[str, Type]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    converters: Mapping[Type, Callable[[Any], Any]] = field(default_factory=dict)
    container: str = ""
    homogeneous: bool = True
    cost_limit: int = CALL_LIMIT
    estimate_limit: int | None = None
    max_bytes: int | None = None
    results: tuple[Type, ...] = ()

    @cached_property
    def functions(self) -> Functions:
        return Functions((OPERATORS, *self.libraries))

    def type_named(self, name: str) -> Type | None:
        """The type a name denotes in expressions such as `type(x) == int`."""
        if name in _TYPE_NAMES:
            return _TYPE_NAMES[name]
        if name in WELL_KNOWN or name in self.objects:
            return Type(name)
        return None

    def message_named(self, name: str) -> MessageType | None:
        """The message type a literal `name{...}` builds."""
        return WELL_KNOWN.get(name)

    def converter(self, type_: Type) -> Callable[[Any], Any] | None:
        """How values of the type arrive from JSON, where that is not how CEL has them."""
        return self.converters.get(type_) if self.converters else None


STANDARD_LIBRARIES: Final = (STANDARD, STRINGS, OPTIONALS)


@lru_cache(maxsize=16)
def device_selector(version: tuple[int, int] = (1, 36)) -> Environment:
    """Selectors of device classes and claims: one variable, `device`; the result is a bool (resource.k8s.io/v1)."""
    device = {
        "driver": STRING,
        "attributes": map_of(STRING, map_of(STRING, DYN)),
        "capacity": map_of(STRING, map_of(STRING, QUANTITY)),
        "allowMultipleAllocations": BOOL,
    }
    return Environment(
        name=f"device selector {version[0]}.{version[1]}",
        variables={"device": DEVICE},
        objects={DEVICE.name: device},
        libraries=(*STANDARD_LIBRARIES, QUANTITIES, SEMVERS),
        sizes={"string": 64, "list": 48, "map": 32, "dyn": 64},
        estimate_limit=CALL_LIMIT,
        max_bytes=10 * 1024,
        results=(BOOL, DYN),
    )
