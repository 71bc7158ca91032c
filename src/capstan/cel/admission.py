"""`variables` of an admission policy: each expression is evaluated at most once, when it is first used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capstan.cel.program import Program


class Variables(dict[str, Any]):
    """The composed variables of one request, to be bound as `variables`; later ones may use earlier ones."""

    def __init__(self, programs: Mapping[str, Program], bindings: Mapping[str, Any]) -> None:
        super().__init__()
        self._programs = programs
        self._bindings = {**bindings, "variables": self}

    def __missing__(self, name: str) -> Any:
        value = self[name] = self._programs[name].evaluate(self._bindings)
        return value
