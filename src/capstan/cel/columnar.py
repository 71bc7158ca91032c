"""Selectors over a whole fleet: evaluate once per distinct tuple of what the selector reads, then look the rest up.

Each attribute that some selector reads becomes a column of small codes, once. The columns of one selector combine into
one code per device; a selector is evaluated for one device of each code that occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capstan.cel.device import DeviceBinding, DeviceSelectorProgram
from capstan.cel.errors import EvaluationError

Codes = NDArray[np.int64]
# Above this many possible combinations, the codes in use are counted again from zero.
_DENSE: Final = 1 << 16


@dataclass(slots=True)
class Selection:
    """The verdict for each device of a fleet: selected or not; or failed, with the errors by device position."""

    selected: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    errors: dict[int, EvaluationError] = field(default_factory=dict)


@dataclass(slots=True)
class Column:
    """One code per device, from 0 to `size` − 1."""

    codes: Codes
    size: int


class Fleet:
    """Devices as columns. The devices do not change; make a new fleet for new devices."""

    def __init__(self, devices: Sequence[DeviceBinding]) -> None:
        self.devices = list(devices)
        self._columns: dict[Hashable, Column] = {}

    def select(self, selector: DeviceSelectorProgram) -> Selection:
        """The verdict of one selector for every device; `errors` holds one error for each distinct way to fail."""
        count = len(self.devices)
        column = self._combined(selector)
        first = np.full(column.size, -1, dtype=np.int64)
        first[column.codes[::-1]] = np.arange(count - 1, -1, -1)
        selected = np.zeros(column.size, dtype=np.bool_)
        failed = np.zeros(column.size, dtype=np.bool_)
        errors: dict[int, EvaluationError] = {}
        for code in np.flatnonzero(first >= 0).tolist():
            position = int(first[code])
            try:
                selected[code] = selector.matches_bound(self.devices[position])
            except EvaluationError as error:
                failed[code] = True
                errors[position] = error
        return Selection(selected[column.codes], failed[column.codes], errors)

    def _combined(self, selector: DeviceSelectorProgram) -> Column:
        """The column that tells apart what the selector tells apart."""
        if selector in self._columns:
            return self._columns[selector]
        if selector.reads is None:
            return self._column("whole device", _whole)
        attributes, capacity = selector.reads
        columns = [self._column("driver", _settings)]
        columns += [self._column(("attributes", name), _reader("attributes", name)) for name in sorted(attributes)]
        columns += [self._column(("capacity", name), _reader("capacity", name)) for name in sorted(capacity)]
        combined = columns[0]
        for column in columns[1:]:
            combined = _join(combined, column)
        self._columns[selector] = combined
        return combined

    def _column(self, key: Hashable, read: Callable[[dict[str, Any]], Hashable]) -> Column:
        if key not in self._columns:
            codes: dict[Hashable, int] = {}
            encoded = [codes.setdefault(read(device.variables["device"]), len(codes)) for device in self.devices]
            self._columns[key] = Column(np.array(encoded, dtype=np.int64), max(len(codes), 1))
        return self._columns[key]


def _join(left: Column, right: Column) -> Column:
    codes = left.codes * right.size + right.codes
    size = left.size * right.size
    if size <= _DENSE:
        return Column(codes, size)
    present, renumbered = np.unique(codes, return_inverse=True)
    return Column(renumbered.astype(np.int64), len(present))


def _settings(device: dict[str, Any]) -> Hashable:
    return device["driver"], device["allowMultipleAllocations"]


def _reader(kind: str, name: str) -> Callable[[dict[str, Any]], Hashable]:
    domain, _, short = name.rpartition("/")
    absent = object()
    return lambda device: _key(device[kind][domain].get(short, absent))


def _whole(device: dict[str, Any]) -> Hashable:
    maps = [
        frozenset(
            (domain, name, _key(value)) for domain, values in device[kind].items() for name, value in values.items()
        )
        for kind in ("attributes", "capacity")
    ]
    return _settings(device), *maps


def _key(value: Any) -> Hashable:
    """What distinguishes values: 1, true and 1.0 are different."""
    return tuple(map(_key, value)) if isinstance(value, (list, tuple)) else (type(value), value)
