"""What CEL values are in Python, and the relations every type has: equality, ordering, membership, lookup, type.

null None, bool bool, int int, uint Uint, double float, string str, bytes bytes, list list, map dict, Quantity Decimal;
the other kinds are the classes below and those of the Kubernetes libraries. Nothing here trusts static types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from capstan.cel.errors import EvaluationError

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
UINT_MAX: Final = 2**64 - 1
NANOS: Final = 10**9
# 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999999Z
TIMESTAMP_MIN: Final = -62135596800 * NANOS
TIMESTAMP_MAX: Final = 253402300799 * NANOS + NANOS - 1
DURATION_MAX: Final = 315_576_000_000 * NANOS + NANOS - 1  # ten thousand years, as protobuf has it


class Uint(int):
    """An unsigned 64-bit integer."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{int(self)}u"


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """Nanoseconds, up to ten thousand years in either direction."""

    nanos: int

    def __str__(self) -> str:
        """The protobuf JSON form: seconds with up to nine fraction digits."""
        sign = "-" if self.nanos < 0 else ""
        whole, fraction = divmod(abs(self.nanos), NANOS)
        return f"{sign}{whole}{f'.{fraction:09d}'.rstrip('0') if fraction else ''}s"


@dataclass(frozen=True, slots=True, order=True)
class Timestamp:
    """Nanoseconds since 1970-01-01T00:00:00Z, from year 1 to year 9999."""

    nanos: int


@dataclass(frozen=True, slots=True)
class TypeValue:
    """The value of `type(x)` and of type names; equal by name alone, as parameters are erased at run time."""

    name: str


class Optional:
    """`optional.of(value)`, or `NONE` when nothing is there."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "optional.none()" if self is NONE else f"optional.of({self.value!r})"


NONE: Final = Optional(None)


class DefaultMap(dict[str, Any]):
    """A map whose absent keys read as an empty map, but are not `in` it (device attributes and capacity by domain)."""

    __slots__ = ()

    def __missing__(self, key: str) -> dict[str, Any]:
        return {}

    def get(self, key: str, default: object = None) -> Any:
        return self[key]


class MixedMap(dict[Any, Any]):
    """A map with bools and numbers among its keys: CEL tells true from 1, Python's dict does not."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__((key,) if type(key) is bool else key, value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__((key,) if type(key) is bool else key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__((key,) if type(key) is bool else key)

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get((key,) if type(key) is bool else key, default)

    def __iter__(self) -> Iterator[Any]:
        return (key[0] if type(key) is tuple else key for key in super().__iter__())

    def keys(self) -> Any:
        return list(self)

    def items(self) -> Any:
        return list(zip(self, self.values(), strict=True))


class KeyedList(list[Any]):
    """A list of type `set` (no keys) or `map` of a custom resource: order does not matter, and `+` merges.

    The left positions stay; of the right, elements of a new identity are appended, and in a `map` those of a known one
    replace the left.
    """

    __slots__ = ("keys",)

    def __init__(self, elements: Iterable[Any], keys: tuple[str, ...]) -> None:
        super().__init__(elements)
        self.keys = keys

    def identity(self, element: Any) -> Any:
        """What makes two elements the same one: the values of the keys, or the whole element."""
        return [element.get(key) for key in self.keys] if self.keys and isinstance(element, dict) else element

    def __add__(self, other: list[Any]) -> KeyedList:
        merged = list(self)
        identities = [self.identity(element) for element in merged]
        for element in other:
            identity = self.identity(element)
            position = next((at for at, known in enumerate(identities) if equal(known, identity)), -1)
            if position < 0:
                merged.append(element)
                identities.append(identity)
            elif self.keys:
                merged[position] = element
        return KeyedList(merged, self.keys)

    def same_elements(self, other: Sequence[Any]) -> bool:
        return len(self) == len(other) and all(any(equal(each, theirs) for theirs in other) for each in self)


TYPE_NAMES: dict[type, str] = {
    type(None): "null_type",
    bool: "bool",
    int: "int",
    Uint: "uint",
    float: "double",
    str: "string",
    bytes: "bytes",
    list: "list",
    tuple: "list",
    KeyedList: "list",
    dict: "map",
    DefaultMap: "map",
    Timestamp: "google.protobuf.Timestamp",
    Duration: "google.protobuf.Duration",
    TypeValue: "type",
    Optional: "optional_type",
    Decimal: "kubernetes.Quantity",
}
NUMBERS: Final = frozenset((int, Uint, float))
# How values of a declared type look in Python; a type that is not here accepts anything.
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "uint": (Uint,),
    "double": (float,),
    "string": (str,),
    "bytes": (bytes,),
    "list": (list, tuple),
    "map": (dict,),
    "google.protobuf.Timestamp": (Timestamp,),
    "google.protobuf.Duration": (Duration,),
    "type": (TypeValue,),
    "optional_type": (Optional,),
    "kubernetes.Quantity": (Decimal,),
}


def register_type(name: str, python: type) -> None:
    """Make instances of a class values of the named opaque type."""
    TYPE_NAMES[python] = name
    PYTHON_TYPES[name] = (python,)


def is_instance(value: object, type_name: str) -> bool:
    """Whether a value is of the declared type: exact for numbers and bools, by class for the rest."""
    accepted = PYTHON_TYPES.get(type_name)
    if accepted is None:
        return True
    actual = type(value)
    return actual in accepted or (actual is not Uint and actual is not bool and issubclass(actual, accepted))


def type_name(value: object) -> str:
    """The CEL name of the value's type, for `type()` and for messages."""
    actual = type(value)
    name = TYPE_NAMES.get(actual)
    if name is not None:
        return name
    if issubclass(actual, dict):
        return "map"
    return str(getattr(actual, "CEL_TYPE", actual.__name__))


def no_such_overload(function: str, *args: object) -> EvaluationError:
    return EvaluationError(f"no such overload: {function}({', '.join(map(type_name, args))})")


def no_such_key(key: object) -> EvaluationError:
    return EvaluationError(f"no such key: {key}")


def equal(left: Any, right: Any) -> bool:
    """CEL equality: numbers by value across int, uint and double, containers element by element, other types apart."""
    kind, other = type(left), type(right)
    if kind is other and kind in _PLAIN:
        return bool(left == right)
    if kind in NUMBERS and other in NUMBERS:
        return bool(float(left) == float(right) if float in (kind, other) else left == right)
    if kind is KeyedList and isinstance(right, (list, tuple)):
        return bool(left.same_elements(right))
    if isinstance(left, (list, tuple)):
        return isinstance(right, (list, tuple)) and len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict):
        if not isinstance(right, dict) or len(left) != len(right):
            return False
        return all((found := lookup(right, key)) is not NONE and equal(value, found) for key, value in left.items())
    if kind is Optional and other is Optional:
        if left is NONE or right is NONE:
            return left is right
        return equal(left.value, right.value)
    return kind is other and bool(left == right)


_PLAIN = frozenset((str, bool, int, Uint, float, bytes, type(None), Timestamp, Duration, TypeValue, Decimal))


def lookup(mapping: Mapping[Any, Any], key: object) -> Any:
    """The value under the key, or NONE (the object); numbers find each other, bools only bools."""
    kind = type(key)
    if isinstance(key, str):
        return mapping[key] if key in mapping or type(mapping) is DefaultMap else NONE
    if kind is bool or (kind in NUMBERS and key in (0, 1)):
        wanted = kind is bool
        for candidate, value in mapping.items():
            if candidate == key and (type(candidate) is bool) is wanted:
                return value
        return NONE
    if kind in NUMBERS:
        return mapping.get(key, NONE)
    if key is None or isinstance(key, (list, tuple, dict)) or kind not in TYPE_NAMES:
        raise EvaluationError(f"unsupported key type: {type_name(key)}")
    return NONE


def less(left: Any, right: Any) -> bool:
    """`left < right` for the ordered types; numbers across int, uint and double. Raises EvaluationError otherwise."""
    left, right = _ordered("_<_", left, right)
    return bool(left < right)


def less_equal(left: Any, right: Any) -> bool:
    left, right = _ordered("_<=_", left, right)
    return bool(left <= right)


def greater(left: Any, right: Any) -> bool:
    left, right = _ordered("_>_", left, right)
    return bool(left > right)


def greater_equal(left: Any, right: Any) -> bool:
    left, right = _ordered("_>=_", left, right)
    return bool(left >= right)


ORDERED: Final = frozenset((bool, int, Uint, float, str, bytes, Timestamp, Duration))


def _ordered(function: str, left: Any, right: Any) -> tuple[Any, Any]:
    kind, other = type(left), type(right)
    if kind is other:
        if kind in ORDERED:
            return left, right
    elif kind in NUMBERS and other in NUMBERS:
        # Beside a double an integer counts as the nearest double, as in the other implementations.
        return (float(left), float(right)) if float in (kind, other) else (left, right)
    raise no_such_overload(function, left, right)


def contains(item: object, container: object) -> bool:
    """`item in container` for a list (by CEL equality) or a map (by key)."""
    if isinstance(container, dict):
        if type(item) is str:
            return item in container
        return lookup(container, item) is not NONE
    if isinstance(container, (list, tuple)):
        return any(equal(item, element) for element in container)
    raise no_such_overload("@in", item, container)


def select(operand: Any, field: str) -> Any:
    """`operand.field` of a map, an object, or through an optional."""
    if isinstance(operand, dict):
        try:
            return operand[field]  # a subclass may make up what is missing
        except KeyError:
            raise no_such_key(field) from None
    if type(operand) is Optional:
        return select_optional(operand, field)
    raise EvaluationError(f"no such overload: type '{type_name(operand)}' does not support field selection")


def select_optional(operand: Any, field: object) -> Optional:
    """`operand.?field` and `operand[?index]`: empty when it is not there."""
    if type(operand) is Optional:
        return NONE if operand is NONE else select_optional(operand.value, field)
    if isinstance(operand, dict):
        found = lookup(operand, field)
        return NONE if found is NONE else Optional(found)
    if isinstance(operand, (list, tuple)):
        position = list_position(field)
        return Optional(operand[position]) if 0 <= position < len(operand) else NONE
    raise no_such_overload("_[?_]", operand, field)


def has_field(operand: Any, field: str) -> bool:
    """`has(operand.field)`"""
    if isinstance(operand, dict):
        return field in operand or type(operand) is DefaultMap
    if type(operand) is Optional:
        return operand is not NONE and has_field(operand.value, field)
    raise EvaluationError(f"no such overload: type '{type_name(operand)}' does not support field selection")


def index(operand: Any, key: Any) -> Any:
    """`operand[key]` of a list, a map, or through an optional."""
    if isinstance(operand, dict):
        found = lookup(operand, key)
        if found is NONE:
            raise no_such_key(key)
        return found
    if isinstance(operand, (list, tuple)):
        position = list_position(key)
        if 0 <= position < len(operand):
            return operand[position]
        raise EvaluationError(f"index out of bounds: {position}")
    if type(operand) is Optional:
        return select_optional(operand, key)
    raise no_such_overload("_[_]", operand, key)


def list_position(key: Any) -> int:
    """An index into a list: int, uint, or a double without a fraction."""
    if type(key) in (int, Uint) or (type(key) is float and key.is_integer()):
        return int(key)
    raise EvaluationError(f"unsupported index type '{type_name(key)}' in list")


def elements(container: Any) -> Iterable[Any]:
    """What a comprehension with one variable runs over: list elements or map keys."""
    if isinstance(container, (list, tuple, dict)):
        return container
    raise EvaluationError(f"no such overload: comprehension over '{type_name(container)}'")


def pairs(container: Any) -> Iterable[tuple[Any, Any]]:
    """What a comprehension with two variables runs over: (index, element) or (key, value)."""
    if isinstance(container, dict):
        return container.items()
    if isinstance(container, (list, tuple)):
        return enumerate(container)
    raise EvaluationError(f"no such overload: comprehension over '{type_name(container)}'")


def build_map(*entries: tuple[Any, Any]) -> dict[Any, Any]:
    """A map literal; a key may occur once and is a bool, int, uint or string."""
    kinds = {type(key) for key, _ in entries}
    result: dict[Any, Any] = MixedMap() if bool in kinds and len(kinds) > 1 else {}
    for key, value in entries:
        insert(result, key, value)
    return result


def insert(mapping: dict[Any, Any], key: object, value: object) -> None:
    """Add one entry to a map under construction."""
    if type(key) not in (str, int, Uint, bool):
        raise EvaluationError(f"unsupported key type: {type_name(key)}")
    if key in mapping:
        raise EvaluationError(f"Failed with repeated key: {key}")
    mapping[key] = value


def as_bool(value: object) -> bool:
    """The value itself when it is a bool. Raises EvaluationError otherwise."""
    if value is True or value is False:
        return value
    raise EvaluationError(f"no such overload: expected bool, got {type_name(value)}")
