"""The corpus: one expression a line in `corpus.txt`, with its result or its error."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import pytest

from capstan import cel
from capstan.cel.cost import Meter

LINES = (Path(__file__).parent / "corpus.txt").read_text(encoding="utf-8").splitlines()
CASES = [tuple(line.rsplit(" -> ", 1)) for line in LINES if line and not line.startswith("#")]


def literal(text: str) -> Any:
    return float(text) if text in ("inf", "-inf") else ast.literal_eval(text)


@pytest.mark.parametrize(("expression", "expected"), CASES, ids=[case[0] for case in CASES])
def test_the_expression_gives_what_the_corpus_says(expression: str, expected: str) -> None:
    environment = cel.environments.standard()
    if expected.startswith("refused: "):
        with pytest.raises(cel.CompileError) as refused:
            cel.compile(expression, environment)
        assert expected.removeprefix("refused: ") in str(refused.value)
        return
    program = cel.compile(expression, environment)
    if expected.startswith("error: "):
        with pytest.raises(cel.EvaluationError) as failed:
            program.evaluate({})
        assert expected.removeprefix("error: ") in str(failed.value)
        return
    result = program.evaluate({})
    wanted = literal(expected)
    assert result == wanted
    assert isinstance(result, type(wanted)), f"{result!r} is no {type(wanted).__name__}"
    meter = Meter(1_000_000)
    exact = program.evaluate_exactly({}, meter)
    assert meter.spent <= program.estimate.high
    assert exact == result or (math.isnan(exact) and math.isnan(result)), "the fast and the exact form disagree"
