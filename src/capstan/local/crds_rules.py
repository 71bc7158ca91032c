"""`x-kubernetes-validations`: the CEL rules of a custom resource, compiled once and checked over objects (KEP-2876).

A rule stands at a place of the schema and sees the value there as `self`. A rule that mentions `oldSelf` is a
transition rule: it is checked on updates only, where the old value can be told (not inside atomic lists), or, with
`optionalOldSelf`, always.
"""

from __future__ import annotations

import re
from typing import Any

from capstan import cel
from capstan.api.base import StatusCause
from capstan.api.openapi import JsonSchema
from capstan.cel.types import STRING
from capstan.cel.values import NONE
from capstan.local.structural_errors import duplicate, forbidden, invalid, required

Object = dict[str, Any]
Causes = list[StatusCause]

_OLD = re.compile(r"\boldSelf\b")


class Rule:
    """One compiled rule. Raises cel.CompileError. `rounds`: how many values it is checked on in one object, None when
    only the size of a request bounds them; matters for new definitions, whose rules must be cheap enough."""

    def __init__(self, declared: Object, schema: JsonSchema, *, root: bool, rounds: float | None = 1) -> None:
        self.source: str = declared["rule"]
        self.transition = _OLD.search(self.source) is not None
        self.optional = bool(declared.get("optionalOldSelf"))
        self.reason: str = declared.get("reason") or "FieldValueInvalid"
        self.field: str = declared.get("fieldPath") or ""
        self.message: str = declared.get("message") or f"failed rule: {self.source}"
        self.kind: str = schema.get("type", "object")
        environment = cel.environments.crd_rule(schema, resource=root, optional_old_self=self.optional, rounds=rounds)
        self.program = cel.compile(self.source, environment)
        self.message_program: cel.Program | None = None
        if expression := declared.get("messageExpression"):
            words = cel.environments.crd_rule(
                schema, resource=root, optional_old_self=self.optional, result=STRING, rounds=rounds
            )
            self.message_program = cel.compile(expression, words)

    def check(self, value: Any, old: Any, has_old: bool, path: str, causes: Causes) -> None:
        if self.transition and not has_old and not self.optional:
            return
        variables = {"self": value, "oldSelf": old}
        if self.optional:
            variables["oldSelf"] = cel.Optional(old) if has_old else NONE
        where = f"{path}{self.field}" if path else self.field.removeprefix(".")
        try:
            if self.program.evaluate(variables) is True:
                return
        except cel.CelError as error:
            causes.append(invalid(where, self.kind, f"rule {self.source!r} cannot be evaluated: {error}"))
            return
        causes.append(self._cause(where, self._words(variables)))

    def _words(self, variables: Object) -> str:
        """The message expression decides where it yields one line of text; else the fixed message does."""
        if self.message_program is not None:
            try:
                words = self.message_program.evaluate(variables)
            except cel.EvaluationError:
                return self.message
            if isinstance(words, str) and words.strip() and "\n" not in words:
                return words
        return self.message

    def _cause(self, where: str, words: str) -> StatusCause:
        match self.reason:
            case "FieldValueForbidden":
                return forbidden(where, words)
            case "FieldValueRequired":
                return required(where, words)
            case "FieldValueDuplicate":
                return duplicate(where, self.kind)
        return invalid(where, self.kind, words)


class _Place:
    """A place of the schema at or below which rules stand."""

    __slots__ = ("items", "list_keys", "properties", "rules", "values")

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.properties: dict[str, _Place] = {}
        self.items: _Place | None = None
        self.values: _Place | None = None
        self.list_keys: tuple[str, ...] = ()


class Rules:
    """All rules of one schema."""

    def __init__(self, schema: JsonSchema) -> None:
        self._root = _compile(schema, root=True)

    def check(self, new: Object, old: Object | None) -> Causes:
        causes: Causes = []
        if self._root is not None:
            _check(self._root, new, old, old is not None, "", causes)
        return causes


def _compile(schema: JsonSchema, *, root: bool = False) -> _Place | None:
    place = _Place()
    for declared in schema.get("x-kubernetes-validations") or ():
        place.rules.append(Rule(declared, schema, root=root or bool(schema.get("x-kubernetes-embedded-resource"))))
    for name, child in (schema.get("properties") or {}).items():
        if (below := _compile(child)) is not None:
            place.properties[name] = below
    if isinstance(items := schema.get("items"), dict):
        place.items = _compile(items)
        if schema.get("x-kubernetes-list-type") == "map":
            place.list_keys = tuple(schema.get("x-kubernetes-list-map-keys") or ())
    if isinstance(values := schema.get("additionalProperties"), dict):
        place.values = _compile(values)
    return place if place.rules or place.properties or place.items or place.values else None


def _check(place: _Place, value: Any, old: Any, has_old: bool, path: str, causes: Causes) -> None:
    for rule in place.rules:
        rule.check(value, old, has_old, path, causes)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, below in place.properties.items():
            if value.get(name) is not None:
                known = before.get(name) is not None
                where = f"{path}.{name}" if path else name
                _check(below, value[name], before.get(name), known, where, causes)
        if place.values is not None:
            for key, item in value.items():
                if key not in place.properties:
                    _check(place.values, item, before.get(key), key in before, f"{path}[{key}]", causes)
    elif isinstance(value, list) and place.items is not None:
        keys = place.list_keys
        known_items = {}
        if keys and isinstance(old, list):
            known_items = {tuple(item.get(key) for key in keys): item for item in old}
        for index, item in enumerate(value):
            earlier = known_items.get(tuple(item.get(key) for key in keys)) if keys else None
            _check(place.items, item, earlier, earlier is not None, f"{path}[{index}]", causes)
