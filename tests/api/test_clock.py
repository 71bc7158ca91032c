"""Timestamps mean one moment wherever they are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.api import clock


@given(st.integers(0, 4_000_000_000))
def test_what_is_rendered_is_parsed(seconds: int) -> None:
    assert clock.parse(clock.render(seconds)) == seconds


def test_zones_are_counted_in() -> None:
    assert clock.parse("2026-05-01T14:00:00+02:00") == clock.parse("2026-05-01T12:00:00Z")


@pytest.mark.parametrize("text", ["2026-05-01T12:00:00", "2026-05-01", "soon"])
def test_a_time_without_a_zone_is_refused_and_not_taken_as_local(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        clock.parse(text)
