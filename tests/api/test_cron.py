"""Cron schedules: the times of cron(5), after and before a moment."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.api import clock
from capstan.api.cron import InvalidSchedule, Schedule

START = datetime(2026, 3, 27, 10, 7, 30, tzinfo=UTC).timestamp()  # a Friday


def times(text: str, zone: str | None = None, count: int = 3) -> list[str]:
    return [clock.render(time)[5:16] for time in islice(Schedule(text, zone).times_after(START), count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* * * * *", ["03-27T10:08", "03-27T10:09", "03-27T10:10"]),
        ("*/20 11 * * *", ["03-27T11:00", "03-27T11:20", "03-27T11:40"]),
        ("5,50 9-17/4 * * mon-fri", ["03-27T13:05", "03-27T13:50", "03-27T17:05"]),
        ("0 0 1 jan *", ["01-01T00:00"] * 3),
        ("0 0 31 * *", ["03-31T00:00", "05-31T00:00", "07-31T00:00"]),
        ("0 0 29 2 *", ["02-29T00:00"]),
        ("0 12 13 * 5", ["03-27T12:00", "04-03T12:00", "04-10T12:00"]),
        ("0 12 * * 7", ["03-29T12:00", "04-05T12:00", "04-12T12:00"]),
        ("@hourly", ["03-27T11:00", "03-27T12:00", "03-27T13:00"]),
    ],
)
def test_schedules(text: str, expected: list[str]) -> None:
    assert times(text, count=len(expected)) == expected


def test_a_time_zone_counts_and_a_skipped_hour_does_not_run() -> None:
    assert times("30 2 * * *", "Europe/Berlin") == ["03-28T01:30", "03-30T00:30", "03-31T00:30"]


@pytest.mark.parametrize("text", ["* * * *", "60 * * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "x * * * *", ""])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(InvalidSchedule):
        Schedule(text)
    for zone in ("Nowhere/Else", "Europe"):  # the second is a folder of zones
        with pytest.raises(InvalidSchedule, match="time zone"):
            Schedule("0 0 * * *", zone)


@given(
    st.floats(0, 4e9),
    st.sampled_from(["*/7 * * * *", "13 4 * * 2", "0 0 1,15 * *"]),
    st.sampled_from(["UTC", "America/New_York"]),
)
def test_times_ascend_and_lie_after_the_moment(moment: float, text: str, zone: str) -> None:
    found = list(islice(Schedule(text, zone).times_after(moment), 20))
    assert found == sorted(set(found)) and found[0] > moment
    assert all(time % 60 == 0 for time in found)
    assert Schedule(text, zone).latest(found[-1]) == found[-1]
    assert Schedule(text, zone).latest(found[-1] - 0.5) == found[-2]


def test_a_schedule_without_times_has_no_latest_one() -> None:
    assert Schedule("0 0 30 2 *").latest(START) is None
    assert Schedule("0 0 29 2 *").latest(START) == datetime(2024, 2, 29, tzinfo=UTC).timestamp()
