"""Functions as they are declared: a CEL signature beside the Python function that implements it.

Implementations trust the types of their signature. The generator calls one directly where the static types leave no
choice, and a `Function` where only the values can tell, which picks the implementation by the types of its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from capstan.cel.types import Type, parse_type, split_arguments
from capstan.cel.values import is_instance, no_such_overload

Implementation = Callable[..., Any]
F = TypeVar("F", bound=Implementation)

_SIGNATURE = re.compile(r"(?:<(?P<receiver>[^>]+)>\.)?(?P<name>[^(]+)\((?P<params>.*)\) -> (?P<result>.+)")


@dataclass(frozen=True, slots=True, eq=False)
class Overload:
    """One signature; a method's receiver is its first parameter."""

    params: tuple[Type, ...]
    result: Type
    member: bool
    implementation: Implementation


class Function:
    """All overloads of one name with one call style, callable with values of any type."""

    __slots__ = ("__name__", "_chosen", "overloads")

    def __init__(self, name: str, overloads: list[Overload]) -> None:
        self.__name__ = name
        self.overloads = overloads
        self._chosen: dict[tuple[type, ...], Implementation] = {}

    def __call__(self, *args: Any) -> Any:
        kinds = tuple(map(type, args))
        implementation = self._chosen.get(kinds)
        if implementation is None:
            implementation = self._chosen[kinds] = self._choose(args)
        return implementation(*args)

    def _choose(self, args: tuple[object, ...]) -> Implementation:
        for overload in self.overloads:
            if len(overload.params) == len(args) and all(
                is_instance(arg, param.name) for arg, param in zip(args, overload.params, strict=True)
            ):
                return overload.implementation
        raise no_such_overload(self.__name__, *args)


class Library:
    """A named group of functions that environments switch on together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.declared: list[tuple[str, Overload]] = []

    def declare(self, *signatures: str) -> Callable[[F], F]:
        """Register a Python function under one or more signatures: `f(int) -> bool`, `<string>.f(int) -> bool`."""

        def register(implementation: F) -> F:
            for signature in signatures:
                match = _SIGNATURE.fullmatch(signature)
                if match is None:
                    raise ValueError(f"not a signature: {signature!r}")
                receiver, name, params, result = match.group("receiver", "name", "params", "result")
                types = [parse_type(text) for text in split_arguments(params)]
                if receiver is not None:
                    types.insert(0, parse_type(receiver))
                overload = Overload(tuple(types), parse_type(result), receiver is not None, implementation)
                self.declared.append((name, overload))
            return implementation

        return register


class Functions:
    """Every function of an environment, by name and call style."""

    def __init__(self, libraries: tuple[Library, ...]) -> None:
        grouped: dict[tuple[str, bool], list[Overload]] = {}
        for library in libraries:
            for name, overload in library.declared:
                grouped.setdefault((name, overload.member), []).append(overload)
        self._functions = {key: Function(key[0], overloads) for key, overloads in grouped.items()}
        self.namespaces = {name.rpartition(".")[0] for name, _ in self._functions if "." in name}

    def find(self, name: str, *, member: bool) -> Function | None:
        return self._functions.get((name, member))
