"""Tokens to syntax tree: precedence climbing for binary operators, recursive descent for the rest, macros recognised
by shape.
"""

from __future__ import annotations

from typing import Final

from capstan.cel.errors import CompileError, Issue
from capstan.cel.lexer import INT_MAX, RESERVED, Token, tokenize
from capstan.cel.syntax import (
    Bind,
    Call,
    Conditional,
    Entry,
    FieldEntry,
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

MAX_LENGTH: Final = 100_000
# The height of a tree. Python's own compiler takes 200 nested parentheses, and the passes recurse a few frames a level.
MAX_DEPTH: Final = 90

_PRECEDENCE: Final = {
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in"), 3),
    **dict.fromkeys(("+", "-"), 4),
    **dict.fromkeys(("*", "/", "%"), 5),
}
_ENDS: Final = frozenset((",", "]", ")", "}", ":"))
# macro name -> {number of arguments: number of them that are variable names}
_LOOPS: Final = {
    "all": {2: 1, 3: 2},
    "exists": {2: 1, 3: 2},
    "exists_one": {2: 1, 3: 2},
    "existsOne": {2: 1, 3: 2},
    "filter": {2: 1},
    "map": {2: 1, 3: 1},
    "transformList": {3: 2, 4: 2},
    "transformMap": {3: 2, 4: 2},
    "transformMapEntry": {3: 2, 4: 2},
    "sortBy": {2: 1},
}
_BINDS: Final = {"optMap", "optFlatMap"}
STANDARD_MACROS: Final = frozenset(("has", *_BINDS, *_LOOPS)) - {"sortBy"}
# The last four are the forms that optimisers print.
MACROS: Final = STANDARD_MACROS | {"sortBy", "cel.bind", "cel.block", "cel.index", "cel.iterVar", "cel.accuVar"}


def parse(source: str, *, macros: frozenset[str] = MACROS) -> Node:
    """The tree of one expression; what is not among the `macros` is a function as any other. Raises CompileError with
    the position of the first mistake."""
    if len(source) > MAX_LENGTH:
        message = f"expression code point size exceeds limit: size: {len(source)}, limit {MAX_LENGTH}"
        raise CompileError(source, [Issue(0, message)])
    parser = _Parser(source, macros)
    node = parser.expression()
    parser.expect("end")
    _check_height(source, node)
    return node


class _Parser:
    def __init__(self, source: str, macros: frozenset[str]) -> None:
        self.source = source
        self.macros = macros
        self.tokens = tokenize(source)
        self.at = 0
        self.depth = 0

    def fail(self, position: int, message: str) -> CompileError:
        return CompileError(self.source, [Issue(position, message)])

    def too_deep(self, position: int) -> CompileError:
        return self.fail(position, f"expression recursion limit exceeded: {MAX_DEPTH}")

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def accept(self, kind: str) -> Token | None:
        token = self.tokens[self.at]
        if token.kind != kind:
            return None
        self.at += 1
        return token

    def expect(self, kind: str) -> Token:
        token = self.accept(kind)
        if token is None:
            found = self.token
            text = "<EOF>" if found.kind == "end" else str(found.value) if found.kind == "name" else found.kind
            wanted = "end of expression" if kind == "end" else f"'{kind}'"
            raise self.fail(found.position, f"Syntax error: unexpected '{text}', expecting {wanted}")
        return token

    def expression(self) -> Node:
        token = self.token
        if token.kind == "literal" and self.tokens[self.at + 1].kind in _ENDS:
            return self.primary()  # most elements and arguments are literals
        start = token.position
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.too_deep(start)
        node = self.logic("||")
        if question := self.accept("?"):
            then = self.logic("||")
            self.expect(":")
            node = Conditional(question.position, node, then, self.expression())
        self.depth -= 1
        return node

    def logic(self, operator: str) -> Node:
        operand = self.logic("&&") if operator == "||" else self.binary(3)
        if self.token.kind != operator:
            return operand
        position = self.token.position
        args = [operand]
        while self.accept(operator):
            args.append(self.logic("&&") if operator == "||" else self.binary(3))
        return Logic(position, operator, args)

    def binary(self, level: int) -> Node:
        left = self.unary()
        height = 0
        while (precedence := _PRECEDENCE.get(self.token.kind, 0)) >= level:
            token = self.token
            self.at += 1
            right = self.binary(precedence + 1)
            name = "@in" if token.kind == "in" else f"_{token.kind}_"
            left = Call(token.position, name, None, [left, right])
            height += 1
            if height > MAX_DEPTH:
                raise self.too_deep(token.position)
        return left

    def unary(self) -> Node:
        token = self.token
        count = 0
        if token.kind not in ("!", "-"):
            return self.member()
        while self.accept(token.kind):
            count += 1
        if token.kind == "-" and self._is_signed_literal(self.token):
            count -= 1
            operand = self.member(sign=-1, position=token.position)
        else:
            operand = self.member()
        # Pairs of the same operator cancel out.
        return Call(token.position, f"{token.kind}_", None, [operand]) if count % 2 else operand

    @staticmethod
    def _is_signed_literal(token: Token) -> bool:
        return token.kind == "literal" and type(token.value) in (int, float)

    def member(self, sign: int = 1, position: int = 0) -> Node:
        node = self.number(sign, position) if sign < 0 else self.primary()
        for _ in range(MAX_DEPTH):
            token = self.token
            if self.accept("."):
                optional = self.accept("?") is not None
                name = self.accept("name") or self.accept("quoted")
                if name is None:
                    raise self.fail(self.token.position, f"Syntax error: unexpected '{self.token.kind}' after '.'")
                if name.kind == "name" and not optional and (paren := self.accept("(")):
                    node = self.call(paren.position, str(name.value), node, self.arguments(")"))
                else:
                    node = Select(token.position, node, str(name.value), optional)
            elif self.accept("["):
                optional = self.accept("?") is not None
                index = self.expression()
                self.expect("]")
                node = Index(token.position, node, index, optional)
            elif token.kind == "{" and (qualified := _qualified_name(node)):
                self.at += 1
                node = self.message(token.position, qualified)
            else:
                return node
        raise self.too_deep(self.token.position)

    def number(self, sign: int, position: int) -> Node:
        value = self.token.value
        self.at += 1
        return Literal(position, sign * value)  # type: ignore[operator]  # an int or a float, see _is_signed_literal

    def primary(self) -> Node:
        token = self.token
        self.at += 1
        if token.kind == "literal":
            if type(token.value) is int and token.value > INT_MAX:
                raise self.fail(token.position, "invalid int literal")
            return Literal(token.position, token.value)
        if token.kind == "name":
            return self.name(token, str(token.value))
        if token.kind == "." and (name := self.accept("name")):
            return self.name(name, f".{name.value}")
        if token.kind == "(":
            node = self.expression()
            self.expect(")")
            return node
        if token.kind == "[":
            optional: set[int] = set()
            return ListLiteral(token.position, self.arguments("]", optional), frozenset(optional))
        if token.kind == "{":
            return self.map(token.position)
        self.at -= 1
        text = "<EOF>" if token.kind == "end" else token.kind
        raise self.fail(token.position, f"Syntax error: mismatched input '{text}', expecting an expression")

    def name(self, token: Token, name: str) -> Node:
        if name in RESERVED:
            raise self.fail(token.position, f"Syntax error: reserved identifier: {name}")
        if paren := self.accept("("):
            return self.call(paren.position, name, None, self.arguments(")"))
        return Ident(token.position, name)

    def arguments(self, closing: str, optional: set[int] | None = None) -> list[Node]:
        """The comma-separated expressions up to the closing token; a list literal marks its `?` items in `optional`."""
        items: list[Node] = []
        if optional is not None and self.lone_comma(closing):
            return items
        while not self.accept(closing):
            if optional is not None and self.accept("?"):
                optional.add(len(items))
            items.append(self.expression())
            if not self.accept(","):
                self.expect(closing)
                break
            if optional is None and self.token.kind == closing:
                raise self.fail(self.token.position, f"Syntax error: unexpected '{closing}' after ','")
        return items

    def lone_comma(self, closing: str) -> bool:
        """`[,]` and `{,}` are empty literals: the comma after the elements is optional, and so are they."""
        if self.token.kind != "," or self.tokens[self.at + 1].kind != closing:
            return False
        self.at += 2
        return True

    def map(self, position: int) -> Node:
        entries: list[Entry] = []
        if self.lone_comma("}"):
            return MapLiteral(position, entries)
        while not self.accept("}"):
            start = self.token.position
            optional = self.accept("?") is not None
            key = self.expression()
            self.expect(":")
            entries.append(Entry(start, key, self.expression(), optional))
            if not self.accept(","):
                self.expect("}")
                break
        return MapLiteral(position, entries)

    def message(self, position: int, name: str) -> Node:
        fields: list[FieldEntry] = []
        while not self.accept("}"):
            start = self.token.position
            optional = self.accept("?") is not None
            field = self.accept("name") or self.accept("quoted") or self.expect("name")
            self.expect(":")
            fields.append(FieldEntry(start, str(field.value), self.expression(), optional))
            if not self.accept(","):
                self.expect("}")
                break
        return MessageLiteral(position, name, fields)

    def call(self, position: int, name: str, target: Node | None, args: list[Node]) -> Node:
        if target is None:
            if name == "has" and name in self.macros:
                return self.has(position, args)
            return Call(position, name, None, args)
        if isinstance(target, Ident) and target.name == "cel" and f"cel.{name}" in self.macros:
            macro = self.cel_macro(position, name, args)
            if macro is not None:
                return macro
        if name not in self.macros:
            return Call(position, name, target, args)
        if variables := _LOOPS.get(name, {}).get(len(args)):
            names = [self.variable(arg) for arg in args[:variables]]
            if len(set(names)) != len(names):
                raise self.fail(args[1].position, f"overlapping variable name: {names[1]}")
            return Loop(position, name, target, names, args[variables:])
        if name in _BINDS and len(args) == 2:
            return Bind(position, name, self.variable(args[0]), target, args[1])
        return Call(position, name, target, args)

    def has(self, position: int, args: list[Node]) -> Node:
        if len(args) != 1 or not isinstance(args[0], Select) or args[0].optional:
            raise self.fail(position, "invalid argument to has() macro")
        return Has(position, args[0].operand, args[0].field)

    def cel_macro(self, position: int, name: str, args: list[Node]) -> Node | None:
        """The macros on `cel`; None where the arguments are not those of one."""
        if name == "bind" and len(args) == 3:
            return Bind(position, "bind", self.variable(args[0]), args[1], args[2])
        if name == "block" and len(args) == 2 and isinstance(args[0], ListLiteral):
            node = args[1]
            for number, item in reversed(list(enumerate(args[0].items))):
                node = Bind(position, "bind", f"@index{number}", item, node)
            return node
        if name in ("index", "iterVar", "accuVar") and all(isinstance(arg, Literal) for arg in args):
            numbers = "_".join(str(arg.value) for arg in args if isinstance(arg, Literal))
            return Ident(position, f"@{name}{numbers}")
        return None

    def variable(self, node: Node) -> str:
        if isinstance(node, Ident) and not node.name.startswith("."):
            return node.name
        raise self.fail(node.position, "argument must be a simple name")


def _qualified_name(node: Node) -> str | None:
    """`a.b.C` for a chain of plain selections, which is what may stand before a message literal."""
    names: list[str] = []
    while isinstance(node, Select) and not node.optional:
        names.append(node.field)
        node = node.operand
    if not isinstance(node, Ident):
        return None
    return ".".join([node.name, *reversed(names)])


def _check_height(source: str, root: Node) -> None:
    """Bound the height: left-deep chains (`a + a + ...`, `a.b.c...`) are parsed by loops, later passes recurse."""
    level = [root]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in children(node)]
        if not level:
            return
    raise CompileError(source, [Issue(level[0].position, f"expression recursion limit exceeded: {MAX_DEPTH}")])
