"""`--feature-gates`, as Kubernetes' components take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click

from capstan.api.feature_gates import FeatureGates, InvalidFeatureGates, parse

P = ParamSpec("P")
R = TypeVar("R")


class _Gates(click.ParamType[FeatureGates]):
    name = "NAME=BOOL,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> FeatureGates:
        if isinstance(value, FeatureGates):
            return value
        try:
            return parse(str(value))
        except InvalidFeatureGates as error:
            self.fail(str(error), param, ctx)


def feature_gates_option(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    return click.option(
        "--feature-gates",
        "gates",
        type=_Gates(),
        default=FeatureGates(),
        help=f"{what} docs/feature-gates.md lists them.",
    )
