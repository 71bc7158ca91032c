"""What an expression costs while it runs, counted by a meter; `estimates` bounds it before.

The unit and the weights are those of cel-go and the Kubernetes libraries: 1 for a name, a selection or a call, 10 for
a list literal, 30 for a map, 40 for a message; text is traversed at 0.1 a character; a regular expression costs 0.25 a
character of the pattern for every 10 characters of text. The meter charges the fixed part of a body at once when it
starts, or of all rounds where none can be left out, so that a short-circuited operand is paid for too: never less than
upstream's tracker, and never more than the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from capstan.cel.errors import CostExceeded
from capstan.cel.syntax import (
    Bind,
    Call,
    Conditional,
    Ident,
    ListLiteral,
    Literal,
    Logic,
    Loop,
    MapLiteral,
    MessageLiteral,
    Node,
    Select,
    children,
)
from capstan.cel.values import PYTHON_TYPES, Optional, Uint

TRAVERSAL: Final = 0.1
PATTERN: Final = 0.25
LIST, MAP, MESSAGE = 10, 30, 40
# Values share their parts, so that a small one may be huge when it is walked through.
MOST_VISITED: Final = 1_000_000
# The longest pattern of a named format, 128 characters, as upstream counts it.
FORMAT: Final = 32
# What one check of the authorizer costs: two of them fit into an evaluation.
AUTHORIZATION: Final = 350_000
# What one round of a comprehension costs beside its bodies.
_ROUND: Final = {"all": 3, "exists": 4, "exists_one": 3, "existsOne": 3}
_ROUND_OF_LIST: Final = 13
# Static types whose values have sizes; the text of a URL is kept.
_SIZED_TYPES: Final = frozenset(("string", "bytes", "list", "map", "optional_type", "kubernetes.URL"))


class Meter:
    """Counts the cost of one evaluation and stops it at the limit."""

    __slots__ = ("limit", "spent")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.spent = 0

    def charge(self, cost: int) -> None:
        self.spent = spent = self.spent + cost
        if spent > self.limit:
            raise CostExceeded(self.limit)

    def rounds(self, container: Any, cost: int) -> Any:
        """Pay for a loop over the container, `cost` an element."""
        self.charge(cost * len(container) if isinstance(container, (list, tuple, dict)) else 0)
        return container

    def call(self, cost: Callable[..., int], function: Callable[..., Any], *args: Any) -> Any:
        """Call a function whose cost depends on the sizes of its arguments; pay first."""
        self.spent = spent = self.spent + cost(*args)
        if spent > self.limit:
            raise CostExceeded(self.limit)
        return function(*args)


def body_cost(node: Node) -> int:
    """The fixed cost of evaluating a tree once; rounds of comprehensions and sizes of arguments come on top."""
    match node:
        case Literal():
            return 0
        case Ident():
            return 1
        case Select(resolved=resolved) if resolved is not None:
            return 1
        case Conditional():
            return body_cost(node.condition) + max(body_cost(node.then), body_cost(node.otherwise))
        case Loop():
            return body_cost(node.range)
        case ListLiteral():
            own = LIST
        case MapLiteral():
            own = MAP
        case MessageLiteral():
            own = MESSAGE
        case Logic() | Bind():
            own = 0
        case _:
            own = 1
    return own + sum(map(body_cost, children(node)))


def sized(node: Call) -> Callable[..., int] | None:
    """What a call costs beside the fixed part, by its arguments; None where their types leave nothing to add."""
    scalar = all(is_scalar(operand.type.name) for operand in node.operands)
    return None if scalar and node.function != "lists.range" else SIZED.get(node.function)


def is_scalar(type_name: str) -> bool:
    """Whether every value of a static type has the size 1."""
    return type_name in PYTHON_TYPES and type_name not in _SIZED_TYPES


def round_cost(kind: str) -> int:
    return _ROUND.get(kind, _ROUND_OF_LIST)


# Run-time costs by size


def length(value: Any) -> int:
    """The size of a value as costs count it: characters, bytes, elements; 1 for a scalar."""
    if isinstance(value, (str, bytes, list, tuple, dict)):
        return len(value)
    return length(value.value) if type(value) is Optional else 1


def deep_length(value: Any) -> int:
    """The size with everything inside, all that comparing or printing may look at; stops counting at MOST_VISITED."""
    total, stack = 0, [value]
    while stack and total <= MOST_VISITED:
        each = stack.pop()
        if isinstance(each, (list, tuple)):
            stack.extend(each)
        elif isinstance(each, dict):
            stack.extend(each.values())
        total += length(each)
    return total


def _traverse(*sizes: float) -> int:
    return math.ceil(sum(sizes) * TRAVERSAL)


def _text(value: Any, *_: Any) -> int:
    return _traverse(length(value))


def _both(left: Any, right: Any) -> int:
    return _traverse(length(left), length(right))


_SCALARS = frozenset((int, bool, float, Uint, type(None)))


def _compared(left: Any, right: Any) -> int:
    if type(left) in _SCALARS and type(right) in _SCALARS:
        return 1
    if isinstance(left, (list, tuple, dict)) and isinstance(right, (list, tuple, dict)):
        return min(deep_length(left), deep_length(right))
    return _traverse(min(length(left), length(right)))


def _product(text: Any, part: Any, *_: Any) -> int:
    return _traverse(length(text)) * _traverse(length(part))


def _matched(text: Any, pattern: Any, *_: Any) -> int:
    return math.ceil((length(text) + 1) * TRAVERSAL) * math.ceil(length(pattern) * PATTERN)


def _member(item: Any, container: Any) -> int:
    return length(container) if isinstance(container, (list, tuple)) else 0


def _replaced(text: Any, old: Any, new: Any, *_: Any) -> int:
    if not (isinstance(text, str) and isinstance(old, str) and isinstance(new, str)):
        return 0
    return _traverse(len(text), text.count(old) * max(len(new) - len(old), 0))


def _rewritten(text: Any, pattern: Any, replacement: Any = "", *_: Any) -> int:
    """Every character may be a match, and every reference in the replacement that match."""
    return _matched(text, pattern) + _traverse((length(text) + 1) * length(replacement))


def _joined(parts: Any, separator: Any = "") -> int:
    if not isinstance(parts, (list, tuple)):
        return 0
    return _traverse(sum(map(length, parts)), len(parts) * length(separator), len(parts))


def _quadratic(left: Any, right: Any = None, *_: Any) -> int:
    return length(left) * length(left if right is None else right)


def _all_elements(value: Any, *_: Any) -> int:
    return length(value)


def _formatted(text: Any, args: Any) -> int:
    return length(text) + deep_length(args)


def _ranged(count: Any) -> int:
    return count if type(count) is int and count > 0 else 0


def _flattened(value: Any, *_: Any) -> int:
    return deep_length(value)


def _asked(*_: Any) -> int:
    return AUTHORIZATION


def _validated(_: Any, text: Any) -> int:
    return math.ceil((length(text) + 1) * TRAVERSAL) * FORMAT


SIZED: Final[dict[str, Callable[..., int]]] = {
    "_+_": _both,
    **dict.fromkeys(("_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_"), _compared),
    "@in": _member,
    "matches": _matched,
    "find": _matched,
    **dict.fromkeys(("findAll", "regex.extract", "regex.extractAll"), _matched),
    "regex.replace": _rewritten,
    "contains": _product,
    "replace": _replaced,
    "join": _joined,
    "format": _formatted,
    "flatten": _flattened,
    "lists.range": _ranged,
    "check": _asked,
    "validate": _validated,
    **dict.fromkeys(("sets.contains", "sets.equivalent", "sets.intersects", "distinct"), _quadratic),
    **dict.fromkeys(("isSorted", "sum", "min", "max", "sort", "slice", "first", "last", "includes"), _all_elements),
    **dict.fromkeys(
        (
            "startsWith", "endsWith", "lowerAscii", "upperAscii", "indexOf", "lastIndexOf", "charAt", "split",
            "substring", "trim", "reverse", "strings.quote", "string", "bytes", "int", "uint", "double", "quantity",
            "isQuantity", "semver", "isSemver", "url", "isURL", "ip", "isIP", "cidr", "isCIDR", "ip.isCanonical",
            "timestamp", "duration", "base64.encode", "base64.decode",
        ),
        _text,
    ),
}  # fmt: skip
