"""Label selectors: the object form, the text form of `kubectl -l`, and node selector terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from capstan.api.base import Struct

Labels = Mapping[str, str]
Match = Callable[[Labels], bool]


class InvalidSelector(ValueError):
    """A selector that cannot be understood; the message names the requirement."""


class Requirement(Struct):
    """One requirement. Operators: In, NotIn, Exists, DoesNotExist, and for nodes Gt, Lt."""

    key: str = ""
    operator: str = ""
    values: list[str] = []

    def matches(self, labels: Labels) -> bool:
        present = labels.get(self.key)
        match self.operator:
            case "In":
                return present is not None and present in self.values
            case "NotIn":
                return present is None or present not in self.values
            case "Exists":
                return present is not None
            case "DoesNotExist":
                return present is None
            case "Gt" | "Lt":
                try:
                    left, right = int(present or ""), int(self.values[0])
                except (ValueError, IndexError):
                    return False
                return left > right if self.operator == "Gt" else left < right
        raise InvalidSelector(f"unknown operator {self.operator!r} for key {self.key!r}")


class LabelSelector(Struct):
    match_labels: dict[str, str] = {}
    match_expressions: list[Requirement] = []

    def matches(self, labels: Labels) -> bool:
        """An empty selector matches everything."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            requirement.matches(labels) for requirement in self.match_expressions
        )


_SET = re.compile(r"\s*([^\s!=,()]+)\s+(in|notin)\s*\(([^()]*)\)\s*")
_EQUALITY = re.compile(r"\s*([^\s!=,()]+)\s*(==|=|!=)\s*([^\s!=,()]*)\s*")
_EXISTS = re.compile(r"\s*(!?)\s*([^\s!=,()]+)\s*")


def parse_selector(text: str) -> list[Requirement]:
    """The requirements of a `kubectl -l` selector, e.g. `app=web,tier in (a,b),!canary`. Raises InvalidSelector."""
    requirements: list[Requirement] = []
    position = 0
    while position < len(text.rstrip()):
        if found := _SET.match(text, position):
            operator = "In" if found[2] == "in" else "NotIn"
            requirements.append(
                Requirement(key=found[1], operator=operator, values=[v.strip() for v in found[3].split(",")])
            )
        elif found := _EQUALITY.match(text, position):
            requirements.append(
                Requirement(key=found[1], operator="NotIn" if found[2] == "!=" else "In", values=[found[3]])
            )
        elif found := _EXISTS.match(text, position):
            requirements.append(Requirement(key=found[2], operator="DoesNotExist" if found[1] else "Exists"))
        else:
            raise InvalidSelector(
                f"cannot parse the selector {text!r} at position {position}; write key=value, key in (a,b), key or !key"
            )
        position = found.end()
        if position < len(text) and text[position] != ",":
            raise InvalidSelector(
                f"cannot parse the selector {text!r} at position {position}; requirements are separated by commas"
            )
        position += 1
    return requirements


def matches_all(requirements: list[Requirement], labels: Labels) -> bool:
    return all(requirement.matches(labels) for requirement in requirements)


class NodeSelectorTerm(Struct):
    match_expressions: list[Requirement] = []
    match_fields: list[Requirement] = []

    def matches(self, name: str, labels: Labels) -> bool:
        """An empty term matches nothing (`v1.NodeSelectorTerm`); the only field is `metadata.name`."""
        if not self.match_expressions and not self.match_fields:
            return False
        return matches_all(self.match_expressions, labels) and matches_all(self.match_fields, {"metadata.name": name})


class NodeSelector(Struct):
    node_selector_terms: list[NodeSelectorTerm] = []

    def matches(self, name: str, labels: Labels) -> bool:
        return any(term.matches(name, labels) for term in self.node_selector_terms)
