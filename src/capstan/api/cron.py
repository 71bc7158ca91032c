"""Cron schedules: five fields or a macro, in a time zone; pure arithmetic on POSIX seconds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_DAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_HORIZON_DAYS = 366 * 5
_LOOK_BACK_DAYS = (1 / 24, 1, 32, 366, _HORIZON_DAYS)
"""Spans in which the last scheduled time is looked for, shortest first: few schedules need the long ones."""


class InvalidSchedule(ValueError):
    """A schedule that cannot be read; the message names the field."""


class Schedule:
    """`text` as in `*/15 9-17 * * mon-fri`. Raises InvalidSchedule, also for an unknown time zone."""

    def __init__(self, text: str, zone: str | None = None) -> None:
        fields = _MACROS.get(text.strip(), text).split()
        if len(fields) != 5:
            raise InvalidSchedule(f"schedule {text!r} has {len(fields)} fields; write minute hour day month weekday")
        try:
            self._zone = ZoneInfo(zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise InvalidSchedule(f"unknown time zone {zone!r}; write one such as Europe/Berlin") from error
        self._minutes = sorted(_field(fields[0], "minute", 0, 59))
        self._hours = sorted(_field(fields[1], "hour", 0, 23))
        self._days = _field(fields[2], "day", 1, 31)
        self._months = _field(fields[3], "month", 1, 12, _MONTHS)
        self._weekdays = {day % 7 for day in _field(fields[4], "weekday", 0, 7, _DAYS)}
        self._any_day, self._any_weekday = fields[2][0] in "*?", fields[4][0] in "*?"

    def latest(self, moment: float) -> float | None:
        """The last scheduled time at or before a moment; None when there is none within five years."""
        for days in _LOOK_BACK_DAYS:
            found = None
            for time in self.times_after(moment - days * 86_400):
                if time > moment:
                    break
                found = time
            if found is not None:
                return found
        return None

    def _runs_on(self, day: date) -> bool:
        """Day and weekday both count if both are restricted: either is enough (cron(5))."""
        if day.month not in self._months:
            return False
        by_day, by_weekday = day.day in self._days, day.isoweekday() % 7 in self._weekdays
        if self._any_day or self._any_weekday:
            return by_day and by_weekday
        return by_day or by_weekday

    def times_after(self, moment: float) -> Iterator[float]:
        """The scheduled times after a moment, ascending; ends after five years without one."""
        day = datetime.fromtimestamp(moment, self._zone).date()
        for offset in range(_HORIZON_DAYS):
            current = day + timedelta(days=offset)
            if self._runs_on(current):
                # Sorted: where clocks are put back, local order is not the order of time.
                yield from sorted(time for time in self._times_of(current) if time > moment)

    def _times_of(self, day: date) -> Iterator[float]:
        for hour in self._hours:
            for minute in self._minutes:
                local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=self._zone)
                stamp = local.timestamp()
                # A local time that does not exist, because clocks are put forward, does not run.
                if datetime.fromtimestamp(stamp, self._zone).hour == hour:
                    yield stamp


def _field(text: str, name: str, low: int, high: int, names: dict[str, int] | None = None) -> set[int]:
    found: set[int] = set()
    for part in text.lower().split(","):
        span, _, step = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            every = int(step) if step else 1
            if span in ("*", "?"):
                start, end = low, high
            else:
                start = _number(first, names)
                end = _number(last, names) if dash else (high if step else start)
        except ValueError as error:
            raise InvalidSchedule(f"{name} {part!r} is not a number, a range or a step") from error
        if not (low <= start <= end <= high and every > 0):
            raise InvalidSchedule(f"{name} {part!r} is not within {low} to {high}")
        found.update(range(start, end + 1, every))
    return found


def _number(text: str, names: dict[str, int] | None) -> int:
    return names[text] if names and text in names else int(text)
