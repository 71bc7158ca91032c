"""The gradual type checker: annotates every node with its type, and reports what can never work.

`dyn` fits everywhere and is checked when the expression runs. Messages follow the wording users of Kubernetes know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from capstan.cel.errors import CompileError, EvaluationError, Issue
from capstan.cel.mathematics import VARIADIC
from capstan.cel.standard import regex
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
    children,
)
from capstan.cel.times import duration_from_string, timestamp_from_string
from capstan.cel.types import (
    BOOL,
    BYTES,
    DOUBLE,
    DYN,
    ERROR,
    INT,
    NULL,
    STRING,
    UINT,
    Bindings,
    Type,
    list_of,
    map_of,
    optional_of,
    type_of,
)
from capstan.cel.values import TypeValue, Uint

if TYPE_CHECKING:
    from capstan.cel.environments import Environment

_LITERAL_TYPES = {
    type(None): NULL,
    bool: BOOL,
    int: INT,
    Uint: UINT,
    float: DOUBLE,
    str: STRING,
    bytes: BYTES,
}
# What reads a text, and which operand it is: written as a literal, its mistakes are found before it is used.
_READERS: Final[dict[str, tuple[int, Callable[[str], object]]]] = {
    **dict.fromkeys(("matches", "find", "findAll"), (1, regex)),
    "duration": (0, duration_from_string),
    "timestamp": (0, timestamp_from_string),
}
_ENTRY_KEYS = frozenset(("bool", "int", "uint", "string"))


def _value_type(denoted: Type) -> str:
    """The name of the type that values of a static type have."""
    if denoted.name == "wrapper":
        return denoted.params[0].name
    return "null_type" if denoted.name == "null" else denoted.name


def check(source: str, root: Node, environment: Environment) -> Type:
    """The type of the expression, every node annotated. Raises CompileError with all issues found."""
    checker = _Checker(environment)
    checker.check(root)
    if checker.issues and environment.checked:
        raise CompileError(source, checker.issues)
    _finish(root, checker.bindings, {})
    return root.type


def _finish(node: Node, bindings: Bindings, known: dict[int, tuple[Type, Type]]) -> None:
    node.type = bindings.final(node.type, known)
    for child in children(node):
        _finish(child, bindings, known)


class _Checker:
    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.bindings = Bindings()
        self.issues: list[Issue] = []
        self.locals: dict[str, Type] = {}

    def report(self, node: Node, message: str) -> Type:
        self.issues.append(Issue(node.position, message))
        return ERROR

    def check(self, node: Node) -> Type:
        node.type = self.bindings.head(self._check(node))
        return node.type

    def _check(self, node: Node) -> Type:
        match node:
            case Literal(value=value):
                return _LITERAL_TYPES[type(value)]
            case Ident():
                return self.ident(node)
            case Select():
                return self.select(node)
            case Has():
                self.field(node, node.operand, node.field, optional=False)
                return BOOL
            case Index():
                return self.index(node)
            case Call():
                return self.call(node)
            case Logic():
                for arg in node.args:
                    self.expect(arg, BOOL)
                return BOOL
            case Conditional():
                self.expect(node.condition, BOOL)
                then, otherwise = self.check(node.then), self.check(node.otherwise)
                if not self.bindings.assignable(otherwise, then):
                    return self.report(node, self.no_overload("_?_:_", [BOOL, then, otherwise], member=False))
                return self.general(then, otherwise)
            case ListLiteral():
                items = [
                    self.unwrapped(item) if number in node.optional else self.check(item)
                    for number, item in enumerate(node.items)
                ]
                return list_of(self.join(node.items, items))
            case MapLiteral():
                return self.map(node)
            case MessageLiteral():
                return self.message(node)
            case Loop():
                return self.loop(node)
            case Bind():
                return self.bind(node)
            case _:
                raise AssertionError(node)

    def expect(self, node: Node, wanted: Type) -> Type:
        found = self.check(node)
        if not self.bindings.assignable(found, wanted):
            return self.report(node, f"expected type '{wanted}' but found '{self.shown(found)}'")
        return found

    def shown(self, type_: Type) -> Type:
        return self.bindings.final(type_, {})

    def general(self, left: Type, right: Type) -> Type:
        return right if self.bindings.more_general(right, left) else left

    def join(self, nodes: list[Node], types: list[Type]) -> Type:
        """The element type of a literal: what all have in common, dyn where the environment allows mixtures."""
        if not types:
            return self.bindings.fresh()
        joined = types[0]
        for node, found in zip(nodes[1:], types[1:], strict=True):
            if found is joined or joined.name == "dyn":
                continue
            if self.bindings.assignable(found, joined):
                joined = self.general(joined, found)
            elif self.environment.homogeneous:
                self.report(node, f"expected type '{self.shown(joined)}' but found '{self.shown(found)}'")
            else:
                joined = DYN
        return joined

    def unwrapped(self, node: Node) -> Type:
        """The type inside an optional entry of a literal."""
        found = self.check(node)
        if found.name == "optional_type":
            return self.bindings.resolve(found.params[0])
        if found.is_dynamic:
            return DYN
        return self.report(node, f"expected type 'optional_type' but found '{self.shown(found)}'")

    # names

    def ident(self, node: Ident) -> Type:
        if node.name in self.locals:
            return self.locals[node.name]
        found = self.qualified(node, node.name)
        if found is None:
            return self.report(
                node, f"undeclared reference to '{node.name}' (in container '{self.environment.container}')"
            )
        return found

    def candidates(self, name: str) -> Iterator[str]:
        """A name as seen from the container, innermost first; a leading dot means the root."""
        if name.startswith("."):
            yield name[1:]
            return
        prefix = self.environment.container
        while prefix:
            yield f"{prefix}.{name}"
            prefix = prefix.rpartition(".")[0]
        yield name

    def qualified(self, node: Ident, name: str) -> Type | None:
        for candidate in self.candidates(name):
            declared = self.environment.variables.get(candidate)
            if declared is not None:
                node.name, node.declared = candidate, True
                return declared
            if candidate in self.environment.constants:
                node.constant = self.environment.constants[candidate]
                return INT if isinstance(node.constant, int) else DYN
            denoted = self.environment.type_named(candidate)
            if denoted is not None:
                node.name = candidate
                node.constant = TypeValue(_value_type(denoted))
                return type_of(denoted)
        return None

    def chain(self, node: Node) -> str | None:
        """`a.b.c` when the node is a chain of plain selections on a name that no comprehension binds."""
        names: list[str] = []
        while isinstance(node, Select) and not node.optional:
            names.append(node.field)
            node = node.operand
        if not isinstance(node, Ident) or node.name in self.locals:
            return None
        return ".".join([node.name, *reversed(names)])

    def select(self, node: Select) -> Type:
        if not node.optional and (name := self.chain(node)):
            resolved = Ident(node.position, name)
            found = self.qualified(resolved, name)
            if found is not None:
                node.resolved = resolved
                resolved.type = found
                return found
        return self.field(node, node.operand, node.field, optional=node.optional)

    def field(self, node: Node, of: Node, name: str, *, optional: bool) -> Type:
        """The type of a field; an optional one where it is selected so, or from an optional value."""
        operand = self.bindings.resolve(self.check(of))
        if operand.name == "optional_type":
            operand, optional = operand.params[0], True
        found = self.plain_field(node, operand, name)
        return optional_of(found) if optional and found.name != "error" else found

    def plain_field(self, node: Node, operand: Type, name: str) -> Type:
        if operand.is_dynamic:
            return ERROR if operand.name == "error" else DYN
        if operand.name == "map":
            return operand.params[1]
        fields = self.environment.objects.get(operand.name)
        if fields is None:
            return self.report(node, f"type '{self.shown(operand)}' does not support field selection")
        if name not in fields:
            return self.report(node, f"undefined field '{name}'")
        return fields[name]

    def index(self, node: Index) -> Type:
        operand, key = self.check(node.operand), self.check(node.index)
        optional = node.optional
        if optional and operand.name == "dyn":
            return DYN  # of a list, a map, or an optional of one: overloads whose results differ
        if operand.name == "optional_type":
            operand, optional = self.bindings.resolve(operand.params[0]), True
        found = self.resolve(node, "_[_]", [operand, key], member=False)
        return optional_of(found) if optional and found.name != "error" else found

    # calls

    def call(self, node: Call) -> Type:
        functions = self.environment.functions
        if node.target is not None and (name := self.chain(node.target)):
            for candidate in self.candidates(f"{name}.{node.function}"):
                if functions.find(candidate, member=False):
                    node.function, node.target = candidate, None
                    break
        elif node.target is None and not functions.find(node.function, member=False):
            for candidate in self.candidates(node.function):
                if functions.find(candidate, member=False):
                    node.function = candidate
                    break
        if node.function in VARIADIC and len(node.args) > 2:
            node.args = [ListLiteral(node.position, node.args, frozenset())]
        types = [self.check(operand) for operand in node.operands]
        if node.function in _READERS and self.environment.checks_literals and not self.issues:
            self.check_literal(node.function, node.operands)
        return self.resolve(node, node.function, types, member=node.target is not None)

    def check_literal(self, function: str, operands: list[Node]) -> None:
        position, read = _READERS[function]
        operand = operands[position] if position < len(operands) else None
        if isinstance(operand, Literal) and isinstance(operand.value, str):
            try:
                read(operand.value)
            except EvaluationError as error:
                self.report(operand, f"invalid {function} argument: {error}")

    def resolve(self, node: Node, name: str, types: list[Type], *, member: bool) -> Type:
        """The result type of the overloads that accept the arguments: theirs when they agree, else dyn."""
        function = self.environment.functions.find(name, member=member)
        if function is None:
            return self.report(node, f"undeclared reference to '{name}' (in container '{self.environment.container}')")
        if any(each.name == "error" for each in types):
            return ERROR
        result: Type | None = None
        for overload in function.overloads:
            if len(overload.params) != len(types):
                continue
            names: dict[str, Type] = {}
            params = [self.bindings.instantiate(param, names) for param in overload.params]
            if self.bindings.all_assignable(types, params):
                found = self.bindings.resolve(self.bindings.instantiate(overload.result, names))
                if result is None:
                    result = found
                elif result.name != "dyn" and found != result:
                    result = DYN
        if result is None:
            return self.report(node, self.no_overload(name, types, member=member))
        return result

    def no_overload(self, name: str, types: list[Type], *, member: bool) -> str:
        shown = [str(self.shown(each)) for each in types]
        applied = f"{shown[0]}.({', '.join(shown[1:])})" if member else f"({', '.join(shown)})"
        return f"found no matching overload for '{name}' applied to '{applied}'"

    # literals and macros

    def map(self, node: MapLiteral) -> Type:
        keys, values = [], []
        for entry in node.entries:
            key = self.check(entry.key)
            if not key.is_dynamic and _value_type(key) not in _ENTRY_KEYS:
                self.report(entry.key, f"unsupported key type '{self.shown(key)}' in map literal")
            keys.append(key)
            values.append(self.unwrapped(entry.value) if entry.optional else self.check(entry.value))
        return map_of(
            self.join([entry.key for entry in node.entries], keys),
            self.join([entry.value for entry in node.entries], values),
        )

    def message(self, node: MessageLiteral) -> Type:
        found = next(
            (each for each in map(self.environment.message_named, self.candidates(node.name)) if each is not None), None
        )
        values = [self.unwrapped(entry.value) if entry.optional else self.check(entry.value) for entry in node.fields]
        if found is None:
            return self.report(
                node, f"undeclared reference to '{node.name}' (in container '{self.environment.container}')"
            )
        node.name = found.name
        for entry, value in zip(node.fields, values, strict=True):
            declared = found.fields.get(entry.name) if found.fields is not None else DYN
            if declared is None:
                self.issues.append(Issue(entry.position, f"undefined field '{entry.name}'"))
            elif not self.bindings.assignable(value, declared):
                message = (
                    f"expected type of field '{entry.name}' is '{declared}' but provided type is '{self.shown(value)}'"
                )
                self.issues.append(Issue(entry.position, message))
        return found.type

    def range_types(self, node: Loop) -> tuple[Type, Type]:
        """What the two variables of a comprehension take: (index or key, element or value)."""
        range_ = self.check(node.range)
        if range_.is_variable:
            self.bindings.assignable(range_, DYN)
        if range_.is_dynamic:
            return DYN, DYN
        if range_.name == "list":
            return INT, range_.params[0]
        if range_.name == "map":
            return range_.params[0], range_.params[1]
        self.report(
            node.range,
            f"expression of type '{self.shown(range_)}' cannot be range of a comprehension "
            "(must be list, map, or dynamic)",
        )
        return ERROR, ERROR

    def loop(self, node: Loop) -> Type:
        key, value = self.range_types(node)
        is_map = node.range.type.name == "map"
        if len(node.variables) == 2:
            types = [key, value]
        else:
            types = [key if is_map else value]
        outer = self.locals
        self.locals = {**outer, **dict(zip(node.variables, types, strict=True))}
        try:
            *filters, body = node.bodies
            if node.kind in ("all", "exists", "exists_one", "existsOne", "filter"):
                filters = node.bodies
            for condition in filters:
                self.expect(condition, BOOL)
            if node.kind == "filter":
                return list_of(types[0])
            if filters and filters[-1] is body:
                return BOOL
            result = self.check(body)
        finally:
            self.locals = outer
        if node.kind == "sortBy":
            return list_of(types[0])
        if node.kind in ("map", "transformList"):
            return list_of(result)
        if node.kind == "transformMap":
            return map_of(key, result)
        if result.name != "map" and not result.is_dynamic:
            return self.report(body, f"expected type 'map' but found '{self.shown(result)}'")
        return result

    def bind(self, node: Bind) -> Type:
        value = self.check(node.value) if node.kind == "bind" else self.unwrapped(node.value)
        outer = self.locals
        self.locals = {**outer, node.name: value}
        try:
            body = self.check(node.body)
        finally:
            self.locals = outer
        if node.kind == "optMap":
            return optional_of(body)
        if node.kind == "optFlatMap":
            result = optional_of(self.bindings.fresh())
            if not self.bindings.assignable(body, result):
                return self.report(node.body, f"expected type 'optional_type' but found '{self.shown(body)}'")
            return body if body.name == "dyn" else result
        return body
