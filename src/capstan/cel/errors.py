"""The error tree of this room.

CelError
├── CompileError       the text is no valid expression of its environment; carries line and column
└── EvaluationError    the expression failed on these values (a CEL error: `&&`, `||`, `all`, `exists` may absorb it)
    ├── CostExceeded   the evaluation used up its budget; never absorbed
    └── UnknownValue   an input is not known; where it meets an error in `&&` or `||`, it is what remains
"""

from __future__ import annotations

from typing import NamedTuple


class Issue(NamedTuple):
    """One finding of the parser or the checker; `position` is an offset into the source, in code points."""

    position: int
    message: str


class CelError(Exception):
    """Something about a CEL expression."""


class CompileError(CelError):
    """The expression does not parse, does not type-check, or may cost more than its environment allows.

    `message`, `line` and `column` (both from 1) are those of the first issue; `str()` shows every issue with a marker
    under the place, in the form that users of Kubernetes know.
    """

    def __init__(self, source: str, issues: list[Issue]) -> None:
        self.source = source
        self.issues = sorted(issues)
        self.message = self.issues[0].message
        self.line, self.column = locate(source, self.issues[0].position)
        super().__init__("\n".join(_render(source, issue) for issue in self.issues[:10]))


class EvaluationError(CelError):
    """The expression has no value for these inputs."""


class CostExceeded(EvaluationError):
    """The evaluation was stopped because it used more than its budget of cost units."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"operation cancelled: actual cost limit exceeded ({limit} units)")
        self.limit = limit


class UnknownValue(EvaluationError):
    """The value depends on an input that is not known: bindings raise it where a name of theirs is looked up."""


def locate(source: str, position: int) -> tuple[int, int]:
    """Line and column, both from 1, of an offset into the source."""
    line_start = source.rfind("\n", 0, position) + 1
    return source.count("\n", 0, position) + 1, position - line_start + 1


def _render(source: str, issue: Issue) -> str:
    line, column = locate(source, issue.position)
    text = source.split("\n")[line - 1]
    if len(text) > 200:
        return f"ERROR: <input>:{line}:{column}: {issue.message}"
    return f"ERROR: <input>:{line}:{column}: {issue.message}\n | {text}\n | {'.' * (column - 1)}^"
