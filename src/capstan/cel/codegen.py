"""Checked tree to Python source.

Every expression is written in two ways. The *fast* form trusts the static types and uses Python's own operators; it is
right whenever it returns. When it raises, the *exact* form decides: it looks at the values only, absorbs errors as the
language demands, and words the errors. The exact form always charges a meter; the fast one does when the expression
might cost more than its budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, Final

from capstan.cel import loops, optionals, values
from capstan.cel.cost import body_cost, round_cost, sized
from capstan.cel.errors import EvaluationError
from capstan.cel.library import Function
from capstan.cel.messages import build_message
from capstan.cel.standard import SHORT, matcher
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

_INTEGERS: Final = frozenset(("int", "uint"))
_SAME_TYPE: Final = frozenset(
    (
        "string",
        "bytes",
        "bool",
        "double",
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
        "kubernetes.Quantity",
        "kubernetes.Semver",
    )
)
_COMPARISONS: Final = {
    "_==_": ("==", values.equal),
    "_<_": ("<", values.less),
    "_<=_": ("<=", values.less_equal),
    "_>_": (">", values.greater),
    "_>=_": (">=", values.greater_equal),
}
# Worth computing once: calls of these with constant arguments become constants.
_CONSTRUCTORS: Final = frozenset(
    (
        "quantity",
        "semver",
        "url",
        "ip",
        "cidr",
        "duration",
        "timestamp",
        "isQuantity",
        "isSemver",
        "isURL",
        "isIP",
        "isCIDR",
    )
)
_LOOPS: Final[dict[str, Callable[..., Any]]] = {
    "all": loops.all_elements,
    "exists": loops.any_element,
    "exists_one": loops.one_element,
    "existsOne": loops.one_element,
    "filter": loops.filter_elements,
    "map": loops.map_elements,
    "transformList": loops.transform_list,
    "transformMap": loops.transform_map,
    "transformMapEntry": loops.transform_map_entry,
    "sortBy": loops.sort_by,
}
_PAIR_LOOPS: Final[dict[str, Callable[..., bool]]] = {
    "all": loops.all_pairs,
    "exists": loops.any_pair,
    "exists_one": loops.one_pair,
    "existsOne": loops.one_pair,
}
_SIMPLE_FORMS: Final = frozenset(("lowerAscii", "upperAscii", "trim"))
_ABSENT: Final = object()


class Generated:
    """Python source of one form and its function: `evaluate(v)`, or `evaluate(v, meter)` when metered."""

    def __init__(self, source: str, namespace: dict[str, Any]) -> None:
        self.source = source
        code = compile(source, "<cel>", "exec")
        exec(code, namespace)
        self.function: Callable[..., Any] = namespace["evaluate"]


def generate(root: Node, environment: Environment, *, exact: bool, metered: bool) -> Generated:
    """Write and compile one form of a checked expression; metered ones charge a meter in loops and sized calls."""
    generator = _Generator(environment, exact, metered)
    body = generator.write(root)
    header = "def evaluate(v, meter):" if metered else "def evaluate(v):"
    return Generated(f"{header}\n    return {body}\n", generator.namespace)


class _Generator:
    def __init__(self, environment: Environment, exact: bool, metered: bool) -> None:
        self.environment = environment
        self.exact = exact
        self.metered = metered
        self.namespace: dict[str, Any] = {"__builtins__": {"type": type, "frozenset": frozenset}}
        self.names: dict[int, str] = {}
        self.scope: dict[str, str] = {}
        self.count = 0

    # naming

    def use(self, function: Any) -> str:
        """The name under which the source reaches a Python object."""
        if id(function) not in self.names:
            name = getattr(function, "__name__", "k").strip("_!@")
            if not name.isidentifier() or iskeyword(name):
                name = "operator"
            while name in self.namespace or name in ("v", "meter", "evaluate"):
                self.count += 1
                name = f"{name.rstrip('0123456789')}{self.count}"
            self.names[id(function)] = name
            self.namespace[name] = function
        return self.names[id(function)]

    def constant(self, value: Any) -> str:
        if value is None or type(value) in (bool, str, bytes):
            return repr(value)
        if type(value) is int:
            return str(value) if value >= 0 else f"({value})"
        if type(value) is float and math.isfinite(value):
            return f"({value!r})"
        self.count += 1
        name = f"K{self.count}"
        self.namespace[name] = value
        return name

    def local(self, name: str) -> str:
        self.count += 1
        readable = name if name.isidentifier() and name.isascii() else "x"
        return f"{readable}_{self.count}"

    def folded(self, node: Node) -> Any:
        """The value of a constant expression worth computing now, or _ABSENT."""
        match node:
            case Literal(value=value):
                return value
            case ListLiteral(items=items, optional=optional) if not optional:
                parts = [self.folded(item) for item in items]
                return _ABSENT if any(part is _ABSENT for part in parts) else parts
            case Call(function=name, target=None, args=args) if name in _CONSTRUCTORS:
                parts = [self.folded(arg) for arg in args]
                function = self.environment.functions.find(name, member=False)
                if function is None or any(part is _ABSENT for part in parts):
                    return _ABSENT
                try:
                    return function(*parts)
                except EvaluationError:
                    return _ABSENT  # an error of the evaluation: it may be absorbed, or never be reached
            case _:
                return _ABSENT

    # expressions

    def write(self, node: Node) -> str:
        value = self.folded(node)
        if value is not _ABSENT:
            return self.constant(value)
        match node:
            case Ident():
                return self.ident(node)
            case Select():
                return self.select(node)
            case Has():
                return self.has(node)
            case Index():
                return self.index(node)
            case Call():
                return self.call(node)
            case Logic():
                return self.logic(node)
            case Conditional():
                condition, then, otherwise = (
                    self.boolean(node.condition),
                    self.write(node.then),
                    self.write(node.otherwise),
                )
                return f"({then} if {condition} else {otherwise})"
            case ListLiteral():
                return self.list_literal(node)
            case MapLiteral():
                return self.map_literal(node)
            case MessageLiteral():
                return self.message(node)
            case Loop():
                return self.loop(node)
            case Bind():
                return self.bind(node)
            case _:
                raise AssertionError(node)

    def boolean(self, node: Node) -> str:
        written = self.write(node)
        return written if self.static(node) == "bool" and not self.exact else f"{self.use(values.as_bool)}({written})"

    def static(self, node: Node) -> str:
        """The name of the type the value is known to have; empty when only the value can tell."""
        return "" if node.type.is_dynamic or node.type.name in ("wrapper", "null") else node.type.name

    def ident(self, node: Ident) -> str:
        if not node.declared and node.name in self.scope:
            return self.scope[node.name]
        if node.constant is not None:
            return self.constant(node.constant)
        return self.converted(f"v[{node.name!r}]", node.name)

    def converted(self, written: str, place: str) -> str:
        """Values come as JSON has them: a number may be an int where a double is declared, a timestamp is text."""
        convert = self.environment.conversions.get(place)
        return f"{self.use(convert)}({written})" if convert else written

    def select(self, node: Select) -> str:
        if node.resolved is not None:
            return self.ident(node.resolved)
        operand, key = self.write(node.operand), self.key(node)
        place = f"{node.operand.type.name}.{node.field}"
        if node.optional:
            written = f"{self.use(values.select_optional)}({operand}, {key!r})"
            convert = self.environment.conversions.get(place)
            return f"{self.use(optionals.optional_map)}({written}, {self.use(convert)})" if convert else written
        kind = node.operand.type
        if self.exact or not (kind.is_dynamic or kind.name == "map" or kind.name in self.environment.objects):
            return self.converted(f"{self.use(values.select)}({operand}, {key!r})", place)
        return self.converted(f"{operand}[{key!r}]", place)

    def key(self, node: Select | Has) -> str:
        """The key of a field in the data: property names that are no identifiers are written escaped."""
        declared = node.operand.type.name in self.environment.objects
        return self.environment.keys.get(node.field, node.field) if declared else node.field

    def has(self, node: Has) -> str:
        operand, key = self.write(node.operand), self.key(node)
        kind = node.operand.type
        if not self.exact and kind.name == "map" and kind.params[1].name != "map":
            return f"({key!r} in {operand})"
        return f"{self.use(values.has_field)}({operand}, {key!r})"

    def index(self, node: Index) -> str:
        operand, key = self.write(node.operand), self.write(node.index)
        if node.optional:
            return f"{self.use(values.select_optional)}({operand}, {key})"
        if not self.exact and isinstance(node.index, Literal):
            value, kind = node.index.value, node.operand.type
            if type(value) is str and (kind.is_dynamic or kind.name == "map"):
                return f"{operand}[{key}]"
            if type(value) is int and value >= 0 and self.static(node.operand) == "list":
                return f"{operand}[{key}]"
        return f"{self.use(values.index)}({operand}, {key})"

    def logic(self, node: Logic) -> str:
        if self.exact:
            join = loops.all_of if node.operator == "&&" else loops.any_of
            return f"{self.use(join)}({', '.join(f'lambda: {self.write(arg)}' for arg in node.args)})"
        word = " and " if node.operator == "&&" else " or "
        return f"({word.join(self.boolean(arg) for arg in node.args)})"

    def list_literal(self, node: ListLiteral) -> str:
        written = [
            f"*{self.use(optionals.optional_items)}({self.write(item)})"
            if number in node.optional
            else self.write(item)
            for number, item in enumerate(node.items)
        ]
        return f"[{', '.join(written)}]"

    def map_literal(self, node: MapLiteral) -> str:
        keys = [entry.key.value for entry in node.entries if isinstance(entry.key, Literal) and not entry.optional]
        if not self.exact and len(set(map(str, keys))) == len(node.entries) and all(type(key) is str for key in keys):
            return f"{{{', '.join(f'{self.write(entry.key)}: {self.write(entry.value)}' for entry in node.entries)}}}"
        written = []
        for entry in node.entries:
            key, value = self.write(entry.key), self.write(entry.value)
            if entry.optional:
                written.append(f"*{self.use(optionals.optional_entry)}({key}, {value})")
            else:
                written.append(f"({key}, {value})")
        return f"{self.use(values.build_map)}({', '.join(written)})"

    def message(self, node: MessageLiteral) -> str:
        if self.environment.message_named(node.name) is None:  # only where the environment does not check
            return f"{self.use(undeclared)}({node.name!r})"
        written = [
            f"*{self.use(optionals.optional_entry)}({entry.name!r}, {self.write(entry.value)})"
            if entry.optional
            else f"({entry.name!r}, {self.write(entry.value)})"
            for entry in node.fields
        ]
        return f"{self.use(build_message)}({', '.join([repr(node.name), *written])})"

    def body(self, node: Loop, body: Node, cost: int) -> str:
        """One body of a comprehension as a lambda over its variables; it pays first."""
        outer = self.scope
        names = [self.local(name) for name in node.variables]
        self.scope = {**outer, **dict(zip(node.variables, names, strict=True))}
        written = self.write(body)
        self.scope = outer
        if self.metered and cost:
            written = f"meter.charge({cost}) or ({written})"  # charge returns None
        return f"lambda {', '.join(names)}: {written}"

    def loop(self, node: Loop) -> str:
        range_ = self.write(node.range)
        first, *others = node.bodies
        each = round_cost(node.kind) + body_cost(first)
        if self.metered and node.kind not in ("all", "exists"):  # no element is left out: all rounds are paid at once
            range_, each = f"meter.rounds({range_}, {each})", 0
        bodies = [self.body(node, first, each), *(self.body(node, other, body_cost(other)) for other in others)]
        arguments = [range_, *reversed(bodies)]  # what an element becomes, then the condition on it
        function = _PAIR_LOOPS.get(node.kind) if len(node.variables) == 2 else None
        return f"{self.use(function or _LOOPS[node.kind])}({', '.join(arguments)})"

    def bind(self, node: Bind) -> str:
        value = self.write(node.value)
        outer = self.scope
        name = self.local(node.name)
        if node.kind == "bind":
            # The exact form computes the value when it is first used, which may be never.
            self.scope = {**outer, node.name: f"{name}()" if self.exact else name}
            body = self.write(node.body)
            self.scope = outer
            bound = f"{self.use(lazy)}(lambda: {value})" if self.exact else value
            return f"({name} := {bound}, {body})[1]"
        self.scope = {**outer, node.name: name}
        body = self.write(node.body)
        self.scope = outer
        apply = optionals.optional_map if node.kind == "optMap" else optionals.optional_flat_map
        return f"{self.use(apply)}({value}, lambda {name}: {body})"

    # calls

    def call(self, node: Call) -> str:
        name, operands = node.function, node.operands
        if not self.exact:
            written = self.comparison(node) if name in _COMPARISONS or name == "_!=_" else self.shortcut(node)
            if written:
                return written
        if node.target is not None and name in ("or", "orValue") and len(node.args) == 1:
            return self.alternative(node)
        function = self.environment.functions.find(name, member=node.target is not None)
        if function is None:  # only where the environment does not check
            return f"{self.use(undeclared)}({name!r})"
        arguments = [self.write(operand) for operand in operands]
        implementation: Any = function if self.exact else self.implementation(function, operands)
        if self.metered and (cost := sized(node)) is not None:
            return f"meter.call({', '.join([self.use(cost), self.use(implementation), *arguments])})"
        return f"{self.use(implementation)}({', '.join(arguments)})"

    def implementation(self, function: Function, operands: list[Node]) -> Any:
        """The only overload the static types allow, or the function that picks one when it is called."""
        fitting = [each for each in function.overloads if len(each.params) == len(operands)]
        for overload in fitting:
            if all(_is_known(param, operand.type) for param, operand in zip(overload.params, operands, strict=True)):
                return overload.implementation
        return function

    def comparison(self, node: Call) -> str:
        left, right = node.args
        negated = node.function == "_!=_"
        operator, general = _COMPARISONS["_==_" if negated else node.function]
        kinds = self.static(left), self.static(right)
        native = set(kinds) <= _INTEGERS or (kinds[0] == kinds[1] and kinds[0] in _SAME_TYPE)
        if operator == "==" and ("string" in kinds or "bytes" in kinds):
            native = True  # text equals nothing but text, in CEL and in Python
        if comparison := self.compare_to_zero(node):
            return comparison
        if self.metered and not native:
            return ""
        written = self.write(left), self.write(right)
        if native:
            return f"({written[0]} {'!=' if negated else operator} {written[1]})"
        return f"{'(not ' if negated else ''}{self.use(general)}({written[0]}, {written[1]}){')' if negated else ''}"

    def compare_to_zero(self, node: Call) -> str:
        """`a.compareTo(b) >= 0` is `a >= b`."""
        left, right = node.args
        if not (
            isinstance(left, Call) and left.function == "compareTo" and isinstance(right, Literal) and right.value == 0
        ):
            return ""
        kinds = {self.static(operand) for operand in left.operands}
        if type(right.value) is not int or len(left.operands) != 2 or not _orders_natively(kinds):
            return ""
        first, second = map(self.write, left.operands)
        return f"({first} {node.function.strip('_')} {second})"

    def shortcut(self, node: Call) -> str:
        """Native Python for the calls that selectors are made of; empty when the general way is needed."""
        name, operands = node.function, node.operands
        kinds = [self.static(operand) for operand in operands]
        if name == "!_" and kinds == ["bool"]:
            return f"(not {self.write(operands[0])})"
        if name in ("isGreaterThan", "isLessThan") and _orders_natively(set(kinds)):
            return f"({self.write(operands[0])} {'>' if name == 'isGreaterThan' else '<'} {self.write(operands[1])})"
        if name == "@in":
            return self.membership(operands[0], operands[1])
        if name == "matches" and not self.metered and self.environment.sizes.get("string", math.inf) <= SHORT:
            return self.match(operands[0], operands[1])
        if (
            name == "orValue"
            and isinstance(node.target, Select | Index)
            and node.target.optional
            and node.target.type.params
        ):
            return self.get(node.target, node.args[0])
        return ""

    def membership(self, item: Node, container: Node) -> str:
        constants = self.folded(container)
        if isinstance(constants, list) and constants and all(type(each) is str for each in constants):
            return f"({self.write(item)} in {self.constant(frozenset(constants))})"
        if self.static(container) == "map" and self.static(item) == "string":
            return f"({self.write(item)} in {self.write(container)})"
        return ""

    def match(self, text: Node, pattern: Node) -> str:
        """A text that is known to be short, or a simple form of it, against a constant."""
        constant = self.folded(pattern)
        if type(constant) is not str:
            return ""
        prepare = None
        if isinstance(text, Call) and text.function in _SIMPLE_FORMS and text.target is not None and not text.args:
            prepare, text = self.environment.functions.find(text.function, member=True), text.target
        try:
            return f"{self.use(matcher(constant, prepare))}({self.write(text)})"
        except EvaluationError:
            return ""  # an error of the evaluation, see `folded`

    def get(self, node: Select | Index, default: Node) -> str:
        """`m.?k.orValue(constant)` is `m.get(k, constant)`; anything but a map has no such method, and raises."""
        key = node.field if isinstance(node, Select) else getattr(node.index, "value", None)
        value = self.folded(default)
        if type(key) is not str or value is _ABSENT or node.operand.type.name not in ("map", "dyn"):
            return ""
        return f"{self.write(node.operand)}.get({key!r}, {self.constant(value)})"

    def alternative(self, node: Call) -> str:
        """`or` and `orValue` evaluate their argument only when it is needed."""
        assert node.target is not None
        function = optionals.or_lazily if node.function == "or" else optionals.or_value_lazily
        return f"{self.use(function)}({self.write(node.target)}, lambda: {self.write(node.args[0])})"


def _orders_natively(kinds: set[str]) -> bool:
    """Whether Python's operators order operands of these types; a Semver also refuses, by raising, all that is none."""
    return kinds in ({"kubernetes.Quantity"}, {"kubernetes.Semver"}, {"kubernetes.Semver", ""})


def _is_known(param: Type, static: Type) -> bool:
    """Whether every value of a static type is one of a parameter's."""
    if param.name == "dyn" or len(param.name) == 1:
        return True
    if param.name != static.name or len(param.params) != len(static.params):
        return False
    return all(map(_is_known, param.params, static.params))


def undeclared(name: str) -> Any:
    raise EvaluationError(f"undeclared reference to '{name}'")


def lazy(compute: Callable[[], Any]) -> Callable[[], Any]:
    """A function that computes once and then repeats the value."""
    known: list[Any] = []

    def value() -> Any:
        if not known:
            known.append(compute())
        return known[0]

    return value
