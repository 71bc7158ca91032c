"""Any text gives a program or a CompileError, any program a value or an EvaluationError; nothing blows up."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.cel.hostile import ANSWERED, FAILING, REFUSED

from capstan import cel

STANDARD = cel.environments.standard()
DEVICE = cel.environments.device_selector((1, 36))


@pytest.mark.parametrize("expression", REFUSED.values(), ids=REFUSED.keys())
def test_a_hostile_expression_is_refused_before_it_runs(expression: str) -> None:
    with pytest.raises(cel.CompileError):
        cel.compile(expression, STANDARD)


@pytest.mark.parametrize("elements", [["[" * 40 + "]" * 40] * 60, ["[]"] * 1600], ids=["deep", "many"])
def test_empty_lists_of_yet_unknown_type_have_one_common_type(elements: list[str]) -> None:
    """The type of an empty list is a variable; thousands of them, nested, are unified and resolved."""
    assert len(cel.compile(f"[{', '.join(elements)}]", STANDARD).evaluate({})) == len(elements)


@pytest.mark.parametrize("expression", FAILING.values(), ids=FAILING.keys())
def test_a_hostile_argument_is_an_error(expression: str) -> None:
    with pytest.raises(cel.EvaluationError):
        cel.compile(expression, STANDARD).evaluate({})


@pytest.mark.parametrize("expression", ANSWERED.values(), ids=ANSWERED.keys())
def test_what_only_looks_hostile_has_a_value(expression: str) -> None:
    assert cel.compile(expression, STANDARD).evaluate({}) is not None


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
