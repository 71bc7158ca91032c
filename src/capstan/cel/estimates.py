"""What an expression may cost at most, from its types and the sizes its environment declares, before it is accepted.

The weights are those of `cost`: an estimate is never below what the meter of an evaluation counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from capstan.cel.cost import (
    AUTHORIZATION,
    FORMAT,
    LIST,
    MAP,
    MESSAGE,
    PATTERN,
    SIZED,
    TRAVERSAL,
    is_scalar,
    length,
    round_cost,
)
from capstan.cel.syntax import (
    Bind,
    Call,
    Conditional,
    Has,
    Ident,
    Index,
    ListLiteral,
    Literal,
    Logic,
    Loop,
    MapLiteral,
    MessageLiteral,
    Node,
    Select,
)
from capstan.cel.types import Type

if TYPE_CHECKING:
    from capstan.cel.environments import Environment

# How many characters one character of a format, or one value, may become: `%f` of a large double.
_LONGEST_FORMATTED: Final = 400
_GROWTH: Final = {"bytes": 4, "strings.quote": 2, "base64.encode": 2, "getEscapedPath": 3}


@dataclass(frozen=True, slots=True)
class Range:
    """Between `low` and `high` units; `high` is infinite where nothing bounds the input."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def union(self, other: Range) -> Range:
        return Range(min(self.low, other.low), max(self.high, other.high))

    def times(self, other: Range) -> Range:
        return Range(self.low * other.low, _times(self.high, other.high))

    def scaled(self, factor: float) -> Range:
        return Range(_ceil(self.low * factor), _ceil(self.high * factor))


@dataclass(frozen=True, slots=True)
class Size:
    """How large a value may be, and its elements (list elements, map values) in turn.

    `total` bounds everything inside together: input that comes in one request is no larger than the request.
    """

    range: Range
    element: Size | None = None
    total: float = math.inf

    def union(self, other: Size) -> Size:
        element = self.element or other.element
        if self.element is not None and other.element is not None:
            element = self.element.union(other.element)
        return Size(self.range.union(other.range), element, max(self.total, other.total))


def _times(left: float, right: float) -> float:
    """The product; nothing times anything, infinity included, is nothing."""
    return 0.0 if 0 in (left, right) else left * right


def _ceil(value: float) -> float:
    return value if math.isinf(value) else float(math.ceil(value))


ZERO: Final = Range(0, 0)
ONE: Final = Range(1, 1)
_SCALAR: Final = Size(ONE)
_TEXTS: Final = frozenset(("string", "bytes"))
_SAME_SIZE: Final = frozenset(
    ("lowerAscii", "upperAscii", "trim", "substring", "reverse", "sort", "distinct", "slice", "dyn")
)


def estimate(root: Node, environment: Environment) -> Range:
    """Bounds of the cost of one evaluation, from the types and the sizes the environment declares."""
    return _Estimator(environment).cost(root)[0]


class _Estimator:
    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.locals: dict[str, Size] = {}

    def declared(self, node: Node) -> Size:
        """The size that the type of a node, in this environment, allows."""
        kind = node.type.name
        if is_scalar(kind):
            return _SCALAR
        return Size(Range(0, self.environment.sizes.get(kind, math.inf)))

    def deep(self, size: Size, type_: Type) -> float:
        """The most that walking through a value of this size and type meets: see deep_length."""
        return min(self.product(size, type_), size.total)

    def product(self, size: Size, type_: Type) -> float:
        if size.element is None and type_.name in ("list", "map"):
            element = Type("dyn") if not type_.params else type_.params[-1]
            bound = 1.0 if is_scalar(element.name) else self.environment.sizes.get(element.name, math.inf)
            return _times(size.range.high, 1 + self.deep(Size(Range(0, bound)), element))
        if size.element is None:
            return size.range.high
        return _times(size.range.high, 1 + self.deep(size.element, type_.params[-1] if type_.params else type_))

    def cost(self, node: Node) -> tuple[Range, Size]:
        """The cost of a node with everything under it, and the size of its value."""
        match node:
            case Literal(value=value):
                size = float(length(value))
                return ZERO, Size(Range(size, size))
            case Ident():
                bound = None if node.declared else self.locals.get(node.name)
                return ONE, bound or self.environment.bounds.get(node.name) or self.declared(node)
            case Select(resolved=resolved) if resolved is not None:
                return ONE, self.declared(node)
            case Select() | Has():
                cost, operand = self.cost(node.operand)
                bounded = self.environment.bounds.get(f"{node.operand.type.name}.{node.field}") or operand.element
                return cost + ONE, bounded or self.declared(node)
            case Index():
                (cost, operand), (key, _) = self.cost(node.operand), self.cost(node.index)
                return cost + key + ONE, operand.element or self.declared(node)
            case Logic():
                costs = [self.cost(arg)[0] for arg in node.args]
                return Range(min(each.low for each in costs), sum(each.high for each in costs)), _SCALAR
            case Conditional():
                condition = self.cost(node.condition)[0]
                (then, left), (otherwise, right) = self.cost(node.then), self.cost(node.otherwise)
                return condition + then.union(otherwise), left.union(right)
            case ListLiteral():
                return self.literal(node.items, LIST, len(node.items), len(node.optional))
            case MapLiteral():
                parts = [part for entry in node.entries for part in (entry.key, entry.value)]
                optional = sum(entry.optional for entry in node.entries)
                return self.literal(parts, MAP, len(node.entries), optional)
            case MessageLiteral():
                fields = [self.cost(entry.value) for entry in node.fields]
                total = sum((spent for spent, _ in fields), Range(MESSAGE, MESSAGE))
                return total, _merged([size for _, size in fields], 2)  # bytes become text in JSON
            case Loop():
                return self.loop(node)
            case Bind():
                value, bound = self.cost(node.value)
                body, result = self.within({node.name: bound}, node.body)
                return value + body, result
            case Call():
                return self.call(node)
            case _:
                raise AssertionError(node)

    def within(self, names: dict[str, Size], node: Node) -> tuple[Range, Size]:
        outer = self.locals
        self.locals = {**outer, **names}
        try:
            return self.cost(node)
        finally:
            self.locals = outer

    def literal(self, parts: list[Node], own: int, count: int, optional: int) -> tuple[Range, Size]:
        total = Range(own, own)
        literals = [float(length(part.value)) for part in parts if isinstance(part, Literal)]
        element = Size(Range(min(literals), max(literals))) if literals else None
        for part in parts:
            if not isinstance(part, Literal):
                cost, size = self.cost(part)
                total += cost
                element = size if element is None else element.union(size)
        return total, Size(Range(count - optional, count), element)

    def loop(self, node: Loop) -> tuple[Range, Size]:
        range_, size = self.cost(node.range)
        is_map = node.range.type.name == "map"
        key = Size(Range(0, self.environment.sizes.get("string", math.inf))) if is_map else _SCALAR
        element = size.element or Size(Range(0, self.element_size(node)))
        names = [key, element] if len(node.variables) == 2 else [key if is_map else element]
        round_ = Range(round_cost(node.kind), round_cost(node.kind))
        result = element
        for body in node.bodies:
            cost, result = self.within(dict(zip(node.variables, names, strict=True)), body)
            round_ += cost
        rounds = size.range
        if node.kind in ("all", "exists"):
            rounds = Range(min(rounds.low, 1), rounds.high)
        if node.kind in ("filter", "sortBy"):
            result = element
        total = range_ + rounds.times(round_)
        if node.kind == "sortBy":
            total += size.range.times(ONE)
        own_size = Size(Range(0, size.range.high), result)
        if node.kind == "transformMapEntry":
            own_size = Size(Range(0, _times(size.range.high, result.range.high)), result.element)
        return total, own_size if node.type.name in ("list", "map") else _SCALAR

    def element_size(self, node: Loop) -> float:
        params = node.range.type.params
        kind = params[-1].name if params else "dyn"
        return 1.0 if is_scalar(kind) else self.environment.sizes.get(kind, math.inf)

    def derived(self, node: Call, sizes: list[Size]) -> Size:
        """The size of a function's result where no more is known. A few functions make text grow, and what is wrong
        with a text takes some words."""
        if not sizes:
            return self.declared(node)
        return _merged(sizes, _GROWTH.get(node.function, 1), 400 if node.function == "validate" else 1)

    def call(self, node: Call) -> tuple[Range, Size]:
        costs, sizes = [], []
        for operand in node.operands:
            cost, size = self.cost(operand)
            costs.append(cost)
            sizes.append(size)
        result = _SCALAR if is_scalar(node.type.name) else self.derived(node, sizes)
        if node.function in _SAME_SIZE:
            result = Size(Range(0, sizes[0].range.high), sizes[0].element, sizes[0].total)
        own = ZERO
        if node.function in SIZED:
            own, larger = self.sized(node, sizes)
            result = larger or result
        return sum(costs, ONE) + own, result

    def sized(self, node: Call, sizes: list[Size]) -> tuple[Range, Size | None]:
        """What a function of `cost.SIZED` costs by the sizes of its operands, and how large its result may be where
        `derived` does not know it."""
        first, *others = [size.range for size in sizes]
        match node.function:
            case "_+_" if not is_scalar(node.type.name):
                joined = first + others[0]
                return joined.scaled(TRAVERSAL), Size(joined, sizes[0].union(sizes[1]).element)
            case "matches" | "find" | "regex.extract":
                return _searched(first, others[0]), None
            case "findAll" | "regex.extractAll":
                return _searched(first, others[0]), Size(Range(0, first.high + 1), Size(Range(0, first.high)))
            case "regex.replace":
                grown = (first + ONE).times(others[1] + ONE)
                return _searched(first, others[0]) + grown.scaled(TRAVERSAL), Size(Range(0, grown.high))
            case "contains":
                return first.scaled(TRAVERSAL).times(others[0].scaled(TRAVERSAL)), None
            case "check":
                return Range(AUTHORIZATION, AUTHORIZATION), None
            case "validate":
                return (others[0] + ONE).scaled(TRAVERSAL).times(Range(FORMAT, FORMAT)), None
            case "@in":
                return ZERO if node.args[1].type.name == "map" else Range(0, others[0].high), None
            case "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_":
                deep = [self.deep(size, operand.type) for size, operand in zip(sizes, node.operands, strict=True)]
                plain = any(is_scalar(each.type.name) or each.type.name in _TEXTS for each in node.args)
                return Range(0, min(deep)).scaled(TRAVERSAL if plain else 1), None
            case "sets.contains" | "sets.equivalent" | "sets.intersects" | "distinct":
                return first.times(others[0] if others else first), None
            case "replace":
                grown = Range(first.low, _times(first.high, others[1].high + 1) + others[1].high)
                return grown.scaled(TRAVERSAL), Size(Range(0, grown.high))
            case "join":
                element, most = sizes[0].element, self.environment.sizes.get("string", math.inf)
                parts = element.range if element else Range(0, most)
                text = Range(0, min(_times(first.high, parts.high), sizes[0].total))
                joined = text + first.times(others[0] if others else ZERO)
                return joined.scaled(TRAVERSAL), Size(Range(0, joined.high))
            case "lists.range":
                count = Range(0, max(0.0, float(getattr(node.args[0], "value", math.inf))))
                return count, Size(count, _SCALAR)
            case "isSorted" | "sum" | "min" | "max" | "sort" | "slice" | "first" | "last" | "includes":
                return first, None
            case "flatten":
                opened = Range(0, self.deep(sizes[0], node.operands[0].type))
                return opened, Size(opened, self.derived(node, sizes).element)
            case "split":
                pieces = Size(Range(0, first.high + 1), Size(Range(0, first.high)), 2 * first.high + 1)
                return first.scaled(TRAVERSAL), pieces
            case "string":
                return first.scaled(TRAVERSAL), Size(Range(0, max(first.high, 64)))
            case "format":
                own = Range(1, first.high + self.deep(sizes[1], node.operands[1].type))
                return own, Size(Range(0, _times(own.high, _LONGEST_FORMATTED)))
        return first.scaled(TRAVERSAL), None


def _merged(sizes: list[Size], growth: float, more: float = 1) -> Size:
    """As large as all that went in, at every depth."""
    levels: list[Range] = []
    high = 0.0
    for size in sizes:
        each: Size | None = size
        level = 0
        while each is not None:
            high += each.range.high
            if level == len(levels):
                levels.append(each.range)
            else:
                levels[level] = levels[level].union(each.range)
            each, level = each.element, level + 1
    element: Size | None = None
    inside = ZERO
    for range_ in reversed(levels[1:]):
        inside = range_ if element is None else inside.union(range_)
        element = Size(inside, element)
    return Size(Range(0, growth * high + more), element)


def _searched(text: Range, pattern: Range) -> Range:
    return (text + ONE).scaled(TRAVERSAL).times(pattern.scaled(PATTERN))
