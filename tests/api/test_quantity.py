from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.api import quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", Decimal("0.1")),
        ("1.5Gi", Decimal(1610612736)),
        ("2e3", Decimal(2000)),
        ("-3k", Decimal(-3000)),
        (".5", Decimal("0.5")),
        ("1E", Decimal(10) ** 18),
        ("0.1n", Decimal("1e-9")),
        (7, Decimal(7)),
        (0.5, Decimal("0.5")),
        (None, Decimal(0)),
    ],
)
def test_a_quantity_is_exact_and_rounds_up_below_a_nano(text, value):
    assert quantity.parse(text) == value


@pytest.mark.parametrize(
    "text", ["", "1.5 Gi", "Gi", "1K", "0x10", "1e", "nan", float("nan"), float("inf"), True, "1" * 100]
)
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(quantity.InvalidQuantity, match="is not a quantity"):
        quantity.parse(text)


def test_whole_and_milli_round_up():
    assert quantity.whole("1500m") == 2
    assert quantity.milli("0.0001") == 1


@given(st.integers(-(10**18), 10**18), st.integers(0, 9))
def test_rendering_is_parsed_back_to_the_same_value(number, decimals):
    value = Decimal(number).scaleb(-decimals)
    assert quantity.parse(quantity.render(value)) == value
