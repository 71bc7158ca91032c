"""Runs test files of the CEL specification: `python -m capstan.cel.conformance FILE...`

The files hold `cel.expr.conformance.test.SimpleTestFile` messages in text format. A test that needs other protobuf
messages than the well-known ones is skipped: there are no descriptors here.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

from capstan.cel import protos, textproto
from capstan.cel.environments import Environment, standard
from capstan.cel.errors import CelError, CompileError, EvaluationError, UnknownValue
from capstan.cel.lexer import tokenize
from capstan.cel.messages import WELL_KNOWN
from capstan.cel.program import compile
from capstan.cel.protos import NeedsMessages, field, text, true
from capstan.cel.textproto import Message
from capstan.cel.types import DYN, Type
from capstan.cel.values import type_name

_MATCHERS: Final = {
    "value": "value",
    "typed_result": "value",
    "eval_error": "error",
    "any_eval_errors": "error",
    "unknown": "unknown",
    "any_unknowns": "unknown",
}
"""Which kind of result each asks for. What an error says and where an unknown comes from are each implementation's."""
_FIELDS: Final = frozenset(
    (
        *("name", "description", "expr", "disable_macros", "disable_check", "check_only", "type_env", "container"),
        *("locale", "bindings", *_MATCHERS),
    )
)
# The messages, enums and packages of the test schema, and the functions on extensions of messages.
_SCHEMA: Final = frozenset(
    (
        *("TestAllTypes", "NestedTestAllTypes", "TestRequired", "NestedMessage", "NestedEnum", "GlobalEnum"),
        *("ImportedGlobalEnum", "conformance", "proto2", "proto3", "getExt", "hasExt"),
    )
)
_SCHEMA_PACKAGES: Final = ("cel.expr.conformance.", "google.api.expr.test.")
_PACKAGE: Final = "google.protobuf."


class Bindings(dict[str, Any]):
    """Variables, of which some are errors or unknown: to read such a one raises."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if isinstance(value, EvaluationError):
            raise value
        return value


class Case(NamedTuple):
    """One test, read. `wanted` is a value, an error or unknown; where it is absent only the type matters."""

    expression: str
    environment: Environment
    bindings: Bindings
    wanted: str
    value: Any
    deduced: Type | None
    checked_only: bool


def run_file(content: str) -> Iterator[tuple[str, str, str]]:
    """(test name, passed|failed|skipped, detail) for every test of a file. Raises TextFormatError for other files."""
    file = textproto.parse(content)
    strange = sorted({key for key, _ in file} - {"name", "description", "section"})
    if strange:
        raise textproto.TextFormatError(f"no SimpleTestFile: it has no field {', '.join(strange)}")
    for section in protos.repeated(file, "section"):
        if not isinstance(section, list):
            raise textproto.TextFormatError(f"no SimpleTestFile: {section!r} is no section")
        for test in protos.repeated(section, "test"):
            title = f"{_name(section)}/{_name(test)}"
            try:
                detail = run_test(test)
                yield title, "failed" if detail else "passed", detail
            except NeedsMessages as message:
                yield title, "skipped", f"needs the message {message}"
            except Exception as error:  # a test that cannot be read, or a defect here; those after it still count
                yield title, "failed", f"{type(error).__name__}: {error}"


def _name(message: Any) -> str:
    name = field(message, "name", b"") if isinstance(message, list) else message
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def run_test(test: Message) -> str:
    """Empty when the test passes, else what went wrong. Raises NeedsMessages for what cannot be asked here."""
    case = _read(test)
    outcome, result = _outcome(case)
    if outcome == "typed" or (outcome == case.wanted and (outcome != "value" or same(case.value, result))):
        return ""
    wanted = repr(case.value) if case.wanted == "value" else f"an {case.wanted}"
    found = repr(result) if outcome == "value" else f"{outcome}: {result}"
    return f"{case.expression}: expected {wanted}, got {found}"


def _outcome(case: Case) -> tuple[str, Any]:
    """(value|error|unknown|typed|refused|type, what it is)"""
    try:
        program = compile(case.expression, case.environment)
        if case.deduced is not None and case.deduced != program.result:
            return "type", f"{program.result} where {case.deduced} is deduced"
        if case.checked_only:
            return "typed", program.result
        return "value", program.evaluate(case.bindings)
    except UnknownValue as unknown:
        return "unknown", unknown
    except EvaluationError as error:
        return "error", error
    except CompileError as error:
        return "error" if case.wanted == "error" else "refused", error


def _read(test: Message) -> Case:
    strange = sorted({key for key, _ in test} - _FIELDS)
    if strange:
        raise ValueError(f"fields that SimpleTest does not have: {', '.join(strange)}")
    expression = text(test, "expr")
    _require_no_schema(expression)
    matcher, content = next(
        ((key, value) for key, value in test if key in _MATCHERS), ("value", [("bool_value", "true")])
    )
    typed = content if matcher == "typed_result" else []
    expected, deduced = field(typed, "result"), field(typed, "deduced_type")
    checked_only = true(field(test, "check_only")) or (matcher == "typed_result" and expected is None)
    has_value = _MATCHERS[matcher] == "value" and not checked_only
    checked = not true(field(test, "disable_check"))
    declarations = protos.repeated(test, "type_env")
    declared = protos.read_variables(declarations)
    bindings = Bindings(protos.read_constants(declarations))
    for binding in protos.repeated(test, "bindings"):
        name = text(binding, "key")
        bindings[name] = protos.read_binding(field(binding, "value", []), declared.get(name, DYN))
    # Unchecked names are resolved while running, and so among what is bound.
    variables = declared if checked else {name: declared.get(name, DYN) for name in bindings}
    environment = standard((), text(test, "container"))
    return Case(
        expression=expression,
        environment=replace(
            environment,
            variables=variables,
            libraries=(*environment.libraries, protos.read_functions(declarations)),
            macros=frozenset() if true(field(test, "disable_macros")) else environment.macros,
            checked=checked,
        ),
        bindings=bindings,
        wanted=_MATCHERS[matcher],
        value=protos.read_value(expected or content) if has_value else None,
        deduced=None if deduced is None else protos.read_type(deduced),
        checked_only=checked_only,
    )


def _require_no_schema(expression: str) -> None:
    """Raises NeedsMessages where an expression names something of the test schema, or another message of protobuf."""
    try:
        tokens = tokenize(expression)
    except CompileError:
        return
    path = ""
    for token in tokens:
        if token.kind == "literal" and isinstance(token.value, str):
            if any(package in token.value for package in _SCHEMA_PACKAGES):
                raise NeedsMessages(token.value)
        elif token.kind == "name":
            path += str(token.value)
            if token.value in _SCHEMA:
                raise NeedsMessages(path)
            continue
        elif token.kind == ".":
            path += "."
            continue
        elif token.kind == "{" and path.startswith(_PACKAGE) and path not in WELL_KNOWN:
            raise NeedsMessages(path)
        path = ""


def same(wanted: Any, found: Any) -> bool:
    """Equality of type and value, at every depth; NaN equals itself."""
    if isinstance(wanted, float) and isinstance(found, float):
        return wanted == found or (wanted != wanted and found != found)
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = {(type_name(key), key): value for key, value in found.items()}
        return len(wanted) == len(found) and all(
            (type_name(key), key) in keys and same(value, keys[type_name(key), key]) for key, value in wanted.items()
        )
    if isinstance(wanted, list) and isinstance(found, (list, tuple)):
        return len(wanted) == len(found) and all(map(same, wanted, found))
    return type_name(wanted) == type_name(found) and bool(wanted == found)


def main(arguments: list[str]) -> int:
    """Run the files. The exit status is 1 when a test failed or a file cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m capstan.cel.conformance",
        description="Run test files of the CEL specification (SimpleTestFile messages in protobuf text format).",
        epilog="example: python -m capstan.cel.conformance -v basic.textproto lists.textproto",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("-v", "--verbose", action="store_true", help="also say which tests failed or were skipped, why")
    options = parser.parse_args(arguments)
    sums: Counter[str] = Counter()
    for path in options.files:
        counts: Counter[str] = Counter()
        try:
            with open(path, encoding="utf-8") as file:
                content = file.read()
            for name, outcome, detail in run_file(content):
                counts[outcome] += 1
                if options.verbose and outcome != "passed":
                    print(f"  {outcome} {name}: {detail}")
        except (CelError, OSError, UnicodeDecodeError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            counts["failed"] += 1
        print(f"{path}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
        sums += counts
    print(f"{sums['passed']} passed, {sums['failed']} failed, {sums['skipped']} skipped")
    return 1 if sums["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
