"""The syntax tree: what the parser builds, the checker annotates with types and the generator turns into Python.

Macros stay nodes of their own (`Loop`, `Bind`, `Has`), because the generator has a better form for each than the
general fold.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from capstan.cel.types import DYN, Type


@dataclass(slots=True, eq=False)
class Node:
    position: int
    type: Type = field(default=DYN, init=False)


@dataclass(slots=True, eq=False)
class Literal(Node):
    value: object


@dataclass(slots=True, eq=False)
class Ident(Node):
    """A name. The checker qualifies it where it is one of the environment's, a variable (`declared`) or a type or an
    enum value (`constant`), and not one that the expression binds."""

    name: str
    declared: bool = field(default=False, init=False)
    constant: object = field(default=None, init=False)


@dataclass(slots=True, eq=False)
class Select(Node):
    """`operand.field`, or `operand.?field`. The checker may turn a chain of these into one `resolved` name."""

    operand: Node
    field: str
    optional: bool = False
    resolved: Ident | None = None


@dataclass(slots=True, eq=False)
class Has(Node):
    """`has(operand.field)`"""

    operand: Node
    field: str


@dataclass(slots=True, eq=False)
class Index(Node):
    """`operand[index]`, or `operand[?index]`"""

    operand: Node
    index: Node
    optional: bool = False


@dataclass(slots=True, eq=False)
class Call(Node):
    """A function, method or operator (`_+_`, `!_`, `@in`); the checker folds a namespace (`math`) into the name."""

    function: str
    target: Node | None
    args: list[Node]

    @property
    def operands(self) -> list[Node]:
        return self.args if self.target is None else [self.target, *self.args]


@dataclass(slots=True, eq=False)
class Logic(Node):
    """`a && b && c` or `a || b || c`, flattened."""

    operator: str
    args: list[Node]


@dataclass(slots=True, eq=False)
class Conditional(Node):
    condition: Node
    then: Node
    otherwise: Node


@dataclass(slots=True, eq=False)
class ListLiteral(Node):
    items: list[Node]
    optional: frozenset[int]


@dataclass(slots=True, eq=False)
class Entry:
    position: int
    key: Node
    value: Node
    optional: bool


@dataclass(slots=True, eq=False)
class MapLiteral(Node):
    entries: list[Entry]


@dataclass(slots=True, eq=False)
class FieldEntry:
    position: int
    name: str
    value: Node
    optional: bool


@dataclass(slots=True, eq=False)
class MessageLiteral(Node):
    name: str
    fields: list[FieldEntry]


@dataclass(slots=True, eq=False)
class Loop(Node):
    """A comprehension macro over a list or map: `kind` is the macro's name, `variables` one or two names, `bodies` one
    or two expressions (for `map` and `transform*`: an optional filter first)."""

    kind: str
    range: Node
    variables: list[str]
    bodies: list[Node]


@dataclass(slots=True, eq=False)
class Bind(Node):
    """`cel.bind(name, value, body)`; `optMap` and `optFlatMap` on `value` when `kind` says so."""

    kind: str
    name: str
    value: Node
    body: Node


def children(node: Node) -> list[Node]:
    """The direct subexpressions, in evaluation order."""
    match node:
        case Select(operand=operand) | Has(operand=operand):
            return [operand]
        case Index(operand=operand, index=index):
            return [operand, index]
        case Call():
            return node.operands
        case Logic(args=args):
            return args
        case Conditional():
            return [node.condition, node.then, node.otherwise]
        case ListLiteral(items=items):
            return items
        case MapLiteral(entries=entries):
            return [part for entry in entries for part in (entry.key, entry.value)]
        case MessageLiteral(fields=fields):
            return [entry.value for entry in fields]
        case Loop():
            return [node.range, *node.bodies]
        case Bind():
            return [node.value, node.body]
        case _:
            return []
