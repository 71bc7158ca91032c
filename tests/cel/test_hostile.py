"""Any text gives a program or a CompileError, any program a value or an EvaluationError; nothing blows up."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capstan import cel

STANDARD = cel.environments.standard()
DEVICE = cel.environments.device_selector((1, 36))
FIFTY = f"[{', '.join(['1'] * 50)}]"


def doubled(first: str, step: str, last: str, times: int = 40) -> str:
    """`cel.bind(a0, FIRST, cel.bind(a1, STEP of a0, ... LAST of the last))`"""
    opening = f"cel.bind(a0, {first}, " + "".join(
        f"cel.bind(a{number}, {step.replace('$', f'a{number - 1}')}, " for number in range(1, times)
    )
    return opening + last.replace("$", f"a{times - 1}") + ")" * times


def loops(depth: int) -> str:
    expression = "true"
    for level in range(depth):
        expression = f"{FIFTY}.all(x{level}, {expression})"
    return expression


REFUSED = {
    "nested parentheses": "(" * 5000 + "1" + ")" * 5000,
    "nested lists": "[" * 5000,
    "a long sum": "1" + "+1" * 5000,
    "a long selection": "a" + ".a" * 5000,
    "a long optional selection": "a" + ".?a" * 3000,
    "a long index": "a" + "[0]" * 3000,
    "nested calls": "size(" * 3000,
    "nested conditionals": "true?1:" * 3000 + "1",
    "nested maps": "{'a':" * 3000,
    "nested comprehensions": loops(6),
    "a huge integer": "1" * 9000,
    "a huge hexadecimal integer": "0x" + "f" * 9000,
    "an unclosed text": "'" + "\\" * 9001,
    "a huge range": "lists.range(9223372036854775807)",
    "squared ranges": "lists.range(100000).map(x, lists.range(100000))",
    "a shared tree compared": doubled(FIFTY, "[$, $]", "$ == $"),
    "a shared tree printed": doubled(FIFTY, "[$, $]", "'%s'.format([$])"),
    "a shared tree flattened": doubled(FIFTY, "[$, $]", "$.flatten(100)"),
    "text doubled forty times": doubled("'x'", "$ + $", "$"),
    "text doubled inside optionals": doubled("'x'", "optional.of($ + $).value()", "$"),
    "text doubled inside lists": doubled("'x'", "[$ + $].first().value()", "$"),
    "text doubled by formatting": doubled("'x'", "'%s%s'.format([$, $])", "$"),
    "text doubled inside a map": doubled("'x'", "{'k': $ + $}.k", "$"),
    "text doubled behind dyn": doubled("'x'", "dyn([$ + $])[0]", "$"),
    "a list doubled forty times": doubled(FIFTY, "$ + $", "$"),
    "joined forty times": doubled("'x'", "[$, $].join($)", "$"),
}


@pytest.mark.parametrize("expression", REFUSED.values(), ids=REFUSED.keys())
def test_a_hostile_expression_is_refused_before_it_runs(expression: str) -> None:
    with pytest.raises(cel.CompileError):
        cel.compile(expression, STANDARD)


@pytest.mark.parametrize("elements", [["[" * 40 + "]" * 40] * 120, ["[]"] * 3000], ids=["deep", "many"])
def test_empty_lists_of_yet_unknown_type_have_one_common_type(elements: list[str]) -> None:
    """The type of an empty list is a variable; thousands of them, nested, are unified and resolved."""
    assert len(cel.compile(f"[{', '.join(elements)}]", STANDARD).evaluate({})) == len(elements)


FAILING = {
    "a regular expression too big": "'a'.matches('((a{100}){100}){100}')",
    "a huge precision": "'%.999999999f'.format([1.0])",
    "a huge quantity": f"quantity('{'9' * 9000}')",
    "a huge version": f"semver('1.2.{'3' * 9000}')",
    "a long duration": f"duration('{'1h' * 3000}')",
    "text that is no integer": f"int('{'9' * 9000}')",
}


@pytest.mark.parametrize("expression", FAILING.values(), ids=FAILING.keys())
def test_a_hostile_argument_is_an_error(expression: str) -> None:
    with pytest.raises(cel.EvaluationError):
        cel.compile(expression, STANDARD).evaluate({})


def test_data_of_unknown_size_is_metered() -> None:
    environment = cel.environments.admission()
    program = cel.compile("object.items.all(x, object.items.all(y, x != y || true))", environment)
    assert program.evaluate({"object": {"items": list(range(10))}}) is True
    with pytest.raises(cel.CostExceeded):
        program.evaluate({"object": {"items": list(range(2000))}})


def test_an_exhausted_budget_is_not_absorbed() -> None:
    environment = cel.environments.admission()
    program = cel.compile("object.items.all(x, !object.items.exists(y, x < y)) || true", environment)
    with pytest.raises(cel.CostExceeded):
        program.evaluate({"object": {"items": [1] * 3000}})


def test_a_catastrophic_pattern_takes_linear_time() -> None:
    assert cel.compile(f"'{'a' * 5000}'.matches('(a*)*b')", STANDARD).evaluate({}) is False


def test_a_selector_longer_than_ten_kibibytes_is_refused() -> None:
    with pytest.raises(cel.CompileError, match="Too long"):
        cel.compile(f"true // {'x' * 10_240}", DEVICE)


PIECES = st.sampled_from(
    """( ) [ ] { } . , ? : ! - + * / % < > <= >= == != && || in true false null 1 2u 0x1F 1.5 'a' b'c' r'e' a b c device
    has size all exists map filter cel.bind optional.of .? [? {? // \\ ' " ` dyn type""".split()  # noqa: SIM905
)


@settings(deadline=None, max_examples=1500)
@given(
    st.one_of(
        st.text(max_size=60), st.lists(PIECES, max_size=25).map(" ".join), st.lists(PIECES, max_size=25).map("".join)
    )
)
@example("`a`.b")
@example("a.`b-c`")
@example("{?a: 1}")
@example("A{b: 1}.c")
@example("..a")
def test_any_text_is_a_program_or_a_compile_error(text: str) -> None:
    for environment in (STANDARD, DEVICE):
        try:
            program = cel.compile(text, environment)
        except cel.CompileError as error:
            assert error.line >= 1 and error.column >= 1
            continue
        try:
            program.evaluate({"device": {}})
        except cel.EvaluationError:
            continue
