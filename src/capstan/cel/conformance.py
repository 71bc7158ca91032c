"""Runs test files of the CEL specification: `python -m capstan.cel.conformance FILE...`

The files hold `cel.expr.conformance.test.SimpleTestFile` messages in text format. A test with proto2 or proto3
messages of the test schema is skipped: there is no protobuf here. Prints passed, failed and skipped for each file, and
the sum last.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from capstan.cel import textproto
from capstan.cel.environments import Environment, standard
from capstan.cel.errors import CelError, CompileError, EvaluationError
from capstan.cel.library import Library, Overload
from capstan.cel.messages import build_message
from capstan.cel.program import compile
from capstan.cel.textproto import Message
from capstan.cel.types import DYN, WRAPPERS, Type
from capstan.cel.values import TypeValue, Uint, type_name

_PRIMITIVES: Final = {
    "BOOL": "bool",
    "INT64": "int",
    "UINT64": "uint",
    "DOUBLE": "double",
    "STRING": "string",
    "BYTES": "bytes",
}
_WELL_KNOWN: Final = {"ANY": "dyn", "TIMESTAMP": "timestamp", "DURATION": "duration"}
_MESSAGES: Final = ("TestAllTypes", "NestedTestAllTypes", "proto2", "proto3", "GlobalEnum", "TestRequired")


_MATCHERS: Final = ("value", "typed_result", "eval_error", "any_eval_errors", "unknown", "any_unknowns")
_FIELDS: Final = frozenset(
    (
        *("name", "description", "expr", "disable_macros", "disable_check", "check_only", "type_env", "container"),
        *("locale", "bindings", *_MATCHERS),
    )
)
"""Of `SimpleTest`. A test with others asks for something that was not there when this was written."""


class Skip(Exception):
    """The test needs something that this implementation leaves out on purpose."""


def field(message: Message, name: str, default: Any = None) -> Any:
    return next((value for key, value in message if key == name), default)


def text(message: Message, name: str) -> str:
    value = field(message, name, b"")
    return value.decode() if isinstance(value, bytes) else str(value)


def run_file(content: str) -> Iterator[tuple[str, str, str]]:
    """(test name, passed|failed|skipped, detail) for every test of a file."""
    for key, section in textproto.parse(content):
        if key != "section":
            continue
        for name, test in section:
            if name != "test":
                continue
            title = f"{text(section, 'name')}/{text(test, 'name')}"
            try:
                detail = run_test(test)
                yield title, "failed" if detail else "passed", detail
            except Skip as reason:
                yield title, "skipped", str(reason)
            except Exception as error:  # a defect of this implementation; the tests after it still count
                yield title, "failed", f"{type(error).__name__}: {error}"


class Case(NamedTuple):
    """One test, read."""

    expression: str
    environment: Environment
    bindings: dict[str, Any]
    error: bool
    """An error is what it expects."""
    deduced: Type | None
    checked_only: bool
    wanted: Any


def run_test(test: Message) -> str:
    """Empty when the test passes, else what went wrong. Raises Skip for what cannot be asked here."""
    case = _read(test)
    expression = case.expression
    try:
        program = compile(expression, case.environment)
        if case.deduced is not None and case.deduced != program.result:
            return f"{expression}: deduced type {program.result}, expected {case.deduced}"
        if case.checked_only:
            return ""
        result = program.evaluate(case.bindings)
    except EvaluationError as error:
        return "" if case.error else f"{expression}: unexpected error: {error}"
    except CompileError as error:
        return "" if case.error else f"{expression}: does not compile: {error}"
    if case.error:
        return f"{expression}: expected an error, got {result!r}"
    return "" if same(case.wanted, result) else f"{expression}: expected {case.wanted!r}, got {result!r}"


def _read(test: Any) -> Case:
    if not isinstance(test, list):
        raise Skip("a test that is no message")
    unknown = sorted({key for key, _ in test} - _FIELDS)
    if unknown:
        raise Skip(f"unknown fields: {', '.join(unknown)}")
    content = repr([(key, value) for key, value in test if key not in ("name", "description", "container")])
    if any(word in content for word in _MESSAGES):
        raise Skip("protobuf messages")
    matcher = next((key for key, _ in test if key in _MATCHERS), "value")
    if matcher in ("unknown", "any_unknowns"):
        raise Skip("partial evaluation")
    try:
        declarations = [value for key, value in test if key == "type_env" and value]
        functions = [each for each in declarations if field(each, "function") is not None]
        variables = tuple(_variable(each) for each in declarations if each not in functions)
        environment = standard(variables, text(test, "container"))
        environment = replace(
            environment,
            libraries=(*environment.libraries, _library(functions)),
            macros=not _true(field(test, "disable_macros")),
            checked=not _true(field(test, "disable_check")),
        )
        typed = field(test, "typed_result", [])
        expected = field(typed, "result") if matcher == "typed_result" else field(test, "value", [("bool_value", True)])
        error = "error" in matcher
        return Case(
            expression=text(test, "expr"),
            environment=environment,
            bindings=dict(_bindings(test)),
            error=error,
            deduced=_type(field(typed, "deduced_type", [])) if matcher == "typed_result" else None,
            checked_only=_true(field(test, "check_only")) or (expected is None and not error),
            wanted=None if error or expected is None else _value(expected),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, CelError) as error:
        raise Skip(f"not understood: {type(error).__name__}: {error}") from error


def same(wanted: Any, found: Any) -> bool:
    """Equality of type and value; NaN equals itself, and text stands for values that print as it."""
    if isinstance(wanted, float) and isinstance(found, float):
        return wanted == found or (wanted != wanted and found != found)
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = {(type_name(key), key): value for key, value in found.items()}
        return len(wanted) == len(found) and all(
            (type_name(key), key) in keys and same(value, keys[type_name(key), key]) for key, value in wanted.items()
        )
    if isinstance(wanted, list) and isinstance(found, list):
        return len(wanted) == len(found) and all(map(same, wanted, found))
    return type_name(wanted) == type_name(found) and bool(wanted == found)


def _bindings(test: Message) -> Iterator[tuple[str, Any]]:
    for key, binding in test:
        if key == "bindings":
            value = field(binding, "value", [])
            if field(value, "error") is not None or field(value, "unknown") is not None:
                raise Skip("variables that are errors or unknown")
            yield text(binding, "key"), _value(field(value, "value", []))


def _true(value: Any) -> bool:
    return value in ("true", "True", "t") or value == 1


def _variable(declaration: Message) -> tuple[str, str]:
    return text(declaration, "name"), str(_type(field(field(declaration, "ident", []), "type", [])))


def _library(declarations: list[Message]) -> Library:
    """Functions that a test declares and nobody implements: the checker knows them, to call one is an error."""
    library = Library("declared by the test")
    for declaration in declarations:
        name = text(declaration, "name")
        for key, overload in field(declaration, "function"):
            if key == "overloads":
                member = _true(field(overload, "is_instance_function"))
                params = tuple(_type(value) for key, value in overload if key == "params")
                result = _type(field(overload, "result_type", []))
                library.declared.append((name, Overload(params, result, member, partial(_unimplemented, name))))
    return library


def _unimplemented(name: str, *_: Any) -> Any:
    raise EvaluationError(f"the function {name} is declared only")


def _type(message: Message) -> Type:
    if not message:
        return DYN
    kind, value = message[0]
    if kind == "type_param":
        if not re.fullmatch(b"[A-Z]", value):
            raise Skip("type parameters that are not one capital letter")
        return Type(value.decode())
    if kind == "primitive":
        return Type(_PRIMITIVES[value])
    if kind == "wrapper":
        return Type("wrapper", (Type(_PRIMITIVES[value]),))
    if kind == "well_known":
        return Type(
            {"timestamp": "google.protobuf.Timestamp", "duration": "google.protobuf.Duration"}.get(
                _WELL_KNOWN[value], "dyn"
            )
        )
    if kind == "list_type":
        return Type("list", (_type(field(value, "elem_type", [])),))
    if kind == "map_type":
        return Type("map", (_type(field(value, "key_type", [])), _type(field(value, "value_type", []))))
    if kind == "type":
        return Type("type", (_type(value),))
    if kind == "abstract_type":
        return Type(text(value, "name"), tuple(_type(each) for key, each in value if key == "parameter_types"))
    if kind == "message_type":
        name = value.decode()
        short = name.removeprefix("google.protobuf.")
        if short in WRAPPERS:
            return Type("wrapper", (WRAPPERS[short],))
        return {
            "Struct": Type("map", (Type("string"), DYN)),
            "ListValue": Type("list", (DYN,)),
            "Value": DYN,
            "Any": DYN,
        }.get(short, Type(name))
    return Type("null") if kind == "null" else DYN


def _value(message: Message) -> Any:
    if not message:
        return None
    kind, value = message[0]
    if kind == "null_value":
        return None
    if kind == "bool_value":
        return _true(value)
    if kind == "int64_value":
        return int(value)
    if kind == "uint64_value":
        return Uint(value)
    if kind == "double_value":
        return float(value)
    if kind == "string_value":
        return value.decode()
    if kind == "bytes_value":
        return value
    if kind == "type_value":
        return TypeValue(value.decode())
    if kind == "list_value":
        return [_value(each) for key, each in value if key == "values"]
    if kind == "map_value":
        entries = [each for key, each in value if key == "entries"]
        return {_value(field(each, "key", [])): _value(field(each, "value", [])) for each in entries}
    if kind == "object_value":
        return _object(value[0][0], value[0][1])
    if kind == "enum_value":
        raise Skip("enum values of protobuf messages")
    raise Skip(f"values of kind {kind}")


def _object(type_url: str, message: Message) -> Any:
    name = type_url.strip("[]").rpartition("/")[2]
    if name in ("google.protobuf.Struct", "google.protobuf.ListValue", "google.protobuf.Value"):
        return _json(name.rpartition(".")[2], message)
    if name == "google.protobuf.Any":
        return _object(*message[0])
    fields = {key: _scalar_field(value) for key, value in message}
    if name == "google.protobuf.UInt32Value" or name == "google.protobuf.UInt64Value":
        fields = {key: Uint(value) for key, value in fields.items()}
    if name == "google.protobuf.StringValue":
        fields = {key: value.decode() for key, value in fields.items()}
    if name in ("google.protobuf.FloatValue", "google.protobuf.DoubleValue"):
        fields = {key: float(value) for key, value in fields.items()}
    return build_message(name, *fields.items())


def _scalar_field(value: Any) -> Any:
    return value == "true" if value in ("true", "false") else value


def _json(kind: str, message: Message) -> Any:
    if kind == "Struct":
        entries = [value for key, value in message if key == "fields"]
        return {text(each, "key"): _json("Value", field(each, "value", [])) for each in entries}
    if kind == "ListValue":
        return [_json("Value", value) for key, value in message if key == "values"]
    key, value = message[0]
    if key == "struct_value":
        return _json("Struct", value)
    if key == "list_value":
        return _json("ListValue", value)
    if key == "null_value":
        return None
    return float(value) if key == "number_value" else value.decode() if key == "string_value" else value == "true"


def main(arguments: list[str]) -> int:
    """Run the files; with -v also say what failed. The exit status is 1 when a test failed."""
    verbose = "-v" in arguments
    sums: Counter[str] = Counter()
    for path in [argument for argument in arguments if argument != "-v"]:
        counts: Counter[str] = Counter()
        try:
            with open(path, encoding="utf-8") as file:
                content = file.read()
            for name, outcome, detail in run_file(content):
                counts[outcome] += 1
                if verbose and outcome == "failed":
                    print(f"  {name}: {detail}")
        except (CelError, OSError, UnicodeDecodeError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            counts["failed"] += 1
        print(f"{path}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
        sums += counts
    print(f"{sums['passed']} passed, {sums['failed']} failed, {sums['skipped']} skipped")
    return 1 if sums["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
