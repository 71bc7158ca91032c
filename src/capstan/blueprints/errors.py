"""Problems of blueprints. They are collected, so that one lint names all of them, and raised together."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong: where (file, object, path), what, and what to do about it."""

    file: str
    object: str
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.object, self.path) if part)
        return f"{where}: {self.message}" + (f"; {self.hint}" if self.hint else "")


class BlueprintError(Exception):
    """A blueprint cannot be used. `problems` has at least one entry."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))
