"""Lists, sets, regular-expression searches and encodings: the extensions over collections and text that Kubernetes
enables."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from functools import reduce
from itertools import islice, pairwise
from typing import Any, Final

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Function, Library
from capstan.cel.loops import sort_pairs
from capstan.cel.operators import OPERATORS
from capstan.cel.standard import regex
from capstan.cel.values import NONE, NUMBERS, Duration, Optional, Uint, contains, equal, greater, less

KUBERNETES_LISTS: Final = Library("kubernetes lists")
LISTS: Final = Library("lists")
SETS: Final = Library("sets")
REGEX: Final = Library("regex")
REGEX_EXTENSION: Final = Library("regex extension")
ENCODERS: Final = Library("encoders")
INCLUDES: Final = Library("includes")

MAX_RANGE: Final = 100_000
_COMPARABLE: Final = ("int", "uint", "double", "bool", "duration", "timestamp", "string", "bytes")
_REFERENCE = re.compile(r"\\(.?)", re.DOTALL)

add: Final = Function("_+_", [overload for name, overload in OPERATORS.declared if name == "_+_"])


def _each(signature: str, kinds: Iterable[str] = _COMPARABLE) -> list[str]:
    """A signature for each type of elements."""
    return [signature.replace("T", kind) for kind in kinds]


@KUBERNETES_LISTS.declare(*_each("<list(T)>.isSorted() -> bool"))
def is_sorted(values: list[Any]) -> bool:
    return all(not greater(left, right) for left, right in pairwise(values))


def _summed(zero: Any) -> Callable[[list[Any]], Any]:
    def total(values: list[Any]) -> Any:
        return reduce(add, values) if values else zero

    return total


for _kind, _zero in (("int", 0), ("uint", Uint(0)), ("double", 0.0), ("duration", Duration(0))):
    KUBERNETES_LISTS.declare(f"<list({_kind})>.sum() -> {_kind}")(_summed(_zero))


@KUBERNETES_LISTS.declare(*_each("<list(T)>.min() -> T"))
def minimum(values: list[Any]) -> Any:
    if not values:
        raise EvaluationError("min called on empty list")
    result = values[0]
    for value in values[1:]:
        result = value if less(value, result) else result
    return result


@KUBERNETES_LISTS.declare(*_each("<list(T)>.max() -> T"))
def maximum(values: list[Any]) -> Any:
    if not values:
        raise EvaluationError("max called on empty list")
    result = values[0]
    for value in values[1:]:
        result = value if greater(value, result) else result
    return result


@KUBERNETES_LISTS.declare("<list(A)>.indexOf(A) -> int")
def index_of(values: list[Any], wanted: object) -> int:
    return next((position for position, value in enumerate(values) if equal(value, wanted)), -1)


@KUBERNETES_LISTS.declare("<list(A)>.lastIndexOf(A) -> int")
def last_index_of(values: list[Any], wanted: object) -> int:
    return next((position for position in range(len(values) - 1, -1, -1) if equal(values[position], wanted)), -1)


@LISTS.declare("<list(A)>.slice(int, int) -> list(A)")
def slice_(values: list[Any], start: int, end: int) -> list[Any]:
    if start < 0 or end < 0:
        raise EvaluationError(f"cannot slice({start}, {end}), negative indexes not supported")
    if start > end:
        raise EvaluationError(f"cannot slice({start}, {end}), start index must be less than or equal to end index")
    if end > len(values):
        raise EvaluationError(f"cannot slice({start}, {end}), list is length {len(values)}")
    return values[start:end]


@LISTS.declare("<list(list(A))>.flatten() -> list(A)")
def flatten(values: list[Any]) -> list[Any]:
    return flatten_to(values, 1)


@LISTS.declare("<list(dyn)>.flatten(int) -> list(dyn)")
def flatten_to(values: list[Any], depth: int) -> list[Any]:
    """Opens lists inside the list, `depth` levels of them."""
    if depth < 0:
        raise EvaluationError("level must be non-negative")
    for _ in range(depth):
        if not any(isinstance(value, (list, tuple)) for value in values):
            break
        values = [item for value in values for item in (value if isinstance(value, (list, tuple)) else (value,))]
    return values


@LISTS.declare("<list(A)>.distinct() -> list(A)")
def distinct(values: list[Any]) -> list[Any]:
    result: list[Any] = []
    for value in values:
        if not contains(value, result):
            result.append(value)
    return result


@LISTS.declare("<list(A)>.reverse() -> list(A)")
def reverse(values: list[Any]) -> list[Any]:
    return list(values[::-1])


@LISTS.declare(*_each("<list(T)>.sort() -> list(T)"))
def sort(values: list[Any]) -> list[Any]:
    return [value for value, _ in sort_pairs([(value, None) for value in values])]


@LISTS.declare("<list(A)>.first() -> optional(A)")
def first(values: list[Any]) -> Optional:
    return Optional(values[0]) if values else NONE


@LISTS.declare("<list(A)>.last() -> optional(A)")
def last(values: list[Any]) -> Optional:
    return Optional(values[-1]) if values else NONE


@LISTS.declare("lists.range(int) -> list(int)")
def range_(count: int) -> list[int]:
    if not 0 <= count <= MAX_RANGE:
        raise EvaluationError(f"lists.range({count}) is not between 0 and {MAX_RANGE} elements")
    return list(range(count))


@SETS.declare("sets.contains(list(A), list(A)) -> bool")
def sets_contains(values: list[Any], wanted: list[Any]) -> bool:
    kinds = set(map(type, values)) | set(map(type, wanted))
    if kinds == {str} or kinds <= NUMBERS:
        return set(wanted) <= set(values)
    return all(contains(each, values) for each in wanted)


@SETS.declare("sets.equivalent(list(A), list(A)) -> bool")
def sets_equivalent(left: list[Any], right: list[Any]) -> bool:
    return sets_contains(left, right) and sets_contains(right, left)


@SETS.declare("sets.intersects(list(A), list(A)) -> bool")
def sets_intersects(left: list[Any], right: list[Any]) -> bool:
    return any(contains(each, right) for each in left)


@REGEX.declare("<string>.find(string) -> string")
def find(text: str, pattern: str) -> str:
    """The first match; empty when there is none."""
    match = regex(pattern).search(text)
    return match.group() if match else ""


@REGEX.declare("<string>.findAll(string) -> list(string)", "<string>.findAll(string, int) -> list(string)")
def find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    """All matches in turn; an empty one right behind another is none (as in Go)."""
    found: list[str] = []
    last = -1
    for match in regex(pattern).finditer(text):
        if 0 <= limit <= len(found):
            break
        if match.end() > last:
            found.append(match.group())
        last = match.end()
    return found


@REGEX_EXTENSION.declare("regex.extract(string, string) -> optional(string)")
def extract(text: str, pattern: str) -> Optional:
    """The first match, or what its only group captured."""
    found = extract_all(text, pattern, 1)
    return Optional(found[0]) if found else NONE


@REGEX_EXTENSION.declare("regex.extractAll(string, string) -> list(string)")
def extract_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    """All matches, or what their only group captured; matches without a capture are left out."""
    compiled = regex(pattern)
    if compiled.groups > 1:
        raise EvaluationError(f"regular expression has more than one capturing group: {pattern[:200]!r}")
    captured = (match.group(compiled.groups) for match in compiled.finditer(text))
    return list(islice((part for part in captured if part is not None), limit if limit >= 0 else None))


@REGEX_EXTENSION.declare(
    "regex.replace(string, string, string) -> string", "regex.replace(string, string, string, int) -> string"
)
def regex_replace(text: str, pattern: str, replacement: str, limit: int = -1) -> str:
    """`\\1` to `\\9` in the replacement are the groups of the match, `\\0` is all of it, `\\\\` a backslash."""
    compiled = regex(pattern)
    pieces = _REFERENCE.split(replacement)  # text, reference, text, ...
    for reference in pieces[1::2]:
        if reference != "\\" and not (reference.isdecimal() and int(reference) <= compiled.groups):
            raise EvaluationError(f"invalid replacement string: \\{reference} names no group of {pattern[:200]!r}")
    result: list[str] = []
    last = 0
    for match in islice(compiled.finditer(text), limit if limit >= 0 else None):
        result.append(text[last : match.start()])
        for position, piece in enumerate(pieces):
            result.append((match.group(int(piece)) or "") if position % 2 and piece != "\\" else piece)
        last = match.end()
    return "".join([*result, text[last:]])


@ENCODERS.declare("base64.encode(bytes) -> string")
def base64_encode(value: bytes) -> str:
    return base64.b64encode(value).decode()


@ENCODERS.declare("base64.decode(string) -> bytes")
def base64_decode(text: str) -> bytes:
    """Standard alphabet; the padding may be missing."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise EvaluationError(f"illegal base64 data: {error}") from None


@INCLUDES.declare("<dyn>.includes(dyn) -> bool")
def includes(attribute: Any, value: Any) -> bool:
    """Membership in a list attribute, equality with a scalar one (KEP-5491)."""
    return contains(value, attribute) if isinstance(attribute, (list, tuple)) else equal(attribute, value)
