"""How much of the cluster each queue used of late, for time-decayed fair shares: KAI's usage query without Prometheus.

For every queue and resource

    usage(now) = integral of allocated(t) * 2^((t - now) / half_life) dt
               / integral of capacity(t)  * 2^((t - now) / half_life) dt        both over the window that contains `now`

The amounts are constant between two observations, so the integrals are exact. They are kept in slices, each decayed to
its own end; slices leave when the window has passed them, and the one that the start of a sliding window lies in counts
by the part that is inside. Time during which nobody looked (longer than `staleness`) counts on neither side.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, TypeVar

import msgspec

from capstan.api.cron import Schedule
from capstan.scheduling.world import World

K = TypeVar("K")
Key = tuple[str, str]
"""(queue, resource)"""
Shares = Mapping[str, Mapping[str, float]]
"""Queue -> resource -> part of the capacity that it used, 0 to 1."""

WEEK = 7 * 86_400.0
STALENESS = 300.0
MOST_NUMBERS = 180_000
"""Numbers kept in all slices together, 4 bytes each when written: ten thousand queues with three resources have six
slices. With more, neighbouring slices are joined, which makes the edge of a sliding window coarser and nothing else."""
_SLICES = 24
"""Of a sliding window."""
_LARGEST_STATE = 64 << 20


class Window(Protocol):
    """Which time counts."""

    def start(self, now: float) -> float:
        """The beginning of the window that contains `now`; never after it."""

    def cut(self, moment: float) -> float:
        """The first boundary of slices after a moment."""


@dataclass(frozen=True, slots=True)
class Sliding:
    """The last `size` seconds."""

    size: float = WEEK

    def start(self, now: float) -> float:
        return now - self.size

    def cut(self, moment: float) -> float:
        return _after(moment, 0.0, self.size / _SLICES)


@dataclass(frozen=True, slots=True)
class Tumbling:
    """Windows of `size` seconds one after another, the first of which begins at `origin`."""

    size: float = WEEK
    origin: float = 0.0

    def start(self, now: float) -> float:
        return min(now, _after(now, self.origin, self.size) - self.size) if now >= self.origin else now

    def cut(self, moment: float) -> float:
        return _after(moment, self.origin, self.size) if moment >= self.origin else self.origin


@dataclass(frozen=True, slots=True)
class Cron:
    """A window begins at every time of a cron schedule, in UTC. The schedule has to have times (`InvalidSchedule`)."""

    schedule: str

    def start(self, now: float) -> float:
        latest = _schedule(self.schedule).latest(now)
        return now if latest is None else latest

    def cut(self, moment: float) -> float:
        return next(_schedule(self.schedule).times_after(moment), moment + WEEK)


@lru_cache(64)
def _schedule(text: str) -> Schedule:
    return Schedule(text)


def _after(moment: float, origin: float, step: float) -> float:
    """The first point after a moment on the grid of a step."""
    number = math.floor((moment - origin) / step) + 1
    while origin + number * step <= moment:  # the division was rounded
        number += 1
    return origin + number * step


class CorruptUsage(ValueError):
    """Stored usage cannot be read; the message says what is wrong with it."""


@dataclass(slots=True)
class _Slice:
    """Integrals from `start` to `end`, decayed to `end`. Grows until `until`."""

    start: float
    end: float
    until: float
    capacity: dict[str, float] = field(default_factory=dict)
    held: dict[Key, float] = field(default_factory=dict)


class _State(msgspec.Struct):
    """As stored: `numbers` holds, per slice and then for the rates, capacities by resource and amounts by key."""

    version: int
    at: float
    resources: list[str]
    keys: list[tuple[str, int]]
    slices: list[tuple[float, float, float]]
    numbers: bytes


class Usage:
    """Accumulates what queues hold. `half_life` 0 is no decay; all times in seconds."""

    def __init__(self, window: Window | None = None, *, half_life: float = 0.0, staleness: float = STALENESS) -> None:
        self.window: Window = window or Sliding()
        self.half_life, self.staleness = half_life, staleness
        self._slices: list[_Slice] = []
        self._at: float | None = None
        self._capacity: dict[str, float] = {}
        self._held: dict[Key, float] = {}

    def observe(self, now: float, held: Mapping[Key, float], capacity: Mapping[str, float]) -> None:
        """From `now` on queues hold these amounts of this capacity. Zero amounts need not be named."""
        if self._at is not None:
            if now < self._at:
                self.shift_clock(now - self._at)
            elif now - self._at <= self.staleness:
                self._integrate(self._at, now)
        self._at = now
        self._held = {key: float(amount) for key, amount in held.items() if amount > 0}
        self._capacity = {name: float(amount) for name, amount in capacity.items() if amount > 0}
        start = self.window.start(now)
        self._slices = [piece for piece in self._slices if piece.end > start]

    def shift_clock(self, seconds: float) -> None:
        """The clock was set forward by so much: everything stays as old as it was."""
        if self._at is not None:
            self._at += seconds
        for piece in self._slices:
            piece.start += seconds
            piece.end += seconds
            piece.until += seconds

    def shares(self) -> dict[str, dict[str, float]]:
        """What the queues used until the last observation. Queues that used nothing are left out."""
        if self._at is None or not self._slices:
            return {}
        start, newest = self.window.start(self._at), self._slices[-1].end
        capacity: dict[str, float] = {}
        held: dict[Key, float] = {}
        for piece in self._slices:
            # Both sides fade alike from the newest slice on, so that part is left out: it could only underflow.
            factor = self._fade(newest - piece.end) * self._part_since(piece, start)
            for name, amount in piece.capacity.items():
                capacity[name] = capacity.get(name, 0.0) + amount * factor
            for key, amount in piece.held.items():
                held[key] = held.get(key, 0.0) + amount * factor
        found: dict[str, dict[str, float]] = {}
        for (queue, name), amount in held.items():
            whole = capacity.get(name, 0.0)
            if amount > 0:
                found.setdefault(queue, {})[name] = min(1.0, amount / whole) if whole > 0 else 1.0
        return found

    # -- integrals ---------------------------------------------------------------------------------------------------

    def _integrate(self, begin: float, end: float) -> None:
        begin = max(begin, self.window.start(end))
        while begin < end:
            piece = self._slice_at(begin)
            stop = min(end, piece.until)
            faded, gained = self._fade(stop - piece.end), self._gained(stop - begin)
            _accumulate(piece.capacity, self._capacity, faded, gained)
            _accumulate(piece.held, self._held, faded, gained)
            piece.end = begin = stop

    def _slice_at(self, moment: float) -> _Slice:
        if not self._slices or self._slices[-1].until <= moment:
            self._slices.append(_Slice(moment, moment, self.window.cut(moment)))
            while sum(len(piece.held) for piece in self._slices) > MOST_NUMBERS and len(self._slices) > 2:
                self._join()
        return self._slices[-1]

    def _join(self) -> None:
        """Make one of every two slices, but for the newest."""
        *older, newest = self._slices
        joined: list[_Slice] = []
        for i in range(0, len(older) - 1, 2):
            first, second = older[i], older[i + 1]
            faded = self._fade(second.end - first.end)
            _accumulate(first.capacity, second.capacity, faded, 1.0)
            _accumulate(first.held, second.held, faded, 1.0)
            first.end, first.until = second.end, second.until
            joined.append(first)
        self._slices = [*joined, *(older[-1:] if len(older) % 2 else ()), newest]

    def _part_since(self, piece: _Slice, start: float) -> float:
        """Which part of a slice's integral lies behind `start`, taking its amounts as constant."""
        if piece.start >= start:
            return 1.0
        if piece.end <= start:
            return 0.0
        return self._gained(piece.end - start) / self._gained(piece.end - piece.start)

    def _fade(self, seconds: float) -> float:
        return 2.0 ** (-seconds / self.half_life) if self.half_life else 1.0

    def _gained(self, seconds: float) -> float:
        """The integral of 2^(-t / half_life) from 0 to `seconds`."""
        if not self.half_life:
            return seconds
        rate = math.log(2) / self.half_life
        return -math.expm1(-rate * seconds) / rate

    # -- across restarts ---------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Everything but the settings, at most about 1 MB for ten thousand queues."""
        pieces = [(piece.capacity, piece.held) for piece in self._slices] + [(self._capacity, self._held)]
        resources = sorted({name for capacity, held in pieces for name in (*capacity, *(key[1] for key in held))})
        number = {name: i for i, name in enumerate(resources)}
        keys = sorted({key for _, held in pieces for key in held})
        numbers = [
            amount
            for capacity, held in pieces
            for amount in (*(capacity.get(r, 0.0) for r in resources), *(held.get(key, 0.0) for key in keys))
        ]
        state = _State(
            version=1,
            at=self._at if self._at is not None else 0.0,
            resources=resources,
            keys=[(queue, number[name]) for queue, name in keys],
            slices=[(piece.start, piece.end, piece.until) for piece in self._slices],
            numbers=struct.pack(f"<{len(numbers)}f", *numbers),
        )
        return zlib.compress(msgspec.msgpack.encode(state))

    def restore(self, data: bytes) -> None:
        """Go on from what `encode` wrote. Raises CorruptUsage and then changes nothing."""
        state = _read(data)
        resources = state.resources
        keys = [(queue, resources[i]) for queue, i in state.keys]
        numbers = iter(_numbers(state.numbers))
        rows = []
        for _ in range(len(state.slices) + 1):
            capacity = {name: amount for name, amount in zip(resources, numbers, strict=False) if amount}
            held = {key: amount for key, amount in zip(keys, numbers, strict=False) if amount}
            rows.append((capacity, held))
        self._slices = [_Slice(*times, *row) for times, row in zip(state.slices, rows, strict=False)]
        self._capacity, self._held = rows[-1]
        self._at = state.at


def _accumulate(into: dict[K, float], rates: Mapping[K, float], faded: float, gained: float) -> None:
    if faded != 1.0:
        for key in into:
            into[key] *= faded
    for key, rate in rates.items():
        into[key] = into.get(key, 0.0) + rate * gained


def _numbers(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // 4}f", data)


def _read(data: bytes) -> _State:
    unpacking = zlib.decompressobj()
    try:
        unpacked = unpacking.decompress(data, _LARGEST_STATE)
        state = msgspec.msgpack.decode(unpacked, type=_State)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise CorruptUsage(f"it is not what was written: {error}") from error
    if not unpacking.eof:
        raise CorruptUsage("its end is missing")
    if state.version != 1:
        raise CorruptUsage(f"it has version {state.version}, and this release reads version 1")
    width = len(state.resources) + len(state.keys)
    if len(state.numbers) != 4 * width * (len(state.slices) + 1):
        raise CorruptUsage(f"{len(state.numbers)} bytes of numbers do not fill {len(state.slices) + 1} rows of {width}")
    if any(not 0 <= i < len(state.resources) for _, i in state.keys):
        raise CorruptUsage("it names a resource that it does not list")
    times = [state.at, *(moment for piece in state.slices for moment in piece)]
    if not all(map(math.isfinite, times)) or any(not a <= b <= c for a, b, c in state.slices):
        raise CorruptUsage("its times are in no order")
    if any(not (0 <= amount < math.inf) for amount in _numbers(state.numbers)):
        raise CorruptUsage("it contains amounts that are negative or not finite")
    return state


# -- the World's part ------------------------------------------------------------------------------------------------


def sample(world: World) -> tuple[dict[Key, float], dict[str, float]]:
    """What queues hold at this moment, and the capacity: two arguments for `Usage.observe`."""
    held = {
        (name, resource): float(amount)
        for name, queue in world.queues.items()
        for resource, amount in zip(queue.resources, queue.allocated, strict=True)
        if amount
    }
    return held, dict(zip(world.resources, map(float, world.total), strict=True))
