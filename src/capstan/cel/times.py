"""Timestamps and durations: reading, writing, and the accessors with time zones."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.operators import checked_timestamp, long_duration
from capstan.cel.values import NANOS, Duration, Timestamp

TIMES: Final = Library("times")

_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,64}))?(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)
_DURATION = re.compile(r"([+-]?)((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": NANOS,
    "m": 60 * NANOS,
    "h": 3600 * NANOS,
}
_OFFSET = re.compile(r"([+-]?)([0-9]{1,2}):([0-9]{2})")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@TIMES.declare("timestamp(timestamp) -> timestamp")
def timestamp_from_timestamp(value: Timestamp) -> Timestamp:
    return value


@TIMES.declare("timestamp(int) -> timestamp")
def timestamp_from_int(seconds: int) -> Timestamp:
    return checked_timestamp(seconds * NANOS)


@TIMES.declare("timestamp(string) -> timestamp")
def timestamp_from_string(text: str) -> Timestamp:
    """RFC 3339, with any number of fraction digits of which nine count."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise EvaluationError(f"invalid timestamp: {text[:64]!r}")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        whole = datetime(year, month, day, hour, minute, second, tzinfo=UTC) - _EPOCH
    except ValueError as error:
        raise EvaluationError(f"invalid timestamp: {text[:64]!r}: {error}") from None
    seconds = whole.days * 86400 + whole.seconds
    fraction, sign, hours, minutes = match.groups()[6:]
    if sign:
        if int(hours) > 23 or int(minutes) > 59:
            raise EvaluationError(f"invalid timestamp: {text[:64]!r}")
        offset = int(hours) * 3600 + int(minutes) * 60
        seconds += offset if sign == "-" else -offset
    return checked_timestamp(seconds * NANOS + int(f"{fraction or '0':0<9}"[:9]))


@TIMES.declare("string(timestamp) -> string")
def string_from_timestamp(value: Timestamp) -> str:
    seconds, nanos = divmod(value.nanos, NANOS)
    moment = _EPOCH + timedelta(seconds=seconds)
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{moment.year:04d}-{moment:%m-%dT%H:%M:%S}{fraction}Z"


@TIMES.declare("duration(duration) -> duration")
def duration_from_duration(value: Duration) -> Duration:
    return value


@TIMES.declare("duration(string) -> duration")
def duration_from_string(text: str) -> Duration:
    """`1h30m`, `-1.5s`, `100ms`; a bare `0` needs no unit."""
    if text in ("0", "+0", "-0"):
        return Duration(0)
    match = _DURATION.fullmatch(text) if len(text) <= 256 else None
    if match is None:
        raise EvaluationError(f"invalid duration: {text[:64]!r}")
    total = 0
    for whole, fraction, unit in _DURATION_PART.findall(text):
        scale = _UNITS[unit]
        total += int(whole or 0) * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
    return long_duration(-total if match.group(1) == "-" else total)


@TIMES.declare("string(duration) -> string")
def string_from_duration(value: Duration) -> str:
    return str(value)


@lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo:
    match = _OFFSET.fullmatch(name)
    if match is not None:
        sign, hours, minutes = match.groups()
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        if offset >= timedelta(days=1):
            raise EvaluationError(f"invalid time zone offset: {name!r}")
        return timezone(-offset if sign == "-" else offset)
    try:
        return UTC if name in ("", "UTC") else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise EvaluationError(f"unknown time zone {name[:64]}") from None


def _accessor(name: str, read: Callable[[datetime], int]) -> None:
    @TIMES.declare(f"<timestamp>.{name}() -> int", f"<timestamp>.{name}(string) -> int")
    def access(value: Timestamp, zone: str = "UTC") -> int:
        moment = _EPOCH + timedelta(microseconds=value.nanos // 1000)
        try:
            return read(moment.astimezone(_zone(zone)))
        except OverflowError:  # year 0 or 10000 there: the calendar repeats every 400 years
            years = 400 if moment.year == 1 else -400
            found = read(moment.replace(year=moment.year + years).astimezone(_zone(zone)))
            return found - years if name == "getFullYear" else found

    access.__name__ = name


_accessor("getFullYear", lambda moment: moment.year)
_accessor("getMonth", lambda moment: moment.month - 1)
_accessor("getDate", lambda moment: moment.day)
_accessor("getDayOfMonth", lambda moment: moment.day - 1)
_accessor("getDayOfWeek", lambda moment: moment.isoweekday() % 7)
_accessor("getDayOfYear", lambda moment: moment.timetuple().tm_yday - 1)
_accessor("getHours", lambda moment: moment.hour)
_accessor("getMinutes", lambda moment: moment.minute)
_accessor("getSeconds", lambda moment: moment.second)
_accessor("getMilliseconds", lambda moment: moment.microsecond // 1000)


def _whole(nanos: int, unit: int) -> int:
    return nanos // unit if nanos >= 0 else -(-nanos // unit)


@TIMES.declare("<duration>.getHours() -> int")
def hours(value: Duration) -> int:
    return _whole(value.nanos, _UNITS["h"])


@TIMES.declare("<duration>.getMinutes() -> int")
def minutes(value: Duration) -> int:
    return _whole(value.nanos, _UNITS["m"])


@TIMES.declare("<duration>.getSeconds() -> int")
def seconds(value: Duration) -> int:
    return _whole(value.nanos, NANOS)


@TIMES.declare("<duration>.getMilliseconds() -> int")
def milliseconds(value: Duration) -> int:
    """The milliseconds of the last, unfinished second."""
    return (
        _whole(value.nanos, _UNITS["ms"]) % 1000 if value.nanos >= 0 else -(_whole(-value.nanos, _UNITS["ms"]) % 1000)
    )
