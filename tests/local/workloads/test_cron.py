"""CronJobs: times by cron(5), each started once."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan.api import clock
from capstan.local.workloads.cron import InvalidSchedule, Schedule

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
    with pytest.raises(InvalidSchedule, match="time zone"):
        Schedule("* * * * *", "Middle/Earth")


@given(
    st.floats(0, 4e9),
    st.sampled_from(["*/7 * * * *", "13 4 * * 2", "0 0 1,15 * *"]),
    st.sampled_from(["UTC", "America/New_York"]),
)
def test_times_ascend_and_lie_after_the_moment(moment: float, text: str, zone: str) -> None:
    found = list(islice(Schedule(text, zone).times_after(moment), 20))
    assert found == sorted(set(found)) and found[0] > moment
    assert all(time % 60 == 0 for time in found)


async def every_minute(house: Any, template: Any, **spec: Any) -> None:
    job = {"spec": {"template": template(restartPolicy="Never", labels={"work": "w"})}}
    await house.create("CronJob", "tick", spec={"schedule": "* * * * *", "jobTemplate": job, **spec})


async def minute(house: Any) -> None:
    house.skip(60)
    await house.patch("CronJob", "tick", {"metadata": {"labels": {"poke": str(int(house.now()))}}})


async def jobs(house: Any, count: int) -> list[str]:
    async def there() -> list[str]:
        names: list[str] = await house.names("Job")
        return names if len(names) == count else []

    found: list[str] = await house.until(there)
    return found


@pytest.mark.anyio
async def test_each_time_starts_one_job(house: Any, template: Any) -> None:
    house.running = False
    await every_minute(house, template)
    await minute(house)
    [first] = await jobs(house, 1)
    assert first.startswith("tick-") and first[5:].isdigit()
    await minute(house)
    await jobs(house, 2)

    async def told() -> bool:
        status = (await house.get("CronJob", "tick"))["status"]
        return len(status.get("active", [])) == 2 and status["lastScheduleTime"].endswith(":00Z")

    await house.until(told)


@pytest.mark.anyio
async def test_forbid_waits_for_the_running_job(house: Any, template: Any) -> None:
    house.running = False
    await every_minute(house, template, concurrencyPolicy="Forbid")
    await minute(house)
    await jobs(house, 1)
    await house.until(lambda: house.created)
    await minute(house)
    await house.set_phase(house.created[0], "Succeeded")
    await jobs(house, 2)


@pytest.mark.anyio
async def test_finished_jobs_are_kept_up_to_the_limit(house: Any, template: Any) -> None:
    await every_minute(house, template, successfulJobsHistoryLimit=1)
    for number in range(3):
        await minute(house)
        await house.until(lambda number=number: len(house.created) == number + 1)
        await house.until(
            lambda number=number: house.pods.get(house.created[number], "default").status.phase == "Running"
        )
        await house.set_phase(house.created[number], "Succeeded")

    async def one_left() -> bool:
        found = await house.get("CronJob", "tick")
        return (
            len(await house.names("Job")) == 1
            and "lastSuccessfulTime" in found["status"]
            and "active" not in found["status"]
        )

    await house.until(one_left)
