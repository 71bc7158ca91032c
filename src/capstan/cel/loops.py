"""The comprehension macros as functions over a container and a body; `&&`, `||` with error absorption.

A loop with two variables passes (index, element) or (key, value). `all` and `exists` go on after an error in the hope
of an element that decides the matter, as the language demands; an exhausted budget is never absorbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter
from typing import Any

from capstan.cel.errors import CostExceeded, EvaluationError, UnknownValue
from capstan.cel.values import ORDERED, as_bool, build_map, elements, pairs

Thunk = Callable[[], Any]
Body = Callable[..., Any]


def _remaining(failed: Exception | None, error: Exception) -> Exception:
    """Of several failures the first counts, but what is unknown might have decided the matter."""
    return error if failed is None or isinstance(error, UnknownValue) else failed


def decide(outcomes: Iterable[Thunk], decisive: bool) -> bool:
    """The first outcome equal to `decisive` wins; else an unknown or the first error is raised; else it is the opposite
    of `decisive`."""
    failed: Exception | None = None
    for outcome in outcomes:
        try:
            if as_bool(outcome()) is decisive:
                return decisive
        except CostExceeded:
            raise
        except Exception as error:
            failed = _remaining(failed, error)
    if failed is not None:
        raise failed
    return not decisive


def all_of(*operands: Thunk) -> bool:
    return decide(operands, False)


def any_of(*operands: Thunk) -> bool:
    return decide(operands, True)


def all_elements(container: Any, body: Body) -> bool:
    failed: Exception | None = None
    for element in elements(container):
        try:
            value = body(element)
            if value is False:
                return False
            if value is not True:
                as_bool(value)
        except CostExceeded:
            raise
        except Exception as error:
            failed = _remaining(failed, error)
    if failed is not None:
        raise failed
    return True


def any_element(container: Any, body: Body) -> bool:
    failed: Exception | None = None
    for element in elements(container):
        try:
            value = body(element)
            if value is True:
                return True
            if value is not False:
                as_bool(value)
        except CostExceeded:
            raise
        except Exception as error:
            failed = _remaining(failed, error)
    if failed is not None:
        raise failed
    return False


def one_element(container: Any, body: Body) -> bool:
    """No short cut: every element is looked at, and any error is final."""
    return sum([as_bool(body(element)) for element in elements(container)]) == 1


def all_pairs(container: Any, body: Body) -> bool:
    return decide((partial(body, *pair) for pair in pairs(container)), False)


def any_pair(container: Any, body: Body) -> bool:
    return decide((partial(body, *pair) for pair in pairs(container)), True)


def one_pair(container: Any, body: Body) -> bool:
    return sum([as_bool(body(*pair)) for pair in pairs(container)]) == 1


def filter_elements(container: Any, condition: Body) -> list[Any]:
    return [element for element in elements(container) if as_bool(condition(element))]


def map_elements(container: Any, body: Body, condition: Body | None = None) -> list[Any]:
    if condition is None:
        return [body(element) for element in elements(container)]
    return [body(element) for element in elements(container) if as_bool(condition(element))]


def transform_list(container: Any, body: Body, condition: Body | None = None) -> list[Any]:
    return [body(*pair) for pair in pairs(container) if condition is None or as_bool(condition(*pair))]


def transform_map(container: Any, body: Body, condition: Body | None = None) -> dict[Any, Any]:
    chosen = (pair for pair in pairs(container) if condition is None or as_bool(condition(*pair)))
    return build_map(*((pair[0], body(*pair)) for pair in chosen))


def transform_map_entry(container: Any, body: Body, condition: Body | None = None) -> dict[Any, Any]:
    """Each body gives a map of entries to add; a key may come once."""
    entries: list[tuple[Any, Any]] = []
    for pair in pairs(container):
        if condition is None or as_bool(condition(*pair)):
            added = body(*pair)
            if not isinstance(added, dict):
                raise EvaluationError("no such overload: transformMapEntry needs a map")
            entries += added.items()
    return build_map(*entries)


def sort_by(container: Any, key: Body) -> list[Any]:
    found = list(elements(container))
    return [element for _, element in sort_pairs([(key(element), element) for element in found])]


def sort_pairs(keyed: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Pairs sorted by their first parts, which are all of one of the ordered types; equal ones stay in their order."""
    kinds = {type(key) for key, _ in keyed}
    if len(kinds) > 1:
        raise EvaluationError("list elements must have the same type")
    if not kinds <= ORDERED:
        raise EvaluationError("list elements must be comparable")
    return sorted(keyed, key=itemgetter(0))
