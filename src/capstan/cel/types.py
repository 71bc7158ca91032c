"""The static types the checker reasons with, and how one is assignable to another.

A type is a name and parameters: `int`, `list(string)`, `map(string, dyn)`, `optional_type(int)`, `type(int)`, object
types by their qualified name. Names that start with an upper-case letter and are one letter long (`A`, `K`) are type
parameters of a function signature; the checker replaces them by fresh variables (`%1`) and binds those while it
resolves overloads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from operator import is_


@dataclass(frozen=True, slots=True)
class Type:
    """`open` says that a variable occurs in it, so that types without any need no resolving."""

    name: str
    params: tuple[Type, ...] = ()
    open: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "open", self.name[:1] == "%" or any(param.open for param in self.params))

    def __str__(self) -> str:
        if self.name.startswith("%"):
            return "dyn"
        if self.params:
            return f"{self.name}({', '.join(map(str, self.params))})"
        return self.name

    @property
    def is_variable(self) -> bool:
        return self.name[:1] == "%"

    @property
    def is_dynamic(self) -> bool:
        """Whether only the value itself says what it is."""
        return self.name in ("dyn", "error") or self.name[:1] == "%"


DYN = Type("dyn")
ERROR = Type("error")  # what an expression with an issue has: accepted everywhere, so that one mistake is reported once
NULL = Type("null")
BOOL = Type("bool")
INT = Type("int")
UINT = Type("uint")
DOUBLE = Type("double")
STRING = Type("string")
BYTES = Type("bytes")
TIMESTAMP = Type("google.protobuf.Timestamp")
DURATION = Type("google.protobuf.Duration")
QUANTITY = Type("kubernetes.Quantity")
SEMVER = Type("kubernetes.Semver")

SHORT_NAMES = {"timestamp": TIMESTAMP.name, "duration": DURATION.name, "optional": "optional_type"}
WRAPPERS = {
    "BoolValue": BOOL,
    "Int32Value": INT,
    "Int64Value": INT,
    "UInt32Value": UINT,
    "UInt64Value": UINT,
    "FloatValue": DOUBLE,
    "DoubleValue": DOUBLE,
    "StringValue": STRING,
    "BytesValue": BYTES,
}
_NOT_NULLABLE = {"bool", "int", "uint", "double", "string", "bytes", "list", "map", "type"}


def _is_nullable(type_: Type) -> bool:
    """Whether null may stand for a value: of a wrapper, a timestamp or a duration, an object or an abstract type."""
    return type_.name not in _NOT_NULLABLE


def list_of(element: Type) -> Type:
    return Type("list", (element,))


def map_of(key: Type, value: Type) -> Type:
    return Type("map", (key, value))


def optional_of(value: Type) -> Type:
    return Type("optional_type", (value,))


def type_of(value: Type) -> Type:
    return Type("type", (value,))


_TOKEN = re.compile(r"\s*([\w.@]+|[(),])")


@lru_cache(maxsize=1024)
def parse_type(text: str) -> Type:
    """`list(A)`, `map(string, dyn)`, `timestamp` ... as written in function signatures."""
    tokens = _TOKEN.findall(text)

    def read() -> Type:
        name = tokens.pop(0)
        params: list[Type] = []
        if tokens and tokens[0] == "(":
            while tokens.pop(0) != ")" and tokens[0] != ")":
                params.append(read())
        return Type(SHORT_NAMES.get(name, name), tuple(params))

    return read()


def split_arguments(text: str) -> list[str]:
    """The comma-separated types of a signature, not split inside parentheses."""
    parts: list[str] = []
    depth = start = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part for part in map(str.strip, parts) if part]


class Bindings:
    """What the type variables of one expression stand for."""

    def __init__(self) -> None:
        self._bound: dict[str, Type] = {}
        self._trail: list[tuple[str, Type | None]] = []
        self._count = 0

    def fresh(self) -> Type:
        self._count += 1
        return Type(f"%{self._count}")

    def instantiate(self, declared: Type, names: dict[str, Type]) -> Type:
        """The declared type with its one-letter parameters replaced by this call's variables."""
        if len(declared.name) == 1 and declared.name.isupper():
            if declared.name not in names:
                names[declared.name] = self.fresh()
            return names[declared.name]
        if not declared.params:
            return declared
        return Type(declared.name, tuple(self.instantiate(param, names) for param in declared.params))

    def resolve(self, type_: Type) -> Type:
        """The type with every bound variable replaced."""
        type_ = self.head(type_)
        if not type_.open or not type_.params:
            return type_
        params = tuple(map(self.resolve, type_.params))
        return type_ if all(map(is_, params, type_.params)) else Type(type_.name, params)

    def final(self, type_: Type, known: dict[int, tuple[Type, Type]]) -> Type:
        """The type with unbound variables read as dyn. `known`: answers by identity, good until a variable is bound."""
        if not type_.open:
            return type_
        answer = known.get(id(type_))
        if answer is None:
            head = self.head(type_)
            if head.is_variable:
                head = DYN
            elif head.open:
                head = Type(head.name, tuple([self.final(param, known) for param in head.params]))
            answer = known[id(type_)] = (type_, head)  # the type itself, so that its identity stays its own
        return answer[1]

    def head(self, type_: Type) -> Type:
        """The type with a bound variable replaced, its parameters as they are."""
        while (bound := self._bound.get(type_.name)) is not None:
            type_ = bound
        return type_

    def assignable(self, source: Type, target: Type) -> bool:
        """Whether a `source` may stand where a `target` is wanted; binds variables, and only when the answer is yes."""
        return self.all_assignable([source], [target])

    def all_assignable(self, sources: list[Type], targets: list[Type]) -> bool:
        """As `assignable`, for all pairs together."""
        mark = len(self._trail)
        if len(sources) == len(targets) and all(map(self._assign, sources, targets)):
            return True
        while len(self._trail) > mark:
            name, before = self._trail.pop()
            if before is None:
                del self._bound[name]
            else:
                self._bound[name] = before
        return False

    def _set(self, variable: Type, type_: Type) -> None:
        self._trail.append((variable.name, self._bound.get(variable.name)))
        self._bound[variable.name] = type_

    def _assign(self, source: Type, target: Type) -> bool:
        if source is target:
            return True
        if source.is_variable and target.is_variable:
            source, target = self._root(source), self._root(target)
            if source.name not in self._bound:
                if source != target:
                    self._set(source, target)  # toward the older one, so that chains stay short
                return True
        if target.is_variable:
            return self._bind(target, source)
        if source.is_variable:
            return self._bind(source, target)
        if source.is_dynamic or target.is_dynamic:
            return True
        if source.name != target.name and "null" in (source.name, target.name):
            return _is_nullable(target if source.name == "null" else source)
        if source.name == "wrapper" and target.name != "wrapper":
            return self._assign(source.params[0], target)
        if target.name == "wrapper" and source.name != "wrapper":
            return self._assign(source, target.params[0])
        if source.name != target.name:
            return False
        if source.name == "type":  # type values compare with each other whatever they denote
            return True
        return len(source.params) == len(target.params) and all(map(self._assign, source.params, target.params))

    def _root(self, variable: Type) -> Type:
        """The last variable of a chain of variables."""
        while (bound := self._bound.get(variable.name)) is not None and bound.is_variable:
            variable = bound
        return variable

    def _bind(self, variable: Type, other: Type) -> bool:
        bound = self._bound.get(variable.name)
        if bound is not None:
            if not self._assign(other, bound):
                return False
            if not other.is_variable and self.more_general(other, bound):
                self._set(variable, other)
            return True
        other = self.resolve(other)
        if other == variable:
            return True
        if self._occurs(variable, other):
            return False
        self._set(variable, other)
        return True

    def _occurs(self, variable: Type, inside: Type) -> bool:
        inside = self.head(inside)
        return inside == variable or any(self._occurs(variable, param) for param in inside.params)

    def more_general(self, left: Type, right: Type) -> bool:
        """Whether every `right` is a `left` (dyn over all, wrapper over its scalar, by parameter)."""
        left, right = self.head(left), self.head(right)
        if left.is_dynamic:
            return True
        if right.is_dynamic:
            return False
        if right.name == "null":
            return _is_nullable(left)
        if left.name == "wrapper" and right.name != "wrapper":
            return left.params[0] == right
        if left.name != right.name or len(left.params) != len(right.params):
            return False
        return all(map(self.more_general, left.params, right.params))
