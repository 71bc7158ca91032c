"""Source text to program: parse, check, estimate, generate. Programs are cached by their source and environment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any

from capstan.cel.checker import check
from capstan.cel.codegen import Generated, generate
from capstan.cel.cost import Meter, body_cost
from capstan.cel.environments import Environment
from capstan.cel.errors import CelError, CompileError, CostExceeded, EvaluationError, Issue
from capstan.cel.estimates import Range, estimate
from capstan.cel.parser import parse
from capstan.cel.syntax import Ident, Node, Select, children
from capstan.cel.types import DYN, Type


class Program:
    """A compiled expression.

    `result` is its static type, `estimate` the bounds of its cost, `source` the Python it became.
    """

    def __init__(self, expression: str, environment: Environment, tree: Node, cost: Range) -> None:
        self.expression = expression
        self.environment = environment
        self.tree = tree
        self.result: Type = tree.type
        self.estimate = cost
        self._fixed_cost = body_cost(tree)
        # What cannot exceed the budget need not be metered.
        self._metered = cost.high > environment.cost_limit
        self._fast = generate(tree, environment, exact=False, metered=self._metered)
        self._function = self._fast.function

    @property
    def source(self) -> str:
        """The Python source that runs first, the fast form."""
        return self._fast.source

    @cached_property
    def _exact(self) -> Generated:
        return generate(self.tree, self.environment, exact=True, metered=True)

    @cached_property
    def names(self) -> frozenset[str]:
        """The variables of the environment that the expression mentions."""
        return frozenset(_free_names(self.tree)) & frozenset(self.environment.variables)

    def evaluate(self, bindings: Mapping[str, Any]) -> Any:
        """The value for these variables. Raises EvaluationError, CostExceeded when the budget is used up."""
        try:
            if not self._metered:
                return self._function(bindings)
            meter = Meter(self.environment.cost_limit)
            meter.charge(self._fixed_cost)
            return self._function(bindings, meter)
        except CostExceeded:
            raise
        except Exception:
            pass  # whatever it was, the exact form finds out; it starts over with the whole budget
        return self.evaluate_exactly(bindings, Meter(self.environment.cost_limit))

    def evaluate_exactly(self, bindings: Mapping[str, Any], meter: Meter) -> Any:
        """The value, with everything it costs charged to the meter."""
        meter.charge(self._fixed_cost)
        try:
            return self._exact.function(bindings, meter)
        except CelError:
            raise
        except KeyError as error:
            raise EvaluationError(f"no such attribute(s): {error.args[0]}") from error
        except RecursionError:
            raise EvaluationError("the values nest too deeply") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise EvaluationError(f"a value is not of its declared type: {error}") from error

    def __repr__(self) -> str:
        return f"Program({self.expression!r})"


def _free_names(node: Node) -> Iterator[str]:
    if isinstance(node, Select) and node.resolved is not None:
        node = node.resolved
    if isinstance(node, Ident):
        yield node.name
    for child in children(node):
        yield from _free_names(child)


@lru_cache(maxsize=2048)
def compile(expression: str, environment: Environment) -> Program:
    """Compile an expression. Raises CompileError with line and column of what is wrong."""
    if environment.max_bytes is not None and len(expression.encode()) > environment.max_bytes:
        raise CompileError(expression, [Issue(0, f"Too long: may not be more than {environment.max_bytes} bytes")])
    tree = parse(expression, macros=environment.macros)
    result = check(expression, tree, environment)
    accepted = environment.results
    if accepted and result not in accepted:
        wanted = ", ".join(str(one) for one in accepted if one != DYN)
        raise CompileError(expression, [Issue(0, f"must evaluate to {wanted} or the unknown type, not {result}")])
    # Of what was not checked nothing is known: calls may not even have the arguments that their functions take.
    cost = estimate(tree, environment) if environment.checked else Range(0, math.inf)
    limit = environment.estimate_limit
    if limit is None and cost.high < math.inf:
        limit = 10 * environment.cost_limit  # the text alone costs this much, whatever the input
    if limit is not None and cost.high > limit:
        message = f"too complex, exceeds cost limit: estimated cost {cost.high:.0f} of at most {limit:.0f}"
        raise CompileError(expression, [Issue(0, message)])
    return Program(expression, environment, tree, cost)
