"""CronJobs: times by cron(5), each started once."""

from __future__ import annotations

from typing import Any

import pytest


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
